"""Execution on a CPU: C where it is built, numpy and torch elsewhere."""
