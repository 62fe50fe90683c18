"""Data sets below a folder are told by their layout, wherever they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from featkit.core.errors import BadInputError
from featkit.evaluation.datasets import available_data, learned_by, not_learned_from, patch_method, scene_names
from featkit.features.stage import ExtractConfig, extraction_method
from featkit.weights.manifest import manifest_rows

TREE = {
    "sequences": ("a/oxford/graf/H1to2p", "hp/v_wall/H_1_2", "hp/v_wall/1.ppm"),
    "eth": ("eth/fountain-P11/poses.txt", "eth/fountain-P11/camera.txt", "eth/fountain-P11/images/0.png"),
    "localization": ("posed/castle/poses.txt", "posed/castle/camera.txt", "posed/castle/images/0.jpg"),
    "models": ("scenes/barn/images/x/0.jpg", "scenes/barn/sparse/0/cameras.bin"),
    "patches": ("cut/liberty/info.txt", "cut/liberty/m50_1000_1000_0.txt"),
    "hpatches": ("hpatches-release/i_one/ref.png",),
    "rome": ("rome/patch_retrieval_Rome_train.mat",),
}  # fmt: skip
FOLDERS = {
    "sequences": ["a/oxford", "hp"],
    "eth": ["eth/fountain-P11"],
    "localization": ["posed/castle"],
    "models": ["scenes/barn"],
    "patches": ["cut/liberty"],
    "hpatches": ["hpatches-release"],
    "rome": ["rome"],
}


def make(root: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("kind", TREE)
def test_each_kind_is_told_by_its_layout(tmp_path: Path, kind: str) -> None:
    make(tmp_path, TREE[kind])
    found = available_data(tmp_path)
    assert {name: folders for name, folders in vars(found).items() if folders} == {
        kind: [tmp_path / name for name in FOLDERS[kind]]
    }
    assert len(found) == len(FOLDERS[kind])
    (first, *_) = FOLDERS[kind]
    assert available_data(tmp_path / first) == type(found)(**{kind: [tmp_path / first]}), "the folder itself may be it"


def test_all_at_once_and_nothing_else(tmp_path: Path) -> None:
    for names in TREE.values():
        make(tmp_path, names)
    make(tmp_path, ("demo/truth/poses.txt", "demo/truth/camera.txt", "demo/images/0.jpg"))  # the poses are no scene
    make(tmp_path, ("photos/0.jpg", ".hidden/barn/images/0.jpg", ".hidden/barn/sparse/x", "posed/half/poses.txt"))
    found = available_data(tmp_path)
    assert vars(found) == {kind: [tmp_path / name for name in names] for kind, names in FOLDERS.items()}


def test_what_a_shipped_weight_was_trained_on_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, ("scenes/liberty/images/0", "cut/images.txt", "other/images/0"))
    (tmp_path / "cut" / "scenes.txt").write_text("mine\ta.jpg\nchair\tb.jpg\n")
    folders = [tmp_path / "scenes" / "liberty", tmp_path / "cut", tmp_path / "other"]
    (hynet,) = (row for row in manifest_rows() if row.name == "hynet")
    assert {"liberty", "chair"} <= set(hynet.scenes)
    shipped, rootsift = (
        learned_by(extraction_method(ExtractConfig(features=name), device="cpu")) for name in ("dog+hynet", "rootsift")
    )
    assert shipped == set(hynet.scenes)
    assert not_learned_from(folders, shipped) == [tmp_path / "other"]
    assert not_learned_from(folders, rootsift) == folders
    assert scene_names(folders[1]) == {"cut", "mine", "chair"}


@pytest.mark.parametrize(("name", "expected"), [("sift", "sift"), ("dog+hynet", "hynet"), ("scfeat", None)])
def test_what_describes_the_patches_of_features(name: str, expected: str | None) -> None:
    assert patch_method(extraction_method(ExtractConfig(features=name), device="cpu")) == expected


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="nothing in it that a benchmark runs on: sequences"):
        available_data(tmp_path)
    with pytest.raises(BadInputError, match="no such folder; give one that holds data sets"):
        available_data(tmp_path / "no")
