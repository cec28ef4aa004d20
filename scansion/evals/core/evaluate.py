"""Core evaluation: reconstruction, sparsity and loss recovered on held-out text, overall and by position."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from scansion.activations import ActivationStore
from scansion.device import float64_device
from scansion.errors import EvalError
from scansion.evals.base import EvalResult, LoadedSAE, data_from, reasons_before_running, reasons_from_activity
from scansion.evals.core.duplicates import duplicate_share
from scansion.evals.core.loss import LossTally, loss_by_splicing, spread_over_documents
from scansion.evals.reading.contexts import ContextBatch, read_contexts
from scansion.evals.reading.groups import DocumentSums
from scansion.evals.reading.training import CountsPositions, as_trained, require_same_model, require_same_source
from scansion.evals.statistics import Estimate, finite
from scansion.lm import LanguageModel
from scansion.progress import progress
from scansion.sae import SAE, AnySAEConfig

DENSE_RATE = 0.1
# log10 of a feature's firing rate; the lowest bin also takes anything rarer that fired at all.
DENSITY_EDGES = [round(-6 + 0.25 * i, 2) for i in range(25)]


class CoreConfig(CountsPositions):
    """What the core evaluation reads.

    Example:
        >>> scansion.CoreConfig(loss_contexts=64)
    """

    evaluation: ClassVar[str] = "core"

    n_contexts: int | None = Field(default=None, ge=2, description="Held-out contexts to reconstruct; default: all.")
    loss_contexts: int = Field(
        default=64,
        ge=0,
        description="Contexts to run through the LM to measure loss recovered, spread over the held-out documents; 0 = do not "
        "measure it.",
    )
    batch_contexts: int = Field(default=16, ge=1, description="Contexts per batch of the SAE.")
    loss_batch_contexts: int = Field(default=4, ge=1, description="Contexts per batch of the LM.")
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="Seed for the bootstrap, the groups of documents and the contexts of the loss.",
    )


class DensityHistogram(BaseModel):
    """How many features fire how often: ``counts[i]`` have log10 rate in [edges[i], edges[i + 1])."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    edges: list[float]
    counts: list[int]
    dead: int


class CoreResult(EvalResult):
    """Figures over all valid tokens at the positions used; intervals are over contexts.

    Attributes:
        sae_config: architecture, size and mask of the SAE.
        n_tokens: tokens reconstructed.
        fve: 1 - sum |x - x_hat|^2 / sum |x - mean x|^2, the mean taken per dimension over all tokens; at most 1.
        fve_without_outliers: the same without outlier tokens, the mean taken without them too; equal to ``fve`` if there
            are none. See :mod:`scansion.activations.outliers`.
        outlier_token_share, outlier_variance_share: share of the tokens, and of the variance that ``fve`` is a share of,
            that outlier tokens hold, in [0, 1].
        saebench_explained_variance: SAEBench 0.6's ``explained_variance``, for comparison with its figures and no other:
            see :func:`saebench_explained_variance`.
        normalised_mse: sum |x - x_hat|^2 / sum |x|^2, at least 0.
        cosine: mean cosine similarity of x and x_hat, in [-1, 1].
        l0, l1: mean number of active features per token, and mean sum of their activations.
        dead_share: share of features that never fired on these tokens; depends on how many there are.
        dense_share: share of features that fired on more than a tenth of the tokens their mask allows.
        duplicate_share: share of the features that fired whose decoder row has a cosine above 0.9 with that of another:
            features an SAE has learnt twice, as separate bands must where they need the same one.
        ce_loss, ce_loss_clean, ce_loss_ablated: next-token cross-entropy (nats) with the SAE spliced in, untouched, and
            with the activation set to zero; None if no contexts were run.
        ce_loss_recovered: (ablated - SAE) / (ablated - clean), at most about 1.
        kl: mean KL divergence (nats) from the untouched to the spliced next-token distribution.
        positions: the positions used; ``by_position[name][i]`` is a figure at ``positions[i]``. There ``fve`` is centred
            on the position's own mean (``fve_without_outliers`` on that of its ordinary tokens), and losses
            are of the token predicted *from* that position.
    """

    schema_version: int = 2  # 1: loss recovered was measured on the first contexts, all of one document or two
    eval: str = "core"
    sae_config: AnySAEConfig
    n_tokens: int
    fve: Estimate
    fve_without_outliers: Estimate | None = None  # these three: not in results of earlier versions
    outlier_token_share: float | None = None
    outlier_variance_share: float | None = None
    saebench_explained_variance: float | None
    normalised_mse: float | None
    cosine: float | None
    l0: float | None
    l1: float | None
    dead_share: float
    dense_share: float
    duplicate_share: float
    density: DensityHistogram
    ce_loss: float | None = None
    ce_loss_clean: float | None = None
    ce_loss_ablated: float | None = None
    ce_loss_recovered: Estimate | None = None
    kl: float | None = None
    positions: list[int]
    by_position: dict[str, list[float | None]]


def evaluate_core(
    subjects: Sequence[LoadedSAE],
    store: ActivationStore,
    load_lm: Callable[[], LanguageModel] | None,
    config: CoreConfig,
) -> list[CoreResult]:
    """Evaluate SAEs on a held-out store; the store and the LM's untouched run are read once for all of them.

    Args:
        subjects: SAEs for the store's model and hook point.
        store: held-out activations.
        load_lm: called only if ``config.loss_contexts`` is above 0 and the activations come from a language model; may
            be None otherwise.
        config: how much to read.

    Raises:
        EvalError: an SAE belongs to another model or hook point, the LM is no longer the one the store was made with, or
            the loss is wanted without an LM.

    Example:
        >>> [result] = scansion.evaluate_core([loaded], held_out, None, scansion.CoreConfig(loss_contexts=0))
        >>> result.status, result.fve
    """
    config = as_trained(config, subjects)
    has_loss = config.loss_contexts > 0 and store.identity.has_lm
    if has_loss and load_lm is None:
        raise EvalError("loss recovered needs the language model; give load_lm, or set loss_contexts to 0")
    require_same_source(subjects, store)
    store.outliers.warn(store.folder)
    positions, counted = config.counted_tokens(store)
    n_contexts = min(config.n_contexts or store.n_contexts, store.n_contexts)
    valid = counted[:, :n_contexts]
    ordinary = valid & ~store.outliers.mask[positions][:, :n_contexts]
    # Sums stay where the SAEs are, if that is one device.
    places = {subject.sae.W_dec.device for subject in subjects}
    device = float64_device(places.pop()) if len(places) == 1 else torch.device("cpu")
    valid, ordinary = valid.to(device), ordinary.to(device)
    tallies = [_Tally(subject.sae, valid, ordinary) for subject in subjects]
    with progress("reconstruct held-out", n_contexts * (1 + len(subjects)), "contexts") as advance, torch.no_grad():
        parts = read_contexts(store, positions, n_contexts, config.batch_contexts, advance, device, counted)
        means = _Means(parts, valid, ordinary, store.d_in)
        for part in read_contexts(store, positions, n_contexts, config.batch_contexts, device=device, counted=counted):
            for subject, tally in zip(subjects, tallies, strict=True):
                tally.add(subject.sae, part, means)
                advance(len(part))
    for tally in tallies:
        tally.to_cpu()
    losses: list[LossTally] | None = None
    if has_loss and load_lm:
        lm = load_lm()
        require_same_model(lm, store)
        losses = loss_by_splicing(
            [subject.sae for subject in subjects],
            store,
            lm,
            positions,
            counted,
            spread_over_documents(store, config.loss_contexts, config.seed),
            config.loss_batch_contexts,
        )
    return [
        _result(subject, tallies[i], losses[i] if losses else None, store, [int(p) for p in positions], config)
        for i, subject in enumerate(subjects)
    ]


def saebench_explained_variance(mean_error: float, mean_square: float, d_in: int) -> float | None:
    """What SAEBench 0.6 reports as explained variance: ``1 - R / (S - (S / d)^2)``.

    R and S are the means over tokens of |x - x_hat|^2 and |x|^2. In the place of the squared norm of the mean activation
    it has the square of one number: the mean of the *squared* activations, over tokens and dimensions together
    (evals/core/main.py, lines 585 and 617). The figure is not a share of variance: it depends on the units of x, and
    leaves [-inf, 1] where S exceeds d^2.

    Returns:
        None where the denominator is 0.
    """
    total = mean_square - (mean_square / d_in) ** 2
    return finite(1 - mean_error / total) if total else None


class _Means:
    """Mean activation of the evaluated tokens, what variance is measured around: overall, without outliers, by position."""

    def __init__(
        self, parts: Iterable[ContextBatch], valid: Bool[Tensor, "P C"], ordinary: Bool[Tensor, "P C"], d_in: int
    ) -> None:
        sums = torch.zeros(len(valid), d_in, dtype=torch.float64, device=valid.device)
        outliers = torch.zeros(d_in, dtype=torch.float64, device=valid.device)
        outliers_at = torch.zeros_like(sums)
        for part in parts:
            sums += (part.batch.x.double() * part.valid[..., None]).sum(dim=1)
            out = part.valid & ~ordinary[:, part.contexts]
            outliers += part.batch.x[out].double().sum(dim=0)
            outliers_at.index_add_(0, out.nonzero()[:, 0], part.batch.x[out].double())
        self.overall: Float[Tensor, "1 1 d_in"] = (sums.sum(dim=0) / valid.sum()).float()[None, None]
        rest = (sums.sum(dim=0) - outliers) / ordinary.sum()
        self.ordinary: Float[Tensor, "1 1 d_in"] = rest.float()[None, None]
        self.by_position: Float[Tensor, "P 1 d_in"] = (sums / valid.sum(dim=1, keepdim=True)).float()[:, None]
        left = (sums - outliers_at) / ordinary.sum(dim=1, keepdim=True)
        self.ordinary_by_position: Float[Tensor, "P 1 d_in"] = left.float()[:, None]


class _Tally:
    """Running sums for one SAE; [P, C] arrays keep every token's figure so that contexts can be resampled."""

    def __init__(self, sae: SAE, valid: Bool[Tensor, "P C"], ordinary: Bool[Tensor, "P C"]) -> None:
        self.valid = valid
        self.ordinary = ordinary
        device = valid.device
        self.squares = {
            name: torch.zeros(valid.shape, dtype=torch.float64, device=device)
            for name in (
                "error", "variance", "variance_ordinary", "variance_at_position", "variance_ordinary_at_position",
                "norm", "cosine", "l0", "l1",
            )
        }  # fmt: skip
        self.fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
        # In float64, exact for counts: GPUs have no product of integer matrices.
        self.allowed = torch.zeros(sae.d_sae, dtype=torch.float64, device=device)
        self.output_sum = torch.zeros(sae.d_in, dtype=torch.float64, device=device)
        self.output_square = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, sae: SAE, part: ContextBatch, means: _Means) -> None:
        x, valid, acts = part.batch.x, part.valid, part.encode(sae)
        x_hat = sae.decode(acts, part.batch.token_positions.to(acts.device), x).to(x.device)
        active = acts > 0
        figures = {
            "error": (x - x_hat).square().sum(dim=-1),
            "variance": (x - means.overall).square().sum(dim=-1),
            "variance_ordinary": (x - means.ordinary).square().sum(dim=-1),
            "variance_at_position": (x - means.by_position).square().sum(dim=-1),
            "variance_ordinary_at_position": (x - means.ordinary_by_position).square().sum(dim=-1),
            "norm": x.square().sum(dim=-1),
            "cosine": torch.nn.functional.cosine_similarity(x, x_hat, dim=-1),
            "l0": active.sum(dim=-1).to(x.device),
            "l1": acts.sum(dim=-1).to(x.device),
        }
        for name, figure in figures.items():
            self.squares[name][:, part.contexts] = torch.where(valid, figure.double(), 0.0)
        self.fired += active.sum(dim=(0, 1)).to(x.device)
        can_fire = sae.mask.can_fire(part.batch.positions.to(acts.device)).to(x.device)
        self.allowed += valid.sum(dim=1).double() @ can_fire.double()
        seen = x_hat[valid].double()
        self.output_sum += seen.sum(dim=0)
        self.output_square += seen.square().sum()

    def to_cpu(self) -> None:
        """Bring the sums to the CPU, all at once: reading them batch by batch would wait for the GPU each time."""
        self.valid, self.ordinary = self.valid.cpu(), self.ordinary.cpu()
        self.fired, self.allowed = self.fired.cpu(), self.allowed.cpu()
        self.output_sum, self.output_square = self.output_sum.cpu(), self.output_square.cpu()
        self.squares = {name: values.cpu() for name, values in self.squares.items()}

    def by_context(self, name: str, of: Bool[Tensor, "P C"] | None = None) -> np.ndarray:
        """Sum over positions, of some of the tokens or all, shape [C]."""
        values = self.squares[name]
        return (values if of is None else torch.where(of, values, 0.0)).sum(dim=0).numpy()

    def by_position(self, name: str, of: Bool[Tensor, "P C"] | None = None) -> np.ndarray:
        """Sum over contexts, of some of the tokens or all, shape [P]."""
        values = self.squares[name]
        return (values if of is None else torch.where(of, values, 0.0)).sum(dim=1).numpy()

    @property
    def output_variance(self) -> float:
        """Variance of the reconstruction, summed over dimensions, per token."""
        n = int(self.valid.sum())
        return float(self.output_square) / n - float((self.output_sum / n).square().sum())


def _result(
    subject: LoadedSAE,
    tally: _Tally,
    loss: LossTally | None,
    store: ActivationStore,
    positions: list[int],
    config: CoreConfig,
) -> CoreResult:
    n_tokens = int(tally.valid.sum())
    sums = DocumentSums.of(store.doc_ids[:, : tally.valid.shape[1]].amax(dim=0).numpy(), config.seed)
    counts = tally.valid.sum(dim=1).numpy()
    rates = tally.fired.double() / tally.allowed.clamp_min(1)
    error, variance = tally.by_context("error"), tally.by_context("variance")
    ordinary = tally.ordinary
    without = tally.by_context("variance_ordinary", ordinary)
    error_without = tally.by_context("error", ordinary)
    of_tokens = tally.valid.sum(dim=0).numpy()
    ratios = {
        "fve": (variance - error, variance),
        "fve_without_outliers": (without - error_without, without),
        "normalised_mse": (error, tally.by_context("norm")),
        **{name: (tally.by_context(name), of_tokens) for name in ("cosine", "l0", "l1")},
    }
    by_text = {name: sums.ratio(*ratio) for name, ratio in ratios.items()} | (loss.by_text(config.seed) if loss else {})
    reasons = reasons_before_running(subject) + reasons_from_activity(
        int((tally.fired > 0).sum()), tally.output_variance, variance.sum() / n_tokens
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        by_position = {
            "fve": 1 - tally.by_position("error") / tally.by_position("variance_at_position"),
            "fve_without_outliers": 1
            - tally.by_position("error", ordinary) / tally.by_position("variance_ordinary_at_position", ordinary),
            "normalised_mse": tally.by_position("error") / tally.by_position("norm"),
            **{name: tally.by_position(name) / counts for name in ("cosine", "l0", "l1")},
            **(loss.by_position() if loss else {}),
        }
    return CoreResult.of(
        subject,
        data_from(store, config),
        config.seed,
        reasons,
        sae_config=subject.sae.config,
        n_tokens=n_tokens,
        fve=Estimate.of_ratio(*ratios["fve"], config.seed),
        fve_without_outliers=Estimate.of_ratio(*ratios["fve_without_outliers"], config.seed),
        outlier_token_share=1 - int(ordinary.sum()) / n_tokens,
        outlier_variance_share=finite(tally.by_context("variance", tally.valid & ~ordinary).sum() / variance.sum()),
        saebench_explained_variance=saebench_explained_variance(
            float(error.sum()) / n_tokens, float(tally.by_context("norm").sum()) / n_tokens, store.d_in
        ),
        normalised_mse=finite(error.sum() / tally.by_context("norm").sum()),
        cosine=finite(tally.by_context("cosine").sum() / n_tokens),
        l0=finite(tally.by_context("l0").sum() / n_tokens),
        l1=finite(tally.by_context("l1").sum() / n_tokens),
        dead_share=float((tally.fired == 0).double().mean()),
        dense_share=float((rates > DENSE_RATE).double().mean()),
        duplicate_share=duplicate_share(subject.sae.W_dec[(tally.fired > 0).to(subject.sae.W_dec.device)]),
        density=_density(rates),
        **(loss.figures(config.seed) if loss else {}),
        by_text={name: groups for name, groups in by_text.items() if groups is not None},
        positions=positions,
        by_position={name: [finite(value) for value in values] for name, values in by_position.items()},
    )


def _density(rates: Float[Tensor, "d_sae"]) -> DensityHistogram:
    logs = np.clip(np.log10(rates[rates > 0].numpy()), DENSITY_EDGES[0], None)
    counts, _ = np.histogram(logs, bins=DENSITY_EDGES)
    return DensityHistogram(edges=DENSITY_EDGES, counts=counts.tolist(), dead=int((rates == 0).sum()))
