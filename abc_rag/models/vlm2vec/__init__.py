"""VLM2Vec (arXiv 2410.05160)."""
