"""The same maths, fast: execution that makes use of a mask's block structure."""

from scansion.kernels.banded import BandRows, banded_decode, banded_encode, rows_of_bands

__all__ = ["BandRows", "banded_decode", "banded_encode", "rows_of_bands"]
