"""Where an SAE comes from: enough to refuse a comparison or an evaluation that would not be fair."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from scansion.lm.identity import ModelId


class StartedFrom(BaseModel):
    """The trained SAE that a run started from.

    Attributes:
        folder: where it was.
        fingerprint: of its settings, provenance and weights, see :func:`scansion.sae.sae_fingerprint`.
        tokens: it was trained on, with what it had started from itself; None if that is not known.
        imported: of one that goes back to another library, that library and where it was read from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str
    fingerprint: str
    tokens: int | None
    imported: str | None = None


class SAEMetadata(BaseModel):
    """Provenance saved with every SAE.

    Attributes:
        model, model_revision, hook_point: what the activations are of.
        store_key: fingerprint of the activation store it was trained on.
        contexts: fingerprint of the text behind that store.
        context_length: tokens in a context.
        use_position_0: whether position 0 took part in training.
        input_scale: factor applied to the input during training; already folded into the weights.
        steps, tokens: training taken so far; 0 means that nothing was learnt, None that it is not known.
        seed: of the initial weights and the order of the data; None if it is not known.
        training: the training config; empty if it is not known.
        imported: of an SAE of another library, that library and where it was read from; else None. The text and the store
            of its training are not known: ``contexts`` and ``store_key`` are empty.
        corpus: fingerprint of how that text and the held-out text beside it were made; None where it is not known.
        started_from: the trained SAE whose weights it started with; ``steps`` and ``tokens`` do not include that SAE's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    model_revision: str
    hook_point: str
    store_key: str
    contexts: str
    context_length: int
    use_position_0: bool
    input_scale: float
    steps: int | None
    tokens: int | None
    seed: int | None
    training: dict[str, Any]
    imported: str | None = Field(default=None, exclude_if=lambda value: value is None)
    corpus: str | None = Field(default=None, exclude_if=lambda corpus: corpus is None)
    started_from: StartedFrom | None = Field(default=None, exclude_if=lambda start: start is None)

    @property
    def model_id(self) -> ModelId:
        """What decides whether another model is the one it was trained on."""
        return ModelId(self.model, self.model_revision)
