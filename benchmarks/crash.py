"""SIGKILL at random moments, many times: what is lost by hloc's way of writing, and by featkit's stages.

    python benchmarks/crash.py [--kills 1000] [--seed 0] [--only NAME ...]

A process that does nothing but write is killed after a random part of the time that a whole run takes, and started
again until all is written; then it begins anew. It says of every item when it is done. Rows: hloc's pattern (an HDF5
file with libver="latest", opened and closed for each image; what has a dataset counts as done), featkit's extract and
match stages (with features and matches that cost nothing to make, so that most kills meet a write), and its database
stage with real verification. After each kill three things are counted:

* unreadable: the file does not open any more;
* silently wrong: an item that would be taken as done is not what an undisturbed run writes;
* lost: items that were done and are not there any more, beyond the one in hand.

Writes benchmarks/results/crash.json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("GLOG_minloglevel", "2")

import cv2
import h5py
import numpy as np
import pycolmap
from machine import write_result

from featkit.config import Config
from featkit.features import extract
from featkit.features.extract import ExtractConfig, ExtractJob
from featkit.geometry.pixels import from_colmap
from featkit.mapping import verified_database, verify
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.verified_database import DatabaseConfig, build_database
from featkit.matching import match
from featkit.store.features import FeatureStore, append_features, open_features
from featkit.store.matches import MatchStore, append_matches
from featkit.store.pairs import write_pairs
from featkit.types import Features, Matches, Pair

IMAGES, KEYPOINTS, DIMENSIONS = 24, 1500, 128
Tell = Callable[[int], None]


@dataclass
class Row:
    """What the kills of one way of writing cost."""

    method: str
    kills: int = 0
    finished: int = 0
    unreadable: int = 0
    silently_wrong: int = 0
    lost: int = 0
    final_files_that_differ: int = 0
    seconds_of_a_run: float = 0.0


@dataclass(frozen=True)
class Found:
    """What lies on the disk. right: items as in an undisturbed run; wrong: items that pass for done and are not."""

    right: int = 0
    wrong: int = 0
    readable: bool = True


@dataclass(frozen=True)
class Way:
    """One way of writing. write: into a folder, telling how many items are done; look: what lies there."""

    method: str
    items: int
    write: Callable[[Path, Tell], None]
    look: Callable[[Path], Found]
    prepare: Callable[[Path], None] = field(default=lambda folder: None)


# ---------------------------------------------------------------- features


def features_of(number: int) -> Features:
    """The features of an image: cheap to make, as large as real ones."""
    rng = np.random.default_rng(number)
    keypoints = rng.random((KEYPOINTS, 2), np.float32) * 60
    descriptors = rng.random((KEYPOINTS, DIMENSIONS), np.float32).astype(np.float16)
    return Features(keypoints, descriptors, keypoints[:, 0].copy(), (80, 60))


def image_name(number: int) -> str:
    return f"{number:02d}.png"


def write_like_hloc(folder: Path, tell: Tell) -> None:
    """The file is opened for each image; an image with any dataset is done."""
    path = folder / "features.h5"
    done: set[str] = set()
    if path.exists():
        with h5py.File(path, "r", libver="latest") as file:
            file.visititems(
                lambda name, item: done.add(item.parent.name[1:]) if isinstance(item, h5py.Dataset) else None
            )
    for number in range(IMAGES):
        name, features = image_name(number), features_of(number)
        if name in done:
            continue
        with h5py.File(path, "a", libver="latest") as file:
            if name in file:
                del file[name]
            group = file.create_group(name)
            for key, value in hloc_datasets(features).items():
                group.create_dataset(key, data=value)
            group["keypoints"].attrs["uncertainty"] = 1.0
        tell(1)


def hloc_datasets(features: Features) -> dict[str, np.ndarray]:
    return {
        "keypoints": features.keypoints.astype(np.float16),
        "descriptors": features.descriptors.T,
        "scores": features.scores.astype(np.float16),
        "image_size": np.array(features.image_size),
    }


def look_like_hloc(folder: Path) -> Found:
    path, right, wrong = folder / "features.h5", 0, 0
    if not path.exists():
        return Found()
    try:
        with h5py.File(path, "r", libver="latest") as file:
            for number in range(IMAGES):
                name = image_name(number)
                if name not in file or len(file[name]) == 0:
                    continue
                expected, group = hloc_datasets(features_of(number)), file[name]
                same = all(key in group and np.array_equal(group[key][()], one) for key, one in expected.items())
                same = same and "uncertainty" in group["keypoints"].attrs
                right, wrong = right + same, wrong + (not same)
    except (OSError, RuntimeError, KeyError, ValueError):
        return Found(readable=False)
    return Found(right, wrong)


class CheapConfig(Config):
    """Of the extractor below."""


class Cheap:
    """An extractor that draws: the image's number is in its pixels."""

    Config = CheapConfig
    colour, holds_gil, weights_sha256 = False, False, ""

    def extract(self, pixels: np.ndarray) -> Features:
        return features_of(int(pixels[0, 0]))


def write_images(folder: Path) -> None:
    (folder / "images").mkdir()
    for number in range(IMAGES):
        cv2.imwrite(str(folder / "images" / image_name(number)), np.full((60, 80), number, np.uint8))


def write_extract(folder: Path, tell: Tell) -> None:
    telling(FeatureStore, tell)
    extract.run(ExtractJob(ExtractConfig(workers=1), Cheap(), "cpu"), folder / "images", folder / "features.h5")


def telling(store: Any, tell: Tell) -> None:
    """Tell of each item that a store has written. In the process that is killed."""
    plain = store.write

    def write(self: Any, *arguments: Any, **more: Any) -> None:
        plain(self, *arguments, **more)
        tell(1)

    store.write = write


def look_extract(folder: Path) -> Found:
    path, right, wrong = folder / "features.h5", 0, 0
    if not path.exists():
        return Found()
    job = ExtractJob(ExtractConfig(workers=1), Cheap(), "cpu")
    try:
        with append_features(path, job.config) as store:  # as the next run opens it: what was torn is mended
            for number in range(IMAGES):
                if store.has(image_name(number)):
                    found, expected = store.read(image_name(number)), features_of(number)
                    same = np.array_equal(found.keypoints, expected.keypoints)
                    same = same and np.array_equal(found.descriptors, expected.descriptors)
                    right, wrong = right + same, wrong + (not same)
    except Exception:  # whatever it is, the file cannot be gone on with
        return Found(readable=False)
    return Found(right, wrong)


# ---------------------------------------------------------------- matches


def pairs_of_images() -> list[Pair]:
    names = [image_name(number) for number in range(IMAGES)]
    return [Pair(a, b) for i, a in enumerate(names) for b in names[i + 1 : i + 5]]


def matches_of(pair: Pair) -> Matches:
    rng = np.random.default_rng([int(pair.name0[:2]), int(pair.name1[:2])])
    return Matches(rng.integers(-1, KEYPOINTS, KEYPOINTS).astype(np.int32), rng.random(KEYPOINTS, np.float32))


class CheapMatchConfig(Config):
    """Of the matcher below."""

    batch_size: int = 4


class CheapMatcher:
    """A matcher that draws."""

    waiting: list[Pair]

    def match(self, batch: list[tuple[Features, Features]]) -> list[Matches]:
        return [matches_of(Pair(image_name(number_of(a)), image_name(number_of(b)))) for a, b in batch]


def number_of(features: Features) -> int:
    """Which image these are of."""
    return next(n for n in range(IMAGES) if FIRST[n] == features.keypoints[0, 0])


FIRST = {number: features_of(number).keypoints[0, 0] for number in range(IMAGES)}


def prepare_match(folder: Path) -> None:
    write_images(folder)
    extract.run(ExtractJob(ExtractConfig(workers=1), Cheap(), "cpu"), folder / "images", folder / "features.h5")
    write_pairs(folder / "pairs.txt", pairs_of_images())


def write_match(folder: Path, tell: Tell) -> None:
    telling(MatchStore, tell)
    files = (folder / "features.h5", folder / "pairs.txt", folder / "matches.h5")
    match.run(CheapMatcher(), CheapMatchConfig(), *files)


def look_match(folder: Path) -> Found:
    path, right, wrong = folder / "matches.h5", 0, 0
    if not path.exists():
        return Found()
    with open_features(folder / "features.h5") as features:
        origin = str(features.attributes()["fingerprint"])
        digests = {name: features.digest(name) for name in features.names()}
    try:
        with append_matches(path, CheapMatchConfig(), origin) as store:
            for pair in pairs_of_images():
                if store.has(pair, (digests[pair.name0], digests[pair.name1])):
                    found, expected = store.read(pair), matches_of(pair)
                    same = np.array_equal(found.matches0, expected.matches0)
                    same = same and np.array_equal(found.scores0, expected.scores0)
                    right, wrong = right + same, wrong + (not same)
    except Exception:
        return Found(readable=False)
    return Found(right, wrong)


# ---------------------------------------------------------------- database


def prepare_database(folder: Path) -> None:
    """Features and matches of a synthetic scene; every pair sees many points."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 12, 400
    options.camera_model_id, options.camera_params = pycolmap.CameraModelId.PINHOLE, [1280.0, 1270.0, 512.0, 384.0]
    pycolmap.set_random_seed(1)
    model = pycolmap.synthesize_dataset(options)
    images = {f"{number:02d}.png": image for number, image in enumerate(model.images.values())}
    (folder / "images").mkdir()
    points: dict[str, dict[int, int]] = {}
    with append_features(folder / "features.h5", CheapConfig()) as store:
        for name, image in images.items():
            cv2.imwrite(str(folder / "images" / name), np.zeros((768, 1024), np.uint8))
            xy = from_colmap(np.array([point.xy for point in image.points2D])).astype(np.float32)
            count = len(xy)
            store.write(name, Features(xy, np.zeros((count, 4), np.float16), np.ones(count, np.float32), (1024, 768)))
            points[name] = {p.point3D_id: i for i, p in enumerate(image.points2D) if p.has_point3D()}
    pairs = [Pair(a, b) for a in images for b in images if a < b]
    write_pairs(folder / "pairs.txt", pairs)
    with append_matches(folder / "matches.h5", CheapConfig(), "synthetic") as store:
        for pair in pairs:
            seen0, seen1 = points[pair.name0], points[pair.name1]
            found = np.full(len(images[pair.name0].points2D), -1, np.int32)
            for point in seen0.keys() & seen1.keys():
                found[seen0[point]] = seen1[point]
            store.write(pair, Matches(found, (found >= 0).astype(np.float32)), ("", ""))


def write_database(folder: Path, tell: Tell) -> None:
    verified_database.MIN_CHUNK, verified_database.MAX_CHUNKS = 4, 1000
    plain = verify.by_ransac

    def by_ransac(path: Path, config: Any, pairs: Any) -> None:
        plain(path, config, pairs)
        with pycolmap.Database.open(
            str(path)
        ) as opened:  # not by sqlite3: two libraries in one process break its locks
            tell(len(opened.read_two_view_geometry_num_inliers()[0]))

    verify.by_ransac = by_ransac
    camera = CameraConfig(model="PINHOLE", params=(1280.0, 1270.0, 512.0, 384.0), mode="single")
    files = (folder / "images", folder / "features.h5", folder / "pairs.txt", folder / "matches.h5")
    build_database(DatabaseConfig(camera=camera), *files, folder / "database.db")


def geometries(path: Path) -> dict[int, Any]:
    """Every row of the two-view geometries, by pair; of a copy, with SQLite's journal beside it."""
    with tempfile.TemporaryDirectory() as folder:
        for one in path.parent.glob(f"{path.name}*"):
            shutil.copy(one, folder)
        with contextlib.closing(sqlite3.connect(Path(folder) / path.name)) as database:
            if database.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                raise sqlite3.DatabaseError(path)
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'two_view_geometries'").fetchall():
                return {}
            return {row[0]: row for row in database.execute("SELECT * FROM two_view_geometries")}


def look_database(folder: Path) -> Found:
    whole = geometries(folder.with_name("whole") / "database.db")
    for path in (folder / "database.db", folder / ".database.db.part"):
        if path.exists():
            try:
                found = geometries(path)
            except sqlite3.DatabaseError:
                return Found(readable=False)
            right = sum(whole.get(pair) == row for pair, row in found.items())
            unfinished = len(whole) - right if path.name == "database.db" else 0
            return Found(right, len(found) - right + unfinished)
    return Found()


WAYS = (
    Way('hloc\'s pattern (libver="latest", append per image)', IMAGES, write_like_hloc, look_like_hloc),
    Way("featkit extract", IMAGES, write_extract, look_extract, write_images),
    Way("featkit match", len(pairs_of_images()), write_match, look_match, prepare_match),
    Way("featkit database", 66, write_database, look_database, prepare_database),
)


# ---------------------------------------------------------------- kills


def run_once(way: Way, folder: Path, kill_after_s: float | None) -> tuple[bool, int]:
    """Whether the writer came to its end, and how many items it said were done (of a database: are there in all)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 1
        try:
            way.write(folder, lambda count: os.write(writer, count.to_bytes(4, "little")))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)  # not waited for yet: the number is still its own
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(reader, "rb") as pipe:
        said = np.frombuffer(pipe.read(), "<u4").astype(int)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{way.method}: the writer failed")
    total = int(said.max(initial=0)) if way.write is write_database else int(said.sum())
    return code == 0, total


def started(way: Way, folder: Path) -> Path:
    """A folder where nothing is written yet."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    child = os.fork()
    if child == 0:
        way.prepare(folder)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError(f"{way.method}: its input could not be made")
    return folder


def kill_often(way: Way, kills: int, seed: int, work: Path) -> Row:
    """Kill a way of writing so often; see the head of this file."""
    row, moments = Row(way.method), random.Random(f"{seed} {way.method}")
    whole = started(way, work / "whole")
    begun = time.monotonic()
    if not run_once(way, whole, None)[0]:
        raise RuntimeError(f"{way.method}: an undisturbed run does not end")
    row.seconds_of_a_run = round(time.monotonic() - begun, 3)
    folder, before, fresh = started(way, work / "killed"), 0, True
    while row.kills < kills:
        begun = time.monotonic()
        ended, done = run_once(way, folder, moments.uniform(0, row.seconds_of_a_run))
        if ended and fresh:  # a whole run, and faster than the one that was timed
            row.seconds_of_a_run = min(row.seconds_of_a_run, round(time.monotonic() - begun, 3))
        fresh = False
        row.kills += not ended
        found = way.look(folder)
        expected = max(before, done) if way.write is write_database else before + done
        row.unreadable += not found.readable
        row.silently_wrong += found.wrong
        row.lost += max(0, expected - found.right)
        before = found.right
        if ended:
            row.finished += 1
            row.final_files_that_differ += found != way.look(whole)
        if ended or not found.readable or found.wrong:
            folder, before, fresh = started(way, work / "killed"), 0, True
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="of each way of writing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="words in the names of the ways")
    parser.add_argument("--no-result", action="store_true", help="print only")
    arguments = parser.parse_args()
    rows = []
    for way in WAYS:
        if arguments.only and not any(word in way.method for word in arguments.only):
            continue
        with tempfile.TemporaryDirectory() as work:
            row = kill_often(way, arguments.kills, arguments.seed, Path(work))
        rows.append(asdict(row))
        print(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in rows[-1].items()), flush=True)
    if not arguments.no_result:
        print(write_result("crash", {"items_in_a_run": {way.method: way.items for way in WAYS}, "rows": rows}))


if __name__ == "__main__":
    sys.exit(main())
