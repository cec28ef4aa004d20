"""``scansion look | steer``: an SAE in its language model, on a text of one's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch

from scansion.attaching import Seen, attach
from scansion.cli.app import output, tables
from scansion.errors import ConfigError
from scansion.evals.base import LoadedSAE
from scansion.exploring import encode_text, model_of, require_features, text_tokens
from scansion.lm import LanguageModel
from scansion.report.sentences import add_sentence, require_features_of
from scansion.sae import SAE, load_sae
from scansion.text_table import TextTable

_MOST_SAVED = 256
"""Features of a token that a page gets, at most."""


def look(run: Path, text: str, *, features: int = 3, page: Path | None = None, device: str = "auto") -> None:
    """Show which features fire on each token of a text, the strongest first.

    Example: scansion look runs/topk "The state of the Union is strong."

    Parameters
    ----------
    run
        Folder of a trained run.
    text
        Any text. It starts with the model's beginning-of-sequence token, as in training.
    features
        How many features to show for a token.
    page
        A report of this run (its folder or index.html): the text is added to it, under every feature that fires on it.
    device
        Where the model runs: auto, cpu, cuda, cuda:1 or mps.
    """
    if features < 1:
        raise ConfigError(f"--features {features}: at least 1 must be shown")
    sae, metadata = load_sae(run)
    fingerprint = LoadedSAE(run.name, sae.cpu(), metadata).fingerprint
    if page is not None:  # before the language model, which takes seconds
        require_features_of(page, fingerprint)
    encoded = encode_text(sae, text, device=device)
    rows: list[list[str]] = []
    for place, (token, applied) in enumerate(zip(encoded.tokens, cast(Any, encoded.applied).tolist(), strict=True)):
        why = "position 0 took no part in training" if place == 0 else f"past the mask's {sae.n_positions} positions"
        shown = ",  ".join(f"{index}: {value:.3g}" for index, value in encoded.top(place, features))
        rows.append([str(place), repr(token)[1:-1], shown if applied else f"({why})"])
    headings = ["position", "token", "features that fire, with their activations"]
    tables.print(TextTable(headings, [rows], left=3, repeated=2))
    if page is not None:
        firing = [encoded.top(place, _MOST_SAVED) for place in range(len(encoded.tokens))]
        path = add_sentence(page, fingerprint, encoded.tokens, firing)
        output.print(f"added to {path}, at the end of Features", markup=False)
    output.print(
        f"{metadata.hook_point} of {metadata.model}; {sae.config.architecture}, {sae.d_sae} features", markup=False
    )


def steer(
    run: Path,
    text: str,
    *,
    feature: int,
    value: float | None = None,
    positions: str = "",
    tokens: int = 40,
    device: str = "auto",
) -> None:
    """Continue a text with a feature held at a value, beside the plain continuation.

    Tokens are the likeliest ones (greedy). A feature that the mask closes at a position stays closed there.

    Example: scansion steer runs/topk "My fellow citizens," --feature 12

    Parameters
    ----------
    run
        Folder of a trained run.
    text
        The text to continue.
    feature
        Number of the feature.
    value
        Its activation where it is steered; 0 switches it off. Default: five times its largest activation on the text; if it
        does not fire there, the largest of any feature.
    positions
        Where, for example 5-20 or 3,4,9; default everywhere.
    tokens
        How many tokens to add.
    device
        Where the model runs: auto, cpu, cuda, cuda:1 or mps.
    """
    where = _positions_in(positions)
    if tokens < 1:
        raise ConfigError(f"--tokens {tokens}: at least 1 token must be added")
    sae, _ = load_sae(run)
    require_features(sae, [feature])
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"--value {value} is not a finite number")
    lm = model_of(sae, device)
    prompt, seen = _observed(lm, sae, text)
    if value is None:
        own = float(seen.acts[..., feature].max())
        value = 5 * own if own > 0 else float(seen.acts.max())
        if not value:
            raise ConfigError("no feature fires on this text, from which a value could be taken; give --value")

    def continued() -> str:
        ids: torch.Tensor = cast(Any, lm.model).generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False,
            pad_token_id=lm.tokenizer.eos_token_id,
        )  # fmt: skip
        return _decoded(lm, ids[0, prompt.shape[1] :], skip_special_tokens=True)

    plain = continued()
    with attach(lm.model, sae, "steer", features=[feature], value=value, positions=where):
        steered = continued()
    output.print(f"plain:   {text}{plain}", markup=False)
    output.print(f"steered: {text}{steered}", markup=False)
    place = f"at {positions}" if positions else "everywhere"
    same = "; the texts are the same" if plain == steered else ""
    output.print(f"feature {feature} at {value:.3g}, {place}{same}", markup=False)


def _observed(lm: LanguageModel, sae: SAE, text: str) -> tuple[torch.Tensor, Seen]:
    """The tokens of a text, and what the SAE, moved to the model's device, sees of them."""
    tokens = text_tokens(lm, text)
    with attach(lm.model, sae.to(lm.device)) as seen, torch.no_grad():
        lm.model(input_ids=tokens)
    return tokens, seen


def _decoded(lm: LanguageModel, tokens: torch.Tensor, **settings: bool) -> str:
    return str(cast(Any, lm.tokenizer).decode(tokens, **settings))


def _positions_in(text: str) -> list[int] | None:
    """``3,5-8`` -> 3, 5, 6, 7, 8; None for an empty text.

    Raises:
        ConfigError: it is something else.
    """
    places: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        numbers = [int(each) if each.isdecimal() and len(each) < 7 else None for each in (first, last or first)]
        start, stop = numbers
        if start is None or stop is None or stop < start:
            raise ConfigError(f"--positions {text!r} is not understood; write for example 5-20 or 3,4,9")
        places += range(start, stop + 1)
    if text and not places:
        raise ConfigError("--positions names no position; write for example 5-20 or 3,4,9")
    return places or None
