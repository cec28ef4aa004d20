"""SAEs of other libraries: read right, written right, refused by name."""
