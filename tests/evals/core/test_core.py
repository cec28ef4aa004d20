"""Core figures have their closed-form values on constructed cases, and each kind of worthless dictionary is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scansion.errors import EvalError
from scansion.evals.base import LoadedSAE, reasons_from_probes
from scansion.evals.core.evaluate import CoreConfig, evaluate_core, saebench_explained_variance
from scansion.evals.core.evaluation import Core
from scansion.evals.core.loss import spread_over_documents
from scansion.evals.statistics import Estimate, detectable_difference
from scansion.masks import RandomHardMaskConfig
from scansion.report.tables.summary import measured_on
from scansion.sae import ReluConfig, SAEMetadata, TopKConfig, build_sae
from tests.conftest import WIDTH
from tests.outliers import WORD, outlier_store

D_SAE = 2 * WIDTH


@pytest.fixture
def subject(store):
    """``subject(sae)``: an SAE that says it was trained on the store."""
    identity = store.identity

    def make(sae, name: str = "sae", **changes: object) -> LoadedSAE:
        metadata = SAEMetadata(
            model=identity.model, model_revision=identity.model_revision, hook_point=identity.hook_point,
            store_key="k", contexts="c", context_length=8, use_position_0=False, input_scale=1.0, steps=5, tokens=50,
            seed=0, training={},
        ).model_copy(update=changes)  # fmt: skip
        return LoadedSAE(name, sae.eval(), metadata)

    return make


def perfect_sae():
    """Features 2i and 2i + 1 carry the positive and negative part of dimension i, so that nothing is lost."""
    sae = build_sae(ReluConfig(d_sae=D_SAE), WIDTH, 8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_dec.zero_()
        for i in range(WIDTH):
            sae.W_dec[2 * i, i], sae.W_dec[2 * i + 1, i] = 1.0, -1.0
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


def scaled(factor: float):
    sae = perfect_sae()
    with torch.no_grad():
        sae.W_enc *= factor
    return sae


def test_fve_is_given_with_and_without_outlier_tokens(subject, tmp_path) -> None:
    outlying = outlier_store(tmp_path)
    # A dictionary of the outliers' direction and a few others: it explains outliers, and little else.
    x = outlying.contexts(0, outlying.n_contexts).x[1:]
    out = outlying.tokens[1:] == WORD
    direction = torch.nn.functional.normalize(x[out].mean(dim=0), dim=0)
    others = torch.randn(6, x.shape[2], generator=torch.Generator().manual_seed(0))
    rows = torch.linalg.qr(torch.cat([direction[None], others]).T).Q.T.contiguous()
    rows[0] = direction
    sae = build_sae(ReluConfig(d_sae=7), x.shape[2], outlying.n_positions, torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(sae.W_dec.T)
    identity = outlying.identity
    changes = {name: getattr(identity, name) for name in ("model", "model_revision", "hook_point", "context_length")}
    result = core([subject(sae, **changes)], outlying)[0]
    with torch.no_grad():
        error = (x - sae(x, torch.arange(1, outlying.n_positions)[:, None].expand(x.shape[:2]))).double()
    error, x = error.square().sum(dim=2), x.double()

    def fve(of: torch.Tensor) -> float:
        return 1 - float(error[of].sum() / (x[of] - x[of].mean(dim=0)).square().sum())

    assert result.fve.value == pytest.approx(fve(torch.ones_like(out)), abs=1e-4) and result.fve.value > 0.98
    assert result.fve_without_outliers.value == pytest.approx(fve(~out), abs=1e-4)
    for place in range(outlying.n_positions - 1):
        at = torch.zeros_like(out)
        at[place] = ~out[place]
        assert result.by_position["fve_without_outliers"][place] == pytest.approx(fve(at), abs=1e-4)
    assert (
        0 < result.fve_without_outliers.low < result.fve_without_outliers.value < result.fve_without_outliers.high < 0.5
    )
    assert result.outlier_token_share == pytest.approx(0.008, rel=1e-6)
    assert result.outlier_variance_share == pytest.approx(outlying.outliers.variance_share, abs=1e-5)
    assert measured_on(result).endswith("0.8% of these are outlier tokens, which hold 99% of the variance behind FVE.")


def test_excluded_tokens_count_in_no_figure(store, subject, lm) -> None:
    ids = tuple(range(3, 20))
    left = core([subject(scaled(0.9))], store, lm, exclude_tokens=ids, loss_contexts=20)[0]
    out = torch.isin(store.tokens, torch.tensor(ids))
    counted = store.valid & ~out
    counted[0] = False
    x = store.contexts(0, store.n_contexts).x[counted].double()
    assert left.n_tokens == len(x) < int(store.valid[1:].sum())
    assert left.fve.value == pytest.approx(
        1 - 0.01 * float(x.square().sum() / (x - x.mean(dim=0)).square().sum()), abs=1e-5
    )
    # Where every token that counts is left as it is, so is the loss.
    assert "tokens of training documents, position 0 left out, without the tokens that" in measured_on(left)
    perfect = core([subject(perfect_sae())], store, lm, exclude_tokens=ids, loss_contexts=20)[0]
    assert perfect.ce_loss == pytest.approx(perfect.ce_loss_clean, abs=1e-5)
    everything = core([subject(perfect_sae())], store, lm, loss_contexts=20)[0]
    assert perfect.ce_loss_clean != everything.ce_loss_clean


def test_without_outliers_both_figures_are_the_same(store, subject) -> None:
    assert not store.outliers.mask.any()
    result = core([subject(scaled(0.9))], store)[0]
    assert result.fve_without_outliers == result.fve
    assert result.outlier_token_share == result.outlier_variance_share == 0.0
    assert result.by_position["fve_without_outliers"] == result.by_position["fve"]


def used_activations(store) -> torch.Tensor:
    valid = store.valid.clone()
    valid[0] = False
    return store.contexts(0, store.n_contexts).x[valid].double()


def core(subjects, store, lm=None, **config):
    return evaluate_core(subjects, store, lambda: lm, CoreConfig(**{"loss_contexts": 0, **config}))


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.9])
def test_reconstruction_figures_have_their_closed_form(store, subject, factor: float) -> None:
    result = core([subject(scaled(factor))], store)[0]
    x = used_activations(store)
    error = (1 - factor) ** 2
    fve = 1 - error * x.square().sum() / (x - x.mean(dim=0)).square().sum()
    assert result.fve.value == pytest.approx(fve.item(), abs=1e-5)
    assert result.fve.low <= result.fve.value + 1e-9 and result.fve.value - 1e-9 <= result.fve.high
    assert result.normalised_mse == pytest.approx(error, abs=1e-6)
    assert result.cosine == pytest.approx(1.0, abs=1e-5)
    assert result.l0 == pytest.approx(WIDTH)
    assert result.l1 == pytest.approx(factor * x.abs().sum(dim=1).mean().item(), rel=1e-5)
    assert result.n_tokens == len(x)
    assert result.status == "ok"


@pytest.mark.parametrize("factor", [0.5, 0.9])
def test_saebenchs_explained_variance_stands_beside_ours_with_its_own_closed_form(
    store, subject, factor: float
) -> None:
    result = core([subject(scaled(factor))], store)[0]
    x = used_activations(store)
    residual = (1 - factor) ** 2 * x.square().sum(dim=1).mean()
    square = x.square().sum(dim=1).mean()
    ours = 1 - residual / (square - x.mean(dim=0).square().sum())
    theirs = 1 - residual / (square - x.square().mean() ** 2)
    assert result.fve.value == pytest.approx(ours.item(), abs=1e-5)
    assert result.saebench_explained_variance == pytest.approx(theirs.item(), abs=1e-5)
    assert abs(ours - theirs) > 1e-4, "the two are different figures"
    layout = Core(CoreConfig()).saebench(result, subject(scaled(factor)))["eval_result_metrics"]
    assert layout["reconstruction_quality"]["explained_variance"] == result.saebench_explained_variance
    assert layout["sparsity"]["l0"] == result.l0


def test_only_saebenchs_figure_depends_on_the_units() -> None:
    # The same data in other units: both means grow by the square of the unit.
    assert saebench_explained_variance(1.0, 10.0, 16) != saebench_explained_variance(4.0, 40.0, 16)
    assert saebench_explained_variance(1.0, 1e-9, 16) is not None
    assert saebench_explained_variance(1.0, 16.0**2, 16) is None


def test_predicting_the_mean_explains_nothing(store, subject) -> None:
    sae = perfect_sae()
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_dec.copy_(used_activations(store).mean(dim=0))
    result = core([subject(sae)], store)[0]
    assert result.fve.value == pytest.approx(0.0, abs=1e-5)


def test_figures_by_position_are_those_of_the_position_alone(store, subject) -> None:
    result = core([subject(scaled(0.7))], store)[0]
    assert result.positions == list(range(1, 8))
    acts = store.contexts(0, store.n_contexts).x
    for index, position in enumerate(result.positions):
        x = acts[position, store.valid[position]].double()
        fve = 1 - 0.09 * x.square().sum() / (x - x.mean(dim=0)).square().sum()
        assert result.by_position["fve"][index] == pytest.approx(fve.item(), abs=1e-5)
        assert result.by_position["l0"][index] == pytest.approx(WIDTH)


def test_position_0_counts_only_when_asked(store, subject) -> None:
    with_0 = core([subject(scaled(0.7))], store, use_position_0=True)[0]
    assert with_0.positions == list(range(8))
    assert with_0.n_tokens == int(store.valid.sum())


def test_batches_do_not_matter(store, subject) -> None:
    one, two = (core([subject(scaled(0.7))], store, batch_contexts=size)[0] for size in (3, 60))
    for name in ("normalised_mse", "cosine", "l0", "l1", "dead_share"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-6)
    assert one.fve.value == pytest.approx(two.fve.value, rel=1e-6)


def test_dead_and_dense_features_and_the_histogram(store, subject) -> None:
    sae = perfect_sae()
    with torch.no_grad():
        sae.b_enc[:4] = -1e6
        sae.b_enc[4:6] = 1e6
    result = core([subject(sae)], store)[0]
    assert result.dead_share >= 4 / D_SAE and result.dense_share >= 2 / D_SAE
    assert sum(result.density.counts) + result.density.dead == D_SAE
    assert result.density.counts[-1] >= 2


def test_a_masked_feature_is_dense_by_the_positions_it_may_use(store, subject) -> None:
    config = ReluConfig(d_sae=D_SAE, mask=RandomHardMaskConfig(positions_per_feature=1))
    sae = build_sae(config, WIDTH, 8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_enc.fill_(1e6)
    result = core([subject(sae)], store)[0]
    only_at_0 = sae.mask.can_fire(torch.tensor(0)).float().mean().item()
    assert result.dead_share == pytest.approx(only_at_0)
    assert result.dense_share == pytest.approx(1 - only_at_0)


def test_splicing_in_a_perfect_sae_loses_nothing_and_a_zero_one_everything(store, subject, lm) -> None:
    zero = perfect_sae()
    with torch.no_grad():
        zero.W_enc.zero_()
    perfect, nothing = core([subject(perfect_sae(), "p"), subject(zero, "z")], store, lm, loss_contexts=20)
    assert perfect.ce_loss == pytest.approx(perfect.ce_loss_clean, abs=1e-5)
    assert perfect.ce_loss_recovered.value == pytest.approx(1.0, abs=1e-3)
    assert perfect.kl == pytest.approx(0.0, abs=1e-5)
    assert nothing.ce_loss == pytest.approx(nothing.ce_loss_ablated, abs=1e-6)
    assert nothing.ce_loss_recovered.value == pytest.approx(0.0, abs=1e-6)
    assert nothing.kl > 0
    assert perfect.by_position["ce_loss"][-1] is None, "nothing is predicted from the last position"


def test_the_clean_loss_is_the_models_own(store, subject, lm) -> None:
    result = core([subject(perfect_sae())], store, lm, loss_contexts=5)[0]
    losses = []
    for index in spread_over_documents(store, 5, seed=0):
        tokens = store.tokens[store.valid[:, index], index].long()
        logits = lm.model(tokens[None]).logits[0]
        losses += torch.nn.functional.cross_entropy(logits[1:-1], tokens[2:], reduction="none").tolist()
    assert result.ce_loss_clean == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_loss_is_measured_on_as_many_contexts_of_each_document(store) -> None:
    documents = store.doc_ids.amax(dim=0)
    chosen = spread_over_documents(store, 15, seed=0)
    assert chosen.equal(chosen.unique()), "in order, each once"
    full = torch.bincount(documents)
    counts = torch.bincount(documents[chosen], minlength=len(full))
    assert all(counts[one] == full[one] or counts[one] >= counts.max() - 1 for one in documents.unique())
    assert len(spread_over_documents(store, 10**6, seed=0)) == store.n_contexts


def test_groups_of_documents_give_the_figures_back(store, subject, lm) -> None:
    sae = build_sae(TopKConfig(d_sae=D_SAE, k=4), WIDTH, 8, torch.Generator().manual_seed(0))
    (result,) = core([subject(sae)], store, lm, loss_contexts=20)
    assert set(result.by_text) == {
        "fve", "fve_without_outliers", "normalised_mse", "cosine", "l0", "l1", "ce_loss_recovered", "ce_loss", "kl",
    }  # fmt: skip
    for name, groups in result.by_text.items():
        value = getattr(result, name)
        value = value if isinstance(value, float) else value.value
        assert sum(groups.numerators) / sum(groups.denominators) == pytest.approx(value, rel=1e-8)
        assert len(groups.numerators) == min(20, len(np.unique(store.doc_ids[0])) // 2 * 2)


def test_an_sae_of_another_model_is_refused(store, subject) -> None:
    with pytest.raises(
        EvalError, match=r"trained on other test resid_post\.1, but the store holds llama test resid_post\.1"
    ):
        core([subject(perfect_sae(), model="other")], store)


def broken(kind: str):
    sae = build_sae(TopKConfig(d_sae=D_SAE, k=4), WIDTH, 8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        if kind == "dead":
            sae.b_enc.fill_(-1e6)
        elif kind == "nan":
            sae.W_enc[0, 0] = torch.nan
        elif kind == "constant":
            sae.W_enc.zero_()
            sae.b_enc.fill_(1.0)
    return sae


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("untrained", "no training step was taken"),
        ("dead", "all features are dead"),
        ("nan", "weights are not finite: W_enc"),
        ("constant", "the output is constant"),
    ],
)
def test_every_worthless_dictionary_is_named(store, subject, lm, kind: str, reason: str) -> None:
    steps = 0 if kind == "untrained" else 5
    result = core([subject(broken(kind), steps=steps)], store, lm, loss_contexts=4)[0]
    assert result.status == "degenerate"
    assert any(reason in found for found in result.reasons), result.reasons
    assert type(result).model_validate_json(result.model_dump_json()) == result


def test_probes_at_chance_are_a_reason_only_where_the_lm_knows_better() -> None:
    assert reasons_from_probes([0.5, 0.51], [0.9, 0.5])
    assert not reasons_from_probes([0.5, 0.5], [0.5, 0.52])
    assert not reasons_from_probes([0.5, 0.8], [0.9, 0.9])


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        sample = generator.normal(3.0, 1.0, size=50)
        estimate = Estimate.of_ratio(sample, np.ones(50), seed=trial)
        covered += estimate.low <= 3.0 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_intervals_over_seeds_are_those_of_student_and_cover_the_truth() -> None:
    assert Estimate.of_seeds([2.0]) == Estimate(value=2.0, low=None, high=None)
    assert Estimate.of_seeds([]).value is None
    estimate = Estimate.of_seeds([1.0, 2.0, 3.0])
    # mean 2, s = 1, t(2) = 4.3027
    assert (estimate.value, estimate.high) == (2.0, pytest.approx(2 + 4.302653 / 3**0.5))
    assert estimate.low == pytest.approx(4 - estimate.high)
    assert not estimate.excludes_zero and Estimate.of_seeds([-1.0, -1.1, -1.05]).excludes_zero
    assert not Estimate.of_seeds([5.0]).excludes_zero
    generator = np.random.default_rng(0)
    draws = [Estimate.of_seeds(generator.normal(3.0, 1.0, size=4).tolist()) for _ in range(1000)]
    assert sum(draw.low <= 3.0 <= draw.high for draw in draws) / 1000 == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_the_detectable_difference_is_found_four_times_in_five(n: int) -> None:
    """Seeds whose true difference is the detectable one: the interval excludes 0 in 80% of all draws."""
    assert detectable_difference([1.0]) is None
    generator = np.random.default_rng(0)
    spread = generator.normal(size=n)
    detectable = detectable_difference(((spread - spread.mean()) / spread.std(ddof=1)).tolist())
    assert detectable is not None
    # Of draws whose mean is far from 0 in units of their own spread, by the t-test that intervals are made of.
    draws = generator.normal(detectable, 1.0, size=(40_000, n))
    half = Estimate.of_seeds(draws[0].tolist())
    assert half.high is not None and half.value is not None
    bound = (half.high - half.value) / (draws[0].std(ddof=1) / n**0.5)
    found = np.mean(np.abs(draws.mean(axis=1)) > bound * draws.std(axis=1, ddof=1) / n**0.5)
    assert found == pytest.approx(0.8, abs=0.008)
