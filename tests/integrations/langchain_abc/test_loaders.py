"""PDF files through LangChain: into documents, and into a store and out again."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_abc import ABCEmbeddings, ABCLoader, ABCVectorStore
from pdf_helpers import encrypted, manual

from abc_rag.errors import DocumentError, InputError
from abc_rag.ingest.documents import DocumentOptions


def test_passages_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "manual.pdf"
    path.write_bytes(manual())
    documents = ABCLoader([path]).load()
    assert [document.page_content.split("\n")[0] for document in documents] == ["Starting", "Cleaning"]
    metadata = documents[1].metadata
    assert {key: metadata[key] for key in ("source", "document", "page", "page_label", "heading", "part")} == {
        "source": str(path),
        "document": str(path),
        "page": 2,
        "page_label": "ii",
        "heading": ["Cleaning"],
        "part": "passage",
    }
    assert len(metadata["box"]) == 4


def test_pictures_go_into_a_store_and_come_out(tmp_path: Path) -> None:
    path = tmp_path / "manual.pdf"
    path.write_bytes(manual())
    documents = ABCLoader([path], pictures=tmp_path / "pictures").load()
    assert [document.metadata.get("modality") for document in documents] == ["image", None, "image", "image", None]
    assert documents[3].page_content == "Figure 1: The filter."
    store = ABCVectorStore(ABCEmbeddings(model="abc-mini", device="cpu"), path=tmp_path / "store")
    store.add_documents(documents)
    found = store.similarity_search("filter", k=9, filter={"part": "figure"})
    assert [(one.metadata["document"], one.metadata["page"], one.page_content) for one in found] == [
        (str(path), 2, "Figure 1: The filter.")
    ]
    assert Path(found[0].metadata["source"]).read_bytes().startswith(b"\x89PNG")


def test_a_splitter_fits_in(tmp_path: Path) -> None:
    path = tmp_path / "manual.pdf"
    path.write_bytes(manual())
    documents = ABCLoader([path], options=DocumentOptions(splitter=str.split)).load()
    assert documents[1].page_content == "Press"


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "locked.pdf"
    path.write_bytes(encrypted("letmein"))
    with pytest.raises(DocumentError, match=r"locked\.pdf: is encrypted"):
        ABCLoader([path]).load()
    with pytest.raises(InputError, match=r"pass \[path\]"):
        ABCLoader(str(path))
