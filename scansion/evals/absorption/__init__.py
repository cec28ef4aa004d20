"""Feature absorption on first-letter spelling."""
