"""Retrieval by VLAD over learned descriptors, beside RootSIFT's: recall at k on scenes with a model.

    python benchmarks/retrieval_recall.py [rootsift aliked-n16 disk xfeat] [--scenes castle-P19 caliterra liberty]

Truth and measures are those of benchmarks/retrieval.py: images that share --min-shared points of the scene's own model
are related; "any" is the share of images with a related one among the first k, "found" the related ones among them over
as many as k could hold. The codebook is trained on the scene's own images, as `featkit pairs --method retrieval` does.
Writes benchmarks/results/retrieval_recall.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import measure, write_result
from retrieval import DEPTHS, SCENES, SEED, chance, in_order_of, recall, scene_folder, shared_points

from featkit.core.config import make, overrides
from featkit.core.errors import FeatkitError
from featkit.io.features import open_features
from featkit.retrieval.retrieve import most_similar
from featkit.retrieval.vlad import VladConfig

HERE = Path(__file__).resolve().parent
FEATURES = ("rootsift", "aliked-n16", "disk", "xfeat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", nargs="*", default=FEATURES)
    parser.add_argument("--scenes", nargs="*", default=SCENES, help="folders with images/ and sparse/")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--resize-max", type=int, default=1024, help="px of the longer side")
    parser.add_argument("--max-keypoints", type=int, default=2048)
    parser.add_argument("--min-shared", type=int, default=30, help="points two images see, to count as related")
    parser.add_argument("--set", action="append", default=[], help="of retrieval, such as num_clusters=128")
    arguments = parser.parse_args()
    try:
        config = make(VladConfig, overrides(arguments.set), where="retrieval")
        rows = [row for scene in arguments.scenes for row in rows_of(scene, config, arguments)]
    except (RuntimeError, FeatkitError) as error:
        sys.exit(str(error))
    asked = {name: getattr(arguments, name) for name in ("resize_max", "max_keypoints", "min_shared")}
    print(write_result("retrieval_recall", {**asked, "retrieval": config.result_fields(), "rows": rows}))


def rows_of(scene: str, config: VladConfig, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One scene: chance, and every features name."""
    folder = scene_folder(arguments.data, scene)
    names, shared = shared_points(folder)
    related = shared >= arguments.min_shared
    rows = [
        {"scene": scene, "features": "random", "images": len(names), "recall": {k: chance(related, k) for k in DEPTHS}}
    ]
    for features in arguments.features:
        orders, seconds = ordered(folder / "images", names, features, config, arguments)
        by_depth = {k: recall(related, lambda a, o=orders: np.asarray(o[a], np.int64), k) for k in DEPTHS}
        rows.append(
            {"scene": scene, "features": features, "images": len(names), "recall": by_depth, "seconds": seconds}
        )
    for row in rows:
        told = ", ".join(f"@{k} {v['any']:.3f} / {v['found']:.3f}" for k, v in row["recall"].items())
        print(f"{scene}: {row['features']} (any / found): {told}", flush=True)
    return rows


def ordered(
    images: Path, names: list[str], features: str, config: VladConfig, arguments: argparse.Namespace
) -> tuple[list[list[int]], dict[str, float]]:
    """For every image the others, most similar first, and the seconds it took."""
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "features.h5"
        command = [sys.executable, "-m", "featkit", "extract", str(images), "--features", features, "--out", str(path)]
        command += ["--resize-max", str(arguments.resize_max), "--max-keypoints", str(arguments.max_keypoints), "-q"]
        extracted = measure(command)
        started = time.perf_counter()
        with open_features(path) as store:
            found = most_similar(store, names, store, names, config, len(names) - 1, np.random.default_rng(SEED))
        seconds = {"extract": round(extracted.seconds, 2), "retrieval": round(time.perf_counter() - started, 2)}
    return in_order_of(found.query_names, found.database_names, found.best, names), seconds


if __name__ == "__main__":
    main()
