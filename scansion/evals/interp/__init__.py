"""Interpretability of single features, with a judge or without."""
