"""The only way to write: every file and folder that featkit makes goes through the functions of this file.

The contract:

* **Files that are not featkit's own are never replaced, emptied or deleted**, with or without `--overwrite`. A file or
  folder is featkit's own if its content (see `atomic.is_foreign`) or the stamp next to it says so. Anything else at the
  path of an output, including a symbolic link, is refused with a one-line message (BadInputError, exit code 3) before
  any work is done. A file that already has the content to be written is left as it is. featkit's own files are only
  replaced by files of their kind (`atomic.refuse_other_kind`).
* **Writes are atomic.** Files are written to `.NAME.part` in the same folder and renamed, folders to `.NAME.part/new`
  and renamed. A temporary file is opened exclusively, so no link is followed. Leftovers of a killed run are recognised
  (a regular file of this user with one name; a folder that is empty or contains `MARK`) and removed, others refused.
* **One writer at a time** for outputs that have no lock of their own (`locked`). Lock files are empty and never links.
* **An output with its stamp is complete.** A stamp is a small json that describes what made the output, next to it
  (`database.json`, `sparse.json`, `pairs.json`) or in the folder. It is written after the old output has been moved
  away and before the new one gets its name, so that the next run recognises what a killed run left.
* **System errors become one line** (NotWritableError, exit code 5). With `sync` the content and the name are on the
  disk when the function returns; otherwise writing is safe against a killed process, but not against power failure.
* **Names that come from a file** (a model, a store, an archive) are joined to a folder by `inside`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from featkit import __version__
from featkit.core.config import Config
from featkit.core.errors import BadInputError, NotWritableError
from featkit.io import atomic
from featkit.io.atomic import EXISTS, FOREIGN, STAMP, VERSION, is_foreign, is_stamped, refuse_foreign, with_a_name

MARK = "made-by-featkit"  # file that marks a temporary folder
OPENED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # no links, no waiting for pipes; not on Windows


# ---- names ----------------------------------------------------------------------------------------------------------


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, for a name that was read from a file. Raises BadInputError for a name that leads outside."""
    if atomic.leads_outside(name):
        raise BadInputError(f"{folder}: the name {name!r} leads outside the folder; rename it where it was made")
    return folder.joinpath(*PurePosixPath(name).parts)


# ---- system errors --------------------------------------------------------------------------------------------------


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn system errors into a one-line NotWritableError; errors of HDF5, which have no errno, pass."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise NotWritableError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None


# ---- files ----------------------------------------------------------------------------------------------------------


def part_of(path: Path) -> Path:
    """The temporary path at which an output is written. Raises BadInputError for the root of a disk."""
    path = with_a_name(path)
    return path.with_name(f".{path.name}.part")


@contextmanager
def writing(path: Path, *, owned: bool = False, sync: bool = False) -> Iterator[BinaryIO]:
    """A temporary file to write to, renamed to `path` on success; a library may open it by its `name`.

    owned: `path` is known to be featkit's, such as a file in a folder of featkit's. Raises BadInputError for files that
    must not be replaced, NotWritableError.
    """
    before = _identity(path)
    if owned:
        _refuse_links(path)
    else:
        refuse_foreign(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open_part(path)
    part, inode = Path(file.name), os.fstat(file.fileno()).st_ino
    try:
        with explained(path), file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
            if inode != _inode(part):
                raise NotWritableError(f"{path}: in use by another process; wait for it or stop it")
            if not owned and _identity(path) != before:
                refuse_foreign(path)
            atomic.refuse_other_kind(path, part=part)
            os.replace(part, path)
        if sync:
            with explained(path):
                _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            if inode == _inode(part):
                part.unlink()
        raise


def write_bytes(path: Path, data: bytes, *, owned: bool = False, sync: bool = False) -> Path:
    """Write a file atomically; one that already has this content is kept. Raises as `writing` does."""
    if not owned and is_foreign(path) and _has_content(path, data):
        return path
    with writing(path, owned=owned, sync=sync) as file:
        file.write(data)
    return path


def write_text(path: Path, text: str, *, owned: bool = False) -> Path:
    """Write a text file atomically.

    Raises as `writing` does, and BadInputError for text that is not Unicode (a file name in another encoding).
    """
    return write_bytes(path, _encode(path, text), owned=owned)


def write_described(path: Path, text: str, described: dict[str, Any]) -> Path:
    """Write a list for other programs, and next to it the json that describes what made it.

    The old list is removed, then the json is written, then the list: a list is never next to the description of another
    one, and the json shows that an interrupted output is featkit's. Raises as `write_text` does.
    """
    atomic.refuse_folder(path)
    data, json_path = _encode(path, text), path.with_suffix(".json")
    if json_path == path:
        raise BadInputError(f"{path}: its description would be written to the same file; choose another --out")
    content = json.dumps({**described, "sha256": hashlib.sha256(data).hexdigest()}, indent=1, ensure_ascii=False) + "\n"
    is_there = _has_content(path, data)
    if is_there and _has_content(json_path, content.encode()):
        return path
    refuse_foreign(json_path)
    atomic.refuse_other_kind(path, atomic.file_kind(data[: atomic.HEAD]))
    if not is_there:
        remove(path)
    write_text(json_path, content)
    return path if is_there else write_bytes(path, data)


def open_part(path: Path) -> BinaryIO:
    """Create the temporary file of an output. Raises BadInputError if something else is in its place, OSError."""
    discard(part_of(path), path)
    return part_of(path).open("x+b")  # exclusive: follows no link


def new_part(path: Path) -> Path:
    """The same, closed, for a library that opens files by name and replaces their content."""
    open_part(path).close()
    return part_of(path)


def discard(part: Path, whole: Path | None = None) -> None:
    """Remove a temporary file that a killed run left. Raises BadInputError for any other file, OSError.

    whole: the output of which it may still be a second hard link.
    """
    if is_left(part, whole):
        part.unlink()


def no_links(path: str, flags: int) -> int:
    """An opener (see `open`) that does not follow symbolic links or wait for the other end of a pipe."""
    return os.open(path, flags | OPENED, 0o666)


def is_left(part: Path, whole: Path | None = None) -> bool:
    """Whether a killed run left a temporary file. Raises BadInputError if something else is in its place."""
    try:
        status = os.lstat(part)
    except FileNotFoundError:
        return False
    is_whole = whole is not None and status.st_nlink == 2 and _identity(whole) == _identity(part)
    if not (stat.S_ISREG(status.st_mode) and _belongs_to_user(status) and (status.st_nlink == 1 or is_whole)):
        _refuse_obstacle(part)
    return True


def remove(path: Path) -> None:
    """Delete a file of featkit's, if it exists. Raises BadInputError for any other file, NotWritableError."""
    refuse_foreign(path)
    _refuse_links(path)
    with explained(path):
        path.unlink(missing_ok=True)


def _refuse_links(path: Path) -> None:
    if path.is_symlink():
        raise BadInputError(f"{path}: is a symbolic link, so it is not replaced; choose another --out, or remove it")


def _refuse_obstacle(part: Path) -> None:
    raise BadInputError(
        f"{part}: is in the way of a temporary file, and no killed run of featkit left it; remove it yourself"
    )


def _encode(path: Path, text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        start = text.rfind("\n", 0, error.start) + 1
        line = text[start:].splitlines()[0]
        raise BadInputError(f"{path}: {line!r} has a name that is not UTF-8; rename the file") from None


def _has_content(path: Path, data: bytes) -> bool:
    """Whether the path is a regular file with exactly this content."""
    try:
        status = os.lstat(path)
        return stat.S_ISREG(status.st_mode) and status.st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        return status.st_dev, status.st_ino, status.st_mtime_ns
    return None


def _inode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None


def _belongs_to_user(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)  # makes the new name durable
    finally:
        os.close(number)


# ---- folders --------------------------------------------------------------------------------------------------------


@contextmanager
def making(folder: Path, *, owned: bool = False, named: Callable[[], object] | None = None) -> Iterator[Path]:
    """A new folder to write to, renamed to `folder` on success; a previous folder of that name is then deleted.

    named: called after the old folder has been moved away and before the new one is renamed; it writes the stamp.
    owned: see `writing`. Raises BadInputError for folders that must not be replaced, NotWritableError.
    """
    before = _identity(folder)
    if not owned:
        refuse_foreign(folder)
    with scratch(part_of(folder)) as new:
        yield new
        with explained(folder):
            if not owned and _identity(folder) != before:
                refuse_foreign(folder)
            _refuse_links(folder)
            if folder.exists():
                os.rename(folder, new.with_name("old"))
            if named is not None:
                named()
            os.rename(new, folder)


@contextmanager
def scratch(container: Path) -> Iterator[Path]:
    """A temporary folder in `container`, which is created, and removed at the end with everything in it.

    What a killed run left there is removed first. Raises BadInputError if something else is in its place,
    NotWritableError.
    """
    with explained(container):
        _remove_scratch(container)
        container.mkdir(parents=True)
        mark = (container / MARK).open("x")
    try:
        with mark:
            _try_lock(mark.fileno())
            with explained(container):
                (container / "new").mkdir()
            yield container / "new"
    finally:
        with contextlib.suppress(OSError):
            _remove_container(container)


def _remove_scratch(container: Path) -> None:
    """Remove what a killed run left. Raises BadInputError for any other folder, NotWritableError for one in use."""
    try:
        status = os.lstat(container)
    except FileNotFoundError:
        return
    if not (stat.S_ISDIR(status.st_mode) and _belongs_to_user(status)):
        _refuse_obstacle(container)
    if (container / MARK).is_file():
        with (container / MARK).open("r+") as mark:
            if not _try_lock(mark.fileno()):
                raise NotWritableError(f"{container}: in use by another process; wait for it or stop it")
            _remove_container(container)
    elif any(container.iterdir()):
        _refuse_obstacle(container)
    else:
        container.rmdir()


def _remove_container(container: Path) -> None:
    """Remove a temporary folder, its mark last, so that it is still recognised if this run is killed."""
    for path in container.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    (container / MARK).unlink(missing_ok=True)
    container.rmdir()


def place_files(
    new: Path, folder: Path, *, overwrite: bool = False, stamp: Path | None = None, only: bool = False, **described: Any
) -> list[Path]:
    """Move the files in `new` to `folder`, which may exist, and return their names.

    The stamp lists the files with their checksums; only those are replaced, and only with overwrite.
    stamp: by default `.featkit.json` in the folder. only: listed files that are not among the new ones are removed.
    Raises BadInputError, NotWritableError.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
        stamp = stamp or folder / STAMP
        refuse_foreign(stamp)
        recorded = atomic.stamped_files(stamp)
        existing = [name for name in names if os.path.lexists(folder / name)]
        for above in {folder / above for name in names for above in name.parents if above.name}:
            _refuse_links(above)
        for name in existing:
            path, data = folder / name, (new / name).read_bytes()
            checksum = _sha256_of_file(path)
            if checksum is None or (checksum != recorded.get(name.as_posix()) and not _has_content(path, data)):
                raise BadInputError(f"{path}: {FOREIGN}")
        if existing and not overwrite:
            raise BadInputError(f"{folder / existing[0]}: {EXISTS}")
        for name in existing:
            (folder / name).unlink()
        if only:
            for old in recorded.keys() - {name.as_posix() for name in names}:
                if _sha256_of_file(inside(folder, old)) == recorded[old]:
                    (folder / old).unlink()
        still_recorded = {name: value for name, value in recorded.items() if (folder / name).is_file() and not only}
        files = {**still_recorded, **{name.as_posix(): _sha256_of_file(new / name) for name in names}}
        text = json.dumps({VERSION: __version__, **described, "files": files}, indent=1, ensure_ascii=False)
        write_text(stamp, text + "\n")
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / name, folder / name)
    return names


def _sha256_of_file(path: Path) -> str | None:
    return None if path.is_symlink() or not path.is_file() else hashlib.sha256(path.read_bytes()).hexdigest()


# ---- one writer at a time -------------------------------------------------------------------------------------------


@contextmanager
def locked(output: Path, lock: Path | None = None) -> Iterator[None]:
    """Hold an exclusive lock for an output. A killed process leaves nothing locked.

    lock: the lock file; by default `.NAME.lock` next to the output.

    Raises NotWritableError if another process holds the lock, or the folder cannot be written to; BadInputError if
    something else has the name of the lock file.
    """
    output = with_a_name(output)
    lock = (lock or output.with_name(f".{output.name}.lock")).absolute()  # the current folder may change
    with explained(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = _open_lock(lock)
            if not _try_lock(file):
                os.close(file)
                raise NotWritableError(f"{output}: in use by another process; wait for it or stop it")
            if _is_same_file(lock, file):
                break
            os.close(file)  # its owner has removed it in the meantime
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
        os.close(file)


def _open_lock(lock: Path) -> int:
    if lock.is_symlink() or lock.is_dir():
        _refuse_obstacle(lock)
    file = no_links(os.fspath(lock), os.O_CREAT | os.O_RDWR)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        os.close(file)
        _refuse_obstacle(lock)
    return file


def _try_lock(number: int) -> bool:
    """Try to lock an open file; True also where locks are not supported (Windows, some file systems)."""
    try:
        import fcntl
    except ModuleNotFoundError:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_same_file(path: Path, file: int) -> bool:
    """Whether the open file is still the one at that path."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(file))
    except FileNotFoundError:
        return False


# ---- stamps: what made an output, and whether it is up to date ------------------------------------------------------


@dataclass(frozen=True)
class Artifact:
    """An output with a stamp. inputs: digest of all inputs."""

    output: Path
    stamp: Path
    config: Config
    inputs: str

    @property
    def up_to_date(self) -> bool:
        """Whether the output exists, and was made with this configuration and these inputs."""
        return self.output.exists() and is_stamped(self.stamp, self.config, self.inputs)

    def write_stamp(self, **more: Any) -> None:
        """Write the stamp of the output; see `making`."""
        write_stamp(self.stamp, self.config, self.inputs, **more)

    def replace(self, part: Path, leftovers: Iterable[Path] = (), **more: Any) -> None:
        """Stamp and rename a finished file. leftovers: other programs' files of the old output, which are deleted."""
        atomic.refuse_other_kind(self.output, part=part)
        remove(self.output)
        for path in leftovers:
            discard(path)
        self.write_stamp(**more)
        os.replace(part, self.output)


def artifact(output: Path, config: Config, inputs: str, stamp: Path | None = None) -> Artifact:
    """An output made from inputs with a configuration. stamp: by default next to it, `database.json` for `database.db`.

    Raises BadInputError if a file that featkit did not make is in its place, or in that of the stamp.
    """
    output = with_a_name(output)
    stamp = stamp or (output.with_suffix(".json") if output.suffix else output.with_name(f"{output.name}.json"))
    atomic.refuse_shared_stamp(output, stamp)
    refuse_foreign(output, stamp)
    atomic.refuse_other_kind(output, atomic.DATABASE, atomic.LIST)
    return Artifact(output, stamp, config, inputs)


def write_stamp(path: Path, config: Config, inputs: str, **more: Any) -> None:
    """Write the stamp `path`. inputs: digest of all inputs."""
    described = {
        VERSION: __version__,
        "fingerprint": config.fingerprint(),
        "inputs": inputs,
        "config": config.result_fields(),
        **more,
    }
    write_text(path, json.dumps(described, indent=1) + "\n")
