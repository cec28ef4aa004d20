"""The suite's side: ``python -m scansion.evals.suites.runner FOLDER``, in an environment that has the suite and torch.

FOLDER holds ``job.json`` and the SAE, as :mod:`scansion.evals.suites.evaluation` writes them, and gets ``result.json``.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scansion.errors import ShapeError
from scansion.sae import SAE, load_sae

NEEDS = {"saebench": "sae_bench", "sae_probes": "sae_probes"}
"""Suite -> the module it is in."""


class Config:
    """As much of an SAE's settings as the suites read."""

    def __init__(self, sae: SAE, job: dict[str, Any]) -> None:
        self.model_name, self.hook_name, self.hook_layer = job["model"], job["hook_name"], job["hook_layer"]
        self.d_in, self.d_sae, self.dtype, self.architecture = sae.d_in, sae.d_sae, "float32", sae.config.architecture
        self.context_size, self.seqpos_slice = sae.n_positions, None

    def to_dict(self) -> dict[str, Any]:
        """What is known; SAEBench adds ``metadata``, of a class of SAELens."""
        return {name: value for name, value in vars(self).items() if name != "metadata"}


class Adapter(nn.Module):
    """An SAE of ours as the suites call one. Activations [B, L, d] are of texts that start at place 0.

    Args:
        sae: ours.
        job: says what is to happen to activations without places.
    """

    def __init__(self, sae: SAE, job: dict[str, Any]) -> None:
        super().__init__()
        self.sae = sae
        self.cfg = Config(sae, job)
        self.flat, self.flat_batches = job["flat"], 0
        self.device, self.dtype = torch.device(job["device"]), torch.float32

    def __getattr__(self, name: str) -> Any:
        """The weights are those of ours."""
        return getattr(self.sae, name) if name in ("W_enc", "b_enc", "W_dec", "b_dec") else super().__getattr__(name)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Feature activations.

        Raises:
            ShapeError: the SAE has a mask, the activations have no places in a text, and the mask is not to be lifted.
        """
        if x.ndim == 2:
            self.flat_batches += 1
            if not self.sae.treats_positions_alike and self.flat != "lifted":
                raise ShapeError(
                    "the suite passes single tokens without their places in the text, and this SAE has a positional mask; "
                    "flat: lifted encodes them as if every feature could fire everywhere"
                )
            return self.sae.lifted().encode(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
        # Texts longer than the mask use its last position.
        positions = torch.arange(x.shape[1], device=x.device).clamp_max(self.sae.n_positions - 1)
        return self.sae.encode(x, positions.expand(x.shape[:2]))

    def decode(self, acts: torch.Tensor) -> torch.Tensor:
        """Reconstruction."""
        positions = torch.arange(acts.shape[-2], device=acts.device).clamp_max(self.sae.n_positions - 1)
        return self.sae.decode(acts, positions.expand(acts.shape[:-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``decode(encode(x))``."""
        return self.decode(self.encode(x))


def main(folder: Path) -> int:
    """Run the suite on the SAE in a folder."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    sae, _ = load_sae(folder / "sae", job["device"])
    if Path(job["model"]).is_dir():
        import transformer_lens.supported_models as supported

        supported.OFFICIAL_MODEL_NAMES.append(job["model"])
    adapter = Adapter(sae, job)
    run = {"saebench": _saebench, "sae_probes": _sae_probes}[job["suite"]]
    found = run(adapter, job, folder)
    packages = ("sae-bench", "sae-probes", "sae-lens", "transformer-lens", "transformers", "torch")
    versions = {name: version(name) for name in packages if find_spec(name.replace("-", "_"))}
    found |= {"versions": versions, "flat_batches": adapter.flat_batches}
    (folder / "result.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


def _saebench(adapter: Adapter, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
    from sae_bench.evals.sparse_probing.main import run_eval

    settings = {
        "model_name": job["model"],
        "random_seed": job["seed"],
        "k_values": job["k_values"],
        "probe_train_set_size": job["train_size"],
        "probe_test_set_size": job["test_size"],
        "context_length": job["context_length"],
        "llm_batch_size": job["lm_batch_size"],
        "llm_dtype": "float32",
    }
    config = SparseProbingEvalConfig(**settings | ({"dataset_names": job["datasets"]} if job["datasets"] else {}))
    results = run_eval(
        config, [("scansion", adapter)], job["device"], str(folder / "out"), artifacts_path=str(folder / "lm")
    )
    (result,) = results.values()
    metrics = {**result["eval_result_metrics"]["llm"], **result["eval_result_metrics"]["sae"]}
    top = {k: metrics.get(f"sae_top_{k}_test_accuracy") for k in job["k_values"]}
    return {
        "raw": result,
        "test_accuracy": metrics.get("sae_test_accuracy"),
        "lm_accuracy": metrics.get("llm_test_accuracy"),
        "top_k_accuracy": {k: value for k, value in top.items() if value is not None},
    }


def _sae_probes(adapter: Adapter, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    from sae_probes import run_sae_evals

    run_sae_evals(
        adapter,
        job["model"],
        job["hook_name"],
        "l1",
        "normal",
        ks=job["k_values"],
        results_path=folder / "out",
        model_cache_path=folder / "lm",
        datasets=job["datasets"] or None,
        device=job["device"],
        seed=job["seed"],
    )
    raw = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "out").rglob("*.json"))}

    def means(name: str) -> dict[int, float]:
        found = {k: [line[name] for lines in raw.values() for line in lines if line["k"] == k] for k in job["k_values"]}
        return {k: sum(values) / len(values) for k, values in found.items() if values}

    return {"raw": raw, "top_k_accuracy": means("test_acc"), "top_k_auc": means("test_auc")}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
