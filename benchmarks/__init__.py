"""Measurements of speed and memory: side by side in one run, never against figures from another day."""
