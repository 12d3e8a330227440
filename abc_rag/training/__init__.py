"""Training: abc-mini from nothing, by ABC's recipe at small scale."""
