"""Made-up feature pages of any size, for tests of the browser of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from scansion.evals.position.firing import Profile
from scansion.report.chunks import Chunks
from scansion.report.document import render
from scansion.report.features import FeaturePages, Features, LogitLens, Neighbours, pack_features
from scansion.report.features.directions import LOGIT_BINS
from scansion.report.features.gathering import BINS, Examples

WORDS = [f" word{i}" for i in range(200)]


def made_up(
    arm: str,
    n: int,
    *,
    masked: bool = True,
    n_contexts: int = 40,
    length: int = 32,
    K: int = 5,
    weaker: int = 2,
    elsewhere: dict[int, int] | None = None,
) -> FeaturePages:
    """Features with numbers drawn at random; feature 0 never fired, feature 1 fires at the last position only."""
    draw = np.random.default_rng(0)
    P = length - 1
    counts = draw.poisson(2.0, size=(P, n)).astype(np.float64)
    counts[:, 0] = 0
    counts[:-1, 1], counts[-1, 1] = 0, n_contexts
    profile = Profile(counts, counts * 1.5, np.full(P, n_contexts))
    n_top, K = K, K + 2 * weaker
    contexts = draw.integers(0, n_contexts, size=(n, K))
    contexts[0] = -1
    sizes = draw.integers(1, 4, size=n * K)
    sizes[:K] = 0
    slots = np.repeat(np.arange(n * K), sizes)
    positions = 1 + (np.concatenate([np.arange(size) for size in sizes]) * 7 + slots) % P
    features = Features(
        positions=np.arange(1, length),
        profile=profile,
        max_act=np.where(np.arange(n) == 0, 0.0, 5 + draw.random(n)),
        density=counts.sum(axis=0) / (P * n_contexts),
        mask=draw.random((P, n)) if masked else None,
        specialisation=np.where(np.arange(n) == 0, np.nan, draw.random(n) / 100),
        fidelity=draw.random(n) if masked else np.full(n, np.nan),
        sink_share=np.where(np.arange(n) == 0, np.nan, np.where(np.arange(n) % 50 == 2, 0.9, 0.1)),
        histogram=draw.integers(0, 100, size=(n, BINS)),
        partners=Neighbours((np.arange(n)[:, None] + np.arange(5, 8)) % n, draw.random((n, 3))),
        examples=Examples(
            n_top, contexts, np.concatenate([[0], np.cumsum(sizes)]), positions, 1 + 3 * draw.random(len(slots))
        ),
    )
    features.specialisation[1] = 0.5
    others = (np.arange(n)[:, None] + np.arange(1, 5)) % n
    logits = np.sort(np.abs(draw.normal(size=(n, 2, 4))), axis=2)[..., ::-1] * [[1], [-1]]
    lens = LogitLens(draw.integers(0, len(WORDS), size=(n, 2, 4)), logits, draw.integers(0, 100, size=(n, LOGIT_BINS)))
    near = {
        other: Neighbours(draw.integers(0, m, (n, 1)), draw.random((n, 1))) for other, m in (elsewhere or {}).items()
    }
    neighbours = Neighbours(others, draw.random(others.shape))
    return FeaturePages(
        arm,
        0,
        features,
        neighbours,
        lens,
        (others[:, :3], draw.normal(size=(n, 3))),
        "a mask drawn at random",
        f"sae of {arm}",
        near,
        {7: f"words of {arm} <b>"},
    )


def write_page(
    path: Path,
    pages: list[FeaturePages],
    words: list[str] = WORDS,
    title: str = "Made up",
    shape: tuple[int, int] = (32, 40),
) -> Path:
    """A page with nothing but features."""
    draw, chunks = np.random.default_rng(1), Chunks()
    tokens = torch.from_numpy(draw.integers(0, len(words), size=shape))
    pack_features(pages, tokens, torch.ones(shape, dtype=torch.bool), lambda token: words[token], chunks)
    html = render(
        "report.html", title, "Nothing here is real.", [("features", "Features")], chunks,
        one_seed=True, plan=None, headline=([], []), every=([], []), how_to_read=[], set_apart=[], caveats=[],
        not_applicable=[], measured=[], verdicts=[], baseline=None,
        arms=[], chart_sections=[], has_maps=False, has_features=True, features_note="", details={},
        commands=[], store="", provenance=[],
    )  # fmt: skip
    path.write_text(html, encoding="utf-8")
    return path
