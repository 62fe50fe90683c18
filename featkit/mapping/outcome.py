"""Decides which mapping results are kept as maps, why there is none, and what to warn about."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Float
from pydantic import Field

from featkit.core.config import Config
from featkit.core.types import Pair
from featkit.images.exif import some_names
from featkit.mapping.model import read_model, registered_names

LOGGER = logging.getLogger(__name__)
FEW_SHARE = 0.8
"""Other features are suggested if fewer than this fraction of the images are registered or localized."""
HANDCRAFTED = ("rootsift", "sift")
STRONGER_FEATURES = "--features aliked-n16 --matcher lightglue"
"""Suggested options for images that SIFT cannot match."""
FOCAL_SHARES = np.geomspace(0.3, 4.0, 40)
"""Focal lengths tried, as multiples of the image's longer side: fields of view of about 120 to 14 degrees."""
MAX_TURN_ERROR = (0.003, 0.2)
"""Threshold for a camera that only rotates: largest distance (Frobenius norm) of its normalised homography from a
rotation, as a constant plus a share of the rotation angle. A camera that moves along a plane is at 0.7 of the angle."""
MAX_STILL_RAD = 0.005
"""Rotations below this angle count as no motion."""
SURE_SHARE = 0.9
"""Share of the verified pairs that must agree before a reason is reported."""
HOMOGRAPHIES = {
    int(getattr(pycolmap.TwoViewGeometryConfiguration, kind)) for kind in ("PLANAR", "PANORAMIC", "PLANAR_OR_PANORAMIC")
}
SAMPLED_POINTS = 2000
SAMPLED_PAIRS = 500
FEW_IN_POINTS = 0.5
"""A map of rigs is doubted if fewer of its verified matches are of its points: see `share_in_points`."""


class KeepConfig(Config):
    """Requirements for a model to be kept; models below them come from a few accidental matches."""

    min_points_per_image: float = Field(default=10.0, ge=0, le=1e6)
    """Minimum mean number of observations per image of a model."""
    min_parallax_deg: float = Field(default=1.0, ge=0, lt=180)
    """Minimum parallax, degrees: the median over the points of the largest angle between the rays of two images; below
    it depths are unreliable. 0: no minimum, so photographs from one position are mapped too.
    """


def parallax_deg(model: pycolmap.Reconstruction) -> float:
    """Median over (some) points of the largest angle between the rays of two images, in degrees; 0 without points."""
    centres = {image_id: model.images[image_id].projection_center() for image_id in model.reg_image_ids()}
    points = list(model.points3D.values())
    step = max(1, len(points) // SAMPLED_POINTS)
    angles = []
    for point in points[::step]:
        rays = np.array([centres[element.image_id] for element in point.track.elements]) - point.xyz
        rays /= np.linalg.norm(rays, axis=1, keepdims=True).clip(min=1e-12)
        angles.append(float((rays @ rays.T).min()))
    return float(np.degrees(np.arccos(np.clip(np.median(angles), -1, 1)))) if angles else 0.0


def models_to_keep(
    models: Sequence[pycolmap.Reconstruction], config: KeepConfig, min_images: int = 2
) -> list[pycolmap.Reconstruction]:
    """The models that meet the requirements, in the given order (largest first), without subsets of earlier ones."""
    chosen: list[pycolmap.Reconstruction] = []
    names: list[set[str]] = []
    for model in models:
        own = registered_names(model)
        enough = (
            model.num_points3D() > 0
            and len(own) >= min_images
            and model.compute_mean_observations_per_reg_image() >= config.min_points_per_image
        )
        if enough and parallax_deg(model) >= config.min_parallax_deg and not any(own <= other for other in names):
            chosen.append(model)
            names.append(own)
    return chosen


@dataclass(frozen=True)
class CameraMotion:
    """Numbers of verified pairs of a scene: all, with pure rotation of the camera, and without motion."""

    pairs: int
    turned: int
    still: int

    @property
    def only_turned(self) -> bool:
        """Whether nearly all pairs show pure rotation, so that depths cannot be estimated."""
        return self.pairs > 0 and self.turned >= SURE_SHARE * self.pairs

    @property
    def did_not_move(self) -> bool:
        """Whether nearly all photographs show the same view."""
        return self.pairs > 0 and self.still >= SURE_SHARE * self.pairs


def camera_motion(database: Path) -> CameraMotion:
    """Count the verified pairs whose homography is a camera rotation: K1^-1 H K0 ~ R for one common focal length.

    Hartley and Zisserman, Multiple View Geometry, 8.4.2. A plane seen by a moving camera gives homographies too, but
    no focal length makes all of them rotations.
    """
    with pycolmap.Database.open(str(database)) as opened:
        cameras = {camera.camera_id: camera for camera in opened.read_all_cameras()}
        camera_of = {image.image_id: cameras[image.camera_id] for image in opened.read_all_images()}
        pair_ids, geometries = opened.read_two_view_geometries()
    found = []
    verified = 0
    for pair_id, geometry in zip(pair_ids, geometries, strict=True):
        if len(geometry.inlier_matches) == 0:
            continue
        verified += 1
        homography = geometry.H
        if int(geometry.config) in HOMOGRAPHIES and homography is not None and np.isfinite(homography).all():
            both = [camera_of[image_id] for image_id in pycolmap.pair_id_to_image_pair(pair_id)]
            found.append((homography, *both))
    if len(found) < SURE_SHARE * verified or not found:
        return CameraMotion(verified, 0, 0)
    turns = [
        [_rotation_error(homography, first, second, share) for share in FOCAL_SHARES]
        for homography, first, second in found
    ]
    errors = np.array([[error for error, _ in row] for row in turns])
    best = int(np.median(errors, axis=0).argmin())
    angles = np.array([row[best][1] for row in turns])
    turned = errors[:, best] < MAX_TURN_ERROR[0] + MAX_TURN_ERROR[1] * angles
    return CameraMotion(verified, int(turned.sum()), int((turned & (angles < MAX_STILL_RAD)).sum()))


def _rotation_error(
    homography: Float[np.ndarray, "3 3"], first: pycolmap.Camera, second: pycolmap.Camera, share: float
) -> tuple[float, float]:
    """Distance of K1^-1 H K0 from the nearest rotation (Frobenius norm), and the angle of that rotation, radians."""
    normalised = np.linalg.inv(_calibration(second, share)) @ homography @ _calibration(first, share)
    determinant = float(np.linalg.det(normalised))
    if abs(determinant) < 1e-12:
        return np.inf, np.inf
    normalised = normalised / np.cbrt(determinant)
    u, _, vt = np.linalg.svd(normalised)
    rotation = u @ vt
    angle = float(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    return float(np.linalg.norm(normalised - rotation)), angle


def _calibration(camera: pycolmap.Camera, share: float) -> Float[np.ndarray, "3 3"]:
    focal = camera.mean_focal_length() if camera.has_prior_focal_length else share * max(camera.width, camera.height)
    return np.array([[focal, 0, camera.width / 2], [0, focal, camera.height / 2], [0, 0, 1]])


def no_model_reason(motion: CameraMotion) -> str:
    """The likely reason why there is no model, with advice."""
    if motion.pairs == 0:
        return (
            "no pair of photographs was verified; do they show the same scene? (try more keypoints, --pairs exhaustive,"
            f" {STRONGER_FEATURES})"
        )
    if motion.did_not_move:
        return (
            f"the camera did not move: in {motion.still} of {motion.pairs} verified pairs both photographs show the"
            " same view; take photographs from other positions"
        )
    if motion.only_turned:
        return (
            f"the camera only rotated: {motion.turned} of {motion.pairs} verified pairs were taken from one position,"
            " which gives no depth; take photographs from positions a few steps apart"
        )
    return (
        "mapping gave no model; the pairs may have too little in common (try more keypoints, --pairs exhaustive,"
        f" {STRONGER_FEATURES})"
    )


def _merge_suggestion(models: Sequence[set[str]], pairs: Sequence[Pair], sparse: Path | None) -> str:
    """How much the largest model shares with the others, and the command that may merge them."""
    shares = []
    for number, own in enumerate(models[1:], start=1):
        common = len(own & models[0])
        both = (
            (pair.name0 in models[0] and pair.name1 in own) or (pair.name1 in models[0] and pair.name0 in own)
            for pair in pairs
        )
        shares.append(f"sparse/{number} shares {common} photographs and {sum(both)} verified pairs with sparse/0")
    folder = sparse or Path("sparse")
    command = f"featkit merge {folder / '0'} {folder / '1'} --out {folder.with_name('merged')}"
    return f"{'; '.join(shares)}: `{command}` may join them"


def share_in_points(database: Path, model: pycolmap.Reconstruction) -> float:
    """Share of the verified matches between images of a model whose keypoints are of one point of it.

    About 0.95 in maps of any features; less than 0.2 with a false relation of a rig's cameras. Of large maps
    SAMPLED_PAIRS pairs are counted. 1 for a model without verified matches.
    """
    point_ids = {
        image.name: np.array([p.point3D_id if p.has_point3D() else -1 for p in image.points2D], np.int64)
        for image in model.images.values()
        if image.has_pose
    }
    with pycolmap.Database.open(str(database)) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
        pair_ids, counts = opened.read_two_view_geometry_num_inliers()
        pairs = [pycolmap.pair_id_to_image_pair(i) for i, n in zip(pair_ids, counts, strict=True) if n]
        pairs = [pair for pair in pairs if names[pair[0]] in point_ids and names[pair[1]] in point_ids]
        places = {int(place) for place in np.linspace(0, len(pairs) - 1, SAMPLED_PAIRS).round()} if pairs else set()
        total = joined = 0
        for first, second in (pairs[place] for place in sorted(places)):
            found = opened.read_two_view_geometry(first, second).inlier_matches.astype(np.int64)
            both = [point_ids[names[i]][found[:, side]] for side, i in enumerate((first, second))]
            joined += int(((both[0] == both[1]) & (both[0] >= 0)).sum())
            total += len(found)
    return joined / total if total else 1.0


def map_warnings(
    models: Sequence[set[str]],
    names: Collection[str],
    motion: CameraMotion,
    without_pose: Sequence[str] = (),
    sparse: Path | None = None,
    pairs: Sequence[Pair] = (),
) -> list[str]:
    """Warnings about a map for the user.

    models: image names of each model, largest first. names: the mapped photographs. without_pose: photographs without a
    pose in the reference. sparse: folder of the models. pairs: verified pairs.
    """
    warnings = []
    if without_pose:
        warnings.append(
            f"photographs without a pose in the reference are not in the map ({len(without_pose)}):"
            f" {some_names(without_pose)}"
        )
    left_out = sorted(set(names) - models[0])
    if left_out:
        warnings.append(
            f"{len(left_out)} of {len(names)} photographs are not in the map: {some_names(left_out)}; they have too"
            " little in common with it: add photographs in between, or match all pairs (--pairs exhaustive)"
        )
    if len(models) > 1:
        sizes = ", ".join(str(len(images)) for images in models[1:])
        warnings.append(
            f"the map is split into {len(models)} models: the largest, and models of {sizes} images in sparse/1, ...;"
            f" {_merge_suggestion(models, pairs, sparse)}, or add photographs that show parts of both"
        )
    if motion.only_turned:
        warnings.append(
            f"in {motion.turned} of {motion.pairs} verified pairs the camera only rotated: depths are unreliable;"
            " take photographs from positions a few steps apart"
        )
    return warnings


def rig_warnings(database: Path, sparse: Path) -> list[str]:
    """A warning if the rigs of a map contradict its photographs. sparse: folder of its models."""
    share = share_in_points(database, read_model(sparse / "0"))
    if share >= FEW_IN_POINTS:
        return []
    return [
        f"only {100 * share:.0f} % of the verified matches are of points of the map: its rigs do not fit the"
        " photographs; check the relations in the rig file, or leave them out to have them estimated"
    ]


def stronger_features(extractor: str) -> str:
    """Options to suggest when an extractor (`Features.extractor`) yields too few matches; "" for learned ones."""
    return STRONGER_FEATURES if extractor in HANDCRAFTED else ""


def warn_if_few(what: str, found: int, total: int, extractor: str) -> None:
    """Suggest other features if few of the images were registered or localized. what: "map" or "localize"."""
    if found < FEW_SHARE * total and stronger_features(extractor):
        again = "reconstruct" if what == "map" else "make the map and localize again"
        LOGGER.warning("%s: only %d of %d images; %s with %s", what, found, total, again, stronger_features(extractor))
