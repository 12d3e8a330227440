"""CSV and TSV, by the standard library: rows with the names of their columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import islice

from abc_rag.errors import InputError
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.parts import Part, Passage
from abc_rag.ingest.documents.reader import Reader
from abc_rag.ingest.documents.rows import row_texts
from abc_rag.ingest.documents.text import decoded, is_text

__all__ = ["CSVReader"]

_SUFFIXES = frozenset({".csv", ".tab", ".tsv"})
_DELIMITERS = ",;\t|"
_LOOKED_AT = 20  # lines
_LONGEST = 1 << 20  # characters of a cell


class CSVReader(Reader):
    """Tables as text, whatever separates their cells: commas, semicolons, tabs or bars."""

    name = "CSV"

    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """By name, if it is a text: a line with commas may be anything."""
        return suffix in _SUFFIXES and is_text(head)

    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """See `Reader.parts`."""
        text = decoded(data)
        csv.field_size_limit(_LONGEST)
        try:
            for rows in row_texts(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))):
                yield Passage(text=rows, kind="table")
        except csv.Error as error:
            raise InputError(f"cannot be read as CSV ({error}); save it anew") from error


def _delimiter(text: str) -> str:
    """The sign that cuts the first lines into the same number of cells, and into the most."""
    lines = list(islice(io.StringIO(text[: 1 << 16], newline=""), _LOOKED_AT))
    best = (0, 0)
    chosen = ","
    for delimiter in _DELIMITERS:
        try:
            counts = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        except csv.Error:
            continue
        most = max(set(counts), key=counts.count, default=1)
        told = (counts.count(most) if most > 1 else 0, most)
        if told > best:
            best, chosen = told, delimiter
    return chosen
