"""Qwen3-VL-Embedding (arXiv 2601.04720)."""
