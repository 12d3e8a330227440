"""What a run on a cluster may use, and how it reads tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from abc_rag.errors import InputError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.ingest.documents.options import DEFAULT_OPTIONS, DocumentOptions

__all__ = ["Columns", "Engines", "Reading"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of Parquet and Lance tables, and of WebDataset's ``.json`` members, that are read.

    Attributes:
        image: Of a table: the picture. Binary values, and structs with a binary field ``bytes``, are encoded pictures;
            texts are URLs.
        text: Of a table: a caption, which is stored beside the picture and not embedded. None for none.
        metadata: Names of what is stored with each picture, to filter by.
    """

    image: str = "image"
    text: str | None = None
    metadata: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Checks the types."""
        if isinstance(self.metadata, str):
            raise InputError("Columns.metadata must be a list; got a single str: pass [name]")


@dataclass(frozen=True, kw_only=True)
class Engines:
    """How many engines run, and what each one takes of the cluster.

    Attributes:
        least: Engines that are started at once.
        most: Maximum number of engines; None for as many as the cluster has room for. Nodes that join later count.
        cpus: CPUs of an engine, whose threads open pictures beside the model; fractions are fine.
        gpus: GPUs of an engine; with fractions, several share one.
        batch: Pictures and passages that an engine is given at a time.
        reader_cpus: CPUs of a task that reads files.

    Raises:
        InputError: A value makes no sense.
    """

    least: int = 1
    most: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    batch: int = 64
    reader_cpus: float = 0.5

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("least", "batch") if self.most is None else ("least", "batch", "most"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"Engines.{name} must be a positive int, not {value!r}")
        if self.most is not None and self.most < self.least:
            raise InputError(f"Engines.most ({self.most}) is less than Engines.least ({self.least})")
        for name, least in (("cpus", 0.0), ("gpus", 0.0), ("reader_cpus", 0.001)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not least <= value < math.inf:
                raise InputError(f"Engines.{name} must be a number of at least {least:g}, not {value!r}")
        if not self.cpus and not self.gpus:
            raise InputError("an engine needs a share of a CPU or a GPU: set Engines.cpus or Engines.gpus")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How sources are read.

    Attributes:
        limits: Which pictures are accepted, and whether URLs are fetched.
        documents: How documents are read.
        columns: What is read of tables.
        keep: Whether pictures from tables and archives, which have no place of their own, are copied into the lake.
        pictures: The folder of such copies, and of the pictures of documents; None for none.
    """

    limits: ImageLimits = DEFAULT_LIMITS
    documents: DocumentOptions = DEFAULT_OPTIONS
    columns: Columns = field(default_factory=Columns)
    keep: bool = False
    pictures: str | None = None
