"""Any module is a hook point by its path, of whatever width, and is refused in a line before weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from scansion.activations import ActivationStore
from scansion.errors import ModelError
from scansion.lm import HookPoint, activations_at, activations_at_each
from tests.conftest import FAMILIES, LAYERS, make_lm, random_contexts

PATHS = {
    "llama": ("model.layers.1.mlp.act_fn", 32),
    "gemma2": ("model.layers.1.mlp.act_fn", 32),
    "gemma3": ("model.layers.1.self_attn.q_proj", 16),
    "gpt_neox": ("gpt_neox.layers.1.mlp.act", 32),
    "gpt2": ("transformer.h.1.mlp.act", 64),
    "qwen2": ("layers.1.self_attn.k_proj", 8),
    "qwen3": ("model.layers.1.input_layernorm", 16),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_activation_is_what_the_module_returns(family: str) -> None:
    path, width = PATHS[family]
    lm, contexts = make_lm(family), random_contexts(3, shortest=4)
    hook_point = HookPoint.parse(path)
    assert HookPoint.parse(str(hook_point)) == hook_point and hook_point.layer == 1
    assert hook_point.width(lm.facts) == width
    seen = []
    module = hook_point.module(lm.model)
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    acts, after = activations_at_each(lm, [hook_point, HookPoint(1)], contexts)
    handle.remove()
    assert acts.shape == (3, 8, width) and acts.equal(seen[0])
    assert after.equal(activations_at(lm, HookPoint(1), contexts))


def test_spellings_of_one_module_are_one_hook_point() -> None:
    assert HookPoint.parse("model.layers.3.mlp.act_fn") == HookPoint.parse("layers.3.mlp.act_fn")
    assert str(HookPoint.parse("transformer.h.3.mlp.act")) == "h.3.mlp.act"
    # What had a spelling of its own keeps it.
    assert str(HookPoint.parse("model.layers.3.mlp")) == "mlp_out.3"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model.layers.1.mlp.act", r"has no module 'layers\.1\.mlp\.act'; there are .*layers\.1\.mlp\.act_fn"),
        ("model.layers.1.mlp.act_fn.inner", "has no module"),
        ("model.rotary_emb", "expected activations"),
        ("model.layers", "does not run"),
    ],
)
def test_modules_that_do_not_fit_are_refused(path: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        HookPoint.parse(path).width(make_lm().facts)
    assert "\n" not in str(caught.value)


def test_from_a_module_to_an_sae(run, lm_folder: Path, documents: Path, tmp_path: Path, monkeypatch) -> None:
    flags = ("--source", documents, "--context-length", 16, "--held-out-fraction", 0.25, "--held-out-tokens", 320,
             "--max-tokens", 1600, "--device", "cpu", "--model", lm_folder, "--out", tmp_path / "stores")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("scansion.pipeline.stores.load_language_model", lambda *_: pytest.fail("the model was loaded"))
        patch.setattr("scansion.pipeline.stores.load_contexts", lambda *_: pytest.fail("text was read"))
        for path, message in (
            ("model.layers.1.mlp.act", "has no module"),
            (f"model.layers.{LAYERS}.mlp.act_fn", f"asks for layer {LAYERS}"),
        ):
            status, _, err = run("harvest", *flags, "--hook-point", path)
            assert status == 2 and message in err and len(err.strip().splitlines()) == 1
    status, _, err = run("harvest", *flags, "--hook-point", "model.layers.1.mlp.act_fn")
    assert status == 0, err
    store = ActivationStore(tmp_path / "stores/train")
    assert store.d_in == 32 and store.identity.hook_point == "layers.1.mlp.act_fn"
    train = ("train", tmp_path / "stores/train", "--d-sae", 48, "--k", 4, "--tokens", 3000, "--batch-tokens", 150)
    status, _, err = run(*train, "--device", "cpu", "--out", tmp_path / "run")
    assert status == 0, err
    status, out, err = run("eval", tmp_path / "run", "--held-out", tmp_path / "stores/held_out", "--evaluations", "core",
                           "--device", "cpu", "--settings", "core: {loss_contexts: 4}")  # fmt: skip
    assert status == 0 and "FVE" in out, err
    status, out, err = run("look", tmp_path / "run", "w5 w9 w20", "--device", "cpu")
    assert status == 0 and "layers.1.mlp.act_fn" in out, err
