"""``python -m abc_rag.cli``."""

from __future__ import annotations

from abc_rag.cli.main import main

main()
