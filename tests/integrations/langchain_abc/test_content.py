"""Documents as content blocks, and a whole chain: question, documents, chat model, answer with its sources."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from langchain_abc import ABCEmbeddings, ABCVectorStore, cited_documents, to_content_blocks
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.content import create_text_block
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from pydantic import Field

from abc_rag import ChromaStore, Embedder, ImageLimits, Record
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ImageError, ImageFetchError, InputError
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import Placed, Scene


class FakedEmbeddings(ABCEmbeddings):
    model: str = "fake"

    def _load(self) -> Embedder:
        return FakeEmbedder(model=self.model)


@pytest.fixture
def store() -> Iterator[ABCVectorStore]:
    with ABCVectorStore(FakedEmbeddings()) as made:
        yield made


def drawn(size: tuple[int, int] = (60, 40)) -> PIL.Image.Image:
    """Red on the left, blue on the right."""
    picture = PIL.Image.new("RGB", size, "red")
    picture.paste("blue", (size[0] // 2, 0, size[0], size[1]))
    return picture


def stored(store: ABCVectorStore, path: Path, picture: PIL.Image.Image, **settings: Any) -> Document:
    picture.save(path, **settings)
    return store.get_by_ids(store.add_images([path]))[0]


def decoded(block: Mapping[str, Any]) -> PIL.Image.Image:
    assert block["type"] == "image"
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(block["base64"])))
    assert picture.get_format_mimetype() == block["mime_type"]
    return picture


def texts(blocks: list[Any]) -> list[str | None]:
    return [block.get("text") for block in blocks]


# --- Blocks -----------------------------------------------------------------------------------------------


def test_passages_and_pictures(store: ABCVectorStore, tmp_path: Path) -> None:
    store.add_texts(["Roses have thorns."], [{"source": "plants.md"}], ids=["1"])
    store.add_texts(["No source."], ids=["2"])
    path = tmp_path / "rose.png"
    drawn().save(path)
    store.add_images([path, path], ids=["3", "4"], captions=["a rose", ""])
    blocks = to_content_blocks(store.get_by_ids(["1", "2", "3", "4"]))
    assert texts(blocks) == [
        "[1] plants.md\nRoses have thorns.",
        "[2]\nNo source.",
        f"[3] {path} (picture)\na rose",
        None,
        f"[4] {path} (picture)",
        None,
    ]
    assert [block["type"] for block in blocks] == ["text", "text", "text", "image", "text", "image"]
    # A plain picture is sent as it is.
    assert base64.b64decode(blocks[3]["base64"]) == path.read_bytes()  # type: ignore[typeddict-item]
    assert texts(to_content_blocks(store.get_by_ids(["1", "2", "4"]), numbered=False)) == [
        "plants.md\nRoses have thorns.",
        "No source.",
        f"{path} (picture)",
        None,
    ]
    message = HumanMessage(content_blocks=blocks)
    assert message.content_blocks == blocks
    assert to_content_blocks([]) == []


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "tiff", "gif"])
def test_every_kind_of_picture_arrives_as_one_that_chat_models_take(
    kind: str, store: ABCVectorStore, tmp_path: Path
) -> None:
    document = stored(store, tmp_path / f"a.{kind}", drawn())
    block = to_content_blocks([document])[1]
    assert block["mime_type"] in ("image/png", "image/jpeg", "image/webp")  # type: ignore[typeddict-item]
    picture = decoded(block).convert("RGB")
    assert picture.size == (60, 40)
    assert np.allclose(np.asarray(picture)[20, 10], (255, 0, 0), atol=40)
    same = base64.b64decode(block["base64"]) == Path(document.metadata["source"]).read_bytes()  # type: ignore[typeddict-item]
    assert same == (kind in ("png", "jpg", "webp"))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("png", {"save_all": True, "append_images": [drawn((60, 40)).rotate(180)]}),
        ("webp", {"save_all": True, "append_images": [drawn((60, 40)).rotate(180)]}),
        ("gif", {"save_all": True, "append_images": [drawn((60, 40)).rotate(180)]}),
    ],
)
def test_what_moves_is_sent_as_its_first_frame(
    kind: str, settings: dict[str, Any], store: ABCVectorStore, tmp_path: Path
) -> None:
    picture = decoded(to_content_blocks([stored(store, tmp_path / f"a.{kind}", drawn(), **settings)])[1])
    assert getattr(picture, "n_frames", 1) == 1
    assert np.allclose(np.asarray(picture.convert("RGB"))[20, 10], (255, 0, 0), atol=40)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_photos_are_sent_upright_and_without_where_they_were_taken(
    kind: str, store: ABCVectorStore, tmp_path: Path
) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    exif.get_ifd(0x8825)[1] = "N"  # the GPS part
    document = stored(store, tmp_path / f"a.{kind}", drawn(), exif=exif)
    picture = decoded(to_content_blocks([document])[1])
    assert picture.size == (40, 60)
    assert not picture.getexif()
    pixels = np.asarray(picture.convert("RGB"))
    assert np.allclose(pixels[10, 20], (255, 0, 0), atol=40)
    assert np.allclose(pixels[50, 20], (0, 0, 255), atol=40)


def test_unusual_colours_are_sent_as_usual_ones(store: ABCVectorStore, tmp_path: Path) -> None:
    for name, mode in (("a.jpg", "CMYK"), ("b.png", "I;16")):
        picture = PIL.Image.new(mode, (30, 20))
        assert decoded(to_content_blocks([stored(store, tmp_path / name, picture)])[1]).mode == "RGB"


@pytest.mark.parametrize(("max_side", "size"), [(30, (30, 20)), (60, (60, 40)), (1000, (60, 40)), (None, (60, 40))])
def test_large_pictures_are_shrunk(
    max_side: int | None, size: tuple[int, int], store: ABCVectorStore, tmp_path: Path
) -> None:
    document = stored(store, tmp_path / "a.png", drawn())
    assert decoded(to_content_blocks([document], max_side=max_side)[1]).size == size


def test_pictures_that_cannot_be_shown_are_told_of_and_cost_the_others_nothing(
    store: ABCVectorStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "langchain_abc")
    gone, replaced, corrupt, fine = (tmp_path / f"{name}.png" for name in ("gone", "replaced", "corrupt", "fine"))
    for width, path in enumerate((gone, replaced, corrupt, fine), 10):
        drawn((width, 10)).save(path)
    ids = store.add_images([gone, replaced, corrupt, fine, fine.read_bytes()], ids=list("12345"))
    garbage = fine.read_bytes()[:60]
    corrupt.write_bytes(garbage)
    store.store.add([Record("3", "image", source=str(corrupt), sha256=hashlib.sha256(garbage).hexdigest())], [[1] * 32])
    store.store.add([Record("6", "image", source="https://example.com/a.png", source_type="url")], [[1] * 32])
    gone.unlink()
    drawn((99, 9)).save(replaced)
    documents = store.get_by_ids([*ids, "6"])
    blocks = to_content_blocks(documents)
    assert [block["type"] for block in blocks] == ["text", "text", "text", "text", "image", "text", "text"]
    told = [text for text in texts(blocks) if text is not None and "This picture cannot be shown" in text]
    for text, number, reason in zip(
        told,
        (1, 2, 3, 5, 6),
        ("No such file", "holds another picture", "corrupt", "keep=True", "allow_urls"),
        strict=True,
    ):
        assert text.startswith(f"[{number}]")
        assert reason in text
    assert len(caplog.records) == 5
    for position in (0, 1, 2, 4, 5):
        with pytest.raises(ImageError):
            to_content_blocks([documents[3], documents[position]], missing="raise")
    assert len(to_content_blocks([documents[3]], missing="raise")) == 2


def test_limits_are_kept(store: ABCVectorStore, tmp_path: Path) -> None:
    document = stored(store, tmp_path / "a.png", drawn())
    with pytest.raises(ImageError, match="max_pixels"):
        to_content_blocks([document], image_limits=ImageLimits(max_pixels=100), missing="raise")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": "text"}, "must be a list of LangChain documents"),
        ({"documents": Document("a")}, "must be a list"),
        ({"documents": ["text"]}, "must be a list"),
        ({"documents": [], "max_side": 0}, "max_side must be a positive number"),
        ({"documents": [], "missing": "skip"}, "missing must be 'note' or 'raise'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_content_blocks(**arguments)


def test_a_user_s_own_keys_do_not_mislead(store: ABCVectorStore, tmp_path: Path) -> None:
    store.add_texts(["a passage"], [{"modality": "image", "source": "x.png"}], ids=["1"])
    path = tmp_path / "a.png"
    drawn().save(path)
    store.add_images([path], [{"source": "flickr", "sha256": "mine", "modality": "photo"}], ids=["2"])
    blocks = to_content_blocks(store.get_by_ids(["1", "2"]))
    assert texts(blocks) == ["[1] x.png\na passage", f"[2] {path} (picture)", None]


def test_documents_from_elsewhere_are_passages() -> None:
    assert texts(to_content_blocks([Document("words", metadata={"source": 3})])) == ["[1]\nwords"]


def test_cited_documents() -> None:
    documents = [Document(name) for name in "abc"]
    for answer, wanted in (
        ("As [2] says, and [1].", "ba"),
        ("Both [1, 3] and [3].", "ac"),
        ("Not [0], [4] or [x], [2", ""),
        ("[1][2]", "ab"),
        ("", ""),
    ):
        assert "".join(d.page_content for d in cited_documents(answer, documents)) == wanted


# --- Documents --------------------------------------------------------------------------------------------


@pytest.fixture
def parts(manual_store: ChromaStore) -> dict[str, Document]:
    """Of the second page of a PDF, by kind."""
    store = ABCVectorStore(FakedEmbeddings(), store=manual_store)
    found = store.similarity_search("filter", k=9, filter={"page": 2})
    return {one.metadata["part"]: one for one in found}


def test_documents_have_their_place_under_langchains_names(parts: dict[str, Document], tmp_path: Path) -> None:
    file = str(tmp_path / "manual.pdf")
    passage, figure = (parts[kind].metadata for kind in ("passage", "figure"))
    for metadata in (passage, figure):
        assert (metadata["document"], metadata["page"], metadata["page_label"]) == (file, 2, "ii")
    assert figure["box"] == [50, 180, 200, 300]
    assert passage["source"] == file
    assert Path(figure["source"]).suffix == ".png"


def test_pages_of_documents_are_sent_where_that_is_asked_for(
    parts: dict[str, Document], manual_store: ChromaStore
) -> None:
    asked = [parts["passage"], parts["figure"]]
    words = "[1] manual.pdf, page ii\nCleaning\n\nRinse the filter.\n\nFigure 1: The filter."
    figure = "[2] manual.pdf, page ii (picture)\nFigure 1: The filter."
    plain = to_content_blocks(asked)
    assert texts(plain) == [words, figure, None]
    assert decoded(plain[2]).size == (626, 500)  # the figure alone, at 300 dots an inch
    whole = to_content_blocks(asked, pages="whole", store=manual_store)
    assert texts(whole) == [words, "[1] manual.pdf, page ii (its page)", None, figure, None]
    assert decoded(whole[2]).size == (612, 917)
    small = to_content_blocks(
        asked, pages="whole", store=ABCVectorStore(FakedEmbeddings(), store=manual_store), max_side=300
    )
    assert max(decoded(small[2]).size) == 300
    cropped = to_content_blocks([*asked, asked[0]], pages="crop", store=manual_store)
    place = "[1] manual.pdf, page ii (its place on the page)"
    assert texts(cropped) == [
        words,
        place,
        None,
        figure,
        None,
        words.replace("[1", "[3"),
        place.replace("[1", "[3"),
        None,
    ]
    left, top, right, bottom = parts["passage"].metadata["box"]
    scale = 917 / 600
    assert decoded(cropped[2]).size == pytest.approx(((right - left + 12) * scale, (bottom - top + 12) * scale), abs=2)


def test_a_page_is_sent_once(parts: dict[str, Document], manual_store: ChromaStore) -> None:
    blocks = to_content_blocks([parts["page"], parts["passage"]], pages="whole", store=manual_store)
    assert [block["type"] for block in blocks] == ["text", "image", "text"]


def test_pages_need_a_store(parts: dict[str, Document], manual_store: ChromaStore) -> None:
    with pytest.raises(InputError, match=r"pages must be None, 'whole' or 'crop', with store="):
        to_content_blocks([parts["passage"]], pages="whole")
    with pytest.raises(InputError, match="pages must be"):
        to_content_blocks([parts["passage"]], pages="half", store=manual_store)  # type: ignore[arg-type]


def test_a_page_that_is_gone_costs_the_page(
    parts: dict[str, Document], manual_store: ChromaStore, caplog: pytest.LogCaptureFixture
) -> None:
    Path(parts["page"].metadata["source"]).unlink()
    with caplog.at_level(logging.WARNING):
        blocks = to_content_blocks([parts["passage"]], pages="whole", store=manual_store)
    assert [block["type"] for block in blocks] == ["text"]
    assert "a page cannot be shown to the chat model" in caplog.text
    with pytest.raises(ImageError):
        to_content_blocks([parts["passage"]], pages="whole", store=manual_store, missing="raise")


# --- A chain ----------------------------------------------------------------------------------------------


class Chatty(BaseChatModel):
    """Records what it gets, and answers with a citation of what it finds in it."""

    fault: Exception | None = None
    got: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "chatty"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.got.append(messages)
        if self.fault is not None:
            raise self.fault
        return ChatResult(generations=[ChatGeneration(message=AIMessage("A dog [1]; see also [2]."))])


def answering(retriever: Runnable[Any, list[Document]], model: BaseChatModel) -> Runnable[Any, dict[str, Any]]:
    def prompt(asked: dict[str, Any]) -> list[BaseMessage]:
        sources = to_content_blocks(asked["documents"], max_side=1024)
        return [
            SystemMessage("Answer from the numbered sources alone, and cite them like this: [1]."),
            HumanMessage(content_blocks=[*sources, create_text_block(f"Question: {asked['question']}")]),
        ]

    return (
        RunnablePassthrough.assign(documents=retriever)
        | RunnablePassthrough.assign(answer=RunnableLambda(prompt) | model | StrOutputParser())
        | RunnablePassthrough.assign(sources=lambda found: cited_documents(found["answer"], found["documents"]))
    )


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ABCVectorStore]:
    folder = tmp_path_factory.mktemp("pictures")
    render(Scene((Placed("dog", "big", "left"), Placed("pizza", "small", "right")), "blue")).save(folder / "dog.png")
    render(Scene((Placed("car", "big", "left"), Placed("tree", "small", "right")), "red")).save(folder / "car.png")
    with ABCVectorStore(ABCEmbeddings(model="abc-mini", device="cpu")) as made:
        made.add_images([folder / "dog.png", folder / "car.png"])
        made.add_texts(["all about cars", "all about dogs"], [{"source": "cars.md"}, {"source": "dogs.md"}])
        yield made


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_chain_from_a_question_to_an_answer_with_its_sources(is_async: bool, filled: ABCVectorStore) -> None:
    model = Chatty()
    chain = answering(filled.as_instruction_retriever(k=2), model)
    asked = {"question": "a dog"}
    done = await chain.ainvoke(asked) if is_async else chain.invoke(asked)
    assert done["answer"] == "A dog [1]; see also [2]."
    assert {Path(d.metadata["source"]).name for d in done["sources"]} == {"dogs.md", "dog.png"}
    [[system, human]] = model.got
    assert system.type == "system"
    blocks = human.content_blocks
    assert sorted(block["type"] for block in blocks) == ["image", "text", "text", "text"]
    assert [block["text"][:3] for block in blocks[:-1] if block["type"] == "text"] == ["[1]", "[2]"]
    [picture] = [block for block in blocks if block["type"] == "image"]
    [source] = [d.metadata["source"] for d in done["documents"] if d.metadata["modality"] == "image"]
    assert base64.b64decode(picture["base64"]) == Path(source).read_bytes()
    assert blocks[-1]["text"] == "Question: a dog"  # type: ignore[typeddict-item]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_chain_asked_about_a_picture(is_async: bool, filled: ABCVectorStore) -> None:
    [picture] = filled.similarity_search("a big dog", k=1, modality="image")
    chain = answering(filled.as_instruction_retriever(k=1, modality="text"), Chatty())
    asked = {"question": "what is on the left?", "image": picture.metadata["source"]}
    done = await chain.ainvoke(asked) if is_async else chain.invoke(asked)
    assert [d.metadata["source"] for d in done["sources"]] == ["dogs.md"]
    with pytest.raises(ImageFetchError, match=r"gone\.png"):
        await chain.ainvoke({"question": "what is on the left?", "image": "gone.png"})


async def test_a_chat_model_s_own_error_passes_through(filled: ABCVectorStore) -> None:
    chain = answering(filled.as_instruction_retriever(k=1), Chatty(fault=ConnectionError("the service is down")))
    with pytest.raises(ConnectionError, match="the service is down"):
        chain.invoke({"question": "a dog"})
    with pytest.raises(ConnectionError, match="the service is down"):
        await chain.ainvoke({"question": "a dog"})


def test_a_picture_that_is_kept_as_base64_is_shown(tmp_path: Path) -> None:
    # As langchain_chroma.Chroma.add_images stores it.
    drawn().save(tmp_path / "a.png")
    text = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    said, picture = to_content_blocks([Document(text, metadata={"source": "a.png"})])
    assert said["text"] == "[1] a.png (picture)"  # type: ignore[typeddict-item]
    assert decoded(picture).size == (60, 40)
    for odd in (text[:40], text[:-8], "iVBORw0KGgo is how they begin", "R0lGOD=="):
        (block,) = to_content_blocks([Document(odd)], numbered=False)
        assert block == create_text_block(odd) | {"id": block.get("id")}
