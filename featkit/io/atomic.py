"""Foundations of writing: text input, recognising featkit's own files, stamps, and disk space."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import h5py

from featkit.core.config import Config
from featkit.core.errors import NOT_WAITING, BadInputError, FeatkitError, NotWritableError, blaming, open_input
from featkit.core.run_file import RUN_FILE, VERSION

# ----------------------------------------------------------------------------------------------------------------------
# Text files, read line by line with clear errors.


LONGEST = 1 << 20  # characters per line; no list of names and numbers has longer ones


def read_lines(path: Path, empty: bool = False) -> Iterator[tuple[int, str]]:
    """(line number, stripped line) of all lines that are neither empty nor a comment. Raises BadInputError.

    empty: also empty ones.
    One line is in memory at a time, and its length is limited: a file may contain more zeros than fit into memory.
    """
    number = 0
    try:
        with TextIOWrapper(open_input(path), encoding="utf-8-sig") as file:
            while block := file.readline(LONGEST + 1):
                if (len(block) > LONGEST and block[-1] != "\n") or "\0" in block:
                    raise BadInputError(f"{path}:{number + 1}: not a text file (an endless line, or a zero byte)")
                for line in block.splitlines():
                    number += 1
                    stripped = line.strip()
                    if (stripped or empty) and not stripped.startswith("#"):
                        yield number, stripped
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise BadInputError(f"{path}: is a folder, not a text file") from None
    except UnicodeDecodeError:
        raise BadInputError(f"{path}: not a UTF-8 text file") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(path: Path, what: str, remedy: str) -> Any:
    """The value in a json file. what, remedy: see `errors.blaming`. Raises BadInputError."""
    with blaming(path, what, remedy):
        with open_input(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise BadInputError(f"{path}: larger than {LARGEST >> 20} MiB, so not {what}; {remedy}")
        return json.loads(content.decode("utf-8"))


# ----------------------------------------------------------------------------------------------------------------------
# Names: of files in folders, and of outputs.


DRIVE = re.compile(r"^[A-Za-z]:")


def leads_outside(name: str) -> bool:
    """Whether a name that was read from a file leads out of the folder that it is joined to."""
    plain = name.replace("\\", "/")
    return not plain or plain.startswith("/") or bool(DRIVE.match(plain)) or ".." in plain.split("/") or "\0" in plain


def with_a_name(path: Path) -> Path:
    """The path of an output, of which `.` and `..` get their folder's own name, for files beside it.

    Raises BadInputError for the root of a disk, which has none.
    """
    named = path if path.name not in ("", "..") else path.resolve()
    if not named.name:
        raise BadInputError(f"{path}: is the root of a disk; choose another --out")
    return named


def refuse_folder(path: Path) -> None:
    """Raise BadInputError for a folder where a file is to be written, also an empty one, `.` and `..`."""
    if path.is_dir():
        raise BadInputError(f"{path}: is a folder; name the file to write with --out")


# ----------------------------------------------------------------------------------------------------------------------
# Recognising files and folders that featkit made: stamps, and markers in the files themselves.
#
# A stamp is a small json that describes what made an output: next to it (`database.json`, `sparse.json`, `pairs.json`),
# or in the folder. `artifact` writes them. `VERSION` is the key (or attribute of a store) by which they are recognised.


STAMP = ".featkit.json"  # in a folder for other programs: the files that featkit wrote there
STAMPS = (
    STAMP,
    "dataset.json",
    "made.json",
    "alignment.json",
    "dense.json",
    "plan.json",
)  # in folders of featkit's own
HEAD = 1 << 16  # bytes at the beginning of a file by which it is recognised
LARGEST = 1 << 28  # bytes; a larger json is not a stamp
HDF5, SQLITE, ZIP = b"\x89HDF\r\n\x1a\n", b"SQLite format 3\0", b"PK\x03\x04"
DATABASE, LIST = "a database", "a list"
KINDS = {
    HDF5: "a store of features or matches", SQLITE: DATABASE, ZIP: "a pack or checkpoint", b"ply\n": "a point cloud",
    RUN_FILE: "a saved run",
}  # fmt: skip
HTML, PLY = b'<meta name="generator" content="featkit"', b"\ncomment featkit "
ONNX = re.compile(rb"\x08.\x12\x07featkit", re.DOTALL)  # the first fields of a file: IR version, producer
SAFETENSORS = re.compile(rb'"format":\s?"featkit ')
EXISTS = "exists already; --overwrite replaces it, or choose another --out"
FOREIGN = "was not made by featkit, so it is not replaced; choose another --out, or remove it yourself"


def read_stamp(path: Path) -> dict[str, Any] | None:
    """The content of a stamp, or None if there is none that can be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            return None
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return described if isinstance(described, dict) else None


def refuse_shared_stamp(output: Path, stamp: Path) -> None:
    """Raise BadInputError for an output that is its own stamp or shares one: a list and a database, a.txt and a.db."""
    if stamp == output:
        raise BadInputError(f"{output}: its description would be written to the same file; choose another --out")
    suffixes = (".txt", ".db")
    for other in (output.with_suffix(suffix) for suffix in suffixes if suffix != output.suffix):
        if output.suffix in suffixes and stamp.exists() and other.exists():
            raise BadInputError(
                f"{output}: {other.name} beside it is described by {stamp.name}, as this would be; choose another --out"
            )


def stamped_files(stamp: Path) -> dict[str, str]:
    """The files that a stamp lists, and their checksums. Names that lead outside of its folder are passed over."""
    files = (read_stamp(stamp) or {}).get("files")
    if not isinstance(files, dict):
        return {}
    return {name: value for name, value in files.items() if isinstance(value, str) and not leads_outside(name)}


def is_stamped(path: Path, config: Config, inputs: str) -> bool:
    """Whether the stamp `path` has the same configuration and inputs."""
    stamp = read_stamp(path)
    return stamp is not None and (stamp.get("fingerprint"), stamp.get("inputs")) == (config.fingerprint(), inputs)


def refuse_foreign(*paths: Path) -> None:
    """Raise BadInputError for the first path with a file or folder that featkit did not make.

    Called with all outputs of a command before its work begins.
    """
    for path in paths:
        if is_foreign(path):
            link = "a symbolic link that " if path.is_symlink() else ""
            raise BadInputError(f"{path}: {link}{FOREIGN}")


def is_foreign(path: Path) -> bool:
    """Whether the path is a file or folder that featkit did not make. Raises NotWritableError if it cannot be read.

    featkit's own are: stores with the root attribute `featkit_version`, databases and maps with their stamp, lists with
    the json next to them, json files with the key `featkit_version`, reports, weights, ONNX files, packs, checkpoints
    and point clouds by a marker in their content, and folders that are empty or contain a stamp. A link to a store
    counts as a store: items are added through it, but it is not replaced.
    """
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return not (path.is_file() and _is_own_store(_read_head(path)))
        if stat.S_ISDIR(status.st_mode):
            return not _is_own_folder(path)
        return not (stat.S_ISREG(status.st_mode) and _is_own_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise NotWritableError(f"{path}: cannot be replaced ({error.strerror}); choose another --out") from None


def refuse_other_kind(path: Path, *kinds: str, part: Path | None = None) -> None:
    """Raise BadInputError for a file of featkit's that is of another kind than the one that would replace it.

    kinds: of that file, as `file_kind` names them. part: the file itself, in place of its kind.
    """
    if not path.is_file() or path.is_symlink():
        return
    found, expected = file_kind(_read_head(path)), kinds if part is None else (file_kind(_read_head(part)),)
    if found not in expected and "" not in (found, *expected):
        raise BadInputError(f"{path}: is {found}, so it is not replaced by {expected[0]}; choose another --out")


def file_kind(head: bytes) -> str:
    """What a file is, by its first bytes; "" for an empty one."""
    for begins, kind in KINDS.items():
        if head.startswith(begins):
            return kind
    if head[8:9] == b"{" and SAFETENSORS.search(head):
        return "a file of weights"
    if ONNX.match(head):
        return "an ONNX file"
    if head.lstrip()[:1] == b"{":
        return "a json file"
    return "a page" if head[:9].lower() == b"<!doctype" else LIST if head else ""


def is_own_json(path: Path) -> bool:
    """Whether a file is json that featkit wrote."""
    content = read_stamp(path)
    if content is None:
        return False
    nested = (content.get("map"), content.get("versions"))  # demo.json and training summaries of earlier versions
    return VERSION in content or any(
        isinstance(entry, dict) and {VERSION, "featkit"} & entry.keys() for entry in nested
    )


def _is_own_folder(path: Path) -> bool:
    if not any(path.iterdir()) or any(is_own_json(path / name) for name in STAMPS):
        return True
    parent, kinds = path.parent, []
    for folder in (path, parent):  # sparse/ and sparse/0
        kinds.append((read_stamp(folder.with_name(f"{folder.name}.json")) or {}).get("kind") if folder.name else None)
    return "map" in kinds


def _is_own_file(path: Path) -> bool:
    head = _read_head(path)
    if head.startswith(HDF5):
        return _is_own_store(head)
    if head.startswith(SQLITE):
        return (read_stamp(path.with_suffix(".json")) or {}).get("kind") == "database"
    if head.startswith(ZIP):
        return _is_own_zip(path)
    if head.startswith(b"ply\n"):
        return PLY in head
    if head.startswith(RUN_FILE):
        return True
    if (head[8:9] == b"{" and SAFETENSORS.search(head)) or ONNX.match(head):
        return True
    if head.lstrip()[:1] == b"{":
        return is_own_json(path)
    return HTML in head if head[:9].lower() == b"<!doctype" else _is_own_list(path)


def _is_own_store(head: bytes) -> bool:
    """Also recognises a truncated store, because root attributes come first."""
    return head.startswith(HDF5) and VERSION.encode() in head


def _is_own_list(path: Path) -> bool:
    """Whether the json next to a list (which is for other programs) marks it as featkit's, with the same checksum."""
    described = read_stamp(path.with_suffix(".json"))
    if described is None or VERSION not in described:
        return False
    if described.get("kind") not in ("pairs", "poses", "frames") and not {"results", "localized"} <= described.keys():
        return False
    return "sha256" not in described or described["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def _is_own_zip(path: Path) -> bool:
    """Whether a zip is a pack or a training checkpoint of featkit's."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename == "pack.json" or entry.filename.endswith("/data.pkl"):
                    with archive.open(entry) as member:
                        return VERSION.encode() in member.read(LARGEST)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error):
        pass
    return False


def _read_head(path: Path) -> bytes:
    number = os.open(path, os.O_RDONLY | NOT_WAITING)
    with open(number, "rb") as file:
        return file.read(HEAD)


# ----------------------------------------------------------------------------------------------------------------------
# Disk space, checked before a store is modified, because HDF5 cannot undo a partial write.


FULL = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "no space left in your quota",
    errno.EFBIG: "the file would be larger than allowed (ulimit -f)",
}
ALMOST_NOTHING = 1 << 16  # bytes
SQLITE_FULL = "database or disk is full"
ERRNO = re.compile(r"errno = (\d+)")  # in HDF5's error messages


def require_space(path: Path, size: int) -> None:
    """Check that a file can grow by `size` bytes. Raises NotWritableError before anything is written."""
    with contextlib.suppress(OSError, AttributeError):  # unknown on this system: the write itself will fail
        disk = os.statvfs(path.parent)
        read_only = disk.f_flag & os.ST_RDONLY  # which the write itself will report
        if disk.f_blocks and not read_only and disk.f_bavail * disk.f_frsize < size:
            raise NotWritableError(f"{path}: {FULL[errno.ENOSPC]}; free some and run the same command again")
    limit = _file_size_limit()
    if limit is not None and (path.stat().st_size if path.exists() else 0) + size > limit:
        raise NotWritableError(f"{path}: {FULL[errno.EFBIG]}; raise it and run the same command again")


def _file_size_limit() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def probe(path: Path) -> None:
    """Write and lock a small file, as every store does. Raises HDF5's error if that fails."""
    with h5py.File(path, "w") as file:
        file["probe"] = [1]


def refused_by_disk(error: BaseException) -> str | None:
    """The reason, in words, if an error is due to a full disk or a size limit; otherwise None."""
    if SQLITE_FULL in str(error):
        return FULL[errno.ENOSPC]
    match = ERRNO.search(str(error))
    number = getattr(error, "errno", None) or (int(match[1]) if match else None)
    return FULL.get(number) if number is not None else None


@contextmanager
def explained_by_disk(output: Path) -> Iterator[None]:
    """Turn errors due to a full disk or a size limit, from any library, into NotWritableError."""
    try:
        yield
    except FeatkitError:
        raise
    except Exception as error:
        reason = refused_by_disk(error)
        if reason is None:
            require_space(output, ALMOST_NOTHING)  # COLMAP does not always report why it failed
            raise
        raise NotWritableError(f"{output}: {reason}; free some and run the same command again") from None
