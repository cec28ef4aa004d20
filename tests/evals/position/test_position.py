"""The whole evaluation on a tiny store: what must hold of masks in force, lifted, permuted, and of SAEs without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scansion.corpus import Contexts, CorpusConfig
from scansion.errors import ConfigError, EvalError
from scansion.evals.base import LoadedSAE
from scansion.evals.position import (
    PositionConfig,
    evaluate_position,
    excess_over_unmasked,
    load_profiles,
    localised_features,
    save_profiles,
)
from scansion.evals.position.baseline import OverUnmasked
from scansion.evals.position.budget import budget_of
from scansion.evals.position.evaluate import _since_start
from scansion.evals.position.evaluation import Position
from scansion.evals.position.firing import Text, record
from scansion.evals.position.result import PositionResult
from scansion.evals.position.sink import sink_fve
from scansion.evals.position.states import rebuild_start
from scansion.evals.statistics import Estimate
from scansion.masks import BandMaskConfig, NoMaskConfig, RandomHardMaskConfig, SoftMaskConfig, UsageBandMaskConfig
from scansion.sae import ReluConfig, SAEMetadata, SwitchConfig, TopKConfig, build_sae
from tests.conftest import WIDTH, random_contexts
from tests.evals.position.constructed import firing_of, made_up_text

D_SAE, L, SEED = 2 * WIDTH, 8, 3
HARD = RandomHardMaskConfig(positions_per_feature=2)


def make_sae(mask=None, k: int = 6, **settings):
    config = TopKConfig(d_sae=D_SAE, k=k, mask=mask or NoMaskConfig(), **settings)
    return build_sae(config, WIDTH, L, torch.Generator().manual_seed(SEED)).eval()


def subject_of(store, sae, name: str = "sae", **changes: object) -> LoadedSAE:
    identity = store.identity
    metadata = SAEMetadata(
        model=identity.model, model_revision=identity.model_revision, hook_point=identity.hook_point, store_key="k",
        contexts="c", context_length=L, use_position_0=False, input_scale=1.0, steps=5, tokens=50, seed=SEED,
        training={"lr": 1.0},
    ).model_copy(update=changes)  # fmt: skip
    return LoadedSAE(name, sae, metadata)


def evaluate(store, *saes, lm=None, **settings):
    config = PositionConfig(
        **{"groups": 6, "null_draws": 20, "max_null_draws": 200, "mask_draws": 1, "replaced_contexts": 0, **settings}
    )
    subjects = [subject_of(store, sae, f"sae {index}") for index, sae in enumerate(saes)]
    return evaluate_position(subjects, store, None if lm is None else lambda: lm, config)


def at_its_start(store):
    """An SAE with a hard mask as it is before its first step."""
    sae = make_sae(HARD)
    with torch.no_grad():
        sae.b_dec.copy_(store.mean[1:].mean(dim=0))
    return sae


@pytest.fixture(scope="module")
def hard(store):
    return evaluate(store, at_its_start(store))[0]


def test_a_hard_mask_in_force_is_obeyed_by_construction(hard) -> None:
    result, _ = hard
    assert result.status == "ok" and list(result.states) == ["in_force", "lifted", "start", "permuted"]
    for state in ("in_force", "permuted"):
        assert result.states[state].retention.value == pytest.approx(1.0)
        assert result.states[state].auroc.value > 0.75
    assert result.in_force.information.value > 5 * abs(result.free.information.value)


def test_the_lifted_sae_is_also_measured_at_the_l0_of_its_mask(store) -> None:
    sae = build_sae(ReluConfig(d_sae=D_SAE, mask=HARD), WIDTH, L, torch.Generator().manual_seed(SEED))
    result, _ = evaluate(store, sae)[0]
    assert result.free.l0 > 2 * result.in_force.l0
    assert result.equal_l0.l0 == pytest.approx(result.in_force.l0, abs=2 / result.n_tokens)
    assert "position_share_equal_l0" in result.by_text and list(result.states)[-1] == "permuted"
    without, _ = evaluate(store, make_sae(NoMaskConfig()))[0]
    assert without.equal_l0 is None and without.free_at_equal_l0 == without.in_force


def test_lifted_firing_of_an_sae_that_never_trained_shows_nothing(hard) -> None:
    result, _ = hard
    lifted = result.free
    assert abs(lifted.retention.value) < 0.15 and abs(lifted.auroc.value - 0.5) < 0.1
    # It *is* its own start.
    assert result.since_start is not None
    assert result.since_start.similarity == pytest.approx(result.since_start.ceiling)
    assert result.states["start"].retention.value == pytest.approx(lifted.retention.value, abs=1e-5)


def test_features_that_always_fire_have_their_closed_forms_and_no_excess(store) -> None:
    sae = make_sae(HARD, k=D_SAE)
    with torch.no_grad():
        sae.b_enc.fill_(1e6)
    result, profiles = evaluate(store, sae)[0]
    seen = ~np.isnan(profiles["in_force.auroc"])
    assert profiles["in_force.auroc"][seen] == pytest.approx(1.0)
    assert profiles["in_force.overlap"][seen] == pytest.approx(1.0)
    tokens = profiles["tokens"]
    share = (tokens @ profiles["mask"].astype(float) / tokens.sum())[seen]
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert result.in_force.information_raw == pytest.approx(entropy.mean(), rel=1e-5)
    assert result.excess_specialisation.value == pytest.approx(0.0, abs=2e-3)
    assert result.in_force.effective_positions == pytest.approx(profiles["mask"][:, seen].sum(axis=0).mean(), rel=1e-5)
    assert result.free.information_raw == pytest.approx(0.0, abs=1e-9)


def test_the_record_is_what_the_sae_does(store) -> None:
    sae, text = make_sae(), Text.of(store, PositionConfig(groups=6, use_position_0=False))
    firing = record(sae, text, 8, lambda _: None)
    x = store.contexts(0, store.n_contexts).x[1:]
    acts = sae.encode(x, torch.arange(1, L)[:, None]) * store.valid[1:, :, None]
    whole = firing.without(None)
    assert np.array_equal(whole.counts, (acts > 0).sum(dim=1).numpy())
    assert whole.mass == pytest.approx(acts.sum(dim=1).detach().numpy(), rel=1e-5)
    assert np.array_equal(whole.tokens, store.valid[1:].sum(dim=1).numpy())
    halves = firing.half(0), firing.half(1)
    assert np.array_equal(halves[0].counts + halves[1].counts, whole.counts)
    (_, events) = next(firing.events(np.arange(D_SAE)))
    again = torch.zeros(acts.shape, dtype=torch.bool)
    again[events.place, events.context, events.feature] = True
    assert torch.equal(again, acts > 0)


def test_tokens_left_out_count_nowhere(store, lm) -> None:
    ids = tuple(range(3, 20))
    counted = (store.valid & ~torch.isin(store.tokens, torch.tensor(ids)))[1:]
    sae, config = make_sae(), PositionConfig(groups=6, use_position_0=False, exclude_tokens=ids)
    text = Text.of(store, config)
    assert text.n_tokens == int(counted.sum()) < int(store.valid[1:].sum())
    firing = record(sae, text, 8, lambda _: None)
    acts = sae.encode(store.contexts(0, store.n_contexts).x[1:], torch.arange(1, L)[:, None]) * counted[..., None]
    assert np.array_equal(firing.without(None).counts, (acts > 0).sum(dim=1).numpy())
    assert np.array_equal(firing.without(None).tokens, counted.sum(dim=1).numpy())
    result, profiles = evaluate(store, make_sae(HARD), lm=lm, replaced_contexts=20, exclude_tokens=ids)[0]
    assert result.n_tokens == text.n_tokens and np.array_equal(profiles["tokens"], counted.sum(dim=1).numpy())
    whole = evaluate(store, make_sae(HARD), lm=lm, replaced_contexts=20)[0][0]
    assert 0 < result.replacement.n_tokens < whole.replacement.n_tokens
    assert result.states["in_force"].information.value is not None


def test_first_positions_can_be_skipped(store, lm) -> None:
    text = Text.of(store, PositionConfig(groups=6, use_position_0=False, first_position=5))
    assert text.positions.tolist() == list(range(5, L))
    assert np.array_equal(text.lengths, store.valid[5:].sum(dim=0).numpy())
    result, profiles = evaluate(store, make_sae(HARD), lm=lm, replaced_contexts=20, first_position=5)[0]
    whole, all_profiles = evaluate(store, make_sae(HARD), lm=lm, replaced_contexts=20)[0]
    assert result.positions == text.positions.tolist() and result.n_tokens == text.n_tokens < whole.n_tokens
    assert np.array_equal(profiles["counts.lifted"], all_profiles["counts.lifted"][4:])
    assert result.data["config"]["first_position"] == 5 and "first_position" not in whole.data["config"]
    with pytest.raises(EvalError, match=f"first_position is {L - 1}, but the last position with tokens is {L - 1}"):
        evaluate(store, make_sae(HARD), lm=lm, replaced_contexts=0, first_position=L - 1)


def test_a_plan_that_skips_nearly_all_positions_is_refused_before_any_work() -> None:
    corpus = CorpusConfig(layout="documents", context_length=L)
    Position(PositionConfig(first_position=L - 2)).check_plan(corpus)
    with pytest.raises(ConfigError, match=f"first_position is {L - 1}, which leaves less than two positions"):
        Position(PositionConfig(first_position=L - 1)).check_plan(corpus)


def test_what_fires_at_first_positions_alone_is_found_only_there(store) -> None:
    """As windows that are cut where a context begins show the position by construction."""
    mask = BandMaskConfig(edges=(0, 5, L))
    counted = evaluate(store, make_sae(mask, k=D_SAE))[0][0].in_force
    skipped = evaluate(store, make_sae(mask, k=D_SAE), first_position=5)[0][0].in_force
    assert counted.information_share > 0.3 > 0.1 > skipped.information_share


def test_retention_is_known_by_band(store) -> None:
    sae = make_sae(BandMaskConfig(edges=(0, 3, 5, L), shared=0.25), k=D_SAE)
    bands = sae.mask.gate.bands
    result, profiles = evaluate(store, sae)[0]
    found = result.retention_by_band
    assert [(band.first, band.last) for band in found] == [(0, 2), (3, 4), (5, L - 1)]
    values = [band.retention.value for band in found]
    assert len(set(values)) == 3
    assert result.retention_at_positions == (list(range(1, L)), [values[i] for i in (0, 0, 1, 1, 2, 2, 2)])
    # The mean over all bound features is that over bands, weighted by mass.
    parts = np.split(profiles["mass.lifted"][:, bands.shared :], np.cumsum(bands.sizes)[:-1], axis=1)
    fired = [part[:, part.any(axis=0)] for part in parts]
    assert [band.n_alive for band in found] == [part.shape[1] for part in fired]
    mass = [float(part.sum()) for part in fired]
    assert result.free.retention.value == pytest.approx(np.average(values, weights=mass), abs=1e-5)
    assert evaluate(store, make_sae(HARD))[0][0].retention_by_band is None, "it has no bands"


def test_bands_whose_positions_are_skipped_say_nothing(store) -> None:
    sae = make_sae(BandMaskConfig(edges=(0, 3, 6, L), shared=0.25), k=D_SAE)
    result, profiles = evaluate(store, sae, first_position=3)[0]
    assert [(band.first, band.last) for band in result.retention_by_band] == [(3, 5), (6, L - 1)]
    bound = slice(sae.mask.gate.bands.shared, None)
    known = np.isfinite(profiles["lifted.retention"][bound])
    first = slice(0, sae.mask.gate.bands.sizes[0])
    assert not known[first].any() and profiles["mass.lifted"][:, bound][:, first].any() and known.any()


def test_localised_features_are_counted_where_p_values_are_known(store, hard) -> None:
    result, profiles = evaluate(store, make_sae(HARD))[0]
    for state in ("in_force", "lifted"):
        assert result.states[state].localised == localised_features(profiles, state)
    assert result.states["permuted"].localised is None and result.states["start"].localised is None
    in_force = result.states["in_force"].localised
    assert in_force.n_bound > 0 and in_force.own_share == 1.0 > in_force.own_share_chance


def test_weights_too_small_for_float16_close_nothing(store) -> None:
    sae = make_sae(SoftMaskConfig())
    with torch.no_grad():
        sae.mask.logits[: L // 2] = -25.0  # a weight of 1e-11
        sae.mask.logits[L // 2 :] = 2.0
    _, profiles = evaluate(store, sae)[0]
    assert profiles["mask"].dtype == np.float16 and (profiles["mask"] > 0).all()


def test_placebo_and_no_mask_have_the_same_information_and_one_state(store) -> None:
    plain, placebo = evaluate(store, make_sae(), make_sae(HARD.model_copy(update={"acts_on": "placebo"})))
    assert list(plain[0].states) == list(placebo[0].states) == ["in_force", "start"]
    assert (plain[0].mask, placebo[0].mask) == ("reference", "own")
    assert plain[0].in_force.information == placebo[0].in_force.information
    assert plain[0].excess_specialisation is None and placebo[0].excess_specialisation is None
    for result, _ in (plain, placebo):
        assert abs(result.in_force.retention.value) < 0.15 and abs(result.in_force.auroc.value - 0.5) < 0.1


def test_permuting_features_with_their_masks_changes_no_figure(store, hard) -> None:
    result, profiles = hard
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(0))
    sae = at_its_start(store)
    sae.permute_features(order)
    sae.mask.open.copy_(sae.mask.open[:, order])
    other, permuted = evaluate(store, sae)[0]
    for figure in ("auroc", "overlap", "retention", "effective_positions", "positional_score"):
        expected = profiles[f"in_force.{figure}"][order]
        assert permuted[f"in_force.{figure}"] == pytest.approx(expected, rel=1e-5, nan_ok=True), figure
    for name in ("l0", "information_raw", "reliability", "retention_median", "voita_share"):
        assert getattr(other.in_force, name) == pytest.approx(getattr(result.in_force, name), rel=1e-6), name


def test_batches_do_not_matter(store, hard) -> None:
    other, _ = evaluate(store, at_its_start(store), batch_contexts=64)[0]
    for state, figures in hard[0].states.items():
        there = other.states[state].model_dump()
        assert figures.localised == other.states[state].localised
        for name, value in figures.model_dump(exclude={"localised"}).items():
            ours, theirs = (one["value"] if isinstance(one, dict) else one for one in (value, there[name]))
            assert (ours, theirs) == (None, None) or theirs == pytest.approx(ours, rel=1e-4, abs=1e-6), (state, name)


def test_a_worthless_dictionary_is_named_and_its_figures_are_no_numbers(store) -> None:
    sae = make_sae()
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    result, _ = evaluate(store, sae)[0]
    assert result.status == "degenerate" and "all features are dead: none fired on held-out text" in result.reasons
    assert result.in_force.information.value is None and result.in_force.retention.value is None
    assert PositionResult.model_validate_json(result.model_dump_json()) == result


def test_the_start_is_rebuilt_from_the_seed_or_said_not_to_be(store) -> None:
    trained = make_sae(HARD)
    with torch.no_grad():
        trained.W_dec += 0.01
    start = rebuild_start(subject_of(store, trained, input_scale=0.5), store)
    assert not isinstance(start, str)
    assert torch.equal(start.W_enc, make_sae().W_enc)
    mean = store.mean[1:].mean(dim=0).float()
    assert torch.allclose(start.b_dec, mean, atol=1e-5), "the bias is that of unscaled activations"
    for change, reason in (
        ({"training": {}}, "how it was trained is not known"),
        ({"seed": None}, "how it was trained is not known"),
        ({"seed": 4}, "its decoder does not resemble the start its seed gives"),
        ({"started_from": "elsewhere"}, "it was started from another trained SAE"),
    ):
        assert reason in rebuild_start(subject_of(store, trained, **change), store)
    moves = make_sae(UsageBandMaskConfig(count=4))
    assert rebuild_start(subject_of(store, moves), store) == "its features changed places in training"


def test_a_result_says_why_something_was_not_measured(store, hard) -> None:
    assert hard[0].no_start is None and hard[0].replacement is None
    assert hard[0].no_replacement == "it was switched off (replaced_contexts is 0)"
    moves, _ = evaluate(store, make_sae(UsageBandMaskConfig(count=4)))[0]
    assert moves.no_start == "its features changed places in training" and moves.since_start is None
    assert list(moves.states) == ["in_force", "lifted", "permuted"]


def test_a_mask_that_gates_gradients_alone_is_measured_without_being_lifted(store) -> None:
    result, _ = evaluate(store, make_sae(HARD.model_copy(update={"acts_on": "gradient"})))[0]
    assert list(result.states) == ["in_force", "start"] and not result.acts_in_forward
    assert result.excess_specialisation is None and result.mask == "own"


def test_since_start_compares_halves_of_documents() -> None:
    """Two features over two positions: one keeps its profile, the other turns it round."""
    text = made_up_text([2] * 8, n_groups=2)
    ahead, behind = np.array([True, False]), np.array([False, True])

    def fires(first: np.ndarray, second: np.ndarray):
        return firing_of(text, np.stack([first, second], axis=1)[:, None].repeat(8, axis=1))

    same = _since_start(fires(ahead, behind), fires(ahead, behind))
    assert (same.similarity, same.ceiling, same.chance) == (1.0, 1.0, 0.0)
    turned = _since_start(fires(ahead, behind), fires(ahead, ahead))
    assert (turned.similarity, turned.ceiling, turned.chance) == (0.5, 1.0, 0.5)
    # One of the two halves changed: each half of the start is compared with the other half of the end.
    half = np.stack([ahead, behind], axis=1)[:, None].repeat(8, axis=1)
    half[:, text.groups == 1] = half[::-1][:, text.groups == 1]
    assert _since_start(fires(ahead, behind), firing_of(text, half)).similarity == pytest.approx(1 - np.sqrt(0.5))


def test_moved_text_is_part_of_the_result(store, lm) -> None:
    result, profiles = evaluate(store, make_sae(HARD), lm=lm, replaced_contexts=20)[0]
    moved = result.replacement
    assert (
        moved is not None
        and moved.offset == 2
        and moved.n_contexts == 20
        and set(moved.states) == {"in_force", "lifted"}
    )
    in_force = moved.states["in_force"]
    assert in_force.stay_share > in_force.move_share, "a mask in force leaves features no choice"
    assert profiles["lifted.votes"].shape == (D_SAE,)
    with pytest.raises(EvalError, match="moving the text needs the language model"):
        evaluate(store, make_sae(), replaced_contexts=20)


def test_profiles_come_back_from_disk(hard, tmp_path) -> None:
    _, profiles = hard
    save_profiles(profiles, tmp_path / "evals", "0" * 32)
    again = load_profiles(tmp_path / "evals")
    assert set(again) == set(profiles)
    assert all(np.array_equal(again[name], profiles[name], equal_nan=True) for name in profiles)
    assert profiles["counts.lifted"].shape == profiles["mask"].shape == (L - 1, D_SAE)


def test_contexts_of_several_documents_are_refused(make_store, store) -> None:
    contexts = random_contexts(20)
    doc_ids = contexts.doc_ids.clone()
    doc_ids[:, 4:] += 20
    mixed = Contexts(contexts.tokens, contexts.valid, contexts.positions, doc_ids, contexts.doc_positions)
    with pytest.raises(EvalError, match="hold several documents each"):
        evaluate(make_store(mixed), make_sae())


def test_the_baseline_is_the_first_without_a_mask_at_equal_l0(hard) -> None:
    masked, _ = hard

    def like(l0: float, bits: float, config: TopKConfig) -> PositionResult:
        figures = masked.in_force.model_copy(
            update={"l0": l0, "information": Estimate(value=bits, low=None, high=None)}
        )
        return masked.model_copy(update={"states": {"in_force": figures}, "sae_config": config})

    plain, tied = TopKConfig(d_sae=D_SAE, k=6), TopKConfig(d_sae=D_SAE, k=6, mask=HARD)
    same, baseline, denser = like(5.6, 0.3, tied), like(6.0, 0.1, plain), like(6.7, 0.3, tied)
    found = excess_over_unmasked([same, baseline, denser])
    assert found[0].value == pytest.approx(0.2) and found[0].why_not is None
    assert found[1].why_not == "it is the baseline" and found[1].value is None
    assert found[2].value is None and "its L0 is 6.7, that of sae 0 6.0" in found[2].why_not
    assert excess_over_unmasked([same])[0].why_not == "no SAE without a mask is among them"
    worthless = same.model_copy(update={"status": "degenerate"})
    assert excess_over_unmasked([worthless, baseline])[0] == OverUnmasked(None, "it is degenerate")
    unsound = baseline.model_copy(update={"status": "degenerate"})
    assert excess_over_unmasked([unsound, same, baseline])[1].value == pytest.approx(0.2), "the first that is sound"
    assert excess_over_unmasked([like(5.4, 0.3, tied), baseline])[0].value == pytest.approx(0.2), "a tenth is equal"
    assert excess_over_unmasked([like(5.3, 0.3, tied), baseline])[0].value is None
    unknown = Estimate(value=None, low=None, high=None)
    blank = same.model_copy(update={"states": {"in_force": same.in_force.model_copy(update={"information": unknown})}})
    assert excess_over_unmasked([blank, baseline])[0] == OverUnmasked(None, "its information is not known")


def test_the_sink_explains_what_one_feature_for_position_0_would(store) -> None:
    x = store.contexts(0, store.n_contexts).x.double()
    tokens = x[store.valid]
    rest = store.valid.clone()
    rest[0] = False
    x_hat = torch.where((torch.arange(L) == 0)[:, None, None], x[0][store.valid[0]].mean(dim=0), x[rest].mean(dim=0))
    error = (x - x_hat).square().sum(dim=-1)[store.valid].sum()
    assert sink_fve(store) == pytest.approx(1 - float(error / (tokens - tokens.mean(dim=0)).square().sum()), rel=1e-6)


def test_budgets_of_each_kind_of_execution() -> None:
    positions = torch.arange(1, L)
    dense = 4 * WIDTH * D_SAE
    soft = budget_of(make_sae(SoftMaskConfig()), positions, [])
    assert (soft.execution, soft.operations_per_token, soft.available_min) == ("dense", dense, D_SAE)
    hard = budget_of(make_sae(HARD), positions, [])
    assert (hard.execution, hard.operations_per_token, hard.available_max) == ("dense", dense, D_SAE // 4)
    bands = budget_of(make_sae(BandMaskConfig(count=4)), positions, [])
    assert (bands.execution, bands.operations_per_token, bands.available_mean) == ("banded", dense / 4, D_SAE / 4)
    # Bands of 2, 1 and 5 positions, of which the first loses position 0, own 4, 8 and 12 features; 8 are shared.
    uneven = BandMaskConfig(edges=(0, 2, 3, 8), sizes=(4, 8, 12), shared=0.25)
    own = budget_of(make_sae(uneven), positions, [0.5])
    assert (own.available_min, own.available_max, own.width, own.l0_by_position) == (12, 20, D_SAE, [0.5])
    assert own.available_mean == pytest.approx((1 * 12 + 1 * 16 + 5 * 20) / 7)
    assert own.operations_per_token == pytest.approx(4 * WIDTH * own.available_mean)
    switch = build_sae(SwitchConfig(d_sae=D_SAE, k=2, n_experts=4), WIDTH, L, torch.Generator().manual_seed(0))
    routed = budget_of(switch, positions, [])
    assert (routed.execution, routed.operations_per_token) == ("routed", dense / 4 + 2 * WIDTH * 4)
    masked = build_sae(
        SwitchConfig(d_sae=D_SAE, k=2, n_experts=4, mask=HARD), WIDTH, L, torch.Generator().manual_seed(0)
    )
    assert budget_of(masked, positions, []).execution == "dense"
