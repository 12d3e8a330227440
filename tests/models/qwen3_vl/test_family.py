"""Qwen3-VL-Embedding behind the engine: the vectors of its authors' steps, for every kind of input, in any batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encode_figures import FIGURES, QWEN_TOKENS, weights_of
from helpers import FIXTURE
from qwen3_vl_helpers import expected, load_reference, make_qwen3_vl
from st_helpers import largest, picture, unit

from abc_rag import (
    ChromaStore,
    EngineSettings,
    Image,
    Input,
    InstructedImage,
    InstructedText,
    Interleaved,
    Retriever,
    Text,
    load_embedder,
)
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.load import local_revision
from abc_rag.errors import CheckpointError, InputError
from abc_rag.ingest.pictures import index_images
from abc_rag.models.family import Picture
from abc_rag.models.qwen3_vl.network import grid_of
from abc_rag.search.rewriting.rewriter import AsAsked
from abc_rag.types import Vectors

IMAGES = FIXTURE / "images"
SCENE, SHAPES, GREY = IMAGES / "scene_640x480.png", IMAGES / "shapes_56x56.png", IMAGES / "gray_300x200.png"
TOLERANCE = 1e-5
DOCUMENT, QUERY = "Represent the user's input.", "Retrieve images or text relevant to the user's query."
MOST = 20  # image tokens, so that pictures stay small
# An input; the instruction and the content that the authors' code is given for it.
CASES: list[tuple[Input, str, list[Any]]] = [
    (Text("a red cube"), DOCUMENT, ["a red cube"]),
    (Text("a red cube", role="query"), QUERY, ["a red cube"]),
    (Text(""), DOCUMENT, [""]),
    (Text("\n many words of no meaning at all"), DOCUMENT, ["\n many words of no meaning at all"]),
    (InstructedText("a red cube", "  Find the thing "), "Find the thing", ["a red cube"]),
    (Image(SCENE), DOCUMENT, [SCENE]),
    (Image(SHAPES), DOCUMENT, [SHAPES]),
    (Image(GREY, role="query"), QUERY, [GREY]),
    (InstructedImage(SCENE, "What is left?"), "What is left?", [SCENE]),
    (InstructedImage(SCENE, "the cube"), "the cube.", [SCENE]),
    (InstructedImage(SCENE, "What is left?", role="query"), QUERY, [SCENE, "What is left?"]),
    (Interleaved([Text("from"), Image(SHAPES), Text(" to "), Image(GREY)]), DOCUMENT, ["from", SHAPES, " to ", GREY]),
    (Interleaved([Image(SHAPES), Image(SCENE)], role="query"), QUERY, [SHAPES, SCENE]),
]
INPUTS = [item for item, _, _ in CASES]


# The same as sentence-transformers' ``encode`` is given in ``encode_figures``.
ENCODED: dict[str, Input] = {
    "text": INPUTS[0],
    "query": INPUTS[1],
    "instructed text": INPUTS[4],
    "scene": INPUTS[5],
    "shapes": INPUTS[6],
    "grey query": INPUTS[7],
    "instructed scene": INPUTS[8],
    "question about scene": INPUTS[10],
    "words, picture": Interleaved([Text("red and round"), Image(SHAPES)]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3_vl(tmp_path_factory.mktemp("qwen3_vl"))


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return load(folder)


@pytest.fixture(scope="module")
def figures(folder: Path) -> Vectors:
    model = load_reference(folder)
    contents = [[one if isinstance(one, str) else picture(one) for one in content] for _, _, content in CASES]
    return np.stack(
        [expected(model, said, content, most=MOST) for (_, said, _), content in zip(CASES, contents, strict=True)]
    )


def load(folder: Path, **options: Any) -> Embedder:
    return load_embedder(f"qwen3-vl:{folder}", device="cpu", **{"max_tokens": MOST, **options})


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_vectors_are_those_of_the_authors_steps(batch_size: Any, embedder: Any, figures: Vectors) -> None:
    embedder.forget()
    order = np.random.default_rng(0).permutation(len(INPUTS))
    found = embedder.embed([INPUTS[i] for i in order], batch_size=batch_size)
    assert largest(found, figures[order]) < TOLERANCE
    distances = np.abs(figures[:, None] - figures[None]).max(-1) + np.eye(len(figures))
    assert distances.min() > 1000 * TOLERANCE  # no two inputs are alike, so none was taken for another


def test_vectors_are_those_of_encode(folder: Path, embedder: Any) -> None:
    assert QWEN_TOKENS == MOST
    found = json.loads(FIGURES.read_text())["qwen3-vl"]
    assert weights_of(folder) == found["weights"], "the figures are of other weights: run tests/encode_figures.py"
    assert found["vectors"].keys() == ENCODED.keys()
    assert largest(embedder.embed(list(ENCODED.values())), list(found["vectors"].values())) < TOLERANCE


def test_eager_attention_and_half_precision(folder: Path, figures: Vectors) -> None:
    assert largest(load(folder, attention="eager").embed(INPUTS), figures) < TOLERANCE
    half = load(folder, dtype="bfloat16").embed(INPUTS)
    assert (half * figures).sum(axis=1).min() > 0.99


def test_a_picture_is_seen_once_for_all_its_instructions(folder: Path, embedder: Any, figures: Vectors) -> None:
    family = embedder.family
    (opened,) = family.opened(Image(SCENE))
    (features,) = family.see([opened.opened])
    assert grid_of([features]) == [(3, 5)]
    known = [Picture("", opened.tokens, features=features)]  # as a cache hands it on
    for number in (5, 8, 9, 10):
        row = family.forward([family.prepare(INPUTS[number], known)])
        assert largest(row[0], figures[number]) < TOLERANCE


def test_pictures_are_opened_in_other_processes_too(folder: Path, figures: Vectors) -> None:
    embedder: Any = load(folder, engine=EngineSettings(workers=2, worker_kind="process"))
    assert largest(embedder.embed(INPUTS), figures) < TOLERANCE
    assert embedder.worker_pids
    embedder.close()


def test_another_resolution_is_the_same_network(embedder: Any, folder: Path) -> None:
    small = embedder.family.at(min_tokens=1, max_tokens=4)
    model = load_reference(folder)
    row = small.forward([small.prepare(Image(SCENE))])
    assert largest(row[0], expected(model, DOCUMENT, [picture(SCENE)], most=4)) < TOLERANCE
    assert str(small.facts.fingerprint).endswith("(1..4 image tokens)")
    limits = load_embedder(f"qwen3-vl:{folder}", device="cpu").fingerprint
    assert (limits.min_tokens, limits.max_tokens) == (4, 1800)


def test_dims_and_instructions_of_ones_own(folder: Path, embedder: Embedder, figures: Vectors) -> None:
    short = load(folder, dims=10)
    assert short.dim == 10
    assert largest(short.embed(INPUTS), unit(figures[:, :10])) < TOLERANCE
    plain = embedder.fingerprint.revision
    assert short.fingerprint.revision == f"{plain}+dims=10"
    assert local_revision(f"qwen3-vl:{folder}", dims=10) == f"{plain}+dims=10"
    with pytest.raises(InputError, match="dims=33 is more than the 32 numbers"):
        _ = load(folder, dims=33).dim
    told = load(folder, query_instruction="Find the thing", document_instruction="the cube")
    assert largest(told.embed([Text("a red cube", role="query"), Image(SCENE)]), figures[[4, 9]]) < TOLERANCE
    assert told.fingerprint.revision.startswith(f"{plain}+query=")
    with pytest.raises(InputError, match="resolution='high' is not available for family 'qwen3-vl'"):
        _ = load(folder, resolution="high").dim


def test_what_it_does_not_accept_costs_only_itself(embedder: Embedder, figures: Vectors) -> None:
    bad: list[Input] = [Text("letters" * 1200), Text("half \ud800"), Text("x", role="STS")]
    for item, said in zip(bad, ("longer than the model's 8192", "half a character", "role 'STS'"), strict=True):
        good, wrong, other = embedder.embed_iter([INPUTS[0], item, INPUTS[1]], return_errors=True)
        assert said in str(wrong)
        assert largest(np.stack([good, other]), figures[:2]) < TOLERANCE


def test_weights_in_eight_bits(folder: Path, figures: Vectors) -> None:
    pytest.importorskip("bitsandbytes")
    embedder = load(folder, weights="int8")
    assert embedder.fingerprint.revision.endswith("+int8")
    assert (embedder.embed(INPUTS) * figures).sum(axis=1).min() > 0.95


def test_a_retriever_asks_as_a_query(embedder: Embedder, tmp_path: Path) -> None:
    with ChromaStore(tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        index_images([SCENE, SHAPES, GREY], embedder, store)
        retriever = Retriever(embedder, store, rewriter=AsAsked())
        for asked, item in (
            ({"question": "a red cube"}, INPUTS[1]),
            ({"image": GREY}, INPUTS[7]),
            ({"question": "What is left?", "image": SCENE}, INPUTS[10]),
        ):
            answer = retriever.search(**asked, k=3, rerank=False)  # type: ignore[arg-type]
            cosine = embedder.embed([item])[0] @ embedder.embed([Image(answer.hits[0].source)])[0]
            assert answer.hits[0].score == pytest.approx((1 + cosine) / 2, abs=1e-4)


def test_names(folder: Path) -> None:
    for name in ("", "nothing", "a/b/c", "/nowhere"):
        with pytest.raises(InputError, match="neither a folder nor a hub id"):
            load_embedder(f"qwen3-vl:{name}")
    with pytest.raises(CheckpointError):  # there is no network
        _ = load_embedder("qwen3-vl:abc-rag-tests/not-there", device="cpu").dim
    assert local_revision("Qwen/Qwen3-VL-Embedding-2B") is None
    assert torch.float32 == load(folder).family.facts.dtype  # type: ignore[attr-defined]
