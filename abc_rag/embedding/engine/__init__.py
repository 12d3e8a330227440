"""What makes a model family an embedder: preprocessing, scheduling, caches, one owner of the model.

Importing this package loads nothing: the processes that open pictures do without torch.
"""
