"""``scansion study audit``: every figure of finished comparisons computed again, from the values of each seed and text.

This module shares no code with what it checks: it reads the files as they are and uses numpy and scipy alone, so that a
mistake in the tables' statistics is not made twice. ``make layers`` checks that.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any, cast

import numpy as np
import scipy  # pyright: ignore[reportMissingTypeStubs]
import scipy.integrate  # pyright: ignore[reportMissingTypeStubs]
import scipy.optimize  # pyright: ignore[reportMissingTypeStubs]
import scipy.stats  # pyright: ignore[reportMissingTypeStubs]

Json = dict[str, Any]

# Their types are partly unknown.
integrate: Any = scipy.integrate
optimize: Any = scipy.optimize
stats: Any = scipy.stats

_L0 = ("l0", "position_l0_lifted")
_RELATIVE = 1e-6
_POWER = 1e-3  # of what could be detected, which is the root of an integral
_CELL = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
_CAVEAT = re.compile(r"^(.*): ([\d.]+), baseline ([\d.]+)$")


@dataclass
class Audit:
    """What was checked, and what differed.

    Attributes:
        checked: figures computed again.
        differences: a line for each that differs from what a file says.
        not_checked: what could not be computed again, and why.
    """

    checked: int = 0
    differences: list[str] = field(default_factory=list[str])
    not_checked: list[str] = field(default_factory=list[str])

    def expect(self, where: str, said: Any, found: Any, relative: float = _RELATIVE, absolute: float = 1e-12) -> None:
        """Count a figure; note it if ``said`` is not ``found`` to the given precision."""
        self.checked += 1
        numbers = isinstance(said, int | float) and isinstance(found, int | float)
        if abs(said - found) > relative * max(abs(said), abs(found)) + absolute if numbers else said != found:
            self.differences.append(f"{where}: {said!r}, computed again {found!r}")


@dataclass(frozen=True)
class _Mean:
    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    detectable: float | None = None


def audit(folder: Path) -> Audit:
    """Compute again what every ``comparison.json``, ``comparison.md`` and ``final_info.json`` in a folder says.

    Args:
        folder: a study's folder or any that holds some, such as ``results``.
    """
    result = Audit()
    for path in sorted(folder.rglob("*.json")):
        if path.name in ("comparison.json", "final_info.json"):
            try:
                _audit_file(result, path)
            except _DamagedFile as error:
                result.differences.append(str(error))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                why = f"{type(error).__name__}: {error}"
                result.not_checked.append(f"{path}: not as this version writes it ({why}); compare the runs again")
            if path.name == "comparison.json":
                _audit_copies(result, path)
        elif folder in (path.parent, path.parent.parent) and path.name not in ("by_text.json", "plan.json"):
            result.not_checked.append(f"{path}: neither a comparison nor figures by seed")
    if not (result.checked or result.differences or result.not_checked):
        result.not_checked.append(f"{folder} holds no comparison.json and no final_info.json")
    return result


def _audit_file(result: Audit, path: Path) -> None:
    if path.name == "comparison.json":
        _audit_comparison(result, path)
    else:
        arms = {name: one for name, one in _read(path).items() if name not in ("checksum", "format_version")}
        _audit_infos(result, str(path), arms, _read_by_text(path.parent))


class _DamagedFile(Exception):
    """It is not JSON, or no mapping."""


def _read(path: Path) -> Json:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _DamagedFile(f"{path}: damaged: {error}") from error
    if not isinstance(values, dict):
        raise _DamagedFile(f"{path}: damaged: it holds no mapping")
    return cast(Json, values)


# Values of each seed, from sums over text; means over seeds


def _read_by_text(folder: Path) -> dict[str, dict[str, dict[int, Json]]]:
    """Arm -> figure -> seed -> numerators and denominators, or values without each group of text."""
    path = folder / "by_text.json"
    if not path.is_file():
        return {}
    stored = _read(path)
    vectors = [np.array([float(number) for number in one.split()]) for one in stored["vectors"]]
    return {
        arm: {
            figure: {int(seed): {part: vectors[at] for part, at in parts.items()} for seed, parts in by_seed.items()}
            for figure, by_seed in figures.items()
        }
        for arm, figures in stored["arms"].items()
    }


def _audit_infos(result: Audit, where: str, infos: Mapping[str, Json], by_text: Mapping[str, Any]) -> None:
    for arm, info in infos.items():
        for figure, values in info["values"].items():
            at = f"{where}: {arm}: {figure}"
            known = [value for value in values if value is not None]
            result.expect(f"{at}: mean", info["means"].get(figure), float(np.mean(known)) if known else None)
            error = float(stats.sem(known)) if len(known) > 1 else None
            result.expect(f"{at}: standard error", info["stderrs"].get(figure), error)
            for seed, value in zip(info["seeds"], values, strict=True):
                parts = by_text.get(arm, {}).get(figure, {}).get(seed, {})
                if "numerators" in parts:
                    ratio = float(parts["numerators"].sum() / parts["denominators"].sum())
                    result.expect(f"{at}: seed {seed}, from its sums over text", value, ratio, absolute=1e-9)
    if any(info["values"] for info in infos.values()) and not by_text:
        result.not_checked.append(f"{where}: values of single seeds: there is no by_text.json")


def _present(info: Json, figure: str) -> dict[int, float]:
    values = info["values"].get(figure, [])
    return {s: v for s, v in zip(info["seeds"], values, strict=True) if v is not None} if values else {}


# Means, intervals and tests


def _leaving_out(parts: Json) -> np.ndarray:
    if "without" in parts:
        return parts["without"]
    above, below = parts["numerators"], parts["denominators"]
    return np.array([np.delete(above, group).sum() / np.delete(below, group).sum() for group in range(len(above))])


def _mean(values: Mapping[int, float], sides: Sequence[Mapping[int, Json]]) -> _Mean:
    """Mean over seeds; the interval is over seeds and groups of text if both sides are known by these."""
    numbers = np.array(list(values.values()))
    n = len(numbers)
    if n < 2:
        return _Mean(float(numbers.mean()))
    if all(seed in side for seed in values for side in sides):
        rows = [[_leaving_out(side[seed]) for seed in values] for side in sides]
        if len({len(row) for side in rows for row in side}) == 1:
            without = np.array(rows[0]) - (np.array(rows[1]) if len(rows) > 1 else 0.0)
            return _crossed(numbers, without)
    low, high = (
        stats.t.interval(0.95, n - 1, numbers.mean(), stats.sem(numbers)) if np.ptp(numbers) else [numbers[0]] * 2
    )
    p = float(stats.ttest_1samp(numbers, 0.0).pvalue) if np.ptp(numbers) else None
    return _Mean(float(numbers.mean()), float(low), float(high), p, _power_80(n - 1) * float(stats.sem(numbers)))


def _crossed(values: np.ndarray, without: np.ndarray) -> _Mean:
    """Seeds and groups of text as crossed random effects: Clark's quasi-F on the jackknife's pseudo-values."""
    S, G = without.shape
    table = G * values.reshape(S, 1) - (G - 1) * without
    grand, rows, columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
    ms_rows = G * float(np.var(rows, ddof=1))
    ms_columns = S * float(np.var(columns, ddof=1))
    residual = sum((table[s, g] - rows[s] - columns[g] + grand) ** 2 for s in range(S) for g in range(G))
    ms_residual = residual / ((S - 1) * (G - 1))
    variance = max(ms_rows + ms_columns - ms_residual, ms_rows, ms_columns)
    below = ms_rows**2 / (S - 1) + ms_columns**2 / (G - 1) + ms_residual**2 / ((S - 1) * (G - 1))
    df = max(1.0, variance**2 / below) if below > 0 else float(S - 1)
    error = float(np.sqrt(variance / (S * G)))
    value = float(values.mean())
    half = float(stats.t.isf(0.025, df)) * error
    p = float(2 * stats.t.sf(abs(value) / error, df)) if error > 0 else None
    return _Mean(value, value - half, value + half, p, _power_80(int(4 * min(df, 400)) / 4) * error)


@cache
def _power_80(df: float) -> float:
    """Noncentrality at which a two-sided 5% t-test rejects 4 times in 5."""
    bound, normal = float(stats.t.isf(0.025, df)), NormalDist()
    constant = df / 2 * math.log(df / 2) - math.lgamma(df / 2) + math.log(2)

    def power(shift: float) -> float:
        def given(scale: float) -> float:
            # The density of the estimated standard deviation over the true one: chi over the root of its degrees of freedom.
            density = constant + (df - 1) * math.log(scale) - df * scale**2 / 2
            return (normal.cdf(shift - bound * scale) + normal.cdf(-bound * scale - shift)) * math.exp(density)

        middle = float(stats.chi.mean(df) / np.sqrt(df))
        spread = float(stats.chi.std(df) / np.sqrt(df))
        top = middle + 12 * spread
        ends = sorted({0.0, min(top, shift / bound), middle, top})
        return sum(integrate.quad(given, a, b, limit=200)[0] for a, b in pairwise(ends))

    def lacking(shift: float) -> float:
        return power(shift) - 0.8

    return float(optimize.brentq(lacking, 0.0, 10 * bound))


def _difference(ours: Mapping[int, float], theirs: Mapping[int, float], sides: Sequence[Any]) -> _Mean | None:
    """Paired by seed; None where no seed is shared."""
    shared = [seed for seed in ours if seed in theirs]
    if not shared:
        return None
    gaps = {seed: ours[seed] - theirs[seed] for seed in shared}
    largest = max(max(abs(ours[seed]), abs(theirs[seed])) for seed in shared)
    if len(shared) > 1 and np.ptp(list(gaps.values())) <= 1e-9 * largest:
        # No spread, no test: nothing is known of other seeds, but for figures that are the same everywhere.
        if max(map(abs, gaps.values())) <= 1e-9 * largest:
            return _Mean(0.0, 0.0, 0.0)
        return _Mean(gaps[shared[0]])
    return _mean(gaps, sides)


def _holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (1979)."""
    names = sorted(p, key=lambda name: p[name])
    factors = np.arange(len(names), 0, -1)
    corrected = np.minimum(np.maximum.accumulate(factors * np.array([p[name] for name in names])), 1.0)
    return dict(zip(names, corrected.tolist(), strict=True))


# One comparison


def _audit_comparison(result: Audit, path: Path) -> None:
    said, where = _read(path), str(path)
    infos, by_text = said.get("runs", {}), _read_by_text(path.parent)
    _audit_infos(result, where, infos, by_text)
    differences: dict[str, dict[str, _Mean]] = {}
    for arm in said["arms"]:
        name = arm["name"]
        if name not in infos:
            result.not_checked.append(f"{where}: {name}: it has no values by seed")
            continue
        result.expect(f"{where}: {name}: seeds", arm["seeds"], infos[name]["seeds"])
        result.expect(f"{where}: {name}: features", arm["d_sae"], _width(infos[name]))
        groups = by_text.get(name, {})
        for figure, estimate in arm["figures"].items():
            values = _present(infos[name], figure)
            found = _mean(values, [groups.get(figure, {})]) if values else None
            _expect_estimate(result, f"{where}: {name}: {figure}", estimate, found)
        differences[name] = _audit_differences(result, where, arm, infos, by_text, said["baseline"])
    if len(differences) < len(said["arms"]):
        result.not_checked.append(
            f"{where}: Holm's p, fronts and tables: some runs have no values by seed; compare the runs again"
        )
        return
    corrected = _holm_by_figure(differences)
    for arm in said["arms"]:
        for figure, one in arm["differences"].items():
            at = f"{where}: {arm['name']}: {figure}: difference: Holm's p"
            result.expect(at, one["p_holm"], corrected.get(arm["name"], {}).get(figure))
    _audit_caveats(result, where, said, infos)
    _audit_short(result, where, said, infos)
    for front in said["fronts"]:
        at = f"{where}: front of {front['y']} against {front['x']}"
        on, near = _front({arm["name"]: infos[arm["name"]] for arm in said["arms"]}, by_text, front["x"], front["y"])
        result.expect(at, sorted(front["arms"]), sorted(on))
        result.expect(f"{at}: within seed noise", sorted(front["near"]), sorted(near))
    table = path.with_suffix(".md")
    if "shown" not in said:
        result.not_checked.append(f"{table}: the comparison does not say how figures are shown; compare the runs again")
    elif table.is_file():
        _audit_tables(result, table, said, differences, corrected)


def _audit_copies(result: Audit, path: Path) -> None:
    """Whether a comparison says of every run what the run's own folder says: no file can be changed alone and unseen."""
    places = (path.parent, path.parent.parent)  # the comparisons of worlds have folders of their own
    found = (sorted(place.glob("run_*/final_info.json")) for place in places)
    files = next((files for files in found if files), list[Path]())
    try:
        infos, by_text = _read(path)["runs"], _read_by_text(path.parent)
        own: dict[str, tuple[Json, Mapping[str, Any], Path]] = {}
        for file in files:
            sums = _read_by_text(file.parent)
            arms = {name: cast(Json, info) for name, info in _read(file).items() if isinstance(info, dict)}
            own |= {name: (info, sums.get(name, {}), file) for name, info in arms.items()}
        if not own.keys() & infos.keys():  # a comparison of runs that are elsewhere
            return
        for name, info in infos.items():
            if name not in own:
                result.not_checked.append(f"{path}: {name}: none of the folders next to it holds this run")
                continue
            theirs, sums, file = own[name]
            for part in sorted((info.keys() | theirs.keys()) - {"checksum"}):
                result.expect(f"{path}: {name}: {part} as in {file}", info.get(part) == theirs.get(part), True)
            alike = _numbers(by_text.get(name, {})) == _numbers(sums)
            result.expect(f"{path}: {name}: sums over text as in {file.parent}", alike, True)
    except (_DamagedFile, ValueError, LookupError, TypeError, AttributeError):
        return  # the file's own check names it


def _numbers(sums: Mapping[str, Mapping[int, Json]]) -> dict[tuple[str, int, str], list[float]]:
    """(Figure, seed, part) -> the sums of a run, as they compare."""
    return {
        (figure, seed, part): vector.tolist()
        for figure, by_seed in sums.items()
        for seed, parts in by_seed.items()
        for part, vector in parts.items()
    }


def _width(info: Json) -> int | None:
    return info.get("provenance", {}).get("sae", {}).get("d_sae")


def _audit_short(result: Audit, where: str, said: Json, infos: Mapping[str, Json]) -> None:
    """Whether the runs marked short are those of fewer than 1,000 training steps; earlier versions marked none."""
    for arm in said["arms"]:
        if "remarks" in arm and arm["name"] in infos:
            steps = infos[arm["name"]].get("provenance", {}).get("steps")
            result.expect(
                f"{where}: {arm['name']}: short", bool(arm["remarks"]), steps is not None and 0 < steps < 1000
            )


def _expect_estimate(result: Audit, where: str, said: Json, found: _Mean | None) -> None:
    for part in ("value", "low", "high"):
        result.expect(f"{where}: {part}", said[part], getattr(found, part) if found else None)


def _audit_differences(
    result: Audit, where: str, arm: Json, infos: Mapping[str, Json], by_text: Mapping[str, Any], baseline: str | None
) -> dict[str, _Mean]:
    found: dict[str, _Mean] = {}
    if baseline is None or arm["name"] == baseline:
        result.expect(f"{where}: {arm['name']}: differences of the baseline", arm["differences"], {})
        return found
    for figure in infos[arm["name"]]["values"]:
        ours, theirs = (_present(infos[name], figure) for name in (arm["name"], baseline))
        sides = [by_text.get(name, {}).get(figure, {}) for name in (arm["name"], baseline)]
        one, at = _difference(ours, theirs, sides), f"{where}: {arm['name']}: {figure}: difference"
        said = arm["differences"].get(figure)
        if one is None or said is None:
            result.expect(at, said is not None, one is not None)
            continue
        found[figure] = one
        _expect_estimate(result, at, said["estimate"], one)
        result.expect(f"{at}: p", said["p"], one.p)
        if "unequal_l0" in said:  # not in comparisons of earlier versions
            unequal = _unequal_l0(infos, arm["name"], baseline) and figure not in _L0
            result.expect(f"{at}: unequal L0", said["unequal_l0"], unequal)
        result.expect(f"{at}: detectable", said["detectable"], one.detectable, _POWER)
        result.expect(f"{at}: seeds", said["seeds"], [seed for seed in ours if seed in theirs])
    return found


def _holm_by_figure(differences: Mapping[str, Mapping[str, _Mean]]) -> dict[str, dict[str, float]]:
    """Arm -> figure -> p-value, corrected over the arms of each figure."""
    found: dict[str, dict[str, float]] = {arm: {} for arm in differences}
    for figure in {figure for own in differences.values() for figure in own}:
        p = {arm: one.p for arm, own in differences.items() if (one := own.get(figure)) and one.p is not None}
        for arm, value in _holm(p).items():
            found[arm][figure] = value
    return found


def _unequal_l0(infos: Mapping[str, Json], name: str, baseline: str | None) -> bool:
    if baseline is None or name not in infos:
        return False
    pairs = [(infos[name]["means"].get(l0), infos[baseline]["means"].get(l0)) for l0 in _L0]
    return any(a is not None and b and abs(a - b) > 0.1 * b for a, b in pairs)


def _audit_caveats(result: Audit, where: str, said: Json, infos: Mapping[str, Json]) -> None:
    labels = {how["label"]: figure for figure, how in said.get("shown", {}).items()}
    for arm in said["arms"]:
        for caveat in arm["caveats"]:
            match = _CAVEAT.match(caveat)
            figure = labels.get(match[1]) if match else None
            if match is None or figure is None:
                result.not_checked.append(f"{where}: {arm['name']}: {caveat}")
                continue
            for name, number in ((arm["name"], match[2]), (said["baseline"], match[3])):
                mean = float(np.mean(list(_present(infos[name], figure).values())))
                _expect_cell(result, f"{where}: {arm['name']}: {caveat}", number, [mean], 1)


def _front(infos: Mapping[str, Json], by_text: Mapping[str, Any], x: str, y: str) -> tuple[list[str], list[str]]:
    """The arms that none beats on less of x, to three digits, and more of y, and those whose distance seeds do not show."""
    points: dict[str, tuple[float, float]] = {}
    for name, info in infos.items():
        cost = info["costs"].get(x) if x in info["costs"] else info["means"].get(x)
        gain = info["means"].get(y)
        if cost is not None and gain is not None:
            points[name] = (float(f"{cost:.3g}"), gain)
    on: list[str] = []
    near: list[str] = []
    for name, (cost, gain) in points.items():
        better = [n for n, (c, g) in points.items() if c <= cost and g >= gain and (c < cost or g > gain)]
        if not better:
            on.append(name)
        elif not any(_apart(infos, by_text, name, other, y) for other in better):
            near.append(name)
    return on, near


def _apart(infos: Mapping[str, Json], by_text: Mapping[str, Any], one: str, other: str, figure: str) -> bool:
    sides = [by_text.get(name, {}).get(figure, {}) for name in (one, other)]
    found = _difference(_present(infos[one], figure), _present(infos[other], figure), sides)
    return found is None or found.low is None or found.high is None or not found.low <= 0 <= found.high


# The tables of comparison.md


def _audit_tables(
    result: Audit,
    path: Path,
    said: Json,
    differences: Mapping[str, Mapping[str, _Mean]],
    corrected: Mapping[str, Mapping[str, float]],
) -> None:
    labels = {how["label"]: figure for figure, how in said["shown"].items()}
    unequal = {arm["name"] for arm in said["arms"] if _unequal_l0(said["runs"], arm["name"], said["baseline"])}
    figures: dict[str, dict[str, Json]] = {arm["name"]: arm["figures"] for arm in said["arms"]}
    # Tables have line breaks of names as spaces, and mark runs of few steps.
    flat = {
        " ".join(f"{arm['name']}{' (short)' * bool(arm.get('remarks'))}".split()): arm["name"] for arm in said["arms"]
    }
    for title, rows in _tables(path.read_text(encoding="utf-8")):
        if title.endswith(", every figure"):
            rows = [list(row) for row in zip(*rows, strict=True)]
        due = [name for name in figures if title.startswith("Figures") or differences[name]]
        result.expect(f"{path}: {title}: runs", [flat.get(" ".join(row[0].split())) for row in rows[1:]], due)
        if title.endswith(", every figure"):
            result.expect(
                f"{path}: {title}: figures", [labels.get(label) for label in rows[0][2:]], list(said["shown"])
            )
        for row in rows[1:]:
            if (name := flat.get(" ".join(row[0].split()))) is not None:
                width = _width(said["runs"][name])
                result.expect(f"{path}: {title}: {row[0]}: features", row[1], "-" if width is None else f"{width:,}")
        for row in rows[1:]:
            name = flat.get(" ".join(row[0].split()))
            for label, cell in zip(rows[0][2:], row[2:], strict=True):
                at, figure = f"{path}: {title}: {row[0]}: {label}", labels.get(label)
                if figure is None or name is None:
                    result.expect(at, cell, "no such figure or run in comparison.json")
                    continue
                how = said["shown"][figure]
                ends: list[float | None]
                if title.startswith("Figures"):
                    estimate = figures[name].get(figure) or {}
                    ends, star = [estimate.get(end) for end in ("value", "low", "high")], False
                else:
                    result.expect(f"{at}: dagger", "†" in cell, cell != "-" and name in unequal and figure not in _L0)
                    one = differences[name].get(figure)
                    ends = [one.value, one.low, one.high] if one else []
                    star = corrected[name].get(figure, 1.0) < 0.05
                result.expect(f"{at}: star", cell.endswith(" *"), star)
                _expect_cell(result, at, cell, [end * how["scale"] for end in ends if end is not None], how["digits"])


def _expect_cell(result: Audit, where: str, cell: str, numbers: Sequence[float], digits: int) -> None:
    """Whether a cell's numbers are these, rounded."""
    said = [float(number.replace(",", "")) for number in _CELL.findall(cell)] if cell != "-" else []
    near = len(said) == len(numbers) and all(
        abs(a - b) <= 0.5 * 10**-digits * (1 + 1e-6) + 1e-9 * abs(b) for a, b in zip(said, numbers, strict=True)
    )
    result.expect(where, cell, cell if near else ", ".join(f"{number:.{digits}f}" for number in numbers) or "-")


def _tables(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Title -> rows of cells of each table, heading first."""
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, rest = part.partition("\n")
        lines = [line for line in rest.splitlines() if line.startswith("|")]
        rows = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        yield title, [rows[0], *rows[2:]]
