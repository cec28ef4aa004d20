"""The other libraries' side: ``python tests/interop/peer_writes.py FOLDER EXPORTED TRAINED``, in an environment that has them.

Writes SAEs by each library's own code into FOLDER, each with what it encodes and decodes some tokens to; for EXPORTED, a folder
of SAEs that Scansion wrote for SAELens beside the same of ours, what SAELens makes of those; and the weights in TRAINED, those
of a TopK SAE, as each library saves a TopK SAE of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

D_IN, D_SAE, K = 16, 64, 5
LAYER, CONSTANT = {"normalize_activations": "layer_norm"}, {"normalize_activations": "constant_norm_rescale"}


def main() -> None:
    """Write everything."""
    out = Path(sys.argv[1])
    torch.manual_seed(0)
    x = torch.randn(200, D_IN) * 7 + 1
    for subtracts in (True, False):
        for name, kind, config, more in (
            ("standard", StandardSAE, StandardSAEConfig, {}),
            ("topk", TopKSAE, TopKSAEConfig, {"k": K}),
            ("topk_rescaled", TopKSAE, TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
            ("jumprelu", JumpReLUSAE, JumpReLUSAEConfig, {}),
            ("gated", GatedSAE, GatedSAEConfig, {}),
            ("standard_constant_norm", StandardSAE, StandardSAEConfig, CONSTANT),
            ("jumprelu_layer_norm", JumpReLUSAE, JumpReLUSAEConfig, LAYER),
            ("topk_layer_norm", TopKSAE, TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True, **LAYER}),
            ("gated_layer_norm", GatedSAE, GatedSAEConfig, LAYER),
        ):
            sae = kind(config(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=subtracts, device="cpu", **more))
            sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name = "blocks.1.hook_resid_post", "llama"
            _randomise(sae, keep=())
            folder = out / f"saelens_{name}{'' if subtracts else '_whole_input'}"
            sae.save_model(folder)
            _reference(folder, x, sae.encode(x), lambda acts, sae=sae: sae.decode(acts))
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, normalize_activations="expected_average_only_in"))
    _randomise(sae, keep=())
    folder = out / "saelens_jumprelu_input_factor_0.3"
    sae.save_model(folder)
    sae.fold_activation_norm_scaling_factor(0.3)
    _reference(folder, x, sae.encode(x), sae.decode)
    peers = {
        "AutoEncoder": AutoEncoder(D_IN, D_SAE),
        "AutoEncoderNew": AutoEncoderNew(D_IN, D_SAE),
        "GatedAutoEncoder": GatedAutoEncoder(D_IN, D_SAE),
        "JumpReluAutoEncoder": JumpReluAutoEncoder(D_IN, D_SAE),
        "AutoEncoderTopK": AutoEncoderTopK(D_IN, D_SAE, K),
        "BatchTopKSAE": BatchTopKSAE(D_IN, D_SAE, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [16, 48]),
    }
    for name, ae in peers.items():
        _randomise(ae, keep=("k", "group_sizes"))
        folder = out / f"dictionary_learning_{name}"
        folder.mkdir(parents=True)
        torch.save(ae.state_dict(), folder / "ae.pt")
        trainer = {"dict_class": name, "lm_name": "llama", "layer": 1, "submodule_name": "resid_post_layer_1"}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 8}}))
        # As it is after loading: some loaders change the weights.
        loaded = type(ae).from_pretrained(folder / "ae.pt")
        _reference(folder, x, loaded.encode(x), lambda acts, loaded=loaded: loaded.decode(acts))
    coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K))
    _randomise(coder, keep=())
    folder = out / "layers.1"
    coder.save_to_disk(folder)
    found = coder.encode(x)
    acts = torch.zeros(len(x), D_SAE).scatter(1, found.top_indices, found.top_acts)
    _reference(folder, x, acts, lambda acts: acts @ coder.W_dec + coder.b_dec)
    _write_gemma_scope(out, x)
    _read_ours(Path(sys.argv[2]))
    _write_trained(Path(sys.argv[3]))


def _randomise(module: torch.nn.Module, keep: tuple[str, ...]) -> None:
    """Weights such that a part of the features is active, and every convention that differs makes a difference."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name in keep:
                continue
            if "threshold" in name:
                tensor.copy_(torch.rand_like(tensor) * 3 + 1)
            else:
                tensor.copy_(torch.randn_like(tensor) * (0.5 if tensor.ndim == 1 else 0.3))


def _reference(folder: Path, x: torch.Tensor, acts: torch.Tensor, decode) -> None:
    with torch.no_grad():
        values = {"x": x, "acts": acts.detach(), "decoded": decode(acts.detach()).detach()}
        save_file({name: value.contiguous() for name, value in values.items()}, f"{folder}.reference.safetensors")


def _write_gemma_scope(out: Path, x: torch.Tensor) -> None:
    """Files as Gemma Scope has them, and what SAELens, which reads them from the hub, makes of them."""
    source = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE))
    _randomise(source, keep=())
    tensors = {name: tensor.detach() for name, tensor in source.state_dict().items()}
    for name, file in (("gemma_scope", "params.npz"), ("gemma_scope_2", "params.safetensors")):
        folder = out / name
        folder.mkdir()
        if file.endswith("npz"):
            np.savez(folder / file, **{name: tensor.numpy() for name, tensor in tensors.items()})
        else:
            save_file(
                {name.replace("W_", "w_"): tensor.contiguous() for name, tensor in tensors.items()}, folder / file
            )
        (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "model_name": "gemma-v3-270m"}))
        loaders.hf_hub_download = lambda repo_id, filename, folder=folder, **_: str(folder / Path(filename).name)
        loaders.get_safetensors_tensor_shapes = lambda *_: {"w_enc": (D_IN, D_SAE), "w_dec": (D_SAE, D_IN)}
        load = (
            loaders.gemma_2_sae_huggingface_loader if file.endswith("npz") else loaders.gemma_3_sae_huggingface_loader
        )
        sae = SAE.load_from_disk(
            "google/gemma-scope-2b-pt-res",
            converter=lambda repo, device, cfg_overrides, load=load: load(
                repo, "resid_post/layer_1_width_16k", device, cfg_overrides={"d_in": D_IN, "d_sae": D_SAE}
            )[:2],
        )
        _reference(folder, x, sae.encode(x), sae.decode)


def _write_trained(home: Path) -> None:
    weights = load_file(home / "trained.safetensors")
    k = int(weights.pop("k"))
    d_in, d_sae = weights["W_enc"].shape
    sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k, rescale_acts_by_decoder_norm=False))
    sae.load_state_dict(weights)
    sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name = "blocks.1.hook_resid_post", "llama"
    sae.save_model(home / "SAELens")
    ae = AutoEncoderTopK(d_in, d_sae, k)
    transposed = {
        "encoder.weight": weights["W_enc"].T,
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T,
    }
    ae.load_state_dict({**transposed, "b_dec": weights["b_dec"]}, strict=False)
    (home / "dictionary_learning").mkdir()
    torch.save(ae.state_dict(), home / "dictionary_learning" / "ae.pt")
    trainer = {"dict_class": "AutoEncoderTopK", "lm_name": "llama", "layer": 1, "submodule_name": "resid_post_layer_1"}
    (home / "dictionary_learning" / "config.json").write_text(
        json.dumps({"trainer": trainer, "buffer": {"ctx_len": 8}})
    )
    coder = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=k))
    with torch.no_grad():
        coder.encoder.weight.copy_(weights["W_enc"].T)
        coder.encoder.bias.copy_(weights["b_enc"])
        coder.W_dec.copy_(weights["W_dec"])
        coder.b_dec.copy_(weights["b_dec"])
    coder.save_to_disk(home / "sparsify" / "layers.1")


def _read_ours(exported: Path) -> None:
    for folder in sorted(path for path in exported.iterdir() if (path / "cfg.json").is_file()):
        x = load_file(f"{folder}.ours.safetensors")["x"]
        sae = SAE.load_from_disk(folder)
        with torch.no_grad():
            acts = sae.encode(x)
            save_file({"acts": acts, "decoded": sae.decode(acts)}, f"{folder}.theirs.safetensors")


if __name__ == "__main__":
    main()
