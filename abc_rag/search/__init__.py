"""Searching: questions in, ranked pictures and passages out."""

from __future__ import annotations

from abc_rag.search.answer import Answer, Citation
from abc_rag.search.citations import checked_citations, cited_numbers
from abc_rag.search.fusion import demanding, hybrid
from abc_rag.search.judging import Judge
from abc_rag.search.page import Shown, render_html, write_html
from abc_rag.search.pictures import Pictures
from abc_rag.search.query import Query
from abc_rag.search.ranking import diverse
from abc_rag.search.retriever import Retriever

__all__ = [
    "Answer",
    "Citation",
    "Judge",
    "Pictures",
    "Query",
    "Retriever",
    "Shown",
    "checked_citations",
    "cited_numbers",
    "demanding",
    "diverse",
    "hybrid",
    "render_html",
    "write_html",
]
