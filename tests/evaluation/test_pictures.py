"""What a model sees in drawings of a wider world."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import InputError
from abc_rag.evaluation.pictures import evaluate_pictures
from abc_rag.scenes.kinds import UNSEEN_STYLE, Kinds, load_kinds


def test_sets_of_seen_and_unseen_drawings_are_measured() -> None:
    rng = np.random.default_rng(0)
    names = [f"thing {n}" for n in range(120)]
    drawings = {
        (style, name): PIL.Image.fromarray(rng.integers(0, 255, (20, 20, 4), dtype=np.uint8))
        for name in names
        for style in ("flat", UNSEEN_STYLE)
    }
    kinds = Kinds(dict.fromkeys(names, "animal"), drawings)
    report = evaluate_pictures(FakeEmbedder(), kinds, scenes=6)
    assert report.settings["counts"]["candidates"] == 120 + 9
    assert list(report.metrics) == ["seen styles", "worn", "unseen style", "unseen style, worn", "unseen kinds"]
    assert all(shares["all"] < 0.3 for shares in report.details["sets"].values())


def test_the_packages_own_drawings_leave_nothing_out() -> None:
    with pytest.raises(InputError, match=r"draw_kinds\.py"):
        evaluate_pictures(FakeEmbedder(), load_kinds())
