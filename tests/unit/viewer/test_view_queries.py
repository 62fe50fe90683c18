"""Queries of `featkit localize` on the page, against the synthetic scene that they were made of."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from synthetic_view import QUERIES, SIZE, TURNED, MadeView, localize_view, make_view, query_matches

from featkit.core.errors import BadInputError
from featkit.core.types import Pair
from featkit.localization.stage import read_results
from featkit.viewer.scene import ViewedScene
from featkit.viewer.server import write_folder

ANOTHER = "3 queries were localized in another map than this one and are not shown; localize again."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeView:
    """Never written to."""
    found = make_view(tmp_path_factory.mktemp("view") / "scene")
    localize_view(found)
    return found


@pytest.fixture(scope="module")
def scene(made: MadeView) -> ViewedScene:
    return ViewedScene(made.model)


@pytest.fixture
def copy(made: MadeView, tmp_path: Path) -> MadeView:
    return MadeView(Path(shutil.copytree(made.scene, tmp_path / "scene")))


def told(scene: ViewedScene, path: str) -> Any:
    answer = scene.answer(path)
    assert answer is not None
    return json.loads(answer.data)


def data(scene: ViewedScene, path: str) -> bytes:
    answer = scene.answer(path)
    assert answer is not None
    return answer.data


def by_name(made: MadeView) -> dict[str, pycolmap.Image]:
    model = pycolmap.Reconstruction(str(made.model))
    return {image.name: image for image in model.images.values()}


def upright(xy: np.ndarray) -> np.ndarray:
    """COLMAP pixels of the first query's file -> pixels as it is looked at: turned clockwise."""
    return np.column_stack([SIZE[1] - 1 - (xy[:, 1] - 0.5), xy[:, 0] - 0.5])


def test_states_and_cameras(scene: ViewedScene, made: MadeView) -> None:
    about = told(scene, "scene.json")
    good, lost, wrong = about["queries"]
    assert about["localize"] == str(made.scene / "localize")
    assert about["missing"] == []
    assert [one["name"] for one in (good, lost, wrong)] == [*QUERIES]
    assert [one["state"] for one in (good, lost, wrong)] == ["localized", "not localized", "uncertain"]
    assert "centre" not in lost
    assert "are needed" in lost["why"] or "no pose" in lost["why"]
    assert "are its intrinsics correct?" in wrong["why"]
    pose = by_name(made)[made.names()[0]].cam_from_world()
    np.testing.assert_allclose(np.array(good["rotation"]).reshape(3, 3), pose.rotation.matrix(), atol=1e-5)
    centre = -pose.rotation.matrix().T @ pose.translation
    np.testing.assert_allclose(np.array(good["centre"]) + about["middle"], centre, atol=1e-4)
    assert (good["width"], good["height"], good["focal"], good["photo"]) == (*SIZE, 800.0, True)


def test_matches_and_inliers(scene: ViewedScene, made: MadeView) -> None:
    images, (first, *partners) = by_name(made), made.names()
    expected: dict[tuple[int, int], bool] = {}
    for partner in partners:
        found = query_matches(images, first, Pair(QUERIES[0], partner))
        for row in np.flatnonzero(found >= 0):
            point = images[partner].points2D[found[row]].point3D_id
            expected[int(row), point] = images[first].points2D[row].point3D_id == point
    about, answer = told(scene, "query/0.json"), data(scene, "query/0.bin")
    count = len(expected)
    assert len(answer) == 13 * count
    assert about["inliers"] == sum(expected.values()) < about["matches_3d"] == count
    assert (about["size"], about["camera"], about["intrinsics_source"]) == ([SIZE[1], SIZE[0]], "SIMPLE_RADIAL", "list")
    xy = np.frombuffer(answer, "<f4", 2 * count).reshape(-1, 2)
    points = np.frombuffer(answer, "<i4", count, offset=8 * count)
    inlier = np.frombuffer(answer, np.uint8, count, offset=12 * count)
    ids = sorted(pycolmap.Reconstruction(str(made.model)).points3D)
    keypoints = upright(np.array([point.xy for point in images[first].points2D]))
    for place, ((row, point), is_right) in enumerate(sorted(expected.items())):
        assert xy[place] == pytest.approx(keypoints[row], abs=1e-3)
        assert (ids[points[place]], inlier[place]) == (point, is_right)
    lost = told(scene, "query/1.json")
    answer = data(scene, "query/1.bin")
    assert not any(answer[12 * lost["matches_3d"] :]), "without a pose there is no inlier"


def test_retrieved_photographs(scene: ViewedScene, made: MadeView) -> None:
    images, (first, *partners) = by_name(made), made.names()
    rows = told(scene, "query/0.json")["pairs"]
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)
    assert {row[0] for row in rows} == {*range(1, 5)}
    for index, inliers, matches in rows:
        partner = partners[index - 1]
        found = query_matches(images, first, Pair(QUERIES[0], partner))
        keypoints = np.flatnonzero(found >= 0)
        own, other = ([point.point3D_id for point in images[name].points2D] for name in (first, partner))
        is_right = np.array([own[row] == other[found[row]] for row in keypoints])
        assert (matches, inliers) == (len(keypoints), is_right.sum())
        answer = data(scene, f"query-pair/0-{index}.bin")
        ends = np.frombuffer(answer, "<f4", 4 * matches).reshape(-1, 4)
        assert (np.frombuffer(answer, np.uint8, matches, offset=16 * matches) == is_right).all()
        ends0 = upright(np.array([images[first].points2D[row].xy for row in keypoints]))
        ends1 = np.array([images[partner].points2D[found[row]].xy for row in keypoints])
        ends1 = upright(ends1) if index == TURNED else ends1 - 0.5
        np.testing.assert_allclose(ends, np.column_stack([ends0, ends1]), atol=1e-3)
    assert scene.answer("query-pair/0-0.bin") is None, "not retrieved"


def test_every_address_is_answered_and_no_other(scene: ViewedScene, tmp_path: Path) -> None:
    paths = [path for path in scene.paths() if path.startswith("query")]
    assert len(paths) == len({*paths}) == 3 * (2 + 2 + 4)
    assert all(scene.answer(path) is not None for path in paths)
    for path in ("query/3.json", "query/0.jpg", "query-thumb/0.json", "query-photo/3.jpg", "query-pair/3-0.bin"):
        assert scene.answer(path) is None, path
    page = write_folder(scene, tmp_path / "page")
    assert (page.parent / "query-photo" / "0.jpg").read_bytes() == data(scene, "query-photo/0.jpg")
    assert (page.parent / "query-pair" / "0-1.bin.js").is_file()


def test_results_for_another_map_are_named_not_drawn(copy: MadeView) -> None:
    model = pycolmap.Reconstruction(str(copy.model))
    model.transform(pycolmap.Sim3d(2.0, pycolmap.Rotation3d(), np.zeros(3)))
    model.write(str(copy.model))
    for given in (None, copy.scene / "localize"):
        scene = ViewedScene(copy.model, localize=given)
        assert scene.missing == [f"{copy.scene / 'localize'}: {ANOTHER}"]
        assert told(scene, "scene.json")["queries"] == []
        assert scene.answer("query/0.json") is None


def test_folders_nearby_may_be_of_other_maps(copy: MadeView) -> None:
    """A folder of another name is used if it is for this map; if not, or if it is damaged, it is nobody's business."""
    results = copy.scene / "localize"
    other = Path(shutil.move(results, copy.scene / "monday"))
    assert told(ViewedScene(copy.model), "scene.json")["localize"] == str(other)
    described = json.loads((other / "poses.json").read_text())
    for content in (json.dumps({**described, "map": "another"}), "[1"):
        (other / "poses.json").write_text(content)
        scene = ViewedScene(copy.model)
        assert (scene.queries, scene.missing) == (None, [])


def test_the_newest_of_several(copy: MadeView) -> None:
    other = Path(shutil.copytree(copy.scene / "localize", copy.scene / "tuesday"))
    for path, seconds in ((other, 2_000_000_000), (copy.scene / "localize", 1_000_000_000)):
        os.utime(path / "poses.json", (seconds, seconds))
    scene = ViewedScene(copy.model)
    assert told(scene, "scene.json")["localize"] == str(other)
    assert scene.missing == [f"{copy.scene / 'localize'}: 3 more queries; show them with --localize."]


def test_results_for_another_of_its_models(copy: MadeView) -> None:
    """Results for sparse/1 lie in localize/model-1: shown with that model, and no warning with the other."""
    model = pycolmap.Reconstruction(str(copy.model))
    model.transform(pycolmap.Sim3d(2.0, pycolmap.Rotation3d(), np.zeros(3)))
    other = MadeView(copy.scene).model.with_name("1")
    other.mkdir()
    model.write(str(other))
    shutil.move(copy.scene / "localize", copy.scene / "x")
    (copy.scene / "localize").mkdir()
    shutil.move(copy.scene / "x", copy.scene / "localize" / "model-1")
    path = copy.scene / "localize" / "model-1" / "poses.json"
    described = json.loads(path.read_text())
    assert ViewedScene(copy.model).queries is not None
    from_other = {**described, "map": read_digest(other)}
    path.write_text(json.dumps(from_other))
    assert (ViewedScene(copy.model).queries, ViewedScene(copy.model).missing) == (None, [])
    shown = ViewedScene(other).queries
    assert shown is not None
    assert shown.results.folder.name == "model-1"


def read_digest(model: Path) -> str:
    """By a way of its own: sha256 of images.bin."""
    import hashlib

    return hashlib.sha256((model / "images.bin").read_bytes()).hexdigest()[:16]


def test_results_elsewhere(made: MadeView, tmp_path: Path) -> None:
    alone = MadeView(tmp_path / "scene")
    shutil.copytree(made.model, alone.model)
    shutil.copytree(made.scene / "images", alone.scene / "images")
    results = Path(shutil.copytree(made.scene / "localize", tmp_path / "elsewhere" / "out"))
    assert ViewedScene(alone.model).queries is None
    scene = ViewedScene(alone.model, localize=results)
    assert "None of the 3 query photographs were found; give their folder with --queries." in scene.missing
    assert [one["photo"] for one in told(scene, "scene.json")["queries"]] == [False] * 3
    assert "no features.h5 was found near the map" in told(scene, "query/0.json")["problem"]
    assert data(scene, "query/0.bin") == b""
    shutil.copy(made.scene / "features.h5", alone.scene)
    scene = ViewedScene(alone.model, localize=results, queries=made.scene / "queries")
    assert told(scene, "scene.json")["queries"] == told(ViewedScene(made.model), "scene.json")["queries"]
    assert told(scene, "query/0.json") == told(ViewedScene(made.model), "query/0.json")
    with pytest.raises(BadInputError, match=r"no poses\.json here; give the folder that `featkit localize` wrote"):
        ViewedScene(alone.model, localize=tmp_path)


def test_the_folder_of_the_queries_is_recorded(made: MadeView, tmp_path: Path) -> None:
    """Relative to the results, so that a scene can be moved as a whole."""
    other = make_view(tmp_path / "scene")
    localize_view(other, queries=tmp_path / "photographs" / "new")
    shutil.move(tmp_path, tmp_path.with_name("moved"))
    moved = tmp_path.with_name("moved") / "scene"
    assert read_results(moved / "localize").images == moved / "localize" / ".." / ".." / "photographs" / "new"
    scene = ViewedScene(moved / "sparse" / "0")
    assert scene.missing == []
    assert len(data(scene, "query-thumb/0.jpg")) > 100


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b'{"map": "x", "config": {}, "results": [{"name": 1}]}'])
def test_damaged_poses_are_named(copy: MadeView, content: bytes) -> None:
    (copy.scene / "localize" / "poses.json").write_bytes(content)
    scene = ViewedScene(copy.model)
    (said,) = scene.missing
    assert said.startswith(f"Queries are not shown: {copy.scene / 'localize' / 'poses.json'}: not the poses")
    assert scene.queries is None


def test_names_that_lead_elsewhere(copy: MadeView) -> None:
    path = copy.scene / "localize" / "poses.json"
    path.write_text(path.read_text().replace(QUERIES[1], "../secret.jpg"))
    scene = ViewedScene(copy.model)
    assert scene.queries is None
    assert "leads outside the folder" in scene.missing[0]


def test_damaged_stores_leave_the_cameras(copy: MadeView) -> None:
    path = copy.scene / "localize" / "matches.h5"
    path.write_bytes(path.read_bytes()[:500])
    scene = ViewedScene(copy.model)
    about = told(scene, "query/0.json")
    assert about["problem"].startswith(f"Its matches cannot be shown: {path}")
    assert [row[1:] for row in about["pairs"]] == [[0, 0]] * 4
    assert "centre" in told(scene, "scene.json")["queries"][0]
    assert data(scene, "query/0.bin") == b""
