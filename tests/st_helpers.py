"""Small models of sentence-transformers, of each kind that is read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from helpers import FIXTURE
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaModel,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from abc_rag import (
    load_embedder,
)
from abc_rag.embedding.embedder import Embedder
from abc_rag.types import Vectors

IMAGES = FIXTURE / "images"
SCENE, SHAPES, GREY = IMAGES / "scene_640x480.png", IMAGES / "shapes_56x56.png", IMAGES / "gray_300x200.png"
TOLERANCE = 1e-5
LONG = "many words of no meaning at all " * 2
CHAT = (
    "{% for message in messages %}<s>{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
)
DEAF = CHAT.replace("<s>", "{% if message['role'] == 'user' %}<s>").replace("</s>", "</s>{% endif %}")


def tokenizer(most: int, *, ends: bool = True) -> PreTrainedTokenizerFast:
    """One token for each printed letter."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *map(chr, range(33, 127))]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Sequence([WhitespaceSplit(), Split("", "isolated")])
    if ends:
        made.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    made.add_special_tokens(["<image>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=most,
    )


WORDS = 99
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
EYES = {**SMALL, "image_size": 32, "patch_size": 8, "num_channels": 3}


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def save(modules: list[Any], folder: Path, **settings: Any) -> Path:
    SentenceTransformer(modules=modules, device="cpu", **settings).save_pretrained(
        str(folder), create_model_card=False, safe_serialization=True
    )
    return folder


def make_clip(folder: Path) -> Path:
    raw = folder / "raw"
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": WORDS, "max_position_embeddings": 64, "eos_token_id": 2, "projection_dim": 8}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={**EYES, "projection_dim": 8}, projection_dim=8)
    ).save_pretrained(raw)
    CLIPProcessor(image_processor=image_processor(), tokenizer=tokenizer(64)).save_pretrained(raw)
    return save([Transformer(str(raw))], folder / "clip")


def make_text(folder: Path, **settings: Any) -> Path:
    raw = folder / "raw"
    torch.manual_seed(0)
    BertModel(BertConfig(**SMALL, vocab_size=WORDS, max_position_embeddings=80)).save_pretrained(raw)
    tokenizer(80).save_pretrained(raw)
    pooling = Pooling(16, "mean", include_prompt=settings.pop("include_prompt", True))
    modules = [Transformer(str(raw)), pooling, Dense(16, 12)]
    return save(modules, folder / "text", **{"prompts": {"query": "query: ", "document": ""}, **settings})


def make_chat(folder: Path, template: str = CHAT) -> Path:
    raw = folder / "raw"
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**EYES),
        text_config=LlamaConfig(
            **SMALL, vocab_size=WORDS, num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0
        ),
        image_token_index=4,
        vision_feature_layer=-1,
    )
    LlavaModel(config).save_pretrained(raw)
    LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer(256, ends=False),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
        image_token="<image>",
    ).save_pretrained(raw)
    return save([Transformer(str(raw)), Pooling(16, "lasttoken")], folder / "chat")


def make_siglip(folder: Path) -> Path:
    """A SigLIP of fixed squares; its raw folder, as transformers read it, lies beside it."""
    raw = folder / "raw"
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": WORDS, "max_position_embeddings": 64, "projection_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=EYES)).save_pretrained(raw)
    words = tokenizer(64)
    words.model_input_names = ["input_ids"]  # as published
    SiglipProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer=words
    ).save_pretrained(raw)
    return save([Transformer(str(raw))], folder / "siglip")


def make_naflex(folder: Path) -> Path:
    """A SigLIP 2 of any aspect ratio; its raw folder lies beside it."""
    raw = folder / "raw"
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": WORDS, "max_position_embeddings": 64, "projection_size": 16}
    vision = {**SMALL, "patch_size": 16, "num_channels": 3, "num_patches": 16}
    Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(raw)
    words = tokenizer(64)
    words.model_input_names = ["input_ids"]
    Siglip2Processor(image_processor=Siglip2ImageProcessorPil(), tokenizer=words).save_pretrained(raw)
    return save([Transformer(str(raw))], folder / "naflex")


MAKERS = {"clip": make_clip, "text": make_text, "chat": make_chat}


def load(folder: Path, **options: Any) -> Embedder:
    return load_embedder(f"st:{folder}", device="cpu", **options)


def picture(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as opened:
        return opened.convert("RGB")


def unit(vectors: Any) -> Vectors:
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def largest(one: Any, other: Any) -> float:
    assert np.shape(one) == np.shape(other)
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def changed(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to
