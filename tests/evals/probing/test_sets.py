"""Laws of the probing sets: balanced, disjoint, deterministic, and never a set that was not meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scansion.errors import ConfigError
from scansion.evals.probing.sets import check_probing_sets, known_probing_sets, load_probing_set
from tests.evals.probing.constructed import telling_texts, use_asset, write_set


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_asset(monkeypatch, tmp_path)
    write_set(tmp_path, "9_words", telling_texts(50))
    write_set(tmp_path, "10_many", [(f"text {i}", i % 5) for i in range(50)])
    return tmp_path


@pytest.mark.parametrize(("train_size", "test_size", "n_train", "n_test"), [(40, 20, 40, 20), (4000, 1000, 80, 20)])
def test_sides_are_balanced_disjoint_and_as_large_as_can_be(
    asset: Path, train_size: int, test_size: int, n_train: int, n_test: int
) -> None:
    (split,) = load_probing_set("9_words", train_size, test_size, seed=0)
    assert not set(split.train.texts) & set(split.test.texts)
    for side, size in ((split.train, n_train), (split.test, n_test)):
        assert len(side.texts) == len(set(side.texts)) == size
        assert side.labels.sum() == size // 2
    labels = dict(telling_texts(50))
    assert [labels[text] for text in split.test.texts] == split.test.labels.tolist()


def test_a_draw_depends_on_its_seed_alone(asset: Path) -> None:
    first, again, other = (load_probing_set("9_words", 40, 20, seed)[0].train.texts for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_copy_counts_once_and_a_contradiction_not_at_all(asset: Path) -> None:
    rows = telling_texts(20)
    write_set(asset, "11_copies", [*rows * 3, ("both", 0), ("both", 1)])
    (split,) = load_probing_set("11_copies", 4000, 1000, seed=0)
    texts = split.train.texts + split.test.texts
    assert sorted(texts) == sorted(text for text, _ in rows)


@pytest.mark.parametrize("labels", [("0", "1"), ("False", "True"), ("no", "yes"), ("clickbait", "factual")])
def test_the_later_label_is_the_positive_one_and_texts_come_back_whole(asset: Path, labels: tuple[str, str]) -> None:
    odd = ["comma, and", 'a "quote"', "line\nbreak\r\n\nand more", " edges ", "null", "", "é 漢"]
    write_set(asset, "12_odd", [(f"{text}{i}" if i else text, labels[i]) for text in odd for i in (0, 1)])
    (split,) = load_probing_set("12_odd", 12, 4, seed=0)
    sides = (split.train, split.test)
    found = {text: label for side in sides for text, label in zip(side.texts, side.labels, strict=True)}
    assert set(found) <= {*odd, *(f"{text}1" for text in odd)}
    assert all(label == text.endswith("1") for text, label in found.items())


def test_news_is_told_from_other_news_and_never_from_code(asset: Path) -> None:
    members = ("161_agnews_0", "162_agnews_1", "163_agnews_2")
    for member in members:
        write_set(asset, member, [(f"{member} {i}", 1) for i in range(40)] + [(f"code {i}", 0) for i in range(40)])
    splits = load_probing_set("ag_news", 40, 20, seed=0)
    assert [split.name for split in splits] == list(members)
    for split in splits:
        for side in (split.train, split.test):
            of_member = np.array([text.startswith(split.name) for text in side.texts])
            np.testing.assert_array_equal(of_member, side.labels == 1)
            assert not any(text.startswith("code") for text in side.texts)
    assert any(text.startswith("code") for text in load_probing_set("161_agnews_0", 40, 20, seed=0)[0].train.texts)


def test_unknown_names_are_refused_with_close_ones_and_all_there_are(asset: Path) -> None:
    with pytest.raises(ConfigError, match=r"'9_word'; did you mean 9_words.*\?.*ag_news, .*sst2, .*9_words, 10_many"):
        check_probing_sets(["9_words", "9_word"])
    assert known_probing_sets()[-2:] == ["9_words", "10_many"]


def test_sets_that_cannot_be_probed_are_refused(asset: Path) -> None:
    with pytest.raises(ConfigError, match="10_many has 5 different labels"):
        check_probing_sets(["10_many"])
    write_set(asset, "13_tiny", [("a", 0), ("b", 1)])
    with pytest.raises(ConfigError, match="13_tiny has 1 usable texts of its rarer label"):
        load_probing_set("13_tiny", 40, 20, seed=0)
