"""The commands `featkit align` and `featkit pairs --method gps|poses|covisible`, and their usage errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geotagged import ORIGIN, downward, geodetic, made_model, photograph, survey, turned, write_made
from in_process import refused, results, run

from featkit.mapping.model import read_model

Command = Callable[..., Any]
CENTRES = survey(12)  # metres: east, north, up
NAMES = list(CENTRES)
WRONG = "05.jpg"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """images/ with positions in EXIF, and a model in an arbitrary frame in featkit/sparse/0."""
    folder = tmp_path / "a scene"
    for name, place in zip(NAMES, geodetic(np.array(list(CENTRES.values()))), strict=True):
        photograph(folder / "images" / name, place)
    model = made_model(downward(CENTRES), [NAMES[i : i + 3] for i in range(10)])
    model.transform(turned())
    write_made(model, folder / "featkit" / "sparse" / "0")
    return folder


def centres(model: Path) -> dict[str, np.ndarray]:
    return {image.name: image.projection_center() for image in read_model(model).images.values()}


def largest_distance(model: Path, expected: dict[str, np.ndarray]) -> float:
    """Largest distance of a camera from its expected position."""
    found = centres(model)
    assert found.keys() == expected.keys()
    return max(float(np.linalg.norm(found[name] - expected[name])) for name in expected)


def references(path: Path, changes: dict[str, list[float]] | None = None, names: list[str] = NAMES) -> Path:
    rows = {name: CENTRES[name].tolist() for name in names if name in CENTRES} | (changes or {})
    path.write_text("".join(f"{name} {' '.join(map(repr, row))}\n" for name, row in rows.items()))
    return path


def origin_of(place: tuple[float, float, float]) -> str:
    return ",".join(map(repr, place))


def test_by_gps_in_exif(scene: Path, featkit_command: Command) -> None:
    out = scene / "metric"
    ran = featkit_command("align", scene, "--gps", "--origin", origin_of(ORIGIN), "--out", out)
    assert ran.code == 0, ran.err
    assert largest_distance(out, CENTRES) < 1e-3
    assert "Cameras compared with the given positions" in ran.out
    assert all(name in ran.out for name in NAMES)
    assert "origin: latitude 47.3769000, longitude 8.5417000, altitude 408 m" in ran.out
    written = json.loads((out / "alignment.json").read_text())
    assert written["kind"] == "alignment"
    assert written["origin"] == dict(zip(("latitude_deg", "longitude_deg", "altitude_m"), ORIGIN, strict=True))
    assert written["scale"] == pytest.approx(20)
    assert written["residual_m"]["max"] < 1e-3
    model = read_model(out)
    assert model.num_points3D() == 10
    looking = [image.viewing_direction() for image in model.images.values()]
    assert np.array(looking) == pytest.approx(np.tile([0, 0, -1.0], (12, 1)), abs=1e-6), "down is down"


def test_default_origin_is_the_median_position(scene: Path) -> None:
    found = results("align", scene / "featkit" / "sparse", "--gps", "-o", scene / "metric")
    middle = np.median(geodetic(np.array(list(CENTRES.values()))), axis=0)
    assert list(found["origin"].values()) == pytest.approx(middle.tolist(), abs=1e-3)
    moved = {name: centre - centres(scene / "metric")[name] for name, centre in CENTRES.items()}
    assert np.ptp(np.array(list(moved.values())), axis=0).max() < 1e-2  # ENU elsewhere: shifted, hardly turned
    again = results("align", scene, "--gps", "-o", scene / "metric")
    assert again == found


def test_by_a_csv_with_a_wrong_position(scene: Path) -> None:
    rows = dict(zip(NAMES, geodetic(np.array(list(CENTRES.values()))), strict=True))
    rows[WRONG] = rows[WRONG] + [0.001, 0, 0]  # 111 m
    listed = scene / "gps.csv"
    listed.write_text("name,lat,lon,alt\n" + "".join(f"{n},{a:.12f},{b:.12f},{c}\n" for n, (a, b, c) in rows.items()))
    found = results("align", scene, "--gps-file", listed, "--origin", origin_of(ORIGIN), "-o", scene / "metric")
    assert (found["positions"], found["used"]) == (12, 11)
    (left_out,) = [row for row in found["images"] if not row["used"]]
    assert left_out["name"] == WRONG
    assert left_out["residual_m"] == pytest.approx(111.2, abs=0.1)
    assert left_out["offset_m"] == pytest.approx([0, -111.2, 0], abs=0.1)
    assert largest_distance(scene / "metric", CENTRES) < 1e-3


def test_some_without_position_or_height(scene: Path) -> None:
    photograph(scene / "images" / "00.jpg")
    ran = run("align", scene, "--gps", "--origin", origin_of(ORIGIN), "-o", scene / "metric", "--quiet")
    assert ran.exit_code == 0, ran.output
    assert ran.stderr == "align: 1 of 12 registered images have no GPS position and are not used: 00.jpg\n"
    assert largest_distance(scene / "metric", CENTRES) < 1e-3
    places = geodetic(np.array(list(CENTRES.values())))
    photograph(scene / "images" / "01.jpg", places[1, :2])
    ran = run("align", scene, "--gps", "-o", scene / "metric", "--quiet")
    assert "2 of 12 registered images have no GPS position with an altitude" in ran.stderr
    for name, place in zip(NAMES, places, strict=True):
        photograph(scene / "images" / name, place[:2])
    ran = run("align", scene, "--gps", "--origin", origin_of(ORIGIN), "-o", scene / "metric", "--quiet")
    assert "no position has an altitude" in ran.stderr
    level = {name: centre * [1, 1, 0] for name, centre in CENTRES.items()}
    assert largest_distance(scene / "metric", level) < 4, "heights differ by 3 m"


def test_level_ignores_drifting_altitudes(scene: Path) -> None:
    """For a level flight whose recorded altitudes rise by 110 m, the horizontal positions are sufficient."""
    level = {name: centre * [1, 1, 0] for name, centre in CENTRES.items()}
    places = geodetic(np.array(list(level.values())))
    for number, (name, place) in enumerate(zip(NAMES, places, strict=True)):
        photograph(scene / "images" / name, place + np.array([0, 0, 10.0 * number]))
    command = ("align", scene, "--gps", "--origin", origin_of(ORIGIN), "-o", scene / "metric")
    assert results(*command)["residual_m"]["rms"] > 5
    assert results(*command, "--level")["residual_m"]["rms"] < 3, "heights differ by 3 m"
    assert largest_distance(scene / "metric", level) < 4


def test_by_references(scene: Path) -> None:
    model, out = scene / "featkit" / "sparse" / "0", scene / "metric"
    listed = references(scene / "refs.txt", {WRONG: [0.0, 0.0, 900.0], "elsewhere.jpg": [1.0, 2.0, 3.0]})
    ran = run("align", model, "--references", listed, "-o", out)
    assert ran.exit_code == 0, ran.output
    assert largest_distance(out, CENTRES) < 1e-6
    assert "1 of 13 references are not registered in the model and are ignored: elsewhere.jpg" in ran.stderr
    assert "over 11 of 12 positions" in ran.stdout
    found = results("align", model, "--references", references(scene / "refs.txt"), "--max-error", "0.1", "-o", out)
    assert found["used"] == 12
    assert "origin" not in found


def test_by_a_distance(scene: Path) -> None:
    model, out = scene / "featkit" / "sparse" / "0", scene / "metric"
    before, metres = centres(model), float(np.linalg.norm(CENTRES["00.jpg"] - CENTRES["07.jpg"]))
    found = results("align", model, "--distance", "00.jpg", "07.jpg", metres, "-o", out)
    assert found["scale"] == pytest.approx(20)
    assert largest_distance(out, {name: 20 * centre for name, centre in before.items()}) < 1e-9


def test_an_aligned_map_localizes_in_metres(scene: Path) -> None:
    """Other commands accept the folder as a model."""
    results("align", scene, "--gps", "-o", scene / "metric")
    found = results("info", scene / "metric")
    assert (found["kind"], found["registered"], found["points"]) == ("model", 12, 10)


def test_existing_output_is_not_replaced(scene: Path) -> None:
    model = scene / "featkit" / "sparse" / "0"
    command = ("align", model, "--distance", "00.jpg", "07.jpg", "5", "--quiet", "-o")
    refused(run(*command, model, "--overwrite"), 3, "is the model itself", "did not make")
    (scene / "featkit" / "sparse.json").write_text('{"featkit_version": "0.1.0", "kind": "map"}')  # now it is featkit's
    refused(run(*command, model), 3, "is the model itself", "--overwrite")
    refused(run(*command, scene), 3, "is not empty", "choose another --out")
    refused(run(*command, scene, "--overwrite"), 3, "choose another --out")
    (scene / "file").write_text("")
    refused(run(*command, scene / "file"), 3, "file")
    refused(run(*command, scene / "file" / "out"), 5, "--out")
    other = write_made(made_model(downward(CENTRES)), scene / "other")
    for more in ((), ("--overwrite",)):
        refused(run(*command, other, *more), 3, "did not make", "choose another --out")
    results(*command[:-2], "-o", model, "--overwrite")
    before = centres(model)
    results(*command[:-2], "-o", model)  # an alignment of its own: done again, from where it is
    assert largest_distance(model, before) < 1e-9
    assert {path.name for path in scene.iterdir()} == {"images", "featkit", "file", "other"}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 2, ["--gps", "--references", "--distance"]),
        (("--gps", "--distance", "00.jpg", "01.jpg", "3"), 2, ["one of"]),
        (("--references", "refs.txt", "--origin", "1,2"), 2, ["--origin"]),
        (("--gps", "--origin", "95,2"), 2, ["--origin", "47.3769"]),
        (("--gps", "--origin", "here"), 2, ["--origin"]),
        (("--gps", "--set", "outlier_sigma=3"), 2, ["outlier_sigmas"]),
        (("--gps", "--max-error", "-1"), 2, ["--max-error"]),
        (("--distance", "00.jpg", "01.jpg", "0"), 2, ["more than 0"]),
        (("--distance", "00.jpg", "01.jpg", "nan"), 2, ["more than 0"]),
        (("--distance", "00.jpg", "07.jpg", "1e300"), 3, ["would be scaled by", "check the distance"]),
        (("--distance", "00.jpg", "07.jpg", "1e-300"), 3, ["would be scaled by", "check the distance"]),
        (("--distance", "00.jpg", "05.jpeg", "3"), 3, ["'05.jpeg'", "did you mean '05.jpg'"]),
        (("--distance", "00.jpg", "00.jpg", "3"), 3, ["one place"]),
        (("--distance", "00.jpg", "11.jpg", "3"), 3, ["one place"]),
        (("--references", "nowhere.txt"), 3, ["nowhere.txt", "no such file"]),
        (("--references", "few.txt"), 3, ["few.txt", "2 of its 3 names", "elsewhere.jpg"]),
        (("--references", "line.txt"), 3, ["line.txt", "on one line"]),
        (("--references", "same.txt"), 3, ["same.txt", "one place"]),
        (("--references", "mixed.txt", "--max-error", "1"), 4, ["mixed.txt", "within 1 m", "--max-error"]),
        (("--gps", "--images", "plain"), 3, ["none of 12 images has a GPS position", "--gps-file"]),
        (("--gps", "--images", "nowhere"), 3, ["nowhere", "no such image"]),
        (("--gps-file", "other.csv"), 3, ["other.csv", "none of its 1 names"]),
        (("--gps-file", "two.csv"), 3, ["two.csv", "2 positions; 3"]),
        (("--gps-file", "bad.csv"), 3, ["bad.csv:2", "not a number"]),
    ],
)
def test_usage_errors(
    scene: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], code: int, words: list[str]
) -> None:
    monkeypatch.chdir(scene)
    lying = made_model(downward(CENTRES | {"11.jpg": CENTRES["00.jpg"]}))
    write_made(lying, scene / "model")
    references(scene / "refs.txt")
    references(scene / "few.txt", {"elsewhere.jpg": [0.0, 1.0, 2.0]}, NAMES[:2])
    references(scene / "line.txt", {f"0{i}.jpg": [float(i), 2.0 * i, 1.0] for i in range(5)}, [])
    references(scene / "same.txt", {f"0{i}.jpg": [1.0, 2.0, 1.0] for i in range(5)}, [])
    rows = np.random.default_rng(0).uniform(-99, 99, (12, 3))
    references(scene / "mixed.txt", {name: row.tolist() for name, row in zip(NAMES, rows, strict=True)})
    for name in NAMES:
        photograph(scene / "plain" / name)
    (scene / "other.csv").write_text("elsewhere.jpg,1,2\n")
    (scene / "two.csv").write_text("00.jpg,1,2,3\n01.jpg,1,2,3\n")
    (scene / "bad.csv").write_text("00.jpg,1,2,3\n01.jpg,one,2,3\n")
    refused(run("align", "model", *options, "-o", "out", "--quiet"), code, *words)
    assert not (scene / "out").exists()
    assert not list(scene.glob(".*"))


def test_missing_and_damaged_models(scene: Path) -> None:
    for given, word in ((scene / "images", "no COLMAP model"), (scene / "nowhere", "no such folder")):
        refused(run("align", given, "--gps", "-o", scene / "out", "--quiet"), 3, word)
    broken = scene / "featkit" / "sparse" / "0" / "images.bin"
    broken.write_bytes(broken.read_bytes()[:99])
    refused(run("align", scene, "--gps", "-o", scene / "out", "--quiet"), 3, "cut off")


def test_pairs_by_every_method(scene: Path) -> None:
    out, images = scene / "pairs.txt", scene / "images"
    by_gps = results("pairs", images, "--method", "gps", "--num", 3, "--out", out)
    assert (by_gps["images"], by_gps["method"]) == (12, "gps")
    assert 12 * 3 / 2 <= by_gps["pairs"] < 12 * 11 / 2
    by_poses = results("pairs", images, "--method", "poses", "--model", scene, "--num", 3, "--out", out)
    assert by_poses["pairs"] >= 18
    covisible = results("pairs", images, "--method", "covisible", "--model", scene, "--out", out)
    assert covisible["pairs"] == 10 + 11, "three in a row see a point: those next to each other and next but one"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--method", "gps", "--images", "nowhere"), 3, ["no such image"]),
        (("--method", "gps", "--gps-file", "nowhere.csv"), 3, ["nowhere.csv", "no such file"]),
        (("--method", "poses"), 2, ["--model"]),
        (("--method", "covisible"), 2, ["--model"]),
        (("--method", "covisible", "--model", "images"), 3, ["no COLMAP model"]),
        (("--method", "poses", "--gps-file", "a.csv"), 2, ["--gps-file", "gps"]),
        (("--method", "gps", "--model", "featkit"), 2, ["--model", "covisible or poses"]),
        (("--method", "auto", "--images", "images"), 2, ["--images", "gps"]),
        (("--method", "gsp"), 2, ["did you mean 'gps'"]),
    ],
)
def test_usage_errors_of_pairs(
    scene: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], code: int, words: list[str]
) -> None:
    monkeypatch.chdir(scene)
    refused(run("pairs", "images", *options, "--out", "pairs.txt", "--quiet"), code, *words)
    assert not (scene / "pairs.txt").exists()


def test_no_image_has_a_position(scene: Path) -> None:
    for name in NAMES:
        photograph(scene / "images" / name)
    command = ("pairs", scene / "images", "--method", "gps", "--out", scene / "pairs.txt", "--quiet")
    refused(run(*command), 3, "none of 12 images has a GPS position", "--gps-file")
    refused(run("reconstruct", scene, "--pairs", "gps", "--out", scene / "new", "--quiet"), 3, "none of 12 images")
    assert not (scene / "new" / "features.h5").exists(), "found before the work"
    refused(run("reconstruct", scene, "--gps-file", scene / "a.csv", "--quiet"), 2, "--pairs gps")
