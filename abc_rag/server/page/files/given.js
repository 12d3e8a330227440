// Pictures that are given to the page: dropped, pasted, or chosen.

import { $ } from "./dom.js";

/** Wire the three ways; `given` is called with a picture, `refused` with why something is none. */
export function startGiven(given, refused) {
  const take = (files) => {
    const file = [...files].find((one) => one.type.startsWith("image/"));
    if (file) given(file, file.name || "pasted picture");
    else if (files.length) refused("That is no picture. Documents are added to a collection with “Add…”.");
  };
  $("file").addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = "";
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length === 0 || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    take(event.clipboardData.files);
  });
  const offer = (shown) => ($("drop").hidden = !shown);
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault(); // else the browser leaves the page for the file
    offer(document.querySelector("dialog[open]") === null);
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) offer(false);
  });
  document.addEventListener("drop", (event) => {
    offer(false);
    event.preventDefault();
    if (document.querySelector("dialog[open]") === null) take(event.dataTransfer.files);
  });
}
