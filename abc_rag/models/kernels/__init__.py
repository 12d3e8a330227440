"""Products and attention over sequences without padding."""
