"""The rules for English questions."""
