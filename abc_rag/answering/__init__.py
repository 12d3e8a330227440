"""Answers from what is found: the seam of generators, and loading a model behind it."""

from __future__ import annotations

from abc_rag.answering.generator import Generation, GenerationStream, Generator, Outcome
from abc_rag.answering.judge import GenerativeJudge
from abc_rag.answering.load import load_generator
from abc_rag.answering.openai import OpenAIGenerator
from abc_rag.answering.retriever import Retriever
from abc_rag.answering.rewriter import GenerativeRewriter
from abc_rag.answering.writing import AnswerStream, AsyncAnswerStream

__all__ = [
    "AnswerStream",
    "AsyncAnswerStream",
    "Generation",
    "GenerationStream",
    "GenerativeJudge",
    "GenerativeRewriter",
    "Generator",
    "OpenAIGenerator",
    "Outcome",
    "Retriever",
    "load_generator",
]
