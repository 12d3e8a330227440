"""The commands ``abc-rag groups`` and ``abc-rag duplicates``: many pictures at once, under an instruction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abc_rag.cli.options import EmbedderFlags, JsonOption, StoreFlags, WhereOption, filter_of, grouped
from abc_rag.cli.output import console, labelled, place_of, print_json, print_table, say
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from abc_rag.embedding.embedder import Embedder
    from abc_rag.images.limits import ImageLimits
    from abc_rag.search.retriever import Retriever
    from abc_rag.store.base import Store

__all__ = ["duplicates", "groups"]

_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Surveying:
    """Which pictures are seen, and how many may be looked at."""

    where: WhereOption = None
    passes: Annotated[
        int,
        typer.Option(min=0, help="Pictures to look at, at most; those that have the instruction as a facet are read."),
    ] = 1000
    root: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder whose pictures may be opened although they were not indexed on this machine; repeat for more."
        ),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """What `Retriever.groups` and `Retriever.duplicates` take."""
        return {"where": filter_of(self.where), "passes": self.passes}

    def retriever(self, embedder: Embedder, store: Store, limits: ImageLimits) -> Retriever:
        """What surveys."""
        from abc_rag.search.retriever import Retriever

        return Retriever(embedder, store, image_limits=limits, roots=self.root or ())


@grouped
def groups(
    instruction: Annotated[str, typer.Argument(help="What to look at, such as 'what colour is the background?'.")],
    k: Annotated[int | None, typer.Option("-k", min=1, help="Number of groups. Default: as many as stand out.")] = None,
    phrase: Annotated[
        list[str] | None,
        typer.Option(help="What a group may be called; repeat for more. Default: short texts of the store."),
    ] = None,
    facet_map: Annotated[
        bool | None,
        typer.Option(
            "--facet-map/--no-facet-map",
            help="Guess the groups of pictures beyond --passes by a facet map. Default: where there is one.",
        ),
    ] = None,
    *,
    surveying: Surveying,
    embedding: EmbedderFlags,
    place: StoreFlags,
    as_json: JsonOption = False,
) -> None:
    """Group pictures by what they are under an instruction, with a phrase for each group."""
    if not instruction.strip():
        raise InputError("the instruction is empty; say what to look at")
    options = surveying.keywords()
    place.filled().close()
    embedder = embedding.open()
    embedder, store = place.open_for(embedder)
    with store as opened:
        found = surveying.retriever(embedder, opened, embedding.limits).groups(
            instruction, k=k, phrases=phrase, facet_map="auto" if facet_map is None else facet_map, **options
        )
    if as_json:
        print_json(found.as_dict())
        return
    rows = [
        (one.phrase or "-", one.size, "-" if one.fit is None else f"{one.fit:.3f}", f"{one.tightness:.3f}",
         place_of(one.typical))
        for one in found
    ]  # fmt: skip
    print_table(["group", "pictures", "fit", "tightness", "most typical"], rows)
    _tell(found.notes)


@grouped
def duplicates(
    same: Annotated[
        list[str], typer.Option(help="Instruction under which two pictures are the same; repeat for more.")
    ],
    different: Annotated[
        list[str] | None, typer.Option(help="Instruction under which they differ; repeat for more.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Score from which on two pictures are the same, in [0, 1]. Default: found in the scores."),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Maximum number of pairs to list; all are counted.")] = 1000,
    *,
    surveying: Surveying,
    embedding: EmbedderFlags,
    place: StoreFlags,
    as_json: JsonOption = False,
) -> None:
    """Find pictures that are the same in some respects and, if asked for, differ in others; all pairs are compared."""
    from abc_rag.search.alike import checked_respects
    from abc_rag.search.checks import checked_share

    checked_respects(same, different or ())
    if threshold is not None:
        checked_share("--threshold", threshold)
    options = surveying.keywords()
    place.filled().close()
    embedder = embedding.open()
    embedder, store = place.open_for(embedder)
    with store as opened:
        found = surveying.retriever(embedder, opened, embedding.limits).duplicates(
            same, different=different or (), threshold=threshold, most=most, **options
        )
        shown = found.pairs[:_SHOWN]
        known = {
            one.id: place_of(one) for one in opened.get({id_ for pair in shown for id_ in (pair.first, pair.second)})
        }
    if as_json:
        print_json(found.as_dict())
        return
    if shown:
        names = [[known.get(id_, id_) for id_ in (pair.first, pair.second)] for pair in shown]
        rows = [(first, second, f"{pair.score:.3f}") for (first, second), pair in zip(names, shown, strict=True)]
        print_table(["one", "the other", "score"], rows)
    for name, value in found.thresholds.items():
        console().print(labelled("the same from", f"{value:.3f} on: {name}"))
    _tell(found.notes)
    more = f"; --json lists {len(found.pairs)}" if found.count > len(shown) else ""
    say(f"{found.count} pairs, {len(found.groups)} groups of {sum(map(len, found.groups))} pictures{more}")


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        console().print(labelled("note:", note))
