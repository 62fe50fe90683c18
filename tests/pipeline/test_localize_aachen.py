"""The command `featkit localize aachen` on a rendered scene in the benchmark's layout with exact truth."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import in_process
import numpy as np
import pytest
from aachen_miniature import Miniature, World, rendered_world, write_miniature
from in_process import refused
from typer.testing import Result

from featkit.data.aachen import find_aachen
from featkit.demo.scene import RenderedConfig
from featkit.evaluation.aachen import read_aachen_reference, read_aachen_tracks
from featkit.geometry.poses import camera_centre, rotation_matrix
from featkit.io.lists import read_poses, write_poses
from featkit.mapping.covisibility import covisible_pairs
from featkit.mapping.model import read_model

CONFIG = RenderedConfig(width=400, height=300, num_map=6, num_queries=2, texel_m=0.012)  # that of `small_rendered`
FAST = ("--workers", 1, "--max-keypoints", 1200, "--device", "cpu")
FINE = "0.25 m, 2 deg"
MODEL = "3D-models/aachen_v_1_1"


def run(*arguments: object) -> Result:
    return in_process.run("localize", "aachen", *arguments)


@pytest.fixture(scope="module")
def world(small_rendered: Any) -> World:
    return rendered_world(small_rendered, CONFIG)


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """v1.1, complete. Never written to."""
    return write_miniature(tmp_path_factory.mktemp("aachen"), world)


@pytest.fixture(scope="module")
def truth(made: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """True poses by the names in the submission."""
    poses = {name.rpartition("/")[2]: pose for name, pose in made.truth.items()}
    return write_poses(tmp_path_factory.mktemp("truth") / "poses.txt", poses)


@pytest.fixture(scope="module")
def localized(made: Miniature, truth: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Results with hloc's setting. Never written to."""
    out = tmp_path_factory.mktemp("out")
    ran = run("--root", made.root, "--queries", "day-night", "--truth", truth, "--out", out, *FAST)
    return out, ran


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_day_and_night_queries_are_localized(made: Miniature, localized: tuple[Path, Result]) -> None:
    out, ran = localized
    assert ran.exit_code == 0, ran.output
    for words in ("Localized queries", "SCFeat, Table IV", "74.3", "they do not compare", "to upload"):
        assert words in ran.stdout
    (row,) = json.loads((out / "1.1-day-night" / "results.json").read_text())["rows"]
    assert row["name"] == "rootsift"
    assert row["pairs"]["database"].endswith("aachen_v1.1/pairs-db-covis20.txt")
    assert row["pairs"]["queries"].endswith("pairs-query-netvlad50.txt")
    for condition in ("day", "night"):
        counted = row["conditions"][condition]
        assert (counted["queries"], counted["localized"], counted["judged"]) == (2, 2, 2)
        assert counted["recall"] == {FINE: 1.0, "0.5 m, 5 deg": 1.0, "5 m, 10 deg": 1.0}
        assert counted["median_m"] < 0.1
    assert row["map"]["registered"] == 6
    assert row["map"]["points"] > 150
    assert row["map"]["reprojection_px"] < 1
    place = only(out, "1.1-day-night/rootsift-*")
    assert {"report.html", "metrics.json", "poses.txt", "poses.json", "sparse"} <= {p.name for p in place.iterdir()}
    assert json.loads((place / "metrics.json").read_text())["conditions"] == row["conditions"]
    page = (out / "1.1-day-night" / "report.html").read_text()
    assert f"{place.name}/report.html" in page
    assert "upload the submission" not in page  # the truth is known
    assert "Day and night" in (place / "report.html").read_text()


def test_the_map_has_the_references_poses(made: Miniature, localized: tuple[Path, Result]) -> None:
    """Its poses are the reference's, and the given intrinsics are not changed."""
    from featkit.mapping.cameras import to_pose

    model = read_model(only(localized[0], "1.1-day-night/rootsift-*/sparse/0"))
    assert {image.name for image in model.images.values()} == made.poses.keys()
    for image in model.images.values():
        np.testing.assert_allclose(to_pose(image.cam_from_world()).tvec, made.poses[image.name].tvec, atol=1e-9)
        assert model.cameras[image.camera_id].params.tolist() == [360.0, 200.0, 150.0, 0.0]


def test_queries_registered_by_colmap(
    made: Miniature, truth: Path, localized: tuple[Path, Result], tmp_path: Path
) -> None:
    """As in the challenge: poses are near the truth and those of PnP; both use the same features and matches."""
    out = Path(shutil.copytree(localized[0], tmp_path / "out"))
    ask = ("--root", made.root, "--queries", "day-night", "--truth", truth, "--out", out, *FAST)
    ask = (*ask, "--set", "poses_by=registration")
    ran = run(*ask)
    assert ran.exit_code == 0, ran.output
    for words in ("6 of 6 images are done", "4 of 4 images are done", "15 of 15 pairs are", "24 of 24 pairs are"):
        assert words in ran.stderr
    (row,) = json.loads((out / "1.1-day-night" / "results.json").read_text())["rows"]
    for condition in ("day", "night"):
        assert row["conditions"][condition]["localized"] == 2
        assert row["conditions"][condition]["recall"][FINE] == 1.0
        assert row["conditions"][condition]["median_m"] < 0.1
    pnp = only(localized[0], "1.1-day-night/rootsift-*")
    (place,) = (path for path in out.glob("1.1-day-night/rootsift-*") if path.name != pnp.name)
    both = [read_poses(folder / "poses.txt") for folder in (pnp, place)]
    assert both[0].keys() == both[1].keys() == made.truth.keys()
    apart = [np.linalg.norm(camera_centre(both[0][n]) - camera_centre(both[1][n])) for n in made.truth]
    assert 0 < max(apart) < 0.1
    described = json.loads((place / "poses.json").read_text())
    assert described["config"]["min_inliers"] == 30
    for result in described["results"]:
        assert 30 <= result["inliers"] <= result["matches_3d"] <= result["keypoints"]
        assert result["camera"] == ["SIMPLE_RADIAL", 400, 300, 360.0, 200.0, 150.0, 0.0]
        assert 0 < result["centre_std"] < 0.1
    model = read_model(place / "sparse" / "0")  # the map is as it was
    assert {image.name for image in model.images.values()} == made.poses.keys()
    again = run(*ask)
    assert again.exit_code == 0, again.output
    assert "verify queries: done already" in again.stderr
    assert (place / "poses.json").read_text() == json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    refused(run(*ask, "--set", "registration.min_inliers=10000", "-q"), 4, "none of 4 queries localized")
    reasons = {
        result["reason"]
        for path in out.glob("1.1-day-night/rootsift-*/poses.json")
        for result in json.loads(path.read_text())["results"]
        if not result["localized"]
    }
    assert len(reasons) > 1
    assert all("10000 that agree are needed" in reason for reason in reasons)


def test_nvm_and_colmap_give_the_same_reference(made: Miniature) -> None:
    files = find_aachen(made.root, "1.1", "night")
    assert files.model is not None
    first, second = read_aachen_reference(files), read_aachen_reference(replace(files, model=None))
    assert first.poses.keys() == second.poses.keys() == made.poses.keys()
    for name, pose in first.poses.items():
        np.testing.assert_allclose(camera_centre(pose), camera_centre(second.poses[name]), atol=1e-9)
        turned = rotation_matrix(pose.qvec) @ rotation_matrix(second.poses[name].qvec).T
        np.testing.assert_allclose(turned, np.eye(3), atol=1e-9)
        cameras = [r.cameras[r.camera_ids[name]] for r in (first, second)]  # type: ignore[index]
        assert cameras[0].params.tolist() == cameras[1].params.tolist()
    pairs = [covisible_pairs(read_aachen_tracks(f), 3) for f in (files, replace(files, model=None))]
    by_name = [{pair.key() for pair in found} for found in pairs]
    assert by_name[0] == by_name[1]
    assert 6 <= len(by_name[0]) <= 15


def test_submission_format(made: Miniature, localized: tuple[Path, Result], tmp_path: Path) -> None:
    submission = only(localized[0], "1.1-day-night/*/Aachen_v1_1_eval_*.txt")
    assert submission.name == "Aachen_v1_1_eval_[featkit-rootsift].txt"
    lines = submission.read_text().splitlines()
    assert {line.split()[0] for line in lines} == {name.rpartition("/")[2] for name in made.truth}
    assert {len(line.split()) for line in lines} == {8}
    checked = run("--root", made.root, "--check", submission)
    assert checked.exit_code == 0, checked.output
    assert "2 of 2 day queries, 2 of 2 night queries" in checked.stdout
    damaged = tmp_path / "damaged.txt"
    damaged.write_text("\n".join([*lines, lines[0], f"query/{lines[1]}"]))
    refused(run("--root", made.root, "--check", damaged), 3, "line 5", "twice", "line 6", "has a folder")
    damaged.write_text(lines[0].replace(lines[0].split()[1], "nan"))
    refused(run("--root", made.root, "--check", damaged), 3, "line 1", "not finite")


def test_a_second_run_does_nothing(made: Miniature, localized: tuple[Path, Result], tmp_path: Path) -> None:
    """Another choice of queries reuses features and matches."""
    out = Path(shutil.copytree(localized[0], tmp_path / "out"))
    arguments = ("--root", made.root, "--out", out, *FAST)
    again = run(*arguments, "--queries", "day-night")
    assert again.exit_code == 0, again.output
    for words in ("6 of 6 images are", "4 of 4 images are", "15 of 15 pairs are", "24 of 24 pairs are"):
        assert words in again.stderr
    for stage in ("database", "map"):
        assert f"{stage}: done already" in again.stderr
    before, after = (only(f, "1.1-day-night/*/poses.txt").read_text() for f in (localized[0], out))
    assert before == after
    night = run(*arguments)
    assert night.exit_code == 0, night.output
    for words in ("6 of 6 images are done", "2 of 2 images are done", "15 of 15 pairs are done", "12 of 12 pairs"):
        assert words in night.stderr
    assert "upload the submission" in night.stdout
    (row,) = json.loads((out / "1.1-night" / "results.json").read_text())["rows"]
    assert list(row["conditions"]) == ["night"]
    assert row["conditions"]["night"]["localized"] == 2
    assert row["pairs"]["database"] == row["pairs"]["queries"]
    assert row["pairs"]["queries"].endswith("image_pairs_to_match_v1_1.txt")


def test_given_global_descriptors_and_broken_photographs(made: Miniature, tmp_path: Path) -> None:
    """--retrieval; a query that cannot be read has a reason and no line. --skip-broken is for those of the map."""
    import h5py

    root, out = Path(shutil.copytree(made.root, tmp_path / "aachen")), tmp_path / "out"
    described, names = tmp_path / "global.h5", [*made.poses, *made.night]
    with h5py.File(described, "w") as file:
        for name, row in zip(names, np.random.default_rng(0).normal(size=(len(names), 8)), strict=True):
            file.create_dataset(f"{name}/global_descriptor", data=row)
    for name in ("db/1.jpg", "query/night/nexus5x/IMG_2016_0.jpg"):
        (root / "images" / "images_upright" / name).write_text("Dear Sir or Madam")
    ask = ("--root", root, "--out", out, "--retrieval", described, *FAST)
    refused(run(*ask, "-q"), 3, "db/1.jpg", "--skip-broken")
    ran = run(*ask, "--skip-broken")
    assert ran.exit_code == 0, ran.output
    (row,) = json.loads((out / "1.1-night" / "results.json").read_text())["rows"]
    assert row["pairs"]["queries"] == str(described)
    assert row["failed"] == {"query/night/nexus5x/IMG_2016_0.jpg": "the image cannot be read"}
    assert row["map"]["registered"] == 5
    assert only(out, "1.1-night/*/Aachen_v1_1_eval_*.txt").read_text().split()[0] == "IMG_2016_1.jpg"
    message = in_process.results("localize", "aachen", *ask, "--skip-broken")
    assert message["rows"][0]["conditions"] == row["conditions"]
    refused(run(*ask, "--query-pairs", root / "image_pairs_to_match_v1_1.txt", "-q"), 2, "--query-pairs")


def test_without_pair_lists_and_with_separate_archives(
    world: World, localized: tuple[Path, Result], tmp_path: Path
) -> None:
    """v1.0 in NVM, as `data fetch` leaves it, v1.1's photographs in a folder of their own; pairs are made."""
    made = write_miniature(tmp_path / "aachen", world, pairs=False)
    more = made.root / "aachen_v1_1"
    for name in ("sequences", "query/night/nexus5x_additional_night"):
        target = more / "images_upright" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made.images / name, target)
    shutil.move(made.root / "3D-models", more)
    for name in ("cameras", "images", "points3D"):
        (more / MODEL / f"{name}.bin").unlink()
    ran = run("--root", made.root, "--out", tmp_path / "out", "--set", "localize.num_retrieved=4", *FAST)
    assert ran.exit_code == 0, ran.output
    assert "challenge's pair list is missing" in ran.stderr
    assert "photographs are in 2 folders" in ran.stderr
    (row,) = json.loads((tmp_path / "out" / "1.1-night" / "results.json").read_text())["rows"]
    assert row["pairs"] == {"database": "covisible", "queries": "retrieved"}
    assert row["conditions"]["night"] == {"queries": 2, "localized": 2}
    assert row["map"]["registered"] == 6
    again = run("--root", made.root, "--out", tmp_path / "out", "--set", "localize.num_retrieved=4", *FAST)
    for words in ("covisible pairs: done already", "retrieve: done already", "map: done already"):
        assert words in again.stderr


def test_version_1_0_lacks_some_images(world: World, tmp_path: Path) -> None:
    made = write_miniature(tmp_path / "aachen", world, version="1.0")
    listed = made.root / "queries" / "night_time_queries_with_intrinsics.txt"
    line = listed.read_text().splitlines()[0]
    listed.write_text(f"{listed.read_text()}query/night/nexus5x_additional_night/x.jpg {line.split(maxsplit=1)[1]}\n")
    ran = run("--root", made.root, "--version", "1.0", "--out", tmp_path / "out", *FAST)
    assert ran.exit_code == 0, ran.output
    assert "1 queries that v1.0 does not have" in ran.stderr
    assert only(tmp_path / "out", "1.0-night/*/Aachen_eval_*.txt").read_text().count("\n") == 2


def test_missing_files_are_reported(made: Miniature, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made.root, tmp_path / "aachen"))
    ask = ("--root", root, "--out", tmp_path / "out", "-q", *FAST)
    refused(run(*ask, "--version", "1.0"), 3, "aachen_cvpr2018_db.nvm", "database_intrinsics.txt", "data fetch aachen")
    refused(run(*ask, "--version", "1.2"), 2, "--version")
    refused(run(*ask, "--queries", "noon"), 2, "day-night")
    refused(run("--queries", "photographs/", "-q"), 2, "--queries", "day-night", "./aachen")
    refused(run(*ask, "--setting", "eth"), 2, "is of the benchmark 'eth'")
    refused(run(*ask, "--truth", made.root / "image_pairs_to_match_v1_1.txt"), 3, "qw qx")
    (root / "images/images_upright/query/night/nexus5x/IMG_2016_0.jpg").unlink()
    refused(run(*ask), 3, "no query/night/nexus5x/IMG_2016_0.jpg", "database_and_query_images.zip")
    (root / MODEL / "images.bin").unlink()
    (root / MODEL / "aachen_v_1_1.nvm").unlink()
    (root / "queries" / "night_time_queries_with_intrinsics.txt").unlink()
    refused(run(*ask), 3, "images.bin", "aachen_v_1_1.nvm", "night_time_queries", "aachen_v1_1.zip")
    assert not (tmp_path / "out").exists()


def test_default_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run(), 3, "data/aachen: no such folder; `featkit data fetch aachen --out data/aachen` makes it")


def test_a_map_in_a_folder_named_aachen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aachen").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("./aachen", "aachen/"):
        refused(in_process.run("localize", name, "--queries", tmp_path, "-q"), 3, "no map here")
    assert "--setting" in run("--help").stdout
    assert "MAP" in in_process.run("localize", "--help").stdout
