"""SAEBench's sparse probing, core, TPP and SCR beside ours, on one SAE, one language model and the same texts.

python benchmarks/parity/compare.py --run RUN --held-out STORE --peer ENV/bin/python --exchange FOLDER

RUN is a trained run without a positional mask (relu or topk); ENV is what environment.sh made; FOLDER, outside the
repository, gets what the two sides hand each other. Writes results/parity.json and results/parity.md beside this file; tpp
and scr there are what it wrote at other sizes. The first run of either side may have other work beside it; the rounds that
are timed, which come last, should not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from scansion.activations import ActivationStore
from scansion.evals.ablation import scr as scr_module
from scansion.evals.ablation.classes import load_classes, load_quadrants
from scansion.evals.ablation.scr import ScrConfig, evaluate_scr
from scansion.evals.ablation.tpp import TppConfig, evaluate_tpp
from scansion.evals.base import LoadedSAE
from scansion.evals.core.evaluate import CoreConfig, evaluate_core
from scansion.evals.probing.evaluate import SparseProbingConfig, evaluate_sparse_probing
from scansion.evals.probing.pooling import pool_texts
from scansion.evals.probing.probes import LinearProbe
from scansion.evals.probing.sets import load_probing_set
from scansion.evals.reading.texts import TextReader
from scansion.lm import HookPoint, LanguageModel, load_language_model
from scansion.progress import say
from scansion.sae import load_sae

RESULTS = Path(__file__).parent / "results"
HUB_NAME = "fancyzhx/ag_news"  # the name of a set that SAEBench knows; its folder holds our texts
PROBING_SETS = ("92_glue_sst2", "157_amazon_5star", "59_wikidata_occupation_isjournalist", "162_agnews_1")
TPP_SETS = ("news_topics",)
SCR_SETS = ("topic_rating",)
SEED, K_VALUES, N_VALUES, CONTEXT = 42, (1, 2, 5, 10, 20, 50), (2, 5, 10, 20, 50, 100), 128


def main() -> None:
    if sys.argv[1:2] == ["--again"]:
        probe_again(*map(Path, sys.argv[2:5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "held-out", "peer", "exchange"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--train", type=int, default=200, help="training texts of a probing set")
    parser.add_argument("--test", type=int, default=200, help="test texts of a probing set")
    parser.add_argument("--contexts", type=int, default=64, help="held-out contexts for core")
    parser.add_argument("--sets", nargs="+", default=list(PROBING_SETS), help="binary sets of sae-probes")
    parser.add_argument("--tpp", nargs="*", default=list(TPP_SETS), help="sets of classes; none to leave TPP out")
    parser.add_argument("--scr", nargs="*", default=list(SCR_SETS), help="sets with two labels; none to leave SCR out")
    parser.add_argument("--rounds", type=int, default=3, help="how often a further SAE is probed and timed, at least 1")
    parser.add_argument("--ours-only", action="store_true", help="the peer's first run is in FOLDER already")
    options = parser.parse_args()
    subject = LoadedSAE("shared", *load_sae(options.run / "sae"))
    store = ActivationStore(options.held_out)
    hook_point = HookPoint.parse(store.identity.hook_point)
    lm = load_language_model(store.identity.model, None, "cpu", "float32")
    n_contexts = min(options.contexts, store.n_contexts) // 8 * 8
    exchange = options.exchange.resolve()
    if not options.ours_only:
        write_exchange(exchange, subject, store, lm, hook_point, n_contexts, options)
        say("the peer runs")
        subprocess.run([options.peer, Path(__file__).with_name("peer.py"), exchange], check=True, env=os.environ)
    theirs = json.loads((exchange / "peer.json").read_text(encoding="utf-8"))
    table = {
        "what": "SAEBench's own functions beside ours on one SAE and the same texts; differences are ours minus theirs",
        "sae": {"name": subject.name, "architecture": subject.sae.config.architecture, "d_sae": subject.sae.d_sae},
        "model": store.identity.model,
        "hook_point": str(hook_point),
        "sizes": {
            "train": options.train,
            "test": options.test,
            "core_contexts": n_contexts,
            "sets": options.sets,
            "tpp": options.tpp,
            "scr": options.scr,
        },
        "versions": {
            "peer": theirs["versions"],
            "ours": {n: version(n) for n in ("scansion", "torch", "scikit-learn")},
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work",
        "command": "python benchmarks/parity/compare.py --run RUN --held-out STORE --peer ENV/bin/python --exchange FOLDER "
        f"--train {options.train} --test {options.test} --contexts {options.contexts} --sets {' '.join(options.sets)} "
        f"--tpp {' '.join(options.tpp)} --scr {' '.join(options.scr)} --rounds {options.rounds}",
        "tokenizer_needed_bos": theirs["tokenizer_needed_bos"],
        "probing": probing(exchange, theirs, subject, lm, hook_point, options),
        "core": core(theirs, subject, store, n_contexts),
        "tpp": tpp(theirs, subject, lm, hook_point, options) if options.tpp else {},
        "scr": scr(theirs, subject, lm, hook_point, options) if options.scr else {},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "parity.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "parity.md").write_text(markdown(table), encoding="utf-8")
    say(markdown(table))


def write_exchange(
    exchange: Path,
    subject: LoadedSAE,
    store: ActivationStore,
    lm: LanguageModel,
    hook_point: HookPoint,
    n_contexts: int,
    options: argparse.Namespace,
) -> None:
    """Weights, tokens and texts, as SAEBench reads them."""
    sae = subject.sae
    if sae.config.architecture not in ("relu", "topk") or sae.config.mask.family != "none":
        raise SystemExit("the peer knows no positional masks: give a relu or topk run without one")
    exchange.mkdir(parents=True, exist_ok=True)
    model = exchange / "model"
    if not model.exists():
        model.symlink_to(lm.facts.location)
    save_file({name: getattr(sae, name).detach().contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec")},
              exchange / "sae.safetensors")  # fmt: skip
    # Padding is a token that the peer is told to ignore.
    pad = lm.tokenizer.pad_token_id
    assert isinstance(pad, int)
    tokens = store.tokens.where(store.valid, pad)[:, :n_contexts]
    np.save(exchange / "tokens.npy", tokens.T.contiguous().numpy())
    for name in options.sets:
        (split,) = load_probing_set(name, options.train, options.test, SEED)
        for side, part in (("train", split.train), ("test", split.test)):
            _write_texts(exchange / "probing" / name, side, part.texts, part.labels.tolist())
    for name in options.tpp:
        texts = load_classes(name, options.train // 2, options.test // 2, SEED)
        for side, by_class in (("train", texts.train), ("test", texts.test)):
            rows = [(text, label) for label, own in enumerate(by_class.values()) for text in own]
            _write_texts(exchange / "tpp" / name, side, [text for text, _ in rows], [label for _, label in rows])
    for name in options.scr:
        quadrants = load_quadrants(name, options.train // 4, options.test // 4, SEED)
        by_labels = {
            side: {f"{a}{b}": texts for (a, b), texts in part.items()}
            for side, part in (("train", quadrants.train), ("test", quadrants.test))
        }
        (exchange / "scr").mkdir(exist_ok=True)
        (exchange / "scr" / f"{name}.json").write_text(json.dumps(by_labels), encoding="utf-8")
    settings = {
        "scr_sets": options.scr,
        "model": str(model),
        "layer": hook_point.layer,
        "k": getattr(sae.config, "k", None),
        "context_length": CONTEXT,
        "k_values": K_VALUES,
        "n_values": N_VALUES,
        "probing_sets": {name: {"train": options.train, "test": options.test} for name in options.sets},
        "tpp_sets": {
            n: {
                "train": options.train // 2,
                "test": options.test // 2,
                "classes": len(load_classes(n, 2, 2, SEED).train),
            }
            for n in options.tpp
        },
    }
    (exchange / "settings.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _write_texts(folder: Path, side: str, texts: list[str], labels: list[int]) -> None:
    target = folder / HUB_NAME / f"{side}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True)]
    target.write_text("\n".join(rows) + "\n", encoding="utf-8")


def probing(
    exchange: Path,
    theirs: dict[str, Any],
    subject: LoadedSAE,
    lm: LanguageModel,
    hook_point: HookPoint,
    options: argparse.Namespace,
) -> dict[str, Any]:
    config = SparseProbingConfig(
        datasets=tuple(options.sets),
        train_size=options.train,
        test_size=options.test,
        context_length=CONTEXT,
        k_values=K_VALUES,
        activations_dtype="float32",
        seed=SEED,
    )
    (result,) = evaluate_sparse_probing([subject], lm, hook_point, config)
    again: list[dict[str, Any]] = []

    def probe_theirs() -> dict[str, float]:
        peer = [options.peer, Path(__file__).with_name("peer.py"), exchange, "--again"]
        subprocess.run(peer, check=True, env=os.environ)
        again.append(json.loads((exchange / "again.json").read_text(encoding="utf-8")))
        return {what: sum(one[what] for one in again[-1].values()) for what in ("seconds", "cpu_seconds")}

    def probe_ours() -> dict[str, float]:
        (exchange / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
        subprocess.run([sys.executable, __file__, "--again", exchange, options.run, options.held_out], check=True)
        repeated = json.loads((exchange / "ours_again.json").read_text(encoding="utf-8"))
        assert repeated["result"] == json.loads(result.model_dump_json())
        return repeated["times"]

    rounds = [{"theirs": probe_theirs(), "ours": probe_ours()} for _ in range(options.rounds)]
    found: dict[str, Any] = {"further": rounds}
    for one in result.datasets:
        peer = theirs["probing"][one.name]
        ours = {
            "llm_test_accuracy": one.lm_test_accuracy.value,
            **{f"llm_top_{k}_test_accuracy": e.value for k, e in one.lm_top_k.items()},
            "sae_test_accuracy": one.sae_test_accuracy.value,
            **{f"sae_top_{k}_test_accuracy": e.value for k, e in one.sae_top_k.items()},
        }
        found[one.name] = {
            "scores": {name: {"ours": value, "theirs": peer[name]} for name, value in ours.items()},
            "pooled": pooled(exchange / "probing" / one.name, subject, lm, hook_point),
        }
    sparse = [
        score["ours"] - score["theirs"]
        for name in options.sets
        for metric, score in found[name]["scores"].items()
        if "_top_" in metric
    ]
    dense = [
        score["ours"] - score["theirs"]
        for name in options.sets
        for metric, score in found[name]["scores"].items()
        if "_top_" not in metric
    ]
    found["summary"] = {
        "sparse_probes": _summary(sparse),
        "full_probes": _summary(dense),
        "all": _summary(sparse + dense),
        "SAEBench's own SAE probes when repeated, less those of its first run": _summary(
            [
                repeated[name]["scores"][metric] - score
                for repeated in again
                for name, scores in theirs["probing"].items()
                for metric, score in scores.items()
                if metric in repeated[name]["scores"] and metric.startswith("sae_")
            ]
        ),
    }
    return found


def probe_again(exchange: Path, run: Path, held_out: Path) -> None:
    """What a further SAE costs: the LM's activations and the outcomes beside it are on disk. In a process of its own, as the
    peer's is, so that whatever comes first is in both."""
    config = SparseProbingConfig.model_validate_json((exchange / "config.json").read_text(encoding="utf-8"))
    store = ActivationStore(held_out)
    subject = LoadedSAE("shared", *load_sae(run / "sae"))
    lm = load_language_model(store.identity.model, None, "cpu", "float32")
    hook_point = HookPoint.parse(store.identity.hook_point)
    start, cpu = time.monotonic(), _cpu_seconds()
    (result,) = evaluate_sparse_probing([subject], lm, hook_point, config)
    times = {"seconds": time.monotonic() - start, "cpu_seconds": _cpu_seconds() - cpu}
    found = {"times": times, "result": json.loads(result.model_dump_json())}
    (exchange / "ours_again.json").write_text(json.dumps(found), encoding="utf-8")


def _cpu_seconds() -> float:
    """Of this process and those it has started, whether they live or not."""
    me = psutil.Process()
    living = [one.cpu_times() for one in me.children(recursive=True)]
    return sum(me.cpu_times()[:4]) + sum(one.user + one.system for one in living)


def _summary(differences: list[float]) -> dict[str, float]:
    values = np.array(differences)
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "mean_absolute": float(np.abs(values).mean()),
        "largest": float(np.abs(values).max()),
        "exactly_equal": float((np.abs(values) < 1e-9).mean()),
    }


def pooled(folder: Path, subject: LoadedSAE, lm: LanguageModel, hook_point: HookPoint) -> dict[str, float]:
    """How far apart the pooled vectors of the test texts are, relative to their norm."""
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    reader = TextReader(lm, hook_point, CONTEXT, 16, "float32")
    with np.load(folder / "pooled.npz") as stored:
        found: dict[str, float] = {}
        for label in ("0", "1"):
            again = pool_texts(texts[label], reader, [subject.sae], what="pool again")
            for kind, mine in (("lm", again.lm), ("sae", again.saes[0])):
                distance = np.linalg.norm(mine - stored[f"{kind}_{label}"], axis=1) / np.linalg.norm(mine, axis=1)
                found[f"{kind}_largest"] = max(found.get(f"{kind}_largest", 0.0), float(distance.max()))
    return found


def core(theirs: dict[str, Any], subject: LoadedSAE, store: ActivationStore, n_contexts: int) -> dict[str, Any]:
    (result,) = evaluate_core([subject], store, None, CoreConfig(n_contexts=n_contexts, loss_contexts=0))
    peer = theirs["core"]["metrics"]
    pairs = {
        "explained_variance (SAEBench's formula)": (result.saebench_explained_variance, peer["explained_variance"]),
        "cosine": (result.cosine, peer["cossim"]),
        "l0": (result.l0, peer["l0"]),
        "l1": (result.l1, peer["l1"]),
    }
    return {
        "contexts": n_contexts,
        "fve_ours": result.fve.value,
        "explained_variance_legacy_theirs": peer["explained_variance_legacy"],
        "scores": {name: {"ours": ours, "theirs": them} for name, (ours, them) in pairs.items()},
    }


def tpp(
    theirs: dict[str, Any],
    subject: LoadedSAE,
    lm: LanguageModel,
    hook_point: HookPoint,
    options: argparse.Namespace,
) -> dict[str, Any]:
    config = TppConfig(
        datasets=tuple(options.tpp),
        train_per_class=options.train // 2,
        test_per_class=options.test // 2,
        n_values=N_VALUES,
        seed=SEED,
    )
    (result,) = evaluate_tpp([subject], lm, hook_point, config)
    found: dict[str, Any] = {}
    for one in result.datasets:
        peer = theirs["tpp"][one.name]
        found[one.name] = {
            f"{kind}_{n}": {"ours": getattr(figures, field).value, "theirs": peer[f"tpp_threshold_{n}_{kind}"]}
            for n, figures in one.by_n.items()
            for kind, field in (
                ("total_metric", "total"),
                ("intended_diff_only", "intended"),
                ("unintended_diff_only", "unintended"),
            )
        }
    return found


def scr(
    theirs: dict[str, Any],
    subject: LoadedSAE,
    lm: LanguageModel,
    hook_point: HookPoint,
    options: argparse.Namespace,
) -> dict[str, Any]:
    config = ScrConfig(
        datasets=tuple(options.scr),
        train_per_quadrant=options.train // 4,
        test_per_quadrant=options.test // 4,
        n_values=N_VALUES,
        seed=SEED,
    )
    (result,) = evaluate_scr([subject], lm, hook_point, config)
    # Once more with probes trained as SAEBench trains its own, to tell what comes of them.
    fitted, scr_module.fit_linear = scr_module.fit_linear, trained_as_theirs
    (alike,) = evaluate_scr([subject], lm, hook_point, config)
    scr_module.fit_linear = fitted
    found: dict[str, Any] = {}
    for one, other in zip(result.datasets, alike.datasets, strict=True):
        peer = theirs["scr"][one.name]
        found[one.name] = {
            f"scr_dir{number}_threshold_{n}": {
                "ours": None if score is None else score.value,
                "ours_with_their_probe": None if (same := with_theirs.by_n[n]) is None else same.value,
                "theirs": peer[f"scr_dir{number}_threshold_{n}"],
            }
            for number, (direction, with_theirs) in enumerate(
                zip(one.directions, other.directions, strict=True), start=1
            )
            for n, score in direction.by_n.items()
        }
    return found


def trained_as_theirs(x: np.ndarray, labels: np.ndarray) -> LinearProbe:
    """AdamW at a rate of 0.001 on batches of 16, for 20 epochs."""
    generator = torch.Generator().manual_seed(SEED)
    rows, targets = torch.tensor(x, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32)
    net = torch.nn.Linear(rows.shape[1], 1)
    for parameter in net.parameters():
        torch.nn.init.uniform_(parameter, -(rows.shape[1] ** -0.5), rows.shape[1] ** -0.5, generator=generator)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(20):
        for batch in torch.randperm(len(rows), generator=generator).split(16):
            optimiser.zero_grad()
            binary_cross_entropy_with_logits(net(rows[batch])[:, 0], targets[batch]).backward()
            optimiser.step()
    return LinearProbe(net.weight.detach().numpy()[0].astype(np.float64), net.bias.item())


def markdown(table: dict[str, Any]) -> str:
    """The table for people."""
    probing, core_part, sets = table["probing"], table["core"], table["sizes"]["sets"]
    lines = [
        "# Agreement with SAEBench",
        "",
        f"{table['sae']['architecture']} SAE, {table['sae']['d_sae']} features, {table['model']} {table['hook_point']}; "
        f"{table['sizes']['train']} training and {table['sizes']['test']} test texts a set (one text is "
        f"{100 / table['sizes']['test']:.1f} points). Peer: "
        + ", ".join(f"{name} {number}" for name, number in table["versions"]["peer"].items())
        + ". Ours: "
        + ", ".join(f"{name} {number}" for name, number in table["versions"]["ours"].items())
        + f". Machine: {table['machine']}.",
        "",
        f"`{table['command']}`",
        "",
        f"The peer's tokenizer {'had to be told to start' if table['tokenizer_needed_bos'] else 'started by itself'} with BOS.",
        "",
        "## Sparse probing: test accuracy",
        "",
        "| set | probe | ours | SAEBench | difference |",
        "|---|---|---|---|---|",
    ]
    for name in sets:
        for metric, score in probing[name]["scores"].items():
            difference = 100 * (score["ours"] - score["theirs"])
            lines.append(f"| {name} | {metric} | {score['ours']:.3f} | {score['theirs']:.3f} | {difference:+.1f} pt |")
    lines += [
        "",
        "| probes | how many | mean difference | mean absolute | largest | exactly equal |",
        "|---|---|---|---|---|---|",
    ]
    for kind, summary in probing["summary"].items():
        lines.append(
            f"| {kind.replace('_', ' ')} | {summary['n']} | {100 * summary['mean']:+.2f} pt | "
            f"{100 * summary['mean_absolute']:.2f} pt | {100 * summary['largest']:.1f} pt | {summary['exactly_equal']:.0%} |"
        )
    furthest = {kind: max(probing[name]["pooled"][f"{kind}_largest"] for name in sets) for kind in ("lm", "sae")}
    lines += [
        "",
        "Vectors pooled from the same test texts, largest relative distance: language model "
        f"{furthest['lm']:.1e}, SAE {furthest['sae']:.1e}.",
        "",
        *_times(probing["further"]),
        "",
        "## Core",
        "",
        "| figure | ours | SAEBench | difference |",
        "|---|---|---|---|",
    ]
    for name, score in core_part["scores"].items():
        lines.append(
            f"| {name} | {score['ours']:.5f} | {score['theirs']:.5f} | {score['ours'] - score['theirs']:+.1e} |"
        )
    lines += [
        "",
        f"Our fraction of variance explained, centred on the mean activation, is {core_part['fve_ours']:.5f}; SAEBench's "
        f"legacy figure is {core_part['explained_variance_legacy_theirs']:.5f}. Both are over the same {core_part['contexts']} "
        "contexts without BOS; SAEBench weighs batches alike, ours weighs tokens alike, and our activations were stored "
        "in 16 bits.",
    ]
    for part, unit in (("tpp", "pt"), ("scr", "")):
        if not table[part]:
            continue
        between = "" if part == "tpp" else " ours, with its probe |"
        lines += [
            "",
            f"## {part.upper()}",
            "",
            f"| set | figure | ours |{between} SAEBench | difference |",
            f"|---|---|---|{'---|' if between else ''}---|---|",
        ]
        for name in table["sizes"][part]:
            for metric, score in table[part][name].items():
                # Where the bias costs nothing, ours has no score.
                shown_of = {who: "-" if v is None else f"{v:.3f}" for who, v in score.items()}
                gap = None if score["ours"] is None else score["ours"] - score["theirs"]
                shown = "-" if gap is None else f"{100 * gap:+.1f} pt" if unit else f"{gap:+.3f}"
                lines.append(f"| {name} | {metric} | {' | '.join(shown_of.values())} | {shown} |")
    return "\n".join(lines) + "\n"


def _times(rounds: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Time for a further SAE, in turns, each in a process of its own. The LM's activations and probes are on disk on both "
        "sides:",
        "",
        "| round | ours | SAEBench | times ours | by processor time |",
        "|---|---|---|---|---|",
    ]
    ratios: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    for number, one in enumerate(rounds, start=1):
        for what, values in ratios.items():
            values.append(one["theirs"][what] / one["ours"][what])
        ours, theirs = (f"{one[who]['seconds']:.1f} s ({one[who]['cpu_seconds']:.1f} s)" for who in ("ours", "theirs"))
        lines.append(
            f"| {number} | {ours} | {theirs} | {ratios['seconds'][-1]:.1f} | {ratios['cpu_seconds'][-1]:.1f} |"
        )
    by_clock, by_processor = (statistics.median(values) for values in ratios.values())
    lines.append(f"| median |  |  | {by_clock:.1f} | {by_processor:.1f} |")
    return [
        *lines,
        "",
        "In parentheses: processor time of all threads and processes.",
    ]


if __name__ == "__main__":
    main()
