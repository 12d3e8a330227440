// The results: a card each, and the arrow keys between them.

import { $, make, stamp, typing } from "./dom.js";
import { showPicture } from "./pictures.js";
import { altOf, nameOf, scoreOf, shownMetadata } from "./records.js";

const MOST_CHIPS = 5;

/**
 * Show hits.
 *
 * `does` has what a card's parts do: open(hit), respect(hit, text), filter(field, value), facet(instruction).
 */
export function showHits(collection, hits, does) {
  $("grid").replaceChildren(...hits.map((hit, place) => card(collection, hit, place, does)));
  makeCurrent($("grid").firstElementChild);
}

function card(collection, hit, place, does) {
  const { root, parts } = stamp("card");
  const name = nameOf(hit);
  root.id = `source-${place + 1}`;
  root.dataset.record = hit.id;
  parts.rank.textContent = String(place + 1);
  parts.score.textContent = scoreOf(hit);
  // The cosine from 0 to 1, whose differences the score halves.
  parts.fill.style.width = `${100 * Math.min(1, Math.max(0, 2 * hit.score - 1))}%`;
  parts.name.textContent = name;
  parts.open.addEventListener("click", () => does.open(hit));
  parts.chips.replaceChildren(...chips(hit, does));
  parts.chips.hidden = !parts.chips.hasChildNodes();
  if (hit.modality === "image") {
    parts.picture.alt = altOf(hit);
    parts.open.title = "Look closer";
    showPicture(parts.picture, { collection, id: hit.id, side: 480, note: parts.preview });
  } else {
    parts.picture.remove();
    parts.preview.textContent = hit.text;
  }
  if (hit.modality === "image" && does.respect) {
    parts["respect-label"].textContent = `Similar to ${name} in what respect`;
    parts.respect.addEventListener("submit", (event) => {
      event.preventDefault();
      does.respect(hit, parts["respect-text"].value.trim());
    });
  } else {
    parts.respect.remove();
  }
  return root;
}

function chips(hit, does) {
  const made = [];
  const add = (text, title, pressed, click) => {
    const button = make("button", text, { type: "button", title, on: { click } });
    if (pressed !== null) button.setAttribute("aria-pressed", String(pressed));
    const item = make("li");
    item.append(button);
    made.push(item);
  };
  for (const facet of hit.facets ?? []) {
    const found = facet === hit.facet ? "; it was found by this one" : "";
    add(facet, `Look at all pictures under this${found}`, facet === hit.facet, () => does.facet(facet));
  }
  for (const [field, value] of shownMetadata(hit)) {
    for (const one of [value].flat()) {
      const how = Array.isArray(value) ? "$contains" : "$eq";
      add(`${field}: ${one}`, "Only what has this", null, () => does.filter(field, how, one));
    }
  }
  return made.slice(0, MOST_CHIPS);
}

// One card at a time is in the tab order; arrow keys choose it.
function makeCurrent(card) {
  for (const other of $("grid").children) {
    for (const control of other.querySelectorAll("button, input")) control.tabIndex = other === card ? 0 : -1;
  }
}

function next(cards, from, key) {
  if (key === "ArrowRight") return cards[from + 1];
  if (key === "ArrowLeft") return cards[from - 1];
  if (key === "Home") return cards[0];
  if (key === "End") return cards.at(-1);
  const here = cards[from].getBoundingClientRect();
  const beside = (one) => Math.abs(one.getBoundingClientRect().left - here.left) < 2;
  if (key === "ArrowDown") return cards.slice(from + 1).find(beside) ?? cards.at(-1);
  if (key === "ArrowUp") return cards.slice(0, from).reverse().find(beside);
  return undefined;
}

/** Wire the keys. */
export function startGrid() {
  const grid = $("grid");
  grid.addEventListener("focusin", (event) => makeCurrent(event.target.closest(".card")));
  grid.addEventListener("keydown", (event) => {
    if (typing(event.target) || event.altKey || event.ctrlKey || event.metaKey) return;
    const cards = [...grid.children];
    const chosen = next(cards, cards.indexOf(event.target.closest(".card")), event.key);
    if (chosen === undefined) return;
    event.preventDefault();
    chosen.querySelector(".open").focus();
  });
}
