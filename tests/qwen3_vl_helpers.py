"""Small random checkpoints in the layout of Qwen3-VL-Embedding, and what transformers computes for them.

Layout: ``Qwen/Qwen3-VL-Embedding-2B`` on the hub (config.json, one or more model*.safetensors, tokenizer.json,
chat_template.json, preprocessor_config.json). The figures are those of the authors' ``Qwen3VLEmbedder.process``
(github.com/QwenLM/Qwen3-VL-Embedding), step by step: chat template with an opened assistant's turn, pictures resized to
multiples of 32 pixels by Pillow beforehand, ``do_resize=False``, ``Qwen3VLModel``, the last token, normalised.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from abc_rag.types import Vectors

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
LETTERS = ["\n", *map(chr, range(32, 127))]
IMAGE = SPECIAL.index("<|image_pad|>")
WORDS = len(SPECIAL) + len(LETTERS) + 1
# What Qwen3-VL's own template does with a system's and a user's message.
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}"
    "{%- for content in message.content %}{%- if content.type == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>{%- elif 'text' in content %}{{- content.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": WORDS,
    "max_position_embeddings": 8192,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [2, 2, 2],
        "mrope_interleaved": True,
    },
}
VISION = {
    "depth": 3,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 2],
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each printed letter."""
    made = Tokenizer(WordLevel({word: at for at, word in enumerate([*SPECIAL, *LETTERS, "<unk>"])}, unk_token="<unk>"))
    made.pre_tokenizer = Split("", "isolated")
    made.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<|endoftext|>", unk_token="<unk>")


def fill_randomly(model: torch.nn.Module, seed: int) -> None:
    """Weights as large as a trained model's, so that a wrong position is seen; the same on every machine."""
    numbers = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = torch.from_numpy(numbers.standard_normal(parameter.shape, dtype=np.float32))
            if parameter.ndim > 1:
                parameter.copy_(drawn * (0.5 / parameter.shape[-1] ** 0.25))
            else:
                parameter.copy_(drawn * 0.1 + (0 if name.endswith("bias") else 1))


def make_qwen3_vl(folder: Path, *, seed: int = 0) -> Path:
    """A random checkpoint; see `fill_randomly`."""
    model = Qwen3VLModel(Qwen3VLConfig(text_config=TEXT, vision_config=VISION, image_token_id=IMAGE))
    fill_randomly(model, seed)
    model.save_pretrained(folder)
    words = tokenizer()
    words.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"patch_size": 16, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    return folder


@lru_cache(maxsize=1)
def standin() -> Path:
    """A checkpoint that lasts as long as this process, for tests that need no figures."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_qwen3_vl(folder, seed=1)


def load_reference(folder: Path) -> Qwen3VLModel:
    model: Qwen3VLModel = Qwen3VLModel.from_pretrained(folder).eval()
    return model


def resized(picture: PIL.Image.Image, most: int = 1800, least: int = 4) -> PIL.Image.Image:
    """As Pillow 10 to 12 resize in one call, on any version: width first."""
    height, width = (max(32, round(side / 32) * 32) for side in (picture.height, picture.width))
    if height * width > most * 1024:
        scale = (picture.height * picture.width / (most * 1024)) ** 0.5
        height, width = (max(32, int(side / scale / 32) * 32) for side in (picture.height, picture.width))
    elif height * width < least * 1024:
        scale = (least * 1024 / (picture.height * picture.width)) ** 0.5
        height, width = (-int(-side * scale // 32) * 32 for side in (picture.height, picture.width))
    bicubic = PIL.Image.Resampling.BICUBIC
    return picture.resize((width, picture.height), bicubic).resize((width, height), bicubic)


def expected(
    model: Qwen3VLModel, instruction: str, content: list[str | PIL.Image.Image], *, most: int = 1800
) -> Vectors:
    """The vector of one input by the authors' steps."""
    instruction = instruction.strip()
    if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
        instruction += "."
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": one} if isinstance(one, str) else {"type": "image"} for one in content
    ]
    words = tokenizer()
    words.chat_template = TEMPLATE
    messages = [
        {"role": "system", "content": [{"type": "text", "text": instruction or "Represent the user's input."}]},
        {"role": "user", "content": parts},
    ]
    prompt = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images = [resized(one, most) for one in content if not isinstance(one, str)]
    features: dict[str, Any] = {}
    if images:
        processor = Qwen2VLImageProcessorPil(
            patch_size=16, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_resize=False
        )
        features = dict(processor(images=images, return_tensors="pt"))
        for grid in features["image_grid_thw"]:
            count = int(grid.prod()) // 4
            prompt = prompt.replace("<|image_pad|>", "<|placeholder|>" * count, 1)
        prompt = prompt.replace("<|placeholder|>", "<|image_pad|>")
    given = words(prompt, return_tensors="pt")
    ids = given["input_ids"]
    with torch.no_grad():
        states = model(
            input_ids=ids,
            attention_mask=given["attention_mask"],
            mm_token_type_ids=(ids == IMAGE).int(),
            **features,
        ).last_hidden_state
    found: Vectors = torch.nn.functional.normalize(states[0, -1], dim=-1).numpy()
    return np.asarray(found)
