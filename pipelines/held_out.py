"""How well features localize: a scene's photographs are mapped but for each fourth, and those are found again.

The photographs that stay are mapped with their true poses, so that errors are of the localization alone, in the truth's
own unit. `featkit eval localization` runs this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from featkit.core.config import Seed, digest, load_pipeline
from featkit.core.errors import BadInputError
from featkit.core.registry import Method
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.evaluation.predictions import predict
from featkit.features.base import Extractor
from featkit.io.artifact import write_text
from featkit.io.atomic import read_lines
from featkit.io.lists import format_poses, read_poses
from featkit.io.shards import write_index
from featkit.mapping.scene import image_folder
from featkit.matching.config import MatchWith

ORIGIN = "a `poses.txt` of true poses (`name qw qx qy qz tx ty tz`) with its `camera.txt` beside it"


class HeldOutConfig(MatchWith):
    """Which photographs are queries, and how they are matched."""

    every: int = Field(4, ge=2, le=10**9)
    """Of so many photographs, in the order of their names, the last is a query; the others are the map."""
    seed: Seed = 0
    """Of all random draws."""


@dataclass(frozen=True)
class HeldOutScene:
    """A scene with true poses. camera: the line of its camera.txt."""

    folder: Path
    queries: tuple[str, ...]
    mapped: tuple[str, ...]
    camera: str

    @property
    def name(self) -> str:
        return self.folder.resolve().name


@dataclass(frozen=True)
class HeldOutResult:
    """A method on a scene. mapping, localization: the metrics of `reconstruct` and of `localize`. report: its page."""

    method: Method[Extractor]
    scene: str
    report: Path
    mapping: dict[str, Any]
    localization: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        mapped = {key: self.mapping[key] for key in ("registered", "points", "track_length", "reprojection_px")}
        return {"scene": self.scene, **self.method.described(), "map": mapped, **self.localization}


def read_scene(folder: Path, config: HeldOutConfig) -> HeldOutScene:
    """Part the photographs that have true poses. Raises BadInputError when the truth is missing or has few images."""
    image_folder(folder)
    for needed in ("poses.txt", "camera.txt"):
        if not (folder / needed).is_file():
            raise BadInputError(f"{folder / needed}: missing; the truth is {ORIGIN}")
    names = sorted(read_poses(folder / "poses.txt"))
    queries = names[config.every - 1 :: config.every]
    mapped = [name for name in names if name not in queries]
    if not queries or len(mapped) < 2:
        raise BadInputError(f"{folder / 'poses.txt'}: has {len(names)} images; too few to map some and localize others")
    lines = [line for _, line in read_lines(folder / "camera.txt")]
    if not lines:
        raise BadInputError(f"{folder / 'camera.txt'}: no camera in it; `MODEL width height params...`")
    return HeldOutScene(folder, tuple(queries), tuple(mapped), lines[0])


def run(
    config: HeldOutConfig,
    scene: HeldOutScene,
    method: Method[Extractor],
    output: Path,
    *,
    predictions: Path | None = None,
    overwrite: bool = False,
    engine: EngineConfig = LOCAL,
) -> HeldOutResult:
    """Map and localize by one method's features; what is done already is not done again.

    output: of all scenes and methods. predictions: folder of features that other benchmarks use too.
    Raises featkit's errors: EmptyResultError when nothing could be triangulated.
    """
    sfm, localize = load_pipeline("sfm"), load_pipeline("localize")
    poses = read_poses(scene.folder / "poses.txt")
    place = output / scene.name / f"{method.file_name}-{digest(method.fingerprint, config.fingerprint())}"
    true = format_poses({name: poses[name] for name in scene.mapped})
    write_text(place / "truth" / "camera.txt", scene.camera + "\n", owned=True)  # the folder is named by what made it
    reference = write_text(place / "truth" / "poses.txt", true, owned=True)
    listed = write_text(place / "queries.txt", _lines(scene.queries, scene.camera), owned=True)
    if predictions is not None and not overwrite:
        images = image_folder(scene.folder)
        found = predict(method, images, (*scene.mapped, *scene.queries), predictions / scene.name, engine=engine)
        write_index(place / "features.h5", [found.features], scene.mapped)
        write_index(place / "localize" / "features.h5", [found.features], scene.queries)
    rule = {"matcher": config.matcher, "matching": config.matching, "seed": config.seed}

    mapping = sfm.SfmConfig(extract=method.config, map={"verify": {"seed": config.seed}, "seed": config.seed}, **rule)
    mapped = sfm.run(
        mapping, scene.folder, place, reference=reference, device=method.device, overwrite=overwrite,
        engine=engine,
    )  # fmt: skip
    localization = localize.LocalizationConfig(
        localize={"pose": {"seed": config.seed}}, workers=method.config.workers, **rule
    )
    localized = localize.run(
        localization, place, image_folder(scene.folder), intrinsics=listed, truth=scene.folder / "poses.txt",
        device=method.device, overwrite=overwrite,
    )  # fmt: skip
    return HeldOutResult(method, scene.name, localized.report, mapped.metrics, localized.metrics)


def _lines(names: Sequence[str], camera: str) -> str:
    return "".join(f"{name} {camera}\n" for name in names)
