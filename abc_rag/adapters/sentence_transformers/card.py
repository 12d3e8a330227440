"""The model card of an export."""

from __future__ import annotations

from abc_rag.types import Fingerprint

__all__ = ["model_card"]

_CARD = """\
---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags:
- sentence-transformers
- multimodal
- image-text-to-embedding
- abc-rag
---

# {name}

An [ABC](https://arxiv.org/abs/2503.00329) model: texts, pictures, and pictures seen under an instruction, in one space
of {dim} dimensions. Exported by abc-rag {version} from `{fingerprint}`.
{checked}

## Usage

```
pip install 'abc-rag[sentence-transformers]'
```

```python
import PIL.Image

from abc_rag.adapters.sentence_transformers.export import load_sentence_transformer

model = load_sentence_transformer("{folder}")
vectors = model.encode(
    [
        "a text",
        {{"image": "photo.jpg"}},
        {{"image": "photo.jpg", "text": "What is on the left?"}},
        PIL.Image.open("photo.jpg"),
    ]
)
print(vectors.shape)
print(model.similarity(vectors[0], vectors[1:]))
```

Without that function, sentence-transformers 6 imports a class of another package only when told to trust it. No code
comes with this folder; the class is that of the installed abc-rag:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{folder}", trust_remote_code=True, local_files_only=True)
print(model.encode("a text").shape)
```

Without `local_files_only`, the library asks the hub whether it knows a model of the folder's name.

The folder is also an ABC checkpoint as it is, which `abc_rag.load_embedder("{folder}")` reads.

## What is embedded as what

| input | embedded as |
| --- | --- |
| `"a text"` | a text, always, also where it looks like a path or a URL |
| `{{"image": picture}}`, a PIL image, a `pathlib.Path`, `bytes` | the picture |
| `{{"image": picture, "text": instruction}}` | the picture, seen under the instruction |
| `{{"text": "a text"}}` | a text |
| one message of the role `user` with at most one picture and one text | the same |
| `abc_rag.Text`, `Image`, `InstructedImage` | a text, a picture, a picture seen under an instruction |

A `str` as a picture is a path. Pictures are resized to {tokens} image tokens of 28x28 pixels;
`processor_kwargs={{"min_tokens": ..., "max_tokens": ...}}` changes that, and
`processor_kwargs={{"image_limits": abc_rag.ImageLimits(allow_urls=True)}}` lets an `abc_rag.URL` be fetched. Half
precision: `model_kwargs={{"dtype": "bfloat16"}}`. `load_sentence_transformer` takes `min_tokens`, `max_tokens`,
`image_limits` and `dtype` themselves.

## Limits

- sentence-transformers guesses from a string whether it is a picture, but only to check that the model accepts
  pictures. If a text ends in `.jpg` or the like, the library checks whether such a file exists. It opens and fetches
  nothing, and the text is embedded as a text. Where other models take a bare path as a picture, this one needs
  `{{"image": path}}`.
- An input longer than {longest} tokens is refused, not cut; `max_seq_length` cannot be set.
- The model was trained without prompts. A prompt (`prompt=`, `prompt_name=`) is put before texts and instructions,
  but not before pictures. Queries and documents are embedded alike.
- One vector for each input: no token embeddings. `truncate_dim` works, but the model was not trained for it.
- No ONNX, no OpenVINO, no `device_map`, no `torch.nn.DataParallel`.
- The library's trainer works, on all weights or on those left unfrozen. There is no gradient checkpointing (its
  `Cached...` losses bound memory), and `load_best_model_at_end` needs a model loaded with `trust_remote_code=True`.
- It prepares and computes in turn, and computes a picture again for each instruction: abc-rag's own engine is faster.
"""


def model_card(
    fingerprint: Fingerprint, *, folder: str, dim: int, longest: int, version: str, difference: float | None
) -> str:
    """The text of ``README.md``.

    Args:
        fingerprint: The fingerprint of the exported model.
        folder: Name of the export's folder, for the examples.
        dim: Length of a vector.
        longest: Maximum tokens of an input.
        version: The version of abc-rag.
        difference: Maximum absolute difference from the engine's vectors; None if they were not compared.
    """
    tokens = f"{fingerprint.min_tokens} to {fingerprint.max_tokens}"
    if fingerprint.min_tokens == fingerprint.max_tokens:
        tokens = str(fingerprint.min_tokens)
    checked = "It was not compared with abc-rag's own engine when it was made."
    if difference is not None:
        within = f"within {difference:.0e}" if difference else "to the last bit"
        checked = f"It was checked when it was made: its vectors equal those of abc-rag's own engine {within}."
    return _CARD.format(
        name=fingerprint.model,
        fingerprint=fingerprint,
        folder=folder,
        dim=dim,
        tokens=tokens,
        longest=f"{longest:,}",
        version=version,
        checked=checked,
    )
