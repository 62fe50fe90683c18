"""Points seen by known cameras, with exact keypoints from the simplest formula, for tests of relative poses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from featkit.core.registry import resolve
from featkit.core.types import Features, Matches, Pair, Pose
from featkit.evaluation.benchmark import Predictions
from featkit.evaluation.pose_pairs import PosedScene, read_scene
from featkit.features.stage import ExtractConfig, extraction_method
from featkit.geometry.poses import look_at, rotation_matrix
from featkit.io.features import append_features
from featkit.io.lists import write_poses
from featkit.io.matches import append_matches

SIZE = (640, 480)
UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class World:
    """Cameras with the same lens on an arc around points. focal, centre: COLMAP pixels. k1: as in SIMPLE_RADIAL."""

    poses: dict[str, Pose]
    points: np.ndarray
    focal: float = 600.0
    centre: tuple[float, float] = (322.0, 236.0)
    k1: float = 0.0

    def seen(self, name: str) -> np.ndarray:
        """featkit pixels of all points."""
        rotation = rotation_matrix(self.poses[name].qvec)
        found = []
        for point in self.points:
            x, y, z = rotation @ point + self.poses[name].tvec
            u, v = x / z, y / z
            stretch = 1 + self.k1 * (u * u + v * v)
            found.append(
                (self.focal * u * stretch + self.centre[0] - 0.5, self.focal * v * stretch + self.centre[1] - 0.5)
            )
        return np.array(found)

    def true_pose(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """R, t from the first camera to the second, by 4 x 4 matrices."""
        first, second = (np.eye(4), np.eye(4))
        for matrix, name in ((first, pair.name0), (second, pair.name1)):
            matrix[:3, :3], matrix[:3, 3] = rotation_matrix(self.poses[name].qvec), self.poses[name].tvec
        both = second @ np.linalg.inv(first)
        return both[:3, :3], both[:3, 3]

    def write(self, root: Path, images: bool = True) -> PosedScene:
        """ROOT/images, poses.txt and camera.txt. The images are black."""
        (root / "images").mkdir(parents=True)
        for name in self.poses if images else ():
            cv2.imwrite(str(root / "images" / name), np.zeros((SIZE[1], SIZE[0]), np.uint8))
        write_poses(root / "poses.txt", self.poses)
        numbers = " ".join(map(repr, (self.focal, *self.centre, self.k1)))
        (root / "camera.txt").write_text(f"SIMPLE_RADIAL {SIZE[0]} {SIZE[1]} {numbers}\n")
        return read_scene(root)


def make_world(seed: int = 0, cameras: int = 4, points: int = 200, k1: float = 0.0, step_deg: float = 12.0) -> World:
    """Cameras every few degrees on an arc of radius 6, looking at the middle of a point cloud."""
    rng = np.random.default_rng(seed)
    poses = {}
    for number in range(cameras):
        angle = np.radians(step_deg * (number - (cameras - 1) / 2))
        centre = np.array([6 * np.sin(angle), -6 * np.cos(angle), rng.uniform(-0.6, 0.6)])
        poses[f"{number:02d}.png"] = look_at(centre, rng.normal(0, 0.1, 3), UP)
    return World(poses, rng.uniform(-1.5, 1.5, (points, 3)) * [1, 1, 0.8], k1=k1)


def store(
    keypoints: dict[str, np.ndarray], matches: dict[Pair, np.ndarray], folder: Path, resize_max: int | None = None
) -> Predictions:
    """Write features.h5 and matches.h5 as if extracted and matched. matches: each keypoint's match or -1, by pair."""
    config = ExtractConfig(features="rootsift", decode={"resize_max": resize_max})  # type: ignore[arg-type]
    method = extraction_method(config, {}, "cpu")
    matcher = resolve("matcher", "mutual-nn", device="cpu")
    with append_features(folder / "features.h5", method.config) as features:
        for name, points in keypoints.items():
            count = len(points)
            nothing = np.zeros((count, 8), np.float32)
            features.write(name, Features(points.astype(np.float32), nothing, np.ones(count, np.float32), SIZE))
    with append_matches(folder / "matches.h5", matcher.config, "made") as found:
        for pair, index in matches.items():
            scores = np.ones(len(index), np.float32)
            found.write(pair, Matches(index.astype(np.int32), scores), ("", ""), len(keypoints[pair.name1]))
    return Predictions(replace(method, name="made"), folder / "features.h5", folder / "matches.h5", {})
