"""PDF files through LlamaIndex's reader."""

from __future__ import annotations

from pathlib import Path

from llama_index.core import SimpleDirectoryReader
from llama_index.core.schema import ImageDocument, MetadataMode
from llama_index.readers.abc import ABCReader
from pdf_helpers import manual


def test_parts_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "manual.pdf"
    path.write_bytes(manual())
    documents = ABCReader(pictures=tmp_path / "pictures").load_data(path, extra_info={"shelf": 3})
    assert [isinstance(document, ImageDocument) for document in documents] == [True, False, True, True, False]
    figure = documents[3]
    assert isinstance(figure, ImageDocument)
    assert figure.text == "Figure 1: The filter."
    assert Path(str(figure.image_path)).read_bytes().startswith(b"\x89PNG")
    told = {key: figure.metadata[key] for key in ("file_name", "page_label", "page", "box", "shelf")}
    assert told == {"file_name": "manual.pdf", "page_label": "ii", "page": 2, "box": [50, 180, 200, 300], "shelf": 3}
    assert documents[4].get_content(MetadataMode.EMBED) == documents[4].text
    assert "page_label: ii" in documents[4].get_content(MetadataMode.LLM)


def test_it_is_an_extractor_of_a_directory_reader(tmp_path: Path) -> None:
    (tmp_path / "manual.pdf").write_bytes(manual())
    documents = SimpleDirectoryReader(str(tmp_path), file_extractor={".pdf": ABCReader()}).load_data()
    assert [document.metadata["page"] for document in documents] == [1, 2]
