"""Core evaluation: reconstruction, sparsity and loss recovered on held-out text."""
