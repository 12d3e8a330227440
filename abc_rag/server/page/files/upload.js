// Adding files: what was sent, what is stored, and what could not be.

import { get, post, send, within } from "./api.js";
import { $, closing, count, make, tried } from "./dom.js";

const EVERY_MS = 400;
const NEW = "";
let chosen = [];

function choose(files) {
  chosen = [...files];
  $("upload-list").replaceChildren(...chosen.slice(0, 50).map((file) => make("li", file.name)));
  if (chosen.length > 50) $("upload-list").append(make("li", `and ${chosen.length - 50} more`));
}

/** Open the dialog. */
export function openUpload(collections, current) {
  const options = collections.map((name) => make("option", name, { value: name }));
  $("upload-into").replaceChildren(...options, make("option", "a new collection…", { value: NEW }));
  $("upload-into").value = current;
  named();
  choose([]);
  $("upload-files").value = "";
  $("upload-progress").hidden = true;
  $("upload-status").textContent = "";
  $("upload-errors").replaceChildren();
  $("upload").showModal();
}

function named() {
  const isNew = $("upload-into").value === NEW;
  $("upload-named").hidden = !isNew;
  $("upload-name").required = isNew;
}

async function upload(changed) {
  if (chosen.length === 0) throw new Error("Choose at least one file.");
  let name = $("upload-into").value;
  if (name === NEW) {
    name = $("upload-name").value;
    await post("v1/collections", { name });
  }
  const form = new FormData();
  for (const file of chosen) form.append("files", file, file.name);
  const facets = $("upload-facets").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (facets.length) form.append("facets", JSON.stringify(facets));
  $("upload-sent").value = $("upload-stored").value = 0;
  $("upload-progress").hidden = false;
  $("upload-errors").replaceChildren();
  $("upload-status").textContent = "Sending…";
  const job = await send(within(name, "/items"), form, (loaded, total) => ($("upload-sent").value = loaded / total));
  $("upload-sent").value = 1;
  await followed(name, job);
  choose([]);
  $("upload-files").value = "";
  changed(name);
}

/** Follow a job to its end. The server does it even if this page is closed. */
async function followed(name, job) {
  for (;;) {
    $("upload-stored").max = job.total;
    $("upload-stored").value = job.settled;
    const failed = job.failed ? `, ${job.failed} failed` : "";
    $("upload-status").textContent = `${job.settled - job.failed} of ${count(job.total, "file")} stored${failed}.`;
    const told = job.errors.map((error) => make("li", `${error.name || `item ${error.item + 1}`}: ${error.message}`));
    $("upload-errors").replaceChildren(...told);
    if (job.state === "done") return;
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    job = await get(within(name, `/jobs/${job.id}`));
  }
}

/** Wire the dialog; `changed` is called with a collection that has more in it. */
export function startUpload(changed) {
  closing($("upload"));
  const zone = $("upload-zone");
  $("upload-into").addEventListener("change", named);
  $("upload-files").addEventListener("change", (event) => choose(event.target.files));
  for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", over);
    });
  }
  zone.addEventListener("drop", (event) => choose(event.dataTransfer.files));
  $("upload-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    event.submitter.disabled = true;
    await tried($("upload-status"), () => upload(changed));
    event.submitter.disabled = false;
  });
}
