"""The journal: killed between any two writes to the disk, or within one, a store is what it was at its last flush."""

from __future__ import annotations

import shutil
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from killed_writes import NAMES, Made, Moment, Moments, features_of

from featkit.core.errors import NotWritableError
from featkit.io import journal
from featkit.io.features import append_features, open_features


@pytest.mark.slow
def test_killed_at_every_write(moments: Moments, tmp_path: Path) -> None:
    """What is read then is, to the byte, what the last flush left."""
    overwritten = 0
    for number, moment in enumerate(moments.moments):
        path = moments.copy(number, tmp_path)
        overwritten += not path.read_bytes().startswith(moment.flushed)
        with open_features(path) as store:
            names = store.names()
            assert set(moment.done) <= set(names), number
            for name in names:
                np.testing.assert_array_equal(store.read(name).descriptors, features_of(name).descriptors)
        assert path.read_bytes().startswith(moment.flushed)
    assert len(moments.moments) > 200
    assert overwritten > 50, "without the journal these would be read half written"


def test_goes_on_after_a_kill(torn: tuple[Path, Moment]) -> None:
    path, _ = torn
    with append_features(path, Made()) as store:
        for name in sorted(set(NAMES) - set(store.names())):
            store.write(name, features_of(name))
    assert list(path.parent.iterdir()) == [path], "nothing is left beside the store"
    with open_features(path) as store:
        assert store.names() == sorted(NAMES)


def test_reading_puts_back(torn: tuple[Path, Moment]) -> None:
    path, moment = torn
    with open_features(path) as store:
        assert set(store.names()) == set(moment.done)
    assert path.read_bytes() == moment.flushed
    assert list(path.parent.iterdir()) == [path]


def test_killed_while_it_puts_back(torn: tuple[Path, Moment], monkeypatch: pytest.MonkeyPatch) -> None:
    path, moment = torn
    plain = journal._write_all

    def killed(file: FileIO, data: bytes | memoryview) -> None:
        plain(file, memoryview(data)[: len(data) // 2])
        raise KeyboardInterrupt

    for _ in range(2):
        monkeypatch.setattr(journal, "_write_all", killed)
        with pytest.raises(KeyboardInterrupt), open_features(path):
            pass
        monkeypatch.undo()
    with open_features(path) as store:
        assert set(store.names()) == set(moment.done)
    assert path.read_bytes() == moment.flushed


def test_copied_with_its_journal(torn: tuple[Path, Moment], tmp_path: Path) -> None:
    path, moment = torn
    copy = shutil.copytree(path.parent, tmp_path / "copy") / path.name
    with open_features(copy) as store:
        assert set(store.names()) == set(moment.done)
    assert copy.read_bytes() == moment.flushed


def test_copied_and_its_journal_moved(torn: tuple[Path, Moment], tmp_path: Path) -> None:
    """By their numbers in the file system, one of the two is another file and the other is not."""
    path, moment = torn
    (tmp_path / "elsewhere").mkdir()
    copy = Path(shutil.copy(path, tmp_path / "elsewhere"))
    shutil.move(journal.journal_of(path), journal.journal_of(copy))
    with open_features(copy) as store:
        assert set(store.names()) == set(moment.done)
    assert copy.read_bytes() == moment.flushed


@pytest.mark.parametrize("where", [0, 4095, -4096, -1])
def test_a_journal_of_a_file_with_other_ends(where: int, tmp_path: Path) -> None:
    """As large as the one that it belongs to, it is left alone."""
    path, other = tmp_path / "any.bin", tmp_path / "other.bin"
    path.write_bytes(bytes(10_000))
    disk = journal.JournalledFile(path)
    disk.seek(5_000)
    disk.write(memoryview(b"begun"))
    shutil.copy(path, other)
    shutil.copy(journal.journal_of(path), journal.journal_of(other))
    disk.close()
    data = bytearray(other.read_bytes())
    data[where] = 1
    other.write_bytes(data)
    journal.roll_back(other)
    assert other.read_bytes() == data
    assert path.read_bytes() == bytes(10_000)


def test_a_change_across_an_end_is_put_back(tmp_path: Path) -> None:
    """The ends are compared as they were."""
    path = tmp_path / "any.bin"
    path.write_bytes(bytes(10_000))
    disk = journal.JournalledFile(path)
    disk.seek(4_000)
    disk.write(memoryview(b"begun" * 40))
    kept = journal.journal_of(path).read_bytes(), path.read_bytes()
    disk.close()
    journal.journal_of(path).write_bytes(kept[0])
    path.write_bytes(kept[1])
    journal.roll_back(path)
    assert path.read_bytes() == bytes(10_000)


def test_a_journal_of_another_file_is_not_put_back(torn: tuple[Path, Moment], tmp_path: Path) -> None:
    path, _ = torn
    with append_features(tmp_path / "other.h5", Made()) as store:
        store.write(NAMES[0], features_of(NAMES[0]))
    shutil.move(tmp_path / "other.h5", path)
    before = path.read_bytes()
    with open_features(path) as store:
        assert store.names() == NAMES[:1]
    assert path.read_bytes() == before


@pytest.mark.parametrize("way", ["removed", "overwritten"])
def test_begun_anew_beside_an_old_journal(torn: tuple[Path, Moment], way: str) -> None:
    path, _ = torn
    if way == "removed":
        path.unlink()
    with append_features(path, Made(), overwrite=way == "overwritten") as store:
        assert store.names() == []
        store.write(NAMES[1], features_of(NAMES[1]))
    with open_features(path) as store:
        assert store.names() == [NAMES[1]]


def test_where_nothing_can_be_put_back(torn: tuple[Path, Moment], monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = torn

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(journal.JournalledFile, "__init__", refused)
    with (
        pytest.raises(NotWritableError, match=r"partially written, .* and cannot be recovered here"),
        open_features(path),
    ):
        pass


def test_refused_by_the_disk_within_an_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is closed without the item, and what was done before is there."""
    path = tmp_path / "features.h5"
    plain = journal._write_all

    def full(file: FileIO, data: bytes | memoryview) -> None:
        if file.name == path and len(data) > 1000:
            raise OSError(28, "No space left on device")
        plain(file, data)

    with append_features(path, Made()) as store:
        store.write(NAMES[0], features_of(NAMES[0]))
    monkeypatch.setattr(journal, "_write_all", full)
    with pytest.raises(NotWritableError, match="no space left"), append_features(path, Made()) as store:
        store.write(NAMES[1], features_of(NAMES[1]))
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [path]
    with open_features(path) as store:
        assert store.names() == NAMES[:1]
        np.testing.assert_array_equal(store.read(NAMES[0]).scores, features_of(NAMES[0]).scores)


@pytest.mark.parametrize("moment", ["item", "close"])
def test_interrupted_within_a_write(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that is answered while HDF5 writes."""
    path = tmp_path / "features.h5"
    plain = journal._write_all

    def interrupted(file: FileIO, data: bytes | memoryview) -> None:
        if file.name == path:
            raise KeyboardInterrupt
        plain(file, data)

    with append_features(path, Made()) as store:
        store.write(NAMES[0], features_of(NAMES[0]))
    before = path.read_bytes()

    def interrupt() -> None:
        with append_features(path, Made()) as store:
            if moment == "close":
                store._file.attrs["more"] = 1
            monkeypatch.setattr(journal, "_write_all", interrupted)
            if moment == "item":
                store.write(NAMES[1], features_of(NAMES[1]))

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    monkeypatch.undo()
    assert path.read_bytes() == before
    with open_features(path) as store:
        assert store.names() == NAMES[:1]


def test_one_writer_and_no_reader_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    with append_features(path, Made()) as store:
        store.write(NAMES[0], features_of(NAMES[0]))
        for opened in (append_features(path, Made()), open_features(path)):
            with pytest.raises(NotWritableError, match="in use by another process"), opened:
                pass
