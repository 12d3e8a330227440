"""Conversations that abc-mini's base learns from."""

from __future__ import annotations

import json
import random
import re

from abc_rag.models.tasks import REFUSAL, Source, judging
from abc_rag.scenes.kinds import load_kinds
from abc_rag.scenes.world import KINDS
from abc_rag.training.data.tasks import Spoken, fixed_texts, told, worked
from abc_rag.training.data.wide import wide_scene
from abc_rag.types import Text


def drawn(count: int) -> list[Spoken]:
    rng, kinds = random.Random(0), load_kinds()
    scenes = [wide_scene(kinds, rng, own=1, simple=0.2) for _ in range(8)]
    return [worked(scenes, rng) for _ in range(count)]


def test_answers_have_the_form_that_is_asked_for() -> None:
    seen = set()
    for spoken in drawn(300):
        asked = spoken.messages[0].parts[0]
        assert isinstance(asked, Text)
        if asked.text.startswith("Rewrite"):
            seen.add("rewrite")
            assert spoken.exact
            answer = json.loads(spoken.answer)
            assert {"instruction", "target", "wants"} <= answer.keys()
            assert ("question" in answer) == ("question: the question" in asked.text)
        elif asked.text.startswith("Does"):
            seen.add(spoken.answer)
            assert spoken.answer in ("yes", "no")
        elif spoken.answer != REFUSAL:
            seen.add("cited")
            sources = " ".join(p.text for p in spoken.messages[-1].parts if isinstance(p, Text))
            (cited,) = re.findall(r" \[(\d)\]\.$", spoken.answer)
            assert f"[{cited}]" in sources
        else:
            seen.add("refused")
        assert len(spoken.pictures) == sum(len(m.pictures) for m in spoken.messages)
    assert seen == {"rewrite", "yes", "no", "cited", "refused"}


def test_a_picture_is_asked_several_questions() -> None:
    rng, kinds = random.Random(1), load_kinds()
    scene = wide_scene(kinds, rng, own=1, simple=0)
    group = told(3, scene, rng, 4)
    assert len(group) == 4
    assert all(one.pictures == (3,) for one in group)
    phrases = {one.answer for one in group}
    assert any(kind in answer for answer in phrases for kind in (*KINDS, "background", "nothing", "two", "the", "a"))


def test_fixed_words_are_those_of_the_tasks() -> None:
    first = judging("a", Source(text="a"))[0].parts[0]
    assert isinstance(first, Text)
    assert first.text in fixed_texts()
