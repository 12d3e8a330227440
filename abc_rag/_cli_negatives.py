"""The command ``abc-rag train mine-negatives``."""
