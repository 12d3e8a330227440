// What records say of themselves.

// What documents' parts carry for the store's own use, or what is shown in other words.
const INTERNAL = new Set([
  ...["box", "document", "document_parts", "document_reading", "document_sha256", "name", "order", "page"],
  ...["page_label", "part"],
]);
const seen = new Map();

/** Metadata that is worth showing. */
export const shownMetadata = (record) => Object.entries(record.metadata).filter(([name]) => !INTERNAL.has(name));

/** What a record is called: its file, and its page in it. */
export function nameOf(record) {
  const page = record.page === null ? "" : `, p. ${record.metadata.page_label || record.page}`;
  return (record.name || (record.modality === "text" ? "Passage" : "Picture")) + page;
}

/** What stands in a picture's place for those who do not see it. */
export const altOf = (record) => record.text || nameOf(record);

/** Note which metadata there is, and of which type. */
export function learnFields(records) {
  for (const record of records) {
    for (const [name, value] of shownMetadata(record)) seen.set(name, typeof [value].flat()[0]);
  }
  return [...seen.keys()].sort();
}

/** A typed-in value as the type that a field has. */
export function valueFor(field, text) {
  const type = seen.get(field) ?? (text.trim() !== "" && Number.isFinite(Number(text)) ? "number" : "string");
  if (type === "number" && text.trim() !== "" && Number.isFinite(Number(text))) return Number(text);
  if (type === "boolean" && /^(true|false)$/.test(text)) return text === "true";
  return text;
}

/** A hit's score in words: with its confidence, where it was judged. */
export function scoreOf(hit) {
  const judged = hit.confidence === null ? "" : `, confidence ${hit.confidence.toFixed(2)}`;
  return `${hit.score.toFixed(3)}${judged}`;
}
