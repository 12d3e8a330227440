"""Small random checkpoints in the layout of EmbeddingGemma 2, and what transformers computes for them.

Layout: ``google/embeddinggemma-2`` on the hub (config.json, model.safetensors, tokenizer.json, processor_config.json,
chat_template.jinja, modules.json, 1_Pooling, 2_Normalize, config_sentence_transformers.json), as transformers'
``convert_embedding_gemma2_weights.py`` writes it.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from qwen3_vl_helpers import fill_randomly
from transformers import EmbeddingGemma2Config, EmbeddingGemma2Model, GemmaTokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
MEDIA = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
LETTERS = ["\n", "▁", *map(chr, range(33, 127))]
PAIRS = [("▁", "r"), ("c", "u")]  # so that it shows where a text is cut before it is tokenised
WORDS = [*SPECIAL, *MEDIA.values(), *LETTERS, *map("".join, PAIRS)]
# What the published template does: prompts first, then each part in its place, or pictures where the text says so.
TEMPLATE = (
    "{%- for message in messages if message['role'] == 'system' -%}{%- for part in message['content'] -%}"
    "{{ part['text'] }}{%- endfor -%}{%- endfor -%}"
    "{%- for message in messages if message['role'] != 'system' -%}"
    "{%- set words = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- elif '<|image|>' not in words -%}<|image|>{%- endif -%}{%- endfor -%}{%- endfor -%}"
)
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "global_head_dim": 20,
    "num_global_key_value_heads": 1,
    "sliding_window": 24,
    "hidden_size_per_layer_input": 16,
    "embedding_dim": 40,
    "max_position_embeddings": 8192,
}
VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "position_embedding_size": 300,
}
AUDIO = {"model_type": "gemma4_audio", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokenizer() -> GemmaTokenizer:
    """One token for each printed letter, and for two pairs of them."""
    return GemmaTokenizer(
        vocab={word: number for number, word in enumerate(WORDS)},
        merges=PAIRS,
        add_bos_token=True,
        add_eos_token=True,
        padding_side="right",
        extra_special_tokens=MEDIA,
        chat_template=TEMPLATE,
    )


def make_gemma(folder: Path, *, seed: int = 0, hears: bool = True) -> Path:
    """A random checkpoint; see `fill_randomly`."""
    words = tokenizer()
    config = EmbeddingGemma2Config(
        text_config=TEXT,
        vision_config=VISION,
        audio_config=AUDIO if hears else None,
        image_token_id=words.image_token_id,
        boi_token_id=words.convert_tokens_to_ids("<|image>"),
        eoi_token_id=words.convert_tokens_to_ids("<image|>"),
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        audio_token_id=words.convert_tokens_to_ids("<|audio|>"),
    )
    model = EmbeddingGemma2Model(config)
    fill_randomly(model, seed)
    for layer in model.language_model.layers:
        layer.layer_scalar.fill_(0.8)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@lru_cache(maxsize=1)
def standin() -> Path:
    """A checkpoint that lasts as long as this process, for tests that need no figures."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_gemma(folder)
