"""Write ``fixtures/encode/figures.json``: what sentence-transformers' own ``encode`` gives for small checkpoints.

Run by hand, with sentence-transformers 6.2, Pillow 12, and torchvision, without which it cannot load these models'
processors:

    PYTHONPATH=.:tests python tests/encode_figures.py

Calls are those of both model cards: ``encode(inputs, prompt_name=...)`` for EmbeddingGemma 2, and
``encode(inputs, prompt=...)`` for Qwen3-VL-Embedding. Pictures are resized by Pillow, as they were for the authors.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

IMAGES = Path(__file__).parent / "fixtures" / "abc" / "images"
FIGURES = Path(__file__).parent / "fixtures" / "encode" / "figures.json"
SCENE, SHAPES, GREY, WIDE = "scene_640x480.png", "shapes_56x56.png", "gray_300x200.png", "wide_900x100.png"
LONG = "many red words of no meaning at all " * 3  # longer than a window of attention
GEMMA_TOKENS, QWEN_TOKENS = 70, 20
"""Most image tokens, so that pictures stay small."""
# Name of a case -> what ``encode`` is given, and its prompt. A picture is written as its file's name.
GEMMA: dict[str, tuple[Any, dict[str, str]]] = {
    "text": ("a red cube", {"prompt_name": "document"}),
    "query": ("a red cube", {"prompt_name": "query"}),
    "empty": ("", {"prompt_name": "document"}),
    "long": (LONG, {"prompt_name": "document"}),
    "STS": ("a red cube", {"prompt_name": "STS"}),
    "instructed text": ("a red cube", {"prompt": "task: find the thing | query: "}),
    "scene": ({"image": SCENE}, {"prompt_name": "document"}),
    "shapes": ({"image": SHAPES}, {"prompt_name": "document"}),
    "wide": ({"image": WIDE}, {"prompt_name": "document"}),
    "grey query": ({"image": GREY}, {"prompt_name": "query"}),
    "instructed scene": ({"image": SCENE}, {"prompt": "task: what is left? | query: "}),
    "question about scene": ({"image": SCENE, "text": "what is left?"}, {"prompt_name": "query"}),
    "picture, words": ({"image": SHAPES, "text": "red and round"}, {"prompt_name": "document"}),
    "words, picture": ({"text": "red and round", "image": SHAPES}, {"prompt_name": "document"}),
    "interleaved": ({"text": "from <|image|> to <|image|>", "image": [SHAPES, GREY]}, {"prompt_name": "document"}),
}
_DOCUMENT, _QUERY = "Represent the user's input.", "Retrieve images or text relevant to the user's query."
QWEN: dict[str, tuple[Any, dict[str, str]]] = {
    "text": ({"text": "a red cube"}, {"prompt": _DOCUMENT}),
    "query": ({"text": "a red cube"}, {"prompt": _QUERY}),
    "instructed text": ({"text": "a red cube"}, {"prompt": "Find the thing."}),
    "scene": ({"image": SCENE}, {"prompt": _DOCUMENT}),
    "shapes": ({"image": SHAPES}, {"prompt": _DOCUMENT}),
    "grey query": ({"image": GREY}, {"prompt": _QUERY}),
    "instructed scene": ({"image": SCENE}, {"prompt": "What is left?"}),
    "question about scene": ({"image": SCENE, "text": "What is left?"}, {"prompt": _QUERY}),
    "words, picture": ({"text": "red and round", "image": SHAPES}, {"prompt": _DOCUMENT}),
}


def weights_of(folder: Path) -> str:
    """A hash of the weights, which are the same on every machine."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def _gemma(folder: Path) -> Any:
    from gemma_helpers import TEMPLATE, make_gemma, tokenizer
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers import EmbeddingGemma2Processor, EmbeddingGemma2VideoProcessor, Gemma4AudioFeatureExtractor
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    from abc_rag.models.embedding_gemma.prompts import PROMPTS

    make_gemma(folder)
    processor = EmbeddingGemma2Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessorPil(max_soft_tokens=GEMMA_TOKENS),
        tokenizer=tokenizer(),
        video_processor=EmbeddingGemma2VideoProcessor(),
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    first = Transformer(str(folder))
    first.processor.image_processor = processor.image_processor
    return SentenceTransformer(
        modules=[first, Pooling(first.get_embedding_dimension(), "mean"), Normalize()],
        prompts=dict(PROMPTS),
        device="cpu",
    )


def _qwen(folder: Path) -> Any:
    from qwen3_vl_helpers import TEMPLATE, make_qwen3_vl, tokenizer
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    make_qwen3_vl(folder)
    pictures = Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 4 * 1024, "longest_edge": QWEN_TOKENS * 1024},
    )
    processor = Qwen3VLProcessor(
        image_processor=pictures,
        tokenizer=tokenizer(),
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    (folder / "chat_template.json").unlink(missing_ok=True)
    first = Transformer(
        str(folder), processing_kwargs={"chat_template": {"add_generation_prompt": True, "add_special_tokens": False}}
    )
    first.processor.image_processor = processor.image_processor
    width = first.get_embedding_dimension()
    return SentenceTransformer(modules=[first, Pooling(width, "lasttoken"), Normalize()], device="cpu")


def _opened(given: Any) -> Any:
    if isinstance(given, dict):
        return {key: _opened(part) if key == "image" else part for key, part in given.items()}
    if isinstance(given, list):
        return [_opened(one) for one in given]
    if given.endswith(".png"):
        with PIL.Image.open(IMAGES / given) as opened:
            return opened.convert("RGB")
    return given


def main() -> None:
    """Write the file."""
    found = {}
    for name, make, cases in (("embeddinggemma", _gemma, GEMMA), ("qwen3-vl", _qwen, QWEN)):
        with tempfile.TemporaryDirectory() as folder:
            model = make(Path(folder))
            vectors = {
                case: np.asarray(model.encode([_opened(given)], **told))[0].astype(float).round(9).tolist()
                for case, (given, told) in cases.items()
            }
            found[name] = {"weights": weights_of(Path(folder)), "vectors": vectors}
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
