"""Matches -> two-view geometries in the database: by RANSAC, or against known poses. `config` is always set."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pycolmap

from featkit.config import Config
from featkit.geometry.epipolar import epipolar_inliers, essential_matrix
from featkit.geometry.poses import quaternion
from featkit.store.features import FeatureStore
from featkit.types import Pair, Pose


class VerifyConfig(Config):
    """Geometric verification of one pair."""

    max_error_px: float = 4.0
    """RANSAC threshold; against known poses it is multiplied by the keypoints' uncertainty."""
    min_inliers: int = 15
    confidence: float = 0.999
    max_trials: int = 10_000
    seed: int = 0


def by_ransac(path: Path, config: VerifyConfig, pairs: Collection[Pair] | None = None) -> None:
    """Verify matches of a database that are not verified yet (E, F or H by LO-RANSAC; pycolmap).

    pairs: only these. Without them pycolmap looks at every pair of the database, verified or not; so it does for names
    with a space, which its list of pairs cannot hold. The result is the same, whatever the order within a pair: RANSAC
    draws otherwise when two images change places, so the one with the lower id always comes first.
    """
    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = config.min_inliers
    options.ransac.max_error = config.max_error_px
    options.ransac.confidence = config.confidence
    options.ransac.max_num_trials = config.max_trials
    options.ransac.random_seed = config.seed
    if pairs is None or any(len(f"{pair.name0} {pair.name1}".split()) != 2 for pair in pairs):
        pycolmap.geometric_verification(str(path), two_view_geometry_options=options)
    elif pairs:
        with pycolmap.Database.open(str(path)) as opened:
            ids = {image.name: image.image_id for image in opened.read_all_images()}
        ordered = [sorted((pair.name0, pair.name1), key=ids.__getitem__) for pair in pairs]
        with tempfile.TemporaryDirectory() as folder:
            listed = Path(folder) / "pairs.txt"
            listed.write_text("".join(f"{first} {second}\n" for first, second in ordered), encoding="utf-8")
            pycolmap.verify_matches(str(path), str(listed), options)


def by_poses(
    database: pycolmap.Database,
    pairs: Iterable[Pair],
    features: FeatureStore,
    poses: dict[str, Pose],
    config: VerifyConfig,
) -> None:
    """Keep matches near their epipolar lines in both images: `max_error_px` times the keypoints' uncertainty."""
    with pycolmap.DatabaseTransaction(database):
        for pair in pairs:
            names = (pair.name0, pair.name1)
            images = [database.read_image_with_name(name) for name in names]
            ids = [image.image_id for image in images]
            matches = database.read_matches(*ids)
            points, thresholds = [], []
            for column, image in enumerate(images):
                camera = database.read_camera(image.camera_id)
                keypoints = database.read_keypoints(image.image_id)[matches[:, column], :2]
                points.append(np.asarray(camera.cam_from_img(keypoints.astype(np.float64))))
                error_px = config.max_error_px * features.uncertainty_px(image.name)
                thresholds.append(camera.cam_from_img_threshold(error_px))
            pose0, pose1 = poses[names[0]], poses[names[1]]
            essential = essential_matrix(pose0, pose1)
            inlier = epipolar_inliers(essential, points[0], points[1], thresholds[0], thresholds[1])
            geometry = _known_geometry(pose0, pose1, essential, matches[inlier])
            database.write_two_view_geometry(*ids, geometry)


def _known_geometry(pose0: Pose, pose1: Pose, essential: np.ndarray, inliers: np.ndarray) -> pycolmap.TwoViewGeometry:
    """A calibrated two-view geometry; without `config` the triangulator of pycolmap 4.2.1 would drop it in silence."""
    geometry = pycolmap.TwoViewGeometry()
    geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
    geometry.inlier_matches = inliers
    geometry.E = essential
    geometry.cam2_from_cam1 = to_rigid(pose1) * to_rigid(pose0).inverse()
    return geometry


def to_rigid(pose: Pose) -> pycolmap.Rigid3d:
    """A featkit pose as pycolmap's (whose quaternions are x, y, z, w)."""
    w, x, y, z = pose.qvec
    return pycolmap.Rigid3d(pycolmap.Rotation3d([x, y, z, w]), pose.tvec)


def to_pose(rigid: pycolmap.Rigid3d) -> Pose:
    """pycolmap's pose as featkit's."""
    return Pose(quaternion(rigid.rotation.matrix()), np.array(rigid.translation))
