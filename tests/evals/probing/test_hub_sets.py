"""Hub data sets become tasks of one class against the rest, and a stand-in is never passed off as what it stands for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scansion.errors import ConfigError
from scansion.evals.probing import hub_sets
from scansion.evals.probing.groups import GROUPS
from scansion.evals.probing.hub_sets import HUB_SETS
from scansion.evals.probing.sets import expand_probing_sets, load_probing_set, stand_in_for


def test_each_class_is_a_task_against_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(name: str, source: object, seed: int) -> Iterator[dict[str, object]]:
        return ({"label": i % 4, "text": f"news {i % 4} number {i}"} for i in range(4000))

    monkeypatch.setattr(hub_sets, "_stream", rows)
    splits = load_probing_set("fancyzhx/ag_news", 40, 20, seed=0, hub=True)
    assert [split.name for split in splits] == ["0", "1", "2", "3"]
    for split in splits:
        for side, size in ((split.train, 40), (split.test, 20)):
            assert len(side.texts) == size and side.labels.mean() == 0.5
            assert [text.startswith(f"news {split.name}") for text in side.texts] == (side.labels == 1).tolist()


def test_every_stand_in_is_a_bundled_group_and_europarl_has_none() -> None:
    bundled = expand_probing_sets(["saebench"])
    assert len(HUB_SETS) == 8 and set(HUB_SETS) - set(bundled) == {"Helsinki-NLP/europarl"}
    assert all(stand_in_for(name) in GROUPS for name in bundled)
    assert expand_probing_sets(["saebench"], hub=True) == tuple(HUB_SETS)
    with pytest.raises(ConfigError, match="nothing bundled can stand in for Helsinki-NLP/europarl"):
        stand_in_for("Helsinki-NLP/europarl")
