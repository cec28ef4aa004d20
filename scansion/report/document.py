"""One self-contained HTML document from parts: template, styles, scripts and packed data, all in one file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from scansion.report.chunks import Chunks

_STYLES = ("style.css", "figures.css", "features.css")
# In one function's scope, in this order.
_SCRIPTS = (
    "chunks.js", "elements.js", "theme.js", "plots.js", "figures.js", "maps.js", "feature_columns.js",
    "feature_table.js", "feature_search.js", "small_charts.js", "feature_detail.js", "sentences.js", "feature_browser.js",
    "main.js",
)  # fmt: skip


def add_plotly(chunks: Chunks) -> None:
    """Put plotly.js, as the installed package has it, among a page's chunks: packed, 5 MB become 2."""
    from plotly.offline import get_plotlyjs  # here, because plotly takes a while to load

    chunks.add_bytes("plotly", get_plotlyjs().encode("utf-8"))


def render(
    template: str, title: str, lead: str, sections: Sequence[tuple[str, str]], chunks: Chunks, **content: Any
) -> str:
    """The document as text.

    Args:
        template: a file in ``web`` that extends ``page.html``.
        title, lead: the heading and the paragraph below it.
        sections: (id, name) for the links at the top.
        chunks: data for the scripts.
        content: what the template shows; everything that comes from names, paths or data is escaped by it.
    """
    environment = Environment(
        loader=PackageLoader("scansion.report", "web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = "\n".join(_read(name) for name in _SCRIPTS)
    return environment.get_template(template).render(
        title=title,
        lead=lead,
        sections=sections,
        chunks=chunks.texts,
        style="\n".join(_read(name) for name in _STYLES),
        script=f'"use strict";\n(() => {{\n{script}\n}})();',
        version=version("scansion"),
        **content,
    )


def _read(name: str) -> str:
    return (files("scansion.report") / "web" / name).read_text(encoding="utf-8")
