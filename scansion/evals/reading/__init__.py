"""Labelled texts and their activations, shared by several evaluations."""
