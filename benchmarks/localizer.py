"""`featkit.Localizer` on castle-P19: seconds per query beside those of extraction alone, p50 and p95.

    python benchmarks/localizer.py [--scene ../shared/data/posed/castle-P19] [--features rootsift] [--repeats 5]

Each fourth photograph is a query, the others are mapped. A query is read, extracted, and localized with the map warm;
extraction alone is the same photograph read and extracted, turn about with it. Both run alone on the machine, one after
another; matched with all keypoints of the map (as `featkit localize` does), with its 3D points, each once
(`points_only`), and with those of half as many retrieved images. Goal: at most 1.6 times extraction alone. Writes
benchmarks/results/localizer.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from machine import measure, write_result

from featkit.core.errors import FeatkitError
from featkit.evaluation.metrics import pose_error
from featkit.features.stage import config_of_features, extract_one, extraction_method
from featkit.images.listing import list_images
from featkit.io.lists import Intrinsics, read_camera, read_poses
from featkit.localization.localizer import Localizer, LocalizerConfig
from featkit.mapping.align import similarity_to_truth, transform_pose
from featkit.mapping.model import read_model
from featkit.mapping.scene import find_map

CASTLE = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "posed" / "castle-P19"
EVERY = 4
GOAL = 1.6
RETRIEVED = LocalizerConfig().localize.num_retrieved


@dataclass(frozen=True)
class SplitScene:
    """A scene's photographs in two folders, map/images and queries, and the one camera of all."""

    map: Path
    queries: Path
    camera: Intrinsics

    @property
    def camera_options(self) -> list[str]:
        params = ",".join(map(repr, self.camera.params))
        return ["--camera-model", self.camera.model, "--camera-params", params]


def split(scene: Path, work: Path) -> SplitScene:
    """Copy each fourth photograph to work/queries and the others to work/map/images."""
    found = SplitScene(work / "map", work / "queries", read_camera(scene / "camera.txt"))
    (found.map / "images").mkdir(parents=True)
    found.queries.mkdir()
    for index, name in enumerate(list_images(scene / "images")):
        folder = found.queries if index % EVERY == 0 else found.map / "images"
        shutil.copy(scene / "images" / name, folder / name)
    return found


def mapped(found: SplitScene, features: str) -> None:
    """Map the one folder by `featkit reconstruct`, with the known camera."""
    command = [sys.executable, "-m", "featkit", "reconstruct", str(found.map), "--features", features, "-q", "--json"]
    command += [*found.camera_options, "--camera-mode", "single", "--fix-intrinsics"]
    measure(command)


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {"p50_s": round(float(np.percentile(seconds, 50)), 4), "p95_s": round(float(np.percentile(seconds, 95)), 4)}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def run(scene: Path, found: SplitScene, features: str, repeats: int, num: int, points_only: bool) -> dict[str, Any]:
    """Time every query `repeats` times, after one that is not counted."""
    values = LocalizerConfig().model_dump()
    values |= {"localize": {**values["localize"], "num_retrieved": num}, "points_only": points_only}
    ready_s, localizer = timed(lambda: Localizer(found.map, LocalizerConfig(**values)))
    method = extraction_method(config_of_features(find_map(found.map).features, workers=1))
    paths = [found.queries / name for name in list_images(found.queries)]
    localizer.localize(paths[0], found.camera)
    extract_one(method, paths[0])
    alone: list[float] = []
    whole: list[float] = []
    results = {}
    for _ in range(repeats):
        for path in paths:
            alone.append(timed(lambda path=path: extract_one(method, path))[0])
            seconds, results[path.name] = timed(lambda path=path: localizer.localize(path, found.camera))
            whole.append(seconds)
    truth = read_poses(scene / "poses.txt")
    moved = similarity_to_truth(read_model(find_map(found.map).model), truth)
    errors = [pose_error(transform_pose(r.pose, moved), truth[r.name]) for r in results.values() if r.pose is not None]
    ratios = {key: round(percentiles(whole)[f"{key}_s"] / percentiles(alone)[f"{key}_s"], 3) for key in ("p50", "p95")}
    return {
        "features": features,
        "points_only": points_only,
        "map_images": localizer.map_images,
        "map_points": localizer.map_points,
        "num_retrieved": localizer.config.localize.num_retrieved,
        "queries": len(paths),
        "localized": len(errors),
        "median_error_m": round(float(np.median([error[0] for error in errors])), 4) if errors else None,
        "median_error_deg": round(float(np.median([error[1] for error in errors])), 4) if errors else None,
        "ready_s": round(ready_s, 2),
        "memory_mb": round(psutil.Process().memory_info().rss / 1e6),
        "localize": percentiles(whole),
        "extract_alone": percentiles(alone),
        "over_extraction": ratios,
        "goal": GOAL,
        "goal_reached": ratios["p50"] <= GOAL and ratios["p95"] <= GOAL,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, default=CASTLE)
    parser.add_argument("--features", nargs="+", default=["rootsift"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="print only")
    arguments = parser.parse_args()
    rows = []
    try:
        for features in arguments.features:
            with tempfile.TemporaryDirectory() as work:
                found = split(arguments.scene, Path(work))
                mapped(found, features)
                for num, points_only in ((RETRIEVED, False), (RETRIEVED, True), (RETRIEVED // 2, True)):
                    row = run(arguments.scene, found, features, arguments.repeats, num, points_only)
                    print(json.dumps(row, indent=1), flush=True)
                    rows.append(row)
    except (FeatkitError, RuntimeError) as error:
        sys.exit(str(error))
    if not arguments.dry:
        print(write_result("localizer", {"scene": arguments.scene.name, "rows": rows}))


if __name__ == "__main__":
    main()
