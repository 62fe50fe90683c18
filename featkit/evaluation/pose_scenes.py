"""Scenes with true cameras, of any kind that `featkit eval pose` takes, as one: images, calibrations, poses.

sparse/                     a COLMAP model (also as sparse/0, or the folder itself), images in images/
poses.txt, camera.txt       known poses (also in truth/); a model beside them only says which images overlap
pairs_calibrated.txt        pairs with their cameras and relative poses: MegaDepth-1500, see pose_lists.py
views.txt, pairs.txt        the same, in glue-factory's present layout
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from featkit.data.tracks import Projector
from featkit.errors import BadInputError, UsageError
from featkit.evaluation.pose_error import RelativePose, relative_pose
from featkit.evaluation.pose_lists import CALIBRATED, VIEWS, read_calibrated_pairs, read_views
from featkit.images.decode import stored_size
from featkit.mapping.cameras import CameraConfig, to_camera
from featkit.mapping.model import is_model
from featkit.mapping.reference import read_reference
from featkit.mapping.scene import image_folder
from featkit.mapping.tracks import CameraProjector
from featkit.store.pairs import read_pairs
from featkit.store.poses import Intrinsics
from featkit.types import Pair, Pose

KINDS = f"sparse/ (a COLMAP model), poses.txt with camera.txt, or {CALIBRATED}"
MEGADEPTH = "MegaDepth-1500 is packed at https://cvg-data.inf.ethz.ch/megadepth/megadepth1500.zip"
NAMED = 3  # files that a message names


@dataclass(frozen=True)
class Calibration:
    """A photograph's camera. focal_px: mean focal length. size: width, height; None where the truth does not say."""

    projector: Projector
    focal_px: float
    size: tuple[int, int] | None

    def rays(self, keypoints: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """featkit pixels -> where their rays meet the plane at depth 1, the lens taken out; NaN beyond the lens."""
        return self.projector.rays(keypoints.astype(np.float64))[:, :2]


@dataclass(frozen=True)
class PosedScene:
    """Photographs with true cameras.

    poses: world to camera, by name; empty where only pairs have poses. listed: the pairs that the scene brings along,
    with their poses. model: a COLMAP model to see overlaps by. truth: the file or folder that the poses are of.
    """

    name: str
    images: Path
    calibrations: dict[str, Calibration]
    truth: Path
    poses: dict[str, Pose] = field(default_factory=dict)
    listed: dict[Pair, RelativePose] = field(default_factory=dict)
    model: Path | None = None

    def relative(self, pair: Pair) -> RelativePose:
        """The true pose of a pair that `check_pairs` has let pass."""
        if pair in self.listed:
            return self.listed[pair]
        turned = Pair(pair.name1, pair.name0)
        if turned in self.listed:
            return self.listed[turned].inverse()
        return relative_pose(self.poses[pair.name0], self.poses[pair.name1])

    def check_pairs(self, pairs: Sequence[Pair], where: Path) -> None:
        """Raise BadInputError for pairs without a true pose, images that are not there, or of another size."""
        self._check_known(pairs, where)
        names = sorted({name for pair in pairs for name in (pair.name0, pair.name1)})
        missing = [name for name in names if not (self.images / name).is_file()]
        if missing:
            source = f"; {MEGADEPTH}" if self.listed else ""
            raise BadInputError(
                f"{self.images}: {len(missing)} of {len(names)} images of {self.truth.name} are missing:"
                f" {_first(missing)}{source}"
            )
        for name in names:
            size, expected = stored_size(self.images / name), self.calibrations[name].size
            if expected is not None and size != expected:
                raise BadInputError(
                    f"{self.images / name}: {size[0]} x {size[1]}, but {expected[0]} x {expected[1]} in {self.truth};"
                    " the camera is that of another size; use the images that the poses were made with"
                )

    def _check_known(self, pairs: Sequence[Pair], where: Path) -> None:
        unknown = [name for pair in pairs for name in (pair.name0, pair.name1) if name not in self.calibrations]
        if unknown:
            raise BadInputError(
                f"{where}: {_first(dict.fromkeys(unknown))}: no such image in {self.truth}, which has"
                f" {len(self.calibrations)}, such as {next(iter(self.calibrations))}"
            )
        for pair in pairs if not self.poses else ():
            if pair not in self.listed and Pair(pair.name1, pair.name0) not in self.listed:
                raise BadInputError(f"{where}: {pair.name0} and {pair.name1}: {self.truth} has no pose of this pair")


def read_scenes(roots: Sequence[Path]) -> list[PosedScene]:
    """Scenes with names of their own. Raises BadInputError, and UsageError when two have one name."""
    names = [root.resolve().name for root in roots]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two scenes are named {twice!r}; rename the folder of one")
    return [read_scene(root) for root in roots]


def read_scene(root: Path) -> PosedScene:
    """Read the true cameras of a scene. Raises BadInputError."""
    images = image_folder(root)
    name = root.resolve().name
    if (root / CALIBRATED).is_file():
        return _calibrated_scene(name, root, images)
    if (root / VIEWS).is_file():
        return _viewed_scene(name, root, images)
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
    by_id = {number: _calibration(camera) for number, camera in reference.cameras.items()}
    calibrations = {image: by_id[reference.camera_ids[image]] for image in sorted(reference.poses)}
    return PosedScene(name, images, calibrations, truth, reference.poses, model=model)


def _calibrated_scene(name: str, root: Path, images: Path) -> PosedScene:
    truth = root / CALIBRATED
    found = read_calibrated_pairs(truth)
    return PosedScene(
        name, _holding(root, images, found.intrinsics), _calibrated(found.intrinsics), truth, {}, found.poses
    )


def _viewed_scene(name: str, root: Path, images: Path) -> PosedScene:
    truth = root / VIEWS
    poses, intrinsics = read_views(truth)
    scene = PosedScene(name, _holding(root, images, intrinsics), _calibrated(intrinsics), truth, poses)
    if not (root / "pairs.txt").is_file():
        return scene
    pairs = read_pairs(root / "pairs.txt")
    scene.check_pairs(pairs, root / "pairs.txt")
    listed = {pair: scene.relative(pair) for pair in pairs}
    return PosedScene(name, scene.images, scene.calibrations, truth, poses, listed)


def _holding(root: Path, images: Path, names: Iterable[str]) -> Path:
    """Names of a list are relative to images/, or to the folder that the list is in."""
    first = next(iter(names))
    return root if (root / first).is_file() and not (images / first).is_file() else images


def _calibrated(intrinsics: dict[str, Intrinsics]) -> dict[str, Calibration]:
    return {name: _calibration(to_camera(one)) for name, one in intrinsics.items()}


def _calibration(camera) -> Calibration:  # type: ignore[no-untyped-def]  # pycolmap.Camera, which mapping/ alone may name
    size = (camera.width, camera.height) if camera.width else None
    return Calibration(CameraProjector(camera), float(camera.mean_focal_length()), size)


def _first(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:NAMED]) + ("..." if len(listed) > NAMED else "")
