"""The small world of abc-mini: scenes of one or two emoji on a coloured background."""

from __future__ import annotations

from abc_rag.scenes.captions import captions
from abc_rag.scenes.drawing import render
from abc_rag.scenes.questions import Question, questions
from abc_rag.scenes.world import BACKGROUNDS, KINDS, Placed, Scene, held_out_scenes, phrases, random_scene

__all__ = [
    "BACKGROUNDS",
    "KINDS",
    "Placed",
    "Question",
    "Scene",
    "captions",
    "held_out_scenes",
    "phrases",
    "questions",
    "random_scene",
    "render",
]
