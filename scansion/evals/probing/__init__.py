"""Sparse probing: how well a few features, or all of them, separate labelled texts."""
