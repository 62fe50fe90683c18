"""pairs.txt: two image names a line, parted by a space, or by a tab when any name has a space.

Beside it `pairs.json` says which configuration made it; readers never need that file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from featkit import __version__
from featkit.config import Config
from featkit.errors import BadInputError
from featkit.store.artifact import write_described
from featkit.store.text import read_lines
from featkit.types import Pair


def read_pairs(path: Path, directed: bool = False) -> list[Pair]:
    """Pairs in the order of the file; a pair named twice, in either order, counts once.

    directed: the first name is a query and the second a map image, of two folders that may hold equal names; so
    (a, b) and (b, a) are two pairs, and (a, a) is one.
    Raises BadInputError for a missing file, a line without two names, or an image paired with itself.
    """
    pairs: dict[tuple[str, str], Pair] = {}
    known: dict[str, str] = {}  # each name once in memory, in however many of millions of pairs it stands
    for number, line in read_lines(path):
        names = line.split("\t") if "\t" in line else line.split()
        if len(names) != 2 or not all(name.strip() for name in names):
            raise BadInputError(f"{path}:{number}: two image names expected (tab-separated if a name has a space)")
        name0, name1 = (known.setdefault(name.strip(), name.strip()) for name in names)
        pair = Pair(name0, name1)
        if pair.name0 == pair.name1 and not directed:
            raise BadInputError(f"{path}:{number}: {pair.name0!r} is paired with itself; remove the line")
        pairs.setdefault((pair.name0, pair.name1) if directed else pair.key(), pair)
    if not pairs:
        raise BadInputError(f"{path}: no pairs in it")
    return list(pairs.values())


def write_pairs(
    path: Path, pairs: Iterable[Pair], config: Config | None = None, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write pairs.txt and pairs.json, whole or not at all.

    config: what made the pairs; it is written to pairs.json, with the entries of `extra` beside it.
    Raises NotWritableError, BadInputError for a name that a line of text cannot hold, and for a file that featkit did
    not make.
    """
    described: dict[str, Any] = {"kind": "pairs", "featkit_version": __version__}
    if config is not None:
        described |= {
            "fingerprint": config.fingerprint(),
            "method": type(config).__name__,
            "config": config.result_fields(),
        }
    return write_described(path, format_pairs(pairs), {**described, **(extra or {})})


def format_pairs(pairs: Iterable[Pair]) -> str:
    """The content of pairs.txt. Raises BadInputError for a name that a line of text cannot hold."""
    listed = list(pairs)
    names = [name for pair in listed for name in (pair.name0, pair.name1)]
    for name in names:
        if not _survives(name):
            raise BadInputError(f"image name {name!r} cannot stand in a text file (a tab, '#' in front...); rename it")
    separator = "\t" if any(len(name.split()) > 1 for name in names) else " "
    return "".join(f"{p.name0}{separator}{p.name1}\n" for p in listed)


def _survives(name: str) -> bool:
    """Whether a name comes back from a line of text: no tab, line break, comment sign or space at an end."""
    return name == name.strip() and name.splitlines() == [name] and "\t" not in name and name[0] not in "#\ufeff"


def describe_pairs(path: Path) -> dict[str, Any] | None:
    """What pairs.json says of pairs.txt: fingerprint, method, config and more; None when featkit did not make it."""
    try:
        described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return described if isinstance(described, dict) and described.get("kind") == "pairs" else None
