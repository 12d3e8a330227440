"""What a model's processor is told: SigLIP's length, limits of pictures, the order of a message's parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from st_helpers import (
    CHAT,
    GREY,
    SCENE,
    SHAPES,
    TOLERANCE,
    changed,
    largest,
    load,
    make_chat,
    make_naflex,
    make_siglip,
    picture,
    unit,
)
from transformers import Siglip2Model, Siglip2Processor, SiglipModel, SiglipProcessor

from abc_rag import Image, Input, InstructedImage, Interleaved, Text
from abc_rag.errors import CheckpointError, InputError
from abc_rag.models.sentence_transformers.batches import groups_of

PICTURES_FIRST = (
    "{% for message in messages %}<s>{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
)
WORDS = ["a red cube", "x", "many words of no meaning at all"]


@pytest.mark.parametrize(
    ("make", "network", "processor"),
    [(make_siglip, SiglipModel, SiglipProcessor), (make_naflex, Siglip2Model, Siglip2Processor)],
)
def test_siglip_reads_texts_at_the_length_that_it_was_trained_with(
    make: Any, network: Any, processor: Any, tmp_path: Path
) -> None:
    folder = make(tmp_path)
    raw = network.from_pretrained(tmp_path / "raw").eval()
    made = processor.from_pretrained(tmp_path / "raw")
    # As transformers' page of the model says: padding="max_length", "since that's how the model was trained".
    with torch.no_grad():
        given = made(text=WORDS, padding="max_length", max_length=64, return_tensors="pt")
        texts = raw.get_text_features(**given).pooler_output
        images = raw.get_image_features(
            **made(images=[picture(p) for p in (SCENE, SHAPES, GREY)], return_tensors="pt")
        ).pooler_output
    embedder = load(folder)
    found = embedder.embed([*map(Text, WORDS), *map(Image, (SCENE, SHAPES, GREY))])
    assert largest(found, unit(torch.cat([texts, images]))) < TOLERANCE
    alone = unit(SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode([{"text": WORDS[0]}]))
    assert largest(found[:1], alone) > 1000 * TOLERANCE  # it does matter
    with pytest.raises(InputError, match=r"longer than the model's 64"):
        embedder.embed([Text("letters" * 12)])


def test_pictures_of_any_shape_share_a_batch_where_their_tensors_do(tmp_path: Path) -> None:
    embedder = load(make_naflex(tmp_path))
    prepared = [embedder.family.prepare(Image(path)) for path in (SCENE, SHAPES, GREY)]
    assert [len(group) for group in groups_of([one.features for one in prepared], any_length=False)] == [3]
    together = embedder.family.forward(prepared)
    assert largest(together, torch.cat([embedder.family.forward([one]) for one in prepared])) < TOLERANCE


def test_a_limit_of_image_tokens_goes_to_the_processor(tmp_path: Path) -> None:
    folder = make_naflex(tmp_path)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    expected = model.encode([{"image": picture(SCENE)}], processing_kwargs={"image": {"max_num_patches": 9}})
    embedder = load(folder, max_tokens=9)
    assert largest(embedder.embed([Image(SCENE)]), unit(expected)) < TOLERANCE
    assert largest(load(folder).embed([Image(SCENE)]), unit(expected)) > 100 * TOLERANCE
    assert (embedder.fingerprint.min_tokens, embedder.fingerprint.max_tokens) == (1, 9)
    with pytest.raises(InputError, match="min_tokens=4 is not available: this model's processor has max_num_patches"):
        _ = load(folder, min_tokens=4).dim


def test_dims(embedders: Any, folders: Any, library: Any) -> None:
    short = load(folders["text"], dims=5)
    words = ["a red cube", "x"]
    assert (short.dim, short.embed_texts(words).shape) == (5, (2, 5))
    expected = library["text"].encode(words, truncate_dim=5)
    assert largest(short.embed_texts(words), unit(expected)) < TOLERANCE
    assert short.fingerprint.revision == embedders["text"].fingerprint.revision + "+dims=5"
    with pytest.raises(InputError, match="dims=13 is more than the 12 numbers of a vector of st:text; take fewer"):
        _ = load(folders["text"], dims=13).dim


def test_a_template_that_puts_pictures_first_takes_no_interleaved(tmp_path: Path) -> None:
    assert Interleaved in load(make_chat(tmp_path / "kept", CHAT)).accepts
    embedder = load(make_chat(tmp_path / "first", PICTURES_FIRST))
    assert embedder.accepts == (Text, Image, InstructedImage, *[one for one in embedder.accepts[3:]])
    assert Interleaved not in embedder.accepts
    item: Input = Interleaved([Text("from"), Image(SHAPES), Text("to")])
    with pytest.raises(InputError, match="is an Interleaved, which st:chat does not take"):
        embedder.embed([item])


def test_a_dtype_whose_range_a_model_exceeds_is_refused_when_it_is_loaded(folders: Any, tmp_path: Path) -> None:
    folder = changed(folders["text"], tmp_path / "text")
    weights = load_file(folder / "2_Dense" / "model.safetensors")
    save_file({name: value * 1e6 for name, value in weights.items()}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(InputError, match="st:text gives no finite vectors in float16; load it with dtype='bfloat16'"):
        _ = load(folder, dtype="float16").dim
    assert np.isfinite(load(folder, dtype="bfloat16").embed_texts(["x"])).all()


def test_a_model_that_reads_few_tokens_is_not_refused_for_the_length_of_a_probe(folders: Any, tmp_path: Path) -> None:
    folder = changed(folders["text"], tmp_path / "text")
    file = folder / "sentence_bert_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "max_seq_length": 4}))
    assert load(folder).embed_texts(["ab", "c"]).shape == (2, 12)
    with pytest.raises(InputError, match="longer than the model's 4"):
        load(folder).embed_texts(["abc"])


def test_a_model_that_embeds_nothing_says_why(folders: Any, tmp_path: Path) -> None:
    folder = changed(folders["clip"], tmp_path / "clip")
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"]["size"] = {"depth": 3}
    file.write_text(json.dumps(settings))
    with pytest.raises((CheckpointError, InputError), match="clip"):
        load(folder).embed([Image(PIL.Image.new("RGB", (9, 9)))])
