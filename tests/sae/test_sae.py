"""Laws of sparse autoencoders, whatever the architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from scansion.errors import ConfigError, ScansionError, ShapeError
from scansion.masks import RandomHardMaskConfig
from scansion.sae import (
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    ReluConfig,
    SAEMetadata,
    TopKConfig,
    build_sae,
    load_sae,
    parse_sae_config,
    save_sae,
)
from scansion.sae.decoder import normalise_decoder, remove_parallel_gradient
from tests.execution.curves import losses_of

L, D_IN, D_SAE = 8, 10, 40
AT = torch.arange(L)

MASK = RandomHardMaskConfig(positions_per_feature=2)
CONFIGS = {
    "relu": ReluConfig(d_sae=D_SAE),
    "topk": TopKConfig(d_sae=D_SAE, k=4),
    "topk, masked": TopKConfig(d_sae=D_SAE, k=4, mask=MASK),
    "batch_topk": BatchTopKConfig(d_sae=D_SAE, k=4),
    "gated": GatedConfig(d_sae=D_SAE),
    "jumprelu": JumpReluConfig(d_sae=D_SAE, initial_threshold=0.2, bandwidth=0.3),
}
METADATA = SAEMetadata(
    model="tiny", model_revision="r", hook_point="resid_post.1", store_key="s", contexts="c", context_length=L,
    use_position_0=False, input_scale=0.5, steps=3, tokens=30, seed=0, training={"lr": 1e-3},
)  # fmt: skip


def make(name: str):
    """A trained-looking SAE: biases and thresholds are not at their starting values."""
    generator = torch.Generator().manual_seed(0)
    sae = build_sae(CONFIGS[name], D_IN, L, generator)
    with torch.no_grad():
        sae.b_dec.copy_(torch.randn(D_IN, generator=generator) * 0.3)
        sae.b_enc.copy_(torch.randn(D_SAE, generator=generator) * 0.1)
        if name == "batch_topk":
            sae.threshold.fill_(0.4)
    return sae.eval()


def some_x(*leading: int) -> torch.Tensor:
    return torch.randn(*leading, D_IN, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_start_is_sane(name: str) -> None:
    sae = build_sae(CONFIGS[name], D_IN, L, torch.Generator().manual_seed(0)).eval()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert (sae.encode(some_x(5, L), AT) > 0).any(dim=(0, 1)).float().mean() > 0.5
    again = build_sae(CONFIGS[name], D_IN, L, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(sae.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("leading", [(L,), (3, L), (2, 3, L)])
def test_leading_axes_are_kept_and_do_not_matter(name: str, leading: tuple[int, ...]) -> None:
    sae, x = make(name), some_x(*leading)
    acts = sae.encode(x, AT)
    assert acts.shape == (*leading, D_SAE) and (acts >= 0).all()
    assert sae(x, AT).shape == x.shape
    torch.testing.assert_close(sae.decode(acts, AT), sae(x, AT))
    one = sae.encode(x.reshape(-1, L, D_IN)[-1])
    torch.testing.assert_close(acts.reshape(-1, L, D_SAE)[-1], one)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scale", [0.01, 7.0])
def test_folding_the_input_scale_changes_units_and_nothing_else(name: str, scale: float) -> None:
    sae, folded, x = make(name), make(name), some_x(3, L)
    folded.fold_scale(scale)
    torch.testing.assert_close(scale * folded.encode(x / scale, AT), sae.encode(x, AT))
    torch.testing.assert_close(scale * folded(x / scale, AT), sae(x, AT))


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_is_the_same_to_the_last_bit(name: str, tmp_path: Path) -> None:
    sae, x = make(name), some_x(3, L)
    save_sae(sae, tmp_path / "sae", METADATA)
    loaded, metadata = load_sae(tmp_path / "sae")
    assert torch.equal(loaded(x, AT), sae(x, AT)) and torch.equal(loaded.encode(x, AT), sae.encode(x, AT))
    assert (loaded.config, metadata) == (sae.config, METADATA)
    assert sorted(path.name for path in (tmp_path / "sae").iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_a_folder_without_an_sae(tmp_path: Path) -> None:
    with pytest.raises(ScansionError, match="holds no SAE"):
        load_sae(tmp_path)


@pytest.mark.parametrize("name", ["topk", "topk, masked"])
def test_topk_keeps_the_k_largest_positive(name: str) -> None:
    sae, x = make(name), some_x(6, L)
    acts, pre_acts = sae.encode(x, AT), sae.pre_acts(x, AT)
    assert ((acts > 0).sum(dim=-1) <= 4).all()
    kth = pre_acts.relu().sort(dim=-1, descending=True).values[..., 3:4]
    torch.testing.assert_close(acts, torch.where(pre_acts >= kth, pre_acts.relu(), 0.0))


def test_batch_topk_shares_places_over_the_batch_in_training_and_not_in_use() -> None:
    sae, x = make("batch_topk"), some_x(6, L)
    sae.train()
    acts = sae.encode(x, AT)
    assert (acts > 0).sum() == 4 * 6 * L
    assert len((acts > 0).sum(dim=-1).unique()) > 1
    sae.eval()
    torch.testing.assert_close(sae.encode(x[:1], AT), sae.encode(x, AT)[:1])


def test_the_threshold_of_batch_topk_reproduces_the_training_sparsity() -> None:
    sae, generator = make("batch_topk"), torch.Generator().manual_seed(3)
    sae.threshold.fill_(-1.0)
    sae.train()
    for _ in range(50):
        x = torch.randn(L, 64, D_IN, generator=generator)
        losses_of(sae, x, torch.arange(L), torch.zeros(D_SAE, dtype=torch.bool))
    sae.eval()
    acts = sae.encode(torch.randn(500, L, D_IN, generator=generator), AT)
    assert (acts > 0).sum(dim=-1).float().mean().item() == pytest.approx(4.0, rel=0.05)


def test_the_gradient_of_jumprelu_thresholds_is_the_kernel_estimate() -> None:
    """For loss = sum of activations, eq. 11 gives -threshold x (tokens within half a bandwidth) / bandwidth."""
    sae, x = make("jumprelu").train(), some_x(200, L)
    sae.encode(x, AT).sum().backward()
    near = ((sae.pre_acts(x, AT) - sae.threshold).abs() < 0.15).sum(dim=(0, 1)) / 0.3
    expected = -sae.threshold * near * sae.threshold  # the last factor: d threshold / d log threshold
    torch.testing.assert_close(sae.log_threshold.grad, expected)
    sae.zero_grad()
    losses_of(sae, x.transpose(0, 1), torch.arange(L), torch.zeros(D_SAE, dtype=torch.bool)).sparsity.backward()
    expected = -0.001 * near / (200 * L) * sae.threshold
    torch.testing.assert_close(sae.log_threshold.grad, expected)


def test_a_step_along_the_corrected_gradient_keeps_norms_to_first_order() -> None:
    sae, x = make("relu").train(), some_x(5, L)
    losses_of(sae, x.transpose(0, 1), torch.arange(L), torch.zeros(D_SAE, dtype=torch.bool)).reconstruction.backward()
    remove_parallel_gradient(sae)
    assert sae.W_dec.grad is not None
    torch.testing.assert_close((sae.W_dec.grad * sae.W_dec).sum(dim=1), torch.zeros(D_SAE), atol=1e-5, rtol=0)
    with torch.no_grad():
        sae.W_dec -= 0.1 * sae.W_dec.grad
    normalise_decoder(sae)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_the_auxiliary_loss_reaches_dead_features_and_only_them() -> None:
    sae, x = make("topk").train(), some_x(L, 20)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[:7] = True
    losses = losses_of(sae, x, torch.arange(L), dead)
    losses.auxiliary.backward()
    assert (sae.W_dec.grad[dead] != 0).any(dim=1).all() and (sae.W_dec.grad[~dead] == 0).all()
    assert losses_of(sae, x, torch.arange(L), torch.zeros_like(dead)).auxiliary == 0


def test_errors_name_the_argument_the_expected_and_the_given_shape(as_users_run_it) -> None:
    sae = make("topk, masked")
    with pytest.raises(ShapeError, match=r"x should have shape \[\.\.\. d_in=10\] but has \[8, 11\]"):
        sae.encode(torch.zeros(L, D_IN + 1))
    with pytest.raises(ShapeError, match=r"acts should have shape \[\.\.\. d_sae=40\] but has \[8, 10\]"):
        sae.decode(torch.zeros(L, D_IN))
    with pytest.raises(ShapeError, match=r"positions should broadcast to \[2, 8\] but have shape \[7\]"):
        sae.encode(torch.zeros(2, L, D_IN), torch.arange(7))
    with pytest.raises(ShapeError, match=r"positions are needed.*shape \[2, 8, 10\].*torch.arange\(L\)"):
        sae.encode(torch.zeros(2, L, D_IN))


def test_a_setting_of_another_architecture_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"k\n.*Extra inputs are not permitted"):
        parse_sae_config({"architecture": "relu", "d_sae": 4, "k": 3})
    with pytest.raises(ConfigError, match="no architecture is called 'hologram'; there are topk, batch_topk"):
        parse_sae_config({"architecture": "hologram", "d_sae": 4})
