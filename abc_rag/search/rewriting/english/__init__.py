"""The rules for questions in English."""
