"""A map that is extended against one that is made again of all photographs, in one run.

    python benchmarks/extend.py [--data ../shared/data] [--resize-max N] [--only NAME ...] [--every 4]

A map is made of all photographs but each fourth; these are then registered in it by `featkit extend`, and the whole
scene is mapped from nothing. Both sides are whole processes, RootSIFT with one camera for all (the known one, where the
data has it). Errors are of camera centres against the true ones, after one similarity: of the photographs that came in
later, and of all; `apart` is the same between both maps, in the unit of the full one.
Writes benchmarks/results/extend.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import measure, write_result

from featkit.core.errors import FeatkitError
from featkit.images.listing import list_images
from featkit.io.lists import read_camera, read_poses
from featkit.mapping.align import compare_with_truth
from featkit.mapping.model import read_model
from featkit.mapping.reference import poses_of_model
from featkit.mapping.scene import image_folder

HERE = Path(__file__).resolve().parent
SCENES = ("eth/fountain-P11", "posed/castle-P19")
MAX_ERROR_RATIO = 1.2  # of the full run's, for the photographs that came in later


def camera_options(scene: Path) -> list[str]:
    """The known camera, or one camera for all photographs."""
    if not (scene / "camera.txt").is_file():
        return ["--camera-mode", "single"]
    known = read_camera(scene / "camera.txt")
    params = ",".join(map(repr, known.params))
    known_camera = ["--camera-model", known.model, "--camera-params", params]
    return [*known_camera, "--camera-mode", "single", "--fix-intrinsics"]


def run(verb: str, *arguments: object) -> tuple[dict[str, Any], float]:
    """A command's json, and its seconds as a whole process."""
    finished = measure([sys.executable, "-m", "featkit", verb, *map(str, arguments), "--json", "-q"])
    return json.loads(finished.stdout.splitlines()[-1]), round(finished.seconds, 2)


def errors_of(model: Path, truth: dict[str, Any], late: Sequence[str]) -> dict[str, float]:
    """Of camera centres, in the truth's unit: of the photographs that came in later, and of all."""
    found = compare_with_truth(read_model(model), truth)
    by_name = dict(zip(found.names, found.centre.tolist(), strict=True))
    own = [by_name[name] for name in late if name in by_name]
    return {
        "late_mean": float(np.mean(own)),
        "late_max": float(np.max(own)),
        "all_mean": float(found.centre.mean()),
        "all_max": float(found.centre.max()),
    }


def run_scene(name: str, scene: Path, resize_max: int | None, every: int, work: Path) -> dict[str, Any]:
    """The row of one scene."""
    images = image_folder(scene)
    names = list_images(images)
    late = names[every - 1 :: every]
    for listed, folder in ((sorted(set(names) - set(late)), "first"), (late, "late"), (names, "all")):
        for one in listed:
            (work / folder / one).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(images / one, work / folder / one)
    options = [*camera_options(scene), *([] if resize_max is None else ["--resize-max", str(resize_max)])]
    first, first_s = run("reconstruct", work / "first", "--out", work / "map", *options)
    extended, extended_s = run("extend", work / "map", work / "late", "--out", work / "extended")
    full, full_s = run("reconstruct", work / "all", "--out", work / "full", *options)
    row: dict[str, Any] = {
        "scene": name,
        "photographs": len(names),
        "late": len(late),
        "first": {"registered": first["registered"], "seconds": first_s},
        "extended": {
            "registered": extended["images"],
            "late_registered": len(extended["registered"]),
            "left_out": extended["left_out"],
            "points": extended["points"],
            "moved_median": extended["moved_median"],
            "stage_seconds": {stage: round(value, 2) for stage, value in extended["seconds"].items()},
            "seconds": extended_s,
        },
        "full": {
            "registered": full["registered"],
            "points": full["points"],
            "stage_seconds": {stage: round(value, 2) for stage, value in full["seconds"].items()},
            "seconds": full_s,
        },
        "time_over_full": round(extended_s / full_s, 3),
    }
    models = {"extended": work / "extended" / "sparse" / "0", "full": work / "full" / "sparse" / "0"}
    if (scene / "poses.txt").is_file():
        truth = read_poses(scene / "poses.txt")
        for side, model in models.items():
            row[side]["centre_error"] = errors_of(model, truth, late)
        row["late_error_over_full"] = round(
            row["extended"]["centre_error"]["late_mean"] / row["full"]["centre_error"]["late_mean"], 3
        )
    row["apart"] = errors_of(models["extended"], poses_of_model(models["full"]), late)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--resize-max", type=int)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=SCENES)
    arguments = parser.parse_args()
    rows = []
    try:
        for name in arguments.only:
            with tempfile.TemporaryDirectory() as work:
                row = run_scene(name, arguments.data / name, arguments.resize_max, arguments.every, Path(work))
            print(json.dumps(row), flush=True)
            rows.append(row)
    except (FeatkitError, RuntimeError) as error:
        sys.exit(str(error))
    result = {"resize_max": arguments.resize_max, "max_error_ratio": MAX_ERROR_RATIO, "rows": rows}
    print(write_result("extend", result))


if __name__ == "__main__":
    main()
