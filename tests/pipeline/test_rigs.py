"""`featkit reconstruct --rig`: cameras on one rig in a painted room with exact truth; other commands on such a map."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest

from featkit.core.types import Pose
from featkit.geometry.poses import camera_centre, look_at, quaternion, rotation_angle_deg, rotation_matrix
from featkit.io.lists import read_pairs, read_poses, write_poses
from featkit.mapping.align import compare_with_truth
from featkit.mapping.grow import remove_images
from featkit.mapping.model import read_model
from tests.in_process import refused, results, run
from tests.painted_room import UP, pinhole, write

WIDTH, HEIGHT, FOCAL = 320, 240, 200.0
PARAMS = [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]
FRONT = ("front/", "side/")
CAMERA = ("--camera-model", "PINHOLE", "--camera-params", ",".join(map(str, PARAMS)))
OPTIONS = ("--max-keypoints", 600, *CAMERA, "--fix-intrinsics")
CENTRES = [(-1.2, -0.8, 0.0), (-0.7, -0.1, 0.15), (-0.2, 0.5, -0.1), (0.4, 0.2, 0.1), (0.9, -0.4, 0.0), (1.3, 0.4, 0.2)]
YAWS = (-25, 10, 30, -5, -30, 20)


def walk() -> dict[str, Pose]:
    """Walk forward and turn: without rotation, the scale of a rig whose cameras do not overlap is undetermined."""
    poses = {}
    for number, (centre, yaw) in enumerate(zip(np.array(CENTRES), np.radians(YAWS), strict=True)):
        ahead = np.array([np.cos(yaw), np.sin(yaw), 0.05 * number - 0.1])
        poses[f"{number}.jpg"] = look_at(centre, centre + ahead, UP)
    return poses


def turned(degrees: float, *centre: float) -> Pose:
    """cam_from_rig of a camera rotated about the vertical, at a position in the reference's axes, m."""
    rotation = cv2.Rodrigues(np.array([0.0, np.radians(degrees), 0.0]))[0]
    return Pose(quaternion(rotation), -rotation @ np.array(centre))


RELATIONS = {"side/": turned(-35, 0.3, 0.0, 0.05), "back/": turned(180, 0.05, 0.02, -0.25)}


def joined(cam_from_rig: Pose, rig_from_world: Pose) -> Pose:
    rotation = rotation_matrix(cam_from_rig.qvec)
    return Pose(
        quaternion(rotation @ rotation_matrix(rig_from_world.qvec)), rotation @ rig_from_world.tvec + cam_from_rig.tvec
    )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cameras on one rig: two look forward, one back. truth.txt: their true poses."""
    folder = tmp_path_factory.mktemp("rig")
    truth = {f"front/{name}": pose for name, pose in walk().items()}
    for prefix, relation in RELATIONS.items():
        truth |= {f"{prefix}{name}": joined(relation, pose) for name, pose in walk().items()}
    write(folder / "images", truth, pinhole(WIDTH, HEIGHT, FOCAL))
    write_poses(folder / "truth.txt", truth)
    return folder


def part(scene: Path, folder: Path, *prefixes: str) -> Path:
    """A scene with some of the cameras."""
    for prefix in prefixes:
        shutil.copytree(scene / "images" / prefix, folder / "images" / prefix)
    shutil.copy(scene / "truth.txt", folder)
    return folder


def rig_file(path: Path, *prefixes: str, **changes: Any) -> Path:
    """Write the true rig. changes: fields of the last camera."""
    cameras: list[dict[str, Any]] = []
    for prefix in prefixes:
        camera: dict[str, Any] = {"image_prefix": prefix}
        if prefix in RELATIONS:
            camera["cam_from_rig_rotation"] = RELATIONS[prefix].qvec.tolist()
            camera["cam_from_rig_translation"] = RELATIONS[prefix].tvec.tolist()
        else:
            camera["ref_sensor"] = True
        cameras.append(camera | {"camera_model_name": "PINHOLE", "camera_params": PARAMS})
    cameras[-1] |= changes
    path.write_text(json.dumps([{"cameras": [{k: v for k, v in c.items() if v is not None} for c in cameras]}]))
    return path


@pytest.fixture(scope="module")
def mapped(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two forward cameras, mapped with estimated relative poses."""
    folder = part(scene, tmp_path_factory.mktemp("mapped"), *FRONT)
    results("reconstruct", folder, *OPTIONS, "--rig", "folders", "--truth", folder / "truth.txt", "--save-config")
    return folder


def test_relative_poses_of_sibling_folders_are_estimated(mapped: Path, tmp_path: Path) -> None:
    """Direction within 2 degrees, rotation within 0.3 degrees; cameras are at least as accurate as without the rig."""
    found = json.loads((mapped / "featkit" / "metrics.json").read_text())
    assert (found["registered"], found["rigs"], found["frames"]) == (12, 1, 6)
    assert found["truth"]["centre_mean"] < 0.02
    front, side = found["rig_config"][0]["cameras"]
    assert front == {"image_prefix": "front/", "ref_sensor": True}
    pose = Pose(np.array(side["cam_from_rig_rotation"]), np.array(side["cam_from_rig_translation"]))
    true = RELATIONS[side["image_prefix"]]
    assert rotation_angle_deg(rotation_matrix(pose.qvec), rotation_matrix(true.qvec)) < 0.3
    directions = [camera_centre(p) / np.linalg.norm(camera_centre(p)) for p in (pose, true)]
    assert np.degrees(np.arccos(directions[0] @ directions[1])) < 2
    model = read_model(mapped / "featkit" / "sparse" / "0")
    assert len(model.cameras) == 2
    assert model.num_reg_frames() == 6
    assert "Cameras on rigs" in (mapped / "featkit" / "report.html").read_text()
    scene = Path(shutil.copytree(mapped, tmp_path / "scene"))
    plain = results("reconstruct", scene, *OPTIONS, "--camera-mode", "per-folder", "--truth", scene / "truth.txt")
    assert "rigs" not in plain
    assert found["truth"]["centre_mean"] <= plain["truth"]["centre_mean"]


def test_second_run_does_nothing_and_another_rig_maps_again(mapped: Path, tmp_path: Path) -> None:
    shutil.copytree(mapped, tmp_path / "scene")
    scene, stamp = tmp_path / "scene", tmp_path / "scene" / "featkit" / "sparse.json"
    before = stamp.stat().st_mtime_ns
    results("reconstruct", scene, "--config", scene / "featkit" / "run.yaml")
    assert stamp.stat().st_mtime_ns == before
    known = scene / "featkit" / "metrics.json"
    estimated = json.loads(known.read_text())["rig_config"]
    shutil.copy(known, tmp_path / "rig.json")
    again = results("reconstruct", scene, *OPTIONS, "--rig", tmp_path / "rig.json")
    assert stamp.stat().st_mtime_ns != before
    for found, given in zip(again["rig_config"][0]["cameras"][1:], estimated[0]["cameras"][1:], strict=True):
        assert found["cam_from_rig_translation"] == pytest.approx(given["cam_from_rig_translation"], abs=1e-12)


def test_a_given_rig_joins_cameras_without_common_points(scene: Path, tmp_path: Path) -> None:
    """One map, in metres, only from the true rig; without it each camera has a separate map."""
    folder = part(scene, tmp_path / "scene", "front/", "back/")
    rig = rig_file(tmp_path / "rig.json", "front/", "back/")
    found = results("reconstruct", folder, *OPTIONS, "--rig", rig, "--truth", folder / "truth.txt")
    assert (found["registered"], len(found["models"])) == (12, 1)
    assert found["truth"]["centre_mean"] < 0.02
    [back] = [c for c in found["rig_config"][0]["cameras"] if c["image_prefix"] == "back/"]
    assert back["cam_from_rig_translation"] == pytest.approx(RELATIONS["back/"].tvec.tolist(), abs=1e-12)
    model = read_model(folder / "featkit" / "sparse" / "0")
    assert {tuple(camera.params) for camera in model.cameras.values()} == {tuple(PARAMS)}
    centres = {image.name: image.projection_center() for image in model.images.values()}
    walked = np.linalg.norm(centres["front/0.jpg"] - centres["front/4.jpg"])
    true = read_poses(folder / "truth.txt")
    assert walked == pytest.approx(
        np.linalg.norm(camera_centre(true["front/0.jpg"]) - camera_centre(true["front/4.jpg"])), rel=0.05
    )
    ended = run("reconstruct", folder, "-q", *OPTIONS, "--rig", "folders")
    refused(ended, 4, "no frame with both 'back' and 'front'", "rig.json")


def test_a_map_with_a_rig_is_exported_aligned_localized_and_extended(mapped: Path, tmp_path: Path) -> None:
    """The map with its rig is exported, aligned to metres, used for localization, and extended."""
    scene = Path(shutil.copytree(mapped, tmp_path / "scene"))
    for kind in ("nerfstudio", "gaussian-splatting", "text"):
        exported = run("export", scene, "--format", kind, "-o", tmp_path / kind, "-q")
        assert exported.exit_code == 0, (kind, exported.output)
    assert len(json.loads((tmp_path / "nerfstudio" / "transforms.json").read_text())["frames"]) == 12
    true = read_poses(scene / "truth.txt")
    centres = {name: camera_centre(pose) for name, pose in true.items()}
    listed = tmp_path / "centres.txt"
    listed.write_text("".join(f"{name} {' '.join(map(str, xyz))}\n" for name, xyz in centres.items()))
    results("align", scene, "--references", listed, "-o", tmp_path / "metres")
    metric = read_model(tmp_path / "metres")
    assert metric.num_reg_frames() == 6
    for image in metric.images.values():
        assert np.linalg.norm(image.projection_center() - centres[image.name]) < 0.05
    [rig] = metric.rigs.values()
    [relation] = rig.non_ref_sensors.values()
    baseline = np.linalg.norm(camera_centre(RELATIONS["side/"]))
    assert np.linalg.norm(relation.inverse().translation) == pytest.approx(baseline, rel=0.05)
    between = {"a.jpg": Pose(true["front/2.jpg"].qvec, true["front/2.jpg"].tvec + np.array([0.1, 0.05, 0.1]))}
    write(tmp_path / "queries", between, pinhole(WIDTH, HEIGHT, FOCAL))
    write_poses(tmp_path / "queries.txt", true | between)
    located = results(
        "localize", scene, "--queries", tmp_path / "queries", "--truth", tmp_path / "queries.txt", *CAMERA
    )
    assert located["localized"] == 1
    assert located["errors"]["a.jpg"]["m"] < 0.05
    grown = results("extend", scene, tmp_path / "queries", "-o", tmp_path / "grown")
    assert grown["registered"] == ["a.jpg"]
    larger = read_model(tmp_path / "grown" / "sparse" / "0")
    assert (larger.num_reg_images(), larger.num_reg_frames()) == (13, 7)


def test_sequential_pairs_follow_the_rig(mapped: Path, tmp_path: Path) -> None:
    """Each camera a sequence, and the photographs of one frame and of the next across both."""
    scene = Path(shutil.copytree(mapped, tmp_path / "scene"))
    pairs = ("--pairs", "sequential", "--set", "pairing.overlap=1")
    found = results("reconstruct", scene, *OPTIONS, "--rig", "folders", *pairs)
    assert (found["registered"], found["frames"]) == (12, 6)
    expected = {(f"{camera}/{k}.jpg", f"{camera}/{k + 1}.jpg") for camera in ("front", "side") for k in range(5)}
    expected |= {(f"front/{k}.jpg", f"side/{j}.jpg") for k in range(6) for j in (k - 1, k, k + 1) if 0 <= j < 6}
    assert {tuple(sorted((p.name0, p.name1))) for p in read_pairs(scene / "featkit" / "pairs.txt")} == expected


def test_new_frames_come_onto_the_rig(mapped: Path, tmp_path: Path) -> None:
    """Two more times, of which one has a single camera; the relation stays, and so do ids. Then the missing one."""
    front = {"6.jpg": between(2, 3, 0.5), "7.jpg": between(3, 4, 0.4)}
    true = {f"front/{name}": pose for name, pose in front.items()}
    true |= {f"side/{name}": joined(RELATIONS["side/"], pose) for name, pose in front.items()}
    write(tmp_path / "new", {k: v for k, v in true.items() if k != "side/7.jpg"}, pinhole(WIDTH, HEIGHT, FOCAL))
    found = results("extend", mapped, tmp_path / "new", "-o", tmp_path / "grown")
    assert found["registered"] == ["front/6.jpg", "front/7.jpg", "side/6.jpg"]
    assert (found["rigs"], found["frames"], found["images"]) == (1, 8, 15)
    before = json.loads((mapped / "featkit" / "metrics.json").read_text())["rig_config"]
    assert [camera["image_prefix"] for camera in found["rig_config"][0]["cameras"]] == ["front/", "side/"]
    assert found["rig_config"] == before
    old, larger = read_model(mapped / "featkit" / "sparse" / "0"), read_model(tmp_path / "grown" / "sparse" / "0")
    assert set(larger.cameras) == set(old.cameras)
    truth = true | dict(read_poses(mapped / "truth.txt"))
    errors = compare_with_truth(larger, truth)
    assert errors.centre.max() < 1.5 * compare_with_truth(old, truth).centre.max() + 0.01
    write(tmp_path / "late", {"side/7.jpg": true["side/7.jpg"]}, pinhole(WIDTH, HEIGHT, FOCAL))
    last = results("extend", tmp_path / "grown", tmp_path / "late", "-o", tmp_path / "last")
    assert (last["registered"], last["frames"], last["images"]) == (["side/7.jpg"], 8, 16)
    write(tmp_path / "late", {"side/8.jpg": true["side/7.jpg"]}, pinhole(WIDTH, 200, FOCAL))
    ended = run("extend", tmp_path / "grown", tmp_path / "late", "-q", "-o", tmp_path / "wrong")
    refused(ended, 3, "side/8.jpg: is 320 x 200, and the map's camera of 'side/' on a rig 320 x 240")


def test_maps_of_the_rig_are_merged(mapped: Path, tmp_path: Path) -> None:
    """Frames 0 to 3 and, in another frame and scale, 2 to 5; prefixes are those of the record."""
    scene = Path(shutil.copytree(mapped, tmp_path / "scene"))
    sparse, record = scene / "featkit" / "sparse", scene / "featkit" / "metrics.json"
    record.write_text(record.read_text().replace('"front/"', '"front"').replace('"side/"', '"side"'))
    for number, times in ((1, (0, 1)), (0, (4, 5))):
        model = read_model(mapped / "featkit" / "sparse" / "0")
        remove_images(model, {f"{camera}{time}.jpg" for camera in FRONT for time in times}, scene)
        if number:
            turn = pycolmap.Rotation3d(np.array([0.5, 1.0, -0.2])).matrix()
            model.transform(pycolmap.Sim3d(np.column_stack([0.3 * turn, [5.0, -2.0, 1.0]])))
        (sparse / str(number)).mkdir(exist_ok=True)
        model.write(str(sparse / str(number)))
    found = results("merge", sparse / "0", sparse / "1", "-o", tmp_path / "merged", "--fix-intrinsics")
    assert (found["rigs"], found["frames"], found["images"]) == (1, 6, 12)
    assert [camera["image_prefix"] for camera in found["rig_config"][0]["cameras"]] == ["front", "side"]
    truth = read_poses(scene / "truth.txt")
    merged, whole = (read_model(path / "sparse" / "0") for path in (tmp_path / "merged", mapped / "featkit"))
    assert len(merged.cameras) == 2
    assert compare_with_truth(merged, truth).centre.max() < 1.5 * compare_with_truth(whole, truth).centre.max() + 0.01


def between(first: int, second: int, share: float) -> Pose:
    """A pose on the walk from one place to the next."""
    (one, yaw), (other, last) = ((np.array(CENTRES[k]), YAWS[k]) for k in (first, second))
    angle = np.radians(yaw + share * (last - yaw))
    centre = one + share * (other - one)
    return look_at(centre, centre + np.array([np.cos(angle), np.sin(angle), 0.05]), UP)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{not json", ("rig.json", "not a rig file")),
        ("{}", ("rig.json", "a list of rigs")),
        ("[]", ("rig.json", "a list of rigs")),
        ([{"cameras": []}], ("rig 1", "cameras")),
        ([{"cameras": [{"image_prefx": "front/"}]}], ("rig 1", "did you mean 'image_prefix'")),
        ([{"cameras": [{"image_prefix": "front/"}]}], ("rig 1 has none", '"ref_sensor": true')),
        (
            [{"cameras": [{"image_prefix": p, "ref_sensor": True} for p in FRONT]}],
            ("rig 1 has 2 reference sensors (front/, side/)",),
        ),
        (
            [{"cameras": [{"image_prefix": "front/", "ref_sensor": True}, {"image_prefix": "left/"}]}],
            ("no photograph's name starts with 'left/'", "such as 'front/0.jpg'"),
        ),
        ([{"cameras": [{"image_prefix": "front/", "ref_sensor": True}] * 2}], ("2 reference sensors",)),
        (
            [{"cameras": [{"image_prefix": "front/", "ref_sensor": True}, {"image_prefix": "front/"}]}],
            ("two cameras have the image_prefix 'front/'",),
        ),
    ],
)
def test_invalid_rig_files(content: Any, words: tuple[str, ...], mapped: Path, tmp_path: Path) -> None:
    path = tmp_path / "rig.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    refused(run("reconstruct", mapped, "-q", "--rig", path, "-o", tmp_path / "out"), 3, *words)
    assert not (tmp_path / "out" / "features.h5").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cam_from_rig_translation": None}, ("only one of cam_from_rig_rotation",)),
        ({"cam_from_rig_rotation": [1, 0, 0]}, ("cam_from_rig_rotation",)),
        ({"cam_from_rig_rotation": [0, 0, 0, 0]}, ("has length 0",)),
        ({"cam_from_rig_translation": [0, 0, float("nan")]}, ("cam_from_rig_translation",)),
        ({"camera_params": None}, ("only one of camera_model_name",)),
        ({"camera_model_name": "PINHOLES"}, ("no camera model 'PINHOLES'",)),
        ({"camera_params": [200.0]}, ("PINHOLE takes fx,fy,cx,cy, 1 numbers are given",)),
        ({"camera_params": [-1, 200, 160, 120]}, ("camera for 'side/' does not fit 'side/0.jpg'", "must be positive")),
    ],
)
def test_invalid_cameras_in_a_rig_file(
    changes: dict[str, Any], words: tuple[str, ...], mapped: Path, tmp_path: Path
) -> None:
    path = rig_file(tmp_path / "rig.json", *FRONT, **changes)
    refused(run("reconstruct", mapped, "-q", "--rig", path, "-o", tmp_path / "out"), 3, *words)


def test_other_usage_errors(mapped: Path, scene: Path, tmp_path: Path) -> None:
    def tried(*arguments: object, images: Path = mapped) -> Any:
        return run("reconstruct", images, "-q", *arguments, "-o", tmp_path / "out")

    refused(tried("--rig", tmp_path / "gone.json"), 3, "gone.json: no such file")
    refused(tried("--rig", "folders", "--reference", mapped / "featkit" / "sparse" / "0"), 2, "--rig", "--reference")
    refused(tried("--rig", "folders", images=mapped / "images" / "front"), 3, "no sibling folders")
    entry = json.loads(rig_file(tmp_path / "rig.json", "front/", "side/", "back/").read_text())
    for key in ("cam_from_rig_rotation", "cam_from_rig_translation"):
        del entry[0]["cameras"][1][key]
    (tmp_path / "rig.json").write_text(json.dumps(entry))
    refused(tried("--rig", tmp_path / "rig.json", images=scene), 3, "but not of side/; give all, or none")
    intrinsics = tmp_path / "list.txt"
    intrinsics.write_text(f"front/0.jpg PINHOLE {WIDTH} {HEIGHT} {' '.join(map(str, PARAMS))}\n")
    refused(tried("--rig", "folders", "--intrinsics", intrinsics), 3, "'front/'", "are from one camera")
    rig = rig_file(tmp_path / "rig.json", *FRONT)
    refused(tried("--rig", rig, "--intrinsics", intrinsics), 3, "'front/0.jpg'", "leave out one")
    other = part(scene, tmp_path / "sizes", *FRONT)
    write(other / "images", {"side/3.jpg": walk()["3.jpg"]}, pinhole(WIDTH, 200, FOCAL))
    refused(tried("--rig", "folders", images=other), 3, "'side/3.jpg' is 320 x 200", "one camera of a rig")
    renamed = part(scene, tmp_path / "renamed", *FRONT)
    for photo in (renamed / "images" / "side").iterdir():
        photo.rename(photo.with_name(f"x{photo.name}"))
    refused(tried("--rig", rig, images=renamed), 3, "no two cameras of the rig (front/, side/)")
