"""The backbone Phi-3.5-vision."""
