"""The commands ``abc-rag evaluate mmeb`` and ``abc-rag evaluate mteb``."""
