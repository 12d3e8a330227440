"""Options that several commands have, as groups, and what is opened with them."""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from abc_rag.errors import InputError
from abc_rag.types import Modality

if TYPE_CHECKING:
    from abc_rag.embedding.embedder import Embedder
    from abc_rag.embedding.options import EmbedderKeywords
    from abc_rag.images.limits import ImageLimits
    from abc_rag.store.base import Store
    from abc_rag.types import Fingerprint

__all__ = [
    "PARTIAL",
    "DeviceOption",
    "EmbedderFlags",
    "JsonOption",
    "KeywordStoreFlags",
    "MiniOption",
    "ModelFlags",
    "ModelOption",
    "NewStoreFlags",
    "OnlyOption",
    "ShardsOption",
    "StoreFlags",
    "WhereOption",
    "expanded",
    "filter_of",
    "grouped",
    "is_store",
    "open_embedder",
    "open_place",
    "resolution_of",
]

PARTIAL = 3
"""Exit status of a command that is done, although some files could not be used."""

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A name, a folder, FAMILY:NAME, or auto; see abc-rag models. Default: $ABC_RAG_MODEL, else abc.",
    ),
]
MiniOption = Annotated[str, typer.Option("--model", "-m", help="abc-mini, or a checkpoint folder.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, cuda:* (all GPUs), mps, ...")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")]
WhereOption = Annotated[
    str | None,
    typer.Option("--where", metavar="JSON", help='Filter by metadata: \'{"page": {"$gte": 3}}\'.'),
]
ShardsOption = Annotated[
    int | None,
    typer.Option(help="Number of collections of a new store on a Chroma server, 1 to 64. Default: as made, else 1."),
]
OnlyOption = Annotated[Modality | None, typer.Option("--only", help="Only pictures, or only passages.")]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command for typer with the options of its groups, which are its parameters of a dataclass's type.

    Each field of the dataclass becomes an option, in the place of the parameter; the command gets the dataclass.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    options: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        for field in dataclasses.fields(groups[name]) if name in groups else ():
            hint = get_type_hints(groups[name], include_extras=True)[field.name]
            options.append(
                inspect.Parameter(field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=hint)
            )
        if name not in groups:
            options.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name]))

    @functools.wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401  (typer's)
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        command(**given)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """A model, and the resolution at which it sees pictures."""

    model: ModelOption = None
    device: DeviceOption = "auto"
    min_tokens: Annotated[int | None, typer.Option(help="Minimum of image tokens per picture.")] = None
    max_tokens: Annotated[int | None, typer.Option(help="Maximum of image tokens per picture.")] = None
    resolution: Annotated[
        str | None, typer.Option(help="VLM2Vec: low, mid or high on Qwen2-VL, a number of crops on Phi-3.5-vision.")
    ] = None

    def keywords(self) -> EmbedderKeywords:
        """The options as `abc_rag.load_embedder` takes them."""
        return {
            "device": self.device,
            "min_tokens": self.min_tokens,
            "max_tokens": self.max_tokens,
            "resolution": resolution_of(self.resolution),
        }

    def open(self) -> Embedder:
        """The embedder that the options describe.

        Raises:
            InputError: An option is unusable.
            MissingExtraError: ``weights`` needs a package that is not installed.
        """
        from abc_rag.embedding.load import load_embedder

        with _uncollected():
            keywords = self.keywords()
            return load_embedder(self.model, **keywords, download=_may_download(self.model, self.device))


@dataclass(frozen=True, kw_only=True)
class EmbedderFlags(ModelFlags):
    """A model with all that a store's vectors depend on."""

    dims: Annotated[
        int | None, typer.Option(help="Length of a vector, for models trained for several (Matryoshka).")
    ] = None
    query_instruction: Annotated[
        str | None, typer.Option(help="What queries are told, for models trained so. The store keeps to it.")
    ] = None
    document_instruction: Annotated[str | None, typer.Option(help="What pictures and passages are told; likewise.")] = (
        None
    )
    weights: Annotated[
        str,
        typer.Option(
            help="full, int8 or int4. The last two save memory, make other vectors and need the extra 'quantized'."
        ),
    ] = "full"
    background: Annotated[
        str | None, typer.Option(help="Colour behind transparent pixels, such as white. Default: as published, none.")
    ] = None
    depth: Annotated[
        str, typer.Option(help="published, or scaled: keep the range of 16-bit and floating-point greys.")
    ] = "published"
    image_limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="What a picture may cost: max_pixels=200000000, max_bytes=..., allow_urls=true, ...; repeat for more.",
        ),
    ] = None

    def default_limits(self) -> ImageLimits:
        """The limits that hold where ``--image-limit`` says nothing."""
        from abc_rag.images.limits import DEFAULT_LIMITS

        return DEFAULT_LIMITS

    @property
    def limits(self) -> ImageLimits:
        """The limits that ``--image-limit`` sets; the others are the defaults.

        Raises:
            InputError: There is no such limit, or the value is unusable.
        """
        from abc_rag.images.limits import ImageLimits

        defaults = self.default_limits()
        values: dict[str, Any] = {}
        for one in self.image_limit or []:
            name, _, value = one.partition("=")
            name = name.strip().replace("-", "_")
            if name not in ImageLimits.__dataclass_fields__:
                names = ", ".join(ImageLimits.__dataclass_fields__)
                raise InputError(f"--image-limit: there is no limit {name!r}; there are {names}")
            default = getattr(defaults, name)
            try:
                if isinstance(default, bool):
                    values[name] = {"true": True, "false": False}[value.lower()]
                elif isinstance(default, (int, float)):
                    values[name] = type(default)(value.replace(",", ""))
                else:
                    values[name] = frozenset(part.strip().upper() for part in value.split(","))
            except (ValueError, KeyError) as error:
                raise InputError(f"--image-limit {name} takes a value such as {default}, not {value!r}") from error
        return dataclasses.replace(defaults, **values)

    def keywords(self) -> EmbedderKeywords:
        """The options as `abc_rag.load_embedder` takes them, which checks them."""
        return {
            **super().keywords(),
            "dims": self.dims,
            "query_instruction": self.query_instruction,
            "document_instruction": self.document_instruction,
            "weights": self.weights,  # type: ignore[typeddict-item]
            "background": self.background,
            "depth": self.depth,  # type: ignore[typeddict-item]
            "image_limits": self.limits,
        }


@dataclass(frozen=True, kw_only=True)
class StoreFlags:
    """A store, in a folder, on an object store or on a server."""

    store: Annotated[
        str,
        typer.Option(
            "--store",
            "-s",
            envvar="ABC_RAG_STORE",
            help="Folder of the embedded Chroma store; lance://FOLDER or s3://... for Lance; http://... for a server.",
        ),
    ] = "abc-rag-store"
    url: Annotated[str | None, typer.Option(envvar="ABC_RAG_URL", help="Chroma server to use instead of a folder.")] = (
        None
    )
    collection: Annotated[str, typer.Option("--collection", "-c", help="Collection within the store.")] = "abc"

    def open(self, fingerprint: Fingerprint | None = None) -> Store:
        """The store that the options describe. A folder becomes one.

        Raises:
            InputError: There is no such kind of place.
            StoreError: It cannot be opened.
        """
        return open_place(
            self.store, self.url, self.collection, fingerprint, keywords=self._keywords(), shards=self._shards()
        )

    def open_for(self, embedder: Embedder) -> tuple[Embedder, Store]:
        """The store for a model; and the model, with the store's projection if its vectors were reduced.

        Raises:
            FingerprintMismatchError: It holds another model's vectors.
            InputError: There is no such kind of place.
            StoreError: It cannot be opened.
        """
        from abc_rag.search.projected import opened_for

        return opened_for(embedder, self.open)

    def _keywords(self) -> Path | None:
        return None

    def _shards(self) -> int | None:
        return None

    def filled(self) -> Store:
        """The store, where it has content: an empty answer looks like a question that found nothing.

        Raises:
            InputError: There is no store, or its collection is empty.
            StoreError: It cannot be opened.
        """
        if self.url is None and not is_store(self.store):
            raise InputError(f"{self.store}: no store here; make one with: abc-rag index FOLDER --store {self.store}")
        opened = self.open()
        if opened.count() == 0:
            opened.close()
            raise InputError(
                f"collection {self.collection!r} in {self.url or self.store} is empty; "
                "fill it with: abc-rag index FOLDER"
            )
        return opened


@dataclass(frozen=True, kw_only=True)
class KeywordStoreFlags(StoreFlags):
    """A store whose keyword index is used."""

    keyword_index: Annotated[
        Path | None,
        typer.Option(
            envvar="ABC_RAG_KEYWORD_INDEX",
            help="With --url: folder on this machine for the keyword index. Default: none. A folder has its own.",
        ),
    ] = None

    def _keywords(self) -> Path | None:
        return None if self.keyword_index is None else expanded(self.keyword_index)


@dataclass(frozen=True, kw_only=True)
class NewStoreFlags(StoreFlags):
    """A store that may not be there yet."""

    shards: ShardsOption = None

    def _shards(self) -> int | None:
        return self.shards


@contextmanager
def _uncollected() -> Iterator[None]:
    """Import torch without garbage collection, which would look through its half a million objects again and again."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # modules stay: later collections need not look at them either
        gc.enable()


def _may_download(model: str | None, device: str) -> bool:
    """Whether ``auto`` may fetch the best model for this machine: asked where somebody can answer, else no."""
    from abc_rag.embedding.load import choose_for, default_model
    from abc_rag.models.loader import AUTO

    if (model or default_model()) != AUTO or not sys.stdin.isatty():
        return False
    choice = choose_for(device, download=True)
    return not choice.here and typer.confirm(f"{choice}\nFetch it?", err=True)


def open_embedder(model: str | None, device: str) -> Embedder:
    """The embedder of a model without further options."""
    return ModelFlags(model=model, device=device).open()


def expanded(path: Path) -> Path:
    """A path whose ``~`` is the home folder; as it is, where there is no such user."""
    # Shells expand neither --store=~/pictures nor a "~" in a variable.
    return Path(os.path.expanduser(path))


def filter_of(where: str | None) -> dict[str, Any] | None:
    """The filter that ``--where`` gives; a record's own fields are named as they are shown, or with ``abc:``.

    Raises:
        InputError: It is no JSON object, or no filter.
    """
    if where is None:
        return None
    from abc_rag.store.filters import by_shown_names, parse

    try:
        condition = json.loads(where)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--where takes JSON, such as '{{\"page\": 3}}' ({error})") from error
    if not isinstance(condition, dict):
        raise InputError(f"--where takes a JSON object, such as '{{\"page\": 3}}', not {where!r}")
    parse(condition)
    return by_shown_names(condition)


def open_place(
    place: str,
    url: str | None = None,
    collection: str = "abc",
    fingerprint: Fingerprint | str | None = None,
    *,
    keywords: Path | None = None,
    shards: int | None = None,
) -> Store:
    """The store that ``--store`` and ``--url`` name; see `StoreFlags.open`."""
    from abc_rag.store import ChromaStore, open_store

    if url is not None:
        return ChromaStore(url=url, collection=collection, fingerprint=fingerprint, keywords=keywords, shards=shards)
    words = keywords if "://" in place else None
    return open_store(
        _expanded_place(place), collection=collection, fingerprint=fingerprint, keywords=words, shards=shards
    )


def is_store(place: str) -> bool:
    """Whether there is a store already."""
    from abc_rag.store.opening import holds_store

    return holds_store(_expanded_place(place))


def _expanded_place(place: str) -> str:
    scheme, mark, folder = place.rpartition("://")
    return f"{scheme}{mark}{expanded(Path(folder))}" if scheme in ("", "lance") else place


def resolution_of(given: str | None) -> int | str | None:
    """What a command line cannot tell apart: a number, or a name."""
    return int(given) if given is not None and given.isascii() and given.isdigit() else given
