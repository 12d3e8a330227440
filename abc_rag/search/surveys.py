"""What a retriever tells about many pictures at once: groups, and duplicates in one respect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.threads import async_twin
from abc_rag.errors import InputError
from abc_rag.search.alike import checked_respects
from abc_rag.search.checks import checked_share
from abc_rag.search.duplicates import Duplicates, duplicates_in
from abc_rag.search.groups import Groups, Namer, grouped
from abc_rag.search.pictures import Pictures
from abc_rag.search.sights import PASSES, seen_pictures
from abc_rag.store.base import Store

__all__ = ["Surveys"]


class Surveys:
    """The surveys of `abc_rag.search.retriever.Retriever`.

    Attributes:
        namer: Says what a typical picture of a group is, if there is one; `abc_rag.Retriever` has one that uses its
            generator.
    """

    embedder: Embedder
    store: Store
    pictures: Pictures
    weight: float
    namer: Namer | None = None

    def groups(
        self,
        instruction: str,
        *,
        k: int | None = None,
        phrases: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        ids: Iterable[str] | None = None,
        passes: int = PASSES,
        facet_map: bool | Literal["auto"] = "auto",
    ) -> Groups:
        """Group pictures by what they are under an instruction; see `abc_rag.search.groups`.

        Facets of the instruction are read from the store. Of pictures without one, up to ``passes`` are looked at; of
        the others a facet map tells the group, roughly, or they are left out. The result says how many.

        Args:
            instruction: What to look at, such as ``"what colour is the background?"``.
            k: Number of groups. If not given: the number, up to 200, with the best mean silhouette, or one group where
                none stands out.
            phrases: Candidates for the phrases of groups, such as ``["a red background", ...]``. If not given: what the
                generator says of each group's most typical picture, or without one short captions and passages of the
                store, of which the nearest may still be wrong. An empty list: no phrases.
            where: The store's metadata filter.
            ids: Only these pictures.
            passes: Most pictures to look at; one embedding each.
            facet_map: As for `search`, for the pictures beyond ``passes``.

        Raises:
            InputError: An argument is unusable, or the model does not look at pictures under an instruction.
            StoreError: The store cannot be read.
        """
        checked_respects([instruction], ())
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
            raise InputError(f"k must be a positive int, or None for as many groups as stand out, not {k!r}")
        if phrases is not None and (
            isinstance(phrases, str) or not all(isinstance(one, str) and one.strip() for one in phrases)
        ):
            raise InputError("phrases must be a list of texts, such as ['a red background']; none is blank")
        sights = seen_pictures(self, [instruction], where=where, ids=ids, passes=passes, facet_map=facet_map)
        return grouped(self, sights, instruction, k=k, phrases=phrases, namer=self.namer)

    agroups = async_twin(groups)

    def duplicates(
        self,
        same: Sequence[str],
        *,
        different: Sequence[str] = (),
        threshold: float | Mapping[str, float] | None = None,
        where: Mapping[str, Any] | None = None,
        ids: Iterable[str] | None = None,
        most: int = 1000,
        passes: int = PASSES,
    ) -> Duplicates:
        """Find pictures that are the same in some respects, and not in others; see `abc_rag.search.duplicates`.

        All pairs are compared, so time grows with the square of the number of pictures. Facets are read from the store;
        of pictures without them, up to ``passes`` are looked at.

        Args:
            same: Instructions under which two pictures are the same, such as ``["which product is it?"]``.
            different: Instructions under which they differ.
            threshold: Score, ``(1 + cosine) / 2``, from which on two pictures are the same; for all instructions, or by
                instruction. If not given: the gap between pairs that are the same and pairs that are not. Where there
                is none, nothing is found, and a note says so.
            where: The store's metadata filter.
            ids: Only these pictures.
            most: Maximum number of pairs to return; all are counted, and in ``groups``.
            passes: Most pictures to look at; one embedding for each facet that one lacks.

        Raises:
            InputError: An argument is unusable, or the model does not look at pictures under an instruction.
            StoreError: The store cannot be read.
        """
        checked_respects(same, different)
        if not same:
            raise InputError("same is empty; name an instruction under which duplicates are the same")
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise InputError(f"most must be a positive number of pairs, not {most!r}")
        told = list(dict.fromkeys([*same, *different]))
        given = (
            threshold
            if isinstance(threshold, Mapping)
            else dict.fromkeys(told if threshold is not None else (), threshold)
        )
        if unknown := given.keys() - set(told):
            raise InputError(f"threshold is for {min(unknown)!r}, which is neither in same nor in different")
        checked = {name: checked_share("threshold", value) for name, value in given.items()}
        sights = seen_pictures(self, told, where=where, ids=ids, passes=passes)
        return duplicates_in(sights, list(dict.fromkeys(same)), list(dict.fromkeys(different)), checked, most=most)

    aduplicates = async_twin(duplicates)
