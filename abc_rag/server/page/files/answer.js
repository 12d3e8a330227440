// An answer in words, as it is written, with citations that lead to their sources.

import { events, within } from "./api.js";
import { $, make } from "./dom.js";
import { asked } from "./form.js";
import { alone, show } from "./search.js";

const CITED = /\[(\d+(?:,\s*\d+)*)\]/g;
const SOURCES = 8;

/** Ask for an answer from a collection. */
export async function answer(collection) {
  if ($("question").value.trim() === "") {
    $("question").focus();
    return;
  }
  await alone(async (signal) => {
    const { question, image, record, where, modality } = await asked();
    const body = { question, image, record, where, modality, k: SOURCES, stream: true };
    $("answer").hidden = false;
    $("answer").setAttribute("aria-busy", "true");
    $("answer-text").textContent = "";
    $("answer-notes").textContent = "Reading…";
    try {
      for await (const [name, value] of events(within(collection, "/answer"), body, signal)) {
        if (name === "text") $("answer-text").append(value.text);
        else if (name === "answer") finish(value, body);
        else throw new Error(value.error.message);
      }
    } catch (error) {
      $("answer-notes").textContent = "";
      throw error;
    } finally {
      $("answer").removeAttribute("aria-busy");
    }
  });
}

function finish(value, body) {
  show(value, body);
  $("answer-text").replaceChildren(...written(value.text, value.unsupported));
  $("answer-notes").textContent = value.notes.join(" ");
}

/** A text as nodes: citations are links, and sentences without one are marked. */
function written(text, unsupported) {
  const nodes = [];
  let at = 0;
  while (at < text.length) {
    const bare = unsupported
      .map((sentence) => ({ sentence, start: text.indexOf(sentence, at) }))
      .filter(({ sentence, start }) => start >= 0 && sentence !== "")
      .sort((one, other) => one.start - other.start)[0];
    nodes.push(...linked(text.slice(at, bare?.start)));
    if (bare === undefined) break;
    nodes.push(make("mark", bare.sentence, { title: "no source" }));
    at = bare.start + bare.sentence.length;
  }
  return nodes;
}

function linked(text) {
  const nodes = [];
  let at = 0;
  for (const found of text.matchAll(CITED)) {
    nodes.push(text.slice(at, found.index), "[");
    found[1].split(",").forEach((number, place) => {
      if (place > 0) nodes.push(", ");
      nodes.push(citation(number.trim()));
    });
    nodes.push("]");
    at = found.index + found[0].length;
  }
  return [...nodes, text.slice(at)];
}

function citation(number) {
  const click = (event) => {
    event.preventDefault();
    const source = $(`source-${number}`);
    if (source === null) return;
    for (const one of document.querySelectorAll(".cited")) one.classList.remove("cited");
    source.classList.add("cited");
    source.scrollIntoView({ block: "center" });
    source.querySelector(".open").focus({ preventScroll: true });
  };
  return make("a", number, { href: `#source-${number}`, "aria-label": `Source ${number}`, on: { click } });
}
