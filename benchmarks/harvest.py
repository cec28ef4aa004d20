"""Harvest: tokens per second from contexts to activations: ours, transformers run whole, the peers' buffers."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from torch import nn

from benchmarks.limits import SQUARE
from benchmarks.rounds import Action, Record
from scansion.activations import ActivationStream, HarvestConfig, harvest
from scansion.corpus import Contexts, CorpusConfig
from scansion.lm import BUNDLED_MODEL, HookPoint, LanguageModel
from scansion.pipeline import HarvestSpec
from scansion.pipeline.stores import harvest_plans
from scansion.progress import say

app = App(help_format="plaintext")


@app.default
def measure(
    *,
    out: Path,
    model: str = BUNDLED_MODEL,
    source: str = "sotu",
    layer: int = 5,
    context_length: int = 128,
    n_contexts: int = 32,
    lm_batch_size: int = 16,
    rounds: int = 5,
    threads: int | None = None,
    peers: Annotated[bool, Parameter(negative="--no-peers")] = True,
    square: int = SQUARE,
) -> None:
    """Let each turn the same contexts into activations in turn, ``rounds`` times after one to warm up.

    Args:
        out: the JSON file.
        model: bundled, or a folder.
        source: of the text.
        layer: whose output is wanted.
        context_length, n_contexts: of the text harvested in a turn.
        lm_batch_size: contexts the language model reads at once, for all.
        rounds: turns of each.
        threads: of torch.
        peers: whether the peers take part.
        square: side of the plain matrix product measured with them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    corpus = CorpusConfig(
        source=source,
        layout="packed",
        context_length=context_length,
        max_tokens=n_contexts * context_length,
        held_out_tokens=context_length,
    )
    where = HarvestSpec(model, f"layers.{layer}", corpus, HarvestConfig(lm_batch_size=lm_batch_size), device="cpu")
    sizes = {"layer": layer, "context_length": context_length, "n_contexts": n_contexts, "lm_batch_size": lm_batch_size}
    with tempfile.TemporaryDirectory() as folder:
        plan, _ = harvest_plans(where, Path(folder))
        lm, contexts = where.lm, plan.contexts
        tokens = contexts.n_tokens
        record = Record(out, "harvest", {"model": model, "source": source, "tokens": tokens, **sizes})
        work: dict[str, dict[str, float]] = {
            "square product": {"flop": 2 * square**3},
            "scansion, language model to disk": {"flop": tokens * flop_to_layer(lm, layer, context_length)},
        }
        record.note(work=work, not_measured={})
        turns: dict[str, Action] = {"square product": square_product(square)}
        numbers = itertools.count()

        def to_disk(_: int) -> None:
            target = Path(folder) / str(next(numbers))
            harvest(replace(plan, folder=target), lambda: lm)
            shutil.rmtree(target)

        turns["scansion, language model to disk"] = to_disk
        turns |= _plain(lm, HookPoint.parse(where.hook_point).module(lm.model), contexts, lm_batch_size)
        if peers:
            found, absent = peer_turns(lm, contexts, layer, lm_batch_size)
            turns |= found
            record.note(not_measured=absent)
        # What every SAE but the first takes instead of running the language model again.
        store = harvest(replace(plan, folder=Path(folder) / "kept"), lambda: lm)
        stream = ActivationStream(store, n_contexts, seed=0, use_position_0=True)
        turns["scansion, read from the store"] = lambda index: stream.batch(index)
        record.measure("harvest", turns, rounds)


def flop_to_layer(lm: LanguageModel, layer: int, context_length: int) -> float:
    """Operations that a token takes up to and including ``layer``: twice the weights, and attention to half a context."""
    layers = lm.model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    weights = sum(p.numel() for module in layers[: layer + 1] for p in module.parameters() if p.ndim == 2)
    return 2 * weights + (layer + 1) * 4 * lm.facts.d_model * context_length / 2


def square_product(square: int) -> Action:
    """The plain matrix product of :mod:`benchmarks.limits`, by itself."""
    a, b = torch.randn(square, square), torch.randn(square, square)
    product = torch.empty(square, square)
    return lambda _: torch.mm(a, b, out=product)


def _plain(lm: LanguageModel, module: nn.Module, contexts: Contexts, batch_size: int) -> dict[str, Action]:
    """transformers by itself: whole, whole without the unembedding, and left at the layer; nothing is kept."""
    batches = contexts.tokens.long().split(batch_size)

    @torch.no_grad()
    def whole(_: int) -> None:
        for batch in batches:
            lm.model(batch, output_hidden_states=True, use_cache=False)

    @torch.no_grad()
    def without_unembedding(_: int) -> None:
        for batch in batches:
            lm.model.base_model(batch, output_hidden_states=True, use_cache=False)

    @torch.no_grad()
    def left_at_layer(_: int) -> None:
        handle = module.register_forward_hook(_leave)
        try:
            for batch in batches:
                try:
                    lm.model.base_model(batch, use_cache=False)
                except _Left:
                    continue
        finally:
            handle.remove()

    return {
        "transformers, whole": whole,
        "transformers, whole but for the unembedding": without_unembedding,
        "transformers, left at the layer": left_at_layer,
    }


class _Left(Exception):
    """Leaves the language model."""


def _leave(*_: Any) -> None:
    raise _Left


def peer_turns(
    lm: LanguageModel, contexts: Contexts, layer: int, lm_batch_size: int
) -> tuple[dict[str, Action], dict[str, str]]:
    """Drawing as many activations from each peer's buffer, and why there is none of the others."""
    from benchmarks.peer_buffers import BATCH_TOKENS, BUFFERS, WITHOUT

    turns: dict[str, Action] = {}
    absent = dict(WITHOUT)
    for name, make in BUFFERS.items():
        try:
            buffer = make(lm, contexts, layer, lm_batch_size)
            next(buffer)
        except Exception as error:  # theirs may fail in any way, and the others are to be measured all the same
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            say(f"{name}: not measured, {absent[name]}")
            continue
        turns[f"{name}, buffer"] = _draw(buffer.__next__, -(-contexts.n_tokens // BATCH_TOKENS))
    return turns, absent


def _draw(draw: Callable[[], object], times: int) -> Action:
    def turn(_: int) -> None:
        for _ in range(times):
            draw()

    return turn


if __name__ == "__main__":
    app()
