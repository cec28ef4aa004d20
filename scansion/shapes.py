"""Shape checks for public functions: an error names the argument, the expected shape and the given one."""

from __future__ import annotations

from torch import Tensor

from scansion.errors import ShapeError


def require_shape(name: str, tensor: Tensor, spec: str, **sizes: int) -> dict[str, int]:
    """Check ``tensor`` against ``spec`` and return the size of every named axis.

    Args:
        name: the argument's name, for the message.
        tensor: the tensor to check.
        spec: axis names separated by spaces; a leading ``...`` stands for any number of axes.
        sizes: the size that a named axis must have. Other axes may have any size, but axes of one name must be equal.

    Raises:
        ShapeError: wrong number of axes or a wrong size.
    """
    axes = spec.split()
    open_ended = bool(axes) and axes[0] == "..."
    named = axes[1:] if open_ended else axes
    size_of = dict(sizes)
    given = tuple(tensor.shape)
    fits = len(given) >= len(named) if open_ended else len(given) == len(named)
    if fits:
        for axis, size in zip(named, given[len(given) - len(named) :], strict=True):
            fits = fits and size_of.setdefault(axis, size) == size
    if not fits:
        expected = " ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes)
        raise ShapeError(f"{name} should have shape [{expected}] but has {list(given)}")
    return size_of
