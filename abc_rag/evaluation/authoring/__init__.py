"""Building a CtrlBench file from a folder of pictures."""

from __future__ import annotations

from abc_rag.evaluation.authoring.build import BuildReport, build_ctrlbench, write_ctrlbench
from abc_rag.evaluation.authoring.chat import Describer, OpenAIDescriber
from abc_rag.evaluation.authoring.pairs import Pair
from abc_rag.evaluation.authoring.review import ReviewServer, write_review_page

__all__ = [
    "BuildReport",
    "Describer",
    "OpenAIDescriber",
    "Pair",
    "ReviewServer",
    "build_ctrlbench",
    "write_ctrlbench",
    "write_review_page",
]
