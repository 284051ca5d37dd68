// The page of `mosaic-edge serve`: questions, sessions, and a look at the server every second.

import { $, json, post, request, show, takeTokenOfAddress } from "./client.js";
import { bytes, clock, make, samplesOf, showSession, state } from "./drawn.js";

const POLL_MS = 1000;

function trouble(message) {
  $("trouble").textContent = message ?? "";
  $("trouble").hidden = !message;
}

// ---- questions

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let heard = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard += value;
    for (let end; (end = heard.indexOf("\n\n")) >= 0; heard = heard.slice(end + 2)) {
      const data = heard.slice(0, end).replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function ask(id, question, since) {
  const item = make("li"), said = make("p", "said going"), how = make("p", "how");
  item.append(make("div", "asked", question), said, how);
  $("answers").prepend(item);
  state.asking = new AbortController();
  $("send").textContent = "Stop";
  try {
    const body = { question, stream: true, ...(since === null ? {} : { since }) };
    const response = await post(`/v1/sessions/${id}/questions`, body, { signal: state.asking.signal });
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.text !== undefined) said.textContent += event.text;
      else showReply(id, event, item, said, how);
    }
  } catch (error) {
    if (error.name === "AbortError") how.textContent = "stopped";
    else item.append(make("p", "trouble", error.message));
  } finally {
    said.classList.remove("going");
    state.asking = null;
    $("send").textContent = "Ask";
  }
}

function showReply(id, reply, item, said, how) {
  said.textContent = reply.answer;
  how.textContent = `first token ${Math.round(reply.first_token_ms)} ms · ${reply.tokens} ${reply.tokens === 1 ? "token" : "tokens"}` + (reply.finish === "length" ? " · cut at its length" : "");
  state.marks = reply.evidence.map((e) => ({ ...e, id }));
  if (!reply.evidence.length) return;
  const row = make("div", "evidence");
  for (const e of reply.evidence.slice(0, 4)) {
    const figure = make("figure"), image = make("img");
    image.alt = `The frame at ${clock((e.start + e.end) / 2)}`;
    figure.append(image, make("figcaption", "", `${clock(e.start)}–${clock(e.end)} · ${Math.round(100 * e.score)} %`));
    row.append(figure);
    show(image, id, (e.start + e.end) / 2);
  }
  item.append(row);
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  if (state.asking) {
    state.asking.abort();
    return;
  }
  const last = state.latest?.last_seconds ?? 0, back = $("since").value;
  const question = $("question").value.trim();
  if (!question || !state.current) return;
  ask(state.current, question, back ? last - Number(back) : null);
  $("question").value = "";
};

// ---- sessions

async function openDialog() {
  const sources = await json("/v1/sources"), select = $("open-source");
  const choices = [["", "clients that send them"], ["camera", "this device's camera"], ...sources.data.map((s) => [`source ${s.id}`, s.id])];
  if (sources.files) choices.push(["file", "a file of the server"]);
  select.replaceChildren(...choices.map(([value, text]) => Object.assign(make("option", "", text), { value })));
  $("open-trouble").hidden = true;
  $("open-file-label").hidden = true;
  $("open-dialog").showModal();
}

async function openSession() {
  const kind = $("open-source").value, fps = Number($("open-fps").value), memory = $("open-memory").value.trim();
  const body = { ...(memory && { memory }), ...(fps > 0 && { fps }) };
  if (kind.startsWith("source ")) body.source = kind.slice(7);
  if (kind === "file") body.source = $("open-file").value.trim();
  const camera = kind === "camera" ? await navigator.mediaDevices.getUserMedia({ video: { width: 640 } }) : null;
  try {
    const opened = await (await post("/v1/sessions", body)).json();
    if (camera) sendCamera(camera, opened.id, fps > 0 ? fps : 1);
    state.current = opened.id;
  } catch (error) {
    camera?.getTracks().forEach((track) => track.stop());
    throw error;
  }
}

async function sendCamera(stream, id, fps) {
  const video = $("camera"), canvas = make("canvas");
  video.srcObject = stream;
  await video.play();
  for (;;) {
    const due = performance.now() + 1000 / fps;
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    const frame = await new Promise((made) => canvas.toBlob(made, "image/jpeg", 0.85));
    try {
      await request(`/v1/sessions/${id}/frames`, { method: "PUT", body: frame });
    } catch (error) {
      if (error.status === 404) break;  // it was ended
      trouble(error.message);
    }
    await new Promise((later) => setTimeout(later, Math.max(0, due - performance.now())));
  }
  stream.getTracks().forEach((track) => track.stop());
}

$("new").onclick = $("first").onclick = () => openDialog().catch((error) => trouble(error.message));
$("open-cancel").onclick = () => $("open-dialog").close();
$("open-source").onchange = () => { $("open-file-label").hidden = $("open-source").value !== "file"; };
$("open-form").onsubmit = async (event) => {
  event.preventDefault();
  try {
    await openSession();
    $("open-dialog").close();
    await look();
  } catch (error) {
    $("open-trouble").textContent = error.message;
    $("open-trouble").hidden = false;
  }
};
$("sessions").onchange = () => { state.current = $("sessions").value; look(); };
$("end").onclick = async () => {
  if (!state.current || !confirm("End this session? What it has seen is forgotten.")) return;
  await request(`/v1/sessions/${state.current}`, { method: "DELETE" }).catch((error) => trouble(error.message));
  look();
};

function showList(list) {
  const sessions = list.data;
  if (!sessions.some((s) => s.id === state.current)) state.current = sessions.at(-1)?.id ?? null;
  const wanted = sessions.map((s) => s.id).join(" ");
  if ($("sessions").dataset.ids !== wanted) {
    $("sessions").dataset.ids = wanted;
    $("sessions").replaceChildren(...sessions.map((s) => Object.assign(make("option", "", `${s.source?.name ?? "clients"} · ${s.id.slice(0, 6)}`), { value: s.id })));
  }
  if (state.current) $("sessions").value = state.current;
  $("budget-fill").style.width = `${100 * list.drawn_bytes / list.budget_bytes}%`;
  $("budget-text").textContent = `${bytes(list.drawn_bytes)} of ${bytes(list.budget_bytes)} drawn`;
  $("main").hidden = !sessions.length;
  $("empty").hidden = sessions.length > 0;
}

async function look() {
  const list = await json("/v1/sessions");
  trouble(null);
  showList(list);
  state.latest = list.data.find((s) => s.id === state.current);
  if (!state.latest) return;
  state.samples = samplesOf(state.latest, await json(`/v1/sessions/${state.current}/history`));
  showSession(state.latest);
}

async function watch() {
  try {
    await look();
  } catch (error) {
    trouble(error instanceof TypeError ? "The server does not answer; trying again." : error.message);
  }
  setTimeout(watch, POLL_MS);
}

takeTokenOfAddress();
watch();
