// The dialog for the API key.

import { key, onLocked } from "./api.js";
import { $, closing } from "./dom.js";
import { forgetPictures } from "./pictures.js";

const WANTED = "This server asks for an API key.";
let asking = null;

/** Ask for a key. Resolves to whether one was given. Requests that are refused together ask once. */
function ask(why) {
  asking ??= new Promise((resolve) => {
    const dialog = $("lock");
    $("lock-why").textContent = why;
    $("lock-key").value = "";
    $("lock-forget").hidden = !key.get();
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given"), { once: true });
    dialog.showModal();
    $("lock-key").focus();
  }).finally(() => (asking = null));
  return asking;
}

/** Wire the dialog. `changed` is called when the button brought another key, or none. */
export function startKey(changed) {
  const dialog = $("lock");
  closing(dialog);
  onLocked((why) => {
    $("key").hidden = false;
    return ask(why ? `${why.charAt(0).toUpperCase()}${why.slice(1)}.` : WANTED);
  });
  $("lock-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set($("lock-key").value.trim());
    forgetPictures();
    dialog.close("given");
  });
  $("lock-forget").addEventListener("click", () => {
    key.forget();
    forgetPictures();
    dialog.close("forgotten");
  });
  $("key").addEventListener("click", async () => {
    const before = key.get();
    await ask(before ? "This tab has a key." : WANTED);
    if (key.get() !== before) changed();
  });
}
