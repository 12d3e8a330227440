"""Searching: questions in, ranked pictures and passages out."""

from __future__ import annotations

from abc_rag.search.answer import Answer, Citation
from abc_rag.search.citations import checked_citations, cited_numbers
from abc_rag.search.duplicates import Duplicates, Pair
from abc_rag.search.evidence import Evidence, explain_picture
from abc_rag.search.fusion import demanding, hybrid
from abc_rag.search.groups import Group, Groups
from abc_rag.search.judging import Judge
from abc_rag.search.neighbours import Neighbours, neighbours_of, page_of
from abc_rag.search.page import Shown, render_html, write_html
from abc_rag.search.pictures import Pictures
from abc_rag.search.places import crop_of, marked
from abc_rag.search.projected import opened_for, projected, rescored
from abc_rag.search.query import Query
from abc_rag.search.ranking import diverse
from abc_rag.search.retriever import Retriever
from abc_rag.search.sources import name_of

__all__ = [
    "Answer",
    "Citation",
    "Duplicates",
    "Evidence",
    "Group",
    "Groups",
    "Judge",
    "Neighbours",
    "Pair",
    "Pictures",
    "Query",
    "Retriever",
    "Shown",
    "checked_citations",
    "cited_numbers",
    "crop_of",
    "demanding",
    "diverse",
    "explain_picture",
    "hybrid",
    "marked",
    "name_of",
    "neighbours_of",
    "opened_for",
    "page_of",
    "projected",
    "render_html",
    "rescored",
    "write_html",
]
