"""The commands ``abc-rag evaluate ctrlbench | retrieval | classification | vqa | resolution``."""
