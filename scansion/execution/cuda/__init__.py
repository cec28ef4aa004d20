"""Execution on a CUDA device: Triton kernels."""
