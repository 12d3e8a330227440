"""Typed inputs, stored records, and hits.

Nothing is guessed. A plain ``str`` given as a picture's source is always a path; a URL is a
`URL`, a data URI is a `DataURI`. A text is always a `Text`, however much it looks like a link.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Union

import numpy as np
import numpy.typing as npt

from abc_rag.errors import InputError

if TYPE_CHECKING:
    import PIL.Image


__all__ = [
    "BASIC_TYPES",
    "INPUT_TYPES",
    "ROLES",
    "URL",
    "DataURI",
    "Fingerprint",
    "Hit",
    "Image",
    "ImageSource",
    "Input",
    "InstructedImage",
    "InstructedText",
    "Interleaved",
    "MaskedImage",
    "Message",
    "MetadataValue",
    "Modality",
    "Record",
    "Role",
    "SourceType",
    "Text",
    "Trace",
    "Vectors",
]

Vectors = npt.NDArray[np.float32]
"""float32 unit vectors in rows, ``(n, dim)``, or a single one, ``(dim,)``."""
Modality = Literal["text", "image"]
SourceType = Literal["path", "url"]
MetadataValue = str | int | float | bool | list[str] | list[int] | list[float] | list[bool]


@dataclass(frozen=True)
class URL:
    """A picture on the web. Fetched only where the caller allows it (`abc_rag.images.ImageLimits`)."""

    url: str


@dataclass(frozen=True)
class DataURI:
    """A picture inside a ``data:image/...;base64,...`` string."""

    uri: str = field(repr=False)


ImageSource = Union[str, "os.PathLike[str]", URL, DataURI, bytes, "PIL.Image.Image"]
"""Where a picture comes from: a path (``str`` or path object), `URL`, `DataURI`, ``bytes``, or a PIL image."""


def _require_text(value: object, what: str) -> None:
    if not isinstance(value, str):
        raise InputError(f"{what} must be a str, not {type(value).__name__}")


def _require_source(value: object, what: str) -> None:
    if isinstance(value, (str, os.PathLike, URL, DataURI, bytes)):
        return
    # A PIL image is recognised without importing Pillow, which whoever made it has imported already.
    if any(c.__module__ == "PIL.Image" and c.__name__ == "Image" for c in type(value).__mro__):
        return
    raise InputError(
        f"{what} must be a path, abc_rag.URL, abc_rag.DataURI, bytes or a PIL image, not {type(value).__name__}"
    )


def _require_role(value: object, what: str) -> None:
    if not isinstance(value, str) or not value:
        raise InputError(f"{what} must be 'document', 'query' or the name of a model's prompt, not {value!r}")


@dataclass(frozen=True)
class Text:
    """A passage, a caption, or a question without a picture.

    Attributes:
        text: The words.
        role: What it is for, where a model was trained to tell queries from documents; one of `ROLES`, or the name of a
            prompt that the model has.
    """

    text: str
    role: str = field(default="document", kw_only=True)

    pictures: ClassVar[tuple[ImageSource, ...]] = ()
    """A text has none."""

    def __post_init__(self) -> None:
        """Checks the type."""
        _require_text(self.text, "Text.text")
        _require_role(self.role, "Text.role")

    @property
    def words(self) -> str:
        """The text."""
        return self.text

    def content(self, pictures: Sequence[str]) -> str:
        """A string that inputs of equal content and role share."""
        return _content(self, self.text)


@dataclass(frozen=True)
class Image:
    """A picture by itself.

    Attributes:
        source: Where it comes from.
        role: As for `Text`.
        pictures: The picture, as a tuple: every kind of input has them.
    """

    source: ImageSource
    role: str = field(default="document", kw_only=True)
    pictures: tuple[ImageSource, ...] = field(init=False, repr=False, compare=False)

    words: ClassVar[str] = ""
    """A picture says nothing in words."""

    def __post_init__(self) -> None:
        """Checks the type."""
        _require_source(self.source, "Image.source")
        _require_role(self.role, "Image.role")
        object.__setattr__(self, "pictures", (self.source,))

    def content(self, pictures: Sequence[str]) -> str:
        """A string that inputs of equal content and role share, given a name for the content of the picture."""
        return _content(self, list(pictures))


@dataclass(frozen=True)
class InstructedImage:
    """A picture and what to look at in it. An empty instruction is still an instruction.

    Attributes:
        source: Where the picture comes from.
        instruction: What to look at; of a query, the question about the picture.
        role: As for `Text`.
        pictures: The picture, as a tuple: every kind of input has them.
    """

    source: ImageSource
    instruction: str
    role: str = field(default="document", kw_only=True)
    pictures: tuple[ImageSource, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Checks the types."""
        _require_source(self.source, "InstructedImage.source")
        _require_text(self.instruction, "InstructedImage.instruction")
        _require_role(self.role, "InstructedImage.role")
        object.__setattr__(self, "pictures", (self.source,))

    @property
    def words(self) -> str:
        """The instruction."""
        return self.instruction

    def content(self, pictures: Sequence[str]) -> str:
        """A string that inputs of equal content and role share, given a name for the content of the picture."""
        return _content(self, list(pictures), self.instruction)


@dataclass(frozen=True)
class MaskedImage:
    """A picture of which the language model is not shown all, to find out what its vector owes to the rest.

    The vision tower sees the whole picture, and what stays keeps its position. For families that say so; see
    `abc_rag.Embedder.accepts` and `abc_rag.Embedder.grid`.

    Attributes:
        source: Where the picture comes from.
        instruction: What to look at; None for the picture by itself.
        without: The image tokens that are left out, counted row by row from the top left; kept as a sorted tuple.
        role: As for `Text`.
        pictures: The picture, as a tuple: every kind of input has them.
    """

    source: ImageSource
    instruction: str | None
    without: Sequence[int]
    role: str = field(default="document", kw_only=True)
    pictures: tuple[ImageSource, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Checks the types."""
        _require_source(self.source, "MaskedImage.source")
        if self.instruction is not None:
            _require_text(self.instruction, "MaskedImage.instruction")
        _require_role(self.role, "MaskedImage.role")
        if isinstance(self.without, str) or not isinstance(self.without, Iterable):
            raise InputError(f"MaskedImage.without must be numbers of image tokens, not {type(self.without).__name__}")
        without = list(self.without)
        if not all(isinstance(one, (int, np.integer)) and not isinstance(one, bool) and one >= 0 for one in without):
            raise InputError("MaskedImage.without must be numbers of image tokens, 0 and more; see Embedder.grid")
        object.__setattr__(self, "without", tuple(sorted({int(one) for one in without})))
        object.__setattr__(self, "pictures", (self.source,))

    @property
    def words(self) -> str:
        """The instruction."""
        return self.instruction or ""

    def content(self, pictures: Sequence[str]) -> str:
        """A string that inputs of equal content and role share, given a name for the content of the picture."""
        told = [] if self.instruction is None else [self.instruction]
        return _content(self, list(pictures), told, [str(one) for one in self.without])


@dataclass(frozen=True)
class InstructedText:
    """A text, such as a question, and what to look for with it; for models that were trained with such instructions."""

    text: str
    instruction: str

    pictures: ClassVar[tuple[ImageSource, ...]] = ()
    """A text has none."""
    role: ClassVar[str] = "document"
    """The instruction says what it is for."""

    def __post_init__(self) -> None:
        """Checks the types."""
        _require_text(self.text, "InstructedText.text")
        _require_text(self.instruction, "InstructedText.instruction")

    @property
    def words(self) -> str:
        """The text, without the instruction."""
        return self.text

    def content(self, pictures: Sequence[str]) -> str:
        """A string that inputs of equal content share."""
        return _content(self, self.text, self.instruction)


@dataclass(frozen=True)
class Interleaved:
    """Texts and pictures in the order in which the model reads them.

    Nothing is added between the parts and no prompt around them: a text behind a picture has to begin with the space or
    line break that belongs there.

    Attributes:
        parts: `Text` and `Image` values; kept as a tuple. They have no role of their own.
        role: As for `Text`.
        pictures: Those of its parts, in order.
    """

    parts: Sequence[Text | Image]
    role: str = field(default="document", kw_only=True)
    pictures: tuple[ImageSource, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Checks the parts."""
        if isinstance(self.parts, (str, bytes, Text, Image)) or not isinstance(self.parts, Iterable):
            raise InputError(
                f"Interleaved takes a list of Text and Image values, not a single {type(self.parts).__name__}"
            )
        parts = tuple(self.parts)
        for number, part in enumerate(parts):
            if not isinstance(part, (Text, Image)):
                raise InputError(
                    f"part {number} of an Interleaved is a {type(part).__name__}; wrap it as abc_rag.Text(text) or "
                    "abc_rag.Image(source)"
                )
            if part.role != "document":
                raise InputError(
                    f"part {number} of an Interleaved has role {part.role!r}; a whole input has one role: "
                    f"Interleaved([...], role={part.role!r})"
                )
        if not parts:
            raise InputError("an Interleaved has no parts; give it Text and Image values")
        _require_role(self.role, "Interleaved.role")
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "pictures", tuple(picture for part in parts for picture in part.pictures))

    @property
    def words(self) -> str:
        """Its texts, with a space between two of them."""
        return " ".join(part.text.strip() for part in self.parts if isinstance(part, Text))

    def content(self, pictures: Sequence[str]) -> str:
        """A string that inputs of equal content and role share, given a name for the content of each picture."""
        names = iter(pictures)
        return _content(self, *(part.text if isinstance(part, Text) else [next(names)] for part in self.parts))


def _content(item: Input, *parts: str | list[str]) -> str:
    # A picture's name is a list: no text is equal to it.
    kind = type(item).__name__
    return json.dumps([kind if item.role == "document" else f"{kind} {item.role}", *parts])


Role = Literal["system", "user", "assistant"]
"""Who says something in a conversation."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation with a model that generates.

    Attributes:
        role: ``"system"``, ``"user"`` or ``"assistant"`` (the model itself, in earlier turns).
        parts: `Text` and `Image` values in the order in which the model reads them; kept as a tuple.
        pictures: Those of its parts, in order.
    """

    role: Role
    parts: Sequence[Text | Image]
    pictures: tuple[ImageSource, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Checks role and parts."""
        if self.role not in ("system", "user", "assistant"):
            raise InputError(f"Message.role must be 'system', 'user' or 'assistant', not {self.role!r}")
        parts = Interleaved(self.parts)
        object.__setattr__(self, "parts", parts.parts)
        object.__setattr__(self, "pictures", parts.pictures)


Input = Text | InstructedText | Image | InstructedImage | Interleaved | MaskedImage


@dataclass(frozen=True)
class Fingerprint:
    """The model that made a vector. Only vectors with equal fingerprints can be compared.

    Attributes:
        model: The model's name, or the folder's name for a local checkpoint.
        revision: Identifies the weights: hub commits, or a hash of the local files.
        min_tokens: Minimum image tokens of a picture after resizing.
        max_tokens: Maximum image tokens of a picture after resizing.
    """

    model: str
    revision: str
    min_tokens: int
    max_tokens: int

    def __str__(self) -> str:
        return f"{self.model}@{self.revision} ({self.min_tokens}..{self.max_tokens} image tokens)"


@dataclass(frozen=True)
class Record:
    """One stored item: a picture or a passage.

    Attributes:
        id: Content hash, or the caller's own id.
        modality: ``"image"`` or ``"text"``.
        text: The passage, or a picture's caption (may be empty).
        source: Where it came from: a path, a URL, or empty.
        metadata: The caller's own values.
        source_type: What ``source`` is.
        sha256: Of a picture: the hash of its content when it was embedded, 64 hexadecimal digits, or empty.
        mime_type: Of a picture: what its bytes were then, such as ``"image/png"``, or empty.
    """

    id: str
    modality: Modality
    text: str = ""
    source: str = ""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    source_type: SourceType = "path"
    sha256: str = ""
    mime_type: str = ""

    @property
    def picture(self) -> Path | URL | None:
        """Where a picture can be opened again; None for a passage and for a picture without a source within reach."""
        if self.modality != "image" or not self.source:
            return None
        if self.source_type == "path":
            return Path(self.source)
        return URL(self.source) if self.source_type == "url" else None

    @property
    def document(self) -> str:
        """The path of the document that this is a part of (``metadata["document"]``); empty if it is of none."""
        value = self.metadata.get("document")
        return value if isinstance(value, str) else ""

    @property
    def page(self) -> int | None:
        """Its page in `document`, counted from 1 (``metadata["page"]``); None if it is of no page."""
        value = self.metadata.get("page")
        return value if self.document and type(value) is int else None

    @property
    def page_label(self) -> str:
        """What the document calls that page (``metadata["page_label"]``), such as ``"iv"``; empty if it is of none."""
        if self.page is None:
            return ""
        value = self.metadata.get("page_label")
        return value if isinstance(value, str) and value else str(self.page)

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """Where it is on that page (``metadata["box"]``): left, top, right, bottom in points (1/72 inch).

        Counted from the top left corner of the page as it is shown; None where that is not known.
        """
        value = self.metadata.get("box")
        if not self.document or not isinstance(value, list) or len(value) != 4:
            return None
        if not all(type(side) in (int, float) for side in value):
            return None
        left, top, right, bottom = (float(side) for side in value)
        return left, top, right, bottom


@dataclass(frozen=True)
class Trace:
    """How a hit got its score.

    A second look is instruction-conditioned reranking: the pictures found are embedded again under the instruction.

    Attributes:
        instruction: The instruction of the second look; None without one.
        first: Score of the first search, in [0, 1].
        second: Score of the second look, in [0, 1]; None without one.
        facet: The instruction of the stored facet that was nearest in the first search; None for the
            picture as a whole, and for passages.
        judged: The judge's probability that the record shows or says what is asked for; None if it was not judged.
        note: Why a second look or judging was not possible, such as a picture that has been deleted since.
        rank_by_vectors: The hit's place in the search by vectors, from 1; None where only keywords found it, and
            where no keywords were searched for.
        rank_by_words: Its place in the search by keywords, from 1; None where only vectors found it.
    """

    instruction: str | None
    first: float
    second: float | None = None
    facet: str | None = None
    note: str = ""
    rank_by_vectors: int | None = None
    rank_by_words: int | None = None
    judged: float | None = None


@dataclass(frozen=True)
class Hit:
    """A `Record` found by a search.

    Attributes:
        record: The record that was found.
        score: In [0, 1], higher is nearer: ``(1 + cosine) / 2`` of the first search; after keywords or a second look,
            fused with these (see `abc_rag.search.retriever`).
        facet: The instruction of the stored facet that was nearest; None for the picture as a whole.
        trace: How the score came about, if it was asked for.
        confidence: Probability that the record shows or says what is asked for, where it was judged
            (``rerank="judge"``); otherwise None.
    """

    record: Record
    score: float
    facet: str | None = None
    trace: Trace | None = None
    confidence: float | None = None

    @property
    def id(self) -> str:
        """The record's id."""
        return self.record.id

    @property
    def modality(self) -> Modality:
        """``"image"`` or ``"text"``."""
        return self.record.modality

    @property
    def source(self) -> str:
        """Where the record came from."""
        return self.record.source

    @property
    def text(self) -> str:
        """The passage, or the picture's caption."""
        return self.record.text

    @property
    def document(self) -> str:
        """The path of the document that the record is a part of; empty if it is of none."""
        return self.record.document

    @property
    def page(self) -> int | None:
        """The record's page in its document, counted from 1."""
        return self.record.page

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """Where the record is on its page: left, top, right, bottom in points from the top left corner."""
        return self.record.box


BASIC_TYPES: tuple[type, ...] = (Text, Image, InstructedImage)
"""The input types that every embedder takes."""
ROLES = ("document", "query")
"""The roles that every embedder knows; ABC reads both alike."""
INPUT_TYPES: tuple[type, ...] = (*BASIC_TYPES, InstructedText, Interleaved)
"""All input types that are for storing and searching; see `abc_rag.Embedder.accepts`."""
