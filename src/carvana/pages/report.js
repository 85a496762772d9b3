"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const pictureOf = new Map(data.pictures.map((picture) => [picture.row, picture]));
const STEP = 100;
const rows = data.columns.image_id.map((_, number) => {
  const row = { number };
  for (const key in data.columns) row[key] = data.columns[key][number];
  return row;
});
const sorting = { key: "dice", down: false };
let matching = [];
let shown = STEP;
let opened = -1; // place in `viewable()`

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function titleOf(row) {
  return `${row.image_id}, fold ${row.fold}, Dice ${row.dice.toFixed(5)}`;
}

function select() {
  const [car, angle, fold] = ["car", "angle", "fold"].map((id) => element(id).value.trim());
  matching = rows.filter((row) =>
    row.car.includes(car) && (angle === "" || row.angle === +angle) && (fold === "" || row.fold === +fold));
  const sign = sorting.down ? -1 : 1;
  const key = sorting.key;
  matching.sort((a, b) => sign * (a[key] < b[key] ? -1 : a[key] > b[key] ? 1 : 0));
  shown = STEP;
  draw();
}

function draw() {
  const listed = matching.slice(0, shown);
  element("table").tBodies[0].replaceChildren(...listed.map((row) => {
    const name = pictureOf.has(row.number) ? openButton(row, row.image_id) : row.image_id;
    const cells = [row.angle, row.fold, row.dice.toFixed(5), row.extra, row.missed, (100 * row.area).toFixed(1)];
    return make("tr", {}, make("td", {}, name), ...cells.map((text) => make("td", { className: "number" }, `${text}`)));
  }));
  element("tiles").replaceChildren(...viewable().map((row) => {
    const image = make("img", { src: pictureOf.get(row.number).thumbnail, alt: `errors of ${titleOf(row)}`, loading: "lazy" });
    const tile = openButton(row, image, make("span", {}, row.image_id), make("span", {}, `Dice ${row.dice.toFixed(5)}`));
    tile.className = "tile";
    return tile;
  }));
  element("count").textContent = `${listed.length} of ${matching.length} photos, ${viewable().length} with a picture`;
  element("more").hidden = matching.length <= shown;
  for (const head of document.querySelectorAll("th[data-key]")) {
    if (head.dataset.key === sorting.key) head.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

function openButton(row, ...children) {
  const button = make("button", { type: "button" }, ...children);
  button.addEventListener("click", () => show(viewable().findIndex((other) => other.number === row.number)));
  return button;
}

function viewable() {
  return matching.filter((row) => pictureOf.has(row.number));
}

function decode(rle, size) {
  const mask = new Uint8Array(size[0] * size[1]);
  const runs = rle === "" ? [] : rle.split(" ").map(Number);
  for (let i = 0; i < runs.length; i += 2) mask.fill(1, runs[i] - 1, runs[i] - 1 + runs[i + 1]);
  return mask;
}

// Photo and masks at photo size; the newest picture that was asked for wins.
async function show(place) {
  const choice = viewable();
  opened = (place + choice.length) % choice.length;
  const row = choice[opened];
  const picture = pictureOf.get(row.number);
  if (!element("viewer").open) element("viewer").showModal();
  const photo = new Image();
  photo.src = picture.photo;
  await photo.decode();
  if (viewable()[opened] !== row) return;
  const [height, width] = picture.size;
  const zoomed = element("zoom").getAttribute("aria-pressed") === "true";
  const side = Math.min(data.side, height, width);
  const [top, left, high, wide] = zoomed ? [...picture.worst, side, side] : [0, 0, height, width];
  const canvas = element("canvas");
  [canvas.width, canvas.height] = [wide, high];
  canvas.classList.toggle("worst", zoomed);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(photo, left, top, wide, high, 0, 0, wide, high);
  const layer = document.querySelector("input[name=layer]:checked").value;
  if (layer !== "photo") paint(context, picture, layer, [top, left, high, wide]);
  const text = `${titleOf(row)}: ${row.extra} pixels too much (red), ${row.missed} missed (blue)`;
  element("caption").textContent = `${opened + 1} of ${choice.length}. ${text}`;
  canvas.setAttribute("aria-label", `${layer} of ${text}${zoomed ? ", its worst place enlarged" : ""}`);
  canvas.dataset.drawn = `${row.image_id} ${layer} ${zoomed ? "worst" : "whole"}`;
}

function paint(context, picture, layer, [top, left, high, wide]) {
  const [truth, predicted] = [decode(picture.truth, picture.size), decode(picture.predicted, picture.size)];
  const pixels = context.getImageData(0, 0, wide, high);
  const colour = { truth: [40, 170, 70], prediction: [230, 140, 0] }[layer];
  for (let y = 0; y < high; y += 1) {
    for (let x = 0; x < wide; x += 1) {
      const at = (top + y) * picture.size[1] + left + x;
      const to = 4 * (y * wide + x);
      if (layer === "errors") {
        if (truth[at] !== predicted[at]) pixels.data.set(predicted[at] ? [255, 30, 30] : [30, 80, 255], to);
      } else if ((layer === "truth" ? truth : predicted)[at]) {
        for (let c = 0; c < 3; c += 1) pixels.data[to + c] = (pixels.data[to + c] + colour[c]) / 2;
      }
    }
  }
  context.putImageData(pixels, 0, 0);
}

function zoom() {
  const button = element("zoom");
  button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
  element("canvas").classList.remove("full");
  show(opened);
}

for (const key of ["angle", "fold"]) {
  const values = [...new Set(data.columns[key])].sort((a, b) => a - b);
  element(key).append(...values.map((value) => make("option", { value: `${value}` }, `${value}`)));
}
for (const id of ["car", "angle", "fold"]) element(id).addEventListener("input", select);
for (const head of document.querySelectorAll("th[data-key] button")) {
  head.addEventListener("click", () => {
    const key = head.parentElement.dataset.key;
    sorting.down = sorting.key === key ? !sorting.down : false;
    sorting.key = key;
    select();
  });
}
element("more").addEventListener("click", () => { shown += STEP; draw(); });
element("previous").addEventListener("click", () => show(opened - 1));
element("next").addEventListener("click", () => show(opened + 1));
element("zoom").addEventListener("click", zoom);
element("close").addEventListener("click", () => element("viewer").close());
element("canvas").addEventListener("click", () => {
  if (element("zoom").getAttribute("aria-pressed") === "true") zoom();
  else element("canvas").classList.toggle("full");
});
for (const radio of document.querySelectorAll("input[name=layer]")) radio.addEventListener("change", () => show(opened));
element("viewer").addEventListener("keydown", (event) => {
  const layer = document.querySelectorAll("input[name=layer]")[+event.key - 1];
  if (event.key === "ArrowLeft") show(opened - 1);
  else if (event.key === "ArrowRight") show(opened + 1);
  else if (event.key.toLowerCase() === "z") zoom();
  else if (layer) { layer.checked = true; show(opened); }
  else return;
  event.preventDefault();
});
select();
