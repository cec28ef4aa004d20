"""What feature pages say is what the SAE does: checked against plain loops, closed forms and the language model itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scansion.evals.base import LoadedSAE
from scansion.evals.position.firing import Profile
from scansion.lm import HookPoint, activations_at, logits, unembed
from scansion.masks import BandMaskConfig
from scansion.report.features import (
    FeatureConfig,
    gather_features,
    largest_entries,
    logit_lens,
    nearest_features,
    nearest_in,
    specialisation,
)
from scansion.report.features.directions import LOGIT_BINS
from scansion.report.features.gathering import BINS
from scansion.report.features.together import firing_together, keep_every
from scansion.sae import SAEMetadata, TopKConfig, build_sae
from tests.conftest import FAMILIES, WIDTH, make_lm, random_contexts

CONFIG = FeatureConfig(examples=4, batch_contexts=7)


@pytest.fixture
def subject(store) -> LoadedSAE:
    """A random SAE of 24 features in two bands of positions, a quarter of them shared."""
    config = TopKConfig(d_sae=24, k=3, mask=BandMaskConfig(count=2, shared=0.25))
    sae = build_sae(config, WIDTH, store.n_positions, torch.Generator().manual_seed(0)).eval()
    identity = store.identity
    metadata = SAEMetadata(
        model=identity.model, model_revision=identity.model_revision, hook_point=identity.hook_point, store_key="k",
        contexts="c", context_length=store.n_positions, use_position_0=False, input_scale=1.0, steps=5, tokens=50, seed=0,
        training={},
    )  # fmt: skip
    return LoadedSAE("banded", sae, metadata)


@pytest.fixture
def acts(subject, store) -> torch.Tensor:
    """Every activation, [L, C, F]; 0 at position 0 and where there is no token."""
    with torch.no_grad():
        found = subject.sae.encode(
            store.contexts(0, store.n_contexts).x.float(), torch.arange(store.n_positions)[:, None]
        )
    found = found * store.valid[..., None]
    found[0] = 0
    return found


def test_a_feature_is_what_it_does_on_the_text(subject, store, acts) -> None:
    features = gather_features(subject, store, CONFIG)
    fired = (acts[1:] > 0).sum(dim=1)
    assert features.positions.tolist() == list(range(1, store.n_positions))
    assert np.array_equal(features.profile.counts, fired.numpy())
    assert np.allclose(features.max_act, acts.amax(dim=(0, 1)))
    allowed = store.valid.sum(dim=1).double() @ subject.sae.mask.can_fire(torch.arange(store.n_positions)).double()
    allowed -= subject.sae.mask.can_fire(torch.tensor(0)) * store.valid[0].sum()
    assert np.allclose(features.density, fired.sum(dim=0) / allowed)
    shared = subject.sae.mask.n_shared
    assert np.isnan(features.fidelity[:shared]).all(), "no mask binds them"
    assert np.nanmin(features.fidelity[shared:]) > 0.5, "they fire inside their band and nowhere else"


def test_examples_are_the_strongest_contexts_with_every_firing_in_them(subject, store, acts) -> None:
    examples = gather_features(subject, store, CONFIG).examples
    for f in range(subject.sae.d_sae):
        strength = acts[..., f].amax(dim=0)
        fired = int((strength > 0).sum())
        kept = [int(c) for c in examples.contexts[f, : examples.n_top] if c >= 0]
        assert len(kept) == min(fired, CONFIG.examples) == len(set(kept))
        assert torch.allclose(strength[kept], strength.topk(len(kept)).values)
        K, highest = examples.contexts.shape[1], float(strength.max())
        for kind, (low, high) in enumerate(((1 / 3, 2 / 3), (0, 1 / 3))):
            begin = examples.n_top + CONFIG.weaker_examples * kind
            weaker = [int(c) for c in examples.contexts[f, begin : begin + CONFIG.weaker_examples] if c >= 0]
            share = strength / highest if highest else strength
            among = {int(c) for c in ((share > low) & (share <= high)).nonzero()} - set(kept)
            assert set(weaker) <= among and len(weaker) == min(len(among), CONFIG.weaker_examples)
        for k, context in enumerate(examples.contexts[f].tolist()):
            entries = slice(*examples.offsets[f * K + k : f * K + k + 2])
            if context < 0:
                assert entries.start == entries.stop
                continue
            there = acts[:, context, f].nonzero().squeeze(1)
            assert examples.positions[entries].tolist() == there.tolist()
            assert np.allclose(examples.acts[entries], acts[there, context, f])


def test_histograms_sinks_and_partners_are_those_of_the_activations(subject, store, acts) -> None:
    features = gather_features(subject, store, CONFIG)
    fired = acts[1:] > 0
    assert np.array_equal(features.histogram.sum(axis=1), fired.sum(dim=(0, 1)).numpy())
    f = int(features.profile.counts.sum(axis=0).argmax())
    own = acts[1:, :, f][fired[..., f]].numpy()
    expected, _ = np.histogram(own, BINS, (0, float(features.max_act[f])))
    assert np.abs(expected - features.histogram[f]).sum() <= 2, "but for one on the edge of two steps"
    out = store.outliers.mask[1:]
    share = (acts[1:] * out[..., None]).sum(dim=(0, 1)) / acts[1:].sum(dim=(0, 1))
    assert np.allclose(features.sink_share, share.numpy(), equal_nan=True)
    flat = fired.flatten(0, 1).numpy()
    both = flat.T.astype(int) @ flat
    either = flat.sum(axis=0)[:, None] + flat.sum(axis=0) - both
    jaccard = np.where(both > 1, both / np.maximum(either, 1), 0.0)
    np.fill_diagonal(jaccard, 0)
    n = features.partners.cosines.shape[1]
    assert np.allclose(features.partners.cosines, -np.sort(-jaccard, axis=1)[:, :n])


def test_of_features_that_fire_often_only_some_tokens_are_paired() -> None:
    assert keep_every(32 * 130_000, 130_000) == 1 and keep_every(2000 * 130_000, 130_000) > 100
    token, feature = np.array([0, 0, 1, 1, 2, 3]), np.array([0, 1, 0, 1, 1, 2])
    found = firing_together(token, feature, 4, 3, 2)
    assert found.features.tolist() == [[1, -1], [0, -1], [-1, -1]]
    assert np.allclose(found.cosines[:2, 0], 2 / 3)


def test_the_nearest_feature_of_another_sae_is_found() -> None:
    rows = torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    found = nearest_in(rows, 2 * rows[order])
    assert torch.equal(order[found.features[:, 0]], torch.arange(300)) and np.allclose(found.cosines, 1, atol=1e-5)


def test_batches_do_not_change_what_is_found(subject, store) -> None:
    one, other = (
        gather_features(subject, store, CONFIG.model_copy(update={"batch_contexts": batch})) for batch in (3, 60)
    )
    assert np.allclose(one.max_act, other.max_act)
    assert np.array_equal(one.examples.contexts >= 0, other.examples.contexts >= 0)
    assert np.array_equal(one.profile.counts, other.profile.counts)


def test_specialisation_is_nothing_without_position_and_the_entropy_of_firing_with_nothing_else() -> None:
    tokens = np.full(64, 1000)
    even = np.random.default_rng(0).binomial(1000, 0.1, size=(64, 50)).astype(float)
    # Fires at every token of one position in four, and nowhere else.
    bound = np.where(np.arange(64)[:, None] % 4 == 0, 1000.0, 0.0)
    found = specialisation(Profile(np.hstack([even, bound]), np.zeros((64, 51)), tokens))
    entropy = -0.25 * np.log2(0.25) - 0.75 * np.log2(0.75)
    assert found[-1] == pytest.approx(entropy, abs=1e-3)
    assert found[:-1].mean() < 2e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_unembedding_of_the_last_residual_is_what_the_model_says(family: str) -> None:
    lm, contexts = make_lm(family), random_contexts(2)
    last = activations_at(lm, HookPoint(2), contexts)
    said = logits(lm, contexts, HookPoint(2))
    found = unembed(lm, last.flatten(0, 1)).view_as(said)
    cap = getattr(lm.model.config, "final_logit_softcapping", None)  # Gemma 2 bends logits, in the same order
    assert torch.allclose(cap * torch.tanh(found / cap) if cap else found, said, atol=1e-4)


def test_the_lens_shows_both_ends_of_each_row(lm) -> None:
    rows = torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(0))
    lens = logit_lens(rows, lm, 3)
    every = unembed(lm, rows)
    assert np.allclose(lens.logits[:, 0], every.topk(3, dim=1).values)
    assert np.allclose(lens.logits[:, 1], every.topk(3, dim=1, largest=False).values)
    assert np.allclose(np.take_along_axis(every.numpy(), lens.tokens[:, 1], axis=1), lens.logits[:, 1])
    assert (lens.histogram.sum(axis=1) == every.shape[1]).all()
    for row, counts in zip(every[:20].numpy(), lens.histogram, strict=False):
        expected, _ = np.histogram(row, LOGIT_BINS)
        assert np.abs(expected - counts).sum() <= 2, "but for one on the edge of two steps"


def test_the_largest_entries_of_a_decoder_row() -> None:
    rows = torch.tensor([[0.1, -0.9, 0.0, 0.4], [0.0, 0.0, 1.0, 0.0]])
    dimensions, entries = largest_entries(rows, 2)
    assert dimensions[0].tolist() == [1, 3] and np.allclose(entries[0], [-0.9, 0.4])
    assert dimensions[1, 0] == 2 and np.allclose(entries[1], [1, 0])


def test_the_nearest_features_are_others_and_nearest_first() -> None:
    rows = torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(0))
    rows[7] = 3 * rows[200] + 0.01
    found = nearest_features(rows, 5)
    cosines = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2).fill_diagonal_(-2)
    assert np.allclose(found.cosines, cosines.topk(5, dim=1).values, atol=1e-5)
    assert found.features[7, 0] == 200 and found.features[200, 0] == 7
    assert nearest_features(rows[:3], 5).features.shape == (3, 2), "there are not so many others"


def test_activations_that_are_too_many_to_keep_are_computed_again(subject, store, monkeypatch) -> None:
    kept = gather_features(subject, store, CONFIG)
    monkeypatch.setattr("scansion.report.features.gathering._MOST_KEPT", 1000)
    again = gather_features(subject, store, CONFIG)
    for name in ("histogram", "max_act", "density", "sink_share"):
        assert np.array_equal(getattr(kept, name), getattr(again, name), equal_nan=True)
    for name in ("contexts", "offsets", "positions", "acts"):
        assert np.array_equal(getattr(kept.examples, name), getattr(again.examples, name))
    assert np.array_equal(kept.partners.features, again.partners.features)
