"""The benchmark of keywords: what it asks has the answers that it says, and its figures are those of its searches."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from abc_rag.cli import main as cli
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import InputError
from abc_rag.evaluation.keywords import KINDS, evaluate_keywords, manual_passages, word_questions


def test_questions_have_one_answer_each() -> None:
    passages = manual_passages(300)
    texts, figures, asked = word_questions(passages)
    assert len(passages) == len(set(passages)) == 300
    assert Counter(one.kind for one in asked) == {"identifier": 50, "phrase": 50, "figure": 50}
    said = {record.id: record.text for record in [*texts, *figures]}
    for one in asked:
        (right,) = one.right
        if one.kind != "figure":
            assert [id_ for id_, text in said.items() if one.question in text] == [right]
        else:
            words = set(one.question.replace(",", " ").replace(" and ", " ").split())
            assert [id_ for id_, text in said.items() if words <= set(text.split())] == [right]
    assert word_questions(passages)[2] == asked


def test_figures_with_vectors_that_know_nothing_of_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("abc_rag.cli.evaluate.open_embedder", lambda *_: FakeEmbedder(dim=32))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "keywords", "--passages", "300", "--json"])
    assert not stopped.value.code
    results = json.loads(capsys.readouterr().out)
    metrics = results["metrics"]
    assert len(metrics) == 4 * 2 * len(KINDS)
    for way in ("keywords alone", "both (auto)"):
        for kind in ("identifier", "figure"):
            assert metrics[f"{way}: {kind}, recall@1"] == 1.0
        assert metrics[f"{way}: phrase, recall@10"] == 1.0
    for at in (1, 10):
        of = "paraphrase, recall@"
        assert metrics[f"both (auto): {of}{at}"] == metrics[f"vectors alone: {of}{at}"]
    assert results["tables"][0]["title"] == "keywords: 450 passages, 100 figures, 100 pictures, 200 questions"


def test_too_few_passages_are_refused() -> None:
    with pytest.raises(InputError, match="passages must be at least 100"):
        evaluate_keywords(FakeEmbedder(dim=8), passages=99)
