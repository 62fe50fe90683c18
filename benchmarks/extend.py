"""Maps that are extended or merged against a map that is made of all photographs at once, in one run.

    python benchmarks/extend.py [--data ../shared/data] [--resize-max N] [--only NAME ...] [--parts extend merge]
        [--every 4] [--features NAME] [--update]

extend: a map is made of all photographs but each fourth (--every); these are then registered in it by `featkit extend`.
merge: the first and the second half of the photographs, by name, are mapped alone, and `featkit merge` makes one map
of both (castle-P19's have too little in common). The whole scene is mapped from nothing, too. All are whole processes,
one camera for all photographs (the known one, where the data has it); seconds, and CPU-seconds, which other programs on
the machine change little. Errors are of camera centres against the true ones, after one similarity: of the photographs
that came in later (or were the second half), and of all. `apart` is the same against the map of all, in its unit; where
the data has no true poses but GPS, that map is first moved to metres by it.
--update: rows of other scenes and parts stay as they were measured; the commit and the date of each replaced scene are
recorded under `updated`.
Writes benchmarks/results/extend.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, measure, origin, write_result

from featkit.core.errors import FeatkitError
from featkit.images.exif import exif_position
from featkit.images.listing import list_images
from featkit.io.lists import read_camera, read_poses
from featkit.mapping.align import compare_with_truth
from featkit.mapping.model import read_model
from featkit.mapping.reference import poses_of_model
from featkit.mapping.scene import image_folder

HERE = Path(__file__).resolve().parent
SCENES = ("eth/fountain-P11", "posed/castle-P19", "scenes/caliterra")
NOT_MERGED = "posed/castle-P19"  # its halves have too little in common to be merged, as `featkit merge` says
MORE = ("scenes/liberty",)  # only where it is named: SIFT leaves out most of its photographs
PARTS = {"extend": "rows", "merge": "merged"}  # and where their rows are in the result
MAX_ERROR_RATIO = 1.2  # of the full run's, for the photographs that came in later


def camera_options(scene: Path) -> list[str]:
    """The known camera, or one camera for all photographs."""
    if not (scene / "camera.txt").is_file():
        return ["--camera-mode", "single"]
    known = read_camera(scene / "camera.txt")
    params = ",".join(map(repr, known.params))
    known_camera = ["--camera-model", known.model, "--camera-params", params]
    return [*known_camera, "--camera-mode", "single", "--fix-intrinsics"]


Taken = dict[str, float]
"""`seconds` and `cpu_s` of a command as a whole process."""


def run(verb: str, *arguments: object) -> tuple[dict[str, Any], Taken]:
    """A command's json, and what it took."""
    finished = measure([sys.executable, "-m", "featkit", verb, *map(str, arguments), "--json", "-q"])
    taken = {"seconds": round(finished.seconds, 2), "cpu_s": round(finished.cpu_seconds, 1)}
    return json.loads(finished.stdout.splitlines()[-1]), taken


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


class Scene:
    """Photographs of one scene, their true poses if there are any, and the map of all of them."""

    def __init__(self, name: str, folder: Path, work: Path, features: str, options: Sequence[str]):
        self.features = features
        self.name, self.images, self._work = name, image_folder(folder), work
        self.photographs = list_images(self.images)
        self.truth = read_poses(folder / "poses.txt") if (folder / "poses.txt").is_file() else None
        self._options = ["--features", features, *camera_options(folder), *options]
        self.full, self.full_taken = self.mapped("full", self.photographs)
        whole, self.unit = self.model("full"), "map"
        if self.truth is None and exif_position(self.images / self.photographs[0]) is not None:
            whole, self.unit = work / "metric", "m"
            run("align", self.model("full"), "--gps", "--images", self.images, "--out", whole)
        self.whole = poses_of_model(whole)

    def mapped(self, name: str, photographs: Sequence[str]) -> tuple[dict[str, Any], Taken]:
        """A map of some photographs: what the command says, and what it took."""
        return run("reconstruct", self.copied(f"{name}-images", photographs), "--out", self.at(name), *self._options)

    def copied(self, name: str, photographs: Sequence[str]) -> Path:
        """A folder of some photographs."""
        for one in photographs:
            (self.at(name) / one).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.images / one, self.at(name) / one)
        return self.at(name)

    def at(self, name: str) -> Path:
        """A folder of this scene's."""
        return self._work / name

    def model(self, name: str) -> Path:
        """The model of a map."""
        return self.at(name) / "sparse" / "0"

    def compared(self, side: str, row: dict[str, Any], late: Sequence[str]) -> dict[str, Any]:
        """A row with errors: of one side and of the map of all against the truth, and of one against the other."""
        if self.truth is not None:
            for name, model in ((side, self.model(side)), ("full", self.model("full"))):
                row[name]["centre_error"] = errors_of(model, self.truth, late)
            row["late_error_over_full"] = round(
                row[side]["centre_error"]["late_mean"] / row["full"]["centre_error"]["late_mean"], 3
            )
        row["load_per_core"] = round(os.getloadavg()[2] / (os.cpu_count() or 1), 1)  # of the last 15 minutes
        row["apart_unit"] = self.unit
        row["apart"] = errors_of(self.model(side), self.whole, late)
        return row

    def full_row(self) -> dict[str, Any]:
        """The map of all photographs."""
        return {
            "registered": self.full["registered"],
            "points": self.full["points"],
            "stage_seconds": rounded(self.full["seconds"]),
            **self.full_taken,
        }


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of stages."""
    return {stage: round(value, 2) for stage, value in seconds.items()}


def extend_row(scene: Scene, every: int) -> dict[str, Any]:
    """A map of all photographs but some, and the rest registered in it."""
    late = scene.photographs[every - 1 :: every]
    first, first_taken = scene.mapped("first", sorted(set(scene.photographs) - set(late)))
    extended, taken = run("extend", scene.at("first"), scene.copied("late", late), "--out", scene.at("extended"))
    row: dict[str, Any] = {
        "scene": scene.name,
        "photographs": len(scene.photographs),
        "late": len(late),
        "features": scene.features,
        "first": {"registered": first["registered"], **first_taken},
        "extended": {
            "registered": extended["images"],
            "late_registered": len(extended["registered"]),
            "left_out": extended["left_out"],
            "points": extended["points"],
            "moved_median": extended["moved_median"],
            "stage_seconds": rounded(extended["seconds"]),
            **taken,
        },
        "full": scene.full_row(),
        "time_over_full": round(taken["seconds"] / scene.full_taken["seconds"], 3),
        "cpu_over_full": round(taken["cpu_s"] / scene.full_taken["cpu_s"], 3),
    }
    return scene.compared("extended", row, late)


def merge_row(scene: Scene) -> dict[str, Any]:
    """Maps of both halves of the photographs, made one."""
    middle = (len(scene.photographs) + 1) // 2
    halves = scene.photographs[:middle], scene.photographs[middle:]
    made = [scene.mapped(f"half-{number}", half) for number, half in enumerate(halves)]
    merged, taken = run("merge", scene.at("half-0"), scene.at("half-1"), "--out", scene.at("merged"))
    row: dict[str, Any] = {
        "scene": scene.name,
        "photographs": len(scene.photographs),
        "halves": [
            {"photographs": len(half), "registered": found["registered"], **half_taken}
            for half, (found, half_taken) in zip(halves, made, strict=True)
        ],
        "merged": {
            "registered": merged["images"],
            "points": merged["points"],
            "agreeing_points": merged["agreeing_points"],
            "verified_pairs": merged["verified_pairs"],
            "stage_seconds": rounded(merged["seconds"]),
            **taken,
        },
        "full": scene.full_row(),
    }
    return scene.compared("merged", row, halves[1])


def updated(new: dict[str, Any]) -> dict[str, Any]:
    """The present file with the rows of `new`, which must have been measured in the same way."""
    old: dict[str, Any] = json.loads((RESULTS / "extend.json").read_text(encoding="utf-8"))
    if old["resize_max"] != new["resize_max"]:
        raise ValueError(f"extend.json has resize_max {old['resize_max']}, this run {new['resize_max']}")
    measured = {(key, row["scene"]) for key in PARTS.values() for row in new[key]}
    left = {(key, row["scene"]) for key in PARTS.values() for row in old.get(key, [])} - measured
    rows = {key: {row["scene"]: row for row in (*old.get(key, []), *new[key])} for key in PARTS.values()}
    lists = {key: [found[scene] for scene in (*SCENES, *MORE) if scene in found] for key, found in rows.items()}
    if all(scene in MORE for _, scene in left):  # this run is the file's
        return {**new, **lists, "updated": {scene: old["updated"][scene] for _, scene in left}}
    record = {key: value for key, value in origin().items() if key in ("command", "commit", "date")}
    return {**old, **lists, "updated": old.get("updated", {}) | {scene: record for _, scene in measured}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--resize-max", type=int)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=SCENES, choices=(*SCENES, *MORE), metavar="NAME")
    parser.add_argument("--parts", nargs="*", default=tuple(PARTS), choices=tuple(PARTS))
    parser.add_argument("--features", default="rootsift")
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    options = [] if arguments.resize_max is None else ["--resize-max", str(arguments.resize_max)]
    measured: dict[str, Any] = {key: [] for key in PARTS.values()}
    try:
        for name in arguments.only:
            with tempfile.TemporaryDirectory() as work:
                scene = Scene(name, arguments.data / name, Path(work), arguments.features, options)
                for part in arguments.parts:
                    if part == "merge" and name == NOT_MERGED:
                        continue
                    row = extend_row(scene, arguments.every) if part == "extend" else merge_row(scene)
                    print(json.dumps(row), flush=True)
                    measured[PARTS[part]].append(row)
        result = {"resize_max": arguments.resize_max, "max_error_ratio": MAX_ERROR_RATIO, **measured}
        print(write_result("extend", updated(result) if arguments.update else result))
    except (FeatkitError, RuntimeError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
