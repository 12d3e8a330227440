"""Matrix products and attention over sequences without padding."""
