"""Shape checks at public doors: an error names the argument, the expected shape and the given one."""

from __future__ import annotations

from torch import Tensor

from scansion.errors import ShapeError


def require_shape(name: str, tensor: Tensor, spec: str, **sizes: int) -> dict[str, int]:
    """Check ``tensor`` against ``spec`` and return the size of every named axis.

    Args:
        name: the argument's name, for the message.
        tensor: the tensor to check.
        spec: axis names separated by spaces; a leading ``...`` stands for any number of axes.
        sizes: the size that a named axis must have; axes not named here may have any, but equal names equal sizes.

    Raises:
        ShapeError: wrong number of axes or a wrong size.
    """
    axes = spec.split()
    open_ended = bool(axes) and axes[0] == "..."
    named = axes[1:] if open_ended else axes
    found = dict(sizes)
    given = tuple(tensor.shape)
    fits = len(given) >= len(named) if open_ended else len(given) == len(named)
    if fits:
        for axis, size in zip(named, given[len(given) - len(named) :], strict=True):
            fits = fits and found.setdefault(axis, size) == size
    if not fits:
        expected = " ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes)
        raise ShapeError(f"{name} should have shape [{expected}] but has {list(given)}")
    return found
