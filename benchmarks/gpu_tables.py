"""Results of benchmarks.gpu as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.training_tables import Result, Rows, table

PRODUCTS = {"relu": 5, "jumprelu": 5}
"""Products over all features that a step takes at least, by architecture; others take one, and are sparse after that."""


def tables(result: Result) -> str:
    """Correctness, steps of each size with limits and peers, and the way from a language model to evaluated SAEs."""
    machine = result["machine"]
    parts = [f"{machine['device']}, torch {machine['torch']}, kernels {machine['sums']}."]
    parts += [
        f"{name}: not measured, {why}." for name, row in result.get("peers", {}).items() if (why := _without(row))
    ]
    if "correct" in result:
        parts.append(correct(result["correct"]))
    sizes = [part.removeprefix("limits ") for part in result if part.startswith("limits ")]
    parts += [f"**{size}**\n\n{limits(result, size)}\n\n{steps(result, size)}" for size in sizes]
    if "end to end" in result:
        parts.append(end_to_end(result))
    return "\n\n".join(parts)


def correct(part: Result) -> str:
    """Each way beside the dense form after the same steps."""
    head = (
        "way, against the dense form",
        "taken",
        "FVE",
        "dense less it",
        "auto less float32",
        "auto",
        "same bytes twice",
    )
    rows: Rows = [head]
    for name, row in part.items():
        if why := _without(row):
            rows.append((name, why, *[""] * (len(head) - 2)))
            continue
        differences = (f"{row['fve_dense_less_fast']:+.1e}", f"{row['fve_auto_less_float32']:+.1e}")
        same = "yes" if row["same_bytes_twice"] else "**no**"
        rows.append((name, row["way"], f"{row['fve']:.4f}", *differences, row["precision"], same))
    return table(*rows)


def limits(result: Result, size: str) -> str:
    """Plain operations of the same run, in one line."""
    rows = result[f"limits {size}"]
    return "Limits: " + "; ".join(f"{name} {_without(row) or _ms(row) + ' ms'}" for name, row in rows.items()) + "."


def steps(result: Result, size: str) -> str:
    """Every step with its floor, and how many times as fast as the fastest peer of its architecture it is."""
    head = ("step", "ms", "tokens/s", "floor, ms", "the fastest peer's time, of its", "way", "precision", "peak GB")
    rows: Rows = [head]
    peers = result.get(f"peers {size}", {})
    for name, row in (result.get(f"steps {size}", {}) | peers).items():
        if why := _without(row):
            rows.append((name, why, *[""] * (len(head) - 2)))
            continue
        is_peer = name in peers
        fastest = min(
            (own["ms"] for peer, own in peers.items() if "ms" in own and _kind(peer) == _kind(name)), default=None
        )
        rows.append(
            (
                name,
                _ms(row),
                f"{row['tokens_per_second']:,}",
                "" if is_peer else _floor(result[f"limits {size}"], name),
                "" if is_peer or fastest is None else f"{fastest / row['ms']:.1f}x",
                row.get("way", ""),
                row.get("precision", ""),
                _gigabytes(row),
            )
        )
    return table(*rows)


def end_to_end(result: Result) -> str:
    """From a language model to evaluated SAEs, with what the harvest is of the forward pass and training of its steps."""
    part = result["end to end"]
    rows: Rows = [("end to end", "s", "tokens/s", "of the bare rate", "peak GB")]
    bare = {"harvest": part.get("language model, forward pass", {})}
    bare |= {f"train {name}": row for name, row in result.get("steps A", {}).items()}
    for name, row in part.items():
        if why := _without(row):
            rows.append((name, why, "", "", ""))
            continue
        whole = bare.get(name, {}).get("tokens_per_second")
        share = f"{row['tokens_per_second'] / whole:.0%}" if whole else ""
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        rows.append((name, seconds, f"{row['tokens_per_second']:,}", share, _gigabytes(row)))
    return table(*rows)


def _floor(limits: Result, name: str) -> str:
    """Milliseconds of the products over all features in bfloat16, which bands divide, and of Adam's traffic."""
    kind, mask, *_ = name.split(", ")
    product, adam = (
        limits.get(limit, {}).get("ms") for limit in ("encoder product, bfloat16", "copy of what Adam moves")
    )
    if product is None or adam is None:
        return ""
    bands = int(mask) if mask.isdigit() else 1
    return f"{PRODUCTS.get(kind, 1) * product / bands + adam:.2f}"


def _kind(name: str) -> str:
    """The architecture in the name of a step, ours or a peer's."""
    return name.split(",")[0].split(" ")[-1]


def _without(row: Result) -> str | None:
    """Why a row has no figures, if it has none."""
    return next((f"{key}: {row[key]}" for key in ("failed", "skipped") if key in row), None)


def _ms(row: Result) -> str:
    return f"{row['ms']:.2f}"


def _gigabytes(row: dict[str, Any]) -> str:
    return "" if row.get("peak_gb") is None else f"{row['peak_gb']:.1f}"
