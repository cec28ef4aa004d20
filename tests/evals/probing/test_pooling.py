"""Laws of pooling: what a text's row of features is, whatever the batches, the padding and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scansion.corpus import Contexts
from scansion.evals.probing.pooling import PooledTexts, Pooling, pool_texts
from scansion.evals.reading import texts as text_activations
from scansion.evals.reading.cache import ActivationCache
from scansion.evals.reading.texts import TextReader
from scansion.lm import HookPoint, LanguageModel, activations_at
from scansion.masks import RandomHardMaskConfig
from scansion.sae import SAE
from tests.evals.probing.constructed import make_subject, telling_texts

HOOK_POINT = HookPoint(1)
TEXTS = [text for text, _ in telling_texts(20)]
NOTHING_KEPT = ActivationCache(Path("nowhere"), 0)


def reader(
    lm: LanguageModel, context_length: int = 10, batch: int = 8, cache: ActivationCache = NOTHING_KEPT
) -> TextReader:
    return TextReader(lm, HOOK_POINT, context_length, batch, "float32", cache)


def by_hand(text: str, lm: LanguageModel, sae: SAE | None, length: int = 10) -> torch.Tensor:
    """The features of each counted token."""
    ids = [1, *(int(word[1:]) for word in text.split()[: length - 1])]
    x = activations_at(lm, HOOK_POINT, Contexts.from_token_lists([ids], len(ids), 2))
    return x[0, 1:] if sae is None else sae.encode(x[0]).detach()[1:]


@pytest.mark.parametrize("block_bytes", [1, 1 << 27])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_features_are_pooled_as_said_whatever_the_batches_and_blocks(
    lm: LanguageModel, batch: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_activations, "BLOCK_BYTES", block_bytes * 16 * 4 * 30 if block_bytes == 1 else block_bytes)
    sae = make_subject(mask=RandomHardMaskConfig(positions_per_feature=20)).sae
    pools: dict[Pooling, PooledTexts] = {
        name: pool_texts(TEXTS, reader(lm, batch=batch), [sae], (), name, 3) for name in ("mean", "last", "bands")
    }
    for index, text in enumerate(TEXTS):
        for kind, model in (("lm", None), ("sae", sae)):
            tokens = by_hand(text, lm, model)
            bands = [tokens[:3], tokens[3:6], tokens[6:]]  # positions 1 to 3, 4 to 6, 7 to 9
            expected = {
                "mean": tokens.mean(dim=0),
                "last": tokens[-1],
                "bands": torch.cat([b.mean(dim=0) if len(b) else torch.zeros(b.shape[1]) for b in bands]),
            }
            for name, pooled in pools.items():
                table = pooled.lm if kind == "lm" else pooled.saes[0]
                np.testing.assert_allclose(table[index], expected[name], atol=1e-5)


def test_the_bag_counts_the_tokens_that_were_read(lm: LanguageModel) -> None:
    texts = ["w9 w9 w7", "w7 w9 w9", "w5 </s> w5", "", " ".join(["w8"] * 30)]
    bag = pool_texts(texts, reader(lm), []).bag.toarray()
    assert (bag[0] == bag[1]).all(), "order is what a bag forgets"
    assert bag.sum(axis=1).tolist() == [3, 3, 2, 0, 9]
    assert (bag[0, 9], bag[0, 7], bag[2, 5], bag[4, 8]) == (2, 1, 2, 9)


def test_padding_does_not_matter(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    saes = [make_subject().sae]
    plain = pool_texts(TEXTS, reader(lm, 16), saes, (), "bands", 4)

    class Padded:
        @staticmethod
        def from_token_lists(lists: list[list[int]], length: int, pad_id: int, *, has_bos: bool) -> Contexts:
            return Contexts.from_token_lists(lists, length + 20, pad_id, has_bos=has_bos).left_padded()

    monkeypatch.setattr(text_activations, "Contexts", Padded)
    padded = pool_texts(TEXTS, reader(lm, 16), saes, (), "bands", 4)
    np.testing.assert_allclose(padded.lm, plain.lm, atol=1e-5)
    np.testing.assert_allclose(padded.saes[0], plain.saes[0], atol=1e-5)
    assert (padded.bag != plain.bag).nnz == 0


def test_a_masked_feature_fires_only_where_its_mask_allows(lm: LanguageModel) -> None:
    sae = make_subject(mask=RandomHardMaskConfig(positions_per_feature=16)).sae
    with torch.no_grad():
        # Every feature is 1 wherever the mask lets it fire, so its pooled value is the share of positions it may use.
        sae.W_enc.zero_()
        sae.b_enc.fill_(1.0)
    texts = ["w9", "w9 w9 w9", " ".join(["w9"] * 40)]
    (features,) = pool_texts(texts, reader(lm, 64, 2), [sae]).saes
    for text, row in zip(texts, features, strict=True):
        positions = torch.arange(1, 1 + len(text.split()))
        np.testing.assert_allclose(row, sae.mask(positions).mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_special_tokens_do_not_count_and_empty_texts_are_zero(lm: LanguageModel, pooling: Pooling) -> None:
    raw = pool_texts(["", "</s>", "</s> w7", "w7 </s> </s>", "w7"], reader(lm, 16, 2), [], (), pooling).lm
    assert not raw[:2].any()
    # An EOS after the word cannot change it, one before it can.
    np.testing.assert_allclose(raw[3], raw[4], atol=1e-5)
    assert np.abs(raw[2]).max() > 0


def test_a_control_s_bias_is_at_the_tokens_mean(lm: LanguageModel) -> None:
    control = make_subject("control").sae
    texts = [" ".join(text.split()[:3]) for text in TEXTS]
    pool_texts(texts, reader(lm), [], [control])
    mean = torch.cat([by_hand(text, lm, None) for text in texts]).mean(dim=0)
    torch.testing.assert_close(control.b_dec.detach(), mean, atol=1e-5, rtol=1e-4)


def test_what_is_kept_is_used_and_what_is_damaged_or_of_other_settings_is_not(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = text_activations.activations_at
    seen: list[int] = []

    def counting(lm: LanguageModel, hook_point: HookPoint, contexts: Contexts) -> torch.Tensor:
        seen.append(len(contexts))
        return run(lm, hook_point, contexts)

    def pooled(length: int = 10) -> np.ndarray:
        seen.clear()
        return pool_texts(TEXTS, reader(lm, length, cache=ActivationCache(tmp_path, 10**8)), []).lm

    monkeypatch.setattr(text_activations, "activations_at", counting)
    first = pooled()
    assert sum(seen) == len(TEXTS)
    with monkeypatch.context() as patched:
        patched.delattr(text_activations, "_tokenised")
        np.testing.assert_array_equal(pooled(), first)
    assert not seen, "the second reading runs neither tokenizer nor LM"
    files = list(tmp_path.glob("*"))
    assert len(files) == 2, "token ids, and activations"
    for file in files:
        file.write_bytes(file.read_bytes()[:-3])
    np.testing.assert_array_equal(pooled(), first)
    assert sum(seen) == len(TEXTS), "damaged files are computed again"
    assert pooled(6).shape == first.shape and sum(seen) == len(TEXTS), "other context lengths are other activations"
