"""Questions in, ranked pictures and passages out.

What happens in a search, in this order:

1.  **Rewrite**: the question becomes an instruction, a target, and the kind of item that is wanted
    (`abc_rag.search.rewriting.llm`).
2.  **Embed**: a picture with a question as that picture under the instruction; a question alone as its target; a
    picture alone as itself.
3.  **Filter and search**: ``where`` and ``modality`` hold within the store. Facets count here: a picture has the
    best score of its own vector and its facets', and occurs once. Where the question wants only pictures (or only
    passages) and the caller did not say, only those are searched; everything, if there are none.
4.  **Second look**, if ``rerank`` says so: the pictures among the first candidates are embedded under the instruction
    (or the facet of that very instruction is read from the store) and compared with the target, or, where a picture
    came with the question, with that picture under the same instruction. Passages keep their score.
5.  **Threshold**: hits below ``min_score`` go.
6.  **MMR**: with ``mmr``, hits are chosen one after the other for their score and for their difference from those
    already chosen.
7.  **Cut** to ``k``.

The second look's scores are fused with the first ones as ``first + w * (second - mean(second of all pictures looked
at) - (first - mean(first of the same)))``: pictures move among themselves and, as far as one of them stands out from
the others, against passages; their mean stays where it was. A similarity between a picture under an instruction and a
phrase is larger than one between a picture and a phrase, so adding it as it stands would lift every picture above
every passage.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from abc_rag.embedding.ahead import Part, embedded, named
from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import ABCRagError, ImageError, InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.images.read import read_bytes
from abc_rag.search.answer import Answer
from abc_rag.search.ranking import diverse
from abc_rag.search.rewriting.rewriter import Rewrite, Rewriter
from abc_rag.search.rewriting.rules import RuleRewriter
from abc_rag.store.chroma.store import ChromaStore
from abc_rag.types import (
    Hit,
    Image,
    ImageSource,
    Input,
    InstructedImage,
    InstructedText,
    Modality,
    Text,
    Trace,
    Vectors,
)

__all__ = ["Retriever"]

logger = logging.getLogger(__name__)

# How much a second look counts: of 0, 0.5, 0.7, 0.8, 0.9 and 1 the best on abc-mini's scenes, where 0.8 to 1 differ by
# less than one point in a hundred; the least of these keeps most of what the instruction does not ask for.
_WEIGHT = 0.8


class Retriever:
    """An embedder and a store together.

    Args:
        embedder: Makes the vectors of questions; must be the one that made the store's.
        store: What is searched.
        rewriter: Turns a question into an instruction. If not given: `abc_rag.search.rewriting.llm.RuleRewriter`;
            `abc_rag.search.rewriting.llm.AsAsked` leaves questions as they are.
        candidates: How many of the first search's hits are considered for a second look and for MMR; at least ``k``.
        weight: How much a second look counts against the first search, in [0, 1]; ``w`` above.
        image_limits: Which pictures may be opened for a second look, and whether their URLs are fetched.
        query_instruction: What a text that is searched with is for, where the model was trained to be told, as VLM2Vec
            was: the text is then embedded as an `abc_rag.InstructedText`.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: ChromaStore,
        *,
        rewriter: Rewriter | None = None,
        candidates: int = 50,
        weight: float = _WEIGHT,
        image_limits: ImageLimits | None = None,
        query_instruction: str | None = None,
    ) -> None:
        if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1:
            raise InputError(f"candidates must be a positive int, not {candidates!r}")
        self.embedder = embedder
        self.store = store
        self.rewriter = rewriter if rewriter is not None else RuleRewriter()
        self.candidates = candidates
        self.weight = _checked_share("weight", weight)
        self._limits = image_limits or ImageLimits()
        self.query_instruction = query_instruction

    def search(
        self,
        question: str | None = None,
        *,
        image: ImageSource | None = None,
        k: int = 4,
        where: Mapping[str, Any] | None = None,
        modality: Modality | None = None,
        rerank: bool | Literal["auto"] = "auto",
        mmr: float | None = None,
        min_score: float | None = None,
        trace: bool = False,
    ) -> Answer:
        """Find what is nearest to a question, a picture, or a picture seen under a question.

        Args:
            question: A question or a description; with a picture, what to look at in it.
            image: A picture that the question is about.
            k: Most hits; fewer where the store, the filter or the threshold leaves fewer.
            where: Chroma's metadata filter.
            modality: Only pictures, or only passages.
            rerank: Whether pictures that were found are looked at again under the instruction, at the cost of one
                pass each. ``"auto"``: where the rewriter found an aspect in the question and, if it came with a
                picture, it wants pictures. True: always, if there is a question. A picture's vision features are
                kept in memory, so further instructions cost less.
            mmr: Weight of the score against difference from the hits before, in [0, 1]; 1 is the plain order.
            min_score: Least score of a hit, in [0, 1].
            trace: Give each hit its `Trace`.

        Returns:
            The hits. None for an empty store. A picture whose file has gone or has changed since, or cannot be
            opened, keeps the score of the first search; its trace says so, and a warning is logged.

        Raises:
            InputError: Neither a question nor a picture is given, or the question is blank, or an argument is unusable.
            ImageError: ``image`` cannot be used.
        """
        _check_options(k, rerank, mmr, min_score)
        query, rewrite = self._query(question, image)
        if isinstance(query, InstructedText) and InstructedText not in self.embedder.accepts:
            model = self.embedder.fingerprint.model
            raise InputError(f"query_instruction: {model} does not take an InstructedText; leave query_instruction out")
        vector = self.embedder.embed([query])[0]
        # Asked for by name, a second look that a model cannot have is noted at each hit.
        can_look = rerank is True or InstructedImage in self.embedder.accepts
        look = (
            rewrite is not None
            and can_look
            and (
                rerank is True
                or (rerank == "auto" and rewrite.names_aspect and (image is None or rewrite.wants == "image"))
            )
        )
        wanted = max(k, self.candidates) if look or mmr is not None else k
        hits = self._found(vector, wanted, where, modality, rewrite)
        if trace:
            hits = [replace(hit, trace=Trace(None, hit.score, facet=hit.facet)) for hit in hits]
        instruction = query.instruction if isinstance(query, InstructedImage) else None
        if look and rewrite is not None and any(hit.modality == "image" for hit in hits):
            instruction = rewrite.instruction
            hits = self._look_again(hits, rewrite.instruction, vector)
        if min_score is not None:
            hits = [hit for hit in hits if hit.score >= min_score]
        hits = hits[:k] if mmr is None else diverse(hits, self.store.vectors(hit.id for hit in hits), k, mmr)
        return Answer(question, instruction, hits, rewrite)

    def _query(self, question: str | None, image: ImageSource | None) -> tuple[Input, Rewrite | None]:
        if question is None:
            if image is None:
                raise InputError("nothing to search for: pass a question, image=..., or both")
            return Image(image), None
        rewrite = self.rewriter.rewrite(question, has_image=image is not None)
        if image is not None:
            return InstructedImage(image, rewrite.instruction), rewrite
        if self.query_instruction is not None:
            return InstructedText(rewrite.target, self.query_instruction), rewrite
        return Text(rewrite.target), rewrite

    def _found(
        self,
        vector: Vectors,
        k: int,
        where: Mapping[str, Any] | None,
        modality: Modality | None,
        rewrite: Rewrite | None,
    ) -> list[Hit]:
        if modality is None and rewrite is not None and rewrite.wants != "any":
            hits = self.store.search(vector, k, where, modality=rewrite.wants)
            if hits:
                return hits
        return self.store.search(vector, k, where, modality=modality)

    # -- the second look -----------------------------------------------------------------------

    def _look_again(self, hits: list[Hit], instruction: str, vector: Vectors) -> list[Hit]:
        """Fuse the scores of pictures with those that they have under the instruction; best first."""
        pictures = [hit for hit in hits if hit.modality == "image"]
        seen, notes = self._under(pictures, instruction)
        second = {id_: (1.0 + float(np.clip(row @ vector, -1.0, 1.0))) / 2.0 for id_, row in seen.items()}
        # By how much a picture stands out from the others, not by how high all of them are: see above.
        firsts = [hit.score for hit in pictures if hit.id in second]
        shift = float(np.mean(list(second.values())) - np.mean(firsts)) if firsts else 0.0
        looked = []
        for hit in hits:
            score = hit.score
            if hit.id in second:
                score += self.weight * (second[hit.id] - shift - hit.score)
            note = notes.get(hit.id, "")
            traced = hit.trace
            if traced is not None and hit.modality == "image":
                traced = replace(traced, instruction=instruction, second=second.get(hit.id), note=note)
            looked.append(replace(hit, score=min(1.0, max(0.0, score)), trace=traced))
        return sorted(looked, key=lambda hit: (-hit.score, hit.id))

    def _under(self, pictures: Sequence[Hit], instruction: str) -> tuple[dict[str, Vectors], dict[str, str]]:
        """Vectors of pictures under an instruction, and why those without one have none; by id."""
        seen = self.store.facet_vectors([hit.id for hit in pictures], instruction)
        notes: dict[str, str] = {}
        unseen = [hit for hit in pictures if hit.id not in seen]
        with closing(embedded(self.embedder, self._looks(unseen, instruction, notes))) as looks:
            for look, (result,) in looks:
                if isinstance(result, ABCRagError):
                    error = named(result, look.hit.source)
                    notes[look.hit.id] = str(error) if isinstance(error, ImageError) else f"{look.hit.id}: {error}"
                else:
                    seen[look.hit.id] = result
        for note in notes.values():
            logger.warning("no second look at a picture that was found: %s", note)
        return seen, notes

    def _looks(self, hits: Sequence[Hit], instruction: str, notes: dict[str, str]) -> Iterator[_Look]:
        for hit in hits:
            try:
                content = self._content(hit)
            except ImageError as error:
                notes[hit.id] = str(error)
            else:
                yield _Look([InstructedImage(content, instruction)], len(content), hit)

    def _content(self, hit: Hit) -> bytes:
        """A picture's bytes, if they are still those that were embedded."""
        source = hit.record.picture
        if source is None:
            if hit.source:
                raise ImageError(hit.source, "was kept in the store's folder; open the store with pictures=FOLDER")
            raise ImageError(hit.id, "was stored without a source; store it with one, or keep a copy")
        data = read_bytes(source, limits=self._limits)
        if hit.record.sha256 and hashlib.sha256(data).hexdigest() != hit.record.sha256:
            raise ImageError(hit.source, "holds another picture than the one that was indexed; index it again")
        return data


@dataclass
class _Look(Part):
    """A picture that is looked at again."""

    hit: Hit


def _check_options(k: object, rerank: object, mmr: object, min_score: object) -> None:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k must be a positive int, not {k!r}")
    if not isinstance(rerank, bool) and rerank != "auto":
        raise InputError(f"rerank must be True, False or 'auto', not {rerank!r}")
    for name, value in (("mmr", mmr), ("min_score", min_score)):
        if value is not None:
            _checked_share(name, value)


def _checked_share(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise InputError(f"{name} must be a number in [0, 1], not {value!r}")
    return float(value)
