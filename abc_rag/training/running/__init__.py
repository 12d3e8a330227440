"""A training run: its loop, its log, its checkpoints, its model card."""
