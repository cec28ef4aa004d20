"""JSON and YAML files that Scansion writes, each with a checksum of its values, and YAML that users write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import yaml

from scansion.errors import ConfigError, DamagedError, ScansionError
from scansion.files import atomic_file, fingerprint

SEAL = "checksum"
"""Key under which a file of ours holds a fingerprint of its other values."""
_MOST_YAML_VALUES = 100_000


def write_json(path: Path, value: Any, *, sealed: bool = True) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are errors: callers write None.

    Args:
        path: the file.
        value: what it is to hold.
        sealed: add a checksum of the values, which :func:`read_json` compares. Only mappings can be sealed; False for
            files whose layout is another tool's.
    """
    with atomic_file(path) as temporary:
        text = json.dumps(seal_values(value) if sealed else value, indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON that we wrote; a seal is compared and left out. Files of earlier versions have none.

    Raises:
        DamagedError: it is not JSON, or not what was written.
    """
    return unsealed_values(parse_json(_text_of(path), str(path)), str(path))


def read_object(path: Path) -> dict[str, Any]:
    """:func:`read_json` of a file that holds values under names.

    Raises:
        DamagedError: as there, or it holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedError(
            f"{path} is damaged: it holds no values under names; delete it and run the same command again"
        )
    return cast(dict[str, Any], value)


def parse_json(text: str, what: str) -> Any:
    """The value of a JSON text.

    Args:
        text: any text.
        what: for the message, usually a path.

    Raises:
        DamagedError: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{what} is not valid JSON ({error}); delete it and run the same command again") from error


def seal_values(value: Any) -> Any:
    """A mapping with a checksum of its JSON values added to it; any other value as it is."""
    if not isinstance(value, dict):
        return value
    plain = json.loads(json.dumps(value, allow_nan=False))  # so that the keys are what will be read
    return {**cast(dict[str, Any], value), SEAL: fingerprint(plain)}


def unsealed_values(value: Any, what: str) -> Any:
    """What :func:`seal_values` was given. A mapping without a checksum, and any other value, is passed through.

    Raises:
        DamagedError: the values are not those of the checksum.
    """
    if not isinstance(value, dict):
        return value
    values = dict(cast(dict[str, Any], value))
    if SEAL not in values:
        return values
    try:
        same = values.pop(SEAL) == fingerprint(values)
    except (TypeError, ValueError):  # YAML can hold keys and values that JSON cannot
        same = False
    if not same:
        raise DamagedError(
            f"{what} was changed after it was written: its values do not match its checksum; "
            "restore it, or delete it and run the same command again"
        )
    return values


def is_sealed(path: Path) -> bool:
    """Whether a readable file of ours (JSON, YAML, or JSON lines) has a checksum: in each line, or in each part it holds."""
    if path.suffix == ".jsonl":
        values = [json.loads(line) for line in path.read_bytes().splitlines()]
    else:
        values = [
            parse_yaml(_text_of(path), str(path)) if path.suffix == ".yaml" else parse_json(_text_of(path), str(path))
        ]
    return all(_is_sealed(value) for value in values)


def _is_sealed(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    parts = cast(dict[str, Any], value)
    return SEAL in parts or (bool(parts) and all(isinstance(part, dict) and SEAL in part for part in parts.values()))


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError(
            f"{path} is damaged: it is not UTF-8 text; delete it and run the same command again"
        ) from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DamagedError(f"{path} is missing: {error.strerror}") from error
    except OSError as error:
        raise ScansionError(f"{path} cannot be read: {error.strerror}") from error


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:str" and key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key.value, str) else "")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str | bytes, what: str) -> Any:
    """The value of a YAML text that a user wrote.

    Args:
        text: any text; bytes are read as UTF-8.
        what: for the message, usually a path or a flag.

    Raises:
        ConfigError: it is not YAML, has a key twice, or is nested or repeated (by aliases) too much.
    """
    try:
        value = yaml.load(text.decode("utf-8") if isinstance(text, bytes) else text, _StrictLoader)  # noqa: S506 - a SafeLoader
        values = list(islice(_values_in(value), _MOST_YAML_VALUES + 1))
        if len(values) > _MOST_YAML_VALUES:
            raise ConfigError(f"{what} has more than {_MOST_YAML_VALUES:,} values, perhaps repeated by aliases")
        for one in values:  # no file can be called so, nor can it be written as UTF-8
            if isinstance(one, str) and re.search("[\0\ud800-\udfff]", one):
                raise ConfigError(f"{what} holds {one[:50]!r}: remove what is no character of a text")
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is not UTF-8 text") from error
    except RecursionError as error:
        raise ConfigError(f"{what} is nested too deeply") from error
    except Exception as error:  # besides its own errors, the library raises many others on odd scalars, like `!!int ""`
        raise ConfigError(
            f"{what} is not valid YAML: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    return value


def _values_in(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict):
        value = [*cast(dict[Any, Any], value), *cast(dict[Any, Any], value).values()]
    if isinstance(value, list):
        for item in cast(list[Any], value):
            yield from _values_in(item)


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    """Write a mapping as YAML, atomically, with a checksum as :func:`write_json` does.

    The checksum comes first: half of a YAML file may be YAML too, and must not pass for one of an earlier version without it.
    """
    sealed = seal_values(value)
    with atomic_file(path) as temporary:
        temporary.write_text(yaml.safe_dump({SEAL: sealed[SEAL]} | sealed, sort_keys=False), encoding="utf-8")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping that :func:`write_yaml` wrote.

    Raises:
        DamagedError: it is not such a mapping, or not what was written.
    """
    try:
        value = unsealed_values(parse_yaml(_text_of(path), str(path)), str(path))
    except ConfigError as error:
        raise DamagedError(f"{error}; restore it, or delete its folder and run the same command again") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} is damaged: it holds no settings; restore it, or delete its folder")
    return cast(dict[str, Any], value)


def require_known_format(value: Any, path: Path | str, known: int = 1) -> Any:
    """Return what was read from ``path``, unless a later version of Scansion wrote it in a newer format.

    Args:
        value: what the file holds. A mapping without ``format_version`` is in format 1; other values are passed through.
        path: for the message.
        known: the latest format that this version reads.

    Raises:
        ScansionError: the format is later than ``known``.
    """
    if not isinstance(value, dict):
        return value
    there = cast(dict[str, Any], value).get("format_version", 1)
    if there != known and there not in range(1, known):
        raise ScansionError(
            f"{path} is in format {there}, and this version of Scansion reads up to format {known}; update scansion"
        )
    return cast(dict[str, Any], value)


def json_line(value: dict[str, Any]) -> str:
    """A line for a file of JSON lines, with a checksum of the values."""
    return json.dumps(seal_values(value)) + "\n"


def read_json_lines(path: Path) -> list[Any]:
    """Read one value per line; an empty list if there is no such file.

    Raises:
        DamagedError: a line, which is named, is not JSON or not what was written.
    """
    return [value for _, value in numbered_json_lines(path)]


def numbered_json_lines(path: Path, skip: Callable[[DamagedError], None] | None = None) -> Iterator[tuple[str, Any]]:
    """Each line of a file of JSON lines, and its value.

    Args:
        path: need not exist.
        skip: told of each line that is damaged, which is then left out; without it, the first one raises.

    Raises:
        DamagedError: as above.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, 1):
        what = f"line {number} of {path}"
        try:
            text = line.decode("utf-8")
            values = unsealed_values(json.loads(text), what)
            if not isinstance(values, dict):
                raise DamagedError(f"{what} holds no values under names; delete the line")
            yield text, values
        except (ValueError, RecursionError) as error:
            _report(DamagedError(f"{what} is not valid JSON ({error}); delete the line"), skip)
        except DamagedError as error:
            _report(error, skip)


def _report(error: DamagedError, skip: Callable[[DamagedError], None] | None) -> None:
    if skip is None:
        raise error
    skip(error)
