"""One of several processes that compute one step together: ``training_worker.py MODE ddp|fsdp CHUNK all|own OUT``."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from accelerate import Accelerator
from helpers import FIXTURE
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from training_helpers import RECORDS, instructing_network, plan_of, pretraining_network, share

from abc_rag.models.abc.prompts import load_prompts
from abc_rag.training.step import Encoder, accumulate


def main(mode: str, wrapper: str, chunk: str, negatives: str, out: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    network = pretraining_network() if mode == "pretrain" else instructing_network()
    network.backbone.use_library()  # before its layers are wrapped, as the objective does
    prompts = load_prompts(FIXTURE / "base")
    encoder = Encoder(network)
    if wrapper == "ddp":
        model = accelerator.prepare(encoder)
    else:
        # As Accelerate does under FSDP 2, which it offers on accelerators only.
        for layer in [*network.backbone.visual.blocks, *network.backbone.language_model.layers]:
            fully_shard(layer)
        model = fully_shard(encoder)
    with ThreadPoolExecutor(2) as pool:
        part = share(
            network, plan_of(RECORDS[mode]), prompts, pool, rank=accelerator.process_index,
            ranks=accelerator.num_processes, chunk=int(chunk) or None, packed=wrapper != "fsdp",
        )  # fmt: skip
    fixed = network.set_instruct if mode == "instruct" else None
    values = accumulate(
        accelerator, model, part, seed=0, smoothing=0.1, fixed_candidates=fixed, true_negatives=negatives
    )
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            found[name.removeprefix("module.")] = grad.full_tensor() if isinstance(grad, DTensor) else grad
    if accelerator.is_main_process:
        named = {n.removeprefix("network."): g.contiguous() for n, g in found.items()}
        save_file(named, out, {"loss": repr(values["loss"])})
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
