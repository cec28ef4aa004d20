"""The way a training step is computed: the fastest one that the mask and the architecture allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from scansion.activations.batch import PositionedBatch
from scansion.execution import backends
from scansion.execution.blocks import Block, blocks_of
from scansion.masks import PositionalMask
from scansion.sae.base import SAE
from scansion.sae.structure import KeepsAbove, KeepsPositive, KeepsTopK, KeepsTopKOfBatch

Way = Literal["dense", "banded", "sparse", "fused", "routed"]
"""dense: all features at all positions; banded: a product per band; sparse: from the active entries alone; fused: ReLU or
JumpReLU in five products; routed: a product per group of features that tokens are routed to. Results equal the dense way's to
rounding."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How a training step is computed.

    Attributes:
        way: the way to take.
        device: ``cpu`` or ``cuda``.
        reason: why, in a few words.
        otherwise: the way to take if the batch turns out to have too many active features for ``way``.
        blocks: the batch, cut up for this way; empty for the dense and the routed way.
    """

    way: Way
    device: str
    reason: str
    otherwise: Way | None = None
    blocks: Sequence[Block] = field(default=(), repr=False)


def open_ways(sae: SAE) -> dict[Way, str]:
    """The ways that give the dense way's results for this mask and architecture, and why each may be taken.

    A fast way relies on methods that agree: it calls ``selection`` in place of ``activate``, for example. If a derived class
    overrides ``activate`` alone, the inherited ``selection`` no longer describes it, and the way is closed: a method that
    somebody overrides always takes effect.
    """
    ways: dict[Way, str] = {"dense": "it works for any mask and architecture"}
    mask, selection = sae.mask, sae.selection()
    base = len(type(sae).__mro__)
    activate, activate_bands, masked_acts, described, routing = (
        _age(sae, name) for name in ("activate", "activate_bands", "masked_acts", "selection", "routing")
    )
    if masked_acts == base:
        if mask.gate.bands is not None and (activate_bands == base or activate_bands <= activate):
            ways["banded"] = "the mask has bands"
        if _masks_before_activation(mask) and selection is not None and described <= min(activate, activate_bands):
            acts_on = (
                "the mask only blocks features" if mask.gate.only_blocks else "the mask leaves their gradient alone"
            )
            if not isinstance(selection, KeepsAbove):  # pre-activations below a threshold give it a gradient too
                ways["sparse"] = f"the activation keeps some entries as they are, and {acts_on}"
            if isinstance(selection, KeepsPositive | KeepsAbove):
                ways["fused"] = f"the activation keeps entries above a threshold as they are, and {acts_on}"
    # Sorted tokens are no longer next to the token before them.
    if sae.treats_positions_alike and not sae.uses_pairs and routing < base and routing <= masked_acts:
        ways["routed"] = "each token uses one group of features, and the mask does nothing"
    return ways


def _masks_before_activation(mask: PositionalMask) -> bool:
    """True if all this mask does is to block or multiply pre-activations; or, of weights, to learn straight through."""
    if type(mask).apply_to is not PositionalMask.apply_to or mask.gate.gradient:
        return False
    return mask.gate.only_blocks or mask.n_decoder_biases == 1


def _age(sae: SAE, method: str) -> int:
    """Steps up the inheritance order to the class that defines the method: 0 is the SAE's class, -1 the object itself.

    Methods of :class:`SAE` count as older than all others, wherever it stands: they call what derived classes override.
    """
    if method in vars(sae):
        return -1
    kinds = type(sae).__mro__
    age = next(age for age, kind in enumerate(kinds) if method in vars(kind))
    return len(kinds) if kinds[age] is SAE else age


def plan_execution(sae: SAE, batch: PositionedBatch, way: Way | None = None) -> Plan:
    """The fastest way open to this mask, this architecture and this batch.

    Args:
        sae: mask and architecture.
        batch: only its size and positions matter.
        way: take this way, which must be open, whatever it costs.
    """
    ways, device = open_ways(sae), batch.x.device.type
    if way is not None:
        assert way in ways, f"the {way} way is closed to {type(sae).__name__} under {sae.config.mask.family}"
        return Plan(way, device, "it was requested", None, _blocks(sae, batch, way))
    if "routed" in ways:
        return Plan("routed", device, ways["routed"])
    selection = sae.selection()
    if "fused" in ways and isinstance(selection, KeepsPositive) and sae.mask.gate.only_blocks:
        return Plan("sparse", device, ways["sparse"], "fused", _blocks(sae, batch, "sparse"))
    if "fused" in ways:
        return Plan("fused", device, ways["fused"], None, _blocks(sae, batch, "fused"))
    if "sparse" in ways and isinstance(selection, KeepsTopK | KeepsTopKOfBatch):
        blocks = _blocks(sae, batch, "sparse")
        n_entries = sum(block.n_rows * block.width for block in blocks) * batch.x.shape[1]
        if selection.k * batch.n_tokens <= int(backends.DENSITY * n_entries):
            return Plan("sparse", device, ways["sparse"], None, blocks)
    if "banded" in ways:
        return Plan("banded", device, ways["banded"], None, _blocks(sae, batch, "banded"))
    reason = "no faster way is possible" if len(ways) == 1 else "too many features are active for the sparse way"
    return Plan("dense", device, reason)


def _blocks(sae: SAE, batch: PositionedBatch, way: Way) -> list[Block]:
    return [] if way in ("dense", "routed") else blocks_of(sae.mask, batch.positions)
