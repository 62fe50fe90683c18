"""The pairs of a scene to evaluate: drawn evenly from easy to hard, the same for every method.

MegaDepth-1500 (LoFTR, Sun et al., CVPR 2021) has 1,500 pairs of two scenes, the same number from each range of overlap,
where overlap is computed from depth maps. Here the overlap of two images is the number of shared map points divided by
the smaller number of map points of the two images. Without a map, the angle between the viewing directions is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from pydantic import field_validator

from featkit.core.config import Config, Count, Degrees, Share
from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.core.types import Pair, Pose
from featkit.data.pair_choice import shared_counts
from featkit.data.tracks import Projector, SceneTracks
from featkit.evaluation.metrics import RelativePose, direction_angle_deg, relative_pose
from featkit.geometry.poses import quaternion, rotation_matrix
from featkit.images.read import stored_size
from featkit.io.atomic import read_lines
from featkit.io.lists import Intrinsics, parse_intrinsics, read_pairs, write_pairs
from featkit.mapping.cameras import CameraConfig, to_camera
from featkit.mapping.covisibility import CameraProjector, read_tracks
from featkit.mapping.model import is_model
from featkit.mapping.reference import read_reference
from featkit.mapping.scene import image_folder


class PosePairsConfig(Config):
    """How pairs are drawn. Ranges include their lower edge; the last range includes both."""

    max_pairs: Count = 300
    """Maximum number of pairs per scene (in MegaDepth-1500: per scene and range of overlap)."""
    overlap_edges: tuple[Share, ...] = (0.1, 0.3, 0.5, 0.7)
    """Edges of the ranges of overlap, in [0, 1], from which equal numbers of pairs are drawn; LoFTR's for
    MegaDepth-1500."""
    min_shared: Count = 30
    """Minimum number of points visible in both images; with fewer, the overlap is unreliable. featkit's choice."""
    min_angle_deg: Degrees = 1.0
    """Minimum of the median triangulation angle of the shared points, degrees; below it the true direction of the
    translation is dominated by errors of the map. featkit's choice."""
    view_edges_deg: tuple[Degrees, ...] = (0.0, 20.0, 40.0, 60.0)
    """Without a map: edges of the ranges of the angle between the viewing directions, degrees. featkit's choice."""

    @field_validator("overlap_edges", "view_edges_deg")
    @classmethod
    def _check_ascending(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        if len(edges) < 2 or not all(low < high for low, high in pairwise(edges)):
            raise ValueError("two or more edges, each above the one before")
        return edges


@dataclass(frozen=True)
class ScenePairs:
    """The pairs of a scene to evaluate. rule: how they were chosen, in words. found, drawn: pairs in each range."""

    pairs: tuple[Pair, ...]
    rule: str
    found: dict[str, int]
    drawn: dict[str, int]


@dataclass(frozen=True)
class _PairCandidates:
    """Pairs of `names` (as indices), and the values by which they are sorted into ranges."""

    names: Sequence[str]
    pairs: Int[np.ndarray, "n 2"]
    values: Float[np.ndarray, " n"]


def choose_pairs(scene: PosedScene, config: PosePairsConfig, seed: int, pairs_file: Path | None = None) -> ScenePairs:
    """The pairs to evaluate, sorted by name: those of a file, those listed with the scene, or drawn ones.

    Raises BadInputError for pairs that cannot be evaluated, EmptyResultError if no pair is within the limits.
    """
    if pairs_file is not None:
        listed = read_pairs(pairs_file)
        chosen = ScenePairs(tuple(listed), f"the pairs of {pairs_file}", {}, {})
    elif scene.listed:
        chosen = ScenePairs(tuple(scene.listed), f"all pairs of {scene.truth.name}", {}, {})
    else:
        chosen = _draw_pairs(scene, config, np.random.default_rng(seed))
    scene.check_pairs(chosen.pairs, pairs_file or scene.truth)
    return chosen


def write_chosen_pairs(chosen: ScenePairs, config: PosePairsConfig, seed: int, folder: Path) -> Path:
    """Write the pairs to the folder of the predictions. Raises NotWritableError."""
    extra = {"rule": chosen.rule, "seed": seed, "found": chosen.found, "drawn": chosen.drawn}
    return write_pairs(folder / "pose-pairs.txt", chosen.pairs, config, extra)


def _draw_pairs(scene: PosedScene, config: PosePairsConfig, generator: np.random.Generator) -> ScenePairs:
    if scene.model is not None:
        candidates, edges, unit = pairs_by_overlap(read_tracks(scene.model), scene, config), config.overlap_edges, ""
        rule = f"overlap {edges[0]:g} to {edges[-1]:g}, {config.min_shared} shared points or more"
    else:
        candidates, edges, unit = by_view(scene), config.view_edges_deg, " deg"
        rule = f"viewing directions {edges[0]:g} to {edges[-1]:g} deg apart"
    groups = np.searchsorted(edges, candidates.values, side="right") - 1
    groups[candidates.values == edges[-1]] = len(edges) - 2  # the last range includes its upper edge
    in_range = np.flatnonzero((groups >= 0) & (groups < len(edges) - 1))
    if not len(in_range):
        raise EmptyResultError(
            f"{scene.truth}: no pair of its {len(scene.poses)} images has {rule}; widen the ranges by"
            f" --set pairs.{'overlap_edges' if scene.model else 'view_edges_deg'}=[...], or give --pairs"
        )
    drawn = in_range[evenly(groups[in_range], config.max_pairs, generator)]
    labels = [f"{low:g} to {high:g}{unit}" for low, high in pairwise(edges)]
    counts = [
        {label: int(np.sum(groups[rows] == number)) for number, label in enumerate(labels)}
        for rows in (in_range, drawn)
    ]
    pairs = sorted(
        Pair(candidates.names[first], candidates.names[second]) for first, second in candidates.pairs[drawn].tolist()
    )
    return ScenePairs(tuple(pairs), rule, *counts)


def evenly(groups: Int[np.ndarray, " n"], count: int, generator: np.random.Generator) -> Int[np.ndarray, " m"]:
    """Rows drawn from each group in turn until `count` are taken or none is left; ascending."""
    queues = [generator.permutation(np.flatnonzero(groups == group)).tolist() for group in np.unique(groups)]
    rows: list[int] = []
    while any(queues) and len(rows) < count:
        for queue in queues:
            if queue and len(rows) < count:
                rows.append(queue.pop())
    return np.sort(np.array(rows, dtype=np.int64))


def pairs_by_overlap(tracks: SceneTracks, scene: PosedScene, config: PosePairsConfig) -> _PairCandidates:
    """All pairs that share enough points under a large enough angle, with their overlaps."""
    images = [number for number, name in enumerate(tracks.image_names) if name in scene.poses]
    seen = [np.unique(tracks.observed_points[tracks.observed_images == number]) for number in images]
    counts = shared_counts(seen, len(tracks.points))
    centres = [-tracks.rotations[number].T @ tracks.translations[number] for number in images]
    pairs, values = [], []
    for first, second in np.argwhere(np.triu(counts >= config.min_shared, 1)).tolist():
        shared = tracks.points[np.intersect1d(seen[first], seen[second], assume_unique=True)]
        rays = [shared - centres[number] for number in (first, second)]
        cross, dot = np.linalg.norm(np.cross(*rays), axis=1), np.sum(rays[0] * rays[1], axis=1)
        if np.degrees(np.median(np.arctan2(cross, dot))) >= config.min_angle_deg:
            pairs.append((first, second))
            values.append(counts[first, second] / min(len(seen[first]), len(seen[second])))
    names = [tracks.image_names[number] for number in images]
    return _PairCandidates(names, np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(values))


def by_view(scene: PosedScene) -> _PairCandidates:
    """All pairs of cameras at different positions, with the angle between their viewing directions in degrees."""
    names = sorted(scene.poses)
    forward = [rotation_matrix(scene.poses[name].qvec)[2] for name in names]
    pairs = [
        (first, second)
        for first, second in combinations(range(len(names)), 2)
        if relative_pose(scene.poses[names[first]], scene.poses[names[second]]).translation.any()
    ]
    values = np.array([direction_angle_deg(forward[first], forward[second]) for first, second in pairs])
    return _PairCandidates(names, np.array(pairs, dtype=np.int64).reshape(-1, 2), values)


# ----------------------------------------------------------------------------------------------------------------------
# Formats in which posed pairs such as MegaDepth-1500 are distributed: text files next to a folder of images.
#
# pairs_calibrated.txt (glue-factory, and SuperGlue's lists): one pair per line, `name0 name1 K0 K1 R t` or
# `... K0 K1 T`, matrices in row-major order (9, 9 and 9 + 3 or 16 numbers); SuperGlue's lines have two rotations
# (0 to 3) after the names.
# views.txt (glue-factory since 2025): one image per line, `name R t MODEL width height params...`, world to camera; its
# pairs are in pairs.txt. Intrinsics follow COLMAP's pixel convention in both.


CALIBRATED, VIEWS = "pairs_calibrated.txt", "views.txt"
LENGTHS = {30: 0, 34: 0, 36: 2}  # numbers per line -> numbers before the matrices
SAME_CAMERA = 1e-4  # relative tolerance between the intrinsics of an image in different lines
ROTATION_TOLERANCE = 1e-3  # of R^T R from the identity: the files have few digits
LINE = "expected `name0 name1 K0 K1 R t`, 9 + 9 + 9 + 3 numbers (or 9 + 9 + 16) after the names"


@dataclass(frozen=True)
class CalibratedPairs:
    """Pairs in the order of the file with their relative poses, and the intrinsics of all their images."""

    poses: dict[Pair, RelativePose]
    intrinsics: dict[str, Intrinsics]


def read_calibrated_pairs(path: Path) -> CalibratedPairs:
    """Read pairs_calibrated.txt; duplicate pairs are dropped. It has no image sizes: they are set to 0.

    Raises BadInputError.
    """
    poses: dict[Pair, RelativePose] = {}
    intrinsics: dict[str, Intrinsics] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        fields = line.split()
        skipped = LENGTHS.get(len(fields) - 2)
        if skipped is None:
            raise BadInputError(f"{where}: {LINE}; found {max(len(fields) - 2, 0)}")
        values = _parse_numbers(fields[2 + skipped :], where)
        pair = Pair(fields[0], fields[1])
        if pair.name0 == pair.name1:
            raise BadInputError(f"{where}: {pair.name0!r} is paired with itself; remove the line")
        for name, matrix in ((pair.name0, values[:9]), (pair.name1, values[9:18])):
            camera = _pinhole_intrinsics(matrix.reshape(3, 3), where)
            if not np.allclose(intrinsics.setdefault(name, camera).params, camera.params, rtol=SAME_CAMERA):
                raise BadInputError(
                    f"{where}: {name!r} has different intrinsics in an earlier line; an image has one camera"
                )
        pose_values = values[18:]
        pose = (
            pose_values.reshape(4, 4)[:3]
            if len(pose_values) == 16
            else np.column_stack([pose_values[:9].reshape(3, 3), pose_values[9:]])
        )
        poses.setdefault(pair, RelativePose(_nearest_rotation(pose[:, :3], where), pose[:, 3]))
    if not poses:
        raise BadInputError(f"{path}: no pairs in it")
    return CalibratedPairs(poses, intrinsics)


def read_views(path: Path) -> tuple[dict[str, Pose], dict[str, Intrinsics]]:
    """World-to-camera poses and intrinsics of views.txt, by image name. Raises BadInputError."""
    poses: dict[str, Pose] = {}
    intrinsics: dict[str, Intrinsics] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        name, *fields = line.split()
        if len(fields) < 13 or name in poses:
            what = "listed before" if name in poses else "expected `name R t MODEL width height params...`"
            raise BadInputError(f"{where}: {name!r}: {what}")
        values = _parse_numbers(fields[:12], where)
        poses[name] = Pose(quaternion(_nearest_rotation(values[:9].reshape(3, 3), where)), values[9:])
        intrinsics[name] = parse_intrinsics(" ".join(fields[12:]), where)
    if not poses:
        raise BadInputError(f"{path}: no images in it")
    return poses, intrinsics


def _parse_numbers(fields: list[str], where: str) -> Float[np.ndarray, " n"]:
    try:
        values = np.array([float(field) for field in fields])
    except ValueError:
        raise BadInputError(f"{where}: the fields after the names are not all numbers") from None
    if not np.isfinite(values).all():
        raise BadInputError(f"{where}: a number is not finite")
    return values


def _pinhole_intrinsics(matrix: Float[np.ndarray, "3 3"], where: str) -> Intrinsics:
    (fx, skew, cx), (below, fy, cy), last = matrix.tolist()
    if fx <= 0 or fy <= 0 or skew or below or last != [0, 0, 1]:
        raise BadInputError(f"{where}: K is not that of a pinhole camera without skew")
    return Intrinsics("PINHOLE", 0, 0, (fx, fy, cx, cy))


def _nearest_rotation(matrix: Float[np.ndarray, "3 3"], where: str) -> Float[np.ndarray, "3 3"]:
    if not (np.abs(matrix.T @ matrix - np.eye(3)).max() <= ROTATION_TOLERANCE and np.linalg.det(matrix) > 0):
        raise BadInputError(f"{where}: R is not a rotation (row by row)")
    u, _, vt = np.linalg.svd(matrix)  # nearest rotation: the rounded values are not exactly one
    return u @ vt


# ----------------------------------------------------------------------------------------------------------------------
# Scenes with true cameras, of every kind that `featkit eval pose` accepts: images, calibrations, poses.
#
# sparse/                     a COLMAP model (also as sparse/0, or the folder itself), images in images/
# poses.txt, camera.txt       known poses (also in truth/); a model next to them is only used for the overlap of images
# pairs_calibrated.txt        pairs with their cameras and relative poses: MegaDepth-1500, see above
# views.txt, pairs.txt        the same, in glue-factory's current layout


KINDS = f"sparse/ (a COLMAP model), poses.txt with camera.txt, or {CALIBRATED}"
MEGADEPTH = "MegaDepth-1500 is packed at https://cvg-data.inf.ethz.ch/megadepth/megadepth1500.zip"
NAMED = 3  # files listed in one message


@dataclass(frozen=True)
class Calibration:
    """Camera of an image. focal_px: mean focal length. size: (width, height), or None if the ground truth lacks it."""

    projector: Projector
    focal_px: float
    size: tuple[int, int] | None

    def rays(self, keypoints: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Keypoints in featkit pixels -> undistorted points at depth 1; NaN where distortion cannot be inverted."""
        return self.projector.rays(keypoints.astype(np.float64))[:, :2]


@dataclass(frozen=True)
class PosedScene:
    """Images with true cameras.

    poses: world to camera, by name; empty if only pairs have poses. listed: the pairs that come with the scene, with
    their poses. model: COLMAP model from which overlaps are computed. truth: file or folder of the poses.
    """

    name: str
    images: Path
    calibrations: dict[str, Calibration]
    truth: Path
    poses: dict[str, Pose] = field(default_factory=dict)
    listed: dict[Pair, RelativePose] = field(default_factory=dict)
    model: Path | None = None

    def relative(self, pair: Pair) -> RelativePose:
        """True relative pose of a pair that passed `check_pairs`."""
        if pair in self.listed:
            return self.listed[pair]
        reversed_pair = Pair(pair.name1, pair.name0)
        if reversed_pair in self.listed:
            return self.listed[reversed_pair].inverse()
        return relative_pose(self.poses[pair.name0], self.poses[pair.name1])

    def check_pairs(self, pairs: Sequence[Pair], where: Path) -> None:
        """Raise BadInputError for pairs without a true pose, and for missing images or images of a different size."""
        self._check_known(pairs, where)
        names = sorted({name for pair in pairs for name in (pair.name0, pair.name1)})
        missing = [name for name in names if not (self.images / name).is_file()]
        if missing:
            source = f"; {MEGADEPTH}" if self.listed else ""
            raise BadInputError(
                f"{self.images}: {len(missing)} of {len(names)} images of {self.truth.name} are missing:"
                f" {_first_names(missing)}{source}"
            )
        for name in names:
            size, expected = stored_size(self.images / name), self.calibrations[name].size
            if expected is not None and size != expected:
                raise BadInputError(
                    f"{self.images / name}: {size[0]} x {size[1]}, but {expected[0]} x {expected[1]} in {self.truth};"
                    " the cameras are for that size; use the images that the poses were computed from"
                )

    def _check_known(self, pairs: Sequence[Pair], where: Path) -> None:
        unknown = [name for pair in pairs for name in (pair.name0, pair.name1) if name not in self.calibrations]
        if unknown:
            raise BadInputError(
                f"{where}: {_first_names(dict.fromkeys(unknown))}: no such image in {self.truth}, which has"
                f" {len(self.calibrations)}, such as {next(iter(self.calibrations))}"
            )
        for pair in pairs if not self.poses else ():
            if pair not in self.listed and Pair(pair.name1, pair.name0) not in self.listed:
                raise BadInputError(f"{where}: {pair.name0} and {pair.name1}: {self.truth} has no pose of this pair")


def read_scenes(roots: Sequence[Path]) -> list[PosedScene]:
    """Read scenes, which need distinct names. Raises BadInputError, and UsageError for duplicate names."""
    names = [root.resolve().name for root in roots]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise UsageError(f"two scenes are named {duplicate!r}; rename one of the folders")
    return [read_scene(root) for root in roots]


def read_scene(root: Path) -> PosedScene:
    """Read the true cameras of a scene. Raises BadInputError."""
    images = image_folder(root)
    name = root.resolve().name
    if (root / CALIBRATED).is_file():
        return _calibrated_scene(name, root, images)
    if (root / VIEWS).is_file():
        return _views_scene(name, root, images)
    folders = (root / "sparse", root / "sparse" / "0", root)
    model = next((folder for folder in folders if is_model(folder)), None)
    for poses in (root / "poses.txt", root / "truth" / "poses.txt"):
        if poses.is_file():
            if not poses.with_name("camera.txt").is_file():
                raise BadInputError(f"{poses.with_name('camera.txt')}: no such file; the poses need their camera")
            return _referenced_scene(name, images, poses, model)
    if model is None:
        raise BadInputError(f"{root}: no true cameras; a scene has {KINDS}")
    return _referenced_scene(name, images, model, model)


def _referenced_scene(name: str, images: Path, truth: Path, model: Path | None) -> PosedScene:
    reference = read_reference(truth, CameraConfig())
    assert reference.cameras is not None
    assert reference.camera_ids is not None
    by_id = {number: _to_calibration(camera) for number, camera in reference.cameras.items()}
    calibrations = {image: by_id[reference.camera_ids[image]] for image in sorted(reference.poses)}
    return PosedScene(name, images, calibrations, truth, reference.poses, model=model)


def _calibrated_scene(name: str, root: Path, images: Path) -> PosedScene:
    truth = root / CALIBRATED
    calibrated = read_calibrated_pairs(truth)
    return PosedScene(
        name,
        _folder_of_names(root, images, calibrated.intrinsics),
        _to_calibrations(calibrated.intrinsics),
        truth,
        {},
        calibrated.poses,
    )


def _views_scene(name: str, root: Path, images: Path) -> PosedScene:
    truth = root / VIEWS
    poses, intrinsics = read_views(truth)
    scene = PosedScene(name, _folder_of_names(root, images, intrinsics), _to_calibrations(intrinsics), truth, poses)
    if not (root / "pairs.txt").is_file():
        return scene
    pairs = read_pairs(root / "pairs.txt")
    scene.check_pairs(pairs, root / "pairs.txt")
    listed = {pair: scene.relative(pair) for pair in pairs}
    return PosedScene(name, scene.images, scene.calibrations, truth, poses, listed)


def _folder_of_names(root: Path, images: Path, names: Iterable[str]) -> Path:
    """The folder that the listed names are relative to: images/, or that of the list."""
    first = next(iter(names))
    return root if (root / first).is_file() and not (images / first).is_file() else images


def _to_calibrations(intrinsics: dict[str, Intrinsics]) -> dict[str, Calibration]:
    return {name: _to_calibration(to_camera(camera)) for name, camera in intrinsics.items()}


def _to_calibration(camera) -> Calibration:  # type: ignore[no-untyped-def]  # pycolmap.Camera, which mapping/ alone may name
    size = (camera.width, camera.height) if camera.width else None
    return Calibration(CameraProjector(camera), float(camera.mean_focal_length()), size)


def _first_names(names: Iterable[str]) -> str:
    all_names = list(names)
    return ", ".join(all_names[:NAMED]) + ("..." if len(all_names) > NAMED else "")
