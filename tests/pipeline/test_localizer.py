"""featkit.Localizer compared with `featkit localize` on the same photographs, and failed queries."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

import featkit
from featkit.core.config import load_pipeline
from featkit.core.errors import BadInputError, UsageError
from featkit.core.types import Features, Matches
from featkit.evaluation.metrics import pose_error
from featkit.localization.localizer import DistinctPoints, LocalizerConfig, WarmImage
from featkit.localization.stage import query_summary
from featkit.mapping.align import transform_pose, truth_from_map
from featkit.mapping.model import read_model


@pytest.fixture(scope="module")
def localizer(mapped_scene: Any) -> Iterator[featkit.Localizer]:
    with featkit.Localizer(mapped_scene.folder, device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def queries(mapped_scene: Any) -> list[Path]:
    return sorted((mapped_scene.folder / "queries").iterdir())


@pytest.fixture(scope="module")
def by_command(
    mapped_scene: Any, queries: list[Path], featkit_command: Callable[..., Any], tmp_path_factory: Any
) -> dict[str, Any]:
    """poses.json of `featkit localize`, by name."""
    out = tmp_path_factory.mktemp("localized")
    ran = featkit_command("localize", mapped_scene.folder, "--queries", queries[0].parent, "-o", out, "--device", "cpu")
    assert ran.code == 0, ran.err
    return {entry["name"]: entry for entry in json.loads((out / "poses.json").read_text())["results"]}


def test_results_equal_those_of_featkit_localize(
    localizer: featkit.Localizer, queries: list[Path], by_command: dict[str, Any]
) -> None:
    """All numbers in poses.json are equal bit for bit: pose, inliers, matches, uncertainty, camera."""
    assert len(queries) == len(by_command) == 2
    for path in queries:
        assert json.loads(json.dumps(query_summary(localizer.localize(path)))) == by_command[path.name]
    again = localizer.localize(str(queries[0]), name="other")
    assert query_summary(again) == {**by_command[queries[0].name], "name": "other"}


def test_poses_are_near_the_truth(localizer: featkit.Localizer, queries: list[Path], mapped_scene: Any) -> None:
    similarity = truth_from_map(read_model(mapped_scene.output / "sparse" / "0"), mapped_scene.rendered.poses)
    for path in queries:
        pose = localizer.localize(path).pose
        assert pose is not None
        centre, rotation = pose_error(transform_pose(pose, similarity), mapped_scene.rendered.query_poses[path.name])
        assert centre < 0.02
        assert rotation < 0.3


def test_pixels_instead_of_a_file(localizer: featkit.Localizer, queries: list[Path]) -> None:
    """Decoded grey pixels give identical results. RGB pixels are converted differently: equal up to noise."""
    from_file = localizer.localize(queries[0])
    assert from_file.pose is not None
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    grey = cv2.imread(str(queries[0]), flags)
    result = localizer.localize(grey, name=queries[0].name)
    assert result.intrinsics_source == from_file.intrinsics_source == "map"
    assert query_summary(result) == query_summary(from_file)
    rgb = cv2.cvtColor(cv2.imread(str(queries[0])), cv2.COLOR_BGR2RGB)
    coloured = localizer.localize(rgb)
    assert coloured.name == "image"
    assert coloured.pose is not None
    assert np.allclose(coloured.pose.qvec, from_file.pose.qvec, atol=1e-2)


def test_localizing_in_threads(localizer: featkit.Localizer, queries: list[Path]) -> None:
    alone = [query_summary(localizer.localize(path)) for path in queries]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda path: query_summary(localizer.localize(path)), queries * 4))
    assert together == alone * 4


def test_a_small_cache_changes_nothing(localizer: featkit.Localizer, queries: list[Path], mapped_scene: Any) -> None:
    config = LocalizerConfig(cache_mb=0)
    with featkit.Localizer(str(mapped_scene.output), config, device="cpu") as small:
        assert query_summary(small.localize(queries[1])) == query_summary(localizer.localize(queries[1]))


def test_intrinsics(localizer: featkit.Localizer, queries: list[Path], mapped_scene: Any) -> None:
    known = mapped_scene.rendered.intrinsics
    listed = localizer.localize(queries[0], known)
    as_text = " ".join(map(str, (known.model, known.width, known.height, *known.params)))
    assert query_summary(localizer.localize(queries[0], as_text)) == query_summary(listed)
    assert listed.intrinsics_source == "list"
    for image in (queries[0], np.zeros((known.height, known.width), np.uint8)):
        with pytest.raises(BadInputError, match="its intrinsics are for 9 x 9"):
            localizer.localize(image, "PINHOLE 9 9 5 5 4 4")
    with pytest.raises(BadInputError, match="intrinsics: no camera model 'PINHOL'"):
        localizer.localize(queries[0], "PINHOL 9 9 5 5 4 4")


def test_pixels_of_another_size_have_a_guessed_camera(localizer: featkit.Localizer, queries: list[Path]) -> None:
    smaller = cv2.resize(cv2.imread(str(queries[0]), cv2.IMREAD_GRAYSCALE), (300, 225), interpolation=cv2.INTER_AREA)
    result = localizer.localize(smaller)
    assert result.intrinsics_source == "guess"
    assert result.intrinsics is not None
    assert (result.intrinsics.model, result.intrinsics.width, result.intrinsics.height) == ("SIMPLE_RADIAL", 300, 225)


def test_failed_queries_have_a_reason(localizer: featkit.Localizer, tmp_path: Path) -> None:
    nothing = localizer.localize(np.full((300, 400), 128, np.uint8))
    assert (nothing.pose, nothing.keypoints, nothing.reason) == (None, 0, "no keypoint found in the image")
    noise = np.random.default_rng(0).integers(0, 255, (300, 400), np.uint8)
    elsewhere = localizer.localize(noise)
    assert elsewhere.pose is None
    assert "needed" in elsewhere.reason or "RANSAC" in elsewhere.reason
    (tmp_path / "no.jpg").write_bytes(b"\xff\xd8 no image")
    for image, error, words in (
        (tmp_path / "none.jpg", BadInputError, "no such image"),
        (tmp_path / "no.jpg", BadInputError, "not an image"),
        (np.zeros((5, 5)), BadInputError, "uint8"),
        (np.zeros((5, 5, 4), np.uint8), BadInputError, "uint8"),
        (3, UsageError, "a path or a numpy array"),
    ):
        with pytest.raises(error, match=words):
            localizer.localize(image)


def test_defaults_equal_the_pipelines() -> None:
    """The fields are defined in two places, which must agree."""
    recipe = load_pipeline("localize").LocalizationConfig().result_fields()
    assert LocalizerConfig().result_fields() == {**recipe, "points_only": False}


def test_points_only_gives_the_same_poses(localizer: featkit.Localizer, queries: list[Path], mapped_scene: Any) -> None:
    """One descriptor per point may miss some matches; the pose stays within its noise."""
    with featkit.Localizer(mapped_scene.folder, LocalizerConfig(points_only=True), device="cpu") as quick:
        for path in queries:
            found, expected = quick.localize(path), localizer.localize(path)
            assert found.estimate is not None
            assert expected.estimate is not None
            assert found.estimate.inlier.sum() >= 0.85 * expected.estimate.inlier.sum()
            assert found.matches_3d >= 0.85 * expected.matches_3d
            centre, rotation = pose_error(found.estimate.pose, expected.estimate.pose)
            assert centre < 6 * expected.estimate.centre_std
            assert rotation < 6 * expected.estimate.rotation_std_deg


def test_points_only_refuses_features_in_several_rotations(mapped_scene: Any, tmp_path: Path) -> None:
    """Its points come from several images, each of which would have to be turned on its own."""
    shutil.copytree(mapped_scene.output, tmp_path / "map")
    with h5py.File(tmp_path / "map" / "features.h5", "r+") as file:
        for name in [name for name in file if "descriptors" in file[name]]:
            file[name]["descriptors"].attrs["turns"] = 4
    with pytest.raises(UsageError, match=r"points_only.*several rotations"):
        featkit.Localizer(tmp_path / "map", LocalizerConfig(points_only=True), device="cpu")


def test_points_only_uses_each_point_once() -> None:
    """Three images: the first sees points 7 and 5, the second 5 and 9, the third no new ones."""

    def image(index: list[int], point_ids: list[int], look: float) -> WarmImage:
        rows = np.array([[point, look] for point in point_ids], np.float32)
        features = Features(rows.copy(), rows, rows[:, 0].copy(), (40, 30))
        return WarmImage(features, np.array(index), np.array(point_ids))

    points = DistinctPoints.of([image([3, 4], [7, 5], 0.1), image([0, 8], [5, 9], 0.2), image([1], [9], 0.3)])
    np.testing.assert_allclose(points.features.descriptors, [[7, 0.1], [5, 0.1], [9, 0.2]])
    found = Matches(np.array([2, -1, 0, 1]), np.ones(4, np.float32))
    assert [one.matches0.tolist() for one in points.by_image(found, 3)] == [[-1, -1, 3, 4], [8, -1, -1, -1], [-1] * 4]


def test_importing_featkit_stays_light() -> None:
    code = "import sys, featkit; assert 'Localizer' in featkit.__all__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"numpy", "torch", "pycolmap", "cv2", "pydantic"} & set(done.stdout.split())
    with pytest.raises(AttributeError, match="no attribute 'Localiser'"):
        featkit.Localiser  # noqa: B018
