"""The benchmark of absence: its questions are what they are said to be, and its figures those of what tells."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest

from abc_rag.answering import load as loading
from abc_rag.answering.fake import FakeGenerator
from abc_rag.cli import main as cli
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import InputError
from abc_rag.evaluation.absent import absence_questions, evaluate_absent
from abc_rag.evaluation.metrics import auroc, best_threshold
from abc_rag.models.tasks import JUDGEMENTS, as_data
from abc_rag.types import Message, Text


def test_questions_of_each_kind_and_what_is_absent_is() -> None:
    stored, asked = absence_questions(20)
    assert len(stored) == 20
    counts = Counter(one.kind for one in asked)
    assert sum(counts.values()) == 2 * 20 + 63
    assert min(counts.values()) >= 10
    shown = {placed.kind for one in stored for placed in one.scene.objects}
    for one in asked[40:]:
        named = any(re.search(rf"\b{kind}\b", one.question) for kind in shown)
        assert (one.kind == "present") == named, one
    assert all(one.kind == "present" for one in asked[:40:2])  # what was drawn for its picture
    assert absence_questions(20)[1] == asked


def test_area_and_threshold() -> None:
    yes, no = np.array([0.9, 0.8, 0.4]), np.array([0.1, 0.4, 0.3])
    assert auroc(yes, no) == pytest.approx((3 + 3 + 2.5) / 9)
    assert best_threshold(yes, no) == pytest.approx(0.35)  # 1 + 2/3, as 2/3 + 1 at 0.6: the lowest counts
    assert auroc(yes, yes) == 0.5
    assert np.isnan(auroc(yes, no[:0]))
    assert np.isnan(best_threshold(yes[:0], no))


class Knowing(FakeGenerator):
    """Knows which questions have an answer."""

    embedder = FakeEmbedder(dim=16)

    def __init__(self, present: set[str]) -> None:
        super().__init__()
        self._present = present

    def _score(self, messages: tuple[Message, ...], answers: tuple[str, ...]) -> list[float]:
        first = messages[-1].parts[0]
        assert isinstance(first, Text)
        assert answers == JUDGEMENTS
        question = json.loads(first.text.removeprefix("question: ").partition("\n")[0])
        yes = 0.8 if question in self._present else 0.3
        return [float(np.log(one)) for one in (yes, 1e-9, 1 - yes, 1e-9)]


def test_a_judge_that_knows_has_the_whole_area(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    present = {as_data(one.question) for one in absence_questions(10)[1] if one.kind == "present"}
    monkeypatch.setattr(loading, "load_generator", lambda *_, **__: Knowing(present))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "absent", "--scenes", "10", "--judge", "--json"])
    assert not stopped.value.code
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["confidence: AUROC"] == metrics["confidence: AUROC, details"] == 1.0
    assert metrics["confidence: threshold"] == pytest.approx(0.55)
    assert metrics["confidence: present, kept"] == metrics["confidence: absent, refused"] == 1.0
    # Vectors that know nothing of pictures tell nothing.
    assert 0.2 < metrics["score, first search: AUROC"] < 0.8


def test_too_few_scenes_are_refused() -> None:
    with pytest.raises(InputError, match="scenes must be between 10 and 200"):
        evaluate_absent(FakeEmbedder(dim=8), scenes=9)
