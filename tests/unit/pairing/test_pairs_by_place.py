"""Pairs by GPS, by poses and by shared points, against the plainest way to find them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geotagged import downward, geodetic, made_model, photograph, survey, write_made

from featkit.core.errors import BadInputError, UsageError
from featkit.core.registry import Method
from featkit.core.types import Pair
from featkit.geometry.poses import look_at
from featkit.io.lists import describe_pairs, read_pairs
from featkit.pairing import stage
from featkit.pairing.by_place import ByPoses, Covisible, CovisiblePairingConfig, Gps, GpsConfig, PosesConfig, nearest
from featkit.pairing.stage import Sources

RNG = np.random.default_rng(0)
CENTRES = survey(12)
NAMES = list(CENTRES)


def by_hand(places: dict[str, np.ndarray], num: int, ok: Any = lambda a, b: True) -> set[tuple[str, str]]:
    """Keys of the pairs of each image with its nearest ones, by sorting all of them."""
    found = set()
    for a in places:
        others = [b for b in places if b != a and ok(a, b)]
        others.sort(key=lambda b: float(np.linalg.norm(places[a] - places[b])))
        found |= {Pair(a, b).key() for b in others[:num]}
    return found


def keys(pairs: list[Pair]) -> set[tuple[str, str]]:
    assert len({pair.key() for pair in pairs}) == len(pairs)
    return {pair.key() for pair in pairs}


def gps_list(
    path: Path, centres: dict[str, np.ndarray], origin: tuple[float, float, float] = (47.0, 8.0, 400.0)
) -> Path:
    rows = geodetic(np.array(list(centres.values())), origin)
    path.write_text("".join(f"{n},{a:.12f},{b:.12f},{c:.6f}\n" for n, (a, b, c) in zip(centres, rows, strict=True)))
    return path


def gps(path: Path | None = None, images: Path | None = None, **fields: Any) -> Gps:
    method = Gps(GpsConfig(file=path, **fields))
    method.sources = Sources(images)
    return method


@pytest.mark.parametrize("num", [1, 3, 7, 50])
def test_nearest_as_by_sorting(num: int) -> None:
    places = RNG.integers(0, 4, (40, 2)).astype(float)  # many at equal distances
    found = nearest(places, num)
    for row, indices in enumerate(found):
        order = sorted((i for i in range(40) if i != row), key=lambda i: (((places[i] - places[row]) ** 2).sum(), i))
        assert indices[indices >= 0].tolist() == order[:num]
    near = nearest(places, num, max_distance=1.0)
    assert all(np.linalg.norm(places[i] - places[r]) <= 1 for r, row in enumerate(near) for i in row[row >= 0])
    assert nearest(places[:1], num).tolist() == [[-1] * num]


@pytest.mark.parametrize("num", [2, 5])
def test_gps_on_the_ground(tmp_path: Path, num: int) -> None:
    flat = {name: centre * [1, 1, 0] for name, centre in CENTRES.items()}
    found = gps(gps_list(tmp_path / "gps.csv", CENTRES), num_matched=num).pairs(NAMES, None, RNG)
    assert keys(found) == by_hand(flat, num)
    assert [pair.name0 for pair in found] == sorted(pair.name0 for pair in found)


def test_gps_heights_count_when_asked(tmp_path: Path) -> None:
    tower = {f"{i}.jpg": np.array([i % 2 * 3.0, 0, 10.0 * i + i * i]) for i in range(6)}
    path = gps_list(tmp_path / "gps.csv", tower)
    assert keys(gps(path, num_matched=1, use_altitude=True).pairs(list(tower), None, RNG)) == by_hand(tower, 1)
    assert keys(gps(path, num_matched=1).pairs(list(tower), None, RNG)) != by_hand(tower, 1)
    path.write_text("0.jpg,1,2,100\n1.jpg,1,2.0001\n2.jpg,1,2.0002,100\n")  # one without: at the height of the others
    assert keys(gps(path, num_matched=1, use_altitude=True).pairs(["0.jpg", "1.jpg", "2.jpg"], None, RNG)) == {
        ("0.jpg", "1.jpg"),
        ("1.jpg", "2.jpg"),
    }


def test_gps_across_the_date_line_and_within_a_distance(tmp_path: Path) -> None:
    line = {f"{i}.jpg": np.array([30.0 * i, 0, 0]) for i in range(6)}
    path = gps_list(tmp_path / "gps.csv", line, (-17.0, 179.9995, 0.0))
    assert "-179.99" in path.read_text()
    assert keys(gps(path, max_distance_m=31.0).pairs(list(line), None, RNG)) == by_hand(line, 2) - {
        ("0.jpg", "2.jpg"),
        ("3.jpg", "5.jpg"),
    }


def test_images_without_a_position(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, place in enumerate([(1, 2), (1, 2.1), (1, 2.2), None, None]):
        photograph(tmp_path / f"{number}.jpg", place)
    names = [f"{number}.jpg" for number in range(5)]
    with caplog.at_level(logging.WARNING, "featkit"):
        to_all = gps(images=tmp_path, num_matched=1).pairs(names, None, RNG)
        none = gps(images=tmp_path, num_matched=1, without_position="none").pairs(names, None, RNG)
    near = {("0.jpg", "1.jpg"), ("1.jpg", "2.jpg")}
    assert keys(none) == near
    assert keys(to_all) == near | {(f"{i}.jpg", n) for n in ("3.jpg", "4.jpg") for i in range(4) if f"{i}.jpg" < n}
    first, second = caplog.messages
    assert (
        first == "pair: 2 of 5 images have no GPS position and are paired with every other image, 7 pairs: 3.jpg, 4.jpg"
    )
    assert second.startswith("pair: 2 of 5 images have no GPS position and are paired with none: ")


def test_gps_pairs_follow_the_exif(tmp_path: Path) -> None:
    """The same list of images is paired anew when a photograph was taken elsewhere."""
    images, output = tmp_path / "images", tmp_path / "pairs.txt"
    for number in range(4):
        photograph(images / f"{number}.jpg", (10.0, 20.0 + 0.001 * number))
    stage.run(Method("by place", Gps, GpsConfig(num_matched=1)), images, output)
    before = output.stat().st_mtime_ns, read_pairs(output)
    stage.run(Method("by place", Gps, GpsConfig(num_matched=1, file=None)), images, output)
    assert output.stat().st_mtime_ns == before[0]
    photograph(images / "3.jpg", (10.0, 19.999))
    stage.run(Method("by place", Gps, GpsConfig(num_matched=1)), images, output)
    assert Pair("0.jpg", "3.jpg").key() in keys(read_pairs(output))
    assert (describe_pairs(output) or {})["config"] == {
        "num_matched": 1,
        "max_distance_m": None,
        "use_altitude": False,
        "without_position": "all",
    }


def ring(count: int = 10) -> dict[str, Any]:
    """Cameras on a small circle that look outwards: neighbours see other things than the ones across."""
    angles = {f"{i}.jpg": 2 * np.pi * i / count for i in range(count)}
    return {
        name: look_at(
            np.array([np.cos(a), np.sin(a), 0]), 3 * np.array([np.cos(a), np.sin(a), 0]), np.array([0, 0, 1.0])
        )
        for name, a in angles.items()
    }


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("angle", [30.0, 40.0, 80.0, 180.0])
def test_poses(tmp_path: Path, angle: float, text: bool) -> None:
    poses = ring()
    model = write_made(made_model(poses), tmp_path / "model", text)
    method = ByPoses(PosesConfig(model=model, num_matched=4, max_angle_deg=angle))
    found = keys(method.pairs(list(poses), None, RNG))
    steps = {(min(i, j), min((i - j) % 10, (j - i) % 10)) for i in range(10) for j in range(10)}
    assert steps
    apart = {key: abs(int(key[0][0]) - int(key[1][0])) for key in found}
    turned = {key: 36 * min(step, 10 - step) for key, step in apart.items()}
    assert max(turned.values(), default=0) <= min(angle, 72)  # four nearest: two steps to either side
    assert len(found) == {30.0: 0, 40.0: 10, 80.0: 20, 180.0: 20}[angle]


def test_a_camera_turned_about_its_axis_still_looks_the_same_way(tmp_path: Path) -> None:
    poses = downward({"a.jpg": np.array([0, 0, 9.0]), "b.jpg": np.array([1.0, 0, 9])})
    poses["b.jpg"] = look_at(np.array([1.0, 0, 9]), np.array([1.0, 0, 0]), np.array([1.0, 0, 0]))
    model = write_made(made_model(poses), tmp_path / "model")
    assert len(ByPoses(PosesConfig(model=model)).pairs(list(poses), None, RNG)) == 1
    assert ByPoses(PosesConfig(model=model, max_distance=0.5)).pairs(list(poses), None, RNG) == []


@pytest.mark.parametrize("text", [False, True])
def test_covisible(tmp_path: Path, text: bool) -> None:
    seen = [["0.jpg", "1.jpg", "2.jpg"], ["0.jpg", "2.jpg"], ["2.jpg", "3.jpg"], ["1.jpg", "4.jpg"]]
    model = write_made(made_model(ring(6), seen), tmp_path / "model", text)

    def pairs(names: list[str], num: int) -> set[tuple[str, str]]:
        return keys(Covisible(CovisiblePairingConfig(model=model, num_matched=num)).pairs(names, None, RNG))

    every = {("0.jpg", "1.jpg"), ("0.jpg", "2.jpg"), ("1.jpg", "2.jpg"), ("2.jpg", "3.jpg"), ("1.jpg", "4.jpg")}
    names = [f"{i}.jpg" for i in range(6)]
    assert pairs(names, 5) == every
    assert pairs(names, 1) == {("0.jpg", "2.jpg"), ("0.jpg", "1.jpg"), ("2.jpg", "3.jpg"), ("1.jpg", "4.jpg")}
    assert pairs(["3.jpg", "2.jpg", "4.jpg"], 1) == {("2.jpg", "3.jpg")}  # 4 shares points only with one left out


def test_images_that_the_model_does_not_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = write_made(made_model(downward(CENTRES), [NAMES]), tmp_path / "model")
    for method in (ByPoses(PosesConfig(model=model)), Covisible(CovisiblePairingConfig(model=model))):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "featkit"):
            method.digest(["new.jpg", *NAMES])
            found = method.pairs(["new.jpg", *NAMES], None, RNG)
        assert caplog.messages == ["pair: 1 of 13 images are not in the model and in no pair: new.jpg"]
        assert {name for pair in found for name in pair.key()} == set(NAMES)
        with pytest.raises(BadInputError, match=r"none of its 12 images, such as '00\.jpg', is one of the 2"):
            method.pairs(["x.jpg", "y.jpg"], None, RNG)
    with pytest.raises(UsageError, match="needs a COLMAP model"):
        ByPoses(PosesConfig()).pairs(NAMES, None, RNG)
    with pytest.raises(BadInputError, match="no COLMAP model"):
        Covisible(CovisiblePairingConfig(model=tmp_path)).pairs(NAMES, None, RNG)


def test_the_commands_model_and_the_configurations(tmp_path: Path) -> None:
    """The stage's model counts where the configuration names none; other poses mean other pairs."""
    images, output = tmp_path / "images", tmp_path / "pairs.txt"
    for name in NAMES:
        photograph(images / name)
    model = write_made(made_model(downward(CENTRES)), tmp_path / "model")
    method = Method("by place", ByPoses, PosesConfig(num_matched=2))
    stage.run(method, images, output, sources=Sources(model=model))
    first = output.stat().st_mtime_ns
    stage.run(Method("by place", ByPoses, PosesConfig(num_matched=2, model=model)), images, output)
    assert output.stat().st_mtime_ns == first, "the same poses, wherever the model was named"
    moved = CENTRES | {"00.jpg": CENTRES["11.jpg"] + 1.0}
    other = write_made(made_model(downward(moved)), tmp_path / "other")
    stage.run(method, images, output, sources=Sources(model=other))
    assert ("00.jpg", "11.jpg") in keys(read_pairs(output))


def test_photographs_that_were_all_taken_at_one_position(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{number}.jpg" for number in range(6)]
    for name in names:
        photograph(tmp_path / name, (1.0, 2.0))
    with pytest.raises(BadInputError, match=r"^6 of 6 images have the same GPS position \(0\.jpg, .*--pairs retrieval"):
        gps(images=tmp_path, num_matched=4).pairs(names, None, RNG)
    assert len(gps(images=tmp_path, num_matched=5).pairs(names, None, RNG)) == 15  # every pair: nothing is chosen
    photograph(tmp_path / "5.jpg", (1.0, 2.1))
    with caplog.at_level(logging.WARNING, "featkit"):
        gps(images=tmp_path, num_matched=2).pairs(names, None, RNG)
    assert "5 of 6 images have the same GPS position" in caplog.messages[0]
    assert "each is paired with 2 of them, by name order" in caplog.messages[0]
