"""Clusters that are not there."""

from __future__ import annotations

import socket

import pytest

from abc_rag.errors import ABCRagError, InputError
from abc_rag.ingest.cluster.client import connected, translated
from abc_rag.ingest.cluster.options import Columns, Engines

pytest.importorskip("ray", reason="Ray is not installed: pip install 'abc-rag[ray]'")


@pytest.mark.parametrize("address", ["nowhere", "ray://127.0.0.1:10001", "127.0.0.1:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is no address of a Ray cluster"), connected(address):
        pass


def test_a_head_that_does_not_answer_is_told_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(InputError, match="nothing answers there"), connected(address):
        pass


def test_our_own_errors_come_out_of_those_of_a_cluster() -> None:
    def failing() -> None:
        try:
            raise InputError("a.parquet: it has no column 'image'")
        except InputError as error:
            raise RuntimeError("task failed") from error

    with pytest.raises(InputError, match="no column"), translated():
        failing()
    with pytest.raises(ZeroDivisionError), translated():
        _ = 1 / 0
    assert issubclass(InputError, ABCRagError)


@pytest.mark.parametrize(
    "wrong",
    [{"least": 0}, {"most": 0}, {"least": 3, "most": 2}, {"cpus": -1}, {"cpus": 0}, {"gpus": "1"}, {"batch": 1.5}],
)
def test_engines_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Engines(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"pass \[name\]"):
        Columns(metadata="page")
