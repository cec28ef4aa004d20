"""Whether the weights that were found are those that a model needs."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from scansion.errors import ModelError


def require_all_weights(name: str, model: nn.Module, found: dict[str, Any]) -> None:
    """Raise :class:`ModelError` if a weight is missing, which transformers would draw at random, or has no place.

    Weights of other parts, such as a vision tower or a head that predicts several tokens, may be left over.
    """
    kinds = {_numberless(key) for key in model.state_dict()}
    problems = {
        "are missing": sorted(found.get("missing_keys", ())),
        "have another size": sorted(
            str(key[0] if isinstance(key, tuple) else key) for key in found.get("mismatched_keys", ())
        ),
        "have no place in it": sorted(key for key in found.get("unexpected_keys", ()) if _numberless(key) in kinds),
    }
    for what, keys in problems.items():
        if keys:
            raise ModelError(
                f"the weights of {name} do not fit its configuration: {len(keys)} {what}, for example {keys[0]}; "
                "download the model again, or mend its config.json"
            )


def _numberless(key: str) -> str:
    """Name of a weight without the number of its layer, and without the prefix that only some heads have."""
    return re.sub(r"\d+", "N", key).removeprefix("model.")
