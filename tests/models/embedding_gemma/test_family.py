"""EmbeddingGemma 2 behind the engine: the vectors of sentence-transformers' ``encode``, in any batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encode_figures import FIGURES, GEMMA, GEMMA_TOKENS, GREY, IMAGES, LONG, SCENE, SHAPES, WIDE, weights_of
from gemma_helpers import make_gemma
from st_helpers import largest, unit

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
from abc_rag.search.rewriting.rewriter import AsAsked
from abc_rag.types import Vectors

TOLERANCE = 1e-5
CASES: dict[str, Input] = {
    "text": Text("a red cube"),
    "query": Text("a red cube", role="query"),
    "empty": Text(""),
    "long": Text(LONG),
    "STS": Text("a red cube", role="STS"),
    "instructed text": InstructedText("a red cube", " find the thing. "),
    "scene": Image(IMAGES / SCENE),
    "shapes": Image(IMAGES / SHAPES),
    "wide": Image(IMAGES / WIDE),
    "grey query": Image(IMAGES / GREY, role="query"),
    "instructed scene": InstructedImage(IMAGES / SCENE, "what is left?"),
    "question about scene": InstructedImage(IMAGES / SCENE, "what is left?", role="query"),
    "picture, words": Interleaved([Image(IMAGES / SHAPES), Text("red and round")]),
    "words, picture": Interleaved([Text("red and round"), Image(IMAGES / SHAPES)]),
    "interleaved": Interleaved([Text("from "), Image(IMAGES / SHAPES), Text(" to "), Image(IMAGES / GREY)]),
}
INPUTS = list(CASES.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return load(folder)


@pytest.fixture(scope="module")
def figures(folder: Path) -> Vectors:
    found = json.loads(FIGURES.read_text())["embeddinggemma"]
    assert weights_of(folder) == found["weights"], "the figures are of other weights: run tests/encode_figures.py"
    assert list(found["vectors"]) == list(GEMMA) == list(CASES)
    return np.array(list(found["vectors"].values()), dtype=np.float32)


def load(folder: Path, **options: Any) -> Embedder:
    return load_embedder(folder, device="cpu", **{"max_tokens": GEMMA_TOKENS, **options})


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_vectors_are_those_of_encode(batch_size: Any, embedder: Any, figures: Vectors) -> None:
    embedder.forget()
    order = np.random.default_rng(0).permutation(len(INPUTS))
    found = embedder.embed([INPUTS[i] for i in order], batch_size=batch_size)
    assert largest(found, figures[order]) < TOLERANCE
    distances = np.abs(figures[:, None] - figures[None]).max(-1) + np.eye(len(figures))
    assert distances.min() > 1000 * TOLERANCE  # no two inputs are alike, so none was taken for another


def test_eager_attention_and_half_precision(folder: Path, figures: Vectors) -> None:
    assert largest(load(folder, attention="eager").embed(INPUTS), figures) < TOLERANCE
    half = load(folder, dtype="bfloat16").embed(INPUTS)
    assert (half * figures).sum(axis=1).min() > 0.99
    with pytest.raises(InputError, match="exceeds float16's range"):
        _ = load(folder, dtype="float16").dim
    with pytest.raises(InputError, match="no heads as wide"):
        _ = load(folder, attention="flash_attention_2").dim


def test_a_picture_is_seen_once_for_all_its_instructions(embedder: Any, figures: Vectors) -> None:
    family = embedder.family
    (opened,) = family.opened(CASES["scene"])
    (features,) = family.see([opened.opened])
    known = [Picture("", opened.tokens, features=features)]  # as a cache hands it on
    for name in ("scene", "instructed scene", "question about scene"):
        row = family.forward([family.prepare(CASES[name], known)])
        assert largest(row[0], figures[list(CASES).index(name)]) < TOLERANCE


def test_pictures_are_opened_in_other_processes_too(folder: Path, figures: Vectors) -> None:
    embedder: Any = load(folder, engine=EngineSettings(workers=2, worker_kind="process"))
    assert largest(embedder.embed(INPUTS), figures) < TOLERANCE
    assert embedder.worker_pids
    embedder.close()


def test_image_tokens_are_those_that_the_model_was_trained_with(folder: Path, embedder: Any) -> None:
    assert str(embedder.fingerprint).endswith("(1..70 image tokens)")
    own = load(folder, max_tokens=None)
    assert own.fingerprint.max_tokens == 280
    larger = embedder.family.at(min_tokens=140, max_tokens=140)
    assert 70 < larger.picture_tokens(larger.facts.open(IMAGES / SCENE)) <= 140
    again = load(folder, max_tokens=140).embed([CASES["scene"]])
    assert largest(larger.forward([larger.prepare(CASES["scene"])]), again) < TOLERANCE
    for options, said in (
        ({"max_tokens": 100}, "take one of 70, 140, 280, 560, 1120"),
        ({"min_tokens": 4}, "min_tokens=4 is not available"),
        ({"resolution": "high"}, "resolution='high' is not available"),
    ):
        with pytest.raises(InputError, match=said):
            _ = load(folder, **options).dim


def test_dims_and_instructions_of_ones_own(folder: Path, embedder: Embedder, figures: Vectors) -> None:
    assert load(folder).facts.cuts  # a server may cut its vectors
    short = load(folder, dims=10)
    assert short.dim == 10
    assert largest(short.embed(INPUTS), unit(figures[:, :10])) < TOLERANCE
    plain = embedder.fingerprint.revision
    assert short.fingerprint.revision == f"{plain}+dims=10"
    assert local_revision(folder, dims=10) == f"{plain}+dims=10"
    with pytest.raises(InputError, match="dims=41 is more than the 40 numbers"):
        _ = load(folder, dims=41).dim
    told = load(folder, query_instruction="find the thing", document_instruction="what is left?")
    found = told.embed([Text("a red cube", role="query"), CASES["scene"]])
    assert largest(found, figures[[list(CASES).index("instructed text"), list(CASES).index("instructed scene")]]) < (
        TOLERANCE
    )
    assert told.fingerprint.revision.startswith(f"{plain}+query=")


def test_what_it_does_not_accept_costs_only_itself(embedder: Embedder, figures: Vectors) -> None:
    bad: list[Input] = [Text("letters" * 1200), Text("half \ud800"), Text("x", role="poem")]
    for item, said in zip(bad, ("longer than the model's 8192", "half a character", "role 'poem'"), strict=True):
        good, wrong, other = embedder.embed_iter([INPUTS[0], item, INPUTS[1]], return_errors=True)
        assert said in str(wrong)
        assert largest(np.stack([good, other]), figures[:2]) < TOLERANCE


def test_a_special_token_in_a_text_is_text(embedder: Embedder) -> None:
    typed, spaced = embedder.embed([Text("a <|image|> b"), Text("a < |image|> b")])
    assert np.isfinite(typed).all()
    assert largest(typed, spaced) > TOLERANCE


def test_weights_in_eight_bits(folder: Path, figures: Vectors) -> None:
    pytest.importorskip("bitsandbytes")
    embedder = load(folder, weights="int8")
    assert embedder.fingerprint.revision.endswith("+int8")
    assert (embedder.embed(INPUTS) * figures).sum(axis=1).min() > 0.95


def test_a_retriever_asks_as_a_query(embedder: Embedder, tmp_path: Path) -> None:
    with ChromaStore(tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        index_images([IMAGES / SCENE, IMAGES / SHAPES], embedder, store)
        retriever = Retriever(embedder, store, rewriter=AsAsked())
        for asked, item in (
            ({"question": "a red cube"}, CASES["query"]),
            ({"question": "what is left?", "image": IMAGES / SCENE}, CASES["question about scene"]),
        ):
            answer = retriever.search(**asked, k=2, rerank=False)  # type: ignore[arg-type]
            cosine = embedder.embed([item])[0] @ embedder.embed([Image(answer.hits[0].source)])[0]
            assert answer.hits[0].score == pytest.approx((1 + cosine) / 2, abs=1e-4)


def test_names(folder: Path) -> None:
    assert local_revision(f"embeddinggemma:{folder}") == local_revision(folder)
    assert local_revision("google/embeddinggemma-2") is None
    for name in ("", "nothing", "a/b/c", "/nowhere"):
        with pytest.raises(InputError, match="neither a folder nor a hub id"):
            load_embedder(f"embeddinggemma:{name}")
    with pytest.raises(CheckpointError):  # there is no network
        _ = load_embedder("embeddinggemma:abc-rag-tests/not-there", device="cpu").dim
