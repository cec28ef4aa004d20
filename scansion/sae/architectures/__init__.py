"""The architectures: one file each, its loss in it."""
