"""ABC as a module of sentence-transformers 6: raw inputs in, unit vectors out.

``modules.json`` of an export names `ABCModule`. The library passes its raw inputs to the first module of a model,
so this module decides what a string is, and never guesses.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
import torch

from abc_rag.adapters.sentence_transformers.inputs import as_input, with_prompt
from abc_rag.embedding.load import load_embedder
from abc_rag.errors import ABCRagError, InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.abc.family import ABCFamily
from abc_rag.models.abc.network import ABCNetwork, ABCSettings
from abc_rag.models.abc.prompts import ABCPrompts, load_prompts
from abc_rag.models.abc.save import small_files, write_checkpoint
from abc_rag.models.family import Picture, Prepared
from abc_rag.models.qwen2_vl.pictures import Patches
from abc_rag.models.sentence_transformers.library import unusable
from abc_rag.types import Fingerprint, Input

if TYPE_CHECKING:
    from abc_rag.embedding.engine.local import LocalEmbedder
    from abc_rag.models.loader import DType

try:
    from sentence_transformers.base.modules import InputModule
except (AttributeError, ImportError, OSError, RuntimeError) as error:
    raise unusable(error) from error

__all__ = ["ABCModule"]

_WORKERS = min(8, os.cpu_count() or 1)
_INSTRUCTED = "image+instruction"
_BATCH_TOKENS = 4096
_MODEL_KWARGS = {"dtype": "dtype", "torch_dtype": "dtype", "attn_implementation": "attention"}
_PROCESSOR_KWARGS = {"min_tokens", "max_tokens", "image_limits"}


class ABCModule(InputModule):  # type: ignore[misc]
    """The whole of an ABC model: prompts, pictures, network, pooling, head, unit length.

    It may be trained: ``preprocess`` gives tensors and ``forward`` lets gradients flow to all weights but the
    temperature, which belongs to ABC's own loss. Use from several threads is safe: one computes at a time.

    Args:
        network: The network with its instruct adapter.
        prompts: The prompts of the same checkpoint.
        fingerprint: Model, revision, and minimum and maximum image tokens of a picture.
        settings: The checkpoint's settings, which are saved again.
        image_limits: Which pictures are accepted, and whether URLs are fetched.
        files: Configuration, tokenizer and licence of ``base`` and ``instruct``, which are saved again.
    """

    config_file_name = "abc.json"

    def __init__(
        self,
        network: ABCNetwork,
        prompts: ABCPrompts,
        *,
        fingerprint: Fingerprint,
        settings: ABCSettings,
        image_limits: ImageLimits,
        files: Mapping[str, Mapping[str, bytes]],
    ) -> None:
        super().__init__()
        self.network = network
        self.fingerprint = fingerprint
        self.settings = settings
        self._files = files
        self._preparer = ABCFamily(network, prompts, fingerprint=fingerprint, image_limits=image_limits)
        self._computing = threading.Lock()

    # --- Loading and saving ---------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
        **_: Any,  # noqa: ANN401  (what later versions of the library pass)
    ) -> ABCModule:
        """Load the module of an export; called by sentence-transformers.

        Args:
            model_name_or_path: The export's folder, or a hub id.
            subfolder: The module's folder in the export; always the root.
            token: A token for the hub.
            cache_folder: The hub's cache folder.
            revision: A revision on the hub.
            local_files_only: Do not contact the hub.
            model_kwargs: ``dtype`` (or ``torch_dtype``): ``"float32"``, the default, ``"bfloat16"`` or ``"float16"``,
                or torch's own; ``attn_implementation``: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``.
            processor_kwargs: ``min_tokens`` and ``max_tokens``, image tokens of a picture, and ``image_limits``, an
                `abc_rag.ImageLimits`.
            config_kwargs: Must be empty or None.
            backend: Must be ``"torch"``.

        Raises:
            InputError: An argument is unusable, or the folder is not an export.
            CheckpointError: Files are missing or do not fit.
        """
        if backend != "torch":
            raise InputError(f"backend {backend!r} is not available for this model; only 'torch' is")
        chosen = _chosen(model_kwargs, processor_kwargs, config_kwargs)
        where = cls.load_dir_path(
            model_name_or_path,
            subfolder=subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        if where is None:
            raise InputError(f"{model_name_or_path}: no such folder or hub id")
        folder = Path(where)
        limits = chosen.get("image_limits") or ImageLimits()
        family = cast("LocalEmbedder", load_embedder(folder, device="cpu", **chosen)).family
        network = cast(ABCFamily, family).network
        network.requires_grad_(True)
        network.temperature.requires_grad_(False)
        read = ABCSettings.read(folder)
        fingerprint = family.facts.fingerprint
        return cls(
            network,
            load_prompts(folder / "base"),
            fingerprint=fingerprint,
            settings=replace(
                read,
                name=fingerprint.model,
                min_tokens=fingerprint.min_tokens,
                max_tokens=fingerprint.max_tokens,
            ),
            image_limits=limits,
            files={part: small_files(folder / part) for part in ("base", "instruct")},
        )

    def save(
        self,
        output_path: str,
        *args: Any,  # noqa: ANN401  (the library's signature)
        safe_serialization: bool = True,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Save the current weights; called by sentence-transformers. `abc_rag.load_embedder` reads the folder too.

        Args:
            output_path: The folder to write to.
            *args: Not used.
            safe_serialization: Must be True: only safetensors are written.
            **kwargs: Not used.

        Raises:
            InputError: ``safe_serialization`` is false, which asks for a pickle.
            CheckpointError: The disk is full or not writable.
        """
        if not safe_serialization:
            raise InputError("weights are written as safetensors only; leave safe_serialization as it is")
        write_checkpoint(Path(output_path), self.network, self.settings, **self._files)

    def __getstate__(self) -> dict[str, Any]:
        """Copy the module to another process, as multi-process encoding does."""
        return {name: value for name, value in self.__dict__.items() if name != "_computing"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._computing = threading.Lock()

    # --- What sentence-transformers asks of a module --------------------------------------------------

    @property
    def modalities(self) -> list[str | tuple[str, str]]:
        """Modalities that the library may pass on; it calls a mixed batch a message."""
        return ["text", "image", ("image", "text"), "message"]

    @property
    def max_seq_length(self) -> int:
        """Maximum tokens of an input, with those of its picture. Longer inputs are refused, not cut."""
        return int(self.network.backbone.text_config.max_position_embeddings)

    @max_seq_length.setter
    def max_seq_length(self, value: object) -> NoReturn:
        raise InputError(
            f"max_seq_length cannot be set to {value!r}: an input of more than {self.max_seq_length} tokens is "
            "refused, not cut, as half a text has another meaning; split long texts"
        )

    def get_config_dict(self) -> dict[str, Any]:
        """The contents of ``abc.json``."""
        return asdict(self.settings)

    def get_embedding_dimension(self) -> int:
        """Length of a vector."""
        return self.network.backbone.hidden_size

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> NoReturn:  # noqa: ANN401
        """Refuse: a forward repeated during the backward pass would use another input's adapter.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "gradient checkpointing is not available here; bound memory with CachedMultipleNegativesRankingLoss, or "
            "train with abc-rag train"
        )

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        *,
        task: str | None = None,
        **others: Any,  # noqa: ANN401
    ) -> dict[str, torch.Tensor]:
        """Tokenise texts and cut pictures into patches.

        Args:
            inputs: Texts and pictures in any mix; see the export's model card.
            prompt: Put before every text and every instruction.
            task: Ignored, as all tasks are embedded alike.
            **others: Must be None.

        Returns:
            ``input_ids`` and ``attention_mask`` (n, length), padded on the right with 0; ``instructed`` (n,);
            ``num_images_per_sample`` (n,); and, where there are pictures, ``pixel_values`` (patches of all pictures,
            values of a patch) in uint8 and ``image_grid_thw`` (pictures, 3), as Qwen2-VL's own processor lays them out.

        Raises:
            InputError: An input cannot be embedded; the message says why.
        """
        if used := sorted(name for name, value in others.items() if value is not None):
            raise InputError(f"{', '.join(used)}: not known to this model; leave it out")
        items = [as_input(value) for value in inputs]
        if prompt:
            items = [with_prompt(item, prompt) for item in items]
        prepared = self._prepare(items)
        longest = max(p.tokens for p in prepared)
        ids = torch.zeros(len(prepared), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(prepared):
            ids[row, : one.tokens] = torch.from_numpy(one.input_ids)
            mask[row, : one.tokens] = 1
        features = {
            "input_ids": ids,
            "attention_mask": mask,
            "instructed": torch.tensor([p.kind == _INSTRUCTED for p in prepared]),
            "num_images_per_sample": torch.tensor([len(p.pictures) for p in prepared]),
        }
        patches = [picture.opened for p in prepared for picture in p.pictures]
        if patches:
            features["pixel_values"] = torch.from_numpy(np.concatenate([p.pixels for p in patches]))
            features["image_grid_thw"] = torch.tensor([[1, p.rows, p.columns] for p in patches])
        return features

    def _prepare(self, items: Sequence[Input]) -> list[Prepared]:
        if len(items) == 1:
            return [self._preparer.prepare(items[0])]
        with ThreadPoolExecutor(min(_WORKERS, len(items))) as pool:
            return list(pool.map(self._preparer.prepare, items))

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:  # noqa: ANN401
        """Add ``sentence_embedding``: float32 unit rows (n, dim), in order.

        Args:
            features: From `preprocess`, possibly cut into smaller batches.
            **_: Not used.

        Raises:
            InputError: The model was cast to half precision after loading.
            ABCRagError: The model runs under ``torch.nn.DataParallel``.
        """
        if getattr(self, "_is_replica", False):
            raise ABCRagError(
                "this model does not run under torch.nn.DataParallel, whose copies share one switch of the adapter; "
                "start one process for each GPU with torchrun, or show one GPU in CUDA_VISIBLE_DEVICES"
            )
        if self.network.head.linear_layer1.weight.dtype != torch.float32:
            raise InputError(
                "the head of this model stays in float32, so .half() and .bfloat16() do not fit it; load it with "
                'model_kwargs={"dtype": "bfloat16"} instead'
            )
        with self._computing, self._flags_kept():
            features["sentence_embedding"] = self._rows(features)
        return features

    @contextmanager
    def _flags_kept(self) -> Iterator[None]:
        """Keep ``requires_grad`` as the caller set it: switching the adapter makes peft change it."""
        adapter = [p for name, p in self.network.named_parameters() if ".instruct." in name]
        flags = [p.requires_grad for p in adapter]
        try:
            yield
        finally:
            for parameter, flag in zip(adapter, flags, strict=True):
                parameter.requires_grad_(flag)

    def _rows(self, features: Mapping[str, Any]) -> torch.Tensor:
        prepared = _prepared(features)
        ids, lengths = features["input_ids"], features["attention_mask"].sum(dim=1)
        order: list[int] = []
        rows = []
        # Batches of one kind and similar length, with a maximum number of tokens.
        for positions in _batches(prepared):
            chosen = [prepared[p] for p in positions]
            self.network.set_instruct(chosen[0].kind == _INSTRUCTED)
            patches = [picture.opened for p in chosen for picture in p.pictures]
            vision = self.network.backbone.image_features(patches) if patches else None
            part = ids[positions, : chosen[0].tokens]  # the first input is the longest
            rows.append(self.network(part, lengths=lengths[positions], features=vision))
            order += positions
        return torch.cat(rows)[np.argsort(order)]


def _batches(prepared: Sequence[Prepared]) -> Iterator[list[int]]:
    """Batches of positions: inputs of one kind, longest first, with a maximum number of tokens after padding."""
    order = sorted(range(len(prepared)), key=lambda i: (prepared[i].kind, -prepared[i].tokens))
    batch: list[int] = []
    for position in order:
        if batch:
            first = prepared[batch[0]]
            if (len(batch) + 1) * first.tokens > _BATCH_TOKENS or first.kind != prepared[position].kind:
                yield batch
                batch = []
        batch.append(position)
    if batch:
        yield batch


def _prepared(features: Mapping[str, Any]) -> list[Prepared]:
    """Split a batch's tensors into its inputs."""
    ids = features["input_ids"].cpu().numpy()
    lengths = features["attention_mask"].sum(dim=1).tolist()
    pictures = iter(_pictures(features))
    found = []
    for row, length, instructed, count in zip(
        ids, lengths, features["instructed"].tolist(), features["num_images_per_sample"].tolist(), strict=True
    ):
        kind = _INSTRUCTED if instructed else "image" if count else "text"
        found.append(Prepared(kind, row[:length], tuple(next(pictures) for _ in range(count))))
    return found


def _pictures(features: Mapping[str, Any]) -> Iterator[Picture]:
    grid = features.get("image_grid_thw")
    if grid is None:
        return
    pixels = features["pixel_values"].cpu().numpy()
    start = 0
    for _, rows, columns in grid.tolist():
        yield Picture("", 0, Patches(pixels[start : start + rows * columns], rows, columns))
        start += rows * columns


def _chosen(
    model_kwargs: Mapping[str, Any] | None,
    processor_kwargs: Mapping[str, Any] | None,
    config_kwargs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Arguments of `load_embedder`; unknown ones are refused, because they would be ignored silently."""
    given = dict(model_kwargs or {})
    for name, values, known in (
        ("model_kwargs", given, set(_MODEL_KWARGS)),
        ("processor_kwargs", processor_kwargs or {}, _PROCESSOR_KWARGS),
        ("config_kwargs", config_kwargs or {}, set[str]()),
    ):
        if unknown := sorted(set(values) - known):
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes nothing"
            raise InputError(f"{name}: {', '.join(unknown)} is not known to this model; {takes}")
    chosen: dict[str, Any] = {"dtype": "float32"}
    for name, value in given.items():
        chosen[_MODEL_KWARGS[name]] = _dtype(value) if "dtype" in name else value
    limits = (processor_kwargs or {}).get("image_limits")
    if limits is not None and not isinstance(limits, ImageLimits):
        raise InputError(f"image_limits must be an abc_rag.ImageLimits, not {type(limits).__name__}")
    return chosen | dict(processor_kwargs or {})


def _dtype(value: object) -> DType:
    name = str(value).removeprefix("torch.")
    if name not in ("float32", "bfloat16", "float16"):
        raise InputError(f"dtype must be float32, bfloat16 or float16, not {value!r}")
    return cast("DType", name)
