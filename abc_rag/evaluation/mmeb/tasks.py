"""The data sets of MMEB, the prompts that make inputs of its texts, and published scores.

Names and figures are those of "VLM2Vec: Training Vision-Language Models for Massive Multimodal Embedding Tasks"
(arXiv 2410.05160) and of the data set ``TIGER-Lab/MMEB-eval`` on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from abc_rag.errors import InputError
from abc_rag.training.data.mmeb import PLACEHOLDER, to_the_letter
from abc_rag.types import Image, Input, InstructedImage, Text

__all__ = [
    "DATASETS",
    "GROUPS",
    "META_TASKS",
    "PROMPTS",
    "PUBLISHED",
    "PromptName",
    "Prompts",
    "Published",
    "chosen_datasets",
    "meta_task",
    "plain",
]

META_TASKS: Mapping[str, Sequence[str]] = {
    "classification": (
        "ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397", "Place365", "ImageNet-A", "ImageNet-R",
        "ObjectNet", "Country211",
    ),
    "vqa": (
        "OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W", "ScienceQA", "VizWiz", "GQA",
        "TextVQA",
    ),
    "retrieval": (
        "VisDial", "CIRR", "VisualNews_t2i", "VisualNews_i2t", "MSCOCO_t2i", "MSCOCO_i2t", "NIGHTS", "WebQA",
        "FashionIQ", "Wiki-SS-NQ", "OVEN", "EDIS",
    ),
    "grounding": ("MSCOCO", "RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing"),
}  # fmt: skip
"""Meta-task -> its data sets, named as the folders on the hub (arXiv 2410.05160, Table 1)."""

DATASETS: Sequence[str] = tuple(name for names in META_TASKS.values() for name in names)
"""All 36 data sets."""

_OUT_OF_DISTRIBUTION = (
    "Place365", "ImageNet-A", "ImageNet-R", "ObjectNet", "Country211", "ScienceQA", "VizWiz", "GQA", "TextVQA",
    "FashionIQ", "Wiki-SS-NQ", "OVEN", "EDIS", "RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing",
)  # fmt: skip

GROUPS: Mapping[str, Sequence[str]] = {
    **META_TASKS,
    "ind": tuple(name for name in DATASETS if name not in _OUT_OF_DISTRIBUTION),
    "ood": _OUT_OF_DISTRIBUTION,
    "overall": DATASETS,
}
"""Groups of data sets that means are taken over. IND are the 20 data sets of MMEB-train, OOD the 16 others (Table 1):
models trained on MMEB-train have seen the former. ABC was trained on neither."""


@dataclass(frozen=True)
class Published:
    """Published scores of a model, in percent; None where the source has none.

    Attributes:
        model: Name in the source.
        source: The source.
        scores: Classification, VQA, retrieval, grounding, IND, OOD, overall: the order of `GROUPS`.
        note: Remark for comparisons.
    """

    model: str
    source: str
    scores: tuple[float | None, float | None, float | None, float | None, float | None, float | None, float | None]
    note: str = ""


_VLM2VEC = "arXiv 2410.05160, Table 2"
_LEADERBOARD = "the authors' leaderboard, TIGER-Lab/MMEB-Leaderboard"

PUBLISHED: Sequence[Published] = (
    Published("CLIP", _VLM2VEC, (42.8, 9.1, 53.0, 51.8, 37.1, 38.7, 37.8)),
    Published("BLIP2", _VLM2VEC, (27.0, 4.2, 33.9, 47.0, 25.3, 25.1, 25.2)),
    Published(
        "SigLIP",
        _VLM2VEC,
        (40.3, 8.4, 31.6, 59.5, 32.3, 38.0, 34.8),
        "retrieval as printed; the source's overall mean and its Table 6 both make it 44.1",
    ),
    Published("OpenCLIP", _VLM2VEC, (47.8, 10.9, 52.3, 53.3, 39.3, 40.2, 39.7)),
    Published("UniIR (BLIP_FF)", _VLM2VEC, (42.1, 15.0, 60.1, 62.2, 44.7, 40.4, 42.8)),
    Published("UniIR (CLIP_SF)", _VLM2VEC, (44.3, 16.2, 61.8, 65.3, 47.1, 41.7, 44.7)),
    Published("E5-V", _VLM2VEC, (21.8, 4.9, 11.5, 19.0, 14.9, 11.5, 13.3)),
    Published("MagicLens", _VLM2VEC, (38.8, 8.3, 35.4, 26.0, 31.0, 23.7, 27.8)),
    Published("CLIP, trained on MMEB", _VLM2VEC, (55.2, 19.7, 53.2, 62.2, 47.6, 42.8, 45.4)),
    Published("OpenCLIP, trained on MMEB", _VLM2VEC, (56.0, 21.9, 55.4, 64.1, 50.5, 43.1, 47.2)),
    Published("VLM2Vec (Phi-3.5-V, LoRA)", _VLM2VEC, (54.8, 54.9, 62.3, 79.5, 66.5, 52.0, 60.1)),
    Published("VLM2Vec (LLaVA-1.6, LoRA, 1344 px)", _VLM2VEC, (61.2, 49.9, 67.4, 86.1, 67.5, 57.1, 62.9)),
    Published("VLM2Vec (Phi-3.5-V, full)", _LEADERBOARD, (52.8, 50.3, 57.8, 72.3, 62.8, 47.4, 55.9)),
    Published("VLM2Vec (Qwen2-VL-7B, LoRA)", _LEADERBOARD, (62.6, 57.8, 69.9, 81.7, None, None, 65.8)),
    Published(
        "ABC (Qwen2-VL-7B)",
        "arXiv 2503.00329",
        (60.0, 31.0, None, None, None, None, None),
        "classification over 9 data sets (without N24News), with the prompts 'abc'",
    ),
)
"""Published figures. Those of Table 2 agree with the authors' leaderboard (results.csv of the hub space
``TIGER-Lab/MMEB``)."""


def meta_task(dataset: str) -> str:
    """The meta-task that a data set belongs to."""
    return next(task for task, names in META_TASKS.items() if dataset in names)


def chosen_datasets(names: Sequence[str]) -> list[str]:
    """Resolve names of data sets and of groups to data sets, in MMEB's order.

    Raises:
        InputError: A name is unknown.
    """
    chosen: set[str] = set()
    for name in names:
        if name in DATASETS:
            chosen.add(name)
        elif name.lower() in GROUPS:
            chosen.update(GROUPS[name.lower()])
        else:
            raise InputError(
                f"MMEB has no data set {name!r}; choose among {', '.join(GROUPS)} or {', '.join(DATASETS)}"
            )
    return [name for name in DATASETS if name in chosen]


PromptName = Literal["mmeb", "abc", "vlm2vec"]


class Prompts(Protocol):
    """Makes an input of a text of MMEB and its picture; a model family may bring its own prompts.

    Texts are as in the files, placeholder included. ``image`` is None if there is no picture.
    """

    name: str

    def query(self, dataset: str, text: str, image: Path | None) -> Input:
        """The input for a query."""
        ...

    def candidate(self, dataset: str, text: str, image: Path | None) -> Input:
        """The input for a candidate."""
        ...


def plain(text: str) -> str:
    """A text without placeholder and surrounding white space."""
    return text.replace(PLACEHOLDER, "").strip()


_ONLY_REPRESENT = (
    "represent the given image",
    "represent the given document screenshot",
    "represent the given cropped image of the object",
)


def _as_given(dataset: str, text: str, image: Path | None) -> Input:
    words = plain(text)
    if image is None:
        return Text(words)
    return InstructedImage(image, words) if words else Image(image)


def _abc_query(dataset: str, text: str, image: Path | None) -> Input:
    task = meta_task(dataset)
    # N24News is not among the authors' nine data sets; its labels depend on the caption in the query.
    if image is not None and task == "classification" and dataset != "N24News":
        return Image(image)
    if image is not None and task == "vqa":
        # The authors' scripts keep the rest of the text, including a final line break.
        return InstructedImage(image, text.removeprefix(PLACEHOLDER + "\n"))
    return _as_given(dataset, text, image)


def _abc_candidate(dataset: str, text: str, image: Path | None) -> Input:
    task = meta_task(dataset)
    if image is None and task == "classification":
        return Text(f"A photo of {text}.")
    if image is None and task == "vqa":
        return Text(f"The answer is {text}.")
    if image is not None and plain(text).rstrip(".").lower() in _ONLY_REPRESENT:
        return Image(image)
    return _as_given(dataset, text, image)


def _to_the_letter(dataset: str, text: str, image: Path | None) -> Input:
    return to_the_letter(text, image)


@dataclass
class _Prompts:
    name: str
    query: Callable[..., Input]
    candidate: Callable[..., Input]


PROMPTS: Mapping[str, Prompts] = {
    "mmeb": _Prompts("mmeb", _as_given, _as_given),
    "abc": _Prompts("abc", _abc_query, _abc_candidate),
    "vlm2vec": _Prompts("vlm2vec", _to_the_letter, _to_the_letter),
}
"""Prompts by name.

``"mmeb"``: MMEB's own words, task instruction included. A picture alone is an `Image`, a text alone a `Text`, a picture
with a text an `InstructedImage`, even if that text is only ``"Represent the given image."``.

``"abc"``: the prompts of ABC's authors (MMEB scripts of github.com/TIGER-AI-Lab/ABC), and similar ones for other tasks.
Classification: the picture alone, against ``"A photo of LABEL."``. VQA: the picture with the text behind its
placeholder, against ``"The answer is ANSWER."``. Retrieval and grounding, which the authors did not measure: queries as
in ``"mmeb"``; a candidate picture whose text only asks to represent it is a picture alone, as in ABC's training.

``"vlm2vec"``: MMEB's texts verbatim, line breaks included, with the picture in the place of its placeholder, as VLM2Vec
was trained and measured. For models that accept `Interleaved`.
"""
