"""What the fast ways save: each step of ours and its dense form in turns: ``python -m benchmarks.ways --out FILE``."""

from __future__ import annotations

from pathlib import Path

import torch
from cyclopts import App

from benchmarks.rounds import Action, Record
from benchmarks.subjects import Subject, batch, positioned
from benchmarks.training_tables import Result, Rows, conditions, groups, seconds_of, table

STEPS = (
    ("topk", "none"),
    ("topk", "8"),
    ("topk", "random"),
    ("topk", "soft"),
    ("topk", "importance"),
    ("topk", "adaptive"),
    ("batch_topk", "soft"),
    ("matryoshka", "none"),
    ("matryoshka", "8"),
    ("tsae", "none"),
    ("relu", "none"),
    ("relu", "soft"),
    ("jumprelu", "none"),
    ("jumprelu", "8"),
)
"""Architecture and mask, as :class:`Subject` has them."""
N_BATCHES = 4
DENSE = "dense form"
app = App(help_format="plaintext")


@app.default
def measure(
    *,
    out: Path,
    d_in: int = 576,
    d_sae: int = 2304,
    k: int = 32,
    batch_tokens: int = 512,
    rounds: int = 8,
    threads: int | None = None,
) -> None:
    """Time a step of each architecture under each mask, by the way that it takes and in the dense form.

    Args:
        out: the JSON file.
        d_in, d_sae, k: sizes.
        batch_tokens: tokens per step, a multiple of 128.
        rounds: steps of each.
        threads: of torch.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    record = Record(out, "ways", {"d_in": d_in, "d_sae": d_sae, "k": k, "batch_tokens": batch_tokens})
    batches = [batch(batch_tokens, d_in, seed) for seed in range(N_BATCHES)]
    for kind, mask in STEPS:
        subjects = [Subject(kind, d_in, d_sae, k, mask, dense) for dense in (False, True)]
        taken: set[str] = set()
        actions = {name: _stepping(one, batches, taken) for name, one in zip(("taken", DENSE), subjects, strict=True)}
        record.measure(
            f"{kind}, {_named(mask)}", actions, rounds, lambda _, taken=taken: {"way": sorted(taken - {"dense"})}
        )


def _stepping(subject: Subject, batches: list[torch.Tensor], taken: set[str]) -> Action:
    learner = subject.learner()

    def act(index: int) -> None:
        learner.advance(positioned(batches[index % len(batches)], learner.sae))
        taken.update(learner.ways)

    return act


def _named(mask: str) -> str:
    return {"none": "no mask", "random": "random mask"}.get(mask, f"{mask} bands" if mask.isdigit() else f"{mask} mask")


def ways(result: Result, clock: str) -> str:
    """Every step with its way, its time, and that of the dense form."""
    rows: Rows = [("", "way", "ms", "dense form, ms", "times as fast")]
    for name, group in groups(result).items():
        seconds = seconds_of(group, clock)
        own, dense = seconds["taken"], seconds[DENSE]
        rows.append((name, " and ".join(group["way"]), f"{1e3 * own:.1f}", f"{1e3 * dense:.1f}", f"{dense / own:.1f}"))
    return "\n\n".join([conditions(result, clock), table(*rows)])


if __name__ == "__main__":
    app()
