"""``abc-rag models``."""

from __future__ import annotations

import contextlib
import io
import json

import pytest

from abc_rag.cli.main import main
from abc_rag.models.catalog import MODELS


def run(*arguments: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert not ended.value.code
    return out.getvalue()


def test_models_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    told = json.loads(run("models", "--json", "--device", "cpu"))
    assert [one["name"] for one in told["models"]] == [model.name for model in MODELS]
    mini = told["models"][1]
    assert mini["name"] == "abc-mini"
    assert mini["here"] is True
    assert (mini["dim"], mini["download_bytes"], mini["licence"]) == (192, 0, "MIT")
    assert "embeddinggemma" in told["families"]
    assert told["auto"]["model"] in {"abc-mini", "google/embeddinggemma-2"}
    shown = run("models", "--device", "cpu")
    for model in MODELS:
        assert model.name in shown
    assert "auto: " in shown
    assert "st:FOLDER" in shown
