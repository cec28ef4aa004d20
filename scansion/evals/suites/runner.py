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

from scansion.errors import EvalError, ScansionError, ShapeError
from scansion.evals.suites import saebench
from scansion.sae import SAE, load_sae

NEEDS = {"saebench": "sae_bench", "sae_probes": "sae_probes"}
"""Suite -> the module it is in."""
# The suites name folders after the model: a path would lead them out of the folder they are given.
_LOCAL_MODEL = "local-model"


class Config:
    """As much of an SAE's settings as the suites read.

    Args:
        sae: ours.
        job: names the model and the hook point.
    """

    hook_head_index = dataset_path = None
    prepend_bos, normalize_activations = True, "none"

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
        self._read: torch.Tensor | None = None  # what was encoded last, for an SAE that normalises it
        self.device, self.dtype = torch.device(job["device"]), torch.float32

    def __getattr__(self, name: str) -> Any:
        """The weights are those of ours."""
        return getattr(self.sae, name) if name in ("W_enc", "b_enc", "W_dec", "b_dec") else super().__getattr__(name)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Feature activations.

        Raises:
            ShapeError: the activations have no places in a text, and the SAE needs them; see :meth:`_for`.
        """
        self._read = x if self.sae.config.input_norm != "none" else None
        self.flat_batches += x.ndim == 2
        return self._for(x).encode(x, self._positions(x))

    def decode(self, acts: torch.Tensor) -> torch.Tensor:
        """Reconstruction of what was encoded last, or of the same with some features changed; errors as for :meth:`encode`."""
        return self._for(acts).decode(acts, self._positions(acts), self._read)

    def _for(self, x: torch.Tensor) -> SAE:
        """The SAE for these tokens: lifted, if it has a mask and they have no places.

        Raises:
            ShapeError: it is not to be lifted, or a decoder bias for each band would be needed even so.
        """
        if x.ndim > 2 or self.sae.treats_positions_alike:
            return self.sae
        without = "the suite passes single tokens without their places in the text, and this SAE has"
        if self.sae.b_dec.ndim > 1:
            raise ShapeError(
                f"{without} a decoder bias for each band, so that none is right; this suite cannot take it"
            )
        if self.flat != "lifted":
            raise ShapeError(
                f"{without} a positional mask; flat: lifted encodes them as if every feature could fire everywhere"
            )
        return self.sae.lifted()

    def _positions(self, x: torch.Tensor) -> torch.Tensor | None:
        """Places in texts [B, L, ...]; those past the end of a mask use its last one. None of single tokens."""
        if x.ndim == 2:
            return None
        return torch.arange(x.shape[-2], device=x.device).clamp_max(self.sae.n_positions - 1).expand(x.shape[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``decode(encode(x))``."""
        return self.decode(self.encode(x))


def main(folder: Path) -> int:
    """Run the suite on the SAE in a folder."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    sae, _ = load_sae(folder / "sae", job["device"])
    if Path(job["model"]).is_dir():
        import transformer_lens.supported_models as supported

        path = str(Path(job["model"]).resolve())
        supported.OFFICIAL_MODEL_NAMES.append(path)
        supported.MODEL_ALIASES[path] = [_LOCAL_MODEL]
        job["model"] = _LOCAL_MODEL
    adapter = Adapter(sae, job)
    run = {"saebench": saebench.run, "sae_probes": _sae_probes}[job["suite"]]
    try:
        found = run(adapter, job, folder)
    except Exception as error:
        whose = type(error).__module__.partition(".")[0]
        if not isinstance(error, ConnectionError) and whose not in ("datasets", "huggingface_hub"):
            raise
        raise EvalError(
            f"data or a model cannot be read: {' '.join(str(error).split())}. They come from the Hugging Face hub; offline, a "
            "data set is read from a folder of its name (OWNER/NAME) in the working directory"
        ) from error
    packages = ("sae-bench", "sae-probes", "sae-lens", "transformer-lens", "transformers", "torch")
    versions = {name: version(name) for name in packages if find_spec(name.replace("-", "_"))}
    found |= {"versions": versions, "flat_batches": adapter.flat_batches}
    (folder / "result.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


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
    try:
        sys.exit(main(Path(sys.argv[1]).resolve()))
    except ScansionError as error:
        sys.exit(" ".join(str(error).split()))
    except Exception as error:  # the suites' own; in one line, for the program that reads the last
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
