"""Recovery of the truth is perfect, of nothing is chance, and of anything does not depend on how features are ordered."""

from __future__ import annotations

import pytest
import torch

from scansion.errors import EvalError
from scansion.evals.recovery import evaluate_recovery
from scansion.evals.recovery.matching import one_to_one, profile_overlap, support, support_iou
from scansion.evals.recovery.result import RecoveryResult
from tests.planted import planted_sae, sae_from, subject_of


def recovery(sae, world, **changes: object) -> RecoveryResult:
    planted, held_out = world
    return evaluate_recovery([subject_of(sae, planted, **changes)], planted, held_out)[0]


def random_sae(world, d_sae: int, seed: int = 0, mask: bool = False):
    length = world[0].config.context_length
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(
        torch.randn(d_sae, world[0].config.d_in, generator=generator), dim=1
    )  # fmt: skip
    table = torch.rand(length, d_sae, generator=generator) < 0.25 if mask else None
    return sae_from(directions, length, table, threshold=0.05)


def test_the_planted_dictionary_recovers_itself(easy) -> None:
    result = recovery(planted_sae(easy[0]), easy)
    assert result.status == "ok"
    assert set(result.groups) == {"all", "bound", "unbound", "band", "single", "periodic"}
    for name, group in result.groups.items():
        assert group.mmcs == pytest.approx(1, abs=1e-6), name
        assert group.recovered == 1 and group.n_matched == group.n_true
        for match in (group.firing, group.mask):
            assert match.overlap == match.overlap_recovered == pytest.approx(1, abs=0.01), name
            assert match.iou == match.iou_recovered == pytest.approx(1, abs=0.03), name
    assert result.mmcs_learnt == pytest.approx(1, abs=1e-6)
    assert (result.duplicates, result.spurious_firing, result.spurious_mask) == (0, 0, 0)
    assert result.groups["bound"].firing.overlap_chance < 0.6
    assert RecoveryResult.model_validate_json(result.model_dump_json()) == result


def test_a_random_dictionary_is_at_chance(easy) -> None:
    found = {name: [] for name in ("mmcs", "mmcs_chance", "overlap", "overlap_chance", "iou", "iou_chance")}
    for seed in range(8):
        result = recovery(random_sae(easy, 48, seed, mask=True), easy)
        group = result.groups["bound"]
        assert group.recovered == 0 and group.mask.overlap_recovered is None
        found["mmcs"].append(result.groups["all"].mmcs)
        found["mmcs_chance"].append(result.mmcs_chance)
        for name in ("overlap", "overlap_chance", "iou", "iou_chance"):
            found[name].append(getattr(group.mask, name))
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    assert mean["mmcs"] == pytest.approx(mean["mmcs_chance"], abs=0.02)
    assert mean["overlap"] == pytest.approx(mean["overlap_chance"], abs=0.03)
    assert mean["iou"] == pytest.approx(mean["iou_chance"], abs=0.03)


def test_chance_is_the_mean_over_random_pairings(easy) -> None:
    planted, _ = easy
    result = recovery(planted_sae(planted), easy)
    overlap = profile_overlap(planted.profiles, (planted.profiles > 0).double())
    generator = torch.Generator().manual_seed(0)
    draws = [overlap[torch.arange(48), torch.randperm(48, generator=generator)].mean() for _ in range(2000)]
    drawn = torch.stack(draws)
    expected = result.groups["all"].mask.overlap_chance
    assert float(drawn.mean()) == pytest.approx(expected, abs=4 * float(drawn.std()) / 2000**0.5)


@pytest.mark.parametrize("d_sae", [30, 48, 90])
def test_the_order_of_learnt_features_does_not_matter(easy, d_sae: int) -> None:
    planted, _ = easy
    generator = torch.Generator().manual_seed(1)
    sae = random_sae(easy, d_sae, mask=True)
    with torch.no_grad():  # half of it is the truth, with some noise, so that there is something to match
        noisy = planted.directions[: d_sae // 2] + 0.02 * torch.randn(
            min(48, d_sae // 2), 256, generator=generator
        )  # fmt: skip
        sae.W_dec[: len(noisy)] = torch.nn.functional.normalize(noisy, dim=1)
        sae.W_enc.copy_(sae.W_dec.T)
    order = torch.randperm(d_sae, generator=generator)
    permuted = sae_from(sae.W_dec.detach()[order], 16, sae.mask.open[:, order], threshold=0.05)
    before, after = recovery(sae, easy), recovery(permuted, easy)
    for name, group in before.groups.items():
        for key, value in group.model_dump(exclude={"firing", "mask"}).items():
            assert getattr(after.groups[name], key) == pytest.approx(value, rel=1e-6), (name, key)
        for kind in ("firing", "mask"):
            expected = getattr(group, kind).model_dump()
            assert getattr(after.groups[name], kind).model_dump() == pytest.approx(expected, rel=1e-6), (name, kind)
    for key in ("mmcs_learnt", "mmcs_chance", "duplicates", "spurious_firing", "spurious_mask", "n_live"):
        assert getattr(after, key) == pytest.approx(getattr(before, key), rel=1e-6), key


def test_a_smaller_dictionary_recovers_what_it_holds(easy) -> None:
    planted, _ = easy
    keep = torch.arange(0, 48, 2)
    result = recovery(sae_from(planted.directions[keep], 16), easy)
    group = result.groups["all"]
    assert group.n_matched == 24 and group.recovered == 0.5
    assert result.mmcs_learnt == pytest.approx(1, abs=1e-6)
    bound = planted.is_bound[keep].double().sum() / planted.is_bound.double().sum()
    assert result.groups["bound"].recovered == pytest.approx(float(bound))


def test_features_split_by_position_are_duplicates_and_spuriously_special(make_world) -> None:
    planted, _ = world = make_world(bound=0)
    early = torch.arange(16)[:, None].expand(16, 48) < 8
    sae = sae_from(torch.cat([planted.directions, planted.directions]), 16, torch.cat([early, ~early], dim=1))
    result = recovery(sae, world)
    assert result.duplicates == 1 and result.groups["all"].recovered == 1
    assert result.groups["all"].mask.overlap == pytest.approx(0.5)
    # Half the positions is not fewer than half.
    assert result.spurious_mask == 0
    third = torch.arange(16)[:, None].expand(16, 48) < 5
    narrow = recovery(sae_from(planted.directions, 16, third), world)
    assert (narrow.spurious_mask, narrow.spurious_firing, narrow.duplicates) == (1, 1, 0)
    assert narrow.groups["unbound"].firing.iou == pytest.approx(5 / 16, abs=0.01)
    assert "bound" not in narrow.groups


def test_an_unmasked_sae_of_an_unbound_world_is_not_called_special(make_world) -> None:
    planted, _ = world = make_world(bound=0, n_held_out_contexts=64)  # few firings, so counts are very uneven
    result = recovery(sae_from(planted.directions, 16), world)
    assert result.spurious_firing < 0.1 and result.spurious_mask == 0


@pytest.mark.parametrize(
    ("kind", "reason"), [("untrained", "no training step"), ("dead", "all features are dead"), ("nan", "not finite")]
)
def test_worthless_dictionaries_are_named(easy, kind: str, reason: str) -> None:
    sae = planted_sae(easy[0])
    with torch.no_grad():
        if kind == "dead":
            sae.b_enc.fill_(-1e6)
        elif kind == "nan":
            sae.W_dec[0, 0] = torch.nan
    result = recovery(sae, easy, steps=0 if kind == "untrained" else 5)
    assert result.status == "degenerate"
    assert any(reason in found for found in result.reasons), result.reasons
    assert kind == "untrained" or (result.groups == {} and result.duplicates is None)


def test_saes_and_stores_of_other_worlds_are_refused(easy, make_world) -> None:
    planted, held_out = easy
    other, other_store = make_world(seed=9)
    with pytest.raises(EvalError, match="trained on another synthetic world"):
        evaluate_recovery([subject_of(planted_sae(other), other)], planted, held_out)
    with pytest.raises(EvalError, match="does not hold the held-out contexts"):
        evaluate_recovery([subject_of(planted_sae(planted), planted)], planted, other_store)


def test_profile_figures_have_their_closed_form() -> None:
    flat, half, first = torch.ones(8), torch.tensor([1.0] * 4 + [0] * 4), torch.eye(8)[0]
    columns = torch.stack([flat, 3 * half, 5 * first, torch.zeros(8)], dim=1)
    overlap = profile_overlap(columns, columns)
    expected = torch.tensor([[1, 0.5, 0.125, 0], [0.5, 1, 0.25, 0], [0.125, 0.25, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(overlap, expected.double())
    torch.testing.assert_close(support_iou(columns, columns), expected.double())
    noisy = torch.tensor([9.0, 11, 10, 12, 1, 0, 0, 2])
    assert support(noisy[:, None]).squeeze(1).tolist() == [True] * 4 + [False] * 4


def test_the_pairing_is_the_best_one() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.0], [0.85, 0.1, 0.0]])
    rows, columns = one_to_one(similarity)
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {0: 1, 1: 0}
