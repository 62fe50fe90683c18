"""What a page is told of a map, against pycolmap's own reading of the same files."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image, ImageOps
from synthetic_view import SIZE, TURNED, MadeView, make_view

from featkit.core.errors import BadInputError, EmptyResultError
from featkit.viewer.scene import CHUNK, PageImageConfig, ViewedScene


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeView:
    """Never written to."""
    return make_view(tmp_path_factory.mktemp("view") / "scene")


@pytest.fixture(scope="module")
def scene(made: MadeView) -> ViewedScene:
    return ViewedScene(made.model)


@pytest.fixture(scope="module")
def truth(made: MadeView) -> pycolmap.Reconstruction:
    return pycolmap.Reconstruction(str(made.model))


def told(scene: ViewedScene, path: str) -> Any:
    answer = scene.answer(path)
    assert answer is not None
    assert answer.kind == "application/json"
    return json.loads(answer.data)


def data(scene: ViewedScene, path: str) -> bytes:
    answer = scene.answer(path)
    assert answer is not None
    return answer.data


def image_named(model: pycolmap.Reconstruction, name: str) -> pycolmap.Image:
    (found,) = [image for image in model.images.values() if image.name == name]
    return found


def seen_upright(index: int, xy: np.ndarray) -> np.ndarray:
    """COLMAP pixels of the file -> pixels of the photograph as it is looked at, one image by one rule."""
    x, y = xy - 0.5
    return np.array([SIZE[1] - 1 - y, x]) if index == TURNED else np.array([x, y])


def test_points_and_colours(scene: ViewedScene, truth: pycolmap.Reconstruction) -> None:
    about, answer = told(scene, "scene.json"), data(scene, "points.bin")
    count = truth.num_points3D()
    assert about["points"] == count == 60
    assert len(answer) == 15 * count
    xyz = np.frombuffer(answer, "<f4", 3 * count).reshape(-1, 3)
    rgb = np.frombuffer(answer, np.uint8, 3 * count, offset=12 * count).reshape(-1, 3)
    for row, number in enumerate(sorted(truth.points3D)):
        expected = (truth.points3D[number].xyz - about["middle"]).astype(np.float32)
        assert xyz[row].tolist() == expected.tolist()
        assert rgb[row].tolist() == truth.points3D[number].color.tolist()


def test_cameras(scene: ViewedScene, truth: pycolmap.Reconstruction, made: MadeView) -> None:
    about = told(scene, "scene.json")
    assert [image["name"] for image in about["images"]] == made.names()
    for one in about["images"]:
        pose = image_named(truth, one["name"]).cam_from_world()
        rotation = np.array(one["rotation"]).reshape(3, 3)
        np.testing.assert_allclose(rotation, pose.rotation.matrix(), atol=1e-12)
        centre = -pose.rotation.matrix().T @ pose.translation
        np.testing.assert_allclose(np.array(one["centre"]) + about["middle"], centre, atol=1e-9)
        assert (one["width"], one["height"], one["focal"], one["photo"]) == (*SIZE, 800.0, True)
    turn = np.array(about["turn"]).reshape(3, 3)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert (about["title"], about["missing"], about["pairs"]) == ("scene", [], "verified")


def test_keypoints_and_the_points_they_see(scene: ViewedScene, truth: pycolmap.Reconstruction, made: MadeView) -> None:
    ids = sorted(truth.points3D)
    for index, name in enumerate(made.names()):
        image = image_named(truth, name)
        about, answer = told(scene, f"image/{index}.json"), data(scene, f"image/{index}.bin")
        count = len(image.points2D)
        assert (about["keypoints"], about["observations"]) == (count, image.num_points3D)
        assert about["size"] == [*(SIZE[::-1] if index == TURNED else SIZE)]
        xy = np.frombuffer(answer, "<f4", 2 * count).reshape(-1, 2)
        of_point = np.frombuffer(answer, "<i4", count, offset=8 * count)
        for row, point in enumerate(image.points2D):
            assert xy[row].tolist() == seen_upright(index, point.xy).astype(np.float32).tolist()
            assert of_point[row] == (ids.index(point.point3D_id) if point.has_point3D() else -1)
        errors = [truth.points3D[p.point3D_id].error for p in image.points2D if p.has_point3D()]
        assert about["error_px"] == pytest.approx(np.mean(errors))


def test_corners_of_a_turned_photograph(scene: ViewedScene) -> None:
    plain = np.array(told(scene, "image/0.json")["uv"]).reshape(4, 2)
    assert plain.tolist() == [[0, 1], [1, 1], [1, 0], [0, 0]]  # top left, top right, bottom right, bottom left
    turned = np.array(told(scene, f"image/{TURNED}.json")["uv"]).reshape(4, 2)
    assert turned.tolist() == [[1, 1], [1, 0], [0, 0], [0, 1]]  # clockwise: the top left is at the top right


def test_pairs_and_their_lines(scene: ViewedScene, made: MadeView, tmp_path: Path) -> None:
    shutil.copy(made.database, tmp_path / "copy.db")  # pycolmap opens a database to write
    names = made.names()
    with pycolmap.Database.open(str(tmp_path / "copy.db")) as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        for a, name in enumerate(names):
            rows = told(scene, f"image/{a}.json")["pairs"]
            assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)
            assert {row[0] for row in rows} == set(range(len(names))) - {a}
            for b, inliers, matches in rows:
                both = (ids[name], ids[names[b]])
                found, kept = database.read_matches(*both), database.read_two_view_geometry(*both).inlier_matches
                assert (inliers, matches) == (len(kept), len(found))
                assert 0 < inliers < matches
                answer = data(scene, f"pair/{a}-{b}.bin")
                lines = np.frombuffer(answer, "<f4", 4 * matches).reshape(-1, 4)
                flags = np.frombuffer(answer, np.uint8, matches, offset=16 * matches)
                points = [database.read_keypoints(number)[:, :2].astype(np.float64) for number in both]
                good = {tuple(row) for row in kept.tolist()}
                expected = {
                    (*seen_upright(a, points[0][i]), *seen_upright(b, points[1][j]), int((i, j) in good))
                    for i, j in found.tolist()
                }
                given = {(*line, int(flag)) for line, flag in zip(lines.tolist(), flags, strict=True)}
                assert given == {(*np.float32(row[:4]).tolist(), row[4]) for row in expected}


def test_tracks(scene: ViewedScene, truth: pycolmap.Reconstruction, made: MadeView) -> None:
    rows, names = told(scene, "tracks/0.json"), made.names()
    assert [row["id"] for row in rows] == sorted(truth.points3D)
    for row in rows:
        point = truth.points3D[row["id"]]
        assert row["error"] == pytest.approx(point.error)
        expected = set()
        for one in point.track.elements:
            image = truth.images[one.image_id]
            index = names.index(image.name)
            expected.add((index, *np.round(seen_upright(index, image.points2D[one.point2D_idx].xy), 3)))
        assert {tuple(sight) for sight in row["track"]} == expected


def test_pictures_are_upright_and_small(made: MadeView) -> None:
    scene = ViewedScene(made.model, PageImageConfig(thumbnail_px=80, photograph_px=200))
    for kind, side in (("thumb", 80), ("photo", 200)):
        for index, name in enumerate(made.names()):
            answer = scene.answer(f"{kind}/{index}.jpg")
            assert answer is not None
            path = made.scene.parent / "shown.jpg"
            path.write_bytes(answer.data)
            shown = Image.open(path)
            with Image.open(made.scene / "images" / name) as stored:
                expected = ImageOps.exif_transpose(stored).convert("RGB").resize(shown.size, Image.Resampling.BOX)
            assert max(shown.size) == side
            assert np.abs(np.asarray(shown, int) - np.asarray(expected, int)).mean() < 4


def test_a_database_is_not_touched(made: MadeView, tmp_path: Path) -> None:
    copy = tmp_path / "database.db"
    shutil.copy(made.database, copy)
    before = copy.read_bytes()
    scene = ViewedScene(made.model, database=copy)
    data(scene, "pair/0-1.bin")
    assert copy.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["database.db"]


def test_without_a_database_pairs_see_common_points(
    made: MadeView, truth: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    folder = tmp_path / "somewhere" / "alone"  # results of other tests are not near
    shutil.copytree(made.model, folder)
    scene = ViewedScene(folder)
    assert scene.missing == [
        "None of the 5 photographs were found; give their folder with --images.",
        "No database.db was found near the model: pairs are images with common points.",
    ]
    assert scene.answer("thumb/0.jpg") is None
    names = made.names()
    points = [{p.point3D_id for p in image_named(truth, name).points2D if p.has_point3D()} for name in names]
    for a in range(len(names)):
        rows = told(scene, f"image/{a}.json")["pairs"]
        common = {b: len(points[a] & points[b]) for b in range(len(names)) if b != a and points[a] & points[b]}
        assert {row[0]: row[1] for row in rows} == common
    answer = data(scene, "pair/0-1.bin")
    assert len(answer) == 17 * len(points[0] & points[1])
    ends = np.frombuffer(answer, "<f4", 4 * (len(answer) // 17)).reshape(-1, 4)
    where = [{p.point3D_id: p.xy - 0.5 for p in image_named(truth, name).points2D if p.has_point3D()} for name in names]
    expected = {tuple(np.float32([*where[0][i], *where[1][i]]).tolist()) for i in points[0] & points[1]}
    assert {tuple(row) for row in ends.tolist()} == expected


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def without_tables(path: Path) -> None:
    path.unlink()
    sqlite3.connect(path).close()


def of_another_program(path: Path) -> None:
    path.unlink()
    rows = sqlite3.connect(path)
    rows.execute("CREATE TABLE images (image_id INTEGER, name TEXT)")
    rows.execute("INSERT INTO images VALUES (1, 'cat.jpg')")
    rows.commit()
    rows.close()


def of_other_images(path: Path) -> None:
    rows = sqlite3.connect(path)
    rows.execute("UPDATE images SET name = 'x' || name")
    rows.commit()
    rows.close()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncated, "not a COLMAP database (database disk image is malformed)"),
        (lambda path: path.write_bytes(b"no database" * 900), "not a COLMAP database (file is not a database)"),
        (without_tables, "not a COLMAP database (no such table: images)"),
        (of_another_program, "not a COLMAP database (no such table: matches)"),
        (of_other_images, "has no image of the map"),
    ],
)
def test_a_database_that_is_none_leaves_the_map(made: MadeView, tmp_path: Path, damage: Any, why: str) -> None:
    copy = MadeView(Path(shutil.copytree(made.scene, tmp_path / "scene")))
    damage(copy.database)
    scene = ViewedScene(copy.model)
    (said,) = scene.missing
    assert said.startswith(f"Matches cannot be shown: {copy.database}: {why}")
    assert said.endswith("; pairs are images with common points.")
    assert "\n" not in said
    assert told(scene, "scene.json")["pairs"] == "common points"
    assert len(data(scene, "points.bin")) == 15 * 60
    assert told(scene, "image/0.json")["pairs"]
    with pytest.raises(BadInputError, match=r"database\.db: "):  # asked for by name
        ViewedScene(copy.model, database=copy.database)


def test_a_database_that_another_program_locks(made: MadeView, tmp_path: Path, monkeypatch: Any) -> None:
    copy = MadeView(Path(shutil.copytree(made.scene, tmp_path / "scene")))
    connect = sqlite3.connect
    writer = connect(copy.database)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA locking_mode = EXCLUSIVE")
    writer.execute("UPDATE images SET name = name")
    writer.commit()
    monkeypatch.setattr(sqlite3, "connect", lambda *words, **more: connect(*words, **more, timeout=0.05))
    (said,) = ViewedScene(copy.model).missing
    assert said.startswith(f"Matches cannot be shown: {copy.database}: not a COLMAP database (database is locked)")
    writer.close()
    assert ViewedScene(copy.model).missing == []


def test_damaged_keypoints_leave_those_that_see_points(tmp_path: Path) -> None:
    """A row of the database that is cut off: the photograph is shown, its pairs give the reason."""
    thin = make_view(tmp_path / "scene", others=0)
    rows = sqlite3.connect(thin.database)
    rows.execute("UPDATE keypoints SET data = x'00'")
    rows.commit()
    rows.close()
    scene = ViewedScene(thin.model)
    image = image_named(pycolmap.Reconstruction(str(thin.model)), thin.names()[0])
    assert told(scene, "image/0.json")["keypoints"] == image.num_points3D
    with pytest.raises(BadInputError, match="a row of keypoints is cut off"):
        scene.answer("pair/0-1.bin")


def test_photographs_by_their_folder(made: MadeView, tmp_path: Path) -> None:
    shutil.copytree(made.model, tmp_path / "alone")
    photographs = tmp_path / "photographs"
    shutil.copytree(made.scene / "images", photographs)
    (photographs / made.names()[1]).unlink()
    scene = ViewedScene(tmp_path / "alone", images=[photographs])
    assert scene.missing[0] == "4 of the 5 photographs were found; give their folder with --images."
    assert [image["photo"] for image in told(scene, "scene.json")["images"]] == [True, False, True, True, True]


def test_a_thinned_model_gets_its_keypoints_from_the_database(tmp_path: Path) -> None:
    thin = make_view(tmp_path / "scene", others=0)
    image = image_named(pycolmap.Reconstruction(str(thin.model)), thin.names()[0])
    count = image.num_points3D
    assert told(ViewedScene(thin.model), "image/0.json")["keypoints"] == count == len(image.points2D)
    detected = np.arange(2 * count + 10, dtype=np.float32).reshape(-1, 2)
    rows = sqlite3.connect(thin.database)
    where = (len(detected), 2, detected.tobytes(), image.image_id)
    rows.execute("UPDATE keypoints SET rows = ?, cols = ?, data = ? WHERE image_id = ?", where)
    rows.commit()
    rows.close()
    scene = ViewedScene(thin.model)
    about, answer = told(scene, "image/0.json"), data(scene, "image/0.bin")
    assert (about["keypoints"], about["observations"]) == (2 * count + 5, count)
    xy = np.frombuffer(answer, "<f4", 2 * about["keypoints"]).reshape(-1, 2)
    of_point = np.frombuffer(answer, "<i4", about["keypoints"], offset=8 * about["keypoints"])
    assert xy[count:].tolist() == (detected - 0.5).tolist()
    assert (of_point[:count] >= 0).all()
    assert (of_point[count:] == -1).all()


def test_a_place_on_earth_keeps_its_detail(made: MadeView, truth: pycolmap.Reconstruction, tmp_path: Path) -> None:
    far = pycolmap.Reconstruction(str(made.model))
    offset = np.array([4.5e6, 5.4e6, 300.0])
    far.transform(pycolmap.Sim3d(1.0, pycolmap.Rotation3d(), offset))
    folder = tmp_path / "far"
    folder.mkdir()
    far.write(str(folder))
    scene = ViewedScene(folder)
    xyz = np.frombuffer(data(scene, "points.bin"), "<f4", 3 * 60).reshape(-1, 3)
    expected = np.array([truth.points3D[number].xyz + offset - scene.middle for number in sorted(truth.points3D)])
    np.testing.assert_allclose(xyz, expected, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_a_point_out_of_all_reach(made: MadeView, tmp_path: Path) -> None:
    far = pycolmap.Reconstruction(str(made.model))
    far.points3D[min(far.points3D)].xyz = np.array([1e200, 0, 0])
    far.write(str(Path(shutil.copytree(made.model, tmp_path / "far"))))
    xyz = np.frombuffer(data(ViewedScene(tmp_path / "far"), "points.bin"), "<f4", 3 * 60)
    assert np.isfinite(xyz).all()


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg", "..\\secret.jpg", "C:\\a.jpg"])
def test_names_that_lead_elsewhere_are_refused(made: MadeView, tmp_path: Path, name: str) -> None:
    model = pycolmap.Reconstruction(str(made.model))
    next(iter(model.images.values())).name = name
    folder = tmp_path / "scene" / "sparse" / "0"
    folder.mkdir(parents=True)
    model.write(str(folder))
    shutil.copytree(made.scene / "images", tmp_path / "scene" / "images")
    Image.new("RGB", SIZE).save(tmp_path / "scene" / "secret.jpg")
    with pytest.raises(BadInputError, match="leads outside the folder"):
        ViewedScene(folder)


@pytest.mark.parametrize(
    "path",
    [
        *("", "scene", "scene.json/", "image/5.json", "image/-1.json", "thumb/0.json", "tracks/1.json", "pair/0-0.bin"),
        *("pair/0-5.bin", "photo/0.jpg/../../x", "../scene.json", "photo/٣.jpg", "image/99999999999.json"),
    ],
)
def test_no_other_address(scene: ViewedScene, path: str) -> None:
    assert scene.answer(path) is None


def test_every_address_is_answered(scene: ViewedScene) -> None:
    paths = [*scene.paths()]
    assert len(paths) == len({*paths}) == 2 + 1 + 5 * 4 + 10
    assert all(scene.answer(path) is not None for path in paths)
    assert CHUNK >= 60


def test_wrong_inputs(made: MadeView, tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"no database")
    with pytest.raises(BadInputError, match="not a COLMAP database"):
        ViewedScene(made.model, database=tmp_path / "broken.db")
    with pytest.raises(BadInputError, match="not a COLMAP database"):
        ViewedScene(made.model, database=tmp_path / "missing.db")
    other = make_view(tmp_path / "other", points=20, frames=2)
    with pycolmap.Database.open(str(other.database)) as database:
        for image in database.read_all_images():
            image.name = f"x{image.name}"
            database.update_image(image)
    with pytest.raises(BadInputError, match="has no image of the map"):
        ViewedScene(made.model, database=other.database)
    empty = tmp_path / "empty"
    empty.mkdir()
    pycolmap.Reconstruction().write(str(empty))
    with pytest.raises(EmptyResultError, match="no image of this model has a pose"):
        ViewedScene(empty)
