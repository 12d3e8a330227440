// Ask about a picture: how the ranking under an instruction differs from the one of the picture as a whole.

import { post, within } from "./api.js";
import { $, count, stamp, tried } from "./dom.js";
import { filters } from "./form.js";
import { showPicture } from "./pictures.js";
import { altOf, nameOf } from "./records.js";

const SHOWN = 10;
const RANKED = 50;
let subject = null;
let place = null;
let running = null;

/** Ask about a record from now on; null asks about none. */
export function startAsking(record, where) {
  running?.abort();
  subject = record;
  place = where;
  $("asking").hidden = record === null || !where.instructs;
  $("columns").hidden = true;
  $("asking-status").textContent = "";
  $("asking-instruction").value = "";
}

/** By how many places each hit moved: a number, or null for one that was not among the first ones before. */
export function moves(before, after) {
  const places = new Map(before.map((hit, rank) => [hit.id, rank]));
  return after.map((hit, rank) => (places.has(hit.id) ? places.get(hit.id) - rank : null));
}

async function compare() {
  running?.abort();
  const { signal } = (running = new AbortController());
  const [record, instruction, kind] = [subject, $("asking-instruction").value.trim(), $("asking-kind").value];
  if (record === null || instruction === "") return;
  const { where } = filters();
  const body = { record: record.id, k: RANKED + 1, ...(where && { where }), ...(kind && { modality: kind }) };
  $("asking-status").textContent = "Comparing…";
  // Pictures are compared under the same instruction; passages as they are.
  const under = { ...body, instruction, question: instruction, rerank: kind === "image" };
  const [plain, asked] = await Promise.all(
    [body, under].map(async (one) => {
      const found = await post(within(place.collection, "/search"), one, { signal });
      return found.hits.filter((hit) => hit.id !== record.id).slice(0, RANKED); // the picture itself is no news
    }),
  );
  const moved = moves(plain, asked);
  const changed = moved.slice(0, SHOWN).filter((one) => one !== 0).length;
  $("asking-status").textContent = `${count(changed, "place")} of the first ${Math.min(SHOWN, asked.length)} changed.`;
  $("asked-title").textContent = `Under “${instruction}”`;
  $("plain").replaceChildren(...plain.slice(0, SHOWN).map((hit, rank) => line(hit, rank)));
  $("asked").replaceChildren(...asked.slice(0, SHOWN).map((hit, rank) => line(hit, rank, moved[rank])));
  $("columns").hidden = false;
}

function line(hit, rank, move) {
  const { root, parts } = stamp("line");
  parts.rank.textContent = String(rank + 1);
  parts.name.textContent = hit.modality === "image" ? nameOf(hit) : "";
  parts.text.textContent = hit.text;
  parts.score.textContent = hit.score.toFixed(3);
  if (hit.modality === "image") {
    parts.picture.alt = altOf(hit);
    showPicture(parts.picture, { collection: place.collection, id: hit.id, side: 480 });
  }
  if (move === undefined) {
    parts.move.remove();
    return root;
  }
  const [kind, text, told] = told_(move);
  root.classList.add(kind);
  parts.move.classList.add(kind);
  parts.move.textContent = text;
  parts.move.title = told;
  return root;
}

function told_(move) {
  if (move === null) return ["up", "new", `not among the first ${RANKED} before`];
  if (move === 0) return ["same", "=", "in the same place"];
  return move > 0 ? ["up", `▲ ${move}`, `up by ${move}`] : ["down", `▼ ${-move}`, `down by ${-move}`];
}

/** Wire the form. */
export function startAskingForm() {
  $("asking-form").addEventListener("submit", (event) => {
    event.preventDefault();
    tried($("asking-status"), compare);
  });
}
