"""ABCSynthesizer: a query engine asks what a retriever of abc-rag's own asks, word for word."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import PIL.Image
import pytest
from chat_helpers import seen
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode
from llama_index.llms.abc import ABCLLM, ABCSynthesizer

from abc_rag.answering.fake import FakeGenerator
from abc_rag.errors import ImageError, InputError
from abc_rag.models.tasks import REFUSAL, Source, TaskFacts, answering


class Found(BaseRetriever):
    """Always finds the same."""

    def __init__(self, nodes: list[TextNode]) -> None:
        super().__init__()
        self._nodes = nodes

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=node, score=1.0) for node in self._nodes]


def test_a_query_engine_asks_what_a_retriever_asks(tmp_path: Path) -> None:
    files = [tmp_path / f"{colour}.png" for colour in ("red", "blue", "green")]
    for file in files:
        PIL.Image.new("RGB", (40, 30), file.stem).save(file)
    red, blue, green = files
    nodes = [
        ImageNode(image_path=str(red), metadata={"year": 2024}),
        TextNode(text="Pigs eat apples.", metadata={"year": 2024}),
        ImageNode(image=base64.b64encode(blue.read_bytes()).decode(), text="a blue square"),
    ]
    expected = answering(
        "what do pigs eat?", [Source(red), Source(text="Pigs eat apples."), Source(blue, "a blue square")], image=green
    )
    fake = FakeGenerator()
    llm = ABCLLM(generator=fake, context_window=2_048)
    question = QueryBundle("what do pigs eat?", image_path=str(green))
    engine = RetrieverQueryEngine(Found(nodes), ABCSynthesizer(llm))
    response = engine.query(question)
    assert str(response) == str(asyncio.run(engine.aquery(question))) == "Pigs eat apples [2]."
    assert len(response.source_nodes) == 3
    streamed = RetrieverQueryEngine(Found(nodes), ABCSynthesizer(llm, streaming=True)).query(question)
    assert str(streamed) == "Pigs eat apples [2]."
    assert len(fake.asked) == 3
    assert all(seen(asked) == seen(expected) for asked in fake.asked)
    assert str(RetrieverQueryEngine(Found([]), ABCSynthesizer(llm)).query(question)) == REFUSAL
    assert ABCSynthesizer(llm).get_response("what do pigs eat?", ["Pigs eat apples.", " "]) == "Pigs eat apples [1]."


def test_a_picture_that_cannot_be_opened_costs_itself_only(tmp_path: Path) -> None:
    fake = FakeGenerator()
    nodes = [ImageNode(image_path=str(tmp_path / "gone.png"), text="a rose"), TextNode(text="Pigs eat apples.")]
    engine = RetrieverQueryEngine(Found(nodes), ABCSynthesizer(ABCLLM(generator=fake, context_window=2_048)))
    assert str(engine.query("what do pigs eat?")) == "Pigs eat apples [2]."
    (asked,) = fake.asked
    assert any("a rose (This picture cannot be shown: " in part.text for part in asked[-1].parts)  # type: ignore[union-attr]


def test_a_model_that_answers_from_one_source_reads_the_first() -> None:
    fake = FakeGenerator(tasks=TaskFacts(sources=1))
    synthesizer = ABCSynthesizer(ABCLLM(generator=fake, context_window=2_048))
    nodes = [TextNode(text="Pigs eat apples."), TextNode(text="Cows eat grass.")]
    response = RetrieverQueryEngine(Found(nodes), synthesizer).query("what do pigs eat?")
    assert str(response) == "Pigs eat apples [1]."
    assert len(response.source_nodes) == 2
    assert synthesizer.get_response("what do pigs eat?", [node.text for node in nodes]) == "Pigs eat apples [1]."
    expected = answering("what do pigs eat?", [Source(text=nodes[0].text)])
    assert all(seen(asked) == seen(expected) for asked in fake.asked)


def test_what_cannot_be_asked_is_refused() -> None:
    synthesizer = ABCSynthesizer(ABCLLM(generator=FakeGenerator(), context_window=2_048))
    with pytest.raises(InputError, match="picture without image, image_path or image_url"):
        synthesizer.synthesize("x", [NodeWithScore(node=ImageNode(id_="a"))])
    with pytest.raises(ImageError, match=r"gone\.png"):
        synthesizer.synthesize(QueryBundle("x", image_path="gone.png"), [NodeWithScore(node=TextNode(text="y"))])
    with pytest.raises(InputError, match="use another synthesizer"):
        synthesizer.update_prompts({"a": None})  # type: ignore[dict-item]
