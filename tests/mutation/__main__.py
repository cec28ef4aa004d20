"""Change the code in small ways and count which changes the tests notice: ``make mutation``.

mutmut makes the changes, "mutants": another operator, number or text, an argument less, None for a value. Each runs in a
process of its own, forked from one that has collected the tests, with only those that call the changed
function, the fastest first. The runtime type checker is off, so that it kills none. The table goes into SECURITY.md. Survivors
are printed; those that behave as the code does are listed with their reason in :mod:`tests.mutation.equivalent`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from difflib import ndiff
from fnmatch import filter as matching
from pathlib import Path
from typing import NamedTuple

import pytest
from _pytest.runner import runtestprotocol
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state

from tests.mutation.equivalent import EQUIVALENT

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "mutation"
SEED = 0
COLUMNS = ("mutants", "tried", "killed", "survived", "equivalent")


class Part(NamedTuple):
    """Code to change, and the tests that should notice."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]


PARTS = {
    "masks": Part(("scansion/masks/*.py",), ("tests/masks",)),
    "dense execution": Part(
        ("scansion/execution/reference.py", "scansion/execution/blocks.py"),
        ("tests/execution/test_ways.py", "tests/execution/test_banded.py", "tests/execution/test_blocks.py"),
    ),
    "position metrics": Part(("scansion/evals/position/*.py",), ("tests/evals/position",)),
}


class Mutant(NamedTuple):
    """One change of one function.

    Attributes:
        name: mutmut's, which chooses it.
        function: dotted, with its class.
        change: the lines taken away and added.
    """

    name: str
    function: str
    change: str


def mutate(folder: Path, part: Part) -> list[Mutant]:
    """Write every mutant of the part's sources into the files of ``folder``, where none is active."""
    mutants: list[Mutant] = []
    files = sorted(path.relative_to(folder).as_posix() for path in (folder / "scansion").rglob("*.py"))
    for source in (file for pattern in part.sources for file in matching(files, pattern)):
        path = folder / source
        module = source.removesuffix(".py").replace("/", ".")
        changed = mutate_file_contents(source, path.read_text(encoding="utf-8"))
        path.write_text(changed.code, encoding="utf-8")
        lines, spans = changed.code.splitlines(), changed.line_span_by_function_name

        for name in changed.mutant_names:
            stem = name.rpartition("__mutmut_")[0]
            bodies = [
                [line.strip().replace(each, "") for line in lines[spans[each].start - 1 : spans[each].end]]
                for each in (f"{stem}__mutmut_orig", name)
            ]
            change = "\n".join(line for line in ndiff(*bodies) if line[0] in "-+")
            function = stem.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
            mutants.append(Mutant(f"{module}.{name}", f"{module}.{function}", change))
    return mutants


class Trial:
    """A pytest plugin that runs the collected tests once as they are, then those concerned for each mutant."""

    def __init__(self, mutants: list[Mutant], outcomes: Path) -> None:
        self.mutants = mutants
        self.outcomes = outcomes

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        callers = self._as_they_are(session)
        with self.outcomes.open("w", encoding="utf-8") as file:
            for mutant in self.mutants:
                tests = callers.get(mutant.name.rpartition("__mutmut_")[0], [])
                began = time.monotonic()
                outcome = _outcome(mutant, sorted(tests, key=lambda timed: timed[0]))
                record = {"mutant": mutant, "outcome": outcome, "seconds": round(time.monotonic() - began, 2)}
                file.write(json.dumps(record) + "\n")
                file.flush()
        return True

    @staticmethod
    def _as_they_are(session: pytest.Session) -> dict[str, list[tuple[float, pytest.Item]]]:
        """Mangled names of functions -> the tests that call them, with their seconds."""
        callers = defaultdict(list)
        set_mutant_under_test("stats")
        for item, following in zip(session.items, [*session.items[1:], session], strict=True):
            began = time.monotonic()
            reports = runtestprotocol(item, nextitem=following, log=False)
            if any(report.failed for report in reports):
                raise pytest.UsageError(f"{item.nodeid} fails without a mutant")
            for function in state()._stats:
                callers[function].append((time.monotonic() - began, item))
            state()._stats.clear()
        return callers


def _outcome(mutant: Mutant, tests: list[tuple[float, pytest.Item]]) -> str:
    child = os.fork()
    if child == 0:
        # Of processor time, which does not depend on what else the machine does; and an end for what waits for ever.
        signal.setitimer(signal.ITIMER_PROF, 10 + 5 * sum(seconds for seconds, _ in tests))
        signal.alarm(900)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        set_mutant_under_test(mutant.name)
        items = [item for _, item in tests]
        for item, following in zip(items, [*items[1:], None], strict=True):
            if any(report.failed for report in runtestprotocol(item, nextitem=following, log=False)):
                os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status in (-signal.SIGPROF, -signal.SIGALRM):
        return "killed (time)"
    return "killed" if status else "survived"


def trial(name: str, sample: int, outcomes: Path) -> int:
    """In the copy: change one part's sources and try its mutants, ``sample`` of them if there are more."""
    part = PARTS[name]
    mutants = mutate(Path.cwd(), part)
    if sample < len(mutants):
        mutants = sorted(random.Random(SEED).sample(mutants, sample))
    tests = [test for test in part.tests if Path(test).exists()]
    # Without the settings in pyproject.toml, which turn on the runtime type checker.
    options = ["-q", "-s", "-o", "addopts=", "-p", "no:cacheprovider"]
    return pytest.main([*options, *tests], plugins=[Trial(mutants, outcomes)])


def copy_to(folder: Path) -> None:
    """The working tree, without what git ignores but with the compiled part."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    built = [str(path.relative_to(ROOT)) for path in (ROOT / "scansion/execution/cpu").glob("_native*.so")]
    for file in [*listed.split("\0")[:-1], *built]:
        if (ROOT / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)


def tally(name: str, records: list[dict]) -> dict[str, int]:
    """Count a part's outcomes, and print the survivors that are not known to be equivalent."""
    survivors = [Mutant(*record["mutant"]) for record in records if record["outcome"] == "survived"]
    unknown = [mutant for mutant in survivors if (mutant.function, mutant.change) not in EQUIVALENT]
    for mutant in unknown:
        sys.stdout.write(f"{mutant.function}\n{mutant.change}\n\n")
    with tempfile.TemporaryDirectory() as copy:
        copy_to(Path(copy))
        n_mutants = len(mutate(Path(copy), PARTS[name]))
    equivalent = len(survivors) - len(unknown)
    counts = (n_mutants, len(records), len(records) - len(survivors), len(unknown), equivalent)
    return dict(zip(COLUMNS, counts, strict=True))


def write_table(counts: dict[str, dict[str, int]]) -> None:
    """Put the counts between their marks in SECURITY.md."""
    lines = ["| | " + " | ".join(COLUMNS) + " | killed of tried |", "|---|" + "---:|" * (len(COLUMNS) + 1)]
    lines += [
        f"| {name} | "
        + " | ".join(str(count[column]) for column in COLUMNS)
        + f" | {count['killed'] / count['tried']:.1%} |"
        for name, count in counts.items()
    ]
    page = ROOT / "SECURITY.md"
    before, rest = page.read_text(encoding="utf-8").split("<!-- mutants -->\n")
    after = rest.split("<!-- end mutants -->")[1]
    page.write_text(
        f"{before}<!-- mutants -->\n" + "\n".join(lines) + f"\n<!-- end mutants -->{after}", encoding="utf-8"
    )


def main() -> int:
    """Try every part, write the table, and fail if fewer than ``--least`` of a part's mutants are killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sample", type=int, default=120, help="mutants of a part to try, drawn at random from a fixed seed"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="try only these")
    parser.add_argument("--count", action="store_true", help="try none, only count again what the last trials found")
    parser.add_argument("--least", type=float, default=0.8)
    parser.add_argument("--trial", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.trial:
        return trial(given.trial[0], given.sample, Path(given.trial[1]))
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in [] if given.count else given.parts:
        with tempfile.TemporaryDirectory() as copy:
            copy_to(Path(copy))
            command = [sys.executable, "-m", "tests.mutation", "--sample", str(given.sample)]
            command += ["--trial", name, str(KEPT / f"{name}.jsonl")]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": copy}
            subprocess.run(command, cwd=copy, env=environment, check=True)
    counts: dict[str, dict[str, int]] = {}
    for name in PARTS:
        records = [json.loads(line) for line in (KEPT / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        counts[name] = tally(name, records)
    write_table(counts)
    return int(any(count["killed"] < given.least * count["tried"] for count in counts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
