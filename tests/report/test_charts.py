"""Parts of charts and maps: bands, ticks, groups, names that look like markup, masks before and after training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scansion.evals.base import LoadedSAE
from scansion.masks import BandMaskConfig, NoMaskConfig, SoftMaskConfig, UsageBandMaskConfig
from scansion.report.charts import Axis, Chart, Series
from scansion.report.charts.chart import grouped, log_ticks, over_seeds
from scansion.report.charts.curves import _positive
from scansion.report.maps import ROWS, maps_of
from scansion.report.plotly_form import figure_of
from scansion.sae import SAEMetadata, TopKConfig, build_sae
from tests.conftest import WIDTH


def test_one_seed_has_no_band_and_a_missing_number_stays_missing() -> None:
    assert over_seeds([[1.0, None]]) == ([1.0, None], [None, None], [None, None])
    assert over_seeds([[1.0, 2.0], [3.0, None]]) == ([2.0, None], [1.0, None], [3.0, None])


def test_marks_of_a_group_stand_side_by_side_around_its_number() -> None:
    places = [grouped(2, 3, arm) for arm in range(3)]
    assert np.allclose(np.mean(places, axis=0), [0, 1])
    assert np.allclose(np.diff([place[0] for place in places]), 0.8 / 3)
    assert max(place[0] for place in places) < 0.5 < min(place[1] for place in places)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (30, 34, ["30"]),
        (0.3, 0.6, ["0.3", "0.4", "0.5", "0.6"]),
        (8, 1200, ["10", "20", "50", "100", "200", "500", "1,000"]),
    ],
)
def test_ticks_of_a_log_axis_are_round_and_lie_among_the_values(low: float, high: float, expected: list[str]) -> None:
    assert [label for _, label in log_ticks([Series("a", 0, [0, 1], [low, high])])] == expected


def test_names_are_no_markup_in_plots() -> None:
    name = "<b>bold</b> & <a href='x'>"
    chart = Chart("key", name, name, Axis(name), Axis(name), (Series(name, 0, [1], [2], "points", [1.5], [2.5]),))
    said = str(figure_of(chart))
    assert "<b>" not in said and "<a " not in said and "&lt;b&gt;" in said


@pytest.fixture
def subject(store):
    """``subject(mask, **metadata)``: an SAE as its seed starts it, which is what training would have begun with."""
    identity = store.identity

    def make(mask, **changes) -> LoadedSAE:
        sae = build_sae(TopKConfig(d_sae=240, k=3, mask=mask), WIDTH, 8, torch.Generator().manual_seed(0)).eval()
        metadata = SAEMetadata(
            model=identity.model, model_revision=identity.model_revision, hook_point=identity.hook_point, store_key="k",
            contexts="c", context_length=8, use_position_0=False, input_scale=1.0, steps=5, tokens=50, seed=0,
            training={"lr": 1},
        ).model_copy(update=changes)  # fmt: skip
        return LoadedSAE("one", sae, metadata)

    return make


def test_maps_show_the_mask_before_and_after_training(subject, store) -> None:
    one = subject(SoftMaskConfig(shared=0.25))
    before = one.sae.mask.table()[1:].detach().clone()
    with torch.no_grad():
        for parameter in one.sae.mask.parameters():
            parameter += 1.0
    after = one.sae.mask.table()[1:]
    found = maps_of(one, store, {})
    assert list(found.panels) == ["mask before training", "mask after training"]
    for panel, table in zip(found.panels.values(), (before, after), strict=True):
        assert panel.shape == (180, 7), "the shared quarter is left out, and position 0"
        expected = {tuple(row) for row in np.round(255 * table.detach().numpy().T).astype(int)[60:]}
        assert {tuple(row) for row in panel.astype(int)} == expected


def test_rows_are_features_in_the_order_of_their_masks(subject, store) -> None:
    one = subject(BandMaskConfig(count=2))
    rates = np.random.default_rng(0).random((7, 240))
    rates[:, 7] = 0
    found = maps_of(one, store, {"firing": rates})
    assert len(found.panels["firing"]) == ROWS
    centres = (found.panels["mask after training"] * np.arange(7)).sum(axis=1) / found.panels[
        "mask after training"
    ].sum(axis=1)
    assert (np.diff(centres) >= 0).all()
    assert (found.panels["firing"].max(axis=1) == 255).all(), "each row by its own highest rate, the dead left out"


def test_a_start_that_cannot_be_rebuilt_is_said(subject, store) -> None:
    one = subject(UsageBandMaskConfig(count=2))
    found = maps_of(one, store, {})
    assert list(found.panels) == ["mask after training"] and "changed places in training" in found.note
    plain = maps_of(subject(NoMaskConfig()), store, {"firing": np.random.default_rng(0).random((7, 240))})
    assert list(plain.panels) == ["firing"] and "their firing" in plain.note


def test_one_point_is_a_mark_for_no_line_goes_through_it() -> None:
    for y, mode in (([0.5], "markers"), ([None, 0.5], "markers"), ([0.4, 0.5], "lines")):
        series = Series("a", 0, list(range(len(y))), y)
        (trace,) = figure_of(Chart("c", "C", "", Axis("x"), Axis("y"), (series,)))["data"]
        assert trace["mode"] == mode


@pytest.mark.parametrize(("values", "log"), [([32.0, 32.0], False), ([20.0, 39.0], False), ([20.0, 400.0], True)])
def test_an_axis_is_logarithmic_only_where_values_are_far_apart(values: list[float], log: bool) -> None:
    axis = _positive("L0", [Series("a", 0, [1, 2], values)])
    assert axis.log == log and ("log scale" in axis.title) == log and bool(axis.labels) == log
