import json
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from featkit.core.config import Config
from featkit.core.errors import BadInputError, UsageError
from featkit.core.types import Features, Pair
from featkit.images.listing import natural_key
from featkit.io.features import FeatureStore, append_features, open_features
from featkit.io.lists import read_pairs
from featkit.mapping.rigs import RigConfig, in_order, read_rigs
from featkit.pairing.by_name import Exhaustive, ExhaustiveConfig, Sequential, SequentialConfig
from featkit.pairing.stage import RigFrames, Sources, choose, run

RNG = np.random.default_rng(0)


def test_natural_order() -> None:
    ordered = ["1.jpg", "2.jpg", "10.jpg", "a/img2.jpg", "a/img10.jpg", "a/img10b.jpg", "b", "img002", "img02", "img2"]
    shuffled = [ordered[i] for i in (7, 2, 9, 0, 5, 1, 8, 4, 6, 3)]
    assert sorted(shuffled, key=natural_key) == ordered


def test_natural_order_takes_any_name() -> None:
    names = ["²", "٣", "7", "", "-1", "a b", "é1"]
    assert sorted(sorted(names, key=natural_key)) == sorted(names)


def test_each_image_is_paired_with_the_next_ones() -> None:
    pairs = Sequential(SequentialConfig(overlap=2)).pairs(["img10", "img2", "img1", "img11"], None, RNG)
    assert pairs == [
        Pair("img1", "img2"),
        Pair("img1", "img10"),
        Pair("img2", "img10"),
        Pair("img2", "img11"),
        Pair("img10", "img11"),
    ]


@pytest.mark.parametrize(
    ("overlap", "quadratic", "steps"),
    [
        (3, False, [1, 2, 3]),
        (3, True, [1, 2, 3, 4]),
        (6, True, [1, 2, 3, 4, 5, 6, 8, 16, 32]),
        (1, True, [1]),
        (100, True, list(range(1, 40))),
    ],
)
def test_steps_ahead(overlap: int, quadratic: bool, steps: list[int]) -> None:
    names = [f"{i}" for i in range(40)]
    pairs = Sequential(SequentialConfig(overlap=overlap, quadratic=quadratic)).pairs(names, None, RNG)
    assert [int(p.name1) for p in pairs if p.name0 == "0"] == steps
    assert len({p.key() for p in pairs}) == len(pairs)
    assert len(pairs) == sum(40 - step for step in steps)


def test_exhaustive_has_every_pair_once() -> None:
    names = [f"{i}" for i in range(7)]
    pairs = Exhaustive(ExhaustiveConfig()).pairs(names, None, RNG)
    assert len(pairs) == len({p.key() for p in pairs}) == 21
    assert pairs[:2] == [Pair("0", "1"), Pair("0", "2")]


def test_a_name_given_twice_counts_once() -> None:
    assert Exhaustive(ExhaustiveConfig()).pairs(["a", "b", "a"], None, RNG) == [Pair("a", "b")]
    assert Sequential(SequentialConfig()).pairs(["a", "b", "a"], None, RNG) == [Pair("a", "b")]


# ----------------------------------------------------------------------------------------------------------------------
# Loops and rigs, compared with what can be read off the names.


def keys(pairs: list[Pair]) -> set[tuple[str, str]]:
    assert len({pair.key() for pair in pairs}) == len(pairs)
    return {pair.key() for pair in pairs}


@pytest.fixture(scope="module")
def circle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """Images 0 to 39 go twice round a place of 20 views: 7 and 27 show the same, their neighbours half of it."""
    path = tmp_path_factory.mktemp("circle") / "features.h5"
    seen = np.random.default_rng(0).normal(size=(20, 30, 32))
    with append_features(path, Config()) as writing:
        for number in range(40):
            rows = np.concatenate([seen[(number + side) % 20] for side in (0, 1)])
            rows = np.abs(rows + 0.05 * np.random.default_rng(number).normal(size=rows.shape)).astype(np.float32)
            writing.write(
                f"{number}.jpg", Features(np.zeros((60, 2), np.float32), rows, np.ones(60, np.float32), (9, 9))
            )
    with open_features(path) as reading:
        yield reading


@pytest.mark.parametrize(("every", "gap"), [(1, None), (10, None), (7, 12)])
def test_loops_are_found_where_the_path_comes_back(circle: FeatureStore, every: int, gap: int | None) -> None:
    config = SequentialConfig(overlap=2, loop_closure=1, loop_every=every, loop_gap=gap)
    names = [f"{number}.jpg" for number in range(40)]
    plain = keys(Sequential(SequentialConfig(overlap=2)).pairs(names, None, RNG))
    found = Sequential(config).pairs(names[::-1], circle, np.random.default_rng(0))
    assert keys(found[: len(plain)]) == plain
    loops = {Pair(f"{one}.jpg", f"{(one + 20) % 40}.jpg").key() for one in range(0, 40, every)}
    assert keys(found) - plain == loops


def test_what_is_near_in_time_is_no_loop(circle: FeatureStore) -> None:
    names = [f"{number}.jpg" for number in range(20)]  # once round: every similar image is near, but for the two ends
    config = SequentialConfig(overlap=1, loop_closure=50, loop_every=1, loop_gap=17)
    found = keys(Sequential(config).pairs(names, circle, np.random.default_rng(0)))
    loops = found - keys(Sequential(SequentialConfig(overlap=1)).pairs(names, None, RNG))
    assert loops == {Pair(f"{a}.jpg", f"{b}.jpg").key() for a in range(20) for b in range(a + 18, 20)}


def test_loops_take_features() -> None:
    method = Sequential(SequentialConfig(loop_closure=3))
    assert method.needs_features
    assert not Sequential(SequentialConfig()).needs_features
    with pytest.raises(UsageError, match="features"):
        method.pairs(["a", "b"], None, RNG)


RIG = [f"trip/cam{camera}/{time}.{'png' if camera else 'jpg'}" for camera in range(3) for time in range(1, 13)]


@pytest.mark.parametrize(("overlap", "across"), [(2, 1), (1, 0), (3, 2), (1, 30)])
def test_cameras_of_a_rig(overlap: int, across: int) -> None:
    """Time 9 comes before 10, one camera misses a time, and another rig is a world of its own."""
    names = [name for name in RIG if name != "trip/cam1/5.png"] + [
        "other/cam0/1.jpg",
        "other/cam1/1.jpg",
        "other/cam0/2.jpg",
    ]
    config = SequentialConfig(overlap=overlap, across_cameras=True, across_overlap=across)
    found = Sequential(config).pairs(list(np.random.default_rng(1).permutation(names)), None, RNG)
    expected = set()
    for one, other in combinations(names, 2):
        (rig, camera, time), (rig1, camera1, time1) = (
            (*name.split("/")[:2], int(name.split("/")[2].split(".")[0])) for name in (one, other)
        )
        apart = abs(time - time1)
        if camera == camera1 and camera == "cam1" and min(time, time1) < 5 < max(time, time1):
            apart -= 1  # its images 4 and 6 follow each other
        if rig == rig1 and apart <= (overlap if camera == camera1 else across):
            expected.add(Pair(one, other).key())
    assert keys(found) == expected


def named_rig(folder: Path, names: list[str]) -> list[list[Mapping[int, str]]]:
    """Frames by a rig file whose cameras share a folder."""
    cameras = [{"image_prefix": "left_", "ref_sensor": True}, {"image_prefix": "right_"}]
    (folder / "rig.json").write_text(json.dumps([{"cameras": cameras}]))
    return [in_order(rig) for rig in read_rigs(str(folder / "rig.json"), names, RigConfig())]


def test_the_scenes_rigs_are_followed_without_asking(tmp_path: Path) -> None:
    """Of a rig file, whose names tell no folders; time 9 comes before 10, and one camera misses a time."""
    names = [f"{camera}_{time}.jpg" for camera in ("left", "right") for time in range(1, 13)]
    names.remove("left_5.jpg")
    rigs = named_rig(tmp_path, names)
    method = Sequential(SequentialConfig(overlap=2))
    plain = keys(method.pairs([*names, "alone_1.jpg", "alone_2.jpg"], None, RNG))
    method.rigs = rigs
    expected = {Pair("alone_1.jpg", "alone_2.jpg").key()}
    for one, other in combinations(names, 2):
        (camera, time), (camera1, time1) = (
            (name.split("_")[0], int(name.split("_")[1].split(".")[0])) for name in (one, other)
        )
        apart = abs(time - time1)
        if camera == camera1 == "left" and min(time, time1) < 5 < max(time, time1):
            apart -= 1  # its images 4 and 6 follow each other
        if apart <= (2 if camera == camera1 else 1):
            expected.add(Pair(one, other).key())
    assert keys(method.pairs([*names, "alone_1.jpg", "alone_2.jpg"], None, RNG)) == expected
    asked_not_to = Sequential(SequentialConfig(overlap=2, across_cameras=False))
    assert not asked_not_to.uses_rigs()
    asked_not_to.rigs = rigs
    assert keys(asked_not_to.pairs([*names, "alone_1.jpg", "alone_2.jpg"], None, RNG)) == plain


def test_pairs_of_another_rig_are_made_again(tmp_path: Path) -> None:
    names = [f"{camera}_{time}.jpg" for camera in ("left", "right") for time in range(1, 5)]
    with append_features(tmp_path / "features.h5", Config()) as store:
        for name in names:
            store.write(name, Features(np.zeros((1, 2)), np.ones((1, 4), np.float32), np.ones(1), (9, 9)))

    def made(rigs: RigFrames, **changes: object) -> tuple[int, int]:
        method = choose("sequential", len(names), {"overlap": 1, **changes})
        path = run(method, tmp_path / "features.h5", tmp_path / "pairs.txt", sources=Sources(rigs=rigs))
        return len(read_pairs(path)), path.stat().st_mtime_ns

    rigs = named_rig(tmp_path, names)
    plain, paired = made(()), made(rigs)
    assert plain[0] == 7
    assert paired[0] == 2 * 3 + 4 + 2 * 3
    assert made(rigs) == paired
    assert made([rigs[0][:3]])[0] < paired[0]
    assert made(rigs, across_cameras=False)[0] == 7
    last = made(())
    assert last[0] == 7
    assert made(()) == last


def test_folders_that_are_no_cameras() -> None:
    method = Sequential(SequentialConfig(across_cameras=True))
    for names in (["a/1.jpg", "a/2.jpg", "b/3.jpg"], ["1.jpg", "2.jpg"], ["a/x/1.jpg", "b/y/1.jpg"]):
        with pytest.raises(BadInputError, match="across_cameras"):
            method.pairs(names, None, RNG)


def test_pairs_made_before_loops_were_known_are_up_to_date() -> None:
    assert SequentialConfig().result_fields() == {"overlap": 10, "quadratic": False}
    assert SequentialConfig(loop_closure=2).fingerprint() != SequentialConfig().fingerprint()
