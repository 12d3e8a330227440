"""The parts of peft that are used, and bitsandbytes' functions, imported without a word.

peft imports bitsandbytes wherever it is installed, and that logs a line on some CPUs: a kernel which is not used here
could not be fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keep bitsandbytes from logging while it is imported."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


with quiet():
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer, LoraModel

__all__ = ["LoraConfig", "LoraLayer", "LoraModel", "inject_adapter_in_model", "quiet"]
