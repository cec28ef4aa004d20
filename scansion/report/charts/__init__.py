"""The charts of a report, as data; plotly_form.py and paper.py draw them."""

from scansion.report.charts.chart import Axis, Chart, Series
from scansion.report.charts.curves import training_charts
from scansion.report.charts.pareto import pareto_charts
from scansion.report.charts.positions import position_charts, specialisation_charts
from scansion.report.charts.probing import probing_charts

__all__ = [
    "Axis",
    "Chart",
    "Series",
    "pareto_charts",
    "position_charts",
    "probing_charts",
    "specialisation_charts",
    "training_charts",
]
