"use strict";
/* The page around the map: loads what it shows, and says what a camera, a pair and a point are.

   What is chosen is in the address: #image=3, #pair=3,5, #point=1200, #query=2, #query-pair=2,5, so that the browser's
   back button works. Queries are shown by queries.js. */

const inFolder = "folder" in document.documentElement.dataset;  // opened from a disk, not from a server
const panel = document.getElementById("panel"), stage = document.getElementById("stage");
const by = (id) => document.getElementById(id);
const INLIER = "#24d6a0", OUTLIER = "#ff603c", FEW_LINES = 200;
const TALLEST_VH = 55;  // height of a photograph in the panel, % of the window's
const STACKED = 1.25;  // how much larger photographs are one above the other, to be laid out so

/* ---- loading ------------------------------------------------------------------------------------------------ */

const given = new Map();  // addresses that scripts hand over: what waits for them
window.featkitGiven = (path, text) => given.get(path)?.(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

function bytes(path) {
  if (!inFolder) {
    return fetch(path).then(async (answer) => {
      if (answer.ok) return answer.arrayBuffer();
      throw new Error((await answer.json()).error);
    });
  }
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    given.set(path, resolve);
    script.onload = () => { given.delete(path); script.remove(); };
    script.onerror = () => reject(new Error(`${path} is not in this folder`));
    script.src = `${path}.js`;
    document.head.append(script);
  });
}

const kept = new Map();
function once(path, make) {
  if (!kept.has(path)) kept.set(path, make(path).catch((error) => { kept.delete(path); throw error; }));
  return kept.get(path);
}
const json = (path) => once(path, async () => JSON.parse(new TextDecoder().decode(await bytes(path))));

/* A photograph: of the map ("image") or of a query. The addresses of its data. */
const LISTS = { image: "images", query: "queries" };
const BEFORE = { image: "", query: "query-" };
const entryOf = (kind, index) => scene[LISTS[kind]][index];
const aboutOf = (kind, index) => json(`${kind}/${index}.json`);

async function thumbAddress(kind, index) {
  const path = `${BEFORE[kind]}thumb/${index}.jpg`;
  return inFolder ? once(path, async () => URL.createObjectURL(new Blob([await bytes(path)], { type: "image/jpeg" }))) : path;
}

async function decoded(address) {
  const picture = new Image();
  picture.src = address;
  await picture.decode();
  return picture;
}

async function keypointsOf(index) {
  const buffer = await bytes(`image/${index}.bin`), count = buffer.byteLength / 12;
  return { xy: new Float32Array(buffer, 0, 2 * count), point: new Int32Array(buffer, 8 * count, count), count };
}

async function linesOf(path) {  // [x0, y0, x1, y1] and whether it is an inlier
  const buffer = await bytes(path), count = buffer.byteLength / 17;
  const ends = new Float32Array(buffer, 0, 4 * count), inlier = new Uint8Array(buffer, 16 * count, count);
  return Array.from({ length: count }, (_, i) => ({ ends: [...ends.subarray(4 * i, 4 * i + 4)], inlier: inlier[i] === 1 }));
}

async function linesOfPair(first, second) {
  const lines = await linesOf(`pair/${Math.min(first, second)}-${Math.max(first, second)}.bin`);
  return first < second ? lines : lines.map(({ ends: [a, b, c, d], inlier }) => ({ ends: [c, d, a, b], inlier }));
}

/* ---- elements ----------------------------------------------------------------------------------------------- */

function el(tag, more = {}, ...children) {  // text is only ever text: names of files may hold markup
  const { className, dataset, ...rest } = more, made = Object.assign(document.createElement(tag), rest);
  if (className) made.className = className;
  Object.assign(made.dataset, dataset ?? {});
  made.append(...children.filter((child) => child !== null));
  return made;
}

const number = (value, digits = 0) => value === null || value === undefined ? "–" : value.toLocaleString("en-GB", { maximumFractionDigits: digits, minimumFractionDigits: digits });
const facts = (rows) => el("dl", {}, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
const button = (text, onclick) => el("button", { type: "button", onclick }, text);
const go = (hash) => { location.hash = hash; };

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    thumbAddress(target.dataset.kind, Number(target.dataset.index)).then((address) => { target.src = address; }, () => {});
  }
}, { rootMargin: "400px" });

function thumbImage(kind, index) {
  const picture = el("img", { alt: "", dataset: { kind, index } });
  if (entryOf(kind, index).photo) watcher.observe(picture);
  return picture;
}

function thumb(kind, index) {
  const { name } = entryOf(kind, index);
  return el("button", { type: "button", className: "thumb", title: name, onclick: () => go(`${kind}=${index}`), dataset: { [kind]: index } },
    el("span", { className: "frame" }, thumbImage(kind, index)), el("span", { className: "name" }, name));
}

const backToAll = () => button("← all photographs", () => go(""));

/* ---- pictures with something drawn on them -------------------------------------------------------------------- */

function fitted(canvas) {  // a canvas of the screen's own pixels, and its size in css px
  const scale = devicePixelRatio, [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return { pen, width, height };
}

function dots(pen, keypoints, wanted, toScreen, radius) {
  let drawn = 0;
  for (const [sees, colour] of [[false, OUTLIER], [true, INLIER]]) {
    if (!wanted[sees ? "seen" : "other"]) continue;
    pen.fillStyle = colour;
    pen.globalAlpha = sees ? 0.95 : 0.6;
    for (let i = 0; i < keypoints.count; i++) {
      if ((keypoints.point[i] >= 0) !== sees) continue;
      const [x, y] = toScreen(keypoints.xy[2 * i], keypoints.xy[2 * i + 1]);
      pen.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
      drawn++;
    }
  }
  pen.globalAlpha = 1;
  return drawn;
}

function nearestSeen(keypoints, x, y, within) {
  let best = -1, least = within * within;
  for (let i = 0; i < keypoints.count; i++) {
    const [dx, dy] = [keypoints.xy[2 * i] - x, keypoints.xy[2 * i + 1] - y];
    if (keypoints.point[i] >= 0 && dx * dx + dy * dy < least) [best, least] = [keypoints.point[i], dx * dx + dy * dy];
  }
  return best;
}

/* One or two photographs on a canvas, as large as fits: side by side, or one above the other where that is clearly
   larger. Returns their places in css px. */
function layPhotos(pen, width, height, photos) {
  const gap = 8, gaps = gap * (photos.length - 1), aspects = photos.map(({ size }) => size[0] / size[1]);
  const sum = aspects.reduce((a, b) => a + b), inverse = aspects.reduce((a, b) => a + 1 / b, 0);
  const tall = Math.min(height, (width - gaps) / sum);  // of all, side by side
  const wide = Math.min(width, (height - gaps) / inverse);  // of all, one above the other
  const stacked = wide > STACKED * Math.max(...aspects) * tall;
  let [left, top] = stacked ? [0.5 * (width - wide), 0.5 * (height - wide * inverse - gaps)]
    : [0.5 * (width - tall * sum - gaps), 0.5 * (height - tall)];
  return photos.map(({ picture, size }, i) => {
    const [w, h] = stacked ? [wide, wide / aspects[i]] : [tall * aspects[i], tall];
    const place = { left, top, wide: w, tall: h, scale: w / size[0] };
    if (picture) pen.drawImage(picture, left, top, w, h);
    else { pen.strokeStyle = "#888"; pen.strokeRect(left, top, w, h); }
    if (stacked) top += h + gap; else left += w + gap;
    return place;
  });
}
const screenOf = (place) => (x, y) => [place.left + (x + 0.5) * place.scale, place.top + (y + 0.5) * place.scale];

async function photoOf(kind, index) {
  const { size } = await aboutOf(kind, index);
  if (!entryOf(kind, index).photo) return { picture: null, size };
  return { picture: await decoded(`${BEFORE[kind]}photo/${index}.jpg`).catch(() => null), size };
}

let restage = () => {};
new ResizeObserver(() => restage()).observe(stage);
function closeStage() {
  restage = () => {};
  stage.hidden = true;
  stage.replaceChildren();
  delete stage.dataset.lines;
}

function openStage(title, tools, paint, onclick = () => {}) {
  const canvas = el("canvas");
  stage.replaceChildren(
    el("div", { className: "buttons" }, el("h1", {}, title), ...tools, button("× close", closeStage)),
    el("div", { className: "large" }, canvas));
  stage.hidden = false;
  restage = () => {
    const { pen, width, height } = fitted(canvas);
    pen.clearRect(0, 0, width, height);
    paint(pen, width, height);
  };
  canvas.onclick = (event) => onclick(event.offsetX, event.offsetY);
  restage();
}

/* ---- what the panel says -------------------------------------------------------------------------------------- */

function showAll() {
  const grid = el("div", { className: "grid" }, ...scene.images.map((_, index) => thumb("image", index)));
  const rows = el("div", { className: "pairs" }, ...scene.queries.map((_, index) => queryRow(index)));
  const search = el("input", { type: "search", placeholder: "names that contain …", ariaLabel: "Search by name" });
  search.oninput = () => {
    for (const one of [...grid.children, ...rows.children]) one.hidden = !one.title.toLowerCase().includes(search.value.toLowerCase());
  };
  fill("all", "", el("h1", {}, scene.title),
    facts([["photographs", number(scene.images.length)], ["points", number(scene.points)], ["observations", number(scene.observations)],
      ["track length", number(scene.points ? scene.observations / scene.points : null, 2)],
      ...scene.queries.length ? [["queries", queryCounts()]] : [], ["model", scene.model]]),
    ...scene.missing.length ? [el("div", { className: "missing" }, ...scene.missing.map((text) => el("p", {}, text)))] : [],
    search,
    ...scene.queries.length ? [section(`Queries (${number(scene.queries.length)})`, rows)] : [],
    section(`Photographs of the map (${number(scene.images.length)})`, grid));
  map.choose();
}

const section = (title, ...children) => el("details", { open: true }, el("summary", {}, title), ...children);

async function showImage(index, isCurrent) {
  const about = await json(`image/${index}.json`), { name, photo } = scene.images[index];
  const keypoints = await keypointsOf(index), picture = photo ? await photoOf("image", index) : null;
  if (!isCurrent()) return;
  map.choose({ camera: index, paired: withInliers(about.pairs) });
  const wanted = { seen: true, other: false }, shown = photoWithDots(picture?.picture, about.size, keypoints, wanted);
  const most = Math.max(1, ...about.pairs.map(([, inliers]) => inliers));
  const verified = scene.pairs === "verified";
  fill("image", index, el("div", { className: "buttons" }, backToAll(), button("look through", () => map.lookThrough("image", index)),
    button("enlarge", () => enlarge("image", index, keypoints, wanted))),
    el("h1", {}, name), shown.holder,
    el("div", { className: "buttons" }, shown.toggle("seen", "keypoints that see a point", about.observations),
      shown.toggle("other", "others", about.keypoints - about.observations)),
    facts([["camera", `${about.camera}, ${about.camera_size.join(" × ")} px`], ["parameters", about.params.map((p) => number(p, 3)).join(", ")],
      ["keypoints", number(about.keypoints)], ["observations", number(about.observations)],
      ["mean error", about.error_px === null ? "–" : `${number(about.error_px, 3)} px`]]),
    el("h2", {}, verified ? `Matched with ${about.pairs.length}` : `Sees points together with ${about.pairs.length}`),
    el("div", { className: "pairs" }, ...about.pairs.map((pair) => pairRow(`pair=${index},${pair[0]}`, ...pair, most, verified ? "inliers" : "common points"))));
  shown.paint();
}

const withInliers = (pairs) => pairs.filter(([, inliers]) => inliers > 0).map(([other]) => other);

/* A photograph in the panel with its keypoints as dots; a click on a dot shows its point. paint() once it is laid out. */
function photoWithDots(picture, size, keypoints, wanted) {
  const canvas = el("canvas");
  const holder = el("div", { className: "photo" }, picture ?? el("p", { className: "soft" }, "The photograph was not found."), canvas);
  holder.style.aspectRatio = `${size[0]} / ${size[1]}`;
  holder.style.width = `min(100%, ${TALLEST_VH * size[0] / size[1]}vh)`;
  const paint = () => {
    const { pen, width } = fitted(canvas), scale = width / size[0];
    panel.dataset.keypoints = dots(pen, keypoints, wanted, (x, y) => [(x + 0.5) * scale, (y + 0.5) * scale], 1);
  };
  canvas.onclick = (event) => {
    const scale = size[0] / canvas.clientWidth;
    const point = nearestSeen(keypoints, event.offsetX * scale - 0.5, event.offsetY * scale - 0.5, 10 * scale);
    if (point >= 0) go(`point=${point}`);
  };
  const toggle = (kind, text, count) => el("label", {}, el("input", {
    type: "checkbox", checked: wanted[kind], onchange: (event) => { wanted[kind] = event.target.checked; paint(); },
  }), el("span", { className: kind === "seen" ? "key" : "key other" }, `${text} (${number(count)})`));
  return { holder, paint, toggle };
}

/* A row that leads to an address: a photograph of the map, and how many matches it has with the chosen one. */
function pairRow(address, other, inliers, matches, most, called = "inliers") {
  const bar = el("span", { className: "bar" });
  bar.style.width = `${100 * (called === "matches" ? matches : inliers) / most}%`;
  if (called === "matches") bar.classList.add("other");
  const count = called === "inliers" ? `${number(inliers)} inliers of ${number(matches)} matches`
    : `${number(called === "matches" ? matches : inliers)} ${called}`;
  return el("button", { type: "button", className: "pair", onclick: () => go(address), title: scene.images[other].name, dataset: { image: other, inliers, matches } },
    el("span", { className: "frame" }, thumbImage("image", other)),
    el("span", {}, el("span", { className: "name" }, scene.images[other].name), el("span", { className: "count" }, count), bar));
}

async function enlarge(kind, index, keypoints, wanted) {
  const photo = await photoOf(kind, index);
  let place = null;
  openStage(entryOf(kind, index).name, [], (pen, width, height) => {
    [place] = layPhotos(pen, width, height, [photo]);
    dots(pen, keypoints, wanted, screenOf(place), 1.5);
  }, (x, y) => {
    const at = [(x - place.left) / place.scale - 0.5, (y - place.top) / place.scale - 0.5];
    const point = nearestSeen(keypoints, ...at, 10 / place.scale);
    if (point >= 0) go(`point=${point}`);
  });
}

async function showPair(first, second, isCurrent) {
  const about = await json(`image/${first}.json`), lines = await linesOfPair(first, second);
  const photos = await Promise.all([photoOf("image", first), photoOf("image", second)]);
  if (!isCurrent()) return;
  map.choose({ camera: first, paired: [second] });
  const names = [first, second].map((index) => scene.images[index].name), verified = scene.pairs === "verified";
  const most = Math.max(1, ...about.pairs.map(([, inliers]) => inliers)), called = verified ? "inliers" : "common points";
  fill("pair", `${first},${second}`, el("div", { className: "buttons" }, button(`← ${names[0]}`, () => go(`image=${first}`)),
    button(`${names[1]} →`, () => go(`image=${second}`))),
    el("h1", {}, `${names[0]} and ${names[1]}`), factsOfLines(lines, verified),
    el("div", { className: "grid" }, thumb("image", first), thumb("image", second)),
    el("h2", {}, `Others of ${names[0]}`),
    el("div", { className: "pairs" }, ...about.pairs.filter(([other]) => other !== second).map((pair) =>
      pairRow(`pair=${first},${pair[0]}`, ...pair, most, called))));
  openLines(names, photos, lines, called, verified);
}

function factsOfLines(lines, verified = true) {
  const inliers = lines.filter((line) => line.inlier).length;
  return facts(verified ? [["matches", number(lines.length)], ["inliers", number(inliers)],
    ["inlier share", lines.length ? `${number(100 * inliers / lines.length, 1)} %` : "–"]] : [["common points", number(inliers)]]);
}

/* Two photographs with lines between their matches. called: what inliers are; "": there cannot be any. */
function openLines(names, photos, lines, called, hasOthers = true) {
  const inliers = lines.filter((line) => line.inlier).length;
  const wanted = { inlier: true, outlier: inliers === 0, all: lines.length <= FEW_LINES };
  const paint = (pen, width, height) => {
    const [left, right] = layPhotos(pen, width, height, photos).map(screenOf);
    let drawn = 0;
    for (const kind of [false, true]) {
      if (!wanted[kind ? "inlier" : "outlier"]) continue;
      const some = lines.filter((line) => line.inlier === kind), step = wanted.all ? 1 : Math.max(1, some.length / FEW_LINES);
      [pen.strokeStyle, pen.fillStyle, pen.lineWidth] = [kind ? INLIER : OUTLIER, kind ? INLIER : OUTLIER, 1];
      for (let at = 0; at < some.length; at += step) {
        const [x0, y0, x1, y1] = some[Math.floor(at)].ends, [a, b] = left(x0, y0), [c, d] = right(x1, y1);
        pen.globalAlpha = 0.6;
        pen.beginPath();
        pen.moveTo(a, b);
        pen.lineTo(c, d);
        pen.stroke();
        pen.globalAlpha = 1;
        pen.fillRect(a - 1.5, b - 1.5, 3, 3);
        pen.fillRect(c - 1.5, d - 1.5, 3, 3);
        drawn++;
      }
    }
    stage.dataset.lines = drawn;
  };
  const toggle = (kind, text, className) => el("label", {}, el("input", {
    type: "checkbox", checked: wanted[kind], onchange: (event) => { wanted[kind] = event.target.checked; restage(); },
  }), el("span", { className }, text));
  openStage(`${names[0]} – ${names[1]}`, [
    ...called ? [toggle("inlier", `${called} (${number(inliers)})`, "key")] : [],
    ...hasOthers ? [toggle("outlier", `${called ? "others" : "matches"} (${number(lines.length - inliers)})`, "key other")] : [],
    ...lines.length > FEW_LINES ? [toggle("all", `all, not ${FEW_LINES} of them`, "")] : []], paint);
}

async function showPoint(index, isCurrent) {
  const rows = await json(`tracks/${Math.floor(index / scene.chunk)}.json`), { id, error, track } = rows[index % scene.chunk];
  const sizes = await Promise.all(track.map(async ([image]) => (await json(`image/${image}.json`)).size));
  if (!isCurrent()) return;
  map.choose({ point: index, seenBy: track.map(([image]) => image) });
  const centre = [0, 1, 2].map((axis) => xyz[3 * index + axis] + scene.middle[axis]);
  const colour = [0, 1, 2].map((axis) => rgb[3 * index + axis]);
  fill("point", index, el("div", { className: "buttons" }, backToAll()), el("h1", {}, `Point ${id}`),
    facts([["seen in", `${new Set(track.map(([image]) => image)).size} photographs`], ["observations", number(track.length)], ["mean error", error === null ? "–" : `${number(error, 3)} px`],
      ["x, y, z", centre.map((value) => number(value, 3)).join(", ")], ["colour", colour.join(", ")]]),
    el("h2", {}, "Track"),
    el("div", { className: "track" }, ...track.map(([image, x, y], row) => sight(image, x, y, sizes[row]))));
}

function sight(image, x, y, [width, height]) {
  const small = thumb("image", image), frame = small.querySelector(".frame"), ring = el("span", { className: "ring" });
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.style.width = `${12 * width / height}rem`;
  [ring.style.left, ring.style.top] = [`${100 * (x + 0.5) / width}%`, `${100 * (y + 0.5) / height}%`];
  frame.append(ring);
  const crop = el("div", { className: "crop" }), middle = el("span", { className: "ring" });
  [middle.style.left, middle.style.top] = ["50%", "50%"];
  if (scene.images[image].photo) {  // the photograph around the observation
    const wide = 1600, scale = wide / width, half = 68;
    crop.style.backgroundImage = `url("photo/${image}.jpg")`;
    crop.style.backgroundSize = `${wide}px ${height * scale}px`;
    crop.style.backgroundPosition = `${half - (x + 0.5) * scale}px ${half - (y + 0.5) * scale}px`;
  }
  crop.append(middle);
  return el("div", { className: "sight", dataset: { image, x, y } }, small, crop);
}

function fill(kind, which, ...children) {
  panel.replaceChildren(...children);
  panel.scrollTop = 0;
  Object.assign(panel.dataset, { kind, which });
}

/* ---- the address ---------------------------------------------------------------------------------------------- */

let visit = 0;
async function follow() {
  const mine = ++visit, isCurrent = () => mine === visit;
  const [kind, text = ""] = location.hash.slice(1).split("="), numbers = text.split(",").map(Number);
  const fits = (index, count) => Number.isInteger(index) && index >= 0 && index < count;
  const images = scene.images.length, queries = scene.queries.length;
  closeStage();
  try {
    if (kind === "image" && fits(numbers[0], images)) await showImage(numbers[0], isCurrent);
    else if (kind === "pair" && numbers.length === 2 && numbers.every((index) => fits(index, images))) await showPair(...numbers, isCurrent);
    else if (kind === "point" && fits(numbers[0], scene.points)) await showPoint(numbers[0], isCurrent);
    else if (kind === "query" && fits(numbers[0], queries)) await showQuery(numbers[0], isCurrent);
    else if (kind === "query-pair" && numbers.length === 2 && fits(numbers[0], queries) && fits(numbers[1], images)) await showQueryPair(...numbers, isCurrent);
    else showAll();
  } catch (error) {
    if (isCurrent()) fill("error", "", el("div", { className: "buttons" }, backToAll()), el("div", { className: "missing" }, error.message));
  }
}

/* ---- the map -------------------------------------------------------------------------------------------------- */

function wire(canvas) {
  let down = null;
  canvas.addEventListener("pointerdown", (event) => { down = [event.offsetX, event.offsetY]; by("label").hidden = true; });
  canvas.addEventListener("pointerup", (event) => {
    if (!down || event.button !== 0 || Math.hypot(event.offsetX - down[0], event.offsetY - down[1]) > 4) { down = null; return; }
    down = null;
    const hit = map.pick(event.offsetX, event.offsetY);
    if (hit) go(`${hit.kind}=${hit.index}`);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) return;
    const hit = map.cameraAt(event.offsetX, event.offsetY), label = by("label");
    canvas.style.cursor = hit ? "pointer" : "";
    label.hidden = !hit;
    if (!hit) return;
    label.textContent = hit.kind === "query" ? `${entryOf("query", hit.index).name} (query, ${entryOf("query", hit.index).state})` : entryOf("image", hit.index).name;
    [label.style.left, label.style.top] = [`${event.offsetX + 14}px`, `${event.offsetY + 10}px`];
  });
  canvas.addEventListener("pointerleave", () => { by("label").hidden = true; });
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (!stage.hidden) closeStage();
    else go("");
  });
  by("show-points").onchange = (event) => map.showPoints(event.target.checked);
  by("show-cameras").onchange = (event) => map.showCameras(event.target.checked);
  by("show-queries").onchange = (event) => map.showQueries(event.target.checked);
  by("show-queries").closest("label").hidden = !scene.queries.some((query) => query.centre);
  by("show-photos").onchange = (event) => map.showPhotos(event.target.checked);
  by("point-size").oninput = (event) => map.setPointSize(Number(event.target.value));
  by("camera-size").oninput = (event) => map.setCameraSize(2 ** Number(event.target.value));
  by("home").onclick = () => map.home();
  by("tools").hidden = false;
}

let scene, map, xyz, rgb;
async function start() {
  scene = await json("scene.json");
  document.title = `${scene.title} – featkit view`;
  const buffer = await bytes("points.bin");
  xyz = new Float32Array(buffer, 0, 3 * scene.points);
  rgb = new Uint8Array(buffer, 12 * scene.points, 3 * scene.points);
  map = createMap(by("map"), by("canvas"), scene, xyz, rgb, async (kind, index) => ({
    picture: await decoded(await thumbAddress(kind, index)), uv: (await aboutOf(kind, index)).uv,
  }));
  by("point-size").value = scene.points < 20000 ? 3 : 2;
  map.setPointSize(Number(by("point-size").value));
  wire(by("canvas"));
  by("show-photos").checked = map.fewPhotos && scene.images.some((image) => image.photo);
  map.showPhotos(by("show-photos").checked);
  addEventListener("hashchange", follow);
  await follow();
  window.featkitView = map;
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => {
  panel.replaceChildren(el("div", { className: "missing" }, `The map cannot be shown: ${error.message}`));
  document.documentElement.dataset.ready = "failed";
});
