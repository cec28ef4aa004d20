"""``by_text.json``: figures by groups of the text they were measured on, in the folder of the tables and ``final_info.json``.

``vectors`` holds every distinct list of numbers, one number per group, as text; ``arms`` says for each arm, figure and seed
which of them are its numerators and denominators, or its values without each group. See :class:`TextGroups`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from scansion.errors import DamagedError
from scansion.evals.statistics import TextGroups
from scansion.records import read_object, require_known_format, write_json

BY_TEXT = "by_text.json"

ByText = Mapping[str, Mapping[int, TextGroups]]
"""Figure -> seed -> its groups."""


def write_by_text(folder: Path, arms: Mapping[str, ByText]) -> Path | None:
    """Write ``folder/by_text.json``; nothing where no figure is known by text."""
    path = folder / BY_TEXT
    if not any(arms.values()):
        path.unlink(missing_ok=True)
        return None
    vectors: dict[str, int] = {}  # arms share denominators, seeds share the language model's figures

    def index(numbers: tuple[float, ...]) -> int:
        return vectors.setdefault(" ".join(f"{number:.10g}" for number in numbers), len(vectors))

    found = {
        name: {
            figure: {
                str(seed): {part: index(numbers) for part, numbers in groups if numbers}
                for seed, groups in by_seed.items()
            }
            for figure, by_seed in figures.items()
        }
        for name, figures in arms.items()
    }
    write_json(path, {"arms": found, "vectors": list(vectors)})
    return path


def read_by_text(folder: Path) -> dict[str, dict[str, dict[int, TextGroups]]]:
    """Arm -> figure -> seed -> groups, as ``folder/by_text.json`` holds them; empty if there is none.

    Raises:
        DamagedError: it is damaged, or not one of ours.
    """
    path = folder / BY_TEXT
    if not path.is_file():
        return {}
    values: Any = require_known_format(read_object(path), path)
    try:
        vectors = [tuple(float(number) for number in one.split()) for one in values["vectors"]]
        return {
            str(name): {
                str(figure): {
                    int(seed): TextGroups(**{part: vectors[at] for part, at in cast(dict[str, int], parts).items()})
                    for seed, parts in by_seed.items()
                }
                for figure, by_seed in figures.items()
            }
            for name, figures in values["arms"].items()
        }
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ValidationError) as error:
        raise DamagedError(f"{path} is damaged: it does not hold figures by text; run the study again") from error
