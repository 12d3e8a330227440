"""Conversations that abc-mini's base learns from."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys

from abc_rag.models.tasks import REFUSAL, Source, judging
from abc_rag.scenes.kinds import load_kinds
from abc_rag.scenes.world import KINDS, phrase
from abc_rag.training.data.spoken import Spoken
from abc_rag.training.data.tasks import fixed_texts, told, worked
from abc_rag.training.data.wide import wide_scene
from abc_rag.types import Text


def drawn(count: int) -> list[Spoken]:
    rng, kinds = random.Random(0), load_kinds()
    scenes = [wide_scene(kinds, rng, own=1, simple=0.2) for _ in range(8)]
    return [one for _ in range(count) for one in worked(scenes, rng)]


def test_answers_have_the_form_that_is_asked_for() -> None:
    seen = set()
    for spoken in drawn(300):
        assert len(spoken.pictures) == sum(len(m.pictures) for m in spoken.messages)
        asked = spoken.messages[0].parts[0]
        if spoken.messages[0].role == "user":
            seen.add("chat")
            continue
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
    assert seen == {"rewrite", "yes", "no", "cited", "refused", "chat"}


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


def said(spoken: Spoken) -> str:
    parts = [part for message in spoken.messages if message.role != "system" for part in message.parts]
    return "".join(part.text if isinstance(part, Text) else "<picture>" for part in parts)


def between(words: str) -> str:
    """The sources of a conversation that asks for an answer."""
    first, *sources, last = words.split("\n")
    assert first.startswith("question: ")
    assert last == first.replace("<picture> ", "")
    return "\n".join(sources)


def test_each_way_in_which_a_retriever_asks_is_learnt() -> None:
    """Four sources, a question with a picture of its own, and what follows earlier turns."""
    asked = [(spoken.messages[0].role, said(spoken)) for spoken in drawn(1000)]
    patterns = {
        "four sources": r"\[4\].*\nquestion: \"",
        "answered about a picture": r"^question: <picture> \"[^\n]*\n\[1\].*\nquestion: \"",
        "judged about a picture": r"^question: <picture> \".*\nsource: ",
        "a question judged at a picture": r"^question: \"[^\n]*in the picture with[^\n]*\nsource: <picture>",
        "rewritten after a picture": r"^user: picture .*\nassistant: .*\nquestion: picture \"",
        "rewritten after a passage": r"^user: \".*\b(coins|found|made|has|like)\b.*\nassistant: .*\nquestion: \"",
        "a caption and a name": r"\[\d\] \"notes[^\"]*\" <picture>",
    }
    for name, pattern in patterns.items():
        assert any(
            role == "system" and re.search(pattern, words, re.DOTALL | re.IGNORECASE) for role, words in asked
        ), name
    chats = [words for role, words in asked if role == "user"]
    assert any(words.startswith("<picture>") for words in chats)
    assert any(words.endswith("<picture>") for words in chats)


def test_a_question_about_a_picture_is_answered_by_the_one_source_about_its_answer() -> None:
    found = 0
    for spoken in drawn(800):
        if not re.match(r'question: <picture> "[^\n]*\n\[1\]', said(spoken)):
            continue
        sources = between(said(spoken))
        found += 1
        about = [{kind for kind in KINDS if re.search(rf"\b{kind}s?\b", line)} for line in sources.split("\n")]
        if spoken.answer == REFUSAL:
            assert about
            continue
        answer, number = re.fullmatch(r"(.*) \[(\d)\]\.", spoken.answer).groups()  # type: ignore[union-attr]
        (kind,) = (kind for kind in KINDS if phrase(kind) == answer)
        assert [kind in names for names in about] == [place == int(number) for place in range(1, len(about) + 1)]
    assert found > 20


def test_conversations_of_a_group_begin_alike_and_differ() -> None:
    rng, kinds = random.Random(2), load_kinds()
    scenes = [wide_scene(kinds, rng, own=1, simple=0.2) for _ in range(8)]
    longest = dict.fromkeys(("Answer", "Does", "Rewrite"), 0)
    for _ in range(200):
        group = worked(scenes, rng, 5)
        first = group[0].messages[0].parts[0]
        assert 1 <= len(group) <= 5
        if group[0].messages[0].role == "user":
            assert len(group) == 1
            continue
        assert isinstance(first, Text)
        name = first.text.split()[0]
        longest[name] = max(longest[name], len(group))
        if name == "Rewrite":
            continue
        assert all(one.messages[:-1] == group[0].messages[:-1] for one in group)
        # The question stands before and behind sources that all have.
        alike = {between(said(one)) if name == "Answer" else said(one).split("\nsource: ")[0] for one in group}
        assert len(alike) == 1
        assert len({(said(one), one.pictures) for one in group}) > 1 or len(group) == 1
    assert longest == {"Answer": 5, "Does": 3, "Rewrite": 5}


def test_a_judged_picture_shows_what_is_asked_for() -> None:
    """Of a search for one thing, by the names of what the pictures show."""
    rng, kinds = random.Random(3), load_kinds()
    scenes = [wide_scene(kinds, rng, own=1, simple=0.2) for _ in range(8)]
    told_apart = 0
    for _ in range(400):
        for one in worked(scenes, rng, 4):
            named = {kind for kind in KINDS if re.search(rf"\b{kind}\b", said(one).lower())}
            if one.answer == "yes" and "source: <picture>" in said(one) and len(one.pictures) == 1 and len(named) == 1:
                told_apart += 1
                assert named <= {o.kind for o in scenes[one.pictures[0]].objects} or "not" in said(one).lower()
    assert told_apart > 20


def test_plain_words_are_always_the_same() -> None:
    rng, kinds = random.Random(5), load_kinds()
    scenes = [wide_scene(kinds, rng, own=1, simple=0) for _ in range(8)]
    sides: dict[float, set[str]] = {}
    for plain in (1.0, 0.0):
        asked = [one for _ in range(300) for one in worked(scenes, rng, 3, plain=plain) if "[1]" in said(one)]
        words = [said(one).split('question: "')[-1] for one in asked if one.answer != REFUSAL]
        told = [re.sub(r"^in the picture with [a-z ]+, ", "", one) for one in words if " left" in one]
        assert len(told) > 4
        sides[plain] = set(told)
    assert {one for one in sides[1.0] if "<picture>" not in one} == {'what is on the left?"'}
    assert len(sides[0.0]) > 4


def test_conversations_follow_from_the_seed_alone() -> None:
    """Whatever order a process keeps the names of a set in: a run that is resumed draws what it would have drawn."""
    program = """
import random
from abc_rag.scenes.kinds import load_kinds
from abc_rag.training.data.tasks import worked
from abc_rag.training.data.wide import wide_scene

rng, kinds = random.Random(0), load_kinds()
scenes = [wide_scene(kinds, rng, own=1, simple=0.2) for _ in range(8)]
print([(one.answer, one.pictures) for _ in range(100) for one in worked(scenes, rng, 4, plain=0.5)])
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert "yes" in said[0]
