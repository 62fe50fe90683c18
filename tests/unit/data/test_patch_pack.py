"""Packs: what goes in comes out, within the size, deterministic; and hostile or broken files are refused."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from featkit.core.errors import BadInputError, EmptyResultError, NotWritableError, UsageError
from featkit.data.patch_pack import (
    MAX_BYTES,
    PackConfig,
    patches_of,
    read_manifest,
    read_patch_data,
    read_test_pairs,
    tiles_of,
    write_pack,
)
from featkit.data.patch_set import PatchSet, union
from featkit.data.phototour import (
    create_bitmaps,
    draw_pairs,
    read_phototour,
    write_info,
    write_phototour_pairs,
    write_scenes,
)

LOSSLESS = PackConfig(quality=0)


def smooth(count: int, rng: np.random.Generator) -> np.ndarray:
    """Patches like photographs: noise without the high frequencies."""
    return np.stack([cv2.resize(rng.integers(0, 256, (9, 9), dtype=np.uint8), (64, 64)) for _ in range(count)])


def make_folder(root: Path, classes: int, seed: int, scenes: tuple[str, ...] = ("x", "y"), pairs: int = 80) -> Path:
    """Classes of 2 to 4 patches, one image per patch of a class, half of the classes in each scene."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 5, classes)
    labels = np.repeat(np.arange(classes) * 3 + 5, sizes)  # ids with gaps, as UBC's may have
    scene = np.repeat(np.arange(classes) % len(scenes), sizes)
    within = np.concatenate([np.arange(size) for size in sizes])
    create_bitmaps(root, len(labels))[np.arange(len(labels))] = smooth(len(labels), rng)
    write_info(root, labels, scene * 4 + within)
    write_scenes(root, [(name, f"{i}.jpg") for name in scenes for i in range(4)])
    (root / "licence.txt").write_text(f"{root.name}: CC0\n")
    if pairs:
        write_phototour_pairs(root, draw_pairs(labels, scene, pairs, rng), labels)
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sets")
    return make_folder(root / "one", 40, 1), make_folder(root / "two", 130, 2)


@pytest.fixture(scope="module")
def whole_pack(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never written to: see `pack`."""
    path = tmp_path_factory.mktemp("packs") / "p.zip"
    write_pack(LOSSLESS, folders, path)
    return path


@pytest.fixture
def pack(whole_pack: Path, tmp_path: Path) -> Path:
    """A pack of one's own."""
    return Path(shutil.copy(whole_pack, tmp_path))


def same_set(got: PatchSet, wanted: PatchSet) -> None:
    everything = np.arange(len(wanted))
    np.testing.assert_array_equal(got.patches[everything], wanted.patches[everything])
    np.testing.assert_array_equal(got.classes, np.unique(wanted.classes, return_inverse=True)[1])
    assert [got.scene_names[i] for i in got.scenes] == [wanted.scene_names[i] for i in wanted.scenes]
    assert wanted.images is not None
    np.testing.assert_array_equal(got.images, wanted.images)


def test_mosaics_are_undone() -> None:
    patches = np.random.default_rng(0).integers(0, 256, (35, 8, 8), dtype=np.uint8)
    mosaic = tiles_of(patches)
    assert mosaic.shape == (24, 128)
    np.testing.assert_array_equal(mosaic[8:16, 16:24], patches[18])
    np.testing.assert_array_equal(patches_of(mosaic, 8)[:35], patches)


def test_without_loss_every_set_comes_back(pack: Path, folders: tuple[Path, Path]) -> None:
    for folder in folders:
        same_set(read_patch_data(pack / folder.name), read_phototour(folder))
        got, wanted = read_test_pairs(pack / folder.name), read_test_pairs(folder)
        np.testing.assert_array_equal([got.index0, got.index1], [wanted.index0, wanted.index1])
        np.testing.assert_array_equal(got.match, wanted.match)


def test_images_of_joined_sets_stay_separate(folders: tuple[Path, Path]) -> None:
    sets = [read_phototour(folder) for folder in folders]
    first, unknown, last = sets[0], replace(sets[1], images=None), sets[1]
    assert first.images is not None
    assert last.images is not None
    found = union([first, unknown, last])
    assert found.images is not None
    ends = np.cumsum([len(first), len(unknown), len(last)])
    own, none, other = np.split(found.images, ends[:-1])
    np.testing.assert_array_equal(own, first.images)
    assert (none == -1).all()
    assert not set(own) & set(other)
    np.testing.assert_array_equal(other - other.min(), last.images - last.images.min())


def test_the_whole_pack_is_the_union(pack: Path, folders: tuple[Path, Path]) -> None:
    whole, parts = read_patch_data(pack), [read_phototour(folder) for folder in folders]
    assert len(whole) == sum(map(len, parts))
    assert len(np.unique(whole.classes)) == 170
    assert whole.scene_names == ("x", "y", "x", "y")
    pairs = read_test_pairs(pack)
    assert len(pairs) == 160
    np.testing.assert_array_equal(whole.classes[pairs.index0] == whole.classes[pairs.index1], pairs.match)
    assert (whole.scenes[pairs.index0] == whole.scenes[pairs.index1]).all()
    last = whole.patches[np.array([len(whole) - 1])]
    np.testing.assert_array_equal(last, parts[1].patches[np.array([len(parts[1]) - 1])])


def test_a_folder_is_read_as_itself(folders: tuple[Path, Path]) -> None:
    got = read_patch_data(folders[0])
    np.testing.assert_array_equal(got.classes, read_phototour(folders[0]).classes)
    assert len(read_test_pairs(folders[0])) == 80


def test_jpeg_costs_what_the_manifest_says(folders: tuple[Path, Path], tmp_path: Path) -> None:
    manifest = write_pack(PackConfig(quality=80), folders, tmp_path / "j.zip")
    for folder in folders:
        wanted = read_phototour(folder)
        everything = np.arange(len(wanted))
        got = read_patch_data(tmp_path / "j.zip" / folder.name).patches[everything]
        error = float(np.abs(got.astype(int) - wanted.patches[everything]).mean())
        assert manifest["sets"][folder.name]["mean_abs_error"] == pytest.approx(error, abs=1e-3)
        assert 0 < error < 3
    assert (tmp_path / "j.zip").stat().st_size < 0.6 * sum(
        path.stat().st_size for folder in folders for path in folder.glob("*.bmp")
    )


def test_jpeg_does_not_leak_between_patches(tmp_path: Path) -> None:
    """A checkerboard of black and white patches survives the strongest compression."""
    folder = make_folder(tmp_path / "s", 40, 3, pairs=0)
    count = len(read_phototour(folder))
    board = np.zeros((count, 64, 64), np.uint8)
    board[::2] = 255
    for path in folder.glob("*.bmp"):
        path.unlink()
    create_bitmaps(folder, count)[np.arange(count)] = board
    write_pack(PackConfig(quality=10), [folder], tmp_path / "p.zip")
    np.testing.assert_array_equal(read_patch_data(tmp_path / "p.zip").patches, board)


@pytest.mark.parametrize("side", [48, 32])
def test_patches_are_reduced_by_their_means(folders: tuple[Path, Path], tmp_path: Path, side: int) -> None:
    write_pack(PackConfig(quality=0, side=side), folders[:1], tmp_path / "p.zip")
    got = read_patch_data(tmp_path / "p.zip")
    wanted = read_phototour(folders[0]).patches[np.arange(len(got))]
    assert got.patches.shape == (len(wanted), side, side)
    if 64 % side == 0:
        means = wanted.reshape(-1, side, 64 // side, side, 64 // side).mean((2, 4))
        assert np.abs(got.patches - means).max() <= 0.51


@pytest.mark.parametrize("max_mb", [0.03, 0.06, 0.09])
def test_the_limit_is_kept_by_leaving_out_whole_classes(
    folders: tuple[Path, Path], tmp_path: Path, max_mb: float
) -> None:
    manifest = write_pack(PackConfig(max_mb=max_mb), folders, tmp_path / "p.zip")
    size = (tmp_path / "p.zip").stat().st_size
    assert 0.6 * max_mb * 1e6 < size <= max_mb * 1e6
    one, two = (read_patch_data(tmp_path / "p.zip" / folder.name) for folder in folders)
    assert len(two) < len(read_phototour(folders[1]))
    assert abs(len(one) - len(two)) <= 4 or len(one) == len(read_phototour(folders[0]))  # the small set stays whole
    for got, folder in ((one, folders[0]), (two, folders[1])):
        wanted = read_phototour(folder)
        assert manifest["sets"][folder.name]["patches"] == len(got)
        assert manifest["sets"][folder.name]["of_patches"] == len(wanted)
        whole = set(np.unique(wanted.classes, return_counts=True)[1])
        sizes = np.bincount(got.classes)
        assert sizes.min() >= 2
        assert set(sizes) <= whole
        pairs = read_test_pairs(tmp_path / "p.zip" / folder.name)
        np.testing.assert_array_equal(got.classes[pairs.index0] == got.classes[pairs.index1], pairs.match)
        assert pairs.match.any()


def test_which_classes_stay_is_drawn(folders: tuple[Path, Path], tmp_path: Path) -> None:
    packs = []
    for number, seed in enumerate([0, 0, 1]):
        write_pack(PackConfig(max_mb=0.04), folders, tmp_path / f"{number}.zip", seed)
        packs.append((tmp_path / f"{number}.zip").read_bytes())
    assert packs[0] == packs[1]
    assert packs[0] != packs[2]


def test_a_limit_too_small_for_a_class_of_each_set(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(EmptyResultError, match="--max-mb"):
        write_pack(PackConfig(max_mb=0.001), folders, tmp_path / "p.zip")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_names_licences_and_settings(pack: Path) -> None:
    manifest = read_manifest(pack)
    assert manifest["settings"] == {"max_mb": 30.0, "side": 64, "quality": 0}
    assert {name: entry["licence"] for name, entry in manifest["sets"].items()} == {
        "one": "one: CC0",
        "two": "two: CC0",
    }


def test_a_folder_without_pairs_is_packed(tmp_path: Path) -> None:
    write_pack(LOSSLESS, [make_folder(tmp_path / "s", 10, 4, pairs=0)], tmp_path / "p.zip")
    assert len(np.unique(read_patch_data(tmp_path / "p.zip").classes)) == 10
    with pytest.raises(BadInputError, match="no test pairs"):
        read_test_pairs(tmp_path / "p.zip")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PackConfig(side=60), "multiple of 8"),
        (PackConfig(side=72), "cannot be enlarged"),
    ],
)
def test_what_cannot_be_packed(folders: tuple[Path, Path], tmp_path: Path, config: PackConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write_pack(config, folders, tmp_path / "p.zip")


def test_places_that_cannot_be_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two of the folders are named 'one'"):
        write_pack(LOSSLESS, [folders[0], folders[0]], tmp_path / "p.zip")
    with pytest.raises(BadInputError, match="is a folder"):
        write_pack(LOSSLESS, folders, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotWritableError):
        write_pack(LOSSLESS, folders, tmp_path / "file" / "p.zip")


def rewritten(pack: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The pack with its members changed."""
    with zipfile.ZipFile(pack) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(pack, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return pack


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def set_member(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.update({name: data})


def small_png(side: int) -> bytes:
    return bytes(cv2.imencode(".png", np.zeros((side, side), np.uint8))[1])


HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "a pickle": (set_member("one/labels.npy", npy(np.array([[{}, 1]], object), True)), "array of objects"),
    "labels of another shape": (set_member("one/labels.npy", npy(np.zeros(9, int))), "no table of two columns"),
    "labels of numbers that are no ids": (
        set_member("one/labels.npy", npy(np.zeros((9, 2)))),
        "no table of two columns",
    ),
    "images beyond the scenes": (set_member("one/labels.npy", npy(np.full((9, 2), 99))), "do not fit together"),
    "negative classes": (set_member("one/labels.npy", npy(np.full((9, 2), -1))), "do not fit together"),
    "no image": (set_member("one/tile0000", b"hello"), "no mosaic"),
    "an image of another size": (set_member("one/tile0000", small_png(64)), "no mosaic"),
    "a tile is missing": (lambda members: members.pop("one/tile0000"), "labels but 0 mosaics"),  # type: ignore[return-value]
    "no manifest": (lambda members: members.pop("pack.json"), "There is no item named 'pack.json'"),  # type: ignore[return-value]
    "a manifest that is no json": (set_member("pack.json", b"{"), "not a whole pack"),
    "a manifest of another format": (set_member("pack.json", b'{"format": 7, "sets": {}}'), "not a pack of format 1"),
    "a set of another kind": (set_member("one/set.json", b"[]"), "not a whole pack"),
    "a set without a side": (set_member("one/set.json", b'{"scene_of_image": []}'), "'side'"),
    "a huge side": (
        set_member("one/set.json", json.dumps({"side": 1 << 20, "scene_of_image": ["x"] * 8}).encode()),
        "do not fit together",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_packs_are_refused(pack: Path, kind: str) -> None:
    change, message = HOSTILE[kind]
    with pytest.raises(BadInputError, match=message):
        read_patch_data(rewritten(pack, change))


def test_pairs_of_patches_that_are_not_there(pack: Path) -> None:
    rewritten(pack, set_member("one/pairs.npy", npy(np.array([[0, 10**6]]))))
    with pytest.raises(BadInputError, match="refers to patches that do not exist"):
        read_test_pairs(pack)


def test_a_member_that_would_fill_the_memory(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_BYTES == 1 << 28
    monkeypatch.setattr("featkit.data.patch_pack.MAX_BYTES", 1000)
    with pytest.raises(BadInputError, match="is larger than"):
        read_patch_data(pack)


def test_names_that_climb_out_write_nothing(pack: Path, tmp_path: Path) -> None:
    """Members are asked for by name and stay in memory."""
    before = sorted(tmp_path.rglob("*"))
    rewritten(pack, set_member("../../evil", b"x"))
    read_patch_data(pack)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "missing", "another set"])
def test_files_that_are_no_whole_packs(pack: Path, damage: str) -> None:
    data = bytearray(pack.read_bytes())
    path = pack
    if damage == "truncated":
        pack.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[5000] ^= 255
        pack.write_bytes(data)
    elif damage == "text":
        pack.write_text("hello")
    else:
        path = pack.with_name("none.zip") if damage == "missing" else pack / "three"
    with pytest.raises(BadInputError) as caught:
        read_patch_data(path)
    assert "\n" not in str(caught.value)
    if damage == "another set":
        assert "has no set 'three'; it has one, two" in str(caught.value)


def test_the_magnification_is_kept(folders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders[0], tmp_path / "set"))
    (folder / "dataset.json").write_text('{"settings": {"magnification": 18.0}}')
    write_pack(LOSSLESS, [folder], tmp_path / "p.zip")
    assert read_patch_data(tmp_path / "p.zip").magnification == 18.0
