"""The options of `abc_rag.load_embedder` as one value: the only place for their fields, defaults and checks."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Union, cast, get_args

from abc_rag.embedding.endpoint import is_address
from abc_rag.embedding.settings import EngineSettings
from abc_rag.errors import InputError
from abc_rag.models.abc.loader import ABCCheckpoint
from abc_rag.models.hub import is_folder
from abc_rag.models.loader import Attention, DType, LoadOptions, Weights, portable_name

if TYPE_CHECKING:
    import torch

    from abc_rag.images.limits import ImageLimits
    from abc_rag.images.pixels import Depth, Rendering

__all__ = [
    "EmbedderKeywords",
    "EmbedderOptions",
    "ModelName",
    "keywords_of",
    "model_as_json",
    "model_as_text",
    "model_from_json",
    "shows_options",
]

C = TypeVar("C", bound=Callable[..., object])

ModelName = Union[str, "os.PathLike[str]", ABCCheckpoint]
"""What `abc_rag.load_embedder` takes as a model."""

_HANDED_ON = (
    "min_tokens", "max_tokens", "resolution", "dims", "query_instruction", "document_instruction", "weights",
)  # fmt: skip
_PARTS = ("base", "pretrain", "instruct")


class EmbedderKeywords(TypedDict, total=False):
    """`EmbedderOptions` as keywords, for functions that hand them on: ``**options: Unpack[EmbedderKeywords]``."""

    device: str
    dtype: DType
    min_tokens: int | None
    max_tokens: int | None
    resolution: int | str | None
    dims: int | None
    query_instruction: str | None
    document_instruction: str | None
    attention: Attention
    weights: Weights
    background: str | None
    depth: Depth
    image_limits: ImageLimits | None
    engine: EngineSettings | None


@dataclass(frozen=True, kw_only=True)
class EmbedderOptions:
    """The options of `abc_rag.load_embedder`, which says what each of them does.

    Raises:
        InputError: An option is unusable.
    """

    device: str = "auto"
    dtype: DType = "auto"
    min_tokens: int | None = None
    max_tokens: int | None = None
    resolution: int | str | None = None
    dims: int | None = None
    query_instruction: str | None = None
    document_instruction: str | None = None
    attention: Attention = "auto"
    weights: Weights = "full"
    background: str | None = None
    depth: Depth = "published"
    image_limits: ImageLimits | None = None
    engine: EngineSettings | None = None

    def __post_init__(self) -> None:
        """Checks every option; looks at no file and no device."""
        # Here and below, as importing abc_rag must not import Pillow.
        from abc_rag.images.limits import ImageLimits

        if not isinstance(self.device, str):
            raise InputError(f"device must be a str such as 'cuda:0', not {type(self.device).__name__}")
        for name, choices in (("dtype", DType), ("attention", Attention), ("weights", Weights)):
            allowed = get_args(choices)
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name, what in (("min_tokens", " of image tokens"), ("max_tokens", " of image tokens"), ("dims", "")):
            number = getattr(self, name)
            if number is not None and (type(number) is not int or number < 1):
                raise InputError(f"{name} must be a positive number{what}, not {number!r}")
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InputError(f"min_tokens ({self.min_tokens}) is larger than max_tokens ({self.max_tokens})")
        if isinstance(self.resolution, bool) or not isinstance(self.resolution, (int, str, type(None))):
            raise InputError(f"resolution must be a name or a number, not {self.resolution!r}")
        for name, kind in (
            ("query_instruction", str),
            ("document_instruction", str),
            ("image_limits", ImageLimits),
            ("engine", EngineSettings),
        ):
            if not isinstance(getattr(self, name), (kind, type(None))):
                an = "a" if kind is str else "an"
                raise InputError(f"{name} must be {an} {kind.__name__} or None, not {getattr(self, name)!r}")
        _ = self.rendering

    @property
    def rendering(self) -> Rendering:
        """How pictures become RGB."""
        from abc_rag.images.pixels import Rendering

        return Rendering(self.background, self.depth)

    def revision_of(self, files: str) -> str:
        """The revision of a fingerprint: that of the model's files, and every option here that changes vectors."""
        marks = [files, str(self.rendering)]
        if self.dims is not None:
            marks.append(f"dims={self.dims}")
        for role, told in (("query", self.query_instruction), ("document", self.document_instruction)):
            if told is not None:
                marks.append(f"{role}={hashlib.sha256(told.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}")
        return "+".join(filter(None, marks))

    @property
    def settings(self) -> EngineSettings:
        """What the engine may use."""
        return self.engine or EngineSettings()

    def on(self, device: torch.device) -> LoadOptions:
        """What a family is asked for on one device: nothing is ``"auto"`` any more."""
        import torch

        from abc_rag.images.limits import ImageLimits

        dtype = self.dtype if self.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
        return LoadOptions(
            **{name: getattr(self, name) for name in _HANDED_ON},
            device=device,
            dtype=getattr(torch, dtype),
            attention="sdpa" if self.attention == "auto" else self.attention,
            image_limits=self.image_limits or ImageLimits(),
            compiled=self.settings.compile,
        )

    def as_dict(self) -> dict[str, Any]:
        """The options as values that JSON knows; `from_dict` reads them."""
        told = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.image_limits is not None:
            limits = dataclasses.asdict(self.image_limits)
            told["image_limits"] = limits | {"formats": sorted(self.image_limits.formats)}
        if self.engine is not None:
            folder = self.engine.cache_folder
            told["engine"] = dataclasses.asdict(self.engine) | {"cache_folder": folder and os.fspath(folder)}
        return told

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> EmbedderOptions:
        """The options that `as_dict` told; what is missing has its default.

        Raises:
            InputError: An option is unknown or unusable.
        """
        values = dict(told)
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise InputError(f"load_embedder has no option {', '.join(map(repr, unknown))}; leave it out")
        limits, engine = values.get("image_limits"), values.get("engine")
        if isinstance(limits, Mapping):
            from abc_rag.images.limits import ImageLimits

            values["image_limits"] = ImageLimits(**{**limits, "formats": frozenset(limits["formats"])})
        if isinstance(engine, Mapping):
            values["engine"] = EngineSettings(**engine)
        return cls(**values)


def keywords_of(owner: object) -> EmbedderKeywords:
    """The options among an object's attributes, such as the fields of a framework's settings."""
    found = {field.name: getattr(owner, field.name) for field in dataclasses.fields(EmbedderOptions)}
    return cast("EmbedderKeywords", found)


def shows_options(owner: type[Any]) -> Callable[[C], C]:
    """Decorates a function with ``**options``: its signature shows the fields of a dataclass, with their defaults."""

    def shown(function: C) -> C:
        signature, kind = inspect.signature(function), inspect.Parameter.KEYWORD_ONLY
        given = {one.name: one for one in signature.parameters.values() if one.kind != inspect.Parameter.VAR_KEYWORD}
        for one in dataclasses.fields(owner):
            option = inspect.Parameter(one.name, kind, default=one.default, annotation=one.type)
            given.setdefault(one.name, option)
        function.__signature__ = signature.replace(parameters=[*given.values()])  # type: ignore[attr-defined]
        return function

    return shown


def model_as_json(model: ModelName) -> str | dict[str, Any]:
    """A model's name that means the same in any process and any working folder, as JSON: folders become absolute."""
    if not isinstance(model, ABCCheckpoint):
        return model if isinstance(model, str) and is_address(model) else portable_name(model)
    parts: dict[str, Any] = {}
    for part in _PARTS:
        source = getattr(model, part)
        # expanduser of os.path, as that of Path raises for an unknown user, which load_embedder says better.
        folder = os.path.abspath(os.path.expanduser(source)) if is_folder(source) else None
        parts[part] = source if folder is None else {"folder": folder}
        parts[f"{part}_revision"] = getattr(model, f"{part}_revision")
    return parts


def model_as_text(model: ModelName | None) -> Any:  # noqa: ANN401
    """A model as a framework writes it down: a path stays one, as a bare word names a model or a hub repository."""
    if isinstance(model, ABCCheckpoint):
        return {name: model_as_text(part) for name, part in dataclasses.asdict(model).items()}
    if model is None or isinstance(model, str):
        return model
    path = os.fspath(model)
    return path if path.startswith(("/", "./", "../", "~")) or os.path.isabs(path) else os.path.join(os.curdir, path)


def model_from_json(told: str | Mapping[str, Any]) -> str | ABCCheckpoint:
    """The model that `model_as_json` told."""
    if isinstance(told, str):
        return told
    parts: dict[str, Any] = {f"{part}_revision": told.get(f"{part}_revision") for part in _PARTS}
    for part in _PARTS:
        parts[part] = Path(told[part]["folder"]) if isinstance(told[part], Mapping) else told[part]
    return ABCCheckpoint(**parts)
