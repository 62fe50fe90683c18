"""The release's layout, its splits and task files, and what is wrong with a broken one."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from synthetic_patches import SEQUENCES, write_hpatches

from featkit.core.errors import BadInputError, UsageError
from featkit.data.hpatches import KINDS, find_splits, hpatches_patch_set, read_hpatches, read_split
from featkit.data.hpatches_tasks import DrawnTasksConfig, PatchPairs, draw_tasks, read_tasks, write_tasks

SPLITS = {"a": {"train": ["i_one", "v_one"], "test": ["v_two", "i_two"], "name": "a"}, "view": {"test": ["v_one"]}}
DRAWN = DrawnTasksConfig(pairs=500, queries=10, distractors=15)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hpatches(tmp_path_factory.mktemp("release"))


def test_sequences_and_patches(release: Path) -> None:
    data = read_hpatches(release)
    assert data.counts == SEQUENCES
    assert read_hpatches(release / "hpatches-release").counts == SEQUENCES, "the release's own folder does as well"
    column = cv2.imread(str(release / "hpatches-release" / "v_one" / "t3.png"), cv2.IMREAD_GRAYSCALE)
    patches = data.patches("v_one", "t3")
    assert patches.shape == (13, 65, 65)
    np.testing.assert_array_equal(patches[4], column[4 * 65 : 5 * 65])


def test_splits_are_found_near_the_data(release: Path, tmp_path: Path) -> None:
    data = read_hpatches(release)
    assert read_split(data, "full") == {"train": (), "test": ("i_one", "i_two", "v_one", "v_two")}
    with pytest.raises(BadInputError, match=r"no splits\.json near it"):
        read_split(data, "a")
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(SPLITS))
    assert read_split(data, "a", path) == {"train": ("i_one", "v_one"), "test": ("v_two", "i_two")}
    assert read_split(data, "view", path) == {"train": (), "test": ("v_one",)}
    with pytest.raises(UsageError, match=r"split 'b': .* has a, view"):
        read_split(data, "b", path)
    for place in ("splits.json", "tasks/splits/splits.json"):
        near = tmp_path / "near" / place.count("/").__str__() / "hpatches-release"
        (near.parent / "hpatches-benchmark" / place).parent.mkdir(parents=True)
        (near.parent / "hpatches-benchmark" / place).write_text(json.dumps(SPLITS))
        assert find_splits(near) == near.parent / "hpatches-benchmark" / place


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a file of splits"),
        ('{"a": ["i_one"]}', "not a file of splits"),
        ('{"a": {"test": ["i_elsewhere"]}}', "sequence i_elsewhere is not there"),
    ],
)
def test_bad_splits(release: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(text)
    with pytest.raises(BadInputError, match=message):
        read_split(read_hpatches(release), "a", path)


def test_bad_releases(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="featkit data fetch hpatches"):
        read_hpatches(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match=r"no folder i_\* or v_\*"):
        read_hpatches(tmp_path)
    root = write_hpatches(tmp_path)
    folder = root / "hpatches-release" / "i_two"
    (folder / "e1.png").unlink()
    (folder / "e2.png").write_bytes(b"nothing")
    cv2.imwrite(str(folder / "e3.png"), np.zeros((8 * 65, 65), np.uint8))
    data = read_hpatches(root)
    for kind, message in (("e1", "no such file"), ("e2", "not an image"), ("e3", "65 x 520 px, not 65 x 585")):
        with pytest.raises(BadInputError, match=rf"{kind}.png: {message}"):
            data.patches("i_two", kind)
    for shape in ((130, 64), (100, 65)):
        cv2.imwrite(str(folder / "ref.png"), np.zeros(shape, np.uint8))
        with pytest.raises(BadInputError, match="not a column of 65 x 65 patches"):
            read_hpatches(root)
    (folder / "ref.png").unlink()
    with pytest.raises(BadInputError, match=r"ref.png: no such file"):
        read_hpatches(root)


def test_patches_to_train_on(release: Path) -> None:
    data = read_hpatches(release)
    patches = hpatches_patch_set(data, ["i_two", "v_two"])
    assert len(patches) == 16 * (9 + 8)
    assert patches.scene_names == ("i_two", "v_two")
    rows = np.flatnonzero(patches.classes == 9 + 3)  # point 3 of v_two
    assert set(patches.scenes[rows]) == {1}
    np.testing.assert_array_equal(patches.patches[rows], np.stack([data.patches("v_two", kind)[3] for kind in KINDS]))


# --- task files ---

OFFICIAL = {
    "verif_pos": "s1,t1,idx1,s2,t2,idx2\nv_one,4,12,v_one,3,12\ni_one,0,10,i_one,3,10\n",
    "verif_neg_intra": "s1,t1,idx1,s2,t2,idx2\nv_one,4,12,v_one,3,2\n",
    "verif_neg_inter": "s1,t1,idx1,s2,t2,idx2\nv_one,4,12,i_two,3,8\n",
    "retr_queries": "s,idx\nv_one,3\n",
    "retr_distractors": "s,idx\ni_two,3\nv_one,1\n",
}


def write_official(folder: Path, **changes: str) -> Path:
    for stem, text in {**OFFICIAL, **changes}.items():
        (folder / f"{stem}_split-a.csv").write_text(text)
    return folder


def test_official_files_are_read_as_they_are(release: Path, tmp_path: Path) -> None:
    data = read_hpatches(release)
    assert read_tasks(tmp_path, "a", data) is None
    tasks = read_tasks(write_official(tmp_path), "a", data)
    assert tasks is not None
    assert tasks.positive is not None
    names = np.array(data.sequences)
    assert names[tasks.positive.rows[:, 0]].tolist() == ["v_one", "i_one"]
    assert tasks.positive.rows[:, [1, 2, 4, 5]].tolist() == [[4, 12, 3, 12], [0, 10, 3, 10]]
    assert tasks.distractors is not None
    assert names[tasks.distractors.rows[:, 0]].tolist() == ["i_two", "v_one"]
    assert tasks.sequences() == {"v_one", "i_one", "i_two"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verif_pos": "s,idx\n"}, r"verif_pos_split-a.csv: the first line is not s1,t1,idx1"),
        (
            {"verif_neg_inter": OFFICIAL["verif_neg_inter"] + "v_one,4,12,i_six,3,8\n"},
            "line 3 names the sequence 'i_six'",
        ),
        ({"verif_pos": OFFICIAL["verif_pos"] + "v_one,4,13,v_one,3,12\n"}, "line 4: idx1 13 is not there"),
        ({"verif_pos": OFFICIAL["verif_pos"] + "v_one,4,12,v_one,6,12\n"}, "line 4: t2 6 is not there"),
        ({"retr_queries": "s,idx\nv_one,13\n"}, "line 2: idx 13 is not there"),
        ({"retr_queries": "s,idx\nv_one\n"}, "line 2 is not s,idx"),
        ({"retr_queries": "s,idx\nv_one,x\n"}, "line 2 is not s,idx"),
    ],
)
def test_broken_task_files(release: Path, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        read_tasks(write_official(tmp_path, **changes), "a", read_hpatches(release))


def test_drawn_tasks_obey_the_rules(release: Path) -> None:
    data = read_hpatches(release)
    counts = np.array(list(data.counts.values()))
    chosen = ["v_two", "i_one", "v_one"]
    tasks = draw_tasks(data, chosen, DRAWN, np.random.default_rng(0))
    assert tasks.sequences() == set(chosen)
    assert tasks.positive is not None
    assert tasks.intra is not None
    assert tasks.inter is not None
    for pairs in (tasks.positive, tasks.intra, tasks.inter):
        s1, t1, i1, s2, t2, i2 = pairs.rows.T
        assert len(s1) == 500
        assert (t1 != t2).all()
        assert set(t1) == set(t2) == set(range(6))
        assert (i1 < counts[s1]).all()
        assert (i2 < counts[s2]).all()
        assert min(i1.min(), i2.min()) == 0
    for pairs, same_sequence, same_point in ((tasks.positive, True, True), (tasks.intra, True, False)):
        s1, _, i1, s2, _, i2 = pairs.rows.T
        assert ((s1 == s2) == same_sequence).all()
        assert ((i1 == i2) == same_point).all()
    assert (tasks.inter.rows[:, 0] != tasks.inter.rows[:, 3]).all()
    assert tasks.queries is not None
    assert tasks.distractors is not None
    drawn = np.concatenate([tasks.queries.rows, tasks.distractors.rows])
    assert (len(tasks.queries.rows), len(tasks.distractors.rows)) == (10, 15)
    assert len(np.unique(drawn, axis=0)) == 25, "no patch twice"


def test_flat_patches_are_neither_asked_for_nor_distract(tmp_path: Path) -> None:
    root = write_hpatches(tmp_path)
    path = root / "hpatches-release" / "v_one" / "ref.png"
    column = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    column[65:] = 100
    cv2.imwrite(str(path), column)
    everything = DrawnTasksConfig(pairs=10, queries=1000, distractors=1000)
    tasks = draw_tasks(read_hpatches(root), ["v_one", "v_two"], everything, np.random.default_rng(0))
    assert tasks.queries is not None
    assert tasks.distractors is not None
    assert len(tasks.queries.rows) + len(tasks.distractors.rows) == 1 + 8


def test_drawn_tasks_depend_on_the_seed_alone(release: Path, tmp_path: Path) -> None:
    data = read_hpatches(release)
    drawn = [draw_tasks(data, data.sequences, DRAWN, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for name, tasks in zip("abc", drawn, strict=True):
        write_tasks(tmp_path, name, tasks)
    texts = ["".join(sorted(p.read_text() for p in tmp_path.glob(f"*-{name}.csv"))) for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    again = read_tasks(tmp_path, "c", data)
    assert again is not None
    for name in ("positive", "intra", "inter", "queries", "distractors"):
        read, made = getattr(again, name), getattr(drawn[2], name)
        np.testing.assert_array_equal(read.rows, made.rows)


def test_one_sequence_has_no_pairs_of_two(release: Path) -> None:
    tasks = draw_tasks(read_hpatches(release), ["v_one"], DRAWN, np.random.default_rng(0))
    assert tasks.inter is None
    assert isinstance(tasks.intra, PatchPairs)
