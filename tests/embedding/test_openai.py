"""Embeddings by OpenAI's protocol, asked of our own server, which speaks it too."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from helpers import FIXTURE
from server_helpers import Running, png

from abc_rag import Embedder, Image, InstructedImage, Text, load_embedder
from abc_rag.embedding.openai import OpenAIEmbedder
from abc_rag.errors import ABCRagError, ImageError, InputError
from abc_rag.types import Fingerprint

SHAPES = FIXTURE / "images" / "shapes_56x56.png"


@pytest.fixture
def served(running: Running) -> Iterator[Embedder]:
    embedder = load_embedder(f"openai:{running.url}/v1#abc-mini")
    assert isinstance(embedder, OpenAIEmbedder)
    yield embedder
    embedder.close()


def test_vectors_are_those_of_the_model(served: Embedder, local: Embedder) -> None:
    inputs = [Text("a"), Text("b"), Image(SHAPES), InstructedImage(png("blue"), "what is left?"), Text("c")]
    np.testing.assert_allclose(served.embed(inputs), local.embed(inputs), atol=1e-6)
    assert served.dim == 192
    assert served.fingerprint == Fingerprint("abc-mini", "openai", 0, 0)
    again = pickle.loads(pickle.dumps(served))
    np.testing.assert_allclose(again.embed(inputs[:1]), local.embed(inputs[:1]), atol=1e-6)


def test_one_bad_input_costs_itself(served: Embedder) -> None:
    found = list(served.embed_iter([Text("a"), Text("c"), Image("gone.png"), Text("b")], return_errors=True))
    assert [isinstance(one, ABCRagError) for one in found] == [False, False, True, False]
    with pytest.raises(ImageError, match=r"gone\.png"):
        served.embed([Text("a"), Image("gone.png")])


def test_another_name_is_refused(running: Running) -> None:
    with pytest.raises(InputError, match="nonsense"):
        load_embedder(f"openai:{running.url}/v1#nonsense").embed([Text("a")])
    with pytest.raises(InputError, match="has no name"):
        load_embedder(f"openai:{running.url}/v1")
    with pytest.raises(InputError, match="refuses it"):
        load_embedder(f"openai:{running.url}#abc-mini").embed([Text("a")])
