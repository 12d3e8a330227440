"""The command ``abc-rag info``."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from abc_rag import __version__
from abc_rag.cli.options import DeviceOption, JsonOption, ModelOption, StoreFlags, grouped, is_store, open_embedder
from abc_rag.cli.output import in_words, print_facts, print_json
from abc_rag.errors import InputError

__all__ = ["info"]


@grouped
def info(
    model: ModelOption = None,
    *,
    place: StoreFlags,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show versions, the device, the model and what a store holds. Downloads nothing."""
    import torch

    from abc_rag.embedding.load import default_model, local_revision

    name = model or default_model()
    facts: dict[str, Any] = {
        "abc-rag": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "chromadb": version("chromadb"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "model": name,
    }
    try:
        here = local_revision(name) is not None
    except InputError:
        here = True  # loading it says what is wrong with the name
    if here:
        embedder = open_embedder(name, device)
        facts |= {"fingerprint": str(embedder.fingerprint), "dim": embedder.dim}
    if place.url is not None or is_store(place.store):
        with place.open() as opened:
            facts["store"] = {
                "where": place.url or str(place.store),
                "collection": place.collection,
                "count": opened.count(),
                "fingerprint": opened.fingerprint,
            }
    if as_json:
        print_json(facts)
        return
    rows: list[tuple[str, Any]] = []
    for key, value in facts.items():
        rows += (
            [(f"{key} {name}", inner) for name, inner in value.items()] if isinstance(value, dict) else [(key, value)]
        )
    print_facts((label, "none" if shown is None else in_words(str(shown))) for label, shown in rows)
