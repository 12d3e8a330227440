"""The command ``abc-rag models``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from abc_rag.cli.options import DeviceOption, JsonOption
from abc_rag.cli.output import cell, console, print_json, say

if TYPE_CHECKING:
    from abc_rag.models.catalog import KnownModel

__all__ = ["models"]

_GB = 1e9
_COLUMNS = ("model", "parameters", "to fetch", "licence", "dim", "takes", "memory, CPU", "memory, GPU", "here", "for")


def models(device: DeviceOption = "auto", as_json: JsonOption = False) -> None:
    """List the models that have names, what they need, which are here, and what auto would take. Uses no network."""
    from abc_rag.embedding.load import choose_for
    from abc_rag.models.catalog import MODELS
    from abc_rag.models.loader import loaders

    choice = choose_for(device)
    prefixes = [name for name in loaders() if name != "abc"]
    if as_json:
        auto = {"model": choice.model, "reason": choice.reason}
        print_json({"models": [_as_dict(model) for model in MODELS], "families": prefixes, "auto": auto})
        return
    table = Table(show_edge=False, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for model in MODELS:
        table.add_row(*map(cell, _row(model)))
    console().print(table)
    say(f"others: {', '.join(f'{name}:FOLDER or {name}:ORGANISATION/NAME' for name in prefixes)}")
    say(str(choice))


def _row(model: KnownModel) -> list[str]:
    size = model.parameters / _GB
    return [
        model.name,
        f"{size:.1f} B" if size >= 1 else f"{1000 * size:.0f} M",
        f"{model.download / _GB:.1f} GB" if model.download else "nothing",
        model.licence or "on its model card",
        ", ".join(map(str, (model.dim, *model.dims))),
        model.inputs,
        f"{model.memory('cpu') / _GB:.1f} GB",
        f"{model.memory('cuda') / _GB:.1f} GB",
        "yes" if model.here else "no",
        model.about,
    ]


def _as_dict(model: KnownModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "family": model.family,
        "parameters": model.parameters,
        "download_bytes": model.download,
        "licence": model.licence,
        "dim": model.dim,
        "dims": list(model.dims),
        "inputs": model.inputs,
        "memory_bytes": {"cpu": model.memory("cpu"), "cuda": model.memory("cuda")},
        "here": model.here,
        "about": model.about,
        "source": model.source,
        "repositories": list(model.repositories),
    }
