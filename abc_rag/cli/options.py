"""Options that several commands have, and what is opened with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.embedding.embedder import Embedder
    from abc_rag.images.limits import ImageLimits
    from abc_rag.store.chroma.store import ChromaStore
    from abc_rag.types import Fingerprint

__all__ = [
    "DEFAULT_STORE",
    "PARTIAL",
    "AsAskedOption",
    "BackgroundOption",
    "CollectionOption",
    "DepthOption",
    "DeviceOption",
    "DimsOption",
    "DocumentInstructionOption",
    "ImageLimitOption",
    "ItselfOption",
    "JsonOption",
    "KOption",
    "KeywordIndexOption",
    "KeywordsOption",
    "MaxTokensOption",
    "MinScoreOption",
    "MinTokensOption",
    "MmrOption",
    "ModelOption",
    "OnlyOption",
    "QueryInstructionOption",
    "RerankOption",
    "ResolutionOption",
    "RootOption",
    "StoreOption",
    "TraceOption",
    "UrlOption",
    "WeightsOption",
    "WhereOption",
    "WorkersOption",
    "expanded",
    "filter_of",
    "image_limits",
    "is_store",
    "open_embedder",
    "open_store",
    "require_filled",
    "resolution_of",
]

PARTIAL = 3
"""Exit status of a command that is done, although some files could not be used."""

DEFAULT_STORE = Path("abc-rag-store")

ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A name, a folder, or FAMILY:NAME. Default: $ABC_RAG_MODEL, else abc."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, cuda:* (all GPUs), mps, ...")]
StoreOption = Annotated[
    Path, typer.Option("--store", "-s", envvar="ABC_RAG_STORE", help="Folder of the embedded Chroma store.")
]
UrlOption = Annotated[
    str | None, typer.Option("--url", envvar="ABC_RAG_URL", help="Chroma server to use instead of a folder.")
]
KeywordIndexOption = Annotated[
    Path | None,
    typer.Option(
        "--keyword-index",
        envvar="ABC_RAG_KEYWORD_INDEX",
        help="With --url: folder on this machine for the keyword index. Default: none. A folder has its own.",
    ),
]
CollectionOption = Annotated[str, typer.Option("--collection", "-c", help="Collection within the store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")]
MinTokensOption = Annotated[int | None, typer.Option("--min-tokens", help="Minimum of image tokens per picture.")]
MaxTokensOption = Annotated[int | None, typer.Option("--max-tokens", help="Maximum of image tokens per picture.")]
WeightsOption = Annotated[
    str,
    typer.Option("--weights", help="full, int8 or int4. The last two save memory, make other vectors and need the "
                 "extra 'quantized'."),
]  # fmt: skip
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Number of workers that open pictures.")]
ResolutionOption = Annotated[
    str | None,
    typer.Option("--resolution", help="VLM2Vec: low, mid or high on Qwen2-VL, a number of crops on Phi-3.5-vision."),
]

DimsOption = Annotated[
    int | None, typer.Option("--dims", help="Length of a vector, for models trained for several (Matryoshka).")
]
QueryInstructionOption = Annotated[
    str | None,
    typer.Option("--query-instruction", help="What queries are told, for models trained so. The store keeps to it."),
]
DocumentInstructionOption = Annotated[
    str | None, typer.Option("--document-instruction", help="What pictures and passages are told; likewise.")
]

WhereOption = Annotated[
    str | None,
    typer.Option("--where", metavar="JSON", help='Filter by metadata: \'{"page": {"$gte": 3}}\'.'),
]
OnlyOption = Annotated[Literal["image", "text"] | None, typer.Option("--only", help="Only pictures, or only passages.")]
KOption = Annotated[int, typer.Option("-k", min=1, help="Maximum number of hits.")]
ItselfOption = Annotated[bool, typer.Option("--itself", help="Let the picture of the question be found as well.")]
RerankOption = Annotated[
    bool | None,
    typer.Option(
        "--rerank/--no-rerank",
        help="Rerank pictures under the instruction. Default: where the question looks for pictures.",
    ),
]
KeywordsOption = Annotated[
    bool | None,
    typer.Option(
        "--keywords/--no-keywords",
        help="Search for words too, counting hits with any of them. Default: counting hits with all of them.",
    ),
]
MmrOption = Annotated[
    float | None, typer.Option("--mmr", help="Diversify the hits: 1 ranks by score alone, 0 by difference.")
]
MinScoreOption = Annotated[float | None, typer.Option("--min-score", help="Leave out hits below this, in [0, 1].")]
AsAskedOption = Annotated[bool, typer.Option("--as-asked", help="Do not rewrite the question.")]
TraceOption = Annotated[bool, typer.Option("--trace", help="Show how each score came about.")]
RootOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--root",
        help="Folder whose pictures may be opened although they were not indexed on this machine; repeat for more.",
    ),
]
BackgroundOption = Annotated[
    str | None,
    typer.Option("--background", help="Colour behind transparent pixels, such as white. Default: as published, none."),
]
DepthOption = Annotated[
    str, typer.Option("--depth", help="published, or scaled: keep the range of 16-bit and floating-point greys.")
]
ImageLimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--image-limit",
        metavar="NAME=VALUE",
        help="What a picture may cost: max_pixels=200000000, max_bytes=..., allow_urls=true, ...; repeat for more.",
    ),
]


def expanded(path: Path) -> Path:
    """A path whose ``~`` is the home folder; as it is, where there is no such user."""
    # Shells expand neither --store=~/pictures nor a "~" in a variable.
    return Path(os.path.expanduser(path))


def open_embedder(
    model: str | None,
    device: str,
    *,
    min_tokens: int | None = None,
    max_tokens: int | None = None,
    resolution: str | None = None,
    dims: int | None = None,
    query_instruction: str | None = None,
    document_instruction: str | None = None,
    weights: str = "full",
    workers: int | None = None,
    limits: ImageLimits | None = None,
    background: str | None = None,
    depth: str = "published",
) -> Embedder:
    """The embedder that the options describe.

    Raises:
        InputError: An option is unusable.
        MissingExtraError: ``weights`` needs a package that is not installed.
    """
    from abc_rag.embedding.load import load_embedder
    from abc_rag.embedding.settings import EngineSettings

    return load_embedder(
        model,
        device=device,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        resolution=resolution_of(resolution),
        dims=dims,
        query_instruction=query_instruction,
        document_instruction=document_instruction,
        weights=weights,  # type: ignore[arg-type]  # checked by load_embedder
        background=background,
        depth=depth,  # type: ignore[arg-type]  # checked by load_embedder
        image_limits=limits,
        engine=EngineSettings(workers=workers),
    )


def filter_of(where: str | None) -> dict[str, Any] | None:
    """The filter that ``--where`` gives.

    Raises:
        InputError: It is no JSON object, or no filter.
    """
    if where is None:
        return None
    from abc_rag.store.filters import parse

    try:
        condition = json.loads(where)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--where takes JSON, such as '{{\"page\": 3}}' ({error})") from error
    if not isinstance(condition, dict):
        raise InputError(f"--where takes a JSON object, such as '{{\"page\": 3}}', not {where!r}")
    parse(condition)
    return condition


def image_limits(given: list[str] | None) -> ImageLimits:
    """The limits that ``--image-limit`` sets; the others are the defaults.

    Raises:
        InputError: There is no such limit, or the value is unusable.
    """
    from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits

    values: dict[str, Any] = {}
    for one in given or []:
        name, _, value = one.partition("=")
        name = name.strip().replace("-", "_")
        if name not in ImageLimits.__dataclass_fields__:
            names = ", ".join(ImageLimits.__dataclass_fields__)
            raise InputError(f"--image-limit: there is no limit {name!r}; there are {names}")
        default = getattr(DEFAULT_LIMITS, name)
        try:
            if isinstance(default, bool):
                values[name] = {"true": True, "false": False}[value.lower()]
            elif isinstance(default, (int, float)):
                values[name] = type(default)(value.replace(",", ""))
            else:
                values[name] = frozenset(part.strip().upper() for part in value.split(","))
        except (ValueError, KeyError) as error:
            raise InputError(f"--image-limit {name} takes a value such as {default}, not {value!r}") from error
    return ImageLimits(**values)


def resolution_of(given: str | None) -> int | str | None:
    """What a command line cannot tell apart: a number, or a name."""
    return int(given) if given is not None and given.isascii() and given.isdigit() else given


def open_store(
    path: Path,
    url: str | None,
    collection: str,
    fingerprint: Fingerprint | None,
    keyword_index: Path | None = None,
) -> ChromaStore:
    """The store that the options describe. A folder becomes one.

    Raises:
        StoreError: It cannot be opened.
    """
    from abc_rag.store.chroma.store import ChromaStore

    if url is not None:
        words = None if keyword_index is None else expanded(keyword_index)
        return ChromaStore(url=url, collection=collection, fingerprint=fingerprint, keywords=words)
    return ChromaStore(path=expanded(path), collection=collection, fingerprint=fingerprint)


def is_store(path: Path) -> bool:
    """Whether a folder is an embedded store."""
    # Opening would make one, even in a folder of pictures.
    return os.path.isfile(expanded(path) / "chroma.sqlite3")


def require_filled(path: Path, url: str | None, collection: str) -> None:
    """Refuse a store without content: an empty answer looks like a question that found nothing.

    Raises:
        InputError: There is no store, or its collection is empty.
    """
    if url is None and not is_store(path):
        raise InputError(f"{path}: no store here; make one with: abc-rag index FOLDER --store {path}")
    with open_store(path, url, collection, None) as opened:
        if opened.count() == 0:
            raise InputError(f"collection {collection!r} in {url or path} is empty; fill it with: abc-rag index FOLDER")
