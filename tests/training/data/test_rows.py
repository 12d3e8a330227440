"""Rows that nobody vetted: named, counted, left out, and fatal past a limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from abc_rag.errors import DatasetError
from abc_rag.training.data.lines import read_jsonl
from abc_rag.training.data.rows import BadRows


def test_bad_rows_are_counted_by_problem_and_fatal_past_the_limit() -> None:
    bad = BadRows("captions", limit=2)
    bad.add("a:1", "missing image", "x.png")
    bad.add("a:2", "empty caption")
    assert bad.summary() == "2 unusable rows (1 missing image, 1 empty caption)"
    with pytest.raises(DatasetError, match=r"captions: 3 unusable rows.*limit is 2.*a:1: missing image \(x\.png\)"):
        bad.add("a:3", "missing image")
    found = bad.as_dict()
    assert (found["count"], found["by_problem"]) == (3, {"missing image": 2, "empty caption": 1})
    assert found["rows"][0] == {"where": "a:1", "problem": "missing image", "detail": "x.png"}


def test_lines_are_read_and_broken_ones_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n\n{broken\n[1]\n\xff\n{"a": 2}')
    bad = BadRows("rows")
    assert list(read_jsonl(file, bad)) == [("rows.jsonl:1", {"a": 1}), ("rows.jsonl:6", {"a": 2})]
    assert [(row.where, row.problem) for row in bad.rows] == [
        ("rows.jsonl:3", "not JSON"), ("rows.jsonl:4", "not a JSON object"), ("rows.jsonl:5", "not JSON"),
    ]  # fmt: skip


def test_a_file_of_another_kind_is_told_from_one_with_broken_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps([{"image": "a.png"}, {"image": "b.png"}], indent=1))
    with pytest.raises(DatasetError, match=r"rows\.jsonl: not in JSON lines.*give one object per line"):
        list(read_jsonl(tmp_path / "rows.jsonl", BadRows("rows")))
    with pytest.raises(DatasetError, match="cannot be read"):
        list(read_jsonl(tmp_path / "none.jsonl", BadRows("rows")))
