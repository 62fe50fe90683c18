"""Where the time of each stage goes, against what bounds it on this machine.

    python benchmarks/stage_profile.py [--scene ../shared/data/posed/castle-P19] [--resize-max 1024] [--repeats 3]

Each stage of a map runs as a user runs it (store and progress included), turn about with its bare limit on the same
input: the decoder alone, the network's forward alone, float32 products of the descriptors alone, pycolmap's
verification of the same database alone, pycolmap's mapper alone, the same bytes to the same disk. `over_limit` is the
stage's median over the limit's, of this run. Goals: scfeat's extraction at most 1 / 0.85 of its network, matching at
most 1.3 of the products. Writes benchmarks/results/profile.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")

import cv2
import numpy as np
import pycolmap
import torch
from machine import write_result

from featkit.core.errors import FeatkitError
from featkit.core.registry import resolve
from featkit.core.types import Features, Pair
from featkit.features import stage as extract
from featkit.features.fast.scfeat import FrozenSCFeat
from featkit.features.scfeat import MULTIPLE_PX
from featkit.features.stage import ExtractConfig
from featkit.images.listing import list_images
from featkit.images.read import DecodeConfig, decode
from featkit.io.features import append_features, open_features
from featkit.io.lists import read_pairs, write_pairs
from featkit.mapping import stage as map_stage
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.stage import MapConfig, build_map
from featkit.mapping.verify import build_database, verify_by_ransac
from featkit.matching import stage as match
from featkit.pairing import stage as pairing
from featkit.weights.files import load_scfeat_network

HERE = Path(__file__).resolve().parent
CASTLE = HERE.parent.parent / "shared" / "data" / "posed" / "castle-P19"
IMAGES_8K, KEYPOINTS, DIMENSIONS = 9, 8192, 128  # 36 pairs
Act = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """A stage and its limit, each to be run as often as the other. goal: of `over_limit`."""

    stage: str
    limit: str
    run: Act
    bare: Act
    goal: float | None = None


def timed(act: Act) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def measured(row: Row, repeats: int) -> dict[str, Any]:
    """Stage and limit in turns; medians."""
    row.bare()  # warm: libraries loaded, files in the cache
    pairs = [(timed(row.run), timed(row.bare)) for _ in range(repeats)]
    stage, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [a / b for a, b in pairs]
    found = {
        "stage": row.stage,
        "limit": row.limit,
        "seconds": round(stage, 3),
        "limit_seconds": round(bare, 3),
        "over_limit": round(statistics.median(ratios), 3),
        "over_limit_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "goal": row.goal,
    }
    print(f"{row.stage}: {stage:.2f} s, {row.limit}: {bare:.2f} s, {found['over_limit']:.2f}", flush=True)
    return found


def extraction(images: Path, names: list[str], resize_max: int, work: Path) -> Row:
    """RootSIFT on all cores beside its extractor on pixels that are in memory, one image after another."""
    config = ExtractConfig(decode=DecodeConfig(resize_max=resize_max))
    method = extract.extraction_method(config)
    pixels = [decode(images / name, config.decode).pixels for name in names]
    return Row(
        "extract rootsift",
        "its extractor on one core",
        lambda: extract.run(method, images, work / "rootsift.h5", names, overwrite=True),
        lambda: [method.built.extract(image) for image in pixels],
    )


def dense_extraction(images: Path, names: list[str], work: Path) -> Row:
    """scfeat at 640 px beside the forward of its network."""
    config = ExtractConfig(features="scfeat", decode=DecodeConfig(resize_max=640))
    method = extract.extraction_method(config)
    network = FrozenSCFeat(load_scfeat_network(method.own.weights), torch.device("cpu"))
    padded = []
    for name in names:
        image = decode(images / name, config.decode, colour=True).pixels
        height, width = image.shape[:2]
        edges = ((0, -height % MULTIPLE_PX), (0, -width % MULTIPLE_PX), (0, 0))
        padded.append(torch.from_numpy(np.pad(image, edges, mode="edge"))[None])
    return Row(
        f"extract scfeat, {len(names)} images",
        "its network's forward",
        lambda: extract.run(method, images, work / "scfeat.h5", names, overwrite=True),
        lambda: [network(image) for image in padded],
        round(1 / 0.85, 3),
    )


def decoding(images: Path, names: list[str]) -> Row:
    config = DecodeConfig()
    return Row(
        "decode",
        "OpenCV's decoder",
        lambda: [decode(images / name, config) for name in names],
        lambda: [cv2.imread(str(images / name), cv2.IMREAD_GRAYSCALE) for name in names],
    )


def matching(work: Path, kind: str) -> Row:
    """Pairs of 8k descriptors, read from a store and matches written, beside their matrix products in float32.

    kind: "real" for numbers as networks give them, "SIFT" for whole ones divided by 512.
    """
    generator = np.random.default_rng(0)
    rows = []
    names = [f"{number}.jpg" for number in range(IMAGES_8K)]
    features, output = work / f"8k-{kind}.h5", work / f"8k-{kind}-matches.h5"
    with append_features(features, ExtractConfig(), overwrite=True) as store:
        for name in names:
            descriptors = generator.normal(size=(KEYPOINTS, DIMENSIONS)).astype(np.float32)
            descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
            if kind == "SIFT":
                descriptors = (np.abs(descriptors) * 512).round().clip(max=255) / np.float32(512)
            rows.append(torch.from_numpy(descriptors))
            keypoints = generator.uniform(0, 1000, (KEYPOINTS, 2)).astype(np.float32)
            scores = np.ones(KEYPOINTS, np.float32)
            store.write(name, Features(keypoints, descriptors, scores, (1000, 1000)))
    pairs = [(i, j) for i in range(IMAGES_8K) for j in range(i + 1, IMAGES_8K)]
    listed = write_pairs(work / "8k.txt", [Pair(names[i], names[j]) for i, j in pairs])
    matcher = resolve("matcher", "mutual")
    product = torch.empty(KEYPOINTS, KEYPOINTS)

    def bare() -> None:
        for i, j in pairs:
            torch.mm(rows[i], rows[j].T, out=product)

    return Row(
        f"match {len(pairs)} pairs of {KEYPOINTS:,} x {DIMENSIONS}, {kind}",
        "their matrix products",
        lambda: match.run(matcher, features, listed, output, overwrite=True),
        bare,
        1.3,
    )


def mapping(images: Path, names: list[str], features: Path, work: Path) -> list[Row]:
    """Verification and mapping beside pycolmap's own functions on the same database."""
    pairs = pairing.run("exhaustive", features, work / "pairs.txt", names=names)
    matches = match.run(resolve("matcher", "mutual"), features, pairs, work / "matches.h5")
    config = MapConfig(camera=CameraConfig(mode="single"))
    how = map_stage.database_config(config)
    database = work / "database.db"

    def verify() -> None:
        build_database(how, images, features, pairs, matches, database, names=names, overwrite=True)

    verify()
    unverified = work / "unverified.db"
    shutil.copy(database, unverified)
    with pycolmap.Database.open(str(unverified)) as opened:
        opened.clear_two_view_geometries()

    def bare_verify() -> None:
        copy = work / "copy.db"
        shutil.copy(unverified, copy)
        verify_by_ransac(copy, how.verify)

    def bare_map() -> None:
        options = pycolmap.IncrementalPipelineOptions()
        pycolmap.incremental_mapping(str(database), str(images), str(work / "bare"), options=options)

    (work / "bare").mkdir(exist_ok=True)
    return [
        Row(f"verify {len(read_pairs(pairs))} pairs", "pycolmap's verification", verify, bare_verify),
        Row(
            "map",
            "pycolmap's mapper, all cores",
            lambda: build_map(config, images, database, work / "sparse", overwrite=True),
            bare_map,
        ),
    ]


def storing(features: Path, work: Path) -> Row:
    """Features written item by item, each flushed, beside the same bytes in one file."""
    with open_features(features) as store:
        items = {name: store.read(name) for name in store.names()}
    size = sum(one.descriptors.nbytes + one.keypoints.nbytes + one.scores.nbytes for one in items.values())
    block = os.urandom(size)

    def write() -> None:
        with append_features(work / "written.h5", ExtractConfig(), overwrite=True) as store:
            for name, one in items.items():
                store.write(name, one)

    return Row("store features", "the same bytes", write, lambda: (work / "bytes").write_bytes(block))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, default=CASTLE)
    parser.add_argument("--resize-max", type=int, default=1024, help="px of the longer side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print only")
    arguments = parser.parse_args()
    images = arguments.scene / "images"
    try:
        names = list_images(images)
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            rows = [
                decoding(images, names),
                extraction(images, names, arguments.resize_max, work),
                dense_extraction(images, names, work),
                matching(work, "SIFT"),
                matching(work, "real"),
            ]
            found = [measured(row, arguments.repeats) for row in rows]
            found += [
                measured(row, arguments.repeats)
                for row in [*mapping(images, names, work / "rootsift.h5", work), storing(work / "rootsift.h5", work)]
            ]
    except FeatkitError as error:
        sys.exit(str(error))
    if not arguments.dry:
        print(write_result("profile", {"resize_max": arguments.resize_max, "rows": found}))


if __name__ == "__main__":
    main()
