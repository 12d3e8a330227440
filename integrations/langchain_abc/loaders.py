"""Documents such as PDF files as LangChain documents."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from abc_rag.errors import InputError
from abc_rag.ingest.documents import DocumentOptions, DocumentProcess, document_records

__all__ = ["ABCLoader"]


class ABCLoader(BaseLoader):
    """Loads documents a part at a time: passages and, on request, pictures of pages and figures.

    Metadata has ``source`` (the file; of a picture, the picture's), ``document`` (the file), ``page`` (from
    1), ``page_label``, ``box`` (left, top, right, bottom in points from the top left corner of the page), ``heading``
    (a list), ``part`` and ``order``; ``modality`` is ``"image"`` where it stands for a picture, whose caption is the
    content. `langchain_abc.ABCVectorStore.add_documents` takes both kinds.

    Args:
        paths: Files; their kinds are told by their content.
        options: How they are read; ``options.splitter`` takes the ``split_text`` of a LangChain splitter.
        pictures: A folder that receives the pictures of pages and figures. Without, passages alone.

    Raises:
        InputError: ``paths`` is not a list.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        options: DocumentOptions | None = None,
        pictures: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(paths, (str, os.PathLike)):
            raise InputError(f"paths must be a list; got a single {type(paths).__name__}: pass [path]")
        self._paths = list(paths)
        self._options = options or DocumentOptions()
        self._pictures = pictures

    def lazy_load(self) -> Iterator[Document]:
        """The parts, in reading order, as they are read.

        Raises:
            DocumentError: A file cannot be read.
            MissingExtraError: Its reader's library is not installed.
        """
        told: dict[str, Any] = {"options": self._options, "pictures": self._pictures}
        with DocumentProcess() as process:
            for record in chain.from_iterable(document_records(p, process=process, **told) for p in self._paths):
                metadata = {"source": record.source, **record.metadata}
                if record.modality == "image":
                    metadata["modality"] = "image"
                yield Document(id=record.id, page_content=record.text, metadata=metadata)
