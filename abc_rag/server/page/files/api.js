// The server's API: requests with the key, errors as they are told, streamed events, uploads with progress.

const KEY = "abc-rag-key";
let unlock = async () => false;

/** What the server, or the way to it, refused. */
export class Refused extends Error {
  constructor(status, message, code = "", retry = 0) {
    super(message);
    Object.assign(this, { status, code, retry });
  }
}

/** The API key, which stays in this tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/**
 * Who asks for a key when the server wants one. `ask` gets why the last one was refused, and resolves to whether
 * there is another.
 */
export function onLocked(ask) {
  unlock = ask;
}

export const get = async (path, options) => (await fetched("GET", path, options)).json();
export const post = async (path, body, options) => (await fetched("POST", path, { ...options, body })).json();

/** The address of a collection's part. Names and ids are data: they are encoded. */
export function within(collection, part = "", values = {}) {
  const asked = new URLSearchParams(values).toString();
  return `v1/collections/${encodeURIComponent(collection)}${part}${asked && "?"}${asked}`;
}

export async function blob(path, options) {
  return (await fetched("GET", path, options)).blob();
}

async function fetched(method, path, { body, signal } = {}) {
  for (;;) {
    const used = key.get();
    const headers = used ? { Authorization: `Bearer ${used}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body), cache: "default" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "The server does not answer. Is it still running?");
    }
    if (answer.ok) return answer;
    const refused = refusal(answer.status, await answer.text(), answer.headers.get("Retry-After"));
    if (await unlocked(refused, used)) continue;
    if (refused.code !== "loading") throw refused;
    await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(refused.retry, 5)));
    signal?.throwIfAborted();
  }
}

/** Whether a request that was refused for its key has another one now. Another request may have brought it. */
async function unlocked(refused, used) {
  return refused.status === 401 && (used !== key.get() || unlock(used && refused.message));
}

function refusal(status, text, retry) {
  try {
    const { message, code } = JSON.parse(text).error;
    return new Refused(status, message, code, Number(retry) || 1);
  } catch {
    return new Refused(status, `The server answered with status ${status}.`);
  }
}

/** Server-sent events of an answer, as [name, value]. */
export async function* events(path, body, signal) {
  const answer = await fetched("POST", path, { body, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      yield [field("event"), JSON.parse(field("data"))];
    }
  }
}

/** Send a form, again with another key where it takes one. */
export async function send(path, form, onSent) {
  for (;;) {
    const used = key.get();
    try {
      return await sent(path, form, used, onSent);
    } catch (error) {
      if (!(await unlocked(error, used))) throw error;
    }
  }
}

/** Fetch does not tell how much has been sent. */
function sent(path, form, used, onSent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    if (used) request.setRequestHeader("Authorization", `Bearer ${used}`);
    request.upload.addEventListener("progress", (event) => onSent(event.loaded, event.total));
    request.addEventListener("error", () => reject(new Refused(0, "The upload broke off. Is the server running?")));
    request.addEventListener("load", () => {
      if (request.status < 300) resolve(JSON.parse(request.responseText));
      else reject(refusal(request.status, request.responseText, request.getResponseHeader("Retry-After")));
    });
    request.send(form);
  });
}

/** A file's bytes in base64, as requests carry pictures. */
export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result.slice(reader.result.indexOf(",") + 1)));
    reader.addEventListener("error", () => reject(new Refused(0, `${file.name}: cannot be read`)));
    reader.readAsDataURL(file);
  });
}
