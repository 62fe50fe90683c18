"""Arrays of other programs: read as numpy reads them, and refused before anything runs where they are more."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featkit.core.errors import BadInputError
from featkit.io.foreign_arrays import Refused, h5_shape, read_h5, read_npz, unpickled


def objects(*values: Any) -> np.ndarray:
    found = np.empty(len(values), object)
    found[:] = values
    return found


def test_what_numpy_writes_is_read_as_numpy_reads_it(tmp_path: Path) -> None:
    arrays = {
        "paths": objects("a/é.jpg", None, b"b.jpg", np.str_("c.jpg")),
        "matrices": objects(np.arange(9.0).reshape(3, 3), None, np.asfortranarray(np.eye(4, dtype=np.float32))),
        "pairs": objects(((0, 1), 0.25, np.arange(4.0)), ((np.int64(2), 3), np.float64(0.5), [1, {"x": 2}])),
        "texts": np.array(["one", "three"]),
        "numbers": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        "none": np.zeros((0, 3)),
        "table": np.array([[1, "a"], [None, 2.5]], dtype=object),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = read_npz(tmp_path / "a.npz", "a.npz", [*arrays, "missing"])
        expected = np.load(tmp_path / "a.npz", allow_pickle=True)
        assert set(found) == set(arrays)
        for name, values in found.items():
            np.testing.assert_equal(values.tolist(), expected[name].tolist())
            assert (values.shape, values.dtype) == (expected[name].shape, expected[name].dtype)
        np.testing.assert_array_equal(found["matrices"][0], np.arange(9.0).reshape(3, 3))
        assert list(read_npz(tmp_path / "a.npz", "a.npz", ["texts"])) == ["texts"]


@pytest.mark.parametrize("protocol", range(2, 5))  # numpy writes 3 or 4
def test_every_numpy_and_protocol(protocol: int) -> None:
    values = objects("a", np.arange(3.0), (1, np.float32(2)))
    data = pickle.dumps(values, protocol)
    for old in (data, data.replace(b"numpy._core", b"numpy.core") if protocol < 4 else data):
        found = unpickled(old)
        np.testing.assert_equal(found.tolist(), values.tolist())


class Runs:
    """Pickled, it makes a file when it is read."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    np.savez(tmp_path / "bad.npz", paths=objects("a.jpg", Runs(canary)), good=np.arange(2))
    with pytest.raises(
        BadInputError, match=r"bad.npz: refused without running anything: its pickle asks for \w+.mkdir,"
    ):
        read_npz(tmp_path / "bad.npz", "bad.npz", ["paths"])
    assert not canary.exists()
    assert read_npz(tmp_path / "bad.npz", "bad.npz", ["good"])["good"].tolist() == [0, 1], "what is not read is not run"
    np.load(tmp_path / "bad.npz", allow_pickle=True)["paths"]
    assert canary.exists(), "numpy's own reader runs it"


MULTI = b"cnumpy.core.multiarray\n"
ARRAY = MULTI + b"_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"  # an array whose state comes next
FLOAT8 = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8tR"
OBJECT = b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8tR"
PLAIN = b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.", "asks for builtins.eval"),
        (b"cnumpy\nndarray.tofile\n.", "asks for numpy.ndarray.tofile"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zlbtR.", "encodes as 'zlb'"),
        (b"cnumpy\nndarray\n(K\x09tR.", "calls numpy.ndarray itself"),
        (MULTI + b"_reconstruct\n(X\x05\x00\x00\x00_makeNtb.", "changes _reconstruct"),
        (b"(lX\x01\x00\x00\x00aQ.", "outside of the file"),
        (ARRAY + b"(K\x01(K\x01t" + OBJECT + PLAIN + b"\x89C\x08AAAAAAAAtb.", "content does not have its size"),
        (ARRAY + b"(K\x01(K\x01t" + OBJECT + PLAIN + b"\x89C\x01Atb.", "content does not have its size"),
        (ARRAY + b"(K\x01(K\x02t" + FLOAT8 + PLAIN + b"\x89C\x08AAAAAAAAtb.", "content does not have its size"),
        (ARRAY + b"(K\x01(K\x01tX\x02\x00\x00\x00O8\x89C\x08AAAAAAAAtb.", "malformed array"),
        (b"cnumpy\ndtype\n(X\x02\x00\x00\x00V8tR(K\x03X\x01\x00\x00\x00|N(X\x01\x00\x00\x00xt}K\x08tb.", "structure"),
        (MULTI + b"scalar\n(" + OBJECT + PLAIN + b"C\x08AAAAAAAAtR.", "malformed scalar"),
    ],
)
def test_what_arrays_do_not_need_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(Refused, match=says):
        unpickled(data)


def test_the_pieces_of_those_are_accepted() -> None:
    """Otherwise the refusals above would not be for what they say."""
    found = unpickled(ARRAY + b"(K\x01(K\x01t" + FLOAT8 + PLAIN + b"\x89C\x08" + np.float64(2.5).tobytes() + b"tb.")
    assert np.asarray(found).tolist() == [2.5]
    assert unpickled(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1tR.") == b"a"
    assert unpickled(MULTI + b"scalar\n(" + FLOAT8 + PLAIN + b"C\x08" + np.float64(1.5).tobytes() + b"tR.") == 1.5


def member(content: bytes, dtype: str = "|O", shape: str = "(1,)") -> bytes:
    """An .npy file."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY\x09\x00",
        member(pickle.dumps(objects("a"))[:-9]),
        member(b"N."),
        member(pickle.dumps(objects("a")), shape="(2,)"),
        member(b"\0" * 8, "<f8", "(2,)"),
        member(b"\0" * 8, "<f8", "(-1,)"),
        member(b"}Nb."),  # a state for what has none
        member(b"]]]]]]" * 1000),
    ],
)
def test_damaged_arrays_are_one_line(content: bytes) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(BadInputError, match=r"x.npz: not an \.npz that can be read") as found:
        read_npz(file, "x.npz", ["a"])
    assert "\n" not in str(found.value)


def test_no_npz_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04")
    for name in ("a.npz", "gone.npz"):
        with pytest.raises(BadInputError, match=r"not an \.npz that can be read"):
            read_npz(tmp_path / name, name, ["a"])


def test_h5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["K"], file["depth"], file["name"] = np.eye(3, dtype=np.float32), np.zeros((3, 4)), "text"
        file.create_group("group")
    assert read_h5(tmp_path / "a.h5", ["K"])["K"].dtype == np.float64
    assert h5_shape(tmp_path / "a.h5", "depth") == (3, 4)
    assert h5_shape(tmp_path / "a.h5", "gone") is None
    assert h5_shape(tmp_path / "b.h5", "depth") is None
    assert h5_shape(tmp_path / "a.h5", "group") is None
    for name in ("R", "name", "group"):
        with pytest.raises(BadInputError, match=rf"a\.h5: '{name}' (is missing|holds)"):
            read_h5(tmp_path / "a.h5", [name])
    with pytest.raises(BadInputError, match="no such file"):
        read_h5(tmp_path / "b.h5", ["K"])
