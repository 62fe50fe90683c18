"""Panoramas and rigs against exact truth: a painted room, rendered with exact rays (that of the tests).

    python benchmarks/cameras.py [--work DIR]

Panoramas: six of each size, features of pinhole views and of the picture as it is. Rigs: six frames of two cameras that
look ahead, mapped without the rig, with its relation estimated and with the true one; and one camera that looks ahead
with one that looks back, which see nothing in common, by the true relation. Intrinsics are known. Errors are those of
`featkit reconstruct --truth`, after a similarity. Writes benchmarks/results/cameras.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import measure, write_result

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the room is the tests' own
from featkit.io.lists import write_poses  # noqa: E402
from tests.geotagged import GPANO  # noqa: E402
from tests.painted_room import pinhole, sphere, walk, write  # noqa: E402
from tests.pipeline.test_rigs import CAMERA, FOCAL, HEIGHT, RELATIONS, WIDTH, joined, rig_file  # noqa: E402
from tests.pipeline.test_rigs import walk as walk_of_rig  # noqa: E402

SIZES = (800, 1600)  # px, width of a panorama
PANORAMA_KEYPOINTS, RIG_KEYPOINTS = 900, 600
FRAMES = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keeps photographs and maps")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        result = {
            "panoramas": [row for width in SIZES for row in panoramas(work / f"panoramas-{width}", width)],
            "rigs": rigs(work / "rigs"),
        }
    print(write_result("cameras", result))


def panoramas(folder: Path, width: int) -> list[dict[str, Any]]:
    """Both ways on panoramas of one size."""
    poses = walk()
    write(folder / "images", poses, sphere(width), xmp=GPANO)
    write_poses(folder / "truth.txt", poses)
    options = ("--max-keypoints", PANORAMA_KEYPOINTS)
    return [
        {"width": width, "features": way, **mapped(folder, way, *options, "--panoramas", way)}
        for way in ("whole", "views")
    ]


def rigs(folder: Path) -> list[dict[str, Any]]:
    """Rows of both pairs of cameras."""
    truth = {f"front/{name}": pose for name, pose in walk_of_rig().items()}
    for prefix, relation in RELATIONS.items():
        truth |= {f"{prefix}{name}": joined(relation, pose) for name, pose in walk_of_rig().items()}
    rows = []
    for other, ways in (("side/", ("no rig", "estimated", "given")), ("back/", ("given",))):
        scene = folder / other.strip("/")
        prefixes = ("front/", other)
        poses = {name: pose for name, pose in truth.items() if name.startswith(prefixes)}
        write(scene / "images", poses, pinhole(WIDTH, HEIGHT, FOCAL))
        write_poses(scene / "truth.txt", truth)
        rig = rig_file(scene / "rig.json", *prefixes)
        options = ("--max-keypoints", RIG_KEYPOINTS, *CAMERA, "--fix-intrinsics")
        for way in ways:
            asked = {
                "no rig": ("--camera-mode", "per-folder"),
                "estimated": ("--rig", "folders"),
                "given": ("--rig", rig),
            }
            rows.append({"second": other.strip("/"), "relation": way, **mapped(scene, way, *options, *asked[way])})
    return rows


def mapped(scene: Path, name: str, *options: object) -> dict[str, Any]:
    """One map of a scene, and how far it is from the truth."""
    out = scene / name.replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    words = ["reconstruct", scene, "-o", out, *options, "--truth", scene / "truth.txt", "--json", "--quiet"]
    ran = measure([sys.executable, "-m", "featkit", *map(str, words)])
    found = json.loads(ran.stdout)
    truth = found["truth"]
    return {
        "registered": found["registered"],
        "images": found["images"],
        "points": int(np.sum([model["points"] for model in found["models"]])),
        "centre_mm": 1e3 * truth["centre_mean"],
        "rotation_deg": truth["rotation_deg_mean"],
        "seconds": round(ran.seconds, 1),
    }


if __name__ == "__main__":
    main()
