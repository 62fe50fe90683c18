"""One stage of `scaling.py` in a process of its own, so that its memory is its own.

    python benchmarks/scaling_stages.py STAGE FOLDER SETTINGS

SETTINGS: json. Prints what came out as one json object; `seconds` are those of the work, without the imports.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
from survey import PARAMS, SurveyConfig, make_survey, write_survey

from featkit.core.config import Config
from featkit.core.registry import resolve
from featkit.core.types import Features, Matches, Pair
from featkit.io.features import append_features, open_features
from featkit.io.h5 import set_attribute
from featkit.io.lists import read_pairs, read_poses
from featkit.io.matches import append_matches, open_matches, pair_key
from featkit.mapping.align import compare_with_truth
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.database import count_verified
from featkit.mapping.stage import MapConfig, build_map, database_config, read_largest
from featkit.mapping.verify import build_database
from featkit.matching import stage as match
from featkit.pairing import stage as pairing
from featkit.report.maps import map_metrics, reconstruction_report
from featkit.retrieval.search import top_k

CAMERA = CameraConfig(model="PINHOLE", params=PARAMS, mode="single", refine=False)
SEARCHED = 4096  # vectors, each with each, to time the search alone
TINY = 4  # keypoints of an image in the large store
PAIRS_OF_ONE = 10  # in the large store of matches
WRITTEN = 5_000  # items of the large stores that are written one by one
SOME = 20_000  # items of the large stores that are read whole


OUTPUTS = {
    "survey": ("images", "features.h5", "poses.txt"),
    "pairs": ("pairs.txt", "pairs.json"),
    "match": ("matches.h5",),
    "verify": ("database.db", "database.json", ".database.db.part", ".database.db.part.json"),
    **{f"map {name}": (f"sparse-{name}", f"sparse-{name}.json") for name in ("incremental", "hierarchical", "global")},
    "map incremental, tolerance 0": ("sparse-incremental", "sparse-incremental.json"),
    "report": ("report.html",),
    "store-write": ("features.h5", "matches.h5"),
}


def clear(folder: Path, names: Iterable[str]) -> None:
    """Remove what a stage writes."""
    for path in (folder / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def map_config(**changes: Any) -> MapConfig:
    """Cameras are known and the images all grey, so neither is looked for in them."""
    return MapConfig(camera=CAMERA, extract_colors=False, **changes)


def survey(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Features as extraction would leave them."""
    keypoints = write_survey(make_survey(SurveyConfig(**settings)), folder)
    return {"keypoints": keypoints, "disk_bytes": size_of(folder / "features.h5")}


def pairs(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Retrieval: codebook, a vector per image, the nearest ones of each."""
    path = folder / "pairs.txt"
    pairing.run(resolve("pairing", "retrieval", settings), folder / "features.h5", path)
    return {"pairs": len(read_pairs(path)), "disk_bytes": size_of(path)}


def matches(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Mutual nearest neighbours with the ratio test."""
    path = folder / "matches.h5"
    match.run(resolve("matcher", "mutual", settings), folder / "features.h5", folder / "pairs.txt", path)
    return {"disk_bytes": size_of(path)}


def verify(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The database: keypoints, matches, two-view geometries by RANSAC."""
    path = folder / "database.db"
    files = (folder / "images", folder / "features.h5", folder / "pairs.txt", folder / "matches.h5")
    build_database(database_config(map_config()), *files, path)
    verified, inliers = count_verified(path)
    with pycolmap.Database.open(str(path)) as database:
        found = int(database.num_matches())
    return {"verified_pairs": verified, "matches": found, "inliers": inliers, "disk_bytes": size_of(path)}


def mapping(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A map by one of the mappers, and how far its cameras are from the true ones. settings: fields of MapConfig."""
    config = map_config(**settings)
    output = folder / f"sparse-{config.mapper}"
    started = time.perf_counter()
    build_map(config, folder / "images", folder / "database.db", output)
    seconds = time.perf_counter() - started
    model = read_largest(output)
    errors = compare_with_truth(model, read_poses(folder / "poses.txt"))
    return {
        "seconds": seconds,
        "registered": model.num_reg_images(),
        "models": sum(path.is_dir() for path in output.iterdir()),
        "points": model.num_points3D(),
        "observations": model.compute_num_observations(),
        "reprojection_px": round(model.compute_mean_reprojection_error(), 4),
        "centre_error_m_median": round(float(np.median(errors.centre)), 4),
        "centre_error_m_max": round(float(np.max(errors.centre)), 4),
        "disk_bytes": size_of(output),
    }


def report(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """metrics.json's content and report.html of the map named in settings."""
    sparse, path = folder / f"sparse-{settings['mapper']}", folder / "report.html"
    names = sorted(read_poses(folder / "poses.txt"))
    metrics = map_metrics(sparse, folder / "database.db", names, None, align=False) | {"seconds": {"all": 0.0}}
    inputs = (folder / "images", folder / "features.h5", folder / "database.db", sparse, path)
    reconstruction_report(map_config(), metrics, *inputs)
    return {"disk_bytes": size_of(path)}


def search(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The part of retrieval that grows with the square of the images, alone."""
    vectors = np.random.default_rng(0).integers(-500, 500, (SEARCHED, settings["dims"])).astype(np.int16)
    started = time.perf_counter()
    top_k(vectors, vectors, settings["num"], available_bytes=1 << 30, exclude=np.arange(SEARCHED))
    return {"seconds": time.perf_counter() - started, "vectors": SEARCHED}


class _Tiny(Config):
    """What the large store says that it was made by."""

    items: int


def store_write(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A store of features and one of matches with as many items as asked for.

    The first ones are written as featkit does, each a transaction, and timed; the others are copies of one of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total, config, shown = settings["items"], _Tiny(items=settings["items"]), {}
    first = min(total, WRITTEN)
    rows = np.zeros((TINY, 2), np.float32), np.zeros((TINY, 8), np.float16), np.ones(TINY, np.float32)
    some = Features(*rows, (640, 480))
    found = Matches(np.zeros(TINY, np.int32), np.ones(TINY, np.float32))
    with append_features(folder / "features.h5", config) as store, clock(shown, "features_write_s"):
        for number in range(first):
            store.write(_name(number), some)
    with append_matches(folder / "matches.h5", config, "tiny") as kept, clock(shown, "matches_write_s"):
        for number in range(first):
            kept.write(_pair(number), found, ("0", "0"), TINY)
    with h5py.File(folder / "features.h5", "r+") as file:
        for number in range(first, total):
            file.copy(file[_name(0)], file, _name(number))
    with h5py.File(folder / "matches.h5", "r+") as file:
        for number in range(first, total):
            pair = _pair(number)
            file.copy(file[pair_key(_pair(0))], file, pair_key(pair))
            set_attribute(file[pair_key(pair)], "name0", pair.name0)
            set_attribute(file[pair_key(pair)], "name1", pair.name1)
    sizes = {f"{kind}_bytes": size_of(folder / f"{kind}.h5") for kind in ("features", "matches")}
    return shown | sizes | {"written": first}


def store_read(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Opening, listing and looking up of what `store_write` left; seconds over all items, reading over some."""
    shown: dict[str, Any] = {}
    with clock(shown, "features_open_s"), open_features(folder / "features.h5") as store:
        pass
    with open_features(folder / "features.h5") as store:
        with clock(shown, "features_list_s"):
            names = store.names()
        with clock(shown, "features_has_s"):
            assert all(store.has(name) for name in names)
        with clock(shown, "features_digest_s"):
            assert all(store.digest(name) for name in names)
        with clock(shown, "features_read_some_s"):
            assert all(len(store.read(name)) == TINY for name in names[:SOME])
    with (
        clock(shown, "features_append_open_s"),
        append_features(folder / "features.h5", _Tiny(items=settings["items"])),
    ):
        pass
    with open_matches(folder / "matches.h5") as kept:
        with clock(shown, "matches_list_s"):
            listed = kept.pairs()
        with clock(shown, "matches_has_s"):
            assert all(kept.has(pair, ("0", "0")) for pair in listed)
    return shown | {"features": len(names), "matches": len(listed), "some": min(SOME, len(names))}


class clock:
    """Adds the wall time of its block to `shown[key]`."""

    def __init__(self, shown: dict[str, Any], key: str):
        self.shown, self.key = shown, key

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.shown[self.key] = round(time.perf_counter() - self.started, 3)


def _name(number: int) -> str:
    return f"{number // 1000:04d}/{number:07d}.jpg"


def _pair(number: int) -> Pair:
    first, other = divmod(number, PAIRS_OF_ONE)
    return Pair(_name(first), _name(first + other + 1))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return sum(one.stat().st_size for one in (path, *path.rglob("*")) if one.is_file())


STAGES = {
    "survey": survey,
    "pairs": pairs,
    "match": matches,
    "verify": verify,
    "map": mapping,
    "report": report,
    "search": search,
    "store-write": store_write,
    "store-read": store_read,
}


if __name__ == "__main__":
    begun = time.perf_counter()
    outcome = STAGES[sys.argv[1]](Path(sys.argv[2]), json.loads(sys.argv[3]))
    print(json.dumps({"seconds": round(time.perf_counter() - begun, 3), **outcome}))
