"""What a run knows of every id: one actor, on the machine of the driver, answers for all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from abc_rag.ingest.cluster.client import import_ray
from abc_rag.ingest.cluster.lake import Lake
from abc_rag.ingest.ondisk import OnDisk

__all__ = ["Asked", "Ledger"]

# What is stored of an id: it was there before, it was found again, or where it was found first and that it is stored.
_STORED, _FOUND, _DONE = "", "\0", "\1"


class Ledger:
    """Who embeds what. All answers are the same when a task is run again, as a cluster does after a loss.

    Args:
        lake: What is stored there is not embedded again.
    """

    def __init__(self, lake: Lake) -> None:
        self._ids = OnDisk()
        self._twins = OnDisk()
        self._failed = OnDisk()
        self._before = lake.failed()
        self._passed: set[str] = set()
        self._unchanged = 0
        for facets in (False, True):
            for ids in lake.ids(facets=facets):
                self._ids.put((id_, _STORED) for id_ in ids)

    def claim(self, items: Sequence[tuple[str, Sequence[str]]]) -> list[list[bool]]:
        """Which ids are to be made for each of some items; the first place of an id gets it.

        Args:
            items: (place, ids); the first id is the item's own, the others are its facets.
        """
        return [[self._claimed(place, id_, is_own=not n) for n, id_ in enumerate(ids)] for place, ids in items]

    def _claimed(self, place: str, id_: str, *, is_own: bool) -> bool:
        if is_own and place in self._before:
            self._passed.add(place)
        owner = self._ids.get(id_)
        if owner is None:
            self._ids[id_] = place
            return True
        if owner == _STORED:
            self._ids[id_] = _FOUND
            self._unchanged += is_own
        elif owner != _FOUND and owner.removeprefix(_DONE) == place:
            return True
        elif is_own and owner != _FOUND:
            self._twins[place] = id_
        return False

    def fail(self, failures: Iterable[tuple[str, str, str]]) -> None:
        """Note (place, id, reason) of what cannot be used; the id may be empty."""
        self._failed.put((place, json.dumps([id_, reason])) for place, id_, reason in failures)

    def done(self, ids: Sequence[str]) -> list[str]:
        """Note what is going to be committed; returns those ids that were noted before."""
        owners = [self._ids[id_] for id_ in ids]
        self._ids.put((id_, _DONE + owner.removeprefix(_DONE)) for id_, owner in zip(ids, owners, strict=True))
        return [id_ for id_, owner in zip(ids, owners, strict=True) if owner.startswith(_DONE)]

    def failures(self) -> list[tuple[str, str, str]]:
        """(place, id, reason) of all that cannot be used, other places of the same content included."""
        found = {}
        for place, told in self._failed.pairs():
            id_, reason = json.loads(told)
            found[place] = (place, id_, reason)
            for twin in self._twins.keys_of(id_) if id_ else ():
                found.setdefault(twin, (twin, id_, reason))
        return [found[place] for place in sorted(found)]

    def result(self) -> tuple[int, list[tuple[str, str, str]], list[str]]:
        """How many items were stored before, what failed, and the places that had failed before and are well now."""
        return self._unchanged, self.failures(), sorted(self._passed)


class Asked:
    """A ledger from wherever on the cluster.

    Args:
        actor: The handle of an actor of `Ledger`.
    """

    def __init__(self, actor: Any) -> None:  # noqa: ANN401  (made by Ray)
        self._actor = actor

    def claim(self, items: Sequence[tuple[str, Sequence[str]]]) -> list[list[bool]]:
        """See `Ledger.claim`."""
        return import_ray().get(self._actor.claim.remote(items)) if items else []

    def fail(self, failures: Sequence[tuple[str, str, str]]) -> None:
        """See `Ledger.fail`."""
        if failures:
            import_ray().get(self._actor.fail.remote(failures))

    def done(self, ids: Sequence[str]) -> list[str]:
        """See `Ledger.done`."""
        return list(import_ray().get(self._actor.done.remote(ids)))

    def result(self) -> tuple[int, list[tuple[str, str, str]], list[str]]:
        """See `Ledger.result`."""
        unchanged, failures, passed = import_ray().get(self._actor.result.remote())
        return unchanged, failures, passed

    def close(self) -> None:
        """End the actor."""
        import_ray().kill(self._actor)
