// The page: a photo to the server, its mask over it. No library, no request to another host.

const $ = (id) => document.getElementById(id);
const IDS = 65536; // a mask has ids below
const state = { models: [], file: null, name: "photo", ids: null, width: 0, height: 0, small: null, shares: [], on: new Set(), lit: null, sent: null, png: null };

// ---------------------------------------------------------------- the mask's PNG, as class ids

// Decoded here, since a canvas gives colours, not ids, and some browsers change its pixels against fingerprinting.
async function idsOf(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const view = new DataView(bytes.buffer);
  const parts = [];
  let place = 8, width = 0, height = 0, size = 1; // bytes of an id: 2 for more than 255 classes
  while (place < bytes.length) {
    const length = view.getUint32(place), kind = String.fromCharCode(...bytes.subarray(place + 4, place + 8));
    if (kind === "IHDR") {
      width = view.getUint32(place + 8);
      height = view.getUint32(place + 12);
      size = bytes[place + 16] / 8;
      if ((size !== 1 && size !== 2) || bytes[place + 20] !== 0) throw new Error("the mask is no PNG of 8 or 16 bits");
    }
    if (kind === "IDAT") parts.push(bytes.subarray(place + 8, place + 8 + length));
    place += length + 12;
  }
  const raw = new Uint8Array(await new Response(new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
  const row = width * size, ids = new Uint8Array(row * height);
  for (let y = 0; y < height; y++) {
    const filter = raw[y * (row + 1)], from = y * (row + 1) + 1, to = y * row;
    for (let x = 0; x < row; x++) {
      const within = x >= size;
      const left = within ? ids[to + x - size] : 0, up = y ? ids[to - row + x] : 0, corner = within && y ? ids[to - row + x - size] : 0;
      ids[to + x] = raw[from + x] + (filter === 0 ? 0 : filter === 1 ? left : filter === 2 ? up : filter === 3 ? (left + up) >> 1 : paeth(left, up, corner));
    }
  }
  return { ids: size === 1 ? ids : Uint16Array.from({ length: width * height }, (_, i) => 256 * ids[2 * i] + ids[2 * i + 1]), width, height };
}

function paeth(a, b, c) {
  const p = Math.abs(b - c), q = Math.abs(a - c), r = Math.abs(a + b - 2 * c);
  return p <= q && p <= r ? a : q <= r ? b : c;
}

// ---------------------------------------------------------------- asking the server

function ask(file, parameters, accept, onSent) {
  const request = new XMLHttpRequest();
  const answer = new Promise((resolve, reject) => {
    request.open("POST", "predict?" + new URLSearchParams({ model: $("model").value, ...parameters }));
    request.responseType = "blob";
    request.setRequestHeader("Accept", accept);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => event.lengthComputable && onSent(event.loaded / event.total);
    request.upload.onload = () => onSent(1);
    request.onload = async () => (request.status === 200 ? resolve(request.response) : reject(await problemOf(request)));
    request.onerror = () => reject({ error: "The server does not answer.", more: "Is it still running? Is the network up?" });
    request.onabort = () => reject(null);
    request.send(file);
  });
  return { answer, cancel: () => request.abort() };
}

async function problemOf(request) {
  const text = await request.response.text();
  try {
    const problem = JSON.parse(text);
    const wait = request.getResponseHeader("Retry-After");
    const more = [problem.found && `Found: ${problem.found}.`, problem.expected && `Expected: ${problem.expected}.`, wait && `Try again in ${wait} s.`];
    return { error: capital(problem.error) + ".", more: more.filter(Boolean).join(" ") };
  } catch {
    return { error: `The server answered with status ${request.status}.`, more: "" };
  }
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const model = () => state.models.find((one) => one.name === $("model").value);

// ---------------------------------------------------------------- from a photo to its result

async function segment(file, name) {
  state.sent?.cancel();
  hide("error");
  if (!file || !file.size) return fail({ error: "This file is empty.", more: "Expected: a photo." });
  const before = state.file && state.png ? { ...state } : null;
  Object.assign(state, { file, name: (name || file.name || "photo").replace(/\.[^.]*$/, "") });
  show("result");
  hide("start");
  $("panel").inert = true;
  busy("Sending the photo");
  const began = performance.now();
  const drawn = createImageBitmap(file).catch(() => null);
  const photo = await drawn;
  if (photo && file === state.file) paint(photo, photo.width, photo.height);
  const sent = ask(file, { answer: "mask" }, "image/png", sending);
  state.sent = sent;
  try {
    const png = await sent.answer;
    const { ids, width, height } = await idsOf(png);
    const shown = photo ?? (await bare(file));
    if (state.sent !== sent) return;
    Object.assign(state, { ids, width, height, png, photo: shown, model: $("model").value, lit: null });
    paint(shown, width, height);
    list();
    drawMask();
    $("facts").textContent = `${width} × ${height} pixels · ${((performance.now() - began) / 1000).toFixed(1)} s`;
    $("panel").inert = false;
    say(spoken());
  } catch (problem) {
    if (state.sent !== sent) return;
    if (problem) fail(problem.error ? problem : { error: "The answer cannot be shown.", more: String(problem.message ?? "") });
    before ? restore(before) : start();
  } finally {
    if (state.sent === sent) { state.sent = null; idle(); }
  }
}

function restore(before) {
  Object.assign(state, before, { sent: null });
  $("model").value = state.model;
  paint(state.photo, state.width, state.height);
  drawMask();
  idle();
  $("panel").inert = false;
}

// A photo of a format that the browser cannot show: as the server shows it, without colours.
async function bare(file) {
  return createImageBitmap(await ask(file, { answer: "overlay", alpha: 0, legend: false }, "image/png", () => {}).answer);
}

function paint(photo, width, height) {
  const scale = Math.min(1, 1600 / Math.max(width, height));
  for (const canvas of [$("photo"), $("mask")]) {
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
  }
  $("photo").getContext("2d").drawImage(photo, 0, 0, $("photo").width, $("photo").height);
  fit();
}

// Small photos are shown larger, both canvases have one size, and the stage fits around them.
function fit() {
  const { width, height } = $("photo");
  const room = Math.floor($("stage").parentElement.getBoundingClientRect().width - 2) || 600, tall = innerHeight * (innerWidth > 800 ? 0.74 : 0.56);
  const scale = Math.min(room / width, tall / height, 3);
  for (const canvas of [$("photo"), $("mask")]) {
    canvas.style.width = `${Math.round(width * scale)}px`;
    canvas.style.height = `${Math.round(height * scale)}px`;
  }
}

function drawMask() {
  if (!state.ids) return;
  const canvas = $("mask"), { width, height } = canvas, context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer), colours = new Uint32Array(IDS);
  for (const { id, color } of model().classes) {
    const strength = state.lit === null ? (state.on.has(id) ? 255 : 0) : state.lit === id ? 255 : state.on.has(id) ? 70 : 0;
    colours[id] = ((strength << 24) | (color[2] << 16) | (color[1] << 8) | color[0]) >>> 0;
  }
  for (let y = 0, i = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * state.height) / height) * state.width;
    for (let x = 0; x < width; x++, i++) pixels[i] = colours[state.ids[row + Math.floor(((x + 0.5) * state.width) / width)]];
  }
  context.putImageData(image, 0, 0);
}

// ---------------------------------------------------------------- classes

function list() {
  const counts = new Array(IDS).fill(0);
  for (const id of state.ids) counts[id]++;
  state.shares = counts.map((count) => count / state.ids.length);
  const here = model().classes.filter((one) => counts[one.id]).sort((a, b) => counts[b.id] - counts[a.id]);
  state.on = new Set(here.filter((one) => !one.background).map((one) => one.id));
  $("classes").replaceChildren(...here.map(item));
  downloadable();
}

function item(one) {
  const row = document.createElement("li"), label = document.createElement("label"), box = document.createElement("input");
  const dot = document.createElement("i"), name = document.createElement("span"), share = document.createElement("span");
  box.type = "checkbox";
  box.checked = state.on.has(one.id);
  box.dataset.id = one.id;
  dot.style.background = `rgb(${one.color.join()})`;
  name.className = "name";
  name.textContent = one.name;
  share.className = "share";
  share.textContent = percent(state.shares[one.id]);
  box.onchange = () => { box.checked ? state.on.add(one.id) : state.on.delete(one.id); downloadable(); drawMask(); };
  // Not as the pointer enters: it does where a row appears under it.
  label.onpointermove = (event) => event.pointerType === "mouse" && light(one.id);
  label.onpointerleave = box.onblur = () => light(null);
  box.onfocus = () => box.matches(":focus-visible") && light(one.id);
  label.append(box, dot, name, share);
  row.append(label);
  return row;
}

function light(id) {
  if (state.lit === id) return;
  state.lit = id;
  for (const box of document.querySelectorAll("#classes input")) box.parentElement.classList.toggle("lit", Number(box.dataset.id) === id);
  drawMask();
}

function switchAll(on) {
  state.on = new Set();
  for (const box of document.querySelectorAll("#classes input")) { box.checked = on; if (on) state.on.add(Number(box.dataset.id)); }
  downloadable();
  drawMask();
}

const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1%" : `${(100 * share).toFixed(1)}%`);
const downloadable = () => { $("get-cutout").disabled = $("get-overlay").disabled = !state.on.size; };
const spoken = () => model().classes.filter((one) => state.shares[one.id]).sort((a, b) => state.shares[b.id] - state.shares[a.id])
  .slice(0, 5).map((one) => `${one.name} ${percent(state.shares[one.id])}`).join(", ");

// ---------------------------------------------------------------- the class under the pointer

function point(x, y) {
  const box = $("photo").getBoundingClientRect(), stage = $("stage").getBoundingClientRect();
  const across = (x - box.left) / box.width, down = (y - box.top) / box.height;
  if (!state.ids || !$("busy").hidden || across < 0 || down < 0 || across >= 1 || down >= 1) return hide("tip");
  const id = state.ids[Math.floor(down * state.height) * state.width + Math.floor(across * state.width)];
  const one = model().classes.find((known) => known.id === id), tip = $("tip"), dot = document.createElement("i");
  const text = one ? `${one.name} ${percent(state.shares[id])}` : "ignored";
  if (one) dot.style.background = `rgb(${one.color.join()})`;
  tip.replaceChildren(dot, text);
  show("tip");
  const left = Math.min(x - stage.left + 14, stage.width - tip.offsetWidth - 6), top = y - stage.top - tip.offsetHeight - 12;
  tip.style.transform = `translate(${Math.max(6, left)}px, ${top < 6 ? y - stage.top + 18 : top}px)`;
  return text;
}

let probe = null;
function moveProbe(event) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (event.key === "Escape") return endProbe();
  if (!steps || !state.ids || event.target !== $("stage")) return;
  event.preventDefault();
  probe ??= { x: 0.5, y: 0.5 };
  const step = event.shiftKey ? 0.01 : 0.04;
  probe.x = Math.min(0.999, Math.max(0, probe.x + steps[0] * step));
  probe.y = Math.min(0.999, Math.max(0, probe.y + steps[1] * step));
  const box = $("photo").getBoundingClientRect(), stage = $("stage").getBoundingClientRect();
  const x = box.left + probe.x * box.width, y = box.top + probe.y * box.height;
  show("probe");
  $("probe").style.transform = `translate(${x - stage.left}px, ${y - stage.top}px)`;
  say(point(x, y) ?? "");
}
function endProbe() { probe = null; hide("probe"); hide("tip"); }

// ---------------------------------------------------------------- downloads

async function download(kind) {
  if (kind === "mask") return keep(state.png, kind);
  const parameters = { answer: kind, classes: [...state.on].join(), ...(kind === "overlay" ? { alpha: $("opacity").value / 100 } : {}) };
  hide("error");
  busy(kind === "overlay" ? "Drawing the overlay" : "Cutting out");
  const sent = (state.sent = ask(state.file, parameters, "image/png", sending));
  try {
    keep(await sent.answer, kind);
  } catch (problem) {
    if (problem) fail(problem);
  } finally {
    if (state.sent === sent) { state.sent = null; idle(); }
  }
}

function keep(blob, kind) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${state.name}-${kind}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---------------------------------------------------------------- what is shown

const show = (id) => { $(id).hidden = false; };
const hide = (id) => { $(id).hidden = true; };
const say = (text) => { $("said").textContent = text; };
let ticking = 0;

function busy(text) {
  show("busy");
  hide("tip");
  $("busy-text").textContent = text;
  $("busy-bar").removeAttribute("value");
}

function sending(share) {
  if (share < 1) { $("busy-bar").value = share; return; }
  if ($("busy-text").textContent === "Sending the photo") $("busy-text").textContent = "Segmenting";
  $("busy-bar").removeAttribute("value");
  const began = performance.now(), text = $("busy-text").textContent;
  clearInterval(ticking);
  ticking = setInterval(() => { $("busy-text").textContent = `${text}: ${Math.round((performance.now() - began) / 1000)} s`; }, 1000);
}

function idle() { clearInterval(ticking); hide("busy"); }

function fail({ error, more }) {
  $("error-text").textContent = error;
  $("error-more").textContent = more ?? "";
  show("error");
}

function start() {
  state.sent?.cancel();
  Object.assign(state, { file: null, ids: null, png: null, sent: null });
  for (const canvas of [$("photo"), $("mask")]) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  endProbe();
  idle();
  hide("result");
  show("start");
}

// ---------------------------------------------------------------- the camera

let stream = null, facing = "environment";

async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) return $("capture").click(); // not over plain HTTP from another machine
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: facing, width: { ideal: 1920 } }, audio: false });
  } catch (error) {
    const blocked = error.name === "NotAllowedError";
    return fail({ error: blocked ? "The camera may not be used." : "There is no camera that can be used.", more: "Choose a photo instead." });
  }
  $("video").srcObject = stream;
  if (!$("shoot").open) $("shoot").showModal();
}

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = $("video").srcObject = null;
  if ($("shoot").open) $("shoot").close();
}

function shoot() {
  const canvas = document.createElement("canvas"), video = $("video");
  if (!video.videoWidth) return;
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  closeCamera();
  canvas.toBlob((blob) => segment(blob, "camera"), "image/jpeg", 0.92);
}

// ---------------------------------------------------------------- events

function fromTransfer(data) {
  const file = [...(data?.files ?? [])][0];
  if (file) { segment(file); return true; }
  return false;
}

$("choose").onclick = () => $("file").click();
$("file").onchange = $("capture").onchange = (event) => { fromTransfer(event.target); event.target.value = ""; };
$("camera").onclick = openCamera;
$("shutter").onclick = shoot;
$("turn").onclick = () => { facing = facing === "user" ? "environment" : "user"; stream?.getTracks().forEach((track) => track.stop()); openCamera(); };
$("leave").onclick = closeCamera;
$("shoot").onclose = closeCamera;
$("again").onclick = () => { start(); $("choose").focus(); };
$("cancel").onclick = () => state.sent?.cancel();
$("error-close").onclick = () => hide("error");
$("all").onclick = () => switchAll(true);
$("none").onclick = () => switchAll(false);
$("model").onchange = () => state.file && segment(state.file, state.name + ".");
$("opacity").oninput = (event) => { $("opacity-value").value = `${event.target.value}%`; $("mask").style.opacity = event.target.value / 100; };
for (const kind of ["mask", "overlay", "cutout"]) $(`get-${kind}`).onclick = () => download(kind);
$("stage").onpointermove = $("stage").onpointerdown = (event) => { hide("probe"); point(event.clientX, event.clientY); };
$("stage").onpointerleave = (event) => event.pointerType === "mouse" && hide("tip"); // a finger leaves as it is lifted
$("stage").onkeydown = moveProbe;
$("stage").onblur = endProbe;
addEventListener("resize", fit);
new ResizeObserver(() => requestAnimationFrame(fit)).observe($("stage").parentElement); // a scrollbar that appears takes room, too
addEventListener("paste", (event) => fromTransfer(event.clipboardData) || ($("start").hidden ? null : fail({ error: "There is no picture in what was pasted.", more: "Copy a photo, not its address." })));
let inside = 0;
addEventListener("dragenter", (event) => { event.preventDefault(); inside++; document.body.classList.add("over"); });
addEventListener("dragleave", () => { if (--inside <= 0) { inside = 0; document.body.classList.remove("over"); } });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("over");
  if (!fromTransfer(event.dataTransfer)) fail({ error: "That was no file.", more: "Drop a photo from a folder of this computer." });
});

// ---------------------------------------------------------------- start

async function begin() {
  $("mask").style.opacity = $("opacity").value / 100;
  $("opacity-value").value = `${$("opacity").value}%`;
  try {
    const [models, examples] = await Promise.all(["models", "examples"].map(async (path) => (await fetch(path)).json()));
    state.models = models;
    $("model").replaceChildren(...models.map((one) => new Option(one.name, one.name)));
    $("model").title = models.map((one) => `${one.name}: ${one.description || `${one.classes.length} classes`}`).join("\n");
    $("model").disabled = models.length < 2;
    $("examples").replaceChildren(...examples.map(example));
  } catch {
    fail({ error: "The server does not answer.", more: "Load the page again once it runs." });
  }
}

function example({ name, model: suited }) {
  const button = document.createElement("button"), image = document.createElement("img"), text = document.createElement("span");
  image.src = `examples/${name}`;
  image.alt = "";
  text.textContent = capital(name.replace(/\.[^.]*$/, ""));
  button.type = "button";
  button.append(image, text);
  button.onclick = async () => {
    if (state.models.some((one) => one.name === suited)) $("model").value = suited;
    try {
      segment(await (await fetch(`examples/${name}`)).blob(), name);
    } catch {
      fail({ error: "The server does not answer.", more: "" });
    }
  };
  return button;
}

begin();
