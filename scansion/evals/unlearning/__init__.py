"""Unlearning: clamp the features of one subject and count which questions are still answered."""
