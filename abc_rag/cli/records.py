"""The commands ``abc-rag list | show | remove | stats``: what a store holds, without a model."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from abc_rag.cli.options import JsonOption, OnlyOption, StoreFlags, WhereOption, expanded, filter_of, grouped
from abc_rag.cli.output import cell, console, in_words, place_of, print_facts, print_json, say
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.store.base import Store
    from abc_rag.types import Record

__all__ = ["list_records", "remove", "show", "stats"]

_LINE = 100  # characters of a passage in a table
_TABLE_FOLDERS = 10


@grouped
def list_records(
    where: WhereOption = None,
    only: OnlyOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of records.")] = 50,
    *,
    place: StoreFlags,
    as_json: JsonOption = False,
) -> None:
    """List what a store holds: ids, kinds, and files or texts."""
    condition = filter_of(where)
    with place.filled() as opened:
        found = list(itertools.islice(_matching(opened, condition, only), limit + 1))
    if as_json:
        print_json([_fields(record) for record in found[:limit]])
        return
    table = Table(show_edge=False, pad_edge=False)
    for column in ("id", "kind", "what"):
        table.add_column(column, overflow="fold")
    for record in found[:limit]:
        what = record.text if record.modality == "text" else place_of(record)
        table.add_row(*map(cell, (record.id, record.modality, what[:_LINE] if record.modality == "text" else what)))
    console().print(table)
    if len(found) > limit:
        say(f"and more; --limit shows more than {limit}")


@grouped
def show(
    ids: Annotated[list[str], typer.Argument(help="Ids, as 'list' and 'ask --json' print them.")],
    *,
    place: StoreFlags,
    as_json: JsonOption = False,
) -> None:
    """Show records with all that is stored of them, but their vectors."""
    with place.filled() as opened:
        records = opened.get(ids)
        facets = opened.facet_names(ids)
    missing = sorted(set(ids) - {record.id for record in records})
    if missing:
        raise InputError(f"no record {', '.join(map(repr, missing))}; 'abc-rag list' shows the ids")
    shown = [_fields(record) | {"facets": sorted(facets.get(record.id, ()))} for record in records]
    if as_json:
        print_json(shown)
        return
    for fields in shown:
        metadata = {f"metadata {key}": value for key, value in fields.pop("metadata").items()}
        facets_shown = {"facets": ", ".join(fields.pop("facets"))}
        print_facts(fact for fact in {**fields, **metadata, **facets_shown}.items() if fact[1] != "")
        say()


@grouped
def remove(
    what: Annotated[list[str], typer.Argument(help="Ids; or files and folders, whether or not they are still there.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    *,
    place: StoreFlags,
    as_json: JsonOption = False,
) -> None:
    """Remove records from a store, by id or by the file or folder that they came from. No file is deleted but copies.

    Pictures that the store keeps copies of lose their copies.
    """
    with place.filled() as opened:
        chosen = _chosen(what, opened)
        if not chosen:
            raise InputError(f"nothing is stored under {', '.join(map(repr, what))}; 'abc-rag list' shows what is")
        question = f"{len(chosen)} of {opened.count()} records will be removed"
        if not yes:
            if not sys.stdin.isatty():
                raise InputError(f"{question}; pass --yes to agree")
            typer.confirm(f"{question}. Go on?", abort=True, err=True)
        removed = opened.delete(chosen)
        total = opened.count()
    if as_json:
        print_json({"removed": removed, "total": total})
    else:
        say(f"{removed} removed; {total} in {place.url or place.store}")


@grouped
def stats(
    *,
    place: StoreFlags,
    as_json: JsonOption = False,
) -> None:
    """Count what a store holds, by kind, format and folder."""
    kinds: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    folders: Counter[str] = Counter()
    with place.filled() as opened:
        for record in opened.records():
            kinds[record.modality] += 1
            if record.modality == "image":
                formats[record.mime_type or "unknown"] += 1
            folders[os.path.dirname(record.source) if record.source_type == "path" and record.source else "none"] += 1
        facts = {"fingerprint": opened.fingerprint, "dim": opened.dim}
    counted = {"kinds": kinds, "formats": formats, "folders": folders}
    if as_json:
        print_json(facts | {name: dict(counter.most_common()) for name, counter in counted.items()})
        return
    rows: list[tuple[str, Any]] = [(label, in_words(str(value))) for label, value in facts.items()]
    for name, counter in counted.items():
        rows += [(f"{name.removesuffix('s')} {label}", f"{n:,}") for label, n in counter.most_common(_TABLE_FOLDERS)]
        if len(counter) > _TABLE_FOLDERS:
            rows.append((f"further {name}", f"{len(counter) - _TABLE_FOLDERS:,}"))
    print_facts(rows, numbers=True)


def _matching(opened: Store, condition: dict[str, Any] | None, only: str | None) -> Iterator[Record]:
    from abc_rag.store.filters import matches, parse

    parsed = parse(condition, only)  # type: ignore[arg-type]  # checked by the option
    return (record for record in opened.records() if matches(parsed, record))


def _chosen(what: list[str], opened: Store) -> list[str]:
    """Ids of the records that are meant by ids, files and folders."""
    ids = opened.has([one for one in what if one])
    places = [os.path.abspath(expanded(Path(one))) for one in what if one and one not in ids]
    inside = tuple(os.path.join(place, "") for place in places)
    for record in opened.records() if places else ():
        if record.source_type == "path" and (record.source in places or record.source.startswith(inside)):
            ids.add(record.id)
    return sorted(ids)


def _fields(record: Record) -> dict[str, Any]:
    fields = {
        "id": record.id,
        "modality": record.modality,
        "source": record.source,
        "source_type": record.source_type,
        "text": record.text,
        "mime_type": record.mime_type,
        "sha256": record.sha256,
    }
    return fields | {"metadata": json.loads(json.dumps(dict(record.metadata), default=str))}
