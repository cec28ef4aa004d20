"""A result of benchmarks.training as a Markdown table: ``python -m benchmarks.table FILE [wall|cpu]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def table(path: Path, clock: str) -> str:
    """Median step, tokens a second, and each step as a multiple of ours without a mask, at the same architecture."""
    result = json.loads(path.read_text())
    tokens, settings = result["settings"]["batch_tokens"], result["settings"]
    seconds = {name: times[f"{clock}_seconds"] for name, times in result["median_step"].items()}
    peak = result["matmul_flop"] / seconds.pop("matmul") / 1e9
    rows = [f"| step ({clock} time) | ms | tokens/s | of ours without a mask |", "|---|---:|---:|---:|"]
    for name, time in sorted(seconds.items(), key=lambda item: item[1]):
        kind = next(kind for kind in ("batch_topk", "topk", "relu") if kind in name)
        own = seconds[f"scansion {kind}"]
        rows.append(f"| {name} | {1000 * time:.0f} | {tokens / time:,.0f} | {time / own:.2f}x |")
    dense = 10 * settings["d_in"] * settings["d_sae"] * tokens / seconds["scansion topk, dense form"] / 1e9
    encoder = 2 * settings["d_in"] * settings["d_sae"] * tokens / seconds["scansion topk"] / 1e9
    rows += [
        "",
        f"Matrix product of the same run: {peak:.0f} GFLOP/s. Dense form over its 10 d F operations: "
        f"{dense / peak:.0%} of that; TopK over the encoder's 2 d F alone: {encoder / peak:.0%}.",
    ]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "wall"))
