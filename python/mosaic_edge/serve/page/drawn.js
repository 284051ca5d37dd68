// What is drawn of a session: its newest frame, the timeline, memory against the cap. Text of the server or the model is
// only ever set as text.

import { $, show } from "./client.js";

const STRIP = 8;
export const state = { current: null, latest: null, samples: [], shown: null, strip: "", marks: [], asking: null };

export function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export function bytes(n) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (n < 1024) return `${unit === "B" ? n : n.toFixed(1)} ${unit}`;
    n /= 1024;
  }
  return `${n.toFixed(1)} GiB`;
}

export function clock(seconds) {
  if (seconds >= 1e9) return new Date(1000 * seconds).toLocaleTimeString();  // a clock's time of day, not a stream's
  const whole = Math.max(0, Math.round(seconds)), two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

export function showSession(stats) {
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

export function samplesOf(stats, history) {
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
