"""The benchmark of documents: what it asks has the answers that it says, and its figures are those of its searches."""

from __future__ import annotations

import json

import pytest

from abc_rag.cli import main as cli
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import InputError
from abc_rag.evaluation import documents
from abc_rag.evaluation.documents import evaluate_documents, manual_topics, paraphrases
from abc_rag.evaluation.keywords import KINDS
from abc_rag.store.keywords import Keywords


def test_paraphrases_share_no_word_with_their_answers() -> None:
    topics = manual_topics()
    asked = paraphrases(topics)
    assert len(asked) == 50
    for question, names in asked:
        said = " ".join(topics[name] for name in names if name in topics).lower().replace("_", " ")
        for word in Keywords.of(question).words:
            assert f" {word.lower()} " not in said, question
    changed = {**topics, "assert": topics["assert"] + " verifying"}
    assert [question for question, _ in asked if "verifying" in question]
    assert not [question for question, _ in paraphrases(changed) if "verifying" in question]


def test_figures_with_vectors_that_know_nothing_of_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = list(manual_topics().items())[:24]
    monkeypatch.setattr(documents, "manual_topics", lambda: dict(kept))
    monkeypatch.setattr("abc_rag.cli.evaluate.open_embedder", lambda *_: FakeEmbedder(dim=32))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "documents", "--json"])
    assert not stopped.value.code
    results = json.loads(capsys.readouterr().out)
    metrics = results["metrics"]
    for way in ("keywords alone", "both (auto), weight 0.5"):
        for kind in ("identifier", "figure"):
            assert metrics[f"{way}: {kind}, recall@1"] == 1.0
        assert metrics[f"{way}: phrase, recall@10"] == 1.0
    assert metrics["keywords alone: paraphrase, recall@10"] == 0.0
    for at in (1, 10):
        of = f"paraphrase, recall@{at}"
        assert metrics[f"both (auto), weight 0.5: {of}"] == metrics[f"vectors alone: {of}"]
    table, choice = results["tables"]
    assert [row[:2] for row in choice["rows"][:7]] == [["both (auto)", weight / 10] for weight in range(2, 9)]
    assert metrics["best weight, both (auto)"] in {row[1] for row in choice["rows"]}
    assert len(table["columns"]) == 1 + 2 * (len(KINDS) + 1)


def test_without_weights_there_is_nothing_to_choose() -> None:
    with pytest.raises(InputError, match="no weights to choose from"):
        evaluate_documents(FakeEmbedder(dim=8), weights=[])
