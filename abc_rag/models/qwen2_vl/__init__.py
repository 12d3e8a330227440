"""The backbone Qwen2-VL."""
