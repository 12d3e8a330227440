"""The command ``abc-rag evaluate ctrlbench-build``."""
