// What is being asked: the question, the picture, the instruction and the filters.

import { base64 } from "./api.js";
import { $, make } from "./dom.js";
import { picture } from "./pictures.js";
import { learnFields, nameOf, valueFor } from "./records.js";

const HOW = { $eq: "is", $ne: "is not", $gte: "≥", $lte: "≤", $contains: "has" };
const state = { picture: null, instruction: null, wheres: [], collection: "" };

/** Begin anew in a collection. */
export function startIn(collection) {
  state.collection = collection;
  state.wheres = [];
  attach(null);
  setInstruction(null);
  showWheres(() => {});
}

/** The picture that is asked about: a file with a name, a record, or none. */
export async function attach(given) {
  state.picture = given;
  const shown = $("attached");
  if ($("attached-picture").dataset.own) URL.revokeObjectURL($("attached-picture").src);
  delete $("attached-picture").dataset.own;
  shown.hidden = given === null;
  if (given === null) return;
  const name = given.record ? nameOf(given.record) : given.name;
  $("attached-name").textContent = name;
  $("attached-picture").alt = `The picture that is asked about: ${name}`;
  if (given.file) {
    $("attached-picture").dataset.own = "yes";
    $("attached-picture").src = URL.createObjectURL(given.file);
  } else {
    const url = await picture(state.collection, given.record.id, 400);
    if (state.picture === given) $("attached-picture").src = url;
  }
}

export const attached = () => state.picture;

/** The instruction under which pictures are looked at, or none. */
export function setInstruction(text) {
  state.instruction = text;
  $("under").hidden = text === null;
  $("under-text").textContent = text ?? "";
}

export const instruction = () => state.instruction;

export function setKind(kind) {
  for (const one of document.getElementsByName("modality")) one.checked = one.value === kind;
}

/** Note what the metadata of records offers to filter by. */
export function offerFields(records) {
  $("known-fields").replaceChildren(...learnFields(records).map((name) => make("option", "", { value: name })));
}

/** Hold to a filter; `changed` is called when it is taken away again. */
export function addWhere(field, how, value, changed) {
  const same = (one) => one.field === field && one.how === how && one.value === value;
  if (!state.wheres.some(same)) state.wheres.push({ field, how, value });
  showWheres(changed);
}

function showWheres(changed) {
  const chips = state.wheres.map((one) => {
    const text = `${one.field} ${HOW[one.how]} ${one.value}`;
    const chip = make("li", text, { class: "chip strong" });
    const remove = () => {
      state.wheres.splice(state.wheres.indexOf(one), 1);
      showWheres(changed);
      $("question").focus(); // the button that had the focus is gone
      changed();
    };
    chip.append(make("button", "×", { type: "button", "aria-label": `Remove the filter: ${text}`, on: { click: remove } }));
    return chip;
  });
  $("wheres").replaceChildren(...chips);
}

/** Wire the fields; `changed` is called when another search is due. */
export function startForm(changed) {
  $("attached-remove").addEventListener("click", () => {
    attach(null);
    $("question").focus();
  });
  $("under-remove").addEventListener("click", () => {
    setInstruction(null);
    changed();
  });
  const add = () => {
    const field = $("where-field").value.trim();
    if (field === "") return $("where-field").focus();
    addWhere(field, $("where-how").value, valueFor(field, $("where-value").value), changed);
    $("where-field").value = $("where-value").value = "";
    return changed();
  };
  $("where-add").addEventListener("click", add);
  for (const id of ["where-field", "where-value"]) {
    $(id).addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      add();
    });
  }
}

/** Whether there is anything to ask. */
export const asks = () => $("question").value.trim() !== "" || state.picture !== null;

/** The filters alone, as requests carry them. */
export function filters() {
  const wheres = state.wheres.map(({ field, how, value }) => ({ [field]: { [how]: value } }));
  const kind = new FormData($("search")).get("modality");
  return {
    ...(kind ? { modality: kind } : {}),
    ...(wheres.length ? { where: wheres.length === 1 ? wheres[0] : { $and: wheres } } : {}),
  };
}

/** The picture, as requests carry it. */
async function pictureAsked() {
  if (state.picture === null) return {};
  return state.picture.file ? { image: { data: await base64(state.picture.file) } } : { record: state.picture.record.id };
}

/** All of it, as a search takes it. */
export async function asked() {
  const question = $("question").value.trim();
  const least = $("least").value;
  return {
    ...filters(),
    ...(await pictureAsked()),
    ...(question ? { question } : {}),
    ...(state.instruction ? { instruction: state.instruction, rerank: true } : {}),
    ...(least === "" ? {} : { min_score: Number(least) }),
    k: Number($("k").value) || 24,
    facets: true,
  };
}
