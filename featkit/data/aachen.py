"""Aachen Day-Night as it is published, v1.0 and v1.1: which file lies where, which queries there are, what is missing.

    images/images_upright/db/*.jpg, query/day/*/*.jpg, query/night/nexus5x/*.jpg             both versions
    images_upright/sequences/..., query/night/nexus5x_additional_night/*.jpg                 v1.1 adds
    3D-models/aachen_cvpr2018_db.nvm, 3D-models/database_intrinsics.txt                      v1.0
    3D-models/aachen_v_1_1/{cameras,images,points3D}.bin (or aachen_v_1_1.nvm + database_intrinsics_v1_1.txt)   v1.1
    queries/{day,night}_time_queries_with_intrinsics.txt
    image_pairs_to_match.txt, image_pairs_to_match_v1_1.txt          pairs of the local-feature challenge (night)
    pairs/aachen[_v1.1]/pairs-db-covis20.txt, pairs-query-netvlad50.txt                      hloc's pairs

The two versions come in two archives that both hold an images_upright/; whether they are unpacked into one place, or as
`featkit data fetch aachen` leaves them, each file is looked for in all places.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from featkit.core.errors import BadInputError, NotWritableError, UsageError
from featkit.core.types import Pair
from featkit.io.artifact import inside
from featkit.io.atomic import FOREIGN
from featkit.io.features import open_features
from featkit.io.lists import Intrinsics, read_intrinsics_list, read_pairs

LOGGER = logging.getLogger(__name__)
VERSIONS = ("1.1", "1.0")
QUERIES = {"night": ("night",), "day-night": ("day", "night")}  # which queries are localized
ADDITIONAL_NIGHT = "query/night/nexus5x_additional_night/"  # of v1.1 alone
MODEL_FILES = ("cameras.bin", "images.bin", "points3D.bin")
SERVER = "https://data.ciirc.cvut.cz/public/projects/2020VisualLocalization/Aachen-Day-Night/"
CHALLENGE = "github.com/tsattler/visuallocalizationbenchmark, local_feature_evaluation/data/aachen-day-night"

IMAGES = ("images/images_upright", "images_upright", "images_upright/images_upright", "aachen_v1_1/images_upright")
MODEL_FOLDERS = {
    "1.1": ("3D-models/aachen_v_1_1", "aachen_v1_1/3D-models/aachen_v_1_1", "3D-models"),
    "1.0": ("3D-models", "3D-models/aachen_v_1", "."),
}
NVM = {"1.1": "aachen_v_1_1.nvm", "1.0": "aachen_cvpr2018_db.nvm"}
INTRINSICS = {"1.1": "database_intrinsics_v1_1.txt", "1.0": "database_intrinsics.txt"}
LIST = "{}_time_queries_with_intrinsics.txt"
LISTS = ("queries/" + LIST, "query/" + LIST, "aachen_v1_1/queries/" + LIST, LIST)
# Both versions name their list of the night alike; where v1.1 has a place of its own, that is looked at first.
NIGHT_LISTS = ("queries/night_time_queries_with_intrinsics_v1_1.txt", "aachen_v1_1/queries/" + LIST)
CHALLENGE_PAIRS = {"1.1": "image_pairs_to_match_v1_1.txt", "1.0": "image_pairs_to_match.txt"}
HLOC_FOLDER = {"1.1": "aachen_v1.1", "1.0": "aachen"}
DATABASE_PAIRS, QUERY_PAIRS = "pairs-db-covis20.txt", "pairs-query-netvlad50.txt"


@dataclass(frozen=True)
class AachenFiles:
    """Where everything of one version lies. images: folders, each with some of the photographs.

    model: folder of a COLMAP model; nvm, intrinsics: the same model in the other form; at least one of the two forms
    is there. lists: intrinsics of the queries by "day" and "night". The rest is None where it is absent.
    """

    root: Path
    version: str
    images: tuple[Path, ...]
    model: Path | None
    nvm: Path | None
    intrinsics: Path | None
    lists: dict[str, Path]
    challenge_pairs: Path | None
    database_pairs: Path | None
    query_pairs: Path | None


def find_aachen(root: Path, version: str, queries: str) -> AachenFiles:
    """Find the files of a version ("1.1", "1.0") for "night" or "day-night" queries.

    Raises UsageError for another version or another choice of queries, BadInputError that names all that is missing.
    """
    if version not in VERSIONS:
        raise UsageError(f"--version {version}: there is {' and '.join(VERSIONS)}")
    if queries not in QUERIES:
        raise UsageError(
            f"--queries {queries}: one of {', '.join(QUERIES)} (a map in a folder named aachen is ./aachen)"
        )
    if not root.is_dir():
        raise BadInputError(f"{root}: no such folder; `featkit data fetch aachen --out {root}` makes it")
    model, nvm, intrinsics = _model(root, version)
    lists = {condition: _list(root, version, condition) for condition in QUERIES[queries]}
    images = tuple(root / folder for folder in IMAGES if (root / folder).is_dir())
    missing = _missing(version, images, model, nvm, intrinsics, lists)
    if missing:
        raise BadInputError(
            f"{root}: Aachen v{version} is not whole; missing: {'; '.join(missing)}."
            f" `featkit data fetch aachen --out {root}` gets them"
        )
    hloc = (f"pairs/{HLOC_FOLDER[version]}/{{}}", f"{HLOC_FOLDER[version]}-{{}}", "pairs/{}", "{}")
    challenge = CHALLENGE_PAIRS[version]
    return AachenFiles(
        root, version, images, model, nvm, intrinsics, {name: path for name, path in lists.items() if path},
        challenge_pairs=_first(root, (challenge, f"others/{challenge}", f"pairs/{challenge}")),
        database_pairs=_first(root, [place.format(DATABASE_PAIRS) for place in hloc]),
        query_pairs=_first(root, [place.format(QUERY_PAIRS) for place in hloc]),
    )  # fmt: skip


def read_queries(files: AachenFiles, conditions: Iterable[str] | None = None) -> dict[str, dict[str, Intrinsics]]:
    """Cameras of the queries by condition ("day", "night") and name. Raises BadInputError.

    Of v1.0 the queries that only v1.1 has are left out: unpacked over it, v1.1 replaces its list of the night.
    """
    found = {}
    for condition in files.lists if conditions is None else conditions:
        path = files.lists[condition]
        listed = read_intrinsics_list(path)
        kept = {n: c for n, c in listed.items() if files.version == "1.1" or not n.startswith(ADDITIONAL_NIGHT)}
        if len(kept) < len(listed):
            LOGGER.info("%s: %d queries that v1.0 does not have are left out", path, len(listed) - len(kept))
        if not kept:
            raise BadInputError(f"{path}: no query of v{files.version} in it")
        if condition == "night" and files.version == "1.1" and not any(n.startswith(ADDITIONAL_NIGHT) for n in kept):
            LOGGER.warning("%s: lists nothing of %s; is it the list of v1.0?", path, ADDITIONAL_NIGHT)
        found[condition] = kept
    return found


def query_names(root: Path, version: str) -> dict[str, list[str]]:
    """Names of all queries whose list is there, by condition. Raises BadInputError when there is not one list."""
    if version not in VERSIONS:
        raise UsageError(f"--version {version}: there is {' and '.join(VERSIONS)}")
    found = {condition: _list(root, version, condition) for condition in QUERIES["day-night"]}
    lists = {condition: path for condition, path in found.items() if path is not None}
    if not lists:
        raise BadInputError(f"{root}: no {LISTS[0].format('night')}; `featkit data fetch aachen --out {root}` gets it")
    files = AachenFiles(root, version, (), None, None, None, lists, None, None, None)
    return {condition: list(cameras) for condition, cameras in read_queries(files).items()}


def place_images(files: AachenFiles, names: Sequence[str], links: Path) -> Path:
    """The folder that has all these photographs: that of the data, or `links`, filled with links when they lie in two.

    Raises BadInputError for photographs that are nowhere, NotWritableError.
    """
    where: dict[str, Path] = {}
    missing = []
    for name in names:
        inside(links, name)
        folder = next((folder for folder in files.images if (folder / name).is_file()), None)
        if folder is None:
            missing.append(name)
        else:
            where[name] = folder
    if missing:
        raise BadInputError(_without_images(files, missing, len(names)))
    if len(set(where.values())) == 1:
        return next(iter(where.values()))
    LOGGER.info("photographs lie in %d folders: %s gets links to them", len(set(where.values())), links)
    for name, folder in where.items():
        _link((folder / name).resolve(), links / name)
    return links


def _link(target: Path, link: Path) -> None:
    try:
        if link.is_symlink() and link.readlink() == target:
            return
        if os.path.lexists(link) and not link.is_symlink():
            raise BadInputError(f"{link}: {FOREIGN}")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    except OSError as error:
        raise NotWritableError(
            f"{link}: no link can be made ({error.strerror}); move the photographs of all images_upright/ into one"
        ) from None


def _without_images(files: AachenFiles, missing: Sequence[str], wanted: int) -> str:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    added = [name for name in missing if name.startswith(("sequences/", ADDITIONAL_NIGHT))]
    archives = ["aachen_v1_1.zip"] if added else []
    if len(added) < len(missing):
        archives.insert(0, "images/database_and_query_images.zip")
    folders = ", ".join(str(folder) for folder in files.images)
    return f"{folders}: no {missing[0]}{more} of {wanted} photographs; they are in {' and '.join(archives)} of {SERVER}"


def _model(root: Path, version: str) -> tuple[Path | None, Path | None, Path | None]:
    """Folder of the COLMAP model, NVM file, list of intrinsics."""
    folders = [root / folder for folder in MODEL_FOLDERS[version]]
    whole = [folder for folder in folders if all((folder / name).is_file() for name in MODEL_FILES)]
    nvm = _first(root, [f"{folder}/{NVM[version]}" for folder in MODEL_FOLDERS[version]])
    intrinsics = _first(root, [f"{folder}/{INTRINSICS[version]}" for folder in MODEL_FOLDERS[version]])
    return (whole[0] if whole and version == "1.1" else None), nvm, intrinsics


def _list(root: Path, version: str, condition: str) -> Path | None:
    places = [place.format(condition) for place in LISTS]
    if condition == "night" and version == "1.1":
        places = [place.format(condition) for place in NIGHT_LISTS] + places
    return _first(root, places)


def _missing(
    version: str,
    images: Sequence[Path],
    model: Path | None,
    nvm: Path | None,
    intrinsics: Path | None,
    lists: dict[str, Path | None],
) -> list[str]:
    """What is missing, and in which file of the server it is."""
    missing = []
    if not images:
        missing.append(f"{IMAGES[0]}/ (in images/database_and_query_images.zip)")
    folder = MODEL_FOLDERS[version][0]
    if model is None and (nvm is None or intrinsics is None):
        absent = [name for name, path in ((NVM[version], nvm), (INTRINSICS[version], intrinsics)) if path is None]
        if version == "1.1":
            names = f"{folder}/{{{','.join(MODEL_FILES)}}}, or {', '.join(absent)} there (in aachen_v1_1.zip)"
            missing.append(names)
        else:
            missing += [f"{folder}/{name} (of {SERVER})" for name in absent]
    archive = " (in aachen_v1_1.zip)" if version == "1.1" else ""
    for condition, path in lists.items():
        if path is None:
            missing.append(LISTS[0].format(condition) + (archive if condition == "night" else ""))
    return missing


def _first(root: Path, places: Iterable[str]) -> Path | None:
    return next((root / place for place in places if (root / place).is_file()), None)


# ----------------------------------------------------------------------------------------------------------------------
# Which images of Aachen Day-Night are matched: the published lists, parted into pairs of the map and of queries.


@dataclass(frozen=True)
class PairLists:
    """Files of pairs; None: there is none, and the pairs are made. One file may hold both kinds."""

    database: Path | None
    queries: Path | None


def published_lists(
    files: AachenFiles, queries: str, database_pairs: Path | None = None, query_pairs: Path | None = None
) -> PairLists:
    """The lists that belong to a choice of queries; a file that is given goes first.

    "night": those of the local-feature challenge, else hloc's. "day-night": hloc's, as the challenge has no day.
    """
    challenge = files.challenge_pairs if queries == "night" else None
    if challenge is None and queries == "night" and not (database_pairs and query_pairs):
        LOGGER.warning(
            "%s: the challenge's list of pairs is not here; others are matched than in the papers", files.root
        )
    return PairLists(database_pairs or challenge or files.database_pairs, query_pairs or challenge or files.query_pairs)


def with_features(pairs: Sequence[Pair], features: Path, second: Path | None = None) -> list[Pair]:
    """Pairs whose images have features (second: where those of the second name are): broken images are passed over.

    Raises BadInputError when none is left.
    """
    with open_features(features) as store0, open_features(second or features) as store1:
        known0, known1 = set(store0.names()), set(store1.names())
    kept = [pair for pair in pairs if pair.name0 in known0 and pair.name1 in known1]
    if not kept:
        raise BadInputError(f"{features}: not one of {len(pairs)} pairs has features; can the photographs be read?")
    return kept


def database_pairs(path: Path, mapped: Collection[str]) -> list[Pair]:
    """Pairs of a list whose images are both of the map. Raises BadInputError when there is none."""
    found = [pair for pair in read_pairs(path) if pair.name0 in mapped and pair.name1 in mapped]
    if not found:
        raise BadInputError(f"{path}: no pair of images of the reference model; is it the list of another version?")
    return found


def query_pairs(path: Path, queries: Collection[str], mapped: Collection[str]) -> list[Pair]:
    """Pairs (query, image of the map) of a list, whichever of the two it names first, best first as in the file.

    Raises BadInputError when there is none.
    """
    found = []
    for pair in read_pairs(path):
        if pair.name0 in queries and pair.name1 in mapped:
            found.append(pair)
        elif pair.name1 in queries and pair.name0 in mapped:
            found.append(Pair(pair.name1, pair.name0))
    if not found:
        raise BadInputError(f"{path}: no pair of a query and an image of the map; is it the list of another version?")
    without = len(set(queries) - {pair.name0 for pair in found})
    if without:
        LOGGER.warning("%s: no pair for %d of %d queries", path, without, len(queries))
    return found
