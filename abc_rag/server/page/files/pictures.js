// Pictures of records, fetched with the key and shown from memory.

import { blob, within } from "./api.js";

const MOST = 300;
const kept = new Map();

/** The address, within this tab, of a record's picture. */
export function picture(collection, id, side) {
  const path = within(collection, "/picture", side ? { id, max_side: side } : { id });
  let url = kept.get(path);
  if (url === undefined) {
    url = blob(path).then(URL.createObjectURL);
    url.catch(() => kept.delete(path));
  }
  kept.delete(path);
  kept.set(path, url); // the last one used is the last one in the map
  if (kept.size > MOST) {
    const [oldest, gone] = kept.entries().next().value;
    kept.delete(oldest);
    gone.then(URL.revokeObjectURL, () => {});
  }
  return url;
}

/** Forget all: another key may not see them. */
export function forgetPictures() {
  for (const url of kept.values()) url.then(URL.revokeObjectURL, () => {});
  kept.clear();
}

/** Show a record's picture; where there is none, say why in a place for it. */
export async function showPicture(image, { collection, id, side, note }) {
  try {
    image.src = await picture(collection, id, side);
    image.hidden = false;
  } catch (error) {
    image.hidden = true;
    if (note) note.textContent = `(no preview: ${error.message})`;
  }
}

/** The whole picture of a record, as a file. */
export const original = (collection, id) => blob(within(collection, "/picture", { id }));
