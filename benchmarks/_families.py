"""EmbeddingGemma 2 and Qwen3-VL-Embedding with random weights, and sentence-transformers' ``encode`` on them.

``embeddinggemma`` is of the published size but for its vocabulary and audio tower; ``qwen3-vl-quarter`` has the 2B
model's widths and a quarter of its layers, so that both sides fit into 16 GB. ``-tiny`` ones are for tests.
sentence-transformers needs torchvision to load such models; it is given Pillow's processor of pictures, so that both
sides see the same pixels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from abc_rag import Image, Input, InstructedImage, Text
from abc_rag.models.embedding_gemma.prompts import PROMPTS, task_prefix
from abc_rag.models.qwen3_vl.prompts import DOCUMENT, sentence

__all__ = ["FAMILY_SHAPES", "Encoder", "write_family"]

_LETTERS = ["\n", *map(chr, range(32, 127))]
_MEDIA = {
    "image_token": "<|image|>", "video_token": "<|video|>", "boi_token": "<|image>", "eoi_token": "<image|>",
    "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
}  # fmt: skip
_GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", *_MEDIA.values()]
_QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
_GEMMA_TEMPLATE = (
    "{%- for message in messages -%}{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}"
    "{{ part['text'] }}{%- else -%}<|image|>{%- endif -%}{%- endfor -%}{%- endfor -%}"
)
_QWEN_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{%- else %}{{- part.text }}{%- endif %}"
    "{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_GEMMA_TINY = {
    "text": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16, "global_head_dim": 16,
        "hidden_size_per_layer_input": 16, "embedding_dim": 32, "sliding_window_pattern": 2,
    },
    "vision": {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 12, "position_embedding_size": 300,
    },
}  # fmt: skip
_QWEN_QUARTER = {
    "text": {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 7, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    },
    "vision": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "depth": 6, "out_hidden_size": 2048,
        "deepstack_visual_indexes": [1, 2, 4],
    },
}  # fmt: skip
_QWEN_TINY = {
    "text": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 12,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 2, 2]},
    },
    "vision": {
        "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "depth": 1, "out_hidden_size": 32,
        "num_position_embeddings": 36, "deepstack_visual_indexes": [0],
    },
}  # fmt: skip
FAMILY_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "embeddinggemma": {"text": {}, "vision": {}},
    "embeddinggemma-tiny": _GEMMA_TINY,
    "qwen3-vl-quarter": _QWEN_QUARTER,
    "qwen3-vl-tiny": _QWEN_TINY,
}


def write_family(shape: str, folder: Path, *, seed: int) -> str:
    """Write a checkpoint that both sides load; its name for `load_embedder`."""
    torch.manual_seed(seed)
    parts = FAMILY_SHAPES[shape]
    tokenizer = _tokenizer(shape)
    text = {**parts["text"], "vocab_size": len(tokenizer)}
    if shape.startswith("qwen"):
        from transformers import Qwen3VLConfig, Qwen3VLModel

        image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        Qwen3VLModel(
            Qwen3VLConfig(text_config=text, vision_config=parts["vision"], image_token_id=image)
        ).save_pretrained(folder)
    else:
        from transformers import EmbeddingGemma2Config, EmbeddingGemma2Model

        ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in _MEDIA.items()}
        vision = {**parts["vision"], "model_type": "gemma4_vision"}
        model = EmbeddingGemma2Model(EmbeddingGemma2Config(text_config=text, vision_config=vision, **ids))
        _calm(model)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": tokenizer.chat_template}))
    return f"{'qwen3-vl' if shape.startswith('qwen') else 'embeddinggemma'}:{folder}"


def _calm(model: torch.nn.Module) -> None:
    """Keep 24 layers of random weights from magnifying rounding errors, which trained ones do not."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("q_norm.weight"):
                weight.fill_(len(weight) ** -0.5)  # attention is not scaled
            elif "post_" in name and name.endswith("norm.weight"):
                weight.fill_(0.1)


def _tokenizer(shape: str) -> PreTrainedTokenizerFast:
    qwen = shape.startswith("qwen")
    special = _QWEN_SPECIAL if qwen else _GEMMA_SPECIAL
    words = [*special, *_LETTERS]
    unknown = "<unk>"
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*words, unknown]))}
    made = Tokenizer(WordLevel(vocabulary, unk_token=unknown))
    made.pre_tokenizer = Split("", "isolated")
    made.add_special_tokens([AddedToken(word, normalized=False) for word in special])
    if qwen:
        return PreTrainedTokenizerFast(
            tokenizer_object=made, pad_token="<|endoftext|>", unk_token=unknown, chat_template=_QWEN_TEMPLATE
        )
    made.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token=unknown,
        extra_special_tokens=_MEDIA,
        chat_template=_GEMMA_TEMPLATE,
    )


class Encoder:
    """``SentenceTransformer.encode`` on a checkpoint of `write_family`, for the inputs of a round.

    Args:
        shape: Of the checkpoint.
        folder: Where it is.
        device: Any torch device.
        dtype: Of the weights.
        most: Most image tokens of a picture.
        least: Fewest, where the model has such a limit.
        batch_size: Of ``encode``.
    """

    def __init__(
        self, shape: str, folder: Path, *, device: str, dtype: str, most: int, least: int, batch_size: int
    ) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

        self._qwen = shape.startswith("qwen")
        self._batch_size = batch_size
        processor, told = (_qwen_processor if self._qwen else _gemma_processor)(_tokenizer(shape), least, most)
        own = folder.parent / "library"
        own.mkdir(exist_ok=True)
        for file in folder.iterdir():
            if file.name != "chat_template.json" and not (own / file.name).exists():
                (own / file.name).symlink_to(file)
        processor.save_pretrained(own)
        first = Transformer(str(own), processing_kwargs=told, model_kwargs={"dtype": getattr(torch, dtype)})
        first.processor.image_processor = processor.image_processor
        pooling = Pooling(first.get_embedding_dimension(), "lasttoken" if self._qwen else "mean")
        self._model = SentenceTransformer(modules=[first, pooling, Normalize()], device=device)

    def __call__(self, items: Sequence[Input]) -> np.ndarray:
        """The vectors of some inputs: one call of ``encode`` for each prompt."""
        by_prompt: dict[str, list[int]] = {}
        for number, item in enumerate(items):
            by_prompt.setdefault(self._prompt(item), []).append(number)
        vectors: dict[int, np.ndarray] = {}
        for prompt, numbers in by_prompt.items():
            values = [_value(items[number]) for number in numbers]
            found = self._model.encode(values, prompt=prompt, batch_size=self._batch_size, show_progress_bar=False)
            vectors.update(zip(numbers, found, strict=True))
        return np.stack([vectors[number] for number in range(len(items))])

    def _prompt(self, item: Input) -> str:
        if isinstance(item, InstructedImage):
            return sentence(item.instruction) if self._qwen else task_prefix(item.instruction)
        return DOCUMENT if self._qwen else PROMPTS["document"]


def _value(item: Input) -> Any:  # noqa: ANN401
    if isinstance(item, Text):
        return {"text": item.text}
    assert isinstance(item, (Image, InstructedImage))
    assert isinstance(item.source, bytes)
    return {"image": PIL.Image.open(io.BytesIO(item.source)).convert("RGB")}


def _gemma_processor(tokenizer: Any, least: int, most: int) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
    from transformers import EmbeddingGemma2Processor, EmbeddingGemma2VideoProcessor, Gemma4AudioFeatureExtractor
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    return EmbeddingGemma2Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessorPil(max_soft_tokens=most),
        tokenizer=tokenizer,
        video_processor=EmbeddingGemma2VideoProcessor(),
        chat_template=_GEMMA_TEMPLATE,
    ), {}


def _qwen_processor(tokenizer: Any, least: int, most: int) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pictures = Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": least * 1024, "longest_edge": most * 1024},
    )
    processor = Qwen3VLProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=_QWEN_TEMPLATE,
    )
    return processor, {"chat_template": {"add_generation_prompt": True, "add_special_tokens": False}}
