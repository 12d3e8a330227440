// Where in a picture the answer lies: a map of shares, drawn over the picture.

import { post, within } from "./api.js";
import { $ } from "./dom.js";

const COLD = [12, 16, 30, 0.66];
const HOT = [255, 120, 0, 0.28];

export function hideEvidence() {
  $("look-evidence").hidden = true;
  $("look-where").setAttribute("aria-pressed", "false");
}

/** Ask for the map of a record, and draw it. `asked` is the search that found it. Returns what it says, in words. */
export async function showEvidence(collection, id, asked) {
  const { question, instruction, image, record } = asked;
  const told = await post(within(collection, "/explain"), { id, question, instruction, image, record });
  if (!told.evidence) return `No evidence: ${told.reason}.`;
  draw($("look-evidence"), told.map);
  const place = placeOf(told.map);
  $("look-evidence").setAttribute("aria-label", `What speaks for the answer is mostly ${place}`);
  $("look-evidence").hidden = false;
  $("look-where").setAttribute("aria-pressed", "true");
  const [whole, without] = [told.similarity, told.without].map((one) => one.toFixed(2));
  return `Mostly ${place}. Similarity ${whole}; without the picture ${without}.`;
}

function draw(canvas, map) {
  const most = Math.max(...map.flat());
  canvas.width = map[0].length;
  canvas.height = map.length;
  const pixels = new ImageData(canvas.width, canvas.height);
  map.flat().forEach((share, at) => {
    const heat = share / most;
    const [red, green, blue, cover] = COLD.map((cold, part) => cold + heat * (HOT[part] - cold));
    pixels.data.set([red, green, blue, 255 * cover], 4 * at);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** Where the middle of the shares is, in words. */
export function placeOf(map) {
  const middle = (weights) => weights.reduce((sum, one, at) => sum + one * (at + 0.5), 0) / weights.length;
  const down = middle(map.map((row) => row.reduce((sum, one) => sum + one, 0)));
  const across = middle(map[0].map((_, column) => map.reduce((sum, row) => sum + row[column], 0)));
  const third = (share, names) => names[Math.min(2, Math.floor(3 * share))];
  const words = [third(down, ["at the top", "", "at the bottom"]), third(across, ["on the left", "", "on the right"])];
  return words.filter(Boolean).join(" ") || "in the middle";
}
