"""RomePatches from MATLAB files, and MATLAB files by themselves."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from synthetic_patches import matlab5, write_rome

from featkit.core.errors import BadInputError
from featkit.data.hpatches import read_matlab, read_rome

ARRAYS = {
    "grey": np.arange(60, dtype=np.uint8).reshape(3, 4, 5),
    "x": np.array([[1.5, -2.5, 1e300]]),
    "labels_gt": np.arange(7, dtype=np.int32)[:, None],
    "half": np.float32([[0.5], [0.25]]),
}


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_of_a_matlab_file(tmp_path: Path, compressed: bool, order: str) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(matlab5(ARRAYS, compressed, order))
    found = read_matlab(path)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_that_scipy_wrote(tmp_path: Path, compressed: bool) -> None:
    """An independent writer; it stores whole doubles as bytes, and texts and structs between the arrays."""
    path = tmp_path / "a.mat"
    whole = {"doubles": np.arange(12.0).reshape(3, 4), "s": {"a": 1}, "t": "text", **ARRAYS, "c": np.array([1j])}
    scipy.io.savemat(path, whole, do_compression=compressed)
    found = read_matlab(path)
    assert set(found) == {"doubles", *ARRAYS}
    np.testing.assert_array_equal(found["doubles"], whole["doubles"])
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


def test_broken_matlab_files(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    with pytest.raises(BadInputError, match="cannot be read"):
        read_matlab(path)
    whole = matlab5(ARRAYS)
    for content, message in (
        (b"", "not a MATLAB file"),
        (b"<html>" * 50, "not a MATLAB file"),
        (b"MATLAB 7.3".ljust(512) + b"\x89HDF\r\n\x1a\n", r"MATLAB 7.3 \(HDF5\)"),
        (whole[: len(whole) // 2], "broken"),
        (matlab5(ARRAYS, compressed=False)[:-30], "broken"),
        (whole[:128] + struct.pack("<II", 15, 20) + bytes(20), "broken"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadInputError, match=message):
            read_matlab(path)


def test_groups_of_rome(tmp_path: Path) -> None:
    for part in ("train", "test"):
        rome = read_rome(write_rome(tmp_path), part)  # type: ignore[arg-type]
        assert rome.patches.shape == (60, 51, 51)
        assert rome.patches.dtype == np.uint8
        assert rome.num_queries == 12
        assert (np.bincount(rome.labels)[1:] == 5).all()
        for label in (1, 7):  # a patch is nearer to one of its group than to the mean of the others
            mine = rome.patches[rome.labels == label].astype(float)
            others = rome.patches[rome.labels != label].astype(float)
            assert np.abs(mine[0] - mine[1]).mean() < np.abs(mine[0] - others).mean(axis=(1, 2)).mean()
    assert len(rome.as_patch_set()) == 60


GREY = np.random.default_rng(0).integers(0, 256, (6, 51, 51), dtype=np.uint8)


@pytest.mark.parametrize(
    "stored",
    [
        GREY,
        GREY.transpose(1, 2, 0),
        GREY.reshape(6, -1),
        np.repeat(GREY[:, None], 3, axis=1),
        np.repeat(GREY[..., None], 3, axis=-1),
        np.repeat(GREY[:, None], 3, axis=1).transpose(2, 3, 1, 0),
        GREY.astype(np.float32) / 255,
    ],
    ids=["n h w", "h w n", "flat", "n 3 h w", "n h w 3", "h w 3 n", "shares"],
)
def test_patches_in_any_order_of_axes(tmp_path: Path, stored: np.ndarray) -> None:
    (tmp_path / "patch_retrieval_Rome_test.mat").write_bytes(matlab5({"patches": stored}))
    labels = {"labels_gt": np.array([[1.0, 2.0]]), "labels": np.array([[2.0, 1.0, 1.0, 2.0]])}
    (tmp_path / "patch_retrieval_Rome_test_labels.mat").write_bytes(matlab5(labels))
    rome = read_rome(tmp_path, "test")
    np.testing.assert_array_equal(rome.patches, GREY)
    assert rome.labels.tolist() == [1, 2, 2, 1, 1, 2]


@pytest.mark.parametrize(
    ("patches", "labels", "message"),
    [
        ({"other": GREY}, {}, r"no array 'patches' in it \(there are: other\)"),
        ({"patches": GREY[:5]}, {}, r"patches of shape \(5, 51, 51\), but 6 labels"),
        ({"patches": GREY[:, :50]}, {}, "they are not square"),
        ({"patches": GREY}, {"labels_gt": np.array([[1.0, 9.0]])}, "a query has no patch of its own group"),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, patches: dict, labels: dict, message: str) -> None:
    (tmp_path / "patch_retrieval_Rome_test.mat").write_bytes(matlab5(patches))
    good = {"labels_gt": np.array([[1.0, 2.0]]), "labels": np.array([[2.0, 1.0, 1.0, 2.0]])}
    (tmp_path / "patch_retrieval_Rome_test_labels.mat").write_bytes(matlab5({**good, **labels}))
    with pytest.raises(BadInputError, match=message):
        read_rome(tmp_path, "test")
    with pytest.raises(BadInputError, match=r"Rome_train.mat: no such file; get it with `featkit data fetch rome"):
        read_rome(tmp_path, "train")
