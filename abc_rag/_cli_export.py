"""The commands ``abc-rag export ...``."""
