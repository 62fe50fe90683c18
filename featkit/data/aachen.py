"""Aachen Day-Night v1.0 and v1.1 in the published layout: locates files, lists queries, reports what is missing.

    images/images_upright/db/*.jpg, query/day/*/*.jpg, query/night/nexus5x/*.jpg             both versions
    images_upright/sequences/..., query/night/nexus5x_additional_night/*.jpg                 v1.1 adds
    3D-models/aachen_cvpr2018_db.nvm, 3D-models/database_intrinsics.txt                      v1.0
    3D-models/aachen_v_1_1/{cameras,images,points3D}.bin (or aachen_v_1_1.nvm + database_intrinsics_v1_1.txt)   v1.1
    queries/{day,night}_time_queries_with_intrinsics.txt
    image_pairs_to_match.txt, image_pairs_to_match_v1_1.txt          pairs of the local-feature challenge (night)
    pairs/aachen[_v1.1]/pairs-db-covis20.txt, pairs-query-netvlad50.txt                      hloc's pairs

The two versions come in two archives that both contain an images_upright/. Every file is searched for in all known
places, so the archives may be unpacked into one folder or as `featkit data fetch aachen` does.
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
ADDITIONAL_NIGHT = "query/night/nexus5x_additional_night/"  # v1.1 only
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
# Both versions use the same name for their night list; the places that only v1.1 has are searched first.
NIGHT_LISTS = ("queries/night_time_queries_with_intrinsics_v1_1.txt", "aachen_v1_1/queries/" + LIST)
CHALLENGE_PAIRS = {"1.1": "image_pairs_to_match_v1_1.txt", "1.0": "image_pairs_to_match.txt"}
HLOC_FOLDER = {"1.1": "aachen_v1.1", "1.0": "aachen"}
DATABASE_PAIRS, QUERY_PAIRS = "pairs-db-covis20.txt", "pairs-query-netvlad50.txt"


@dataclass(frozen=True)
class AachenFiles:
    """Paths of one version of the dataset. images: folders, each with some of the photographs.

    model: folder of a COLMAP model; nvm, intrinsics: the same model as NVM. At least one of the two forms is present.
    lists: intrinsics of the queries for "day" and "night". Anything else is None if absent.
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

    Raises UsageError for any other version or choice of queries, BadInputError naming everything that is missing.
    """
    if version not in VERSIONS:
        raise UsageError(f"--version {version}: there is {' and '.join(VERSIONS)}")
    if queries not in QUERIES:
        raise UsageError(
            f"--queries {queries}: one of {', '.join(QUERIES)} (a map in a folder named aachen is ./aachen)"
        )
    if not root.is_dir():
        raise BadInputError(f"{root}: no such folder; `featkit data fetch aachen --out {root}` makes it")
    model, nvm, intrinsics = _find_model_files(root, version)
    lists = {condition: _find_query_list(root, version, condition) for condition in QUERIES[queries]}
    images = tuple(root / folder for folder in IMAGES if (root / folder).is_dir())
    missing = _missing_files(version, images, model, nvm, intrinsics, lists)
    if missing:
        raise BadInputError(
            f"{root}: Aachen v{version} is incomplete; missing: {'; '.join(missing)}."
            f" `featkit data fetch aachen --out {root}` gets them"
        )
    hloc = (f"pairs/{HLOC_FOLDER[version]}/{{}}", f"{HLOC_FOLDER[version]}-{{}}", "pairs/{}", "{}")
    challenge = CHALLENGE_PAIRS[version]
    return AachenFiles(
        root, version, images, model, nvm, intrinsics, {name: path for name, path in lists.items() if path},
        challenge_pairs=_first_existing(root, (challenge, f"others/{challenge}", f"pairs/{challenge}")),
        database_pairs=_first_existing(root, [place.format(DATABASE_PAIRS) for place in hloc]),
        query_pairs=_first_existing(root, [place.format(QUERY_PAIRS) for place in hloc]),
    )  # fmt: skip


def read_queries(files: AachenFiles, conditions: Iterable[str] | None = None) -> dict[str, dict[str, Intrinsics]]:
    """Cameras of the queries by condition ("day", "night") and name. Raises BadInputError.

    For v1.0, queries that only v1.1 has are left out: unpacking v1.1 over v1.0 replaces the night list of v1.0.
    """
    queries = {}
    for condition in files.lists if conditions is None else conditions:
        path = files.lists[condition]
        listed = read_intrinsics_list(path)
        cameras = {n: c for n, c in listed.items() if files.version == "1.1" or not n.startswith(ADDITIONAL_NIGHT)}
        if len(cameras) < len(listed):
            LOGGER.info("%s: %d queries that v1.0 does not have are left out", path, len(listed) - len(cameras))
        if not cameras:
            raise BadInputError(f"{path}: no query of v{files.version} in it")
        if condition == "night" and files.version == "1.1" and not any(n.startswith(ADDITIONAL_NIGHT) for n in cameras):
            LOGGER.warning("%s: lists nothing of %s; is it the list of v1.0?", path, ADDITIONAL_NIGHT)
        queries[condition] = cameras
    return queries


def query_names(root: Path, version: str) -> dict[str, list[str]]:
    """Names of all queries whose list is present, by condition. Raises BadInputError if there is no list at all."""
    if version not in VERSIONS:
        raise UsageError(f"--version {version}: there is {' and '.join(VERSIONS)}")
    list_paths = {condition: _find_query_list(root, version, condition) for condition in QUERIES["day-night"]}
    lists = {condition: path for condition, path in list_paths.items() if path is not None}
    if not lists:
        raise BadInputError(f"{root}: no {LISTS[0].format('night')}; `featkit data fetch aachen --out {root}` gets it")
    files = AachenFiles(root, version, (), None, None, None, lists, None, None, None)
    return {condition: list(cameras) for condition, cameras in read_queries(files).items()}


def place_images(files: AachenFiles, names: Sequence[str], links: Path) -> Path:
    """A folder with all these photographs: one of the dataset's, or `links`, filled with links if they are in several.

    Raises BadInputError for missing photographs, NotWritableError.
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
        raise BadInputError(_missing_photographs_message(files, missing, len(names)))
    if len(set(where.values())) == 1:
        return next(iter(where.values()))
    LOGGER.info("photographs are in %d folders; linking them in %s", len(set(where.values())), links)
    for name, folder in where.items():
        _create_link((folder / name).resolve(), links / name)
    return links


def _create_link(target: Path, link: Path) -> None:
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
            f"{link}: cannot create the link ({error.strerror}); move the photographs of all images_upright/ into one"
        ) from None


def _missing_photographs_message(files: AachenFiles, missing: Sequence[str], wanted: int) -> str:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    of_additional = [name for name in missing if name.startswith(("sequences/", ADDITIONAL_NIGHT))]
    archives = ["aachen_v1_1.zip"] if of_additional else []
    if len(of_additional) < len(missing):
        archives.insert(0, "images/database_and_query_images.zip")
    folders = ", ".join(str(folder) for folder in files.images)
    return f"{folders}: no {missing[0]}{more} of {wanted} photographs; they are in {' and '.join(archives)} of {SERVER}"


def _find_model_files(root: Path, version: str) -> tuple[Path | None, Path | None, Path | None]:
    """Folder of the COLMAP model, NVM file, list of intrinsics."""
    folders = [root / folder for folder in MODEL_FOLDERS[version]]
    complete = [folder for folder in folders if all((folder / name).is_file() for name in MODEL_FILES)]
    nvm = _first_existing(root, [f"{folder}/{NVM[version]}" for folder in MODEL_FOLDERS[version]])
    intrinsics = _first_existing(root, [f"{folder}/{INTRINSICS[version]}" for folder in MODEL_FOLDERS[version]])
    return (complete[0] if complete and version == "1.1" else None), nvm, intrinsics


def _find_query_list(root: Path, version: str, condition: str) -> Path | None:
    places = [place.format(condition) for place in LISTS]
    if condition == "night" and version == "1.1":
        places = [place.format(condition) for place in NIGHT_LISTS] + places
    return _first_existing(root, places)


def _missing_files(
    version: str,
    images: Sequence[Path],
    model: Path | None,
    nvm: Path | None,
    intrinsics: Path | None,
    lists: dict[str, Path | None],
) -> list[str]:
    """What is missing, with the archive on the server that contains it."""
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


def _first_existing(root: Path, places: Iterable[str]) -> Path | None:
    return next((root / place for place in places if (root / place).is_file()), None)


# ----------------------------------------------------------------------------------------------------------------------
# Which images of Aachen Day-Night are matched: the published lists, split into database pairs and query pairs.


@dataclass(frozen=True)
class PairLists:
    """Pair files; None: no published list, the pairs are generated. One file may contain both kinds."""

    database: Path | None
    queries: Path | None


def published_lists(
    files: AachenFiles, queries: str, database_pairs: Path | None = None, query_pairs: Path | None = None
) -> PairLists:
    """The published lists for a choice of queries; files given explicitly take precedence.

    "night": those of the local-feature challenge, else hloc's. "day-night": hloc's; the challenge has no day queries.
    """
    challenge = files.challenge_pairs if queries == "night" else None
    if challenge is None and queries == "night" and not (database_pairs and query_pairs):
        LOGGER.warning(
            "%s: the challenge's pair list is missing; the matched pairs differ from those in the papers", files.root
        )
    return PairLists(database_pairs or challenge or files.database_pairs, query_pairs or challenge or files.query_pairs)


def with_features(pairs: Sequence[Pair], features: Path, second: Path | None = None) -> list[Pair]:
    """Pairs whose two images both have features; others, such as unreadable images, are skipped.

    second: features file of the second image of each pair, by default the same. Raises BadInputError if none is left.
    """
    with open_features(features) as store0, open_features(second or features) as store1:
        known0, known1 = set(store0.names()), set(store1.names())
    usable = [pair for pair in pairs if pair.name0 in known0 and pair.name1 in known1]
    if not usable:
        raise BadInputError(f"{features}: not one of {len(pairs)} pairs has features; can the photographs be read?")
    return usable


def database_pairs(path: Path, mapped: Collection[str]) -> list[Pair]:
    """Pairs of a list whose images are both in the map. Raises BadInputError if there are none."""
    pairs = [pair for pair in read_pairs(path) if pair.name0 in mapped and pair.name1 in mapped]
    if not pairs:
        raise BadInputError(f"{path}: no pair of images of the reference model; is it the list of another version?")
    return pairs


def query_pairs(path: Path, queries: Collection[str], mapped: Collection[str]) -> list[Pair]:
    """Pairs (query, map image) of a list that may name either first, in the order of the file (best first).

    Raises BadInputError if there are none.
    """
    pairs = []
    for pair in read_pairs(path):
        if pair.name0 in queries and pair.name1 in mapped:
            pairs.append(pair)
        elif pair.name1 in queries and pair.name0 in mapped:
            pairs.append(Pair(pair.name1, pair.name0))
    if not pairs:
        raise BadInputError(f"{path}: no pair of a query and an image of the map; is it the list of another version?")
    without = len(set(queries) - {pair.name0 for pair in pairs})
    if without:
        LOGGER.warning("%s: no pair for %d of %d queries", path, without, len(queries))
    return pairs
