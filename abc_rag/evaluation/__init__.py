"""Numbers that say how well a model does."""
