"""An analytic survey: a camera flies rows over blocks of houses, and what it sees is computed, not detected.

Nothing is rendered. Points lie on the ground, on roofs and on walls; a camera sees every point in its frame (houses
hide nothing: that changes no cost). A keypoint is a projection with noise. A share of them lies elsewhere in the frame
with the same descriptor, so matches of these are wrong. The same seed gives the same survey.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int

from featkit.core.config import Config
from featkit.core.types import Features, Pose
from featkit.geometry.poses import camera_centre, look_at, rotation_matrix
from featkit.io.features import append_features
from featkit.io.lists import write_poses

SIZE = (1600, 1200)  # px
PARAMS = (1200.0, 1200.0, 800.0, 600.0)  # PINHOLE, COLMAP pixels
HEIGHT_M = 60.0
STEP_M, ROW_M = 15.0, 32.0  # the frame is 80 x 60 m on the ground: 75 % overlap along a row, 60 % across
BLOCK_M, STREET_M = 25.0, 7.0
ROOF_M = (4.0, 18.0)
REACH_M = 75.0  # no point farther to the side of a camera than this is in its frame


class SurveyConfig(Config):
    """What is flown, and what of it is seen."""

    images: int = 200
    points_per_image: int = 640
    """Points in a frame on flat ground, on average; of houses, which are nearer, it sees fewer."""
    detected: float = 0.8
    """Share of them that an image has a keypoint of."""
    misplaced: float = 0.08
    """Share of the keypoints that lie somewhere else in the frame."""
    noise_px: float = 0.5
    """Standard deviation of a keypoint, in x and in y."""
    dims: int = 128
    """Numbers of a descriptor, float16."""
    descriptor_noise: float = 0.5
    """Length of what two views add to a point's descriptor of length 1."""
    seed: int = 0


@dataclass(frozen=True)
class Survey:
    """Points sorted by x, and their descriptors of length 1; true poses by name. Metres, z up."""

    config: SurveyConfig
    points: Float[np.ndarray, "m 3"]
    descriptors: Float[np.ndarray, "m d"]
    poses: dict[str, Pose]

    def seen(self, name: str) -> tuple[Int[np.ndarray, " n"], Features]:
        """Indices of the points an image has keypoints of, and these."""
        config, pose = self.config, self.poses[name]
        generator = np.random.default_rng([config.seed, 1, _number(name)])
        across = camera_centre(pose)[0]
        first, last = np.searchsorted(self.points[:, 0], [across - REACH_M, across + REACH_M])
        local = self.points[first:last] @ rotation_matrix(pose.qvec).T + pose.tvec
        with np.errstate(divide="ignore", invalid="ignore"):
            xy = local[:, :2] / local[:, 2:] * PARAMS[:2] + PARAMS[2:] - 0.5  # centre of the first pixel is (0, 0)
        inside = (local[:, 2] > 0) & np.all((xy >= 0) & (xy <= np.array(SIZE) - 1), axis=1)
        index = np.flatnonzero(inside & (generator.random(len(xy)) < config.detected))
        found = xy[index] + config.noise_px * generator.standard_normal((len(index), 2))
        wrong = generator.random(len(index)) < config.misplaced
        found[wrong] = generator.random((int(wrong.sum()), 2)) * (np.array(SIZE) - 1)
        index = index + first
        noise = generator.standard_normal((len(index), config.dims)) * config.descriptor_noise / np.sqrt(config.dims)
        rows = self.descriptors[index].astype(np.float32) + noise
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        scores = generator.random(len(index), dtype=np.float32)
        keypoints = np.clip(found, 0, np.array(SIZE) - 1).astype(np.float32)
        return index, Features(keypoints, rows.astype(np.float16), scores, SIZE)


def _number(name: str) -> int:
    return int(Path(name).stem)


def make_survey(config: SurveyConfig) -> Survey:
    """Rows of about equal number and length, flown to and fro, each camera a little off and tilted."""
    generator = np.random.default_rng([config.seed, 0])
    rows = max(1, round(np.sqrt(config.images * STEP_M / ROW_M)))
    row, step = np.divmod(np.arange(config.images), -(-config.images // rows))
    places = np.stack([row * ROW_M, step * STEP_M, np.full(len(row), HEIGHT_M)], axis=1)
    places += generator.uniform(-1.5, 1.5, places.shape)
    aims = places * [1, 1, 0] + np.tan(np.radians(8)) * HEIGHT_M * generator.uniform(-1, 1, places.shape) * [1, 1, 0]
    poses = {}
    for number, (place, aim) in enumerate(zip(places, aims, strict=True)):
        ahead = np.array([generator.uniform(-0.1, 0.1), 1.0 if row[number] % 2 == 0 else -1.0, 0.0])
        poses[f"{number:07d}.png"] = look_at(place, aim, ahead)
    points = _city(places[:, :2], config.points_per_image, generator)
    descriptors = generator.standard_normal((len(points), config.dims), dtype=np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return Survey(config, points, descriptors.astype(np.float16), poses)


def _city(centres: np.ndarray, per_image: int, generator: np.random.Generator) -> np.ndarray:
    """Points of the area that is flown over, sorted by x: three in five on the ground or a roof, two on a wall."""
    low, high = centres.min(axis=0) - 45, centres.max(axis=0) + 45
    frame_m2 = HEIGHT_M**2 * SIZE[0] * SIZE[1] / (PARAMS[0] * PARAMS[1])
    count = int(per_image / frame_m2 * np.prod(high - low))
    xy = generator.uniform(low, high, (count, 2))
    block, within = np.divmod(xy, BLOCK_M)
    wall = generator.random(count) < 0.4
    edge = np.where(generator.random(count) < 0.5, STREET_M, BLOCK_M)
    side = generator.integers(0, 2, count)
    within[wall, side[wall]] = edge[wall]
    across = np.arange(2)[None] != side[:, None]
    within = np.where(wall[:, None] & across, np.maximum(within, STREET_M), within)
    house = np.all(within >= STREET_M, axis=1)
    hashed = (block.astype(np.int64) * [73856093, 19349663]).sum(axis=1) % 1000 / 1000  # a height for every house
    roof = ROOF_M[0] + (ROOF_M[1] - ROOF_M[0]) * hashed
    z = np.where(wall, generator.random(count) * roof, np.where(house, roof, 0.0))
    points = np.concatenate([block * BLOCK_M + within, z[:, None]], axis=1)
    return points[np.argsort(points[:, 0])]


def write_survey(survey: Survey, folder: Path) -> int:
    """images/ (one file under all names), features.h5 through featkit's store, poses.txt; the number of keypoints."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    flat = folder / "flat.png"
    cv2.imwrite(str(flat), np.full((SIZE[1], SIZE[0]), 128, np.uint8))
    keypoints = 0
    with append_features(folder / "features.h5", survey.config) as store:
        for name in survey.poses:
            if not (images / name).exists():
                os.link(flat, images / name)
            if not store.has(name):
                store.write(name, survey.seen(name)[1])
            keypoints += store.count(name)
    write_poses(folder / "poses.txt", survey.poses)
    return keypoints
