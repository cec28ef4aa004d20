"""Damage files at random and kill processes at random, and count what comes of it: ``python -m tests.faults.harness``.

The table goes into SECURITY.md; every case can be made again from its seed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Mapping
from multiprocessing import Event as new_event
from multiprocessing.synchronize import Event
from pathlib import Path

from scansion.progress import say
from scansion.report import FeatureConfig, study_data, write_report
from scansion.study import StudyRecord
from tests.faults.workspace import DAMAGES, Workspace, cache_in, make_workspace, outcome, use
from tests.killing import kill_after

OUTCOMES = ("identical", "clear error", "silent", "traceback")
ROOT = Path(__file__).parents[2]


def damages(n: int, home: Path) -> tuple[dict[str, Counter[str]], list[str]]:
    """``n`` damages, dealt over kinds of damage and of files; how they ended, and those that ended badly."""
    whole = make_workspace(home / "whole")
    right = use(whole.copy(home / "right"))
    kinds: dict[str, list[Path]] = {}
    for file in whole.files():
        kinds.setdefault(_kind(file), []).append(file.relative_to(whole.home))
    counts = {name: Counter[str]() for name in DAMAGES}
    bad: list[str] = []
    for number in range(n):
        draw = random.Random(number)
        damage = list(DAMAGES)[number % len(DAMAGES)]
        kind = sorted(kinds)[number // len(DAMAGES) % len(kinds)]
        copy = whole.copy(home / "damaged")
        file = copy.home / draw.choice(kinds[kind])
        how = DAMAGES[damage](file, draw, copy.files())
        try:
            ended = outcome(use(copy), right)
        except Exception:
            ended = "traceback"
            traceback.print_exc()
        counts[damage][ended] += 1
        if ended in ("silent", "traceback"):
            bad.append(f"{number}: {file.relative_to(copy.home)}: {damage}, {how}: {ended}")
            say(bad[-1])
        shutil.rmtree(copy.home)
    return counts, bad


def _kind(file: Path) -> str:
    """``shard-00003.safetensors`` and ``shard-00004.safetensors`` are one kind."""
    return "".join("0" if character.isdigit() else character for character in file.name)


def work(started: Event, home: Path) -> None:
    """Harvest, train, evaluate, carry out a study and report it: what is done is reused, what is not is resumed."""
    started.set()
    made = make_workspace(home, stop=False)
    with cache_in(home):
        record = StudyRecord.open(made.study)
        write_report(study_data(record), made.home / "report", FeatureConfig())


def kills(n: int, home: Path, seconds: float) -> tuple[Counter[str], list[str]]:
    """``n`` kills at random times, ten in each workspace; whether each workspace ends with the right results."""
    work(new_event(), home / "right")
    right = use(Workspace(home / "right"), timed=False)
    counts, bad, killed, number = Counter[str](), list[str](), 0, 0
    while killed < n:
        draw = random.Random(number)
        place = home / f"killed_{number}"
        delays = [draw.uniform(0, seconds) for _ in range(min(10, n - killed))]
        try:
            times = kill_after(delays, work, place)
            ended = outcome(use(Workspace(place), timed=False), right)
        except Exception:
            times, ended = len(delays), "traceback"
            traceback.print_exc()
        killed += times
        counts[ended] += times
        if ended != "identical":
            bad.append(f"{number}: killed after {delays}: {ended}")
            say(bad[-1])
        number += 1
        shutil.rmtree(place, ignore_errors=True)
    return counts, bad


def main() -> None:
    """Run it, and put the table into SECURITY.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kill-seconds", type=float, default=6.0, help="kills come up to so long after a start")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        damaged, bad = damages(given.damages, Path(home))
        killed, worse = kills(given.kills, Path(home), given.kill_seconds) if given.kills else (Counter[str](), [])
    write_table({**damaged, "SIGKILL": killed})
    raise SystemExit(1 if bad or worse else 0)


def write_table(rows: Mapping[str, Mapping[str, int]]) -> None:
    """Put the counts between their marks in SECURITY.md."""
    lines = ["| | tried | " + " | ".join(OUTCOMES) + " |", "|---|" + "---:|" * (len(OUTCOMES) + 1)]
    lines += [
        f"| {name} | {sum(count.values())} | " + " | ".join(str(count.get(each, 0)) for each in OUTCOMES) + " |"
        for name, count in rows.items()
    ]
    page = ROOT / "SECURITY.md"
    before, rest = page.read_text(encoding="utf-8").split("<!-- outcomes -->\n")
    after = rest.split("<!-- end -->")[1]
    page.write_text(f"{before}<!-- outcomes -->\n" + "\n".join(lines) + f"\n<!-- end -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
