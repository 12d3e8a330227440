"""The command ``abc-rag embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from abc_rag.cli.options import EmbedderFlags, expanded, grouped
from abc_rag.cli.output import print_json, say
from abc_rag.errors import InputError
from abc_rag.files import new_file, refused_as

__all__ = ["embed"]


@grouped
def embed(
    text: Annotated[list[str] | None, typer.Argument(help="Texts.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="A picture; repeat for more.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What to look at in the pictures.")] = None,
    query: Annotated[bool, typer.Option("--query", help="As queries, for models that read them differently.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a NumPy .npy file instead.")] = None,
    *,
    embedding: EmbedderFlags,
) -> None:
    """Print the vectors of texts and pictures, one JSON object a line: {"input": ..., "vector": [...]}."""
    import numpy as np

    from abc_rag.types import Image, Input, InstructedImage, Text

    pictures = [str(expanded(p)) for p in image or []]
    if instruction is not None and not pictures:
        raise InputError("--instruction needs at least one --image")
    role = "query" if query else "document"
    inputs: list[Input] = [Text(t, role=role) for t in text or []]
    inputs += [
        Image(p, role=role) if instruction is None else InstructedImage(p, instruction, role=role) for p in pictures
    ]
    if not inputs:
        raise InputError("nothing to embed: give texts, or --image FILE")
    for one in [*(text or []), instruction or ""]:
        try:
            one.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{one!r} is not valid Unicode ({error.reason}); is the terminal set to UTF-8?") from error
    vectors = embedding.open().embed(inputs, progress=True)
    if out is not None:
        refused = refused_as(InputError, f"{out}: cannot be written", "choose another path")
        with refused, new_file(expanded(out)) as draft, draft.open("wb") as handle:
            np.save(handle, vectors, allow_pickle=False)
        say(f"{vectors.shape[0]} vectors of {vectors.shape[1]} in {out}")
        return
    for name, vector in zip([*(text or []), *pictures], vectors, strict=True):
        print_json({"input": name, "vector": [round(float(x), 7) for x in vector]}, indent=None)
