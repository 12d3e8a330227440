// Searching, and what the results lead to.

import { post, within } from "./api.js";
import { $, count, make, tried } from "./dom.js";
import { asked, asks, attach, addWhere, instruction, offerFields, setInstruction, setKind } from "./form.js";
import { showHits } from "./grid.js";
import { look } from "./look.js";

let running = null;
let place = { collection: "", instructs: false, explains: false, asked: {} };

/** Search in a collection from now on. */
export function searchIn(collection, { instructs, explains }) {
  place = { collection, instructs, explains, asked: {} };
  clearResults();
}

export function clearResults() {
  running?.abort();
  $("grid").replaceChildren();
  $("facets").hidden = true;
  $("answer").hidden = true;
  $("status").textContent = "";
  $("empty").hidden = true;
}

/** A task that ends when the next one begins. Marks the results as being computed meanwhile. */
export async function alone(task) {
  running?.abort();
  const mine = (running = new AbortController());
  $("results").setAttribute("aria-busy", "true");
  try {
    return await tried($("trouble"), () => task(mine.signal));
  } finally {
    if (running === mine) $("results").removeAttribute("aria-busy");
  }
}

/** Search with what the form has. */
export async function search() {
  if (!asks()) {
    $("question").focus();
    return;
  }
  await alone(async (signal) => {
    $("status").textContent = "Searching…";
    $("answer").hidden = true;
    try {
      const body = await asked();
      show(await post(within(place.collection, "/search"), body, { signal }), body);
    } catch (error) {
      if (!signal.aborted) $("status").textContent = "";
      throw error;
    }
  });
}

/** Show what a search, or an answer, has found, and keep what was asked. */
export function show(found, body) {
  place = { ...place, asked: body };
  const inside = $("results").contains(document.activeElement);
  showHits(place.collection, found.hits, {
    open: (hit) => look(hit, place, { similar, region }),
    respect: place.instructs ? respect : null,
    filter: (field, how, value) => {
      addWhere(field, how, value, search);
      search();
    },
    facet: toggle,
  });
  offerFields(found.hits);
  showFacets(found.hits);
  if (inside && document.activeElement === document.body) $("found").focus(); // what had the focus is gone
  const under = found.instruction ? `, pictures seen under “${found.instruction}”` : "";
  $("status").textContent = `${count(found.hits.length, "result")}${under}`;
  $("empty").hidden = found.hits.length > 0;
  $("empty").textContent = found.notes.join(" ") || "Nothing was found.";
}

function showFacets(hits) {
  const often = new Map();
  for (const facet of hits.flatMap((hit) => hit.facets ?? [])) often.set(facet, (often.get(facet) ?? 0) + 1);
  const chips = [...often].map(([facet, times]) => {
    const item = make("li");
    const told = { type: "button", "aria-pressed": String(facet === instruction()), on: { click: () => toggle(facet) } };
    item.append(make("button", `${facet} (${times})`, told));
    return item;
  });
  $("facet-chips").replaceChildren(...chips);
  $("facets").hidden = chips.length === 0;
}

function toggle(facet) {
  setInstruction(facet === instruction() ? null : facet);
  search();
}

/** Pictures that are similar to one in some respect. */
function respect(hit, text) {
  if (text === "") return;
  startFrom({ record: hit }, text);
}

function similar(hit) {
  startFrom({ record: hit }, null);
}

function region(file, name) {
  startFrom({ file, name }, null);
}

function startFrom(picture, under) {
  tried($("trouble"), () => attach(picture));
  $("question").value = "";
  setInstruction(under);
  setKind(under === null ? "" : "image");
  search();
  $("found").focus();
}
