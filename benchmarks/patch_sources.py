"""FPR95 and matching mAP of patch descriptors on sets whose points SIFT chose, and on sets that geometry alone made.

    featkit data patches HELD_OUT_SCENES --out sets/tracks
    featkit data patches HELD_OUT_SCENES --out sets/geometry --source geometry
    featkit data patches HELD_OUT_SCENES --out sets/homographies --source homographies
    python benchmarks/patch_sources.py --data sets/tracks sets/geometry sets/homographies \
                                       --features rootsift,sdgmnet,hynet,runs/mine/best.safetensors

A weight is only to be judged on scenes that it was not trained on. Writes benchmarks/results/patch_sources.json.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean

import numpy as np
from machine import write_result

from featkit.core.errors import FeatkitError
from featkit.evaluation.patches import (
    ImagePair,
    PatchDescriber,
    describe_used,
    image_pairs,
    matching_ap,
    patch_describer,
)
from featkit.evaluation.ubc import UbcSet, evaluate_pairs, read_ubc

SHIPPED = "rootsift,hardnet,hynet,sdgmnet,adasample,doap,doap-binary"
MIN_SHARED, MAX_SHARED = 50, 300  # points that two images must share, and that are matched at most


def first_pairs(data: UbcSet, count: int) -> UbcSet:
    """The first test pairs of a set; they are in random order."""
    pairs = data.pairs
    return replace(
        data, pairs=replace(pairs, index0=pairs.index0[:count], index1=pairs.index1[:count], match=pairs.match[:count])
    )


def matched_images(data: UbcSet, count: int) -> list[ImagePair]:
    """Pairs of images of all scenes in turn."""
    patches = data.patch_set
    assert patches.images is not None
    generator = np.random.default_rng(0)
    found = image_pairs(patches.classes, patches.scenes, patches.images, MIN_SHARED, MAX_SHARED, generator)
    return list(islice(found, count))


def matching_map(data: UbcSet, pairs: list[ImagePair], method: PatchDescriber) -> float | None:
    """Mean AP of a method; None without pairs of images."""
    if not pairs:
        return None
    rows = [rows for pair in pairs for rows in (pair.rows0, pair.rows1)]
    descriptors, places = describe_used(method, data.patch_set.patches, rows)
    return fmean(matching_ap(descriptors[a], descriptors[b]) for a, b in zip(places[::2], places[1::2], strict=True))


def main() -> None:
    """Parse, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--features", default=SHIPPED, help="names and files of weights, separated by commas")
    parser.add_argument("--pairs", type=int, default=10_000, help="test pairs of each set")
    parser.add_argument("--images", type=int, default=24, help="pairs of images of each set that are matched")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    rows = []
    try:
        sets = [first_pairs(read_ubc(folder), arguments.pairs) for folder in arguments.data]
        images = [matched_images(data, arguments.images) for data in sets]
        print(f"{'':28}" + "".join(f"{data.name[-26:]:>28}" for data in sets), flush=True)
        for name in arguments.features.split(","):
            method = patch_describer(name, arguments.device)
            row = {"method": name, "fpr95_percent": {}, "matching_map_percent": {}}
            for data, pairs in zip(sets, images, strict=True):
                row["fpr95_percent"][data.name] = 100 * evaluate_pairs(data, method)
                found = matching_map(data, pairs, method)
                row["matching_map_percent"][data.name] = None if found is None else 100 * found
            rows.append(row)
            cells = [
                f"{row['fpr95_percent'][one.name]:8.2f} {row['matching_map_percent'][one.name] or float('nan'):8.2f}"
                for one in sets
            ]
            print(f"{name[-28:]:28}" + "".join(f"{cell:>28}" for cell in cells), flush=True)
    except FeatkitError as error:
        sys.exit(str(error))
    result = {
        "unit": "%",
        "data": {
            data.name: {
                "patches": len(data.patch_set),
                "scenes": list(data.patch_set.scene_names),
                "pairs": len(data.pairs),
                "pairs_of_images": len(pairs),
            }
            for data, pairs in zip(sets, images, strict=True)
        },
        "rows": rows,
    }
    print(write_result("patch_sources", result))


if __name__ == "__main__":
    main()
