"""The settings of an embedding function as Chroma stores them beside a collection: JSON, also of older versions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.load import load_embedder
from abc_rag.embedding.options import EmbedderOptions, model_as_json, model_from_json
from abc_rag.errors import InputError
from abc_rag.models.abc.loader import ABCCheckpoint

__all__ = ["check_settings", "differences_of", "embedder_of", "settings_as_call", "settings_of", "with_defaults"]

_PARTS = ("base", "pretrain", "instruct")
_OPTIONS = EmbedderOptions().as_dict()
_ALWAYS = ("device", "dtype", "min_tokens", "max_tokens", "attention", "weights")
_DEFAULTS: dict[str, Any] = {
    "model": None,
    **{name: _OPTIONS[name] for name in _ALWAYS},
    "instruction": None,
    "revision": None,
}
# Stored only where they are given: the first versions refuse settings that they do not know.
_LATER: dict[str, Any] = {name: value for name, value in _OPTIONS.items() if name not in _ALWAYS}
_DECIDE_VECTORS = (
    "model",
    "weights",
    "min_tokens",
    "max_tokens",
    "resolution",
    "dims",
    "query_instruction",
    "document_instruction",
    "background",
    "depth",
    "instruction",
)


def settings_of(
    model: str | os.PathLike[str] | ABCCheckpoint, options: EmbedderOptions, instruction: str | None
) -> dict[str, Any]:
    """Settings as JSON, the revision still missing."""
    given = {name: value for name, value in options.as_dict().items() if name in _ALWAYS or value != _LATER[name]}
    return {"model": model_as_json(model), **given, "instruction": instruction, "revision": None}


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings, and the defaults of those that are always stored."""
    return _DEFAULTS | dict(config)


def embedder_of(config: Mapping[str, Any]) -> Embedder:
    """The embedder of stored settings; loads no weights.

    Raises:
        InputError: They cannot be used here.
    """
    options = EmbedderOptions.from_dict({name: config[name] for name in _OPTIONS if name in config})
    return load_embedder(model_from_json(config["model"]), **{name: getattr(options, name) for name in _OPTIONS})


def check_settings(config: Mapping[str, Any]) -> None:
    """Refuse settings that no function can be made of. Looks at no file; `load_embedder` checks the values.

    Raises:
        InputError: These are not the settings of an ABCEmbeddingFunction.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"the settings of an ABCEmbeddingFunction are a dict, not {type(config).__name__}")
    unknown = sorted(set(config) - set(_DEFAULTS | _LATER))
    if unknown:
        raise InputError(
            f"an ABCEmbeddingFunction has no setting {', '.join(map(repr, unknown))}; if a newer abc-rag stored it, "
            "upgrade: pip install --upgrade abc-rag"
        )
    model = config.get("model")
    if not isinstance(model, str) and not (isinstance(model, dict) and set(_PARTS) <= set(model)):
        raise InputError(f"model must be a str, or a dict with {', '.join(_PARTS)}, not {model!r}")
    for name in ("instruction", "revision"):
        if not isinstance(config.get(name), (str, type(None))):
            raise InputError(f"{name} must be a str or None, not {type(config[name]).__name__}")
    if not isinstance(config.get("device", "auto"), str):
        raise InputError(f"device must be a str such as 'cuda:0', not {type(config['device']).__name__}")


def differences_of(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Why vectors of ``new`` are not comparable with those of ``old``; empty if they are."""
    revisions = old.get("revision"), new.get("revision")
    same_files = revisions[0] is not None and revisions[0] == revisions[1]
    # Older versions stored fewer settings.
    old, new = _DEFAULTS | _LATER | dict(old), _DEFAULTS | _LATER | dict(new)
    names = [name for name in _DECIDE_VECTORS if old[name] != new[name] and not (name == "model" and same_files)]
    if not same_files and None not in revisions and not {"model", "weights", "background", "depth"} & set(names):
        names.append("revision")
    return ", ".join(f"{name}: {old[name]!r} before, {new[name]!r} now" for name in names)


def settings_as_call(config: Mapping[str, Any]) -> str:
    """Settings as the call that makes such a function."""
    defaults = _DEFAULTS | _LATER
    config = defaults | dict(config)
    given = {name: config[name] for name in defaults if name != "revision" and config[name] != defaults[name]}
    shown = {name: model_from_json(value) if name == "model" else value for name, value in given.items()}
    return f"ABCEmbeddingFunction({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
