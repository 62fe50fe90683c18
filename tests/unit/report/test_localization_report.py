"""What the report of a localization says of uncertain poses: a figure at its top, and a colour of their own in 3D."""

from __future__ import annotations

import numpy as np
import pycolmap

from featkit.core.types import Pose
from featkit.io.lists import Intrinsics
from featkit.localization.absolute_pose import PoseEstimate
from featkit.localization.stage import QueryResult
from featkit.report.localization import _localization_scene, _query_headlines
from featkit.report.scene3d import GROUP_COLOURS, scene_figure
from featkit.report.tables import LEVELS

CAMERA = Intrinsics("PINHOLE", 640, 480, (500.0, 500.0, 320.0, 240.0))


def result(name: str, inliers: int, median_px: float, uncertain: str = "") -> QueryResult:
    camera = pycolmap.Camera(model="PINHOLE", width=640, height=480, params=CAMERA.params)
    pose = Pose(np.array([1.0, 0, 0, 0]), np.zeros(3))
    estimate = PoseEstimate(pose, np.arange(100) < inliers, 1.0, median_px, 0.1, 0.1, camera, median_px, 500.0)
    return QueryResult(name, "", 200, 5, 100, CAMERA, "list", estimate, uncertain)


def test_uncertain_poses() -> None:
    results = [result("a", 90, 0.5), result("b", 20, 2.0, "are its intrinsics correct?"), result("c", 70, 1.0)]
    failed = QueryResult("d", "RANSAC found no pose", 200, 5, 100, CAMERA, "list")
    shown = _query_headlines({"localized": 3, "queries": 4}, [*results, failed])
    assert [(one.label, one.value) for one in shown] == [
        ("Localized", "3 / 4"), ("Uncertain", 1), ("Inliers", 70), ("Residual", "1.00"),
    ]  # fmt: skip
    assert [one.label for one in _query_headlines({"localized": 0, "queries": 1}, [failed])] == ["Localized"]
    model = pycolmap.synthesize_dataset(pycolmap.SyntheticDatasetOptions())
    scene = _localization_scene(model, [*results, failed], None, None)
    by_name = {camera.name: camera.group for camera in scene.cameras if camera.group != "map"}
    assert by_name == {"a": "query", "b": "uncertain query", "c": "query"}
    lines = {line["name"]: line["line"]["color"] for line in scene_figure(scene, LEVELS[0]).data if "line" in line}
    assert lines["uncertain query cameras (1)"] == GROUP_COLOURS["uncertain query"] != lines["query cameras (2)"]
