"""Ablating features: targeted probe perturbation and spurious correlation removal."""
