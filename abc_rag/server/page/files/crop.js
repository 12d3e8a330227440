// Choosing a region of a picture, by drawing it or by typing it.

import { $, closing } from "./dom.js";

const FIELDS = ["x", "y", "w", "h"];
let whole = null;
let settle = () => {};

/** Let somebody choose a region of a picture. Resolves to the region as a PNG file, or to null. */
export async function choose(file, name) {
  whole = await createImageBitmap(file);
  const url = URL.createObjectURL(file);
  const dialog = $("crop");
  $("crop-image").src = url;
  $("crop-image").alt = name;
  setRegion({ x: 25, y: 25, w: 50, h: 50 });
  dialog.returnValue = "";
  dialog.showModal();
  try {
    return await new Promise((resolve) => (settle = resolve));
  } finally {
    URL.revokeObjectURL(url);
    whole.close();
  }
}

const field = (name) => $("crop-form").elements.namedItem(name);
const region = () => Object.fromEntries(FIELDS.map((name) => [name, Number(field(name).value) || 0]));
const between = (value, low, high) => Math.min(high, Math.max(low, value));

function setRegion({ x, y, w, h }) {
  const left = between(x, 0, 99);
  const top = between(y, 0, 99);
  const kept = { x: left, y: top, w: between(w, 1, 100 - left), h: between(h, 1, 100 - top) };
  for (const name of FIELDS) field(name).value = String(Math.round(kept[name]));
  draw(kept);
}

function draw({ x, y, w, h }) {
  Object.assign($("crop-region").style, { left: `${x}%`, top: `${y}%`, width: `${w}%`, height: `${h}%` });
}

function cut({ x, y, w, h }) {
  const { width, height } = whole;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round((width * w) / 100));
  canvas.height = Math.max(1, Math.round((height * h) / 100));
  canvas.getContext("2d").drawImage(whole, -Math.round((width * x) / 100), -Math.round((height * y) / 100));
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** Wire the dialog. */
export function startCrop() {
  const dialog = $("crop");
  const frame = $("crop-frame");
  closing(dialog);
  dialog.addEventListener("close", () => settle(null));
  let from = null;
  const at = (event) => {
    const box = frame.getBoundingClientRect();
    const share = (value, start, size) => between((100 * (value - start)) / size, 0, 100);
    return { x: share(event.clientX, box.left, box.width), y: share(event.clientY, box.top, box.height) };
  };
  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    from = at(event);
  });
  frame.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const to = at(event);
    setRegion({
      x: Math.min(from.x, to.x),
      y: Math.min(from.y, to.y),
      w: Math.abs(from.x - to.x),
      h: Math.abs(from.y - to.y),
    });
  });
  frame.addEventListener("pointerup", () => (from = null));
  for (const name of FIELDS) field(name).addEventListener("input", () => draw(region()));
  $("crop-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    setRegion(region());
    settle(await cut(region()));
    dialog.close();
  });
}
