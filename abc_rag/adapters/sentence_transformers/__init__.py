"""ABC models for sentence-transformers: the export, and the module that it names."""
