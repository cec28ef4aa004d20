"""``final_info.json``: a run's figures over its seeds, in the layout that automated research loops read.

``{arm name: {means, stderrs, values, seeds, status, reasons, provenance, costs}}``, one arm for most runs. The file is
the record: tables, notes and reports take their numbers from here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from scansion.errors import ConfigError
from scansion.evals.statistics import TextGroups, finite
from scansion.files import fingerprint
from scansion.pipeline.run_results import RunResults
from scansion.records import read_json, require_known_format, seal_values, unsealed_values, write_json
from scansion.study.by_text import read_by_text, write_by_text
from scansion.training.config import SHORT_STEPS, is_short
from scansion.training.run_folder import read_metrics

ArmStatus = Literal["ok", "degenerate", "failed", "unfinished"]
FINAL_INFO = "final_info.json"
SHORT = "short"
"""What tables write after the name of a run that was trained for too few steps."""


class ArmInfo(BaseModel):
    """What is known of one arm.

    Attributes:
        means, stderrs: of each figure over the seeds that have it; a standard error is ``std / sqrt(n)``, with n - 1 in the
            standard deviation, and None below two seeds. Empty for a degenerate arm, whose figures mean nothing.
        values: the figures themselves, one a seed, in the order of ``seeds``.
        seeds: those that are finished.
        status: ``ok``; ``degenerate`` if nothing was learnt at some seed; ``failed`` if some seed ended in an error or was
            out of time; ``unfinished`` while seeds are missing.
        reasons: why the status is not ``ok``.
        remarks: what to know before reading figures that are ``ok``: ``short: ...`` if training took too few steps.
        provenance: the plan's digest, settings, model, hook point, text and evaluation data.
        not_applicable: evaluation -> why it has no figures, where it could not be applied to this arm.
        by_text: figure -> seed -> the figure by groups of the text it was measured on. In ``by_text.json``, in the same folder;
            empty for results of earlier versions, and on synthetic worlds, where every seed has a text of its own.
        costs: means over seeds of ``train_seconds`` and ``step_ms`` of this SAE alone; None off the CPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    means: dict[str, float | None] = Field(default_factory=dict)
    stderrs: dict[str, float | None] = Field(default_factory=dict)
    values: dict[str, list[float | None]] = Field(default_factory=dict)
    seeds: list[int] = Field(default_factory=list[int])
    status: ArmStatus = "unfinished"
    reasons: list[str] = Field(default_factory=list[str])
    remarks: list[str] = Field(default_factory=list[str])
    not_applicable: dict[str, str] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    costs: dict[str, float | None] = Field(default_factory=dict)
    by_text: dict[str, dict[int, TextGroups]] = Field(default_factory=dict[str, dict[int, TextGroups]], exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _remark_few_steps(cls, values: Any) -> Any:
        """From the steps in the provenance, so that results of earlier versions have the remark too."""
        if not isinstance(values, dict):
            return values
        known = cast(dict[str, Any], values)
        provenance = known.get("provenance")
        steps = cast(dict[str, Any], provenance).get("steps") if isinstance(provenance, dict) else None
        if isinstance(steps, int) and is_short(steps):
            return {**known, "remarks": [f"{SHORT}: {steps:,} training steps, fewer than {SHORT_STEPS:,}"]}
        return known

    @property
    def is_short(self) -> bool:
        """Whether it was trained for too few steps for its figures to be final."""
        return any(remark.startswith(SHORT) for remark in self.remarks)


_ADAPTER: TypeAdapter[dict[str, ArmInfo]] = TypeAdapter(dict[str, ArmInfo])


def read_final_info(folder: Path) -> dict[str, ArmInfo]:
    """Arm name -> what ``folder/final_info.json`` says of it.

    Raises:
        ConfigError: there is none, or it is not one of ours.
    """
    path = folder / FINAL_INFO
    if not path.is_file():
        raise ConfigError(f"{folder} is not a run of a study: it has no {FINAL_INFO}")
    try:
        arms: Any = require_known_format(read_json(path), path)
        if isinstance(arms, dict):
            # Sealed arm by arm: a seal beside the arms would look like one of them to a research loop.
            arms = {name: unsealed_values(arm, f"{path}: {name}") for name, arm in cast(dict[str, Any], arms).items()}
        infos = _ADAPTER.validate_python(arms)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ConfigError(f"{path} does not say what a run says ({where}: {error.errors()[0]['msg']})") from error
    by_text = read_by_text(folder)
    return {name: info.model_copy(update={"by_text": by_text.get(name, {})}) for name, info in infos.items()}


def write_final_info(folder: Path, arms: Mapping[str, ArmInfo]) -> None:
    """Write ``folder/final_info.json``, and ``by_text.json``, which is not for reading, to the same folder."""
    write_by_text(folder, {name: info.by_text for name, info in arms.items()})
    values = {name: seal_values(info.model_dump(mode="json")) for name, info in arms.items()}
    write_json(folder / FINAL_INFO, values, sealed=False)


def summarise_seeds(
    results: Mapping[int, RunResults],
    folders: Mapping[int, Path],
    failures: Mapping[int, str],
    planned: Sequence[int],
    plan: Mapping[str, Any],
) -> ArmInfo:
    """One arm's figures over its seeds.

    Args:
        results: seed -> evaluations, of the seeds that have ended well.
        folders: seed -> folder.
        failures: seed -> why it has no result.
        planned: every seed of the plan.
        plan: what the plan says of the arm, for the provenance.
    """
    seeds = [seed for seed in planned if seed in results]
    done = [results[seed] for seed in seeds]
    reasons = _reasons({seed: results[seed].reasons for seed in seeds})
    missing = [seed for seed in planned if seed not in results and seed not in failures]
    status: ArmStatus = "degenerate" if reasons else "failed" if failures else "unfinished" if missing else "ok"
    for why in dict.fromkeys(failures.values()):
        alike = [str(seed) for seed, its in failures.items() if its == why]
        reasons.append(f"seed {', '.join(alike)} {why}")
    if missing:
        reasons.append(f"not finished: seed {', '.join(map(str, missing))}")
    figures = {} if status == "degenerate" else _by_name([one.means() for one in done])
    return ArmInfo(
        means={name: _mean(values) for name, values in figures.items()},
        stderrs={name: _standard_error(values) for name, values in figures.items()},
        values=figures,
        seeds=seeds,
        status=status,
        reasons=reasons,
        not_applicable={}
        if status == "degenerate"
        else _not_applicable({s: results[s].not_applicable() for s in seeds}),
        provenance={**plan, **(_provenance(done[0], plan.get("world")) if done else {})},
        costs=_costs([folders[seed] for seed in seeds]),
        by_text={}
        if plan.get("world") or status == "degenerate"
        else _by_text({seed: results[seed] for seed in seeds}),
    )


def _reasons(by_seed: Mapping[int, Sequence[str]]) -> list[str]:
    """Why seeds are degenerate; where some are and others are not, which."""
    found: dict[str, list[int]] = {}
    for seed, reasons in by_seed.items():
        for reason in reasons:
            found.setdefault(reason, []).append(seed)
    return [
        reason if len(seeds) == len(by_seed) else f"seed {', '.join(map(str, seeds))}: {reason}"
        for reason, seeds in found.items()
    ]


def _not_applicable(by_seed: Mapping[int, Mapping[str, str]]) -> dict[str, str]:
    names = dict.fromkeys(name for found in by_seed.values() for name in found)
    return {
        name: "; ".join(_reasons({seed: [found[name]] if name in found else [] for seed, found in by_seed.items()}))
        for name in names
    }


def _by_name(means: Sequence[Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for one in means for name in one)
    return {name: [finite(one.get(name)) for one in means] for name in names}


def _by_text(results: Mapping[int, RunResults]) -> dict[str, dict[int, TextGroups]]:
    found: dict[str, dict[int, TextGroups]] = {}
    for seed, one in results.items():
        for name, groups in one.by_text().items():
            found.setdefault(name, {})[seed] = groups
    return found


def _present(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float | None]) -> float | None:
    found = _present(values)
    return statistics.fmean(found) if found else None


def _standard_error(values: Sequence[float | None]) -> float | None:
    found = _present(values)
    return statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None


def _provenance(result: RunResults, world: Any) -> dict[str, Any]:
    # The seed and what depends on it stand beside the values.
    metadata = result.core.sae_metadata.model_dump(mode="json", exclude={"seed", "training", "input_scale"})
    if world is None:
        return {**metadata, "evaluated_on": result.evaluated_on()}
    # Each seed draws a world of its own; what runs must agree on are its settings.
    drawn = dict.fromkeys(("model_revision", "contexts", "store_key"), fingerprint(world))
    measured = {name: {**one.data, "store": "", "contexts": ""} for name, one in result.results.items()}
    return {
        **metadata,
        **drawn,
        "evaluated_on": {name: fingerprint(data) for name, data in measured.items()},
    }


def _costs(folders: Sequence[Path]) -> dict[str, float | None]:
    if not folders:
        return {}
    found = [_cost_of_training(folder) for folder in folders]
    return {
        "train_seconds": _mean([seconds for seconds, _ in found]),
        "step_ms": _mean([step_ms for _, step_ms in found]),
    }


def _cost_of_training(folder: Path) -> tuple[float | None, float | None]:
    """Seconds of all the steps of this SAE, and median milliseconds of one; None if no step was timed."""
    lines = read_metrics(folder)
    times = [line["step_ms"] for line in lines]
    if not times or None in times:
        return None, None
    steps = [line["step"] for line in lines]
    taken = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    return sum(n * ms for n, ms in zip(taken, times, strict=True)) / 1000, statistics.median(times)
