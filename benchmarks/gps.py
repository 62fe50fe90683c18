"""Pairs by GPS against all pairs on an aerial scene in one run, and the map in metres.

    python benchmarks/gps.py [--scene ../shared/data/scenes/caliterra] [--resize-max N]

Both sides map the scene with RootSIFT and one camera for all photographs, from nothing; then each map is aligned to the
positions in the photographs' EXIF, with the altitudes and, as for a flight at one height, without. The residuals are
against those positions, which err by metres themselves; `apart_m` compares the two maps with each other, camera by
camera, after one similarity, in the metres of the second.
Writes benchmarks/results/gps.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import measure, write_result

from featkit.core.errors import FeatkitError
from featkit.io.lists import read_pairs
from featkit.mapping.align import compare_with_truth
from featkit.mapping.model import read_model
from featkit.mapping.reference import poses_of_model
from featkit.mapping.scene import image_folder
from featkit.report.maps import error_summary

HERE = Path(__file__).resolve().parent
SIDES = ("exhaustive", "gps")
MAX_SHARE = 1 / 3  # of all pairs, for the same registered images


def map_scene(side: str, scene: Path, output: Path, resize_max: int | None) -> dict[str, Any]:
    """Map the scene with one way of pairing; its row."""
    command = [sys.executable, "-m", "featkit", "reconstruct", str(scene), "--out", str(output), "--pairs", side]
    command += ["--camera-mode", "single", "--json", "-q"]
    if resize_max is not None:
        command += ["--resize-max", str(resize_max)]
    finished = measure(command)
    found = json.loads(finished.stdout.splitlines()[-1])
    kept = ("images", "registered", "points", "track_length", "reprojection_px", "verified_pairs")
    return {
        "pairs_by": side,
        "pairs": len(read_pairs(output / "pairs.txt")),
        **{key: found[key] for key in kept},
        "models": len(found["models"]),
        "stage_seconds": {stage: round(seconds, 2) for stage, seconds in found["seconds"].items()},
        "seconds": round(finished.seconds, 2),
        "peak_memory_mb": finished.peak_memory_mb,
    }


def align_map(scene: Path, output: Path, metric: str, *options: str) -> dict[str, Any]:
    """Align a map by the photographs' EXIF; what the command says, without the rows of the images."""
    command = [sys.executable, "-m", "featkit", "align", str(output), "--gps", "--images", str(image_folder(scene))]
    finished = measure([*command, *options, "--out", str(output / metric), "--json", "-q"])
    found = json.loads(finished.stdout.splitlines()[-1])
    kept = ("scale", "origin", "positions", "used", "residual_m", "orientation_std_deg", "scale_std")
    return {**{key: found[key] for key in kept}, "seconds": round(finished.seconds, 2)}


def compare(outputs: dict[str, Path]) -> dict[str, Any]:
    """Which images only one side registered, and how far the cameras of the others are apart, metres."""
    names = {side: set(poses_of_model(output / "metric")) for side, output in outputs.items()}
    errors = compare_with_truth(read_model(outputs["gps"] / "metric"), poses_of_model(outputs["exhaustive"] / "metric"))
    found = error_summary(errors)
    return {
        "only_exhaustive": sorted(names["exhaustive"] - names["gps"]),
        "only_gps": sorted(names["gps"] - names["exhaustive"]),
        "apart_m": {"mean": found["centre_mean"], "max": found["centre_max"]},
        "apart_deg_mean": found["rotation_deg_mean"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, default=HERE.parent.parent / "shared" / "data" / "scenes" / "caliterra")
    parser.add_argument("--resize-max", type=int, default=None, help="longer side of the photographs, px")
    arguments = parser.parse_args()
    rows = []
    try:
        with tempfile.TemporaryDirectory() as work:
            outputs = {side: Path(work) / side for side in SIDES}
            for side, output in outputs.items():
                row = map_scene(side, arguments.scene, output, arguments.resize_max)
                row["aligned"] = align_map(arguments.scene, output, "metric")
                row["aligned_level"] = align_map(arguments.scene, output, "level", "--level")
                rows.append(row)
                print(f"{side}: {row['registered']} images, {row['pairs']} pairs, {row['seconds']:.0f} s", flush=True)
            compared = compare(outputs)
    except (FeatkitError, RuntimeError) as error:
        sys.exit(str(error))
    share = rows[1]["pairs"] / rows[0]["pairs"]
    compared |= {
        "share_of_pairs": round(share, 4),
        "time_over_exhaustive": round(rows[1]["seconds"] / rows[0]["seconds"], 3),
        "goal_met": share <= MAX_SHARE and not compared["only_exhaustive"],
    }
    result = {"scene": arguments.scene.name, "resize_max": arguments.resize_max, "rows": rows, "compared": compared}
    print(json.dumps(compared, indent=1))
    print(write_result("gps", result))


if __name__ == "__main__":
    main()
