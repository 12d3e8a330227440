"""One process for the tests of many readers: each start of one costs as much as reading a small document."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from document_helpers import ReadParts

from abc_rag.ingest.documents import DocumentLimits, DocumentOptions, DocumentProcess, Part, read_document


@pytest.fixture(scope="session")
def read_parts() -> Iterator[ReadParts]:
    """Read a document in a process that all share; options and limits by their names."""
    with DocumentProcess() as process:

        def read(
            path: str | os.PathLike[str], *, limits: dict[str, int] | None = None, **options: object
        ) -> list[Part]:
            made = DocumentOptions(limits=DocumentLimits(**limits or {}), **options)  # type: ignore[arg-type]
            return list(read_document(Path(path), options=made, process=process))

        yield read
