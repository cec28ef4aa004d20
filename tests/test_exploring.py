"""Questions about a trained SAE: the answers are those that encoding everything by hand gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import scansion
from scansion.activations import ActivationStore
from scansion.errors import ConfigError, EvalError
from scansion.lm import HookPoint, LanguageModel, activations_at
from scansion.masks import BandMaskConfig
from scansion.palette import COLOURS
from scansion.sae import SAE, ReluConfig, TopKConfig, save_sae
from tests.conftest import WIDTH
from tests.interop.made import metadata, sae_of


@pytest.fixture
def sae() -> SAE:
    sae = sae_of(TopKConfig(d_sae=32, k=6, mask=BandMaskConfig(count=4, shared=0.25)), WIDTH)
    sae.provenance = metadata()
    return sae


@torch.no_grad()
def encoded(sae: SAE, store: ActivationStore) -> tuple[torch.Tensor, torch.Tensor]:
    """All of a store's feature activations [L, C, d_sae], zero where not valid; and validity."""
    batch = store.contexts(0, store.n_contexts).float()
    return sae.encode(batch) * store.valid[..., None], store.valid


def test_a_text_is_encoded_as_the_store_would_be(sae: SAE, lm: LanguageModel) -> None:
    text = scansion.encode_text(sae, "w5 w9 w12 w3", lm=lm)
    assert text.tokens == ["<s>", "w5", "w9", "w12", "w3"] and text.ids.tolist() == [1, 5, 9, 12, 3]
    contexts = scansion.Contexts.from_token_lists([[1, 5, 9, 12, 3]], 5, pad_id=2)
    with torch.no_grad():
        expected = sae.encode(activations_at(lm, HookPoint.parse("layers.1"), contexts), torch.arange(5))[0]
    torch.testing.assert_close(text.acts[1:], expected[1:], rtol=1e-4, atol=1e-5)
    assert text.applied.tolist() == [False, True, True, True, True] and not bool(text.acts[0].any())
    best = [(feature, value) for feature, value in text.top(2, 3)]
    values, features = expected[2].topk(3)
    assert [feature for feature, _ in best] == features.tolist()
    assert [value for _, value in best] == pytest.approx(values.tolist(), rel=1e-3)
    assert len(text.top(2, 100)) == int((expected[2] > 0).sum())  # only those that fire
    assert repr(text).startswith("EncodedText(5 tokens, 1 of them not encoded ") and "of 32 features fire" in repr(text)


def test_an_empty_text_or_an_sae_of_nowhere_is_refused(sae: SAE, lm: LanguageModel) -> None:
    lm_without_bos = scansion.encode_text(sae, "", lm=lm)
    assert lm_without_bos.tokens == ["<s>"]
    sae.provenance = None
    with pytest.raises(ConfigError, match="does not say which model"):
        scansion.encode_text(sae, "w5")


@pytest.mark.parametrize("by", ["activation", "rate", "contrast"])
@pytest.mark.parametrize("position", [3, [2, 5]])
def test_top_features_are_those_of_the_whole_table(
    sae: SAE, store: ActivationStore, by: str, position: int | list[int]
) -> None:
    acts, valid = encoded(sae, store)
    here = torch.zeros(len(acts), dtype=torch.bool)
    here[position] = True
    acts, valid, here = acts[1:], valid[1:], here[1:]  # position 0 took no part in its training
    rate = (acts[here] > 0).sum(dim=(0, 1)) / valid[here].sum()
    elsewhere = (acts[~here] > 0).sum(dim=(0, 1)) / valid[~here].sum()
    mean = acts[here].sum(dim=(0, 1)) / valid[here].sum()
    top = scansion.top_features(sae, store, position=position, by=by, n=4)
    score = {"activation": mean, "rate": rate, "contrast": rate - elsewhere}[by]
    assert [score[each.feature].item() for each in top] == pytest.approx(score.topk(4).values.tolist(), rel=1e-5)
    for each in top:
        assert each.activation == pytest.approx(float(mean[each.feature]), rel=1e-5)
        assert each.rate == pytest.approx(float(rate[each.feature]), rel=1e-5)
        assert each.rate_elsewhere == pytest.approx(float(elsewhere[each.feature]), rel=1e-5)


def test_a_position_that_is_not_there_is_refused(sae: SAE, store: ActivationStore) -> None:
    with pytest.raises(ConfigError, match=r"position 8: .* has positions 1 to 7"):
        scansion.top_features(sae, store, position=[1, 8])


def test_top_contexts_are_where_the_feature_is_most_active(sae: SAE, store: ActivationStore) -> None:
    acts, _ = encoded(sae, store)
    feature = int((acts[1:] > 0).sum(dim=(0, 1)).argmax())
    highest, positions = acts[1:, :, feature].max(dim=0)  # position 0 took no part in its training
    expected, contexts = highest.topk(5)
    places = scansion.top_contexts(sae, store, feature, n=5, around=2)
    assert [place.context for place in places] == contexts.tolist()
    assert [place.activation for place in places] == pytest.approx(expected.tolist())
    for place in places:
        assert place.position == int(positions[place.context]) + 1
        tokens = store.tokens[:, place.context].tolist()
        assert place.token == str(tokens[place.position])  # there is no model called llama, whose words these are
        assert place.before.split() == [str(each) for each in tokens[max(place.position - 2, 0) : place.position]]
    with pytest.raises(ConfigError, match="no feature 32"):
        scansion.top_contexts(sae, store, 32)


def test_what_is_not_of_the_sae_is_refused(sae: SAE, store: ActivationStore) -> None:
    sae.provenance = metadata().model_copy(update={"hook_point": "resid_post.2"})
    for ask in (
        lambda: scansion.top_features(sae, store, position=1),
        lambda: scansion.top_contexts(sae, store, 1),
        lambda: scansion.plot_firing(sae, store, [1]),
    ):
        with pytest.raises(EvalError, match=r"resid_post\.2"):
            ask()


def test_features_are_matched_whatever_their_order(sae: SAE, tmp_path: Path) -> None:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    other = sae_of(ReluConfig(d_sae=32), WIDTH)
    with torch.no_grad():
        other.W_dec.copy_(2.5 * sae.W_dec[order])  # a direction has no length
    save_sae(sae, tmp_path / "run/sae", metadata())
    found = scansion.match(str(tmp_path / "run"), other)
    assert torch.equal(order[found.features], torch.arange(32)) and bool(found.mutual.all())
    torch.testing.assert_close(found.cosines, torch.ones(32))
    assert repr(found) == "Matches(32 features, 32 with cosine >= 0.9, 32 mutual)"
    with torch.no_grad():
        other.W_dec[3] = other.W_dec[7]
    assert not bool(scansion.match(sae, other).mutual.all())
    with pytest.raises(ConfigError, match="16 and 24 wide"):
        scansion.match(sae, sae_of(ReluConfig(d_sae=8), 24))


def test_pictures_show_the_mask_and_the_rates(sae: SAE, store: ActivationStore) -> None:
    [shown] = scansion.plot_mask(sae).axes[0].get_images()
    weights = torch.tensor(shown.get_array())
    assert torch.equal(weights.sum(dim=0).sort().values, sae.mask.table().sum(dim=1).float().sort().values)
    centre = (weights * torch.arange(8)).sum(dim=1) / weights.sum(dim=1)
    assert bool((centre.diff() >= 0).all())
    acts, valid = encoded(sae, store)
    line, _ = scansion.plot_firing(sae, store, [4, 9]).axes[0].get_lines()
    expected = (acts[1:, :, 4] > 0).sum(dim=1) / valid[1:].sum(dim=1)
    assert line.get_xdata().tolist() == list(range(1, 8)) and line.get_ydata().tolist() == pytest.approx(
        expected.tolist()
    )
    with pytest.raises(ConfigError, match="no positional mask"):
        scansion.plot_mask(sae_of(ReluConfig(d_sae=8), WIDTH))
    with pytest.raises(ConfigError, match=f"give 1 to {len(COLOURS)} numbers"):
        scansion.plot_firing(sae, store, [])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda sae, store: scansion.top_features(sae, store, position=0), "position 0 took no part in training"),
        (lambda sae, store: scansion.top_features(sae, store, position=[]), "position names none"),
        (lambda sae, store: scansion.top_features(sae, store, position="1"), "give a whole number, or several"),
        (lambda sae, store: scansion.top_features(sae, store, position=1.5), "give a whole number, or several"),
        (lambda sae, store: scansion.top_features(sae, store, position=1, n=-1), "n=-1: give a whole number from 1"),
        (lambda sae, store: scansion.top_contexts(sae, store, "12"), "there is no feature '12'"),
        (lambda sae, store: scansion.top_contexts(sae, store, 1, n=0), "n=0: give a whole number from 1"),
        (lambda sae, store: scansion.plot_firing(sae, store, [1.5]), r"there is no feature 1\.5"),
        (lambda sae, store: scansion.plot_firing(sae, store, range(300)), "300 features are too many or too few"),
        (lambda sae, store: scansion.plot_mask(store), "expected an SAE or the folder of a run, not ActivationStore"),
        (lambda sae, store: scansion.encode_text(sae, ["a", "b"]), "text should be one text, not list"),
    ],
)
def test_wrong_arguments_are_named(sae: SAE, store: ActivationStore, as_users_run_it, ask, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ask(sae, store)


def test_one_feature_or_any_kind_of_whole_number_will_do(sae: SAE, store: ActivationStore, as_users_run_it) -> None:
    assert len(scansion.plot_firing(sae, store, 3).axes[0].get_lines()) == 1
    as_list = scansion.top_features(sae, store, position=[1, 2], n=3)
    assert scansion.top_features(sae, store, position=torch.tensor([1, 2]), n=3) == as_list
    assert scansion.top_features(sae, store, position=range(1, 3), n=3) == as_list


def test_a_token_that_is_not_there_and_tokens_left_out_are_named(sae: SAE, lm: LanguageModel) -> None:
    text = scansion.encode_text(sae, "w5 " * 20, lm=lm)
    assert "21 tokens, 14 of them not encoded (position 0, or past the mask)" in repr(text)
    with pytest.raises(ConfigError, match="position=21: give a whole number from 0 to 20"):
        text.top(21)
    with pytest.raises(ConfigError, match="n=-1"):
        text.top(1, n=-1)
