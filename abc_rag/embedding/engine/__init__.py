"""The engine turns a model family into an embedder: preparation, scheduling, batching, caches.

Importing this package imports nothing else, so the processes that open pictures run without torch.
"""
