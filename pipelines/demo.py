"""The complete workflow on a rendered scene with exact ground truth: render, map, localize, compare.

`featkit demo` runs this.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featkit import __version__
from featkit.core.config import Config, Count, load_pipeline
from featkit.core.log import timed
from featkit.demo.scene import RenderedConfig, distance_to_surface, render_scene
from featkit.evaluation.metrics import score_localization
from featkit.io.artifact import write_text
from featkit.io.atomic import refuse_foreign
from featkit.localization.absolute_pose import PoseConfig
from featkit.localization.stage import LocalizeConfig
from featkit.mapping.align import transform_pose, truth_from_map
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.stage import MapConfig, read_largest
from featkit.mapping.verify import VerifyConfig
from featkit.report.maps import demo_report, localization_metrics


class DemoConfig(Config):
    """The rendered scene, and how it is mapped."""

    scene: RenderedConfig = RenderedConfig()
    """The scene to render."""
    features: str = "rootsift"
    """Features: a name in configs/, or the path of a yaml file."""
    max_keypoints: Count = 4096
    """Maximum keypoints per image: enough for these small images, and keeps the demo short."""


@dataclass(frozen=True)
class DemoResult:
    """Output of the demo, and its errors relative to the ground truth."""

    output: Path
    report: Path
    metrics: dict[str, Any]


def run(config: DemoConfig, output: Path, *, device: str = "auto", overwrite: bool = False) -> DemoResult:
    """Render, map and localize, and compare with the ground truth. Raises featkit's errors."""
    sfm, localize = load_pipeline("sfm"), load_pipeline("localize")
    refuse_foreign(output / "demo.json")
    seconds: dict[str, float] = {}

    with timed("render", seconds):
        scene = render_scene(config.scene, output)
    seed = config.scene.seed
    camera = CameraConfig(model=scene.intrinsics.model, params=scene.intrinsics.params, mode="single", refine=False)
    extract = {"features": config.features, "extractor": {"max_keypoints": config.max_keypoints}}
    geometry = MapConfig(camera=camera, verify=VerifyConfig(seed=seed), seed=seed)
    mapping = sfm.SfmConfig(extract=extract, map=geometry, seed=seed)
    with timed("map", seconds):
        mapped = sfm.run(mapping, output, truth=scene.poses_file, device=device, overwrite=overwrite)
    with timed("localize", seconds):
        querying = LocalizeConfig(camera=camera, pose=PoseConfig(seed=seed))
        localization = localize.LocalizationConfig(localize=querying, seed=seed)
        localized = localize.run(localization, output, scene.queries, device=device, overwrite=overwrite)

    model = read_largest(mapped.sparse)
    truth_from = truth_from_map(model, scene.poses)
    points = np.array([point.xyz for point in model.points3D.values()])
    distances = distance_to_surface(config.scene, points @ truth_from[:, :3].T + truth_from[:, 3])
    poses = {r.name: transform_pose(r.pose, truth_from) for r in localized.results if r.pose is not None}
    score = score_localization(poses, scene.query_poses, sorted(scene.query_poses))

    metrics: dict[str, Any] = {
        "map": mapped.metrics,
        "localization": localization_metrics(localized.results, score, localized.metrics["seconds"]),
        "surface_distance_mm_median": 1e3 * float(np.median(distances)),
        "surface_distance_mm_90": 1e3 * float(np.percentile(distances, 90)),
        "seconds": seconds,
    }
    report = demo_report(config, metrics, output / "images", mapped.output, localized.results, truth_from, distances)
    described = {"featkit_version": __version__, **metrics}
    write_text(output / "demo.json", json.dumps(described, indent=1) + "\n")
    return DemoResult(output, report, metrics)
