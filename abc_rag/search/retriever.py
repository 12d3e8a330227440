"""Questions in, ranked pictures and passages out.

A search has these steps:

1.  **Prepare**: the question becomes an instruction, a target, and the kind of record that it asks for
    (`abc_rag.search.rewriting`).
2.  **Embed**: a picture with a question as that picture under the instruction; a question alone as its target; a
    picture alone as itself; all as queries, where a model reads those otherwise than documents.
3.  **Search**: ``where`` and ``modality`` hold within the store. A picture has the best score of its own vector and
    its facets', and occurs once. A question that asks for pictures (or for passages) searches only these, unless the
    caller says otherwise; where there are none, it searches everything.
4.  **Keywords**, if ``keywords`` says so and the store has an index of them: what the words of the question find (by
    BM25) is fused with what its vector found, by ranks (`abc_rag.search.fusion`). A question that is nothing but names
    such as ``MX-4471-B`` has what keywords find first. A phrase in quotation marks must be there, and a word or phrase
    after a minus sign must not be, in hits of vectors too; neither the marks nor what must not be there is embedded.
    ``keywords="auto"`` counts only hits that have all names of the question or, where it has none, all its words; it
    does not hold to a phrase that no record has, and leaves questions about a given picture and given vectors alone.
5.  **Second look**, our name for instruction-conditioned reranking, if ``rerank`` says so: the pictures among the
    first candidates are embedded under the instruction, or their facet of that very instruction is read from the
    store. They are compared with the target or, where a picture came with the question, with that picture under the
    same instruction. Passages keep their score. See `abc_rag.search.second_look`.
    With ``facet_map``, the candidates of a map of that instruction over the whole store are looked at too
    (`abc_rag.search.facet_maps`).
6.  **Threshold**: hits below ``min_score`` are dropped.
7.  **Judging**, if ``rerank="judge"`` or ``min_confidence`` says so: a model that generates reads the question and each
    of the first hits, pictures and passages, and says how likely it is that this shows or says what is asked for
    (`abc_rag.search.judging`). With ``rerank="judge"`` the likeliest come first. Hits below ``min_confidence`` are
    dropped: nothing here may match.
8.  **MMR**: with ``mmr``, hits are chosen one by one for their score and for their difference from those already
    chosen.
9.  **Cut** to ``k``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy.typing as npt

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.threads import async_twin
from abc_rag.errors import InputError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.search.alike import alike, checked_respects
from abc_rag.search.answer import Answer
from abc_rag.search.checks import check_options, checked_share, unit
from abc_rag.search.evidence import PASSES, Evidence, explain_picture
from abc_rag.search.facet_maps import mapped_hits
from abc_rag.search.fusion import KEYWORD_WEIGHT, demanding, hybrid
from abc_rag.search.judging import Judge, confident, judged_hits
from abc_rag.search.neighbours import Neighbours, neighbours_of
from abc_rag.search.pictures import Pictures
from abc_rag.search.projected import projected
from abc_rag.search.query import Query
from abc_rag.search.ranking import diverse
from abc_rag.search.rewriting.rewriter import Rewrite, Rewriter
from abc_rag.search.rewriting.rules import RuleRewriter, follows_up
from abc_rag.search.second_look import look_again
from abc_rag.search.surveys import Surveys
from abc_rag.store.base import Store
from abc_rag.store.keywords import Keywords
from abc_rag.store.projection import Shortening
from abc_rag.types import Hit, Image, ImageSource, InstructedImage, Message, Modality, Record, Trace, Vectors

__all__ = ["WEIGHT", "Retriever"]

# Of 0, 0.5, 0.7, 0.8, 0.9 and 1 the best on abc-mini's scenes, where 0.8 to 1 differ by less than one point in a
# hundred; the least of these keeps most of what the instruction does not ask for.
WEIGHT = 0.8
"""Of the second look, if not given."""


class Retriever(Surveys):
    """Searches a store with an embedder.

    Args:
        embedder: Embeds questions; must be the one that made the store's vectors. Over a store that was reduced from
            vectors of this model, the attribute ``embedder`` projects them; the model is then loaded at once.
        store: What is searched.
        rewriter: Turns a question into an instruction. If not given: `abc_rag.search.rewriting.rules.RuleRewriter`;
            `abc_rag.search.rewriting.rewriter.AsAsked` leaves questions as they are.
        candidates: How many hits of the first search are candidates for the second look and for MMR; at least ``k``.
        weight: Weight of the second look against the first search, in [0, 1]; ``w`` above.
        keyword_weight: Weight of keywords against vectors where both are searched, in [0, 1]; 0.5 counts them alike.
        image_limits: Which pictures may be opened for a second look, and whether their URLs are fetched.
        roots: Further files and folders from which pictures may be opened; see `abc_rag.search.pictures`.
        kinds: Filters for the two modalities, where the store's own are not what the caller means by them.
        judge: Judges hits; `abc_rag.Retriever` has one that uses its generator.
        judged: How many of the first hits are judged; at least ``k``.

    Raises:
        FingerprintMismatchError: The store was reduced from vectors of another model.
        StoreError: The file with the projection of a reduced store is missing or damaged.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: Store,
        *,
        rewriter: Rewriter | None = None,
        candidates: int = 50,
        weight: float = WEIGHT,
        image_limits: ImageLimits | None = None,
        roots: Iterable[str | os.PathLike[str]] = (),
        kinds: Mapping[Modality, Mapping[str, Any]] | None = None,
        judge: Judge | None = None,
        judged: int = 8,
        keyword_weight: float = KEYWORD_WEIGHT,
    ) -> None:
        for name, count in (("candidates", candidates), ("judged", judged)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise InputError(f"{name} must be a positive int, not {count!r}")
        self.embedder = projected(embedder, store)
        self.store = store
        self._shortening = Shortening(store)
        self.rewriter = rewriter if rewriter is not None else RuleRewriter()
        self.candidates = candidates
        self.weight = checked_share("weight", weight)
        self.keyword_weight = checked_share("keyword_weight", keyword_weight)
        self.pictures = Pictures(store, roots=roots, limits=image_limits or DEFAULT_LIMITS)
        self._kinds = kinds
        self.judge = judge
        self.judged = judged

    def prepare(
        self,
        question: str | None = None,
        *,
        image: ImageSource | None = None,
        texts: Sequence[str] = (),
        vector: npt.ArrayLike | None = None,
        keywords: bool | Literal["auto"] = "auto",
        history: Sequence[Message] = (),
    ) -> Query:
        """Check and rewrite a question; nothing is embedded or searched yet.

        Args:
            question: A question or a description; with a picture, what to look at in it.
            image: A picture that the question is about.
            texts: Texts to search with besides the picture or, without one, in place of the question: such as made-up
                answers (HyDE). The query's vector is the mean of theirs. Name the question among them to keep it.
            vector: The vector to search with, shape ``(dim,)``, in place of one that is embedded. Over a store that was
                reduced, one of the model itself, or a short one.
            keywords: As for `search`.
            history: The turns before the question, oldest first. A question such as ``"and on the right?"`` is about
                the last picture in them; a rewriter with a model behind it completes it from them.

        Returns:
            What `search` takes.

        Raises:
            InputError: There is nothing to search for, the question is blank, or ``vector`` is not one of this model.
        """
        texts = tuple(text for text in texts if text.strip())
        if question is None and image is None and vector is None and not texts:
            raise InputError("nothing to search for: pass a question, image=..., or both")
        if history and image is None and vector is None and isinstance(question, str) and follows_up(question):
            image = next((picture for turn in reversed(history) for picture in reversed(turn.pictures)), None)
        words = self._words(question, keywords, plain=image is None and vector is None)
        asked = words.text if words is not None and words.strict else question
        rewrite = None if asked is None else self._rewritten(asked, image is not None, history)
        if words is not None and not words.strict and rewrite is not None and rewrite.question is not None:
            words = self._words(rewrite.question, keywords)
        if image is not None:
            image = Image(image).source  # refuses what is no picture's source
        row = None if vector is None else unit(self._shortening(vector), self.embedder.dim)
        return Query(question, image, rewrite, texts, row, words)

    def _rewritten(self, question: str, has_image: bool, history: Sequence[Message]) -> Rewrite:
        # A rewriter of somebody else's need not know of histories.
        return (
            self.rewriter.rewrite(question, has_image=has_image, history=history)
            if history
            else self.rewriter.rewrite(question, has_image=has_image)
        )

    def _words(self, question: str | None, keywords: bool | Literal["auto"], *, plain: bool = True) -> Keywords | None:
        # What is no str is refused by the rewriter.
        if not isinstance(question, str) or keywords is False or (keywords == "auto" and not plain):
            return None
        # Without an index, a search that insists on keywords says so.
        return Keywords.of(question) if keywords is True or self.store.has_words else None

    def search(
        self,
        question: str | Query | None = None,
        *,
        image: ImageSource | None = None,
        same: Sequence[str] = (),
        different: Sequence[str] = (),
        k: int = 4,
        where: Mapping[str, Any] | None = None,
        modality: Modality | None = None,
        rerank: bool | Literal["auto", "judge"] = "auto",
        keywords: bool | Literal["auto"] = "auto",
        facet_map: bool | Literal["auto"] = "auto",
        mmr: float | None = None,
        min_score: float | None = None,
        min_confidence: float | None = None,
        history: Sequence[Message] = (),
        trace: bool = False,
    ) -> Answer:
        """Find what is nearest to a question, a picture, or a picture seen under a question.

        Args:
            question: A question or a description; with a picture, what to look at in it. Or a query that `prepare`
                made of these.
            image: A picture that the question is about.
            same: With a picture and no question: instructions under which hits are to be like it, such as
                ``["what is on the left?"]``; see `abc_rag.search.alike`. Only pictures are found then, and scores are
                of these respects alone. Besides, only ``k``, ``where`` and ``min_score`` count.
            different: Instructions under which hits are to be unlike it.
            k: Maximum number of hits; fewer where the store, the filter or the threshold leaves fewer.
            where: The store's metadata filter, such as ``{"page": {"$gte": 3}}``.
            modality: Only pictures (``"image"``), or only passages (``"text"``).
            rerank: Whether to take a second look at the pictures that were found, which costs one embedding each.
                ``"auto"``: unless it is a question of fact or about the whole picture, or came with a picture and does
                not ask for pictures, or the rewriter is `AsAsked`. True: always, if there is a question. A picture's
                vision features stay in memory, so further instructions cost less. ``"judge"``: as ``"auto"``, and
                then by the judge's confidence, if there is a question; MMR still goes by scores.
            keywords: Whether to search for the words of the question too; see this module. ``"auto"``: where the store
                has an index of them, and counting only what has all of the words. True: counting what has any.
            facet_map: Whether a second look also gets the candidates of a facet map, which reads the aspect out of all
                pictures of the store (`abc_rag.search.facet_maps`); as many again as ``candidates``. True: make one for
                an instruction that has none yet, which sees 512 pictures. ``"auto"``: where there is one, and more than
                20 records in the store for each that the first search found.
            mmr: Weight of the score against difference from earlier hits, in [0, 1]; 1 is the plain order.
            min_score: Minimum score of a hit, in [0, 1].
            min_confidence: Minimum confidence of a hit, in [0, 1]; hits are judged for it, and those that are not, or
                cannot be, are left out. Where none is left, the notes say so.
            history: As for `prepare`.
            trace: Give each hit its `Trace`.

        Returns:
            The hits; none for an empty store. A picture whose file is gone, has changed or cannot be opened keeps the
            score of the first search; its trace says so, and a warning is logged.

        Raises:
            InputError: Neither a question nor a picture is given, or the question is blank, or an argument is unusable,
                or judging is asked for without a judge.
            ImageError: ``image`` cannot be used.
            StoreError: ``keywords`` is True, and the store has no index of them.
        """
        check_options(k, rerank, keywords, facet_map, mmr, min_score, min_confidence, self.judge)
        judged = rerank == "judge" or min_confidence is not None
        if same or different:
            return self._alike(question, image, same, different, k, where, min_score)
        if not isinstance(question, Query):
            query = self.prepare(question, image=image, keywords=keywords, history=history)
        elif image is None and not history:
            query = question
        else:
            raise InputError("a prepared query has its own picture; pass image to prepare() instead, and history too")
        if min_confidence is not None and query.complete is None:
            raise InputError("min_confidence needs a question to judge by; ask something")
        rewrite = query.rewrite
        vector = query.vector if query.vector is not None else self._embedded(query)
        # A second look that is asked for by name, but that the model cannot take, is noted at each hit.
        look = rewrite is not None and (
            rerank is True
            or (
                rerank in ("auto", "judge")
                and self.rewriter.looks
                and rewrite.names_aspect
                and (query.image is None or rewrite.wants == "image")
                and InstructedImage in self.embedder.accepts
            )
        )
        wanted = max(k, self.candidates if look or mmr is not None else k, self.judged if judged else k)
        words = query.keywords if keywords == "auto" else self._words(query.question, keywords)
        if words is not None and keywords == "auto":
            words = demanding(self.store, words, where)
        hits = self._candidates(query, vector, wanted, where, modality, words, trace)
        instruction = query.instruction
        if look and rewrite is not None and any(hit.record.modality == "image" for hit in hits):
            instruction = rewrite.instruction
            find = partial(self._found, k=wanted, where=where, modality="image", words=None, trace=False)
            hits += mapped_hits(self, hits, instruction, vector, find, facet_map, trace=trace)
            hits = look_again(self, hits, instruction, vector)
        notes: tuple[str, ...] = () if hits else ("nothing was found: the store has nothing that the search may find",)
        if min_score is not None and hits:
            best, hits = hits[0].score, [hit for hit in hits if hit.score >= min_score]
            if not hits:
                notes = (f"nothing here matches: the best score is {best:.3f}, below min_score={min_score:g}",)
        confidence = None
        if judged and hits and query.complete is not None and self.judge is not None:
            most = max(k, self.judged)
            first = judged_hits(self.judge, query.complete, hits[:most], self.pictures, image=query.image)
            confidence = first[0].confidence
            if rerank != "judge":
                order = {hit.id: place for place, hit in enumerate(hits)}
                first.sort(key=lambda hit: order[hit.id])
            hits = [*first, *hits[most:]]
            if min_confidence is not None:
                hits, notes = confident(hits, min_confidence, confidence, len(first))
        hits = hits[:k] if mmr is None else diverse(hits, self.store.vectors(hit.record.id for hit in hits), k, mmr)
        return Answer(query.question, instruction, hits, rewrite, confidence, notes)

    asearch = async_twin(search)

    def _alike(
        self,
        question: str | Query | None,
        image: ImageSource | None,
        same: Sequence[str],
        different: Sequence[str],
        k: int,
        where: Mapping[str, Any] | None,
        min_score: float | None,
    ) -> Answer:
        checked_respects(same, different)
        query = question if isinstance(question, Query) else None
        if query is None and question is None and image is not None:
            query, image = self.prepare(image=image), None
        if query is None or query.image is None or query.question is not None or image is not None:
            raise InputError("same and different compare with a picture: pass image=..., and no question")
        vector = query.vector if query.vector is not None else self._embedded(query)
        found = self._found(vector, max(k, self.candidates), where, "image", None, False)
        # To an adapter's filter, a caption may be part of its picture; it cannot be looked at.
        hits = [hit for hit in found if hit.modality == "image"]
        hits = alike(self, hits, query.image, same, different) if hits else hits
        return Answer(None, None, [hit for hit in hits if min_score is None or hit.score >= min_score][:k])

    def neighbours(self, part: Hit | Record, *, before: int = 1, after: int = 1) -> Neighbours:
        """What stands around a hit of a document: passages before and after it, figures of its page, and that page.

        Args:
            part: A hit, or a record of the store.
            before: Maximum number of passages before it.
            after: Maximum number of passages after it.

        Returns:
            All in reading order; nothing for what is of no document.

        Raises:
            InputError: ``part`` is neither a hit nor a record, or a number is negative.
            StoreError: The store cannot be read.
        """
        return neighbours_of(self.store, part, before=before, after=after)

    aneighbours = async_twin(neighbours)

    def explain(
        self,
        hit: Hit,
        question: str | Query | None = None,
        *,
        image: ImageSource | None = None,
        answer: str | None = None,
        passes: int = PASSES,
    ) -> Evidence:
        """Find out where in a picture that was found the answer lies; see `abc_rag.search.evidence`.

        Args:
            hit: A picture that was found.
            question: As for `search`.
            image: As for `search`.
            answer: What the picture is compared with, such as ``"a pig"``. If not given: what the question searches
                for, as in a second look.
            passes: Most passes of the language model.

        Raises:
            InputError: As `prepare`; the hit is a passage, ``passes`` is below 4, or the model cannot leave out parts
                of pictures, and the message names those that can.
            ImageError: The picture, or ``image``, cannot be opened.
        """
        if hit.record.modality != "image":
            raise InputError(f"{hit.id} is a passage, which has no places to show; explain a picture")
        query = question if isinstance(question, Query) else self.prepare(question, image=image, keywords=False)
        content = self.pictures.read(hit.record)
        if answer is not None:
            vector = self.embedder.embed_texts([answer])[0]
        else:
            vector = query.vector if query.vector is not None else self._embedded(query)
        instruction = None if query.rewrite is None else query.rewrite.instruction
        limits = self.pictures.limits
        return explain_picture(self.embedder, content, vector, instruction, passes=passes, limits=limits)

    aexplain = async_twin(explain)

    def _embedded(self, query: Query) -> Vectors:
        rows = self.embedder.embed(query.inputs)
        return rows[0] if len(rows) == 1 else unit(rows.mean(axis=0), rows.shape[1])

    def _candidates(
        self,
        query: Query,
        vector: Vectors,
        k: int,
        where: Mapping[str, Any] | None,
        modality: Modality | None,
        words: Keywords | None,
        trace: bool,
    ) -> list[Hit]:
        wants = query.wants
        if modality is None and wants != "any" and (hits := self._found(vector, k, where, wants, words, trace)):
            return hits
        return self._found(vector, k, where, modality, words, trace)

    def _found(
        self,
        vector: Vectors,
        k: int,
        where: Mapping[str, Any] | None,
        modality: Modality | None,
        words: Keywords | None,
        trace: bool,
    ) -> list[Hit]:
        """What vectors and keywords find: at least ``k`` hits where there are as many."""
        if modality is not None and self._kinds is not None:
            kind = self._kinds[modality]
            where, modality = {"$and": [where, kind]} if where else kind, None
        if words is None:
            hits = self.store.search(vector, k, where, modality=modality)
            return [replace(hit, trace=Trace(None, hit.score, facet=hit.facet)) for hit in hits] if trace else hits
        return hybrid(
            self.store,
            vector,
            words,
            k,
            where,
            modality=modality,
            candidates=self.candidates,
            weight=self.keyword_weight,
            trace=trace,
        )
