// Small helpers over the document. What comes from a server or a file is put into it as text, never as HTML.

export const $ = (id) => document.getElementById(id);

/** A copy of a template's only element, and its parts by their names. */
export function stamp(id) {
  const root = $(id).content.firstElementChild.cloneNode(true);
  const parts = {};
  for (const one of root.querySelectorAll("[data-part]")) parts[one.dataset.part] = one;
  return { root, parts };
}

/** An element with a text, attributes and listeners. */
export function make(tag, text = "", { on = {}, ...attributes } = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  for (const [name, heard] of Object.entries(on)) made.addEventListener(name, heard);
  return made;
}

export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

/** Run what may fail; an error's message is shown in a place for it. Returns undefined after an error. */
export async function tried(place, task) {
  place.textContent = "";
  try {
    return await task();
  } catch (error) {
    if (error.name !== "AbortError") place.textContent = error.message;
    return undefined;
  }
}

/** A dialog's buttons with a cross close it. */
export function closing(dialog) {
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
}

/** Whether somebody is typing. */
export const typing = (target) => target.matches("input:not([type=radio]), textarea, select");
