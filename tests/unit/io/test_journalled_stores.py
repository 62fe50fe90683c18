"""Stores under a journal: refusals, signals, other processes and other folders, one defect that was once there each."""

from __future__ import annotations

import os
import subprocess
import sys
from io import FileIO
from pathlib import Path

import h5py
import killed_writes
import numpy as np
import pytest
from killed_writes import NAMES, Made, Moment, assert_holds, features_of, written

from featkit.core.errors import BadInputError, NotWritableError
from featkit.io import h5, journal
from featkit.io.features import append_features, open_features
from featkit.io.shards import write_index


@pytest.mark.parametrize("refused", range(1, 12))
def test_a_full_disk_within_a_record_of_the_journal(
    refused: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a record is written, and the next moment there is room again."""
    path = written(tmp_path / "features.h5", NAMES[:3])
    plain, count = journal._write_all, 0

    def full(file: FileIO, data: bytes | memoryview) -> None:
        nonlocal count
        count += file.name != path
        if count == refused and file.name != path:
            plain(file, memoryview(data)[: len(data) // 2])
            raise OSError(28, "No space left on device")
        plain(file, data)

    monkeypatch.setattr(journal, "_write_all", full)
    with pytest.raises(NotWritableError, match="no space left"):
        write_again(path, NAMES[:1] * 6)
    monkeypatch.undo()
    assert_holds(path, NAMES[:3])


def test_an_item_that_cannot_replace_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one stays, and nothing more is taken that would not be kept."""
    path = written(tmp_path / "features.h5", NAMES[:2])

    def refused(*_: object, **__: object) -> None:
        raise MemoryError("none left")

    with append_features(path, Made()) as store:
        monkeypatch.setattr(h5py.Group, "create_dataset", refused)
        with pytest.raises(BadInputError, match="cannot be written"):
            store.write(NAMES[0], features_of(NAMES[0]))
        monkeypatch.undo()
        with pytest.raises((BadInputError, MemoryError)):
            store.write(NAMES[2], features_of(NAMES[2]))
        assert NAMES[2] not in store._file, "nothing is begun any more"
    assert_holds(path, NAMES[:2])


@pytest.mark.slow
def test_a_disk_that_refuses_once(tmp_path: Path) -> None:
    """Any write, of an item or at the end: it is said, HDF5 closes its file, and what was whole before stays."""
    nth = 1
    while refused_at(tmp_path / "features.h5", nth):
        nth += 1
    assert nth > 100


def refused_at(path: Path, nth: int) -> bool:
    """Write a store whose disk refuses the nth write; whether there were so many."""
    path.unlink(missing_ok=True)
    written(path, NAMES[:2])
    plain, count, done = journal._write_all, 0, NAMES[:2]

    def full(file: FileIO, data: bytes | memoryview) -> None:
        nonlocal count
        count += 1
        if count == nth:
            raise OSError(28, "No space left on device")
        plain(file, data)

    def write_on() -> None:
        with append_features(path, Made()) as store:
            for name in NAMES[2:]:
                store.write(name, features_of(name))
                done.append(name)
            store._file.attrs["more"] = 1  # which is not flushed before the end

    message = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_write_all", full)
        try:
            write_on()
        except NotWritableError as error:
            message = str(error)
    assert ("no space left" in message) == (count >= nth)
    assert_holds(path, done)
    assert list(path.parent.iterdir()) == [path]
    return count >= nth


def test_hdf5_is_not_told_of_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "any.bin"
    path.write_bytes(b"as it was")
    disk = journal.JournalledFile(path)

    def full(file: FileIO, data: bytes | memoryview) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "_write_all", full)
    assert disk.write(memoryview(b"new")) == 3
    assert isinstance(disk.refused, OSError)
    monkeypatch.undo()
    assert disk.write(memoryview(b"new")) == 3
    disk.flush()
    disk.close()
    assert path.read_bytes() == b"as it was"


def test_an_exception_between_items_loses_none(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    with pytest.raises(BadInputError, match="no item"):
        write_again(path, [NAMES[0], "no item"])
    assert_holds(path, NAMES[:1])


def test_somebody_reads_what_is_half_written(torn: tuple[Path, Moment], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program's file is open: nothing can be put back, so nothing is read either."""
    path, moment = torn
    monkeypatch.setattr(h5, "TRIES", 2)
    with h5py.File(path, "r"), pytest.raises(NotWritableError, match="in use"), open_features(path):
        pass
    with open_features(path) as store:
        assert set(store.names()) == set(moment.done)


READER = """
import sys
from pathlib import Path
from featkit.io.features import open_features
sys.stdin.readline()
with open_features(Path(sys.argv[1])) as store:
    print(len(store.names()))
"""


def test_readers_that_start_together_after_a_kill(torn: tuple[Path, Moment]) -> None:
    path, moment = torn
    command = [sys.executable, "-c", READER, str(path)]
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write("\n")
        reader.stdin.flush()
    found = [reader.communicate(timeout=60) for reader in readers]
    assert [out.strip() for out, _ in found] == [str(len(moment.done))] * 4, found


def test_overwriting_beside_a_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    with append_features(path, Made()) as store:
        store.write(NAMES[0], features_of(NAMES[0]))
        opened = append_features(path, Made(), overwrite=True)
        with pytest.raises(NotWritableError, match="in use"), opened:
            pass
        store.write(NAMES[1], features_of(NAMES[1]))
    assert_holds(path, NAMES[:2])


def test_no_locks_no_putting_back_by_readers(torn: tuple[Path, Moment], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can tell whether the writer lives, only the next writer mends."""
    path, moment = torn
    monkeypatch.setattr(journal, "_lock", lambda file: False)
    monkeypatch.setattr(h5, "TRIES", 1)
    with pytest.raises(NotWritableError), open_features(path):
        pass
    with journal.JournalledFile(path):
        pass
    assert path.read_bytes() == moment.flushed


def test_another_folder_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with append_features(Path("features.h5"), Made()) as store:
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.write(NAMES[0], features_of(NAMES[0]))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["elsewhere", "features.h5"]
    assert_holds(tmp_path / "features.h5", NAMES[:1])


def test_cut_back_and_written_again(tmp_path: Path) -> None:
    """HDF5 may shorten the file and write beyond its end, any number of times between two flushes."""
    path = tmp_path / "any.bin"
    random = np.random.default_rng(0)
    for _ in range(200):
        before = random.bytes(6000)
        path.write_bytes(before)
        disk = journal.JournalledFile(path)
        for _ in range(random.integers(1, 9)):
            if random.random() < 0.4:
                disk.truncate(int(random.integers(0, 9000)))
            else:
                disk.seek(int(random.integers(0, 8000)))
                disk.write(memoryview(random.bytes(int(random.integers(1, 3000)))))
        disk.close()
        assert path.read_bytes() == before


def write_again(path: Path, names: list[str]) -> None:
    with append_features(path, Made()) as store:
        for name in names:
            if name not in NAMES:
                raise BadInputError(name)
            store.write(name, features_of(name))


def test_an_index_keeps_seeing_its_shards(tmp_path: Path) -> None:
    shards = [written(tmp_path / f"{k}.h5", NAMES[k::2]) for k in range(2)]
    index = tmp_path / "features.h5"
    write_index(index, shards)
    with append_features(index, Made()) as store:
        assert all(store.has(name) for name in NAMES)
    assert_holds(index, NAMES)


def test_an_index_is_written_in_two_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no journal: the mark of an item must not reach the disk before the item."""
    index, seen = tmp_path / "features.h5", []
    write_index(index, [written(tmp_path / "0.h5", NAMES[:2])])
    plain = h5py.File.flush

    def flush(file: h5py.File) -> None:
        plain(file)
        if NAMES[2] in file:
            seen.append(h5.is_complete(file, NAMES[2]))

    with append_features(index, Made()) as store:
        monkeypatch.setattr(h5py.File, "flush", flush)
        store.write(NAMES[2], features_of(NAMES[2]))
    assert seen[:2] == [False, True]


BEGINNER = """
import sys
from pathlib import Path
from featkit.core.errors import NotWritableError
from featkit.io.features import append_features
from killed_writes import NAMES, Made, features_of
sys.stdin.readline()
try:
    with append_features(Path(sys.argv[1]), Made()) as store:
        print("begun", flush=True)
        sys.stdin.readline()
        store.write(NAMES[0], features_of(NAMES[0]))
except NotWritableError as error:
    print("in use" if "in use" in str(error) else error, flush=True)
"""


def test_two_begin_at_once(tmp_path: Path) -> None:
    """One of them does; the other says so, and takes nothing away."""
    path, here = tmp_path / "features.h5", str(Path(killed_writes.__file__).parent)
    beginners = [
        subprocess.Popen(
            [sys.executable, "-c", BEGINNER, str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": here},
        )
        for _ in range(3)
    ]  # fmt: skip
    message = []
    for beginner in beginners:
        assert beginner.stdin is not None
        beginner.stdin.write("go\n")
        beginner.stdin.flush()
    for beginner in beginners:
        assert beginner.stdout is not None
        message.append(beginner.stdout.readline().strip())
    assert sorted(message) == ["begun", "in use", "in use"]
    for beginner in beginners:
        beginner.communicate("write\n", timeout=60)
    assert_holds(path, NAMES[:1])
    assert list(tmp_path.iterdir()) == [path]
