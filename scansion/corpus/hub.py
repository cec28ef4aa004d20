"""Documents streamed from a data set on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator

from scansion.corpus.config import HUB_PREFIX, CorpusConfig
from scansion.corpus.rows import Row, rows_of, value_in
from scansion.errors import CorpusError


def read_hub(config: CorpusConfig) -> Iterator[Row]:
    """Yield the document of every row, in the data set's order, while it downloads.

    Raises:
        CorpusError: the data set, its configuration or its split cannot be opened, the stream breaks, or rows have no
            such column.
    """
    import datasets  # here because it takes a second or more, and local corpora do not need it

    name = config.source.removeprefix(HUB_PREFIX)

    def values() -> Iterator[tuple[str, str, object]]:
        rows = datasets.load_dataset(name, config.hub_config, split=config.hub_split, streaming=True)
        for number, row in enumerate(rows):
            yield value_in(row, config.text_field, f"{config.source} row {number}")

    try:
        yield from rows_of(values())
    except CorpusError:
        raise
    except Exception as error:  # the hub's client, the network and the data set's own reader may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CorpusError(
            f"{config.source!r} cannot be read ({reason}); check the name, "
            f"hub_config={config.hub_config!r}, hub_split={config.hub_split!r} and the network"
        ) from error
