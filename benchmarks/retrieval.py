"""How well retrieval finds the images that share points, beside chance and beside matching everything.

    python benchmarks/retrieval.py [castle-P19 caliterra liberty] [--data ../shared/data] [--features rootsift]

Truth is the scene's own model: images that share --min-shared points or more. Every image asks for its k most similar
others. "any": the share of images with at least one true one among them (recall@k of place recognition). "found": the
true ones among them, divided by as many as k could hold. "random" is the expectation of drawing k others; "exhaustive"
ranks by the verified matches of every pair: the order that retrieval is meant to save.
Features as `featkit extract` makes them, at --resize-max px. Writes benchmarks/results/retrieval.json.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import measure, write_result

from featkit.core.config import make, overrides
from featkit.core.errors import FeatkitError
from featkit.io.features import open_features
from featkit.mapping.database import verified_pairs
from featkit.mapping.model import read_model
from featkit.retrieval.retrieve import most_similar
from featkit.retrieval.vlad import VladConfig

HERE = Path(__file__).resolve().parent
SCENES = ("castle-P19", "caliterra", "liberty")
DEPTHS = (1, 5, 10, 20)
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", default=SCENES, help="folders with images/ and sparse/")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--features", default="rootsift")
    parser.add_argument("--resize-max", type=int, default=1024, help="px of the longer side")
    parser.add_argument("--min-shared", type=int, default=30, help="points two images see, to count as related")
    parser.add_argument("--set", action="append", default=[], help="of retrieval, such as num_clusters=128")
    parser.add_argument("--no-exhaustive", action="store_true", help="leave out what takes longest")
    arguments = parser.parse_args()
    try:
        config = make(VladConfig, overrides(arguments.set), where="retrieval")
        rows = [row_of(scene, config, arguments) for scene in arguments.scenes]
    except (RuntimeError, FeatkitError) as error:
        sys.exit(str(error))
    result = {
        "features": arguments.features,
        "resize_max": arguments.resize_max,
        "min_shared": arguments.min_shared,
        "retrieval": config.result_fields(),
        "scenes": rows,
    }
    print(write_result("retrieval", result))


def row_of(scene: str, config: VladConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """One scene."""
    folder = scene_folder(arguments.data, scene)
    names, shared = shared_points(folder)
    related = shared >= arguments.min_shared
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        featkit = [sys.executable, "-m", "featkit"]
        size = ["--resize-max", str(arguments.resize_max)]
        features = ["--features", arguments.features, "--out", str(work / "features.h5")]
        measure([*featkit, "extract", str(folder / "images"), *features, *size, "--quiet"])
        started = time.perf_counter()
        with open_features(work / "features.h5") as store:
            found = most_similar(store, names, store, names, config, len(names) - 1, np.random.default_rng(SEED))
        seconds = {"retrieval": round(time.perf_counter() - started, 2)}
        orders = {"retrieval": in_order_of(found.query_names, found.database_names, found.best, names)}
        if not arguments.no_exhaustive:
            pairs = ["pairs", str(work / "features.h5"), "--method", "exhaustive", "--out", str(work / "pairs.txt")]
            measure([*featkit, *pairs, "--quiet"])
            paths = [str(work / "features.h5"), str(work / "pairs.txt"), "--out", str(work / "matches.h5")]
            started = time.perf_counter()
            measure([*featkit, "match", *paths, "--quiet"])
            files = [str(work / name) for name in ("features.h5", "pairs.txt", "matches.h5")]
            database = ["--out", str(work / "database.db"), "--camera-mode", "single"]
            measure([*featkit, "verify", str(folder / "images"), *files, *database, "--quiet"])
            inliers = verified(work, names)
            seconds["exhaustive"] = round(time.perf_counter() - started, 2)
            orders["exhaustive"] = [
                [b for b in np.argsort(-inliers[a], kind="stable").tolist() if b != a] for a in range(len(names))
            ]
    by_rank = {name: lambda a, order=order: np.asarray(order[a], np.int64) for name, order in orders.items()}
    row = {
        "scene": scene,
        "images": len(names),
        "related": round(float(related.sum(axis=1).mean()), 1),
        "recall": {
            "random": {k: chance(related, k) for k in DEPTHS},
            **{name: {k: recall(related, order, k) for k in DEPTHS} for name, order in by_rank.items()},
        },
        "seconds": seconds,
    }
    for name, by_depth in row["recall"].items():
        told = ", ".join(f"@{k} {v['any']:.3f} / {v['found']:.3f}" for k, v in by_depth.items())
        print(f"{scene}: {name} (any / found): {told}", flush=True)
    return row


def scene_folder(data: Path, scene: str) -> Path:
    """Where a scene's images/ and sparse/ are."""
    folder = next((f for f in (data / "scenes" / scene, data / "posed" / scene) if f.is_dir()), None)
    if folder is None:
        sys.exit(f"{data}: no scene {scene} in scenes/ or posed/")
    return folder


def shared_points(folder: Path) -> tuple[list[str], np.ndarray]:
    """Names of the model's images, and how many points any two of them see."""
    model = read_model(
        next(path for path in (folder / "sparse", folder / "sparse" / "0") if any(path.glob("points3D.*")))
    )
    images = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)
    index = {image.image_id: row for row, image in enumerate(images)}
    shared = np.zeros((len(images), len(images)), np.int64)
    for point in model.points3D.values():
        seen = sorted({index[element.image_id] for element in point.track.elements})
        for a, b in itertools.permutations(seen, 2):
            shared[a, b] += 1
    return [image.name for image in images], shared


def verified(work: Path, names: list[str]) -> np.ndarray:
    """Matches of any two images that fit one geometry."""
    inliers = np.zeros((len(names), len(names)), np.int64)
    index = {name: position for position, name in enumerate(names)}
    for pair, count in verified_pairs(work / "database.db"):
        a, b = index[pair.name0], index[pair.name1]
        inliers[a, b] = inliers[b, a] = count
    return inliers


def recall(related: np.ndarray, order: Callable[[int], np.ndarray], k: int) -> dict[str, float]:
    """Recall at k over the images that have a related one at all."""
    asked = [a for a in range(len(related)) if related[a].any()]
    hits = np.array([related[a, order(a)[:k]].sum() for a in asked])
    possible = np.minimum(related[asked].sum(axis=1), k)
    return {"any": round(float((hits > 0).mean()), 4), "found": round(float((hits / possible).mean()), 4)}


def chance(related: np.ndarray, k: int) -> dict[str, float]:
    """The expectation of `recall` for k others drawn without putting back."""
    others = len(related) - 1
    counts = related.sum(axis=1)
    counts = counts[counts > 0]
    drawn = min(k, others)
    none = [np.prod([max(0, others - c - i) / (others - i) for i in range(drawn)]) for c in counts]
    found = drawn * counts / others / np.minimum(counts, k)
    return {"any": round(float(1 - np.mean(none)), 4), "found": round(float(found.mean()), 4)}


def in_order_of(queries: list[str], database: list[str], best: np.ndarray, names: list[str]) -> list[list[int]]:
    """Rows of `best` as indices of `names`; an image that could not ask has found nothing."""
    index = {name: position for position, name in enumerate(names)}
    asked = {
        query: [index[database[column]] for column in row if column >= 0]
        for query, row in zip(queries, best.tolist(), strict=True)
    }
    return [asked.get(name, []) for name in names]


if __name__ == "__main__":
    main()
