// Looking closer at one result: its picture, the page that it is on, and questions about it.

import { get, within } from "./api.js";
import { startAsking } from "./asking.js";
import { choose } from "./crop.js";
import { $, closing, make, tried } from "./dom.js";
import { hideEvidence, showEvidence } from "./evidence.js";
import { original, showPicture } from "./pictures.js";
import { altOf, nameOf, scoreOf, shownMetadata } from "./records.js";

let shown = null; // { hit, place, does, page }

/** Open the dialog. `does` has similar(hit) and region(file, name). */
export async function look(hit, place, does) {
  const mine = (shown = { hit, place, does, page: null });
  const dialog = $("look");
  $("look-title").textContent = nameOf(hit);
  $("look-text").textContent = hit.text;
  $("look-facts").replaceChildren(...facts(hit));
  $("look-note").textContent = "";
  $("look-tabs").hidden = hit.page === null || hit.modality === "text" || hit.metadata.part === "page";
  $("look-page").textContent = `Page ${hit.metadata.page_label || hit.page}`;
  startAsking(null);
  $("look-actions").hidden = true;
  $("look-image").hidden = $("look-box").hidden = true;
  dialog.showModal();
  dialog.scrollTop = 0;
  if (hit.page !== null) await tried($("look-note"), async () => (mine.page = await pageOf(hit, place)));
  if (shown !== mine) return;
  $("look-tabs").hidden ||= mine.page === null;
  await showIt(hit.modality === "text" ? "page" : "picture");
}

const pageOf = (hit, place) =>
  hit.metadata.part === "page" ? hit : get(within(place.collection, "/page/record", { id: hit.id }));

async function showIt(what) {
  const { hit, place, page } = shown;
  const record = what === "page" ? page : hit;
  $("look-picture").setAttribute("aria-pressed", String(what === "picture"));
  $("look-page").setAttribute("aria-pressed", String(what === "page"));
  $("look-box").hidden = true;
  hideEvidence();
  $("look-frame").classList.toggle("paged", what === "page" || hit === page);
  if (!record) return;
  $("look-image").alt = what === "page" && hit !== page ? `The page of ${nameOf(hit)}` : altOf(record);
  await showPicture($("look-image"), { collection: place.collection, id: record.id, side: 1600, note: $("look-note") });
  if (what === "page" && hit !== page) showBox(hit.box, page.box);
  $("look-actions").hidden = $("look-image").hidden;
  // What a picture alone finds, it finds for all of it.
  $("look-where").hidden = !(place.explains && (place.asked.question || place.asked.instruction));
  startAsking($("look-image").hidden ? null : record, place);
}

/** Draw the box of a hit over its page, whose own box is its size. */
function showBox(box, page) {
  if (!box || !page) return;
  // Records are what somebody stored: a box may be off its page, or none at all.
  const share = (side, axis) => {
    const part = (100 * (box[side] - page[axis])) / (page[axis + 2] - page[axis]);
    return Math.min(100, Math.max(0, part));
  };
  const [left, top, right, bottom] = [share(0, 0), share(1, 1), share(2, 0), share(3, 1)];
  if (!(left < right && top < bottom)) return;
  const drawn = { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` };
  Object.assign($("look-box").style, drawn);
  $("look-box").hidden = false;
}

function facts(hit) {
  const told = [["Score", scoreOf(hit)]];
  if (hit.facet) told.push(["Found by", `“${hit.facet}”`]);
  for (const [name, value] of shownMetadata(hit)) told.push([name, [value].flat().join(" › ")]);
  return told.flatMap(([name, value]) => [make("dt", name), make("dd", value)]);
}

/** Wire the dialog. */
export function startLook() {
  const dialog = $("look");
  closing(dialog);
  $("look-picture").addEventListener("click", () => showIt("picture"));
  $("look-page").addEventListener("click", () => showIt("page"));
  const subject = () => ($("look-page").getAttribute("aria-pressed") === "true" ? shown.page : shown.hit);
  $("look-similar").addEventListener("click", () => {
    dialog.close();
    shown.does.similar(subject());
  });
  $("look-where").addEventListener("click", async () => {
    if ($("look-where").getAttribute("aria-pressed") === "true") return hideEvidence();
    const [mine, record] = [shown, subject()];
    $("look-where").disabled = true;
    const said = await tried($("look-note"), () => {
      $("look-note").textContent = "Looking where the answer is…";
      return showEvidence(mine.place.collection, record.id, mine.place.asked);
    });
    $("look-where").disabled = false;
    if (shown !== mine || subject() !== record) hideEvidence();
    else if (said !== undefined) $("look-note").textContent = said;
    return undefined;
  });
  $("look-crop").addEventListener("click", () =>
    tried($("look-note"), async () => {
      const record = subject();
      const region = await choose(await original(shown.place.collection, record.id), nameOf(record));
      if (region === null) return;
      dialog.close();
      shown.does.region(region, `${nameOf(record)} (region)`);
    }),
  );
}
