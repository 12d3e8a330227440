"""Underscores that are drawn as lines, and lines that are something else."""

from __future__ import annotations

import pytest
from pdf_helpers import PDFPage, pdf

from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.parts import Passage
from abc_rag.ingest.documents.pdf import PDFReader


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([(94.5, 500, 6, 0.8)], "asn1_node"),
        ([(94, 499.5, 3.4, 0.8), (98, 499.5, 3.4, 0.8)], "asn1__node"),
        ([(43, 500, 6, 0.8), (94.5, 500, 6, 0.8)], "_asn1_node"),
        ([], "asn1 node"),
        ([(94.5, 505, 6, 0.8)], "asn1 node"),  # a dash
        ([(50, 497, 42, 0.8)], "asn1 node"),  # what is underlined
        ([(94.5, 500, 6, 12)], "asn1 node"),  # a box
        ([(30, 490, 200, 0.8)], "asn1 node"),  # the edge of a table
    ],
)
def test_a_short_line_on_the_baseline_between_two_words_is_one(rules: list[tuple[float, ...]], words: str) -> None:
    # At 20 points "asn1" is 43.4 points wide in Helvetica.
    drawn = " ".join(f"{' '.join(map(str, rule))} re f" for rule in rules)
    page = PDFPage([(50, 500, 20, "asn1"), (101.5, 500, 20, "node")], extra=drawn)
    options = DocumentOptions(page_pictures=False)
    (part,) = [part for part in PDFReader().parts(pdf([page]), options, 1) if isinstance(part, Passage)]
    assert part.text.replace("\n", " ") == words


def test_one_beside_a_single_word_keeps_the_space() -> None:
    drawn = "106 500 6 0.8 re f"
    page = PDFPage([(50, 500, 20, "asn1"), (113, 500, 20, "node")], extra=drawn)
    (part,) = [p for p in PDFReader().parts(pdf([page]), DocumentOptions(), 1) if isinstance(p, Passage)]
    assert part.text == "asn1 _node"
