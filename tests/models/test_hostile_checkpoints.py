"""Checkpoints of strangers: whatever their settings say, loading ends in a model or in an error that names the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[1] / "hostile_worker.py"
CASES = (
    "abc/base/config.json",
    "abc/instruct/adapter_config.json",
    "abc/pretrain/adapter_config.json",
    "mini/base/config.json",
    "mini/abc.json",
    "mini/instruct/adapter_config.json",
    "qwen/base/config.json",
    "qwen/base/preprocessor_config.json",
    "qwen/adapter/adapter_config.json",
    "phi/model/config.json",
    "phi/model/clip_dimensions.json",
    "phi/model/tokenizer_config.json",
)


@pytest.mark.parametrize("case", CASES)
def test_every_changed_value_is_used_or_refused(case: str) -> None:
    """Within a limit of memory, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(WORKER), case],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TRANSFORMERS_VERBOSITY": "error"},
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    assert json.loads(done.stdout.splitlines()[-1]) == []
