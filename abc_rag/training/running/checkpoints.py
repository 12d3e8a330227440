"""Checkpoints of a run: trained weights and optimiser state in safetensors."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from abc_rag.errors import CheckpointError
from abc_rag.files import new_folder, remove_drafts, write_json

__all__ = ["Checkpoints", "trained_tensors"]

_LOG = logging.getLogger(__name__)
_KEPT = 2


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trained weights by name, unsharded and on the CPU. Every process must call it."""
    state, _ = get_state_dict(model, (), options=_options())
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def _options() -> StateDictOptions:
    return StateDictOptions(
        full_state_dict=True,
        cpu_offload=True,
        ignore_frozen_params=True,
        strict=False,
    )


class Checkpoints:
    """The checkpoints in ``folder``. Whatever happens while one is written, the earlier ones stay intact.

    Args:
        folder: Created on the first `save`.
        main: Whether this process writes.
    """

    def __init__(self, folder: Path, *, main: bool) -> None:
        self._folder = folder
        self._main = main

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, ascending."""
        if not self._folder.is_dir():
            return []
        names = (f.name for f in self._folder.iterdir() if f.is_dir())
        return sorted(int(n.removeprefix("step-")) for n in names if n.startswith("step-") and n[5:].isdigit())

    def save(self, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Write the state after ``step`` steps, then remove all but the last two checkpoints.

        Raises:
            CheckpointError: The state cannot be written; the message names the last good checkpoint.
        """
        found = get_state_dict(model, optimizers, options=_options())
        weights, states = cast(tuple[dict[str, Any], dict[str, Any]], found)
        if not self._main:
            return
        tensors = {f"weights.{n}": t.contiguous() for n, t in weights.items() if isinstance(t, torch.Tensor)}
        for weight, state in states["state"].items():
            tensors |= {f"optimizer.{kind}.{weight}": torch.as_tensor(t).contiguous() for kind, t in state.items()}
        target = self._folder / f"step-{step:07d}"
        remove_drafts(self._folder)  # of runs that were killed; a run holds the lock of its folder
        try:
            with new_folder(target, replace=True) as draft:
                # A tensor shared between two names (none is expected) is refused by safetensors, not written twice.
                save_file(tensors, draft / "state.safetensors", metadata={"format": "pt"})
                write_json(draft / "state.json", {"step": step, "param_groups": states["param_groups"]})
        except (OSError, SafetensorError) as error:
            good = self.steps()
            rest = f"the last good one is after step {good[-1]}" if good else "there is no earlier one"
            raise CheckpointError(
                f"{target}: the checkpoint cannot be written ({error}); {rest}. "
                "Free some space and run the same command again: it resumes from there"
            ) from error
        for old in self.steps()[:-_KEPT]:
            shutil.rmtree(self._folder / f"step-{old:07d}", ignore_errors=True)

    def load(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
        """Restore the last readable checkpoint; return its number of steps, 0 if there is none.

        Raises:
            CheckpointError: No checkpoint can be read, or one does not fit the model.
        """
        found = self.steps()
        for number in reversed(found):
            folder = self._folder / f"step-{number:07d}"
            try:
                weights, states, groups = self._read(folder)
            except CheckpointError as error:
                if number == found[0]:
                    raise
                _LOG.warning("%s; resuming from the one before", error)
                continue
            self._put(folder, model, optimizers, weights, {"state": states, "param_groups": groups})
            return number
        return 0

    def _read(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
        weights: dict[str, Any] = {}
        states: dict[str, Any] = {}
        try:
            with safe_open(folder / "state.safetensors", framework="pt") as handle:
                for name in handle.keys():
                    kind, _, rest = name.partition(".")
                    if kind == "weights":
                        weights[rest] = handle.get_tensor(name)
                    else:
                        kind, _, weight = rest.partition(".")
                        states.setdefault(weight, {})[kind] = handle.get_tensor(name)
            plain = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: cannot be read ({error}); delete it to start anew") from error
        return weights, states, plain["param_groups"]

    def _put(
        self,
        folder: Path,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        weights: dict[str, Any],
        states: dict[str, Any],
    ) -> None:
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        # Wrappers (DDP) prefix the names; the state has no prefix.
        bare = {n.removeprefix("module.") for n in trained}
        if bare != set(weights):
            odd = sorted(bare ^ set(weights))[:5]
            raise CheckpointError(f"{folder}: belongs to another network ({', '.join(odd)}); choose another folder")
        set_state_dict(model, optimizers, model_state_dict=weights, optim_state_dict=states, options=_options())

    def clear(self) -> None:
        """Remove all checkpoints, once the result is saved."""
        shutil.rmtree(self._folder, ignore_errors=True)
