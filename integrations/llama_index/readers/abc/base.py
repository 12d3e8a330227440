"""`ABCReader`: documents such as PDF files as LlamaIndex documents."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import Document, ImageDocument

from abc_rag.ingest.documents import DocumentOptions, document_records

__all__ = ["ABCReader"]

# What a language model is told of a part's place.
_TOLD = frozenset({"file_name", "page_label", "heading"})


class ABCReader(BaseReader):
    """Reads a document a part at a time: passages and, on request, pictures of pages and figures.

    Metadata has ``file_path``, ``file_name``, ``page_label`` as LlamaIndex's own readers have, and ``document``,
    ``page`` (from 1), ``box`` (left, top, right, bottom in points from the top left corner of the page), ``heading`` (a
    list), ``part`` and ``order``. None of it is embedded. It fits into ``SimpleDirectoryReader(file_extractor=...)``.

    Args:
        options: How documents are read; ``options.splitter`` takes the ``split_text`` of a LlamaIndex splitter.
        pictures: A folder that receives the pictures of pages and figures, which become ``ImageDocument`` values with
            the caption as their text. Without, passages alone.
    """

    def __init__(
        self, options: DocumentOptions | None = None, *, pictures: str | os.PathLike[str] | None = None
    ) -> None:
        self._options = options or DocumentOptions()
        self._pictures = pictures

    def lazy_load_data(
        self, file: str | os.PathLike[str], extra_info: dict[str, Any] | None = None, **_: object
    ) -> Iterable[Document]:
        """The parts of a file, in reading order, as they are read.

        Args:
            file: Its path.
            extra_info: Further metadata.

        Raises:
            DocumentError: The file cannot be read.
            MissingExtraError: Its reader's library is not installed.
        """
        for record in document_records(file, options=self._options, pictures=self._pictures):
            place = {"file_path": record.document, "file_name": Path(record.document).name}
            metadata = {**place, **record.metadata, **(extra_info or {})}
            told: dict[str, Any] = {
                "id_": record.id,
                "text": record.text,
                "metadata": metadata,
                "excluded_embed_metadata_keys": list(metadata),
                "excluded_llm_metadata_keys": [key for key in metadata if key not in _TOLD],
            }
            picture = record.modality == "image"
            yield ImageDocument(image_path=record.source, **told) if picture else Document(**told)
