"use strict";
// The page of `mosaic-edge serve`. All data comes over /v1 with the token; text from the server or the model is only ever
// set as text.

const KEY = "mosaic-edge-token";
const POLL_MS = 1000, STRIP = 8;
const $ = (id) => document.getElementById(id);
const state = { current: null, samples: [], shown: null, strip: "", marks: [], asking: null };

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function bytes(n) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (n < 1024) return `${unit === "B" ? n : n.toFixed(1)} ${unit}`;
    n /= 1024;
  }
  return `${n.toFixed(1)} GiB`;
}

function clock(seconds) {
  if (seconds >= 1e9) return new Date(1000 * seconds).toLocaleTimeString();  // a clock's time of day, not a stream's
  const whole = Math.max(0, Math.round(seconds)), two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

// ---- the token, and requests with it

function takeTokenOfAddress() {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem(KEY, decodeURIComponent(found[1]));
  history.replaceState(null, "", location.pathname);
}

let asked = null;
function askForToken() {
  asked ??= new Promise((given) => {
    $("token-dialog").showModal();
    $("token-form").onsubmit = () => {
      sessionStorage.setItem(KEY, $("token").value.trim());
      $("token").value = "";
      asked = null;
      given();
    };
  });
  return asked;
}

async function request(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    if (token) {
      const response = await fetch(path, { ...options, headers: { Authorization: `Bearer ${token}`, ...options.headers } });
      if (response.ok) return response;
      if (response.status !== 401) {
        const told = await response.json().catch(() => null);
        const error = new Error(told?.error?.message ?? `the server answered ${response.status}`);
        error.status = response.status;
        throw error;
      }
    }
    await askForToken();
  }
}

const json = async (path, options) => (await request(path, options)).json();
const post = (path, body, more) => request(path, { method: "POST", body: JSON.stringify(body), ...more });

function trouble(message) {
  $("trouble").textContent = message ?? "";
  $("trouble").hidden = !message;
}

// ---- pictures, fetched with the token and shown as blobs

async function picture(id, at) {
  const path = `/v1/sessions/${id}/picture${at === undefined ? "" : `?at=${at}`}`;
  return URL.createObjectURL(await (await request(path)).blob());
}

async function show(image, id, at) {
  try {
    const url = await picture(id, at);
    if (image.src) URL.revokeObjectURL(image.src);
    image.src = url;
    image.hidden = false;
  } catch {
    image.hidden = true;
  }
}

// ---- what is drawn of a session

function showSession(stats) {
  const seen = stats.last_seconds;
  $("no-picture").hidden = seen !== null;
  $("age").textContent = seen === null ? "" : `${clock(seen)} · ${stats.newest_age_seconds.toFixed(1)} s ago`;
  const counts = [`${stats.frames} frames`];
  for (const name of ["dropped", "refused"]) if (stats[name]) counts.push(`${stats[name]} ${name}`);
  $("counts").textContent = counts.join(" · ");
  const source = stats.source;
  $("source").textContent = !source ? "fed by clients" :
    `${source.name}: ${source.error ?? (source.running ? (source.trouble ?? "running") : "ended")}`;
  if (seen !== null && state.shown !== `${stats.id} ${seen}`) {
    state.shown = `${stats.id} ${seen}`;
    show($("live"), stats.id);
  }
  if (seen === null) $("live").hidden = true;
  showTimeline(stats);
  showMemory(stats);
}

function showTimeline(stats) {
  const { first_seconds: first, last_seconds: last, id } = stats;
  $("span").textContent = first === null ? "" : `${clock(last - first)} seen`;
  $("from").textContent = first === null ? "" : clock(first);
  $("middle").textContent = first === null || last - first < 2 ? "" : clock((first + last) / 2);
  $("to").textContent = first === null ? "" : clock(last);
  const wanted = first === null ? "" : `${id} ${first} ${Math.floor(Math.log(last - first + 1) * 6)}`;  // rarer as it gets longer
  if (state.strip !== wanted) {
    state.strip = wanted;
    const images = Array.from({ length: wanted ? STRIP : 0 }, () => make("img"));
    images.forEach((image, i) => { image.alt = ""; show(image, id, first + (last - first) * (i + 0.5) / STRIP); });
    for (const old of $("strip").children) URL.revokeObjectURL(old.src);
    $("strip").replaceChildren(...images);
  }
  const span = Math.max(last - first, 1e-6);
  $("marks").replaceChildren(...state.marks.filter((m) => m.id === id).map((m) => {
    const mark = make("i");
    mark.style.left = `${100 * Math.max(0, m.start - first) / span}%`;
    mark.style.width = `${100 * Math.max(0, m.end - m.start) / span}%`;
    mark.style.opacity = 0.6 + 0.4 * m.score;
    mark.title = `${clock(m.start)} to ${clock(m.end)}, ${Math.round(100 * m.score)} % of what was looked at`;
    return mark;
  }));
}

function bandsOf(stats) {
  const tiers = stats.tiers.filter((tier) => tier.medium !== "disk");
  const pages = tiers.reduce((sum, tier) => sum + tier.capacity_bytes, 0);
  return [
    { name: "taken for window, index, question, scratch", bytes: stats.taken_bytes - pages, color: "--fixed" },
    ...tiers.map((tier, i) => ({ name: `pages ${tier.medium} ${tier.codec}`, bytes: tier.used_bytes, of: tier.capacity_bytes, color: `--tier-${i % 4}` })),
  ];
}

function samplesOf(stats, history) {
  const fixed = bandsOf(stats)[0].bytes, dram = stats.tiers.map((tier) => tier.medium !== "disk");
  const samples = history.data.map((s) => ({ at: s.seconds, bands: [fixed, ...s.used_bytes.filter((_, i) => dram[i])] }));
  return [...samples, { at: history.seconds, bands: bandsOf(stats).map((band) => band.bytes) }];
}

function showMemory(stats) {
  const bands = bandsOf(stats);
  const disk = stats.tiers.filter((tier) => tier.medium === "disk").map((t) => `disk ${bytes(t.used_bytes)} of ${bytes(t.capacity_bytes)}`);
  $("taken").textContent = [`${bytes(stats.taken_bytes)} taken of a cap of ${bytes(stats.cap_bytes)}`, ...disk].join(" · ");
  $("legend").replaceChildren(...bands.map((band) => {
    const line = make("li"), dot = make("i");
    dot.style.background = `var(${band.color})`;
    line.append(dot, `${band.name}: ${bytes(band.bytes)}${band.of === undefined ? "" : ` of ${bytes(band.of)}`}`);
    return line;
  }));
  const t = stats.tokens, kinds = ["exact", "quantised", "spilled", "collapsed", "dropped"].filter((kind) => t[kind]);
  $("tokens").textContent = t.seen ? `Of ${t.seen.toLocaleString()} tokens: ${kinds.map((k) => `${Math.round(100 * t[k] / t.seen)} % ${k}`).join(", ")}` : "";
  draw($("chart"), state.samples, stats.cap_bytes, bands.map((band) => band.color));
}

function draw(canvas, samples, cap, colors) {
  const style = getComputedStyle(document.documentElement), color = (name) => style.getPropertyValue(name);
  const scale = devicePixelRatio, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const left = 4, right = width - 4, top = 20, bottom = height - 18;
  const began = 0, until = Math.max(samples.at(-1).at, 30);
  const x = (at) => left + (right - left) * (at - began) / (until - began), y = (n) => bottom - (bottom - top) * n / (cap * 1.02);
  const below = samples.map(() => 0);
  colors.forEach((name, band) => {
    pen.beginPath();
    samples.forEach((s, i) => pen.lineTo(x(s.at), y(below[i])));
    for (let i = samples.length - 1; i >= 0; i--) {
      below[i] += samples[i].bands[band] ?? 0;
      pen.lineTo(x(samples[i].at), y(below[i]));
    }
    pen.fillStyle = pen.strokeStyle = color(name);
    pen.fill();
    pen.stroke();
  });
  pen.strokeStyle = color("--ink");
  pen.setLineDash([5, 4]);
  pen.beginPath();
  pen.moveTo(left, y(cap));
  pen.lineTo(right, y(cap));
  pen.stroke();
  pen.setLineDash([]);
  pen.fillStyle = color("--soft");
  pen.font = "12px system-ui, sans-serif";
  pen.fillText(`cap ${bytes(cap)}`, left, y(cap) - 5);
  pen.fillText("since it was opened", left, height - 4);
  pen.textAlign = "right";
  pen.fillText(clock(until), right, height - 4);
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
