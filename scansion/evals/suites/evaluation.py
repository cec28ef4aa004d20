"""SAEBench and sae-probes: their figures, and how they are run in the environment that has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from scansion.activations import ActivationStore
from scansion.errors import ConfigError, EvalError
from scansion.evals.base import LoadedSAE
from scansion.evals.registry import Evaluation, Figure, LoadLM, evaluations
from scansion.evals.suites.config import (
    Part,
    SAEBenchConfig,
    SAEBenchResult,
    SaeProbesConfig,
    SaeProbesResult,
    SuiteConfig,
    SuiteResult,
)
from scansion.evals.suites.runner import NEEDS
from scansion.lm import HookPoint
from scansion.sae import save_sae

Config = TypeVar("Config", bound=SuiteConfig)
_HOW = (
    "make an environment (python -m venv ENV; ENV/bin/pip install {}) and give its Python with --python ENV/bin/python"
)
PEERS = "SCANSION_PEERS"
"""Environment variable that names the Python of the other libraries' environment."""


class Suite(Evaluation[Config, SuiteResult]):
    """A test suite of others on the SAE."""

    result: ClassVar[type[SuiteResult]]
    reads_store = False

    @property
    def tokens_of_own_text(self) -> int:
        """0: tokens past the mask use its last position."""
        return 0

    def check(self, held_out: ActivationStore) -> None:
        """Raise :class:`ConfigError` unless the environment has the suite, before anything else is measured."""
        module = NEEDS[self.name]
        python = self._python()
        find = f"import sys, importlib.util; sys.exit(importlib.util.find_spec({module!r}) is None)"
        try:
            found = subprocess.run([python, "-c", find], capture_output=True, check=False)  # noqa: S603
        except OSError as error:
            raise ConfigError(f"{python} cannot be run ({error}); {_HOW.format(module.replace('_', '-'))}") from error
        if found.returncode:
            raise ConfigError(f"{python} has no {module}; {_HOW.format(module.replace('_', '-'))}")

    def _python(self) -> str:
        return str(self.config.python or os.environ.get(PEERS) or sys.executable)

    @property
    def encodes_single_tokens(self) -> bool:
        """Suites of others pass tokens as they like."""
        return True

    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[SuiteResult]:
        """Run the suite once for each SAE.

        Raises:
            ConfigError: the environment lacks the suite.
            EvalError: the suite fails; the message has its last line.
        """
        hook_point = HookPoint.parse(held_out.identity.hook_point)
        return [self._run_one(sae, hook_point) for sae in saes]

    def _run_one(self, sae: LoadedSAE, hook_point: HookPoint) -> SuiteResult:
        config = self.config
        python = self._python()
        with tempfile.TemporaryDirectory(prefix="scansion-suite-") as name:
            folder = Path(name)
            save_sae(sae.sae, folder / "sae", sae.metadata)
            settings = {setting: getattr(config, setting) for setting in type(config).model_fields}
            job = {
                **{setting: value for setting, value in settings.items() if setting != "python"},
                "suite": self.name,
                "model": config.model or sae.metadata.model,
                "hook_name": hook_point.transformer_lens_name,
                "hook_layer": hook_point.layer,
            }
            (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
            found = _run_beside(python, folder, self.name)
        lifted = bool(found["flat_batches"]) and not sae.sae.treats_positions_alike
        data = {"config": config.model_dump(mode="json")}
        result = self.result.of(sae, data, config.seed, lifted=lifted, **found)
        if lifted:
            result.notes.append(
                f"{self.name} passed {found['flat_batches']} batches of single tokens without their places in the text; for "
                "these the mask was lifted."
            )
        return result


def _run_beside(python: str, folder: Path, suite: str) -> dict[str, Any]:
    source = str(Path(__file__).parents[3])
    # The suites' own shape checks fail under newer versions of beartype.
    environment = os.environ | {"PYTHONPATH": source, "JAXTYPING_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(  # noqa: S603 - no shell; the user names the program
            [python, "-m", "scansion.evals.suites.runner", str(folder)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    except OSError as error:
        raise EvalError(f"{python} cannot be run ({error})") from error
    if done.returncode:
        last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise EvalError(f"{suite} failed in {python}: {last}")
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def _runs(part: Part) -> Callable[[SAEBenchConfig], bool]:
    return lambda config: part in config.evaluations


@evaluations.register(SAEBenchConfig)
class SAEBench(Suite[SAEBenchConfig]):
    """SAEBench's own evaluations (sparse probing, core, SCR, TPP, absorption), run in an environment that has SAEBench."""

    result = SAEBenchResult
    figures = (
        Figure(
            "saebench_accuracy", "SAEBench probing", "up", read="test_accuracy", headline=True,
            only_if=_runs("sparse_probing"),
        ),
        Figure(
            "saebench_top_{n}_accuracy", "SAEBench top {n}", "up", read="top_k_accuracy", headline=(1, 5),
            numbers=lambda config: config.k_values, only_if=_runs("sparse_probing"),
        ),
        Figure(
            "saebench_lm_accuracy", "SAEBench probing, model", read="lm_accuracy", only_if=_runs("sparse_probing")
        ),
        Figure(
            "saebench_explained_variance", "SAEBench explained variance", "up", read="explained_variance",
            only_if=_runs("core"),
        ),
        Figure(
            "saebench_ce_loss_score", "SAEBench loss recovered", "up", read="ce_loss_score", headline=True,
            only_if=_runs("core"),
        ),
        Figure("saebench_kl_div_score", "SAEBench KL recovered", "up", read="kl_div_score", only_if=_runs("core")),
        Figure("saebench_l0", "SAEBench L0", read="l0", digits=1, only_if=_runs("core")),
        Figure(
            "saebench_scr_{n}", "SAEBench SCR, {n} features", "up", read="scr", headline=(20,),
            numbers=lambda config: config.n_values, only_if=_runs("scr"),
        ),
        Figure(
            "saebench_tpp_{n}", "SAEBench TPP, {n} features", "up", read="tpp", headline=(20,),
            numbers=lambda config: config.n_values, only_if=_runs("tpp"),
        ),
        Figure(
            "saebench_absorption", "SAEBench absorption fraction", "down", read="absorption_fraction", headline=True,
            only_if=_runs("absorption"),
        ),
        Figure(
            "saebench_full_absorption", "SAEBench full absorption", "down", read="full_absorption",
            only_if=_runs("absorption"),
        ),
    )  # fmt: skip


@evaluations.register(SaeProbesConfig)
class SaeProbes(Suite[SaeProbesConfig]):
    """sae-probes' own probes on the last token of each text, run in an environment that has sae-probes."""

    result = SaeProbesResult
    figures = (
        Figure(
            "sae_probes_top_{n}_auc", "sae-probes top {n}, AUC", "up", read="top_k_auc", headline=(16,),
            numbers=lambda config: config.k_values,
        ),
        Figure(
            "sae_probes_top_{n}_accuracy", "sae-probes top {n}", "up", read="top_k_accuracy",
            numbers=lambda config: config.k_values,
        ),
    )  # fmt: skip
