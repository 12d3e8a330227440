"""Files of an evaluation: results.json and report.html."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from abc_rag.errors import InputError

if TYPE_CHECKING:
    pass


def _write(file: Path, text: str) -> Path:
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A file's name may hold bytes that are no Unicode; one odd name must not cost the results.
        part.write_text(text, encoding="utf-8", errors="replace")
        os.replace(part, file)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise InputError(f"{file}: cannot be written ({error.strerror or error}); choose another folder") from error
    return file.resolve()
