"""The commands around a server; what it answers, ``tests/server`` asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from abc_rag.cli.main import main
from abc_rag.server import Keys


def run(*words: str) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return end.value.code


def test_keys_are_made_listed_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--store", str(tmp_path))
    assert run("serve", "keys", "add", "team", "--scope", "write", "--tenant", "us", "--per-minute", "60", *place) == 0
    token = capsys.readouterr().out.strip()
    key = Keys(tmp_path / "abc-server" / "keys.json").find(token)
    assert key is not None
    assert (key.name, key.scope, key.tenant, key.per_minute) == ("team", "write", "us", 60)
    assert run("serve", "keys", "list", "--json", *place) == 0
    told = capsys.readouterr().out
    assert json.loads(told)[0]["id"] == key.id
    assert token.split("-")[2] not in told
    assert run("serve", "keys", "list", *place) == 0
    assert key.id in capsys.readouterr().out
    assert run("serve", "keys", "remove", key.id, *place) == 0
    assert run("serve", "keys", "remove", key.id, *place) == 2
    assert "abc-rag serve keys list" in capsys.readouterr().err


def test_another_address_without_keys_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("serve", "--host", "0.0.0.0", "--port", "0", "--model", "abc-mini", "--store", str(tmp_path))
    assert run(*words) == 2
    assert "abc-rag serve keys add" in capsys.readouterr().err
