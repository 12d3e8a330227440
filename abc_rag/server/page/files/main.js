// The page: finds out what the server does and the key may, and wires the parts together.

import { answer } from "./answer.js";
import { get, within } from "./api.js";
import { startAskingForm } from "./asking.js";
import { choose, startCrop } from "./crop.js";
import { $, count, make, tried, typing } from "./dom.js";
import { asks, attach, attached, instruction, offerFields, setInstruction, startForm, startIn } from "./form.js";
import { startGiven } from "./given.js";
import { startGrid } from "./grid.js";
import { startKey } from "./key.js";
import { startLook } from "./look.js";
import { original } from "./pictures.js";
import { clearResults, search, searchIn } from "./search.js";
import { openUpload, startUpload } from "./upload.js";

const server = { collections: [], writes: false, instructs: false, explains: false };

async function start(wanted) {
  $("status").textContent = "Asking the server…";
  const [access, model] = await Promise.all([get("v1/access"), get("v1/model")]);
  server.writes = access.collections && access.scope !== "read";
  server.instructs = model.accepts.includes("InstructedImage");
  server.explains = access.explains;
  $("speak").hidden = !(access.generates && access.collections);
  $("add").hidden = !server.writes;
  $("status").textContent = "";
  server.collections = access.collections ? (await get("v1/collections")).data.map((one) => one.name).sort() : [];
  $("search").hidden = server.collections.length === 0;
  $("collection").replaceChildren(...server.collections.map((name) => make("option", name, { value: name })));
  $("collection").disabled = server.collections.length === 0;
  if (!access.collections) return say("This server serves no collections; it embeds.");
  if (server.collections.length === 0) {
    return say(`There is no collection yet.${server.writes ? " Make one with “Add…”." : ""}`);
  }
  if (server.collections.includes(wanted)) $("collection").value = wanted;
  return enter($("collection").value);
}

async function enter(name) {
  startIn(name);
  searchIn(name, server);
  const [about, first] = await Promise.all([get(within(name)), get(within(name, "/records", { limit: 50 }))]);
  $("count").textContent = count(about.count, "record");
  offerFields(first.data);
  if (about.count === 0) say("This collection is empty.");
}

function say(text) {
  clearResults();
  $("empty").textContent = text;
  $("empty").hidden = false;
}

async function crop() {
  const { file, name, record } = attached();
  const region = await choose(file ?? (await original($("collection").value, record.id)), $("attached-name").textContent);
  if (region === null) return;
  attach({ file: region, name: name?.endsWith(" (region)") ? name : `${$("attached-name").textContent} (region)` });
  search();
}

let ready = Promise.resolve();
const begin = (wanted) => (ready = tried($("trouble"), () => start(wanted)));

startKey(() => begin());
startForm(search);
startGrid();
startLook();
startAskingForm();
startCrop();
startUpload((name) => begin(name));
startGiven(
  async (file, name) => {
    await ready; // it begins anew in a collection
    attach({ file, name });
    if (instruction() !== null) setInstruction(null);
    search();
  },
  (why) => ($("trouble").textContent = why),
);
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  ready.then(search); // somebody may type before the server has answered
});
for (const one of document.getElementsByName("modality")) one.addEventListener("change", () => asks() && search());
$("collection").addEventListener("change", (event) => tried($("trouble"), () => enter(event.target.value)));
$("speak").addEventListener("click", () => answer($("collection").value));
$("add").addEventListener("click", () => openUpload(server.collections, $("collection").value));
$("attached-crop").addEventListener("click", () => tried($("trouble"), crop));
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || typing(event.target) || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  $("question").focus();
  $("question").select();
});
begin();
