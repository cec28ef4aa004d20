"""Results of benchmarks.training in words and figures: speeds, limits, and what was aimed at."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]
Rows = list[tuple[str, ...]]

OURS = "scansion "
KEEPING = ", keeping memory"
PLAIN = ("square product", "encoder product", "copy", "adam")
BUSY = 1.5  # a load, per core, that the part of the benchmark before this one does not explain
AIMS = (
    ("scansion relu", "dictionary-learning relu", 1.3),
    ("scansion relu", "sae-lens relu", 1.3),
    ("scansion topk", "eai-sparsify topk", 1.8),
    ("scansion topk", "dictionary-learning topk", 4.0),
    ("scansion topk", "sae-lens topk", 4.0),
    ("scansion topk, 8 bands", "scansion topk, dense form", 8.0),
    ("scansion topk, 8 bands", "eai-sparsify topk", 8.0),
    ("scansion topk, 8 bands", "sae-lens topk", 20.0),
)
"""How many times as fast the first should be as the second, at d_in 576, d_sae 4608."""


def table(*rows: tuple[str, ...]) -> str:
    """Markdown of a head and rows; all columns but the first are numbers."""
    head, *body = rows
    lines = ["| " + " | ".join(row) + " |" for row in (head, *body)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(head) - 1), *lines[1:]])


def shown(power: float) -> str:
    """An exponent, without the sign of a zero."""
    return f"{round(power, 2) + 0.0:.2f}"


def groups(result: Result) -> dict[str, Result]:
    """The groups that took turns, each with its ``times``."""
    return {key: part for key, part in result.items() if isinstance(part, dict) and "times" in part}


def seconds_of(group: Result, clock: str) -> dict[str, float]:
    """Median seconds of each subject of a group."""
    return {name: times[f"{clock}_seconds"] for name, times in group["times"].items()}


def rates(result: Result, seconds: dict[str, float]) -> dict[str, float]:
    """Operations or bytes per second of the plain operations that took turns."""
    work = result["work"]
    return {name: max(work[name].values()) / seconds[name] for name in PLAIN if name in seconds}


def peak(rate: dict[str, float]) -> float:
    """Operations per second of the faster of the two products."""
    return max(rate["square product"], rate["encoder product"])


def floor_of(work: dict[str, float], rate: dict[str, float]) -> tuple[float, float]:
    """Seconds that a step's operations and Adam's traffic take at least, at the rates of this run."""
    return work["flop"] / peak(rate), work["adam_bytes"] / rate["copy"]


def speeds(result: Result, clock: str) -> str:
    """Every subject's step, what it is of ours without a mask, and its share of the machine's limit."""
    rows: Rows = [("step", "ms", "tokens/s", "of ours, no mask", "useful GFLOP/s", "of the product's")]
    for group in groups(result).values():
        seconds = seconds_of(group, clock)
        rate = rates(result, seconds)
        subjects = [name for name in seconds if name not in PLAIN]
        for name in sorted(subjects, key=lambda name: (kind_of(name), seconds[name])):
            work, own = result["work"][name], seconds[f"{OURS}{kind_of(name)}"]
            useful = work["flop"] / seconds[name]
            rows.append(
                (
                    name,
                    f"{1e3 * seconds[name]:.1f}",
                    f"{result['settings']['batch_tokens'] / seconds[name]:,.0f}",
                    f"{seconds[name] / own:.2f}x",
                    f"{useful / 1e9:.0f}",
                    f"{useful / peak(rate):.0%}",
                )
            )
    return "\n\n".join([conditions(result, clock), limits_line(result, clock), table(*rows)])


def limits_line(result: Result, clock: str) -> str:
    """What plain operations of torch did in the same run."""
    lines = []
    for key, group in groups(result).items():
        seconds = seconds_of(group, clock)
        rate = rates(result, seconds)
        line = (
            f"Plain operations of the same run ({key.replace(' ', ', ')}): square product "
            f"{rate['square product'] / 1e9:.0f} GFLOP/s, product of the encoder's shape "
            f"{rate['encoder product'] / 1e9:.0f} GFLOP/s, copy {rate['copy'] / 1e9:.1f} GB/s, fused Adam "
            f"{rate['adam'] / 1e9:.1f} GB/s ({rate['adam'] / rate['copy']:.0%} of the copy's)"
        )
        dense = f"{OURS}topk, dense form"
        if dense in seconds:
            sizes = result["settings"]
            done = 10 * sizes["d_in"] * sizes["d_sae"] * sizes["batch_tokens"] / seconds[dense]
            line += f"; the dense form over its own 10 d F operations {done / 1e9:.0f} GFLOP/s"
        lines.append(line + ".")
    return "\n".join(lines)


def floors(result: Result, clock: str) -> str:
    """Least time of each of our steps, from the operations and the memory traffic that it needs, and the time measured."""
    head = ("step", "Mflop per token", "products, ms", "Adam, ms", "floor, ms", "measured, ms", "measured over floor")
    rows: Rows = [(*head, "selection if not in the cache, ms")]
    tokens = result["settings"]["batch_tokens"]
    for group in groups(result).values():
        seconds = seconds_of(group, clock)
        rate = rates(result, seconds)
        for name in sorted(own for own in seconds if own.startswith(OURS)):
            work = result["work"][name]
            products, adam = floor_of(work, rate)
            cells = [1e3 * products, 1e3 * adam, 1e3 * (products + adam), 1e3 * seconds[name]]
            over = seconds[name] / (products + adam)
            moved = 1e3 * work["selection_bytes"] / rate["copy"]
            flop = work["flop"] / tokens / 1e6
            rows.append((name, f"{flop:.2f}", *(f"{own:.1f}" for own in cells), f"{over:.1f}x", f"{moved:.1f}"))
    return table(*rows)


def aims(result: Result, clock: str) -> str:
    """Each aim and the speed-up measured."""
    rows: Rows = [("", "against", "aim", "measured", "", "against it, keeping memory")]
    seconds = {name: own for group in groups(result).values() for name, own in seconds_of(group, clock).items()}
    for name, over, aim in AIMS:
        if name in seconds and over in seconds:
            speedup = seconds[over] / seconds[name]
            kept = seconds.get(f"{over}{KEEPING}")
            keeping = "" if kept is None else f"{kept / seconds[name]:.1f}x"
            rows.append((name, over, f"{aim:g}x", f"{speedup:.1f}x", "met" if speedup >= aim else "not met", keeping))
    return table(*rows)


def kind_of(name: str) -> str:
    """The architecture in a subject's name."""
    return next(kind for kind in ("batch_topk", "topk", "relu") if kind in name.split(",")[0])


def conditions(result: Result, clock: str) -> str:
    """Command, sizes and machine, without which a figure means nothing."""
    machine, settings = result["machine"], result["settings"]
    flat = {key: value for name, own in settings.items() for key, value in _flat(name, own).items()}
    sizes = ", ".join(f"{name} {value}" for name, value in flat.items())
    rounds = sorted({group["rounds"] for group in groups(result).values()})
    taken = f"medians of {' to '.join(map(str, rounds))} rounds by {clock} time; " if rounds else ""
    peers = [f"{name} {found}" for name, found in machine["versions"].items() if name != "scansion"]
    before, after = machine["load_average"][0], machine["load_average_at_end"][0]
    busy = "**busy with other work**, " if before > BUSY * machine["cores"] else ""
    load = f"{busy}load {before:.1f} before, {after:.1f} after"
    return (
        f"`{machine['command']}`: {sizes}; {taken}{machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {load}; commit {machine['commit']}, {', '.join(peers)}."
    )


def _flat(name: str, value: Any) -> Result:
    return value if isinstance(value, dict) else {name: value}
