"""ABC as a competent user of transformers and peft would write it, as the baseline.

Everything that affects a vector is correct (bidirectional attention, plain positions, both resizes, no padding in the
mean), so that both sides compute the same vectors. Batching is the only optimisation.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from abc_rag import Image, Input, InstructedImage, Text

_FACTOR = 28
# Older adapters use these names. Without the mapping, `PeftModel` loads none of them and only warns.
_ADAPTER_KEYS = {r"^model\.layers": "language_model.layers"}


class StockPictures:
    """Preprocessing as in the published code, with the processor of transformers.

    The published code resizes twice, and its weights were trained with Pillow's passes in the order width, height;
    Pillow 13 may use the other order. So both resizes are done here, one axis at a time, and not by the processor.
    """

    def __init__(self, *, min_tokens: int, max_tokens: int) -> None:
        self._limits = ((4 * _FACTOR**2, 16384 * _FACTOR**2), (min_tokens * _FACTOR**2, max_tokens * _FACTOR**2))
        # Limits that no resized picture exceeds.
        size = {"shortest_edge": _FACTOR**2, "longest_edge": 16384 * _FACTOR**2}
        self._processor = Qwen2VLImageProcessorPil(size=size)

    def __call__(self, pictures: Sequence[PIL.Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 patches of all pictures ``(n, 3 * 2 * 14 * 14)`` and their grids ``(pictures, 3)``."""
        done = self._processor(images=[self._resized(picture) for picture in pictures], return_tensors="pt")
        return done["pixel_values"], done["image_grid_thw"]

    def _resized(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        picture = picture.convert("RGB")
        for least, most in self._limits:
            height, width = smart_resize(
                picture.height, picture.width, factor=_FACTOR, min_pixels=least, max_pixels=most
            )
            for size in ((width, picture.height), (width, height)):
                if picture.size != size:
                    picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
        return picture


class Port:
    """The straightforward port: one network, whose adapter is switched for each call.

    Args:
        folder: A checkpoint with ``base/``, ``pretrain/`` and ``instruct/``.
        device: Any torch device.
        dtype: The dtype of the network.
        min_tokens: Minimum image tokens of a picture.
        max_tokens: Maximum image tokens of a picture.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        min_tokens: int,
        max_tokens: int,
    ) -> None:
        self._device = device
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder / "base"), local_files_only=True)
        self._pictures = StockPictures(min_tokens=min_tokens, max_tokens=max_tokens)
        model: Any = Qwen2VLModel.from_pretrained(
            str(folder / "base"), dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
        model.config.text_config.is_causal = False
        self._image_id = model.config.image_token_id
        model = _with_adapter(model, folder / "pretrain").merge_and_unload()
        # Only the instruct adapter remains, so that it can be switched on and off.
        self._model = _with_adapter(model, folder / "instruct").to(device).eval()
        self._head = _Head(load_file(folder / "pretrain" / "adapter_model.safetensors")).to(device).eval()

    def one_at_a_time(self, items: Sequence[Input]) -> np.ndarray:
        """Vectors ``(n, dim)``, one item at a time."""
        return np.concatenate([self._batch([item]) for item in items])

    def padded(self, items: Sequence[Input], batch_size: int = 16) -> np.ndarray:
        """Vectors ``(n, dim)``, in padded batches in the order of arrival.

        A batch is split only by whether its inputs need the adapter, which is on or off for a whole call.
        """
        vectors: list[Any] = [None] * len(items)
        for start in range(0, len(items), batch_size):
            batch = range(start, min(start + batch_size, len(items)))
            for instructed in (False, True):
                chosen = [n for n in batch if isinstance(items[n], InstructedImage) is instructed]
                if chosen:
                    for n, row in zip(chosen, self._batch([items[n] for n in chosen]), strict=True):
                        vectors[n] = row
        return np.stack(vectors)

    def _batch(self, items: Sequence[Input]) -> np.ndarray:
        opened = [_open(item) for item in items if not isinstance(item, Text)]
        pixels, grids = self._pictures(opened) if opened else (None, None)
        image_tokens = iter([] if grids is None else (grids.prod(dim=1) // 4).tolist())
        rows = [self._ids(item, image_tokens) for item in items]
        ids = torch.full((len(rows), max(map(len, rows))), self._tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, : len(row)] = torch.tensor(row)
            mask[n, : len(row)] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        pictures = {} if pixels is None else {"pixel_values": pixels.to(self._device), "image_grid_thw": grids}
        with torch.inference_mode():
            if isinstance(items[0], InstructedImage):
                states = self._states(ids, mask, pictures)
            else:
                with self._model.disable_adapter():
                    states = self._states(ids, mask, pictures)
            # The published mean counts token 0, but does not sum it.
            summed = (states.float() * (mask.bool() & (ids != 0)).unsqueeze(-1)).sum(dim=1)
            return self._head(summed / mask.sum(dim=1, keepdim=True)).cpu().numpy()

    def _states(self, ids: torch.Tensor, mask: torch.Tensor, pictures: dict[str, torch.Tensor]) -> torch.Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        states: torch.Tensor = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **pictures
        ).last_hidden_state
        return states

    def _ids(self, item: Input, image_tokens: Any) -> list[int]:  # noqa: ANN401
        if isinstance(item, Text):
            content = [{"type": "text", "text": item.text}]
        else:
            text = f"Instruction: {item.instruction}" if isinstance(item, InstructedImage) else ""
            content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if isinstance(item, Text):
            return ids
        at = ids.index(self._image_id)
        return [*ids[:at], *[self._image_id] * next(image_tokens), *ids[at + 1 :]]


class _Head(nn.Module):
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        named = {name.partition("mlp_head.")[2]: tensor.float() for name, tensor in tensors.items()}
        hidden, dim = named["linear_layer1.weight"].shape
        self.linear_layer1, self.linear_layer2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.load_state_dict({name: tensor for name, tensor in named.items() if name})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + self.linear_layer2(nn.functional.selu(self.linear_layer1(x)))
        return nn.functional.normalize(y, dim=-1)


def _with_adapter(model: nn.Module, folder: Path) -> Any:  # noqa: ANN401
    """Load an adapter. Its head and temperature are loaded separately."""
    config = LoraConfig.from_pretrained(str(folder))
    config.modules_to_save, config.inference_mode = None, True
    with warnings.catch_warnings():
        # peft warns about the head and the temperature, which are loaded by name.
        warnings.simplefilter("ignore")
        loaded: Any = PeftModel.from_pretrained(model, str(folder), config=config, key_mapping=_ADAPTER_KEYS)
    return loaded


def _open(item: Image | InstructedImage) -> PIL.Image.Image:
    source: Any = item.source
    if isinstance(source, PIL.Image.Image):
        return source
    return PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
