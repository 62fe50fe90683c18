"""featkit and plain pycolmap on the same real scenes in one run, beside the papers' rows.

    python benchmarks/scenes.py [--data ../shared/data] [--repeats 3] [--only NAME ...]

Both sides map the full-size photographs with RootSIFT (pycolmap's default budget of 8192) on all cores, turn about
(featkit's mapper takes one, so that the same seed gives the same map); seconds are medians over the repeats, and the
pages that featkit writes are in its time. Errors are against the true cameras after one similarity. castle-P19 is also
localized: mapped with the true poses of every image but each fourth, which are then the queries. Writes
benchmarks/results/scenes.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import Finished, measure, write_result

from featkit.core.errors import FeatkitError
from featkit.images.listing import list_images
from featkit.io.lists import read_camera, read_poses
from featkit.mapping.align import compare_with_truth
from featkit.mapping.model import is_model, largest_first, map_statistics, read_model
from featkit.report.maps import error_summary

HERE = Path(__file__).resolve().parent
SCENES = ("eth/fountain-P11", "eth/Herz-Jesu-P8", "posed/castle-P19", "sacre_coeur")
LOCALIZED = "posed/castle-P19"


def featkit_command(scene: Path, output: Path, options: Sequence[str] = ()) -> list[str]:
    """options: more of them, such as other features."""
    command = [sys.executable, "-m", "featkit", "reconstruct", str(scene), "--out", str(output), "--json", "-q"]
    camera = scene / "camera.txt"
    if camera.is_file():
        known = read_camera(camera)
        params = ",".join(map(repr, known.params))
        command += ["--camera-model", known.model, "--camera-params", params]
        command += ["--camera-mode", "single", "--fix-intrinsics"]
    return [*command, *options]


def pycolmap_command(scene: Path, output: Path) -> list[str]:
    images = scene / "images" if (scene / "images").is_dir() else scene
    command = [sys.executable, str(HERE / "plain_pycolmap.py"), str(images), str(output)]
    camera = scene / "camera.txt"
    if camera.is_file():
        known = read_camera(camera)
        command += [known.model, ",".join(map(repr, known.params))]
    return command


def judged(models: list[Path], scene: Path) -> dict[str, Any]:
    """Statistics of the largest model, and its camera errors where the truth is known."""
    images = scene / "images" if (scene / "images").is_dir() else scene
    largest = largest_first([read_model(folder) for folder in models])[0]
    row: dict[str, Any] = {"models": len(models), **asdict(map_statistics(largest, len(list_images(images))))}
    poses = scene / "poses.txt"
    if poses.is_file():
        errors = error_summary(compare_with_truth(largest, read_poses(poses)))
        row |= {
            "centre_error_mm_mean": 1e3 * errors["centre_mean"],
            "centre_error_mm_max": 1e3 * errors["centre_max"],
            "rotation_error_deg_mean": errors["rotation_deg_mean"],
        }
    return row


def run_side(side: str, scene: Path, output: Path) -> tuple[dict[str, Any], Finished]:
    """Run one side once; its row, with the seconds of the stages as it reports them."""
    if side == "featkit":
        finished = measure(featkit_command(scene, output))
        models = output / "sparse"
    else:
        finished = measure(pycolmap_command(scene, output))
        models = output
    report = json.loads(finished.stdout.splitlines()[-1])
    row = judged([folder for folder in sorted(models.iterdir()) if is_model(folder)], scene)
    row["stage_seconds"] = report["seconds"]
    return row, finished


def run_scene(name: str, scene: Path, repeats: int) -> list[dict[str, Any]]:
    """Both sides, turn about."""
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, list[tuple[dict[str, float], Finished]]] = {"featkit": [], "pycolmap": []}
    for _ in range(repeats):
        for side in runs:
            with tempfile.TemporaryDirectory() as output:
                row, finished = run_side(side, scene, Path(output))
            runs[side].append((row.pop("stage_seconds"), finished))
            rows[side] = row
            print(f"{name} {side}: {finished.seconds:.1f} s, {finished.peak_memory_mb:.0f} MB", flush=True)
    table = []
    for side, done in runs.items():
        stages = {stage: round(statistics.median(s[stage] for s, _ in done), 2) for stage in done[0][0]}
        seconds = [finished.seconds for _, finished in done]
        table.append(
            {
                "scene": name,
                "method": side,
                **rows[side],
                "stage_seconds": stages,
                "seconds": round(statistics.median(seconds), 2),
                "seconds_all": [round(value, 2) for value in seconds],
                "peak_memory_mb": max(finished.peak_memory_mb for _, finished in done),
            }
        )
    table[0]["time_over_pycolmap"] = round(table[0]["seconds"] / table[1]["seconds"], 3)
    return table


def localize(name: str, scene: Path, options: Sequence[str] = ()) -> dict[str, Any]:
    """Map all images but each fourth with their true poses, and localize those."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "featkit", "eval", "localization", "--root", str(scene), "--out", work]
        (found,) = json.loads(measure([*command, *options, "--json", "-q"]).stdout)["rows"]
    kept = ("queries", "localized", "recall", "median_m", "median_deg", "failed")
    row = {"scene": name, **{key: found[key] for key in kept}, "seconds": round(sum(found["seconds"].values()), 2)}
    return row | {"map_images": found["map"]["registered"], "map_points": found["map"]["points"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--reference", type=Path, default=HERE.parent.parent / "shared" / "reference")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=SCENES)
    arguments = parser.parse_args()
    published = json.loads((arguments.reference / "eth_scenes.json").read_text(encoding="utf-8"))
    result: dict[str, Any] = {"published": published, "rows": [], "localization": []}
    try:
        for name in arguments.only:
            result["rows"] += run_scene(name, arguments.data / name, arguments.repeats)
            if name == LOCALIZED:
                result["localization"].append(localize(name, arguments.data / name))
    except (FeatkitError, RuntimeError) as error:
        sys.exit(str(error))
    print(write_result("scenes", result))


if __name__ == "__main__":
    main()
