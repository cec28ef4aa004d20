"""Interventions on a model and an SAE whose causal effects are known: a GPT-2 whose blocks do nothing, or only mix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scansion.activations import ActivationStore, harvest
from scansion.corpus import Contexts, CorpusConfig
from scansion.errors import ConfigError, EvalError
from scansion.evals import figures_in
from scansion.evals.base import LoadedSAE
from scansion.evals.causal.evaluate import PositionCausalConfig, _Text, evaluate_position_causal
from scansion.evals.causal.evaluation import PositionCausal
from scansion.evals.causal.features import Target, choose_targets, position_share
from scansion.evals.causal.result import Tally
from scansion.evals.position.firing import Profile
from scansion.lm import LanguageModel
from tests.conftest import VOCAB, WIDTH, make_lm, make_plan, random_contexts
from tests.interop.made import metadata
from tests.planted import sae_from

LENGTH = 8
CONFIG = PositionCausalConfig(n_features=4, n_contexts=12, min_firings=5, lm_batch_size=5)


def planted_lm(*, mixing: bool) -> LanguageModel:
    """Dimension p of the residual stream is 1 at position p only; dimensions 8 to 15 say to which eighth the word belongs.

    Blocks add nothing, so a change has an effect at its own token alone; with ``mixing``, attention of the last block passes it
    on. Words differ in dimensions 0 to 7 as well when they are predicted, so that these matter to the output.
    """
    lm = make_lm("gpt2")
    body = lm.model.transformer
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for index, block in enumerate(body.h):
            block.mlp.c_proj.weight.zero_()
            block.mlp.c_proj.bias.zero_()
            block.attn.c_proj.bias.zero_()
            block.attn.c_proj.weight *= 100 if mixing and index == 2 else 0
        body.wpe.weight.zero_()
        body.wpe.weight[torch.arange(LENGTH), torch.arange(LENGTH)] = 1.0
        body.wte.weight.zero_()
        body.wte.weight[torch.arange(VOCAB), LENGTH + torch.arange(VOCAB) % LENGTH] = 1.0
        lm.model.lm_head.weight = torch.nn.Parameter(
            torch.randn(VOCAB, WIDTH, generator=generator), requires_grad=False
        )
    return lm


def planted_sae() -> LoadedSAE:
    """The dimensions themselves: features 0 to 7 fire at one position each, features 8 to 15 on words, wherever they are."""
    return LoadedSAE("planted", sae_from(torch.eye(WIDTH), LENGTH, threshold=0.5), metadata())


def store_of(lm: LanguageModel, folder: Path, n: int = 80) -> ActivationStore:
    return harvest(make_plan(folder, random_contexts(n, LENGTH)), lambda: lm)


def text_of(store: ActivationStore) -> _Text:
    return _Text.of(store, CONFIG.model_copy(update={"use_position_0": False}))


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, ActivationStore]:
    lm = planted_lm(mixing=False)
    return lm, store_of(lm, tmp_path_factory.mktemp("still"))


def test_ablating_features_of_one_position_changes_the_output_there_alone(
    still: tuple[LanguageModel, ActivationStore],
) -> None:
    lm, store = still
    (result,) = evaluate_position_causal([planted_sae()], store, lm, CONFIG)
    assert result.status == "ok" and result.n_contexts == 12 == result.n_documents
    assert result.bound is not None and result.control is not None
    assert {feature.feature for feature in result.bound.features} <= set(range(8))
    assert {feature.feature for feature in result.control.features} <= set(range(8, 16))
    for one in result.bound.features:
        assert one.positions == [one.feature] and one.share > 0.9 and one.predicted == 1.0
        assert one.at["ablate"][0] > 0.001 and one.at["ablate"][1] == pytest.approx(0.0, abs=1e-6)
    assert result.bound.ablation_share.value == pytest.approx(1.0, abs=1e-4) and result.bound.predicted_share == 1.0
    # A word means the same everywhere, and its feature fires at half of the changed tokens as often at either place.
    assert result.control.ablation_share.low < 0.5 < result.control.ablation_share.high
    # Blocks add nothing: no later token learns of the change, and none before.
    for group in (result.bound, result.control):
        assert group.ablation_after.value == pytest.approx(0.0, abs=1e-6) == group.steering_after.value
    assert result.before == pytest.approx(0.0, abs=1e-6)


def test_the_effect_is_the_one_computed_by_hand(still: tuple[LanguageModel, ActivationStore]) -> None:
    """Without blocks, the output is the head on the normalised sum of two unit vectors, with one of them changed."""
    lm, store = still
    (result,) = evaluate_position_causal([planted_sae()], store, lm, CONFIG)
    assert result.bound is not None
    one = result.bound.features[0]
    changed = text_of(store).changed
    words = store.tokens[one.feature, changed].long() % LENGTH

    def output(at_position: float) -> torch.Tensor:
        x = torch.zeros(len(words), WIDTH)
        x[:, one.feature] = at_position
        x[torch.arange(len(words)), LENGTH + words] += 1.0
        return lm.model.lm_head(lm.model.transformer.ln_f(x)).log_softmax(dim=-1)

    clean = output(1.0)
    # The feature's activation is 0.5, and its direction has unit norm: ablation leaves 0.5, steering sets it to twice 0.5.
    for mode, value in (("ablate", 0.5), ("steer", 1.5)):
        kl = (clean.exp() * (clean - output(value))).sum(dim=-1).mean().item()
        assert one.at[mode][0] == pytest.approx(kl, rel=1e-3)
    assert one.value == pytest.approx(1.0)


def test_attention_carries_the_effect_to_later_tokens_only(tmp_path: Path) -> None:
    lm = planted_lm(mixing=True)
    (result,) = evaluate_position_causal([planted_sae()], store_of(lm, tmp_path), lm, CONFIG)
    assert result.bound is not None and result.bound.ablation_after.value > 1e-5
    assert result.bound.steering_after.value > 1e-5 and result.before == pytest.approx(0.0, abs=1e-6)


def test_profiles_and_changes_are_of_different_documents(still: tuple[LanguageModel, ActivationStore]) -> None:
    text = text_of(still[1])
    assert not bool(text.profiled[:, text.changed].any()) and bool(text.profiled.any())
    assert 0 not in text.positions


def test_an_untrained_or_silent_sae_is_said_to_be_so(still: tuple[LanguageModel, ActivationStore]) -> None:
    lm, store = still
    sae = planted_sae()
    untrained = replace(sae, name="untrained", metadata=sae.metadata.model_copy(update={"steps": 0}))
    silent = LoadedSAE("silent", sae_from(torch.eye(WIDTH), LENGTH, threshold=100.0), sae.metadata)
    results = evaluate_position_causal([untrained, silent], store, lm, CONFIG)
    assert [result.status for result in results] == ["degenerate", "inapplicable"]
    assert "fired 5 times" in results[1].reasons[0] and figures_in(results[1]) == {}


def test_targets_are_ranked_by_share_and_controls_fire_as_often() -> None:
    positions, tokens = 10, 1000
    counts = np.full((positions, 6), 100.0)
    counts[:, 0] = [900, *[11] * 9]  # tied to the first position
    counts[:, 1] = [0] * 5 + [200] * 5
    counts[:, 2] = 1  # too rare
    counts[:, 3] = 500
    profile = Profile(counts, counts * 2.0, np.full(positions, tokens))
    share = position_share(profile)
    assert share[0] > share[1] > share[4] == pytest.approx(0.0)
    targets, controls = choose_targets(profile, list(range(1, 11)), 2, 50, 0.5, np.random.default_rng(0))
    assert [target.feature for target in targets] == [0, 1]
    assert {control.feature for control in controls} <= {3, 4, 5} and len({c.feature for c in controls}) == 2
    assert controls[0].feature != 3, "it fires five times as often"
    assert targets[0].home == (1,) and targets[1].home == (6, 7, 8) and targets[0].active == 2.0
    assert targets[1].predicted == 1.0 or set(targets[1].other) & {9, 10}
    for one in (*targets, *controls):
        assert len(one.other) == len(one.home) and not set(one.other) & set(one.home)
    assert controls[0].home == targets[0].home and controls[0].predicted == pytest.approx(0.5)


def test_a_feature_that_fires_at_every_token_has_a_share_of_0_and_one_that_never_fires_none() -> None:
    counts = np.array([[10.0, 0, 10], [10, 0, 0]])
    share = position_share(Profile(counts, counts, np.full(2, 10)))
    assert share[0] == 0.0 and np.isnan(share[1]) and share[2] == pytest.approx(1 - 1 / (2 * 20 * np.log(2)))


def test_a_control_that_fires_at_every_token_can_be_written(still: tuple[LanguageModel, ActivationStore]) -> None:
    lm, store = still
    subject = planted_sae()
    with torch.no_grad():
        subject.sae.b_enc[8:] = 5.0
    (result,) = evaluate_position_causal([subject], store, lm, CONFIG)
    assert result.control is not None and {one.share for one in result.control.features} == {0.0}
    assert type(result).model_validate_json(result.model_dump_json()) == result


def test_effects_that_follow_the_profiles_give_the_share_that_these_predict() -> None:
    """One position with all of a feature's effect, and 40 with 0.6 of it: each feature counts as much in both figures."""
    sizes, shares, n_contexts = np.array([[1], [40]]), np.array([[1.0], [0.6]]), 5
    tally = Tally(2, n_contexts)
    tally.n_at[:] = np.broadcast_to(sizes, (2, n_contexts))
    tally.at[:, 0], tally.at[:, 1] = sizes * shares, sizes * (1 - shares)
    targets = [
        Target(index, 0.5, tuple(range(n)), tuple(range(n, 2 * n)), 1.0, float(share))
        for index, (n, share) in enumerate(zip(sizes[:, 0], shares[:, 0], strict=True))
    ]
    effect = tally.effect(targets, [2.0, 2.0], 0)
    assert effect.predicted_share == pytest.approx(0.8) == effect.ablation_share.value


def test_a_store_of_packed_text_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    rows = torch.arange(3, 3 + LENGTH, dtype=torch.int32).repeat(20, 1)
    documents = torch.arange(40, dtype=torch.int32).repeat_interleave(LENGTH // 2).reshape(20, LENGTH)
    packed = replace(Contexts.from_token_lists(rows.tolist(), LENGTH, pad_id=2), doc_ids=documents)
    lm = planted_lm(mixing=False)
    store = harvest(make_plan(tmp_path, packed), lambda: lm)
    with pytest.raises(EvalError, match="hold several documents each"):
        PositionCausal(CONFIG).check(store)
    with pytest.raises(EvalError, match="hold several documents each"):
        evaluate_position_causal([planted_sae()], store, lm, CONFIG)


def test_a_store_of_one_document_a_context_is_accepted(still: tuple[LanguageModel, ActivationStore]) -> None:
    PositionCausal(CONFIG).check(still[1])


def test_its_figures_are_in_tables_and_packed_text_is_refused(still: tuple[LanguageModel, ActivationStore]) -> None:
    lm, store = still
    evaluation = PositionCausal(CONFIG)
    (result,) = evaluation.run([planted_sae()], store, lambda: lm)
    figures = figures_in(result)
    assert list(figures) == evaluation.measured() and all(one.value is not None for one in figures.values())
    with pytest.raises(ConfigError, match="position_causal needs contexts of one document each"):
        evaluation.check_plan(CorpusConfig(layout="packed"))
