"""Scansion: position-aware sparse autoencoders on language-model activations."""
