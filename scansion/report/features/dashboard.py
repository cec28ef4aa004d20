"""Features as SAEDashboard writes them and Neuronpedia reads them: JSON files of some features each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scansion.activations import ActivationStore
from scansion.evals.base import LoadedSAE
from scansion.files import atomic_folder
from scansion.lm import HookPoint, LanguageModel
from scansion.lm.unembedding import unembed
from scansion.records import write_json
from scansion.report.features.directions import nearest_features
from scansion.report.features.gathering import BINS, FeatureConfig, Features, gather_features

FEATURES_PER_FILE = 128
_LOGIT_BINS = 50
_NEURONS = 3


def write_dashboard(
    subject: LoadedSAE, store: ActivationStore, lm: LanguageModel, folder: Path, config: FeatureConfig
) -> list[Path]:
    """Write ``batch-0.json``, ``batch-1.json``, ...; returns them.

    ``correlated_features`` are those with the nearest decoder rows: their ``pearson`` and ``l1`` hold the cosine.
    ``correlated_neurons`` is empty: it would take the activations of the model's neurons.

    Args:
        subject: an SAE of the store's model and hook point.
        store: held-out activations, whose contexts the examples are from.
        lm: the model, for the logits that features raise.
        folder: is replaced.
        config: how many contexts are read, and how many examples each feature has.

    Raises:
        ModelError: the activations are not of the residual stream, so that features raise no logits.
    """
    features = gather_features(subject, store, config)
    with atomic_folder(folder) as temporary:
        pages = _pages(subject, store, lm, features, config)
        head = {
            "model_id": subject.metadata.model,
            "layer": HookPoint.parse(subject.metadata.hook_point).layer,
            "sae_set": "scansion",
            "sae_id_suffix": subject.name,
        }
        names: list[str] = []
        while batch := list(islice(pages, FEATURES_PER_FILE)):
            names.append(f"batch-{len(names)}.json")
            write_json(temporary / names[-1], {**head, "features": batch}, sealed=False)
    return [folder / name for name in names]


@torch.no_grad()
def _pages(
    subject: LoadedSAE, store: ActivationStore, lm: LanguageModel, features: Features, config: FeatureConfig
) -> Iterator[dict[str, Any]]:
    W_dec = subject.sae.directions.detach().float().cpu()
    near = nearest_features(W_dec, config.neighbours)
    word = cache(lambda token: str(lm.tokenizer.decode([token])))
    fired, tokens = features.profile.counts.sum(axis=0), float(features.profile.tokens.sum())
    n_contexts = min(config.n_contexts, store.n_contexts)
    for index, row in enumerate(W_dec):
        logits = unembed(lm, row[None].to(lm.device))[0].cpu()
        top, bottom = (logits.topk(config.lens_tokens, largest=largest) for largest in (True, False))
        heights, edges = np.histogram(logits.numpy(), bins=_LOGIT_BINS)
        neurons = row.topk(min(_NEURONS, len(row))).indices
        width = float(features.max_act[index]) / BINS
        cosines = _numbers(near.cosines[index])
        yield {
            "feature_index": index,
            "neg_str": [word(int(token)) for token in bottom.indices],
            "neg_values": _numbers(bottom.values),
            "pos_str": [word(int(token)) for token in top.indices],
            "pos_values": _numbers(top.values),
            "frac_nonzero": float(fired[index]) / tokens,
            "freq_hist_data_bar_values": _numbers((np.arange(BINS) + 0.5) * width),
            "freq_hist_data_bar_heights": features.histogram[index].tolist(),
            "logits_hist_data_bar_values": _numbers((edges[:-1] + edges[1:]) / 2),
            "logits_hist_data_bar_heights": heights.tolist(),
            "n_prompts_total": n_contexts,
            "n_tokens_in_prompt": store.n_positions,
            "dataset": str(store.identity.corpus.get("source", "")),
            "decoder_weights_dist": [],
            "vector": _numbers(row),
            "neuron_alignment_indices": neurons.tolist(),
            "neuron_alignment_values": _numbers(row[neurons]),
            "neuron_alignment_l1": _numbers(row[neurons].abs() / row.abs().sum().clamp_min(1e-12)),
            "correlated_neurons_indices": [],
            "correlated_neurons_l1": [],
            "correlated_neurons_pearson": [],
            "correlated_features_indices": near.features[index].tolist(),
            "correlated_features_l1": cosines,
            "correlated_features_pearson": cosines,
            "activations": list(_examples(features, index, store, tokens, word)),
        }


def _examples(
    features: Features, index: int, store: ActivationStore, n_tokens: float, word: Any
) -> Iterator[dict[str, Any]]:
    """The contexts kept of a feature, with its activation at every token; 0 where it did not fire.

    ``bin_min`` and ``bin_contains`` are -1 where it is most active, as SAEDashboard has them. Else they are of the third of
    the feature's range that the context was drawn from; ``bin_contains`` is that third's share of all tokens.
    """
    examples, highest = features.examples, float(features.max_act[index])
    counts = features.histogram[index].reshape(3, -1).sum(axis=1).astype(float)
    counts[0] += n_tokens - counts.sum()  # tokens on which it did not fire
    kept = examples.contexts.shape[1]
    for rank, context in enumerate(examples.contexts[index].tolist()):
        if context < 0:
            continue
        there = slice(*examples.offsets[index * kept + rank : index * kept + rank + 2])
        values = np.zeros(store.n_positions)
        values[examples.positions[there]] = examples.acts[there]
        valid = store.valid[:, context].numpy()
        third = int(rank < (examples.n_top + kept) // 2)  # first those of the middle, then those of the lowest
        low, high, share = third * highest / 3, (third + 1) * highest / 3, float(counts[third]) / n_tokens
        if rank < examples.n_top:
            low, high, share = -1.0, highest, -1.0
        yield {
            "bin_min": low,
            "bin_max": high,
            "bin_contains": share,
            "tokens": [word(token) for token in store.tokens[:, context][store.valid[:, context]].tolist()],
            "values": _numbers(values[valid]),
            "qualifying_token_index": int(values[valid].argmax()),
        }


def _numbers(values: Any) -> list[float]:
    return [round(float(value), 6) for value in values]
