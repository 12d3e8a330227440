"""What other libraries import."""
