"""The scenes of the ETH local-feature benchmark (Schönberger et al., CVPR 2017), found below a folder.

A scene is a folder with images/, or of images; other downloaded files (database.db, keypoints/) are ignored. With a
poses.txt the cameras are known: `name qw qx qy qz tx ty tz`, world to camera, in metres; camera.txt holds the one
camera of all images. Any folder of that layout is a scene, even if not in the benchmark.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featkit.core.errors import BadInputError
from featkit.core.types import Pose
from featkit.images.listing import SUFFIXES, list_images
from featkit.io.lists import Intrinsics, read_camera, read_poses

LOGGER = logging.getLogger(__name__)
ETH = "https://cvg-data.inf.ethz.ch/local-feature-evaluation-schoenberger2017"
ONE_D_SFM = "http://landmark.cs.cornell.edu/projects/1dsfm"
MIN_IMAGES = 2  # a map needs two


@dataclass(frozen=True)
class KnownScene:
    """A scene of the benchmark. images: their number. also: alternative folder names used by downloads."""

    name: str
    images: int
    source: str
    also: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        """Possible names of its folder."""
        return (self.name, *self.also)

    def is_named(self, name: str) -> bool:
        """Whether a name means this scene, ignoring case, dashes and underscores."""
        return _normalised_name(name) in {_normalised_name(folder.rpartition("/")[2]) for folder in self.folders}


SCENES = (
    KnownScene("fountain-P11", 11, f"{ETH}/Strecha-Fountain.zip", ("Fountain", "Strecha-Fountain")),
    KnownScene("Herz-Jesu-P8", 8, f"{ETH}/Strecha-Herzjesu.zip", ("Herzjesu", "Strecha-Herzjesu")),
    KnownScene("South-Building", 128, f"{ETH}/South-Building.zip"),
    KnownScene("Madrid_Metropolis", 1344, f"{ONE_D_SFM}/images.Madrid_Metropolis.tar"),
    KnownScene(
        "Gendarmenmarkt",
        1463,
        f"{ONE_D_SFM}/images.Gendarmenmarkt.tar",
        ("home/wilsonkl/projects/SfM_Init/dataset_images/Gendarmenmarkt",),  # as its archive unpacks
    ),
    KnownScene("Tower_of_London", 1576, f"{ONE_D_SFM}/images.Tower_of_London.tar"),
    KnownScene("Alamo", 2915, f"{ONE_D_SFM}/images.Alamo.tar"),
    KnownScene("Roman_Forum", 2364, f"{ONE_D_SFM}/images.Roman_Forum.tar"),
    KnownScene(
        "Cornell", 6514, "http://vision.soic.indiana.edu/disco_files/ArtsQuad_dataset.tar", ("ArtsQuad_dataset",)
    ),
)


@dataclass(frozen=True)
class EthScene:
    """A scene on disk. names: image names relative to `images`. truth: true poses of the images present."""

    name: str
    folder: Path
    images: Path
    names: tuple[str, ...]
    camera: Intrinsics | None
    truth: dict[str, Pose] | None

    @property
    def known(self) -> KnownScene | None:
        """The benchmark's entry; None for other scenes."""
        return known_scene(self.name)

    @property
    def is_whole(self) -> bool:
        """Whether it has as many images as in the benchmark, so that published numbers are comparable."""
        return self.known is not None and self.known.images == len(self.names)


@dataclass(frozen=True)
class SceneSet:
    """Scenes below a folder, and the benchmark's scenes that are missing."""

    root: Path
    scenes: tuple[EthScene, ...]
    missing: tuple[KnownScene, ...]


def known_scene(name: str) -> KnownScene | None:
    """The benchmark's scene by name, or None."""
    return next((scene for scene in SCENES if scene.is_named(name)), None)


def find_scenes(root: Path, wanted: Sequence[str] = ()) -> SceneSet:
    """Scenes below `root`: the benchmark's scenes present, or those requested by name.

    Raises BadInputError naming what is missing, its source, and what is broken.
    """
    if not root.is_dir():
        kind = "is a file, not a folder of scenes" if root.exists() else "no such folder"
        raise BadInputError(f"{root}: {kind}; {_sources_text(SCENES)}")
    missing = tuple(scene for scene in SCENES if _find_folder(root, scene) is None)
    if wanted:
        folders = [_requested_scene(root, name) for name in dict.fromkeys(wanted)]
    else:
        folders = [(scene.name, _find_folder(root, scene)) for scene in SCENES if scene not in missing]
    absent = [name for name, folder in folders if folder is None]
    if absent:
        raise BadInputError(_absent_message(root, absent))
    if not folders:
        raise BadInputError(_no_scenes_message(root))
    scenes = tuple(read_eth_scene(folder, name) for name, folder in dict(folders).items() if folder is not None)
    for scene in scenes:
        if scene.known is not None and not scene.is_whole:
            LOGGER.warning(
                "%s: %d images, the benchmark has %d: published numbers do not compare",
                scene.name, len(scene.names), scene.known.images,
            )  # fmt: skip
    return SceneSet(root, scenes, missing)


def read_eth_scene(folder: Path, name: str) -> EthScene:
    """Read one scene. Raises BadInputError for fewer than two images, or unreadable poses or camera."""
    images = folder / "images" if (folder / "images").is_dir() else folder
    names = _image_names(images, name)
    camera = folder / "camera.txt"
    poses = folder / "poses.txt"
    truth = None
    if poses.is_file():
        listed = read_poses(poses)
        truth = {image: listed[image] for image in names if image in listed}
        if not truth:
            raise BadInputError(f"{poses}: names none of the {len(names)} images of {images}; names are relative to it")
    return EthScene(name, folder, images, names, read_camera(camera) if camera.is_file() else None, truth)


def _image_names(images: Path, scene: str) -> tuple[str, ...]:
    known = known_scene(scene)
    hint = f"; the benchmark's {scene} has {known.images}: {known.source}" if known else ""
    try:
        names = list_images(images)
    except BadInputError as error:
        raise BadInputError(f"{error}{hint}") from None
    if len(names) < MIN_IMAGES:
        raise BadInputError(f"{images}: only one image, {names[0]!r}, and a map takes two{hint}")
    return tuple(names)


def _normalised_name(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _find_folder(root: Path, scene: KnownScene) -> Path | None:
    """Folder of a benchmark scene, or None."""
    exact = next((root / name for name in scene.folders if (root / name).is_dir()), None)
    if exact is not None:
        return exact
    return next((path for path in sorted(root.iterdir()) if path.is_dir() and scene.is_named(path.name)), None)


def _requested_scene(root: Path, name: str) -> tuple[str, Path | None]:
    """Name and folder of a scene; a folder of exactly that name is preferred."""
    known = known_scene(name)
    label = known.name if known is not None else Path(name).name
    if (root / name).is_dir() and Path(name).name == name != "..":
        return label, root / name
    return label, None if known is None else _find_folder(root, known)


def _absent_message(root: Path, names: Sequence[str]) -> str:
    known = [scene for scene in map(known_scene, names) if scene is not None]
    parts = [f"{root}: no scene {', '.join(map(repr, names))}"]
    if known:
        parts.append(_sources_text(known))
    if len(known) < len(names):
        parts.append(f"there are: {', '.join(_subfolders(root)) or 'none'}")
    return "; ".join(parts)


def _no_scenes_message(root: Path) -> str:
    if (root / "images").is_dir() or any(path.suffix.lower() in SUFFIXES for path in root.iterdir()):
        return f"{root}: is one scene; name the folder it lies in, and --scenes {root.resolve().name}"
    deeper = next(
        (root / name for name in _subfolders(root) if any(_find_folder(root / name, scene) for scene in SCENES)), None
    )
    if deeper is not None:
        return f"{root}: no scene of the benchmark in it; there are some in {deeper}"
    others = _subfolders(root)
    other = f"other folders are asked for by name, as --scenes {others[0]}; " if others else ""
    return f"{root}: no scene of the benchmark in it; {other}{_sources_text(SCENES)}"


def _subfolders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _sources_text(scenes: Sequence[KnownScene]) -> str:
    return "get " + ", ".join(f"{scene.name} ({scene.images} images) from {scene.source}" for scene in scenes)
