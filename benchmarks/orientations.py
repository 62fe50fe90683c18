"""Photographs that only EXIF keeps upright: a scene and its turned copy are one map, with the same camera centres.

    python benchmarks/orientations.py [--scene ../shared/data/eth/Herz-Jesu-P8] [--turns 90 180 270] [--resize-max PX]

For each turn every photograph is in the scene twice, without loss (PNG): as it is, and with its pixels turned in the
file and an EXIF orientation that turns them back. Both have the surveyed intrinsics, in the pixels of their own file
(`--intrinsics`). A viewer sees no difference; a program that passes over EXIF finds two scenes, or one with wrong
cameras. Said of each: models, registered images, the distance between the centres of a photograph and of its copy, and
how far the turn between their rotations is from the turn of the file; errors against the true cameras beside. Goal: one
model, all images, and no two centres more than 5 mm apart. Writes benchmarks/results/orientations.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from machine import measure, write_result
from PIL import Image

from featkit.core.errors import FeatkitError
from featkit.core.types import Pose
from featkit.geometry.pixels import COLMAP_ORIGIN, apply_affine, compose, resize_affine
from featkit.geometry.poses import camera_centre, rotation_angle_deg, rotation_matrix
from featkit.images.listing import list_images
from featkit.images.read import as_stored, stored_from_upright
from featkit.io.lists import Intrinsics, read_camera, read_poses
from featkit.mapping.align import compare_with_truth
from featkit.mapping.cameras import to_pose
from featkit.mapping.model import is_model, read_model
from featkit.report.maps import error_summary

HERE = Path(__file__).resolve().parent
ORIENTATIONS = {90: 6, 180: 3, 270: 8}  # degrees clockwise that a viewer turns the file by -> EXIF's tag
UPRIGHT, TURNED = "upright", "turned"  # folders of the two copies
GOAL_MM = 5.0


@dataclass(frozen=True)
class Copy:
    """How a copy is stored: longer side in px (None: as it is) and EXIF orientation."""

    folder: str
    orientation: int
    resize_max: int | None


def store(copy: Copy, photograph: Path, images: Path, camera: Intrinsics) -> tuple[str, Intrinsics]:
    """Write one copy of a photograph; its name, and its camera in the pixels of the file."""
    pixels = cv2.cvtColor(cv2.imread(str(photograph), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    size = (pixels.shape[1], pixels.shape[0])
    scale = min(1.0, (copy.resize_max or max(size)) / max(size))
    small = (round(size[0] * scale), round(size[1] * scale))
    if small != size:
        pixels = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    stored = as_stored(pixels, copy.orientation)
    stored_size = (stored.shape[1], stored.shape[0])
    exif = Image.Exif()
    exif[0x0112] = copy.orientation
    name = f"{copy.folder}/{photograph.stem}.png"
    (images / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stored).save(images / name, exif=exif, compress_level=1)
    to_file = compose(stored_from_upright(stored_size, copy.orientation), resize_affine(size, small))
    return name, moved(camera, to_file, stored_size)


def moved(camera: Intrinsics, affine: np.ndarray, size: tuple[int, int]) -> Intrinsics:
    """A PINHOLE camera in the pixels of an image that is scaled and turned by whole right angles."""
    fx, fy, cx, cy = camera.params
    focal = np.abs(affine[:, :2]) @ [fx, fy]
    centre = apply_affine(affine, np.array([[cx, cy]]) - COLMAP_ORIGIN)[0] + COLMAP_ORIGIN
    return Intrinsics("PINHOLE", *size, (*(float(v) for v in focal), *(float(v) for v in centre)))


def poses_of(sparse: Path) -> tuple[int, dict[str, Pose], Any]:
    """Number of models; poses of the largest, and it."""
    models = [folder for folder in sorted(sparse.iterdir()) if is_model(folder)]
    largest = read_model(sparse / "0")
    return len(models), {i.name: to_pose(i.cam_from_world()) for i in largest.images.values() if i.has_pose}, largest


def between_copies(poses: dict[str, Pose], scale: float, turn_deg: int) -> tuple[list[float], list[float]]:
    """Of every photograph that is in the map twice: distance of the centres, m, and error of the turn, degrees."""
    distances, errors = [], []
    for name, pose in poses.items():
        copy = poses.get(name.replace(f"{UPRIGHT}/", f"{TURNED}/", 1))
        if not name.startswith(f"{UPRIGHT}/") or copy is None:
            continue
        distances.append(scale * float(np.linalg.norm(camera_centre(pose) - camera_centre(copy))))
        angle = np.radians(-turn_deg)  # the viewer turns clockwise, so the file is turned the other way
        roll = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        errors.append(rotation_angle_deg(roll @ rotation_matrix(pose.qvec), rotation_matrix(copy.qvec)))
    return distances, errors


def run_turn(scene: Path, turn_deg: int, resize_max: int | None, work: Path) -> dict[str, Any]:
    """Map a scene with its turned copy; one row."""
    camera, truth = read_camera(scene / "camera.txt"), read_poses(scene / "poses.txt")
    copies = (Copy(UPRIGHT, 1, resize_max), Copy(TURNED, ORIENTATIONS[turn_deg], resize_max))
    lines, true_poses = [], {}
    for name in list_images(scene / "images"):
        for copy in copies:
            stored, known = store(copy, scene / "images" / name, work / "images", camera)
            lines.append(f"{stored} {known.model} {known.width} {known.height} {' '.join(map(repr, known.params))}\n")
            if copy.folder == UPRIGHT:
                true_poses[stored] = truth[name]
    (work / "intrinsics.txt").write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "featkit", "reconstruct", str(work), "--intrinsics", str(work / "intrinsics.txt")]
    finished = measure([*command, "--fix-intrinsics", "--json", "-q"])
    models, poses, largest = poses_of(work / "featkit" / "sparse")
    errors = compare_with_truth(largest, true_poses)
    scale = float(np.cbrt(np.linalg.det(errors.truth_from_map[:, :3])))
    distances, turns = between_copies(poses, scale, turn_deg)
    summary = error_summary(errors)
    return {
        "turn_deg": turn_deg,
        "exif_orientation": ORIENTATIONS[turn_deg],
        "images": len(lines),
        "registered": len(poses),
        "models": models,
        "points": largest.num_points3D(),
        "between_copies_mm_max": 1e3 * max(distances, default=float("nan")),
        "turn_error_deg_max": max(turns, default=float("nan")),
        "centre_error_mm_mean": 1e3 * summary["centre_mean"],
        "centre_error_mm_max": 1e3 * summary["centre_max"],
        "goal_met": models == 1 and len(poses) == len(lines) and 1e3 * max(distances) <= GOAL_MM,
        "seconds": round(finished.seconds, 2),
        "peak_memory_mb": finished.peak_memory_mb,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, default=HERE.parent.parent / "shared/data/eth/Herz-Jesu-P8")
    parser.add_argument("--turns", type=int, nargs="*", choices=ORIENTATIONS, default=list(ORIENTATIONS))
    parser.add_argument("--resize-max", type=int, help="longer side of the photographs, px")
    arguments = parser.parse_args()
    rows = []
    try:
        for turn_deg in arguments.turns:
            with tempfile.TemporaryDirectory() as work:
                rows.append(run_turn(arguments.scene, turn_deg, arguments.resize_max, Path(work)))
            print(json.dumps(rows[-1]), flush=True)
    except (FeatkitError, RuntimeError) as error:
        sys.exit(str(error))
    settings = {"scene": arguments.scene.name, "resize_max": arguments.resize_max, "goal_mm": GOAL_MM}
    print(write_result("orientations", {**settings, "rows": rows}))


if __name__ == "__main__":
    main()
