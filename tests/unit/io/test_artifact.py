"""One way to write: whose a file is, what is never touched, and what a killed run leaves for the next one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from killed_writes import Made, features_of, written

from featkit.core.config import Config
from featkit.core.errors import BadInputError, NotWritableError
from featkit.io import artifact
from featkit.io.artifact import (
    MARK,
    locked,
    making,
    part_of,
    place_files,
    remove,
    write_bytes,
    write_described,
    write_stamp,
    write_text,
    writing,
)
from featkit.io.atomic import STAMP, is_foreign, refuse_foreign
from featkit.io.features import append_features
from featkit.io.lists import write_ply

STAMPED = {"featkit_version": "0.1.0", "fingerprint": "f", "inputs": "i", "config": {}}


def stamp(path: Path, **more: object) -> Path:
    path.write_text(json.dumps({**STAMPED, **more}))
    return path


def hloc_store(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["a.jpg/keypoints"] = np.zeros((3, 2))
    return path


def database(path: Path) -> Path:
    path.write_bytes(b"SQLite format 3\0" + bytes(100))
    return path


def weights(path: Path, form: str) -> Path:
    header = json.dumps({"__metadata__": {"config": "{}", "format": form}}, separators=(",", ":")).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def packed(path: Path, name: str, text: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, text)
    return path


def a_folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("x")
    return path


def a_map(path: Path) -> Path:
    a_folder(path, "images.bin")
    stamp(path.with_name(f"{path.name}.json"), kind="map")
    return path


def of_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def of_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


OWN: dict[str, Callable[[Path], Path]] = {  # as featkit 0.1.0 wrote them
    "nothing": lambda d: d / "nothing",
    "a store": lambda d: written(d / "a.h5", []),
    "a store that was cut off": lambda d: of_bytes(d / "b.h5", written(d / "a.h5", []).read_bytes()[:2000]),
    "a link to a store": lambda d: link(d / "b.h5", written(d / "a.h5", [])),
    "a database with its stamp": lambda d: (stamp(d / "a.json", kind="database"), database(d / "a.db"))[1],
    "pairs with their description": lambda d: (stamp(d / "p.json", kind="pairs"), of_text(d / "p.txt", "a b\n"))[1],
    "poses": lambda d: (stamp(d / "poses.json", results=[], localized=0), of_text(d / "poses.txt", "a 1 0\n"))[1],
    "a stamp": lambda d: stamp(d / "s.json"),
    "metrics of the demo": lambda d: of_text(d / "demo.json", json.dumps({"map": {"featkit_version": "0.1.0"}})),
    "the summary of a training": lambda d: of_text(d / "summary.json", json.dumps({"versions": {"featkit": "0"}})),
    "a report": lambda d: of_text(d / "r.html", '<!doctype html>\n<meta name="generator" content="featkit">'),
    "a weight": lambda d: weights(d / "w.safetensors", "featkit patch network 1"),
    "a pack": lambda d: packed(d / "p.zip", "pack.json", json.dumps(STAMPED)),
    "a checkpoint": lambda d: packed(d / "c.pt", "checkpoint/data.pkl", "\x80\x02featkit_version"),
    "points": lambda d: write_ply(d / "a.ply", np.zeros((1, 3)), np.zeros((1, 3), np.uint8)),
    "an empty folder": lambda d: a_folder(d / "empty"),
    "a map": lambda d: a_map(d / "sparse"),
    "a set of patches": lambda d: stamp(a_folder(d / "set", "info.txt") / "dataset.json").parent,
}
FOREIGN: dict[str, Callable[[Path], Path]] = {
    "a photograph": lambda d: of_bytes(d / "a.jpg", b"\xff\xd8\xff\xe0 a photograph"),
    "a text": lambda d: of_text(d / "a.txt", "a b\n"),
    "an empty file": lambda d: of_text(d / "a.txt", ""),
    "a text next to a json of something else": lambda d: (of_text(d / "a.json", "{}"), of_text(d / "a.txt", "a b\n"))[
        1
    ],
    "a text next to the stamp of a database": lambda d: (
        stamp(d / "a.json", kind="database"),
        of_text(d / "a.txt", ""),
    )[1],
    "pairs that were changed": lambda d: changed(write_described(d / "p.txt", "a b\n", {"kind": "pairs", **STAMPED})),
    "a store of hloc": lambda d: hloc_store(d / "a.h5"),
    "a link to a store of hloc": lambda d: link(d / "b.h5", hloc_store(d / "a.h5")),
    "a link to a report": lambda d: link(d / "b.html", OWN["a report"](d)),
    "a link to nothing": lambda d: link(d / "b.h5", d / "nowhere"),
    "a database of COLMAP": lambda d: database(d / "a.db"),
    "a json": lambda d: of_text(d / "a.json", '{"version": "featkit_version"}'),
    "a list in json": lambda d: of_text(d / "a.json", '["featkit_version"]'),
    "a json that is none": lambda d: of_text(d / "a.json", "{" * 100_000),
    "a page": lambda d: of_text(d / "a.html", "<!doctype html><p>featkit"),
    "a weight of another": lambda d: weights(d / "w.safetensors", "pt"),
    "a zip": lambda d: packed(d / "p.zip", "pack.json", "{}"),
    "a zip that is none": lambda d: of_bytes(d / "p.zip", b"PK\x03\x04" + bytes(100)),
    "points of another": lambda d: of_text(d / "a.ply", "ply\nformat ascii 1.0\nend_header\n"),
    "a folder": lambda d: a_folder(d / "photos", "a.jpg"),
    "a model of COLMAP": lambda d: a_folder(d / "sparse", "images.bin"),
    "a folder with a stamp of something else": lambda d: a_folder(d / "photos", "dataset.json"),
    "a pipe": lambda d: (os.mkfifo(d / "pipe"), d / "pipe")[1],
    "a text next to a pipe": lambda d: (os.mkfifo(d / "a.json"), of_text(d / "a.txt", "a b\n"))[1],
}


def link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def changed(path: Path) -> Path:
    path.write_text("c d\n")
    return path


@pytest.mark.parametrize("kind", OWN)
def test_featkits_own(kind: str, tmp_path: Path) -> None:
    path = OWN[kind](tmp_path)
    assert not is_foreign(path)
    refuse_foreign(path)


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign(kind: str, tmp_path: Path) -> None:
    path = FOREIGN[kind](tmp_path)
    assert is_foreign(path)
    for write in (
        lambda: write_bytes(path, b"new"),
        lambda: remove(path),
        lambda: write_stamp(path, Made(), ""),
        lambda: make(path, {"new": "x"}),
        lambda: append_features(path, Made(), overwrite=True).__enter__(),
    ):
        with pytest.raises(BadInputError, match=path.name) as caught:
            write()
        assert len(str(caught.value).splitlines()) == 1


def make(folder: Path, files: dict[str, str]) -> None:
    with making(
        folder, named=lambda: write_stamp(folder.with_name(f"{folder.name}.json"), Made(), "", kind="map")
    ) as new:
        for name, text in files.items():
            (new / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_same_bytes_are_nobodys_loss(tmp_path: Path) -> None:
    path = of_text(tmp_path / "a.txt", "a b\n")
    before = path.stat()
    assert write_text(path, "a b\n") == path
    assert path.stat() == before
    write_described(path, "a b\n", {"kind": "pairs", **STAMPED})  # from now on it is featkit's
    write_described(path, "c d\n", {"kind": "pairs", **STAMPED})
    assert path.read_text() == "c d\n"


def test_a_link_is_refused_also_where_the_place_is_known(tmp_path: Path) -> None:
    target = of_text(tmp_path / "target", "precious")
    with pytest.raises(BadInputError, match="symbolic link"):
        write_bytes(link(tmp_path / "link", target), b"new", owned=True)
    assert target.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_what_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """Between the first look and the rename."""
    path = tmp_path / "a.json"

    def write() -> None:
        with writing(path) as file:
            file.write(b"new")
            path.write_text("precious")

    with pytest.raises(BadInputError, match="not made by featkit"):
        write()
    assert contents(tmp_path) == {"a.json": "precious"}
    with pytest.raises(BadInputError, match="not made by featkit"), making(tmp_path / "folder"):
        a_folder(tmp_path / "folder", "precious")
    assert contents(tmp_path) == {"a.json": "precious", "folder/precious": "x"}


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    """The one that came first does not rename what the other has begun."""
    path = tmp_path / "a.json"

    def write() -> None:
        with writing(path) as first:
            first.write(b"first")
            with writing(path, owned=True) as second:
                second.write(b"second")

    with pytest.raises(NotWritableError, match="in use by another"):
        write()
    assert contents(tmp_path) == {"a.json": "second"}


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    with making(tmp_path / "folder") as new:
        (new / "a").write_text("first")
        with pytest.raises(NotWritableError, match="in use by another"), making(tmp_path / "folder"):
            pass
    assert contents(tmp_path) == {"folder/a": "first"}


def test_a_part_that_was_left_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    part_of(path).write_text("half")
    write_text(path, "{}", owned=True)
    assert contents(tmp_path) == {"a.json": "{}"}


@pytest.mark.parametrize("kind", ["link", "folder", "second name", "pipe"])
def test_a_part_that_nobody_left(kind: str, tmp_path: Path) -> None:
    path, precious = tmp_path / "a.json", of_text(tmp_path / "precious", "precious")
    part = part_of(path)
    if kind == "link":
        part.symlink_to(precious)
    elif kind == "folder":
        part.mkdir()
    elif kind == "pipe":
        os.mkfifo(part)
    else:
        part.hardlink_to(precious)
    for write in (lambda: write_text(path, "{}"), lambda: make(path, {"a": "b"})):
        if kind == "folder" and write is not None and part.is_dir() and not any(part.iterdir()):
            (part / "inner").write_text("precious")
        with pytest.raises(BadInputError, match="is in the way of a temporary file"):
            write()
    assert precious.read_text() == "precious"
    assert os.path.lexists(part)
    assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_part_of_another_user(tmp_path: Path) -> None:
    part = part_of(tmp_path / "a.json")
    part.write_text("theirs")
    os.chown(part, 12345, -1)
    with pytest.raises(BadInputError, match="is in the way"):
        write_text(tmp_path / "a.json", "{}")
    assert part.read_text() == "theirs"


@pytest.mark.parametrize("kind", ["link", "folder", "not empty"])
def test_a_lock_that_nobody_left(kind: str, tmp_path: Path) -> None:
    precious = of_text(tmp_path / "precious", "precious")
    lock = tmp_path / ".out.lock"
    if kind == "link":
        lock.symlink_to(precious)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.write_text("precious")
    with pytest.raises(BadInputError, match=r"\.out\.lock"), locked(tmp_path / "out"):
        pass
    assert precious.read_text() == "precious"
    assert os.path.lexists(lock)


def test_a_link_for_a_lock_makes_no_file(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInputError), locked(tmp_path / "out"):
        pass
    assert not (tmp_path / "nowhere").exists()


# ---- killed in between ----

SYSTEM = ("replace", "rename", "unlink", "rmdir", "mkdir", "open", "fsync")


def dies(work: Callable[[], object], fatal: int) -> bool:
    """Run it in a process of its own that is killed before its `fatal`th change to the disk; whether it was."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = fatal

    def counted(plain: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*arguments, **options)

        return call

    for name in SYSTEM:
        setattr(os, name, counted(getattr(os, name)))
    artifact.open_part = counted(artifact.open_part)  # type: ignore[assignment]
    artifact._remove_container = counted(artifact._remove_container)  # type: ignore[assignment]
    try:
        work()
    finally:
        os._exit(0)


def an_export(folder: Path, text: str) -> None:
    with artifact.scratch(part_of(folder)) as new:
        (new / "deep").mkdir()
        (new / "a.txt").write_text(text)
        (new / "deep" / "b.txt").write_text(text)
        place_files(new, folder, overwrite=True)


WAYS: dict[str, tuple[Callable[[Path, str], object], Callable[[str], dict[str, str]]]] = {
    "a file": (lambda d, text: write_text(d / "a.json", text), lambda text: {"a.json": text}),
    "a list": (
        lambda d, text: write_described(d / "p.txt", text, {"kind": "pairs", **STAMPED}), lambda text: {"p.txt": text}
    ),
    "a folder": (lambda d, text: make(d / "sparse", {"a": text, "b": text}), lambda t: {"sparse/a": t, "sparse/b": t}),
    "an export": (lambda d, text: an_export(d / "out", text), lambda t: {"out/a.txt": t, "out/deep/b.txt": t}),
}  # fmt: skip
TEXTS = tuple(json.dumps({"featkit_version": version}) + "\n" for version in ("1", "22"))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_killed_before_any_change_to_the_disk(way: str, tmp_path: Path) -> None:
    """Each visible file is the old or the new one, whole; and the same command goes on, with nothing left over."""
    work, expected = WAYS[way]
    for before in (None, TEXTS[0]):
        moments = 0
        for fatal in range(200):
            folder = tmp_path / f"{before is None}-{fatal}"
            folder.mkdir()
            if before is not None:
                work(folder, before)
            if not dies(lambda folder=folder: work(folder, TEXTS[1]), fatal):
                break
            moments += 1
            seen = {name: text for name, text in contents(folder).items() if "/." not in f"/{name}"}
            for name, text in expected(TEXTS[1]).items():
                assert seen.get(name) in (None, before, text), (fatal, name)
            work(folder, TEXTS[1])
            assert expected(TEXTS[1]).items() <= contents(folder).items(), fatal
            assert [path.name for path in folder.rglob(".*") if path.name != STAMP] == [], fatal
            assert not list(folder.rglob(MARK))
            work(folder, TEXTS[0])  # and what it made is featkit's
            assert expected(TEXTS[0]).items() <= contents(folder).items(), fatal
            shutil.rmtree(folder)
        assert moments >= 2, "the process was never killed"


def test_an_export_replaces_only_what_it_wrote(tmp_path: Path) -> None:
    out = tmp_path / "out"
    an_export(out, "first")
    (out / "mine.txt").write_text("mine")
    an_export(out, "second")
    assert contents(out)["mine.txt"] == "mine"
    (out / "a.txt").write_text("changed by hand")
    with pytest.raises(BadInputError, match=r"a\.txt: was not made by featkit"):
        an_export(out, "third")
    assert contents(out)["a.txt"] == "changed by hand"
    assert contents(out)["deep/b.txt"] == "second", "nothing is replaced when not all can be"
    (out / "a.txt").unlink()
    shutil.rmtree(out / "deep")
    (tmp_path / "elsewhere").mkdir()
    (out / "deep").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInputError, match="deep: is a symbolic link"):
        an_export(out, "fourth")
    assert not any((tmp_path / "elsewhere").iterdir())


def test_synced_where_it_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before its name, and the folder that holds the name."""
    calls: list[str] = []
    plain_sync, plain_replace = os.fsync, os.replace

    def sync(number: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{number}") else "file")
        plain_sync(number)

    def replace(*paths: object) -> None:
        calls.append("name")
        plain_replace(*paths)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_bytes(tmp_path / "a", b"x", sync=True)
    assert calls == ["file", "name", "folder"]


def test_a_store_whose_part_has_its_name_already(tmp_path: Path) -> None:
    """Killed between the two names of a new store."""
    path = written(tmp_path / "features.h5", [])
    part_of(path).hardlink_to(path)
    with append_features(path, Made()) as store:
        store.write("a/0.jpg", features_of("a/0.jpg"))
    assert [one.name for one in tmp_path.iterdir()] == ["features.h5"]


@pytest.mark.parametrize("files", [5, None, ["a.txt"], {"a.txt": 5}, {"../mine.txt": "ba7816bf"}, {"/etc/passwd": "1"}])
def test_a_stamp_changed_by_hand(files: object, tmp_path: Path) -> None:
    """It lists nothing that can be used, so nothing is featkit's, and names outside of the folder are nobody's."""
    out = tmp_path / "out"
    (tmp_path / "mine.txt").write_text("abc")
    an_export(out, "first")
    written = contents(out)
    described = json.loads((out / STAMP).read_text())
    (out / STAMP).write_text(json.dumps(described | {"files": files}))
    with pytest.raises(BadInputError, match="was not made by featkit"):
        an_export(out, "second")
    assert {**contents(out), STAMP: ""} == {**written, STAMP: ""}
    assert (tmp_path / "mine.txt").read_text() == "abc"


@pytest.mark.parametrize("place", [".", "sub/..", "../here"])
def test_the_current_folder_by_any_name(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    monkeypatch.chdir(here)
    an_export(Path(place), "text")
    assert contents(here)["a.txt"] == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    for write in (lambda: write_described(Path(place), "a b", {}), lambda: artifact.artifact(Path("/"), Config(), "")):
        with pytest.raises(BadInputError, match=r"is a folder|is the root of a disk"):
            write()


def test_a_file_is_replaced_by_its_kind_only(tmp_path: Path) -> None:
    """What is written is compared with what is there; a new list, or page, in place of an old one is written."""
    path = tmp_path / "a.txt"
    write_described(path, "a b\n", {"featkit_version": "0", "kind": "pairs"})
    for content, kind in (
        (b"\x89HDF\r\n\x1a\n featkit_version", "a store of features or matches"),
        (b"SQLite format 3\0", "a database"),
        (b'{"featkit_version": 0}', "a json file"),
        (b'<!doctype html><meta name="generator" content="featkit">', "a page"),
    ):
        with pytest.raises(BadInputError, match=f"a.txt: is a list, so it is not replaced by {kind}"):
            write_bytes(path, content)
        other = tmp_path / "other"
        other.write_bytes(content)
        if kind != "a database":  # which its stamp makes featkit's
            with pytest.raises(BadInputError, match=f"other: is {kind}, so it is not replaced by a list"):
                write_described(other, "a b\n", {"featkit_version": "0", "kind": "pairs"})
        assert other.read_bytes() == content
        assert write_bytes(other, content + b" ", owned=True).read_bytes() == content + b" "
        other.unlink()
    write_described(path, "a c\n", {"featkit_version": "0", "kind": "pairs"})
    assert path.read_text() == "a c\n"


@pytest.mark.parametrize(("first", "second"), [("k.txt", "k.db"), ("k.db", "k.txt")])
def test_a_list_and_a_database_do_not_share_a_stamp(tmp_path: Path, first: str, second: str) -> None:
    made = artifact.artifact(tmp_path / first, Config(), "inputs")
    (tmp_path / first).write_bytes(b"SQLite format 3\0" if first.endswith(".db") else b"a b\n")
    write_stamp(made.stamp, Config(), "inputs")
    with pytest.raises(BadInputError, match=rf"{second}: {first} beside it is described by k.json"):
        artifact.artifact(tmp_path / second, Config(), "inputs")
    artifact.artifact(tmp_path / f"other-{second}", Config(), "inputs")
