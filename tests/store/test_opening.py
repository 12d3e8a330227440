"""Which store a text names."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_helpers import texts, vectors

from abc_rag.errors import InputError
from abc_rag.store import ChromaStore, LanceStore, open_store
from abc_rag.store.opening import holds_store


def test_folders_and_what_is_in_them(tmp_path: Path) -> None:
    plain, lake = tmp_path / "plain", tmp_path / "lake"
    assert not holds_store(plain)
    assert not holds_store(f"lance://{lake}")
    with open_store(plain) as chroma, open_store(f"lance://{lake}") as lance:
        assert (type(chroma), type(lance)) == (ChromaStore, LanceStore)
        chroma.add(texts(2), vectors(2))
        lance.add(texts(3), vectors(3))
    assert holds_store(plain)
    assert holds_store(lake)
    assert holds_store(f"lance://{lake}")
    assert not holds_store(f"lance://{plain}")
    with open_store(str(plain)) as chroma, open_store(lake) as lance:  # by what is there
        assert (chroma.count(), lance.count()) == (2, 3)


def test_servers(server_url: str) -> None:
    with open_store(server_url, collection="opening") as store:
        assert isinstance(store, ChromaStore)
        assert holds_store(server_url)


@pytest.mark.parametrize("place", ["", "lance://", "postgres://host", "chroma://x"])
def test_places_of_no_kind(place: str) -> None:
    with pytest.raises(InputError, match=r"lance://FOLDER|a folder or a URL"):
        open_store(place)


def test_what_is_not_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="headers are for a Chroma server"):
        open_store(tmp_path / "s", headers={"a": "b"})
    with pytest.raises(InputError, match="leave keywords out"):
        open_store(tmp_path / "s", keywords=tmp_path / "w")
