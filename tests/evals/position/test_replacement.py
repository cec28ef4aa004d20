"""Moved text: features that follow the position and those that follow the text are told apart, others are left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scansion.errors import EvalError
from scansion.evals.position import PositionConfig, offset_for
from scansion.evals.position import moving as module
from scansion.evals.position.firing import Text
from scansion.evals.position.moving import MovedText, move_text
from scansion.evals.position.replacement import replaced
from scansion.sae import ReluConfig, build_sae
from tests.conftest import random_contexts
from tests.evals.position.constructed import firing_of, made_up_text

L, OFFSET, CONTEXTS = 24, 6, 40
POSITIONS = L - 1  # position 0 is left out
BY_POSITION, BY_TEXT, BY_NEITHER = 0, 1, 2


def case(seed: int = 0):
    """Three features that read one input each: a bump of the position, the same bump of the text, and a coin."""
    generator = np.random.default_rng(seed)
    text = made_up_text([POSITIONS] * CONTEXTS)
    bump = np.exp(-0.5 * ((np.arange(1, L) - 11) / 3) ** 2)
    coin = np.full(POSITIONS, 0.2)

    def draw(chances: np.ndarray) -> np.ndarray:
        return generator.random((len(chances), CONTEXTS)) < chances[:, None]

    fired = np.stack([draw(bump), draw(bump), draw(coin)], axis=-1)
    kept = POSITIONS - OFFSET
    after = np.stack([draw(bump[OFFSET:]), fired[:kept, :, BY_TEXT], draw(coin[OFFSET:])], axis=-1)
    sae = build_sae(ReluConfig(d_sae=3), 3, L, torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(3))
    moved = MovedText(
        offset=OFFSET,
        positions=text.positions[:kept],
        before_in=np.arange(kept),
        after_in=np.arange(kept) + OFFSET,
        there=torch.ones(kept, CONTEXTS, dtype=torch.bool),
        groups=text.groups,
        before=at_all_positions(text.positions[:kept], fired[:kept]),
        after=at_all_positions(text.positions[:kept] + OFFSET, after),
    )
    return sae.eval(), firing_of(text, fired), moved


def at_all_positions(positions: torch.Tensor, x: np.ndarray) -> torch.Tensor:
    """Activations [L, n, d_in] that are 0 elsewhere."""
    full = torch.zeros(L, *x.shape[1:])
    full[positions] = torch.from_numpy(x).float()
    return full


def test_features_that_stay_move_or_do_neither_are_told_apart() -> None:
    sae, firing, moved = case()
    found = replaced(sae, firing, moved, np.array([True, True, False]))
    assert found.score[BY_POSITION] > 5 and found.score[BY_TEXT] < -5 and abs(found.score[BY_NEITHER]) < 3
    assert found.votes[BY_POSITION] > 0.3 and found.votes[BY_TEXT] < -0.3
    assert found.agreement[BY_TEXT] == pytest.approx(1.0)
    assert abs(found.agreement[BY_POSITION]) < 0.5 and abs(found.agreement[BY_NEITHER]) < 0.15
    figures = found.figures
    assert (figures.n_features, figures.stay_share, figures.move_share, figures.undecided_share) == (2, 0.5, 0.5, 0.0)


def test_a_feature_that_cares_for_neither_is_seldom_decided() -> None:
    scores = [replaced(*case(seed), np.ones(3, dtype=bool)).score[BY_NEITHER] for seed in range(15)]
    assert np.mean(np.abs(scores) > 1.96) <= 0.2
    assert abs(np.mean(scores)) < 0.9


def test_permuting_features_permutes_votes() -> None:
    sae, firing, moved = case()
    order = [2, 0, 1]
    other = build_sae(ReluConfig(d_sae=3), 3, L, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        other.W_enc.copy_(torch.eye(3)[:, order])
    bits = np.unpackbits(firing.bits, axis=1, count=CONTEXTS)[..., order].astype(bool)
    one = replaced(sae, firing, moved, np.ones(3, dtype=bool))
    two = replaced(other, firing_of(firing.text, bits), moved, np.ones(3, dtype=bool))
    for name in ("votes", "score", "agreement"):
        assert getattr(two, name) == pytest.approx(getattr(one, name)[order])


def test_text_is_moved_behind_bos_by_tokens_of_another_document(store, lm, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = module._activations
    monkeypatch.setattr(module, "_activations", lambda contexts, *rest: seen.append(contexts) or real(contexts, *rest))
    # These contexts start with a BOS that the store was not told of: its doc_positions say 0, so it is text like others.
    text = Text.of(store, PositionConfig(groups=4, use_position_0=False))
    moved = move_text(text, lm, 10, 2, 4, np.random.default_rng(0))
    assert isinstance(moved, MovedText) and len(seen) == 1
    contexts = seen[0]
    every = store.tokens.T
    for row in range(10):
        own = contexts.tokens[row, 2:]
        origins = [i for i in range(60) if torch.equal(every[i, :4], own[:4])]
        assert origins, "the text follows its prefix unchanged"
        prefix = contexts.tokens[row, :2]
        donors = [i for i in range(60) if torch.equal(every[i, :2], prefix)]
        assert any(donor not in origins for donor in donors)
    assert moved.positions.tolist() == [1, 2, 3, 4, 5] and moved.after.shape == (8, 10, 16)
    expected = real(contexts, lm, module.HookPoint.parse("resid_post.1"), 10, "float32")
    there = moved.there
    assert torch.allclose(moved.after[moved.positions + 2][there], expected[moved.positions + 2][there], atol=1e-5)


def test_bos_stays_first(make_store, lm, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = random_contexts(12, shortest=6)
    contexts = type(contexts).from_token_lists(
        [row[ok].tolist() for row, ok in zip(contexts.tokens, contexts.valid, strict=True)], 8, 2, has_bos=True
    )
    seen = []
    real = module._activations
    monkeypatch.setattr(module, "_activations", lambda contexts, *rest: seen.append(contexts) or real(contexts, *rest))
    move_text(
        Text.of(make_store(contexts), PositionConfig(groups=4, use_position_0=False)),
        lm,
        5,
        2,
        4,
        np.random.default_rng(0),
    )
    assert (seen[0].tokens[:, 0] == 1).all() and not (seen[0].tokens[:, 1:] == 1).any()


def test_an_offset_that_leaves_too_little_is_refused() -> None:
    assert offset_for(128, None) == 32 and offset_for(8, 4) == 4
    with pytest.raises(EvalError, match="an offset of 5 leaves less than half of a context of 8"):
        offset_for(8, 5)
