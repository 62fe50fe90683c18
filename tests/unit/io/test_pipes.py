"""A pipe that nobody writes to, wherever a file is expected: refused at once. A pipe that is open already is read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycolmap
import pytest

from featkit.core.config import read_yaml
from featkit.core.errors import BadInputError
from featkit.data.hpatches import read_matlab
from featkit.data.patch_pack import read_patch_data
from featkit.data.tree import FileTree
from featkit.data.unpack import unpack
from featkit.images.exif import focal_length_px
from featkit.images.intensity import is_deep
from featkit.images.listing import file_digest
from featkit.images.read import stored_size
from featkit.io.atomic import read_json, read_lines
from featkit.io.features import files_digest
from featkit.io.lists import read_intrinsics_list, read_pairs, read_poses
from featkit.mapping.model import read_model
from featkit.mapping.reference import read_nvm
from featkit.training.run_folder import load_checkpoint
from featkit.weights.catalogue import git_blob_of
from featkit.weights.manifest import sha256_of

READERS: dict[str, Callable[[Path], Any]] = {
    "text lists": lambda path: list(read_lines(path)),
    "pairs": read_pairs,
    "poses": read_poses,
    "cameras": read_intrinsics_list,
    "json": lambda path: read_json(path, "a rig file", "write it"),
    "configurations": read_yaml,
    "a reconstruction of VisualSFM": read_nvm,
    "digests of stores": lambda path: files_digest([path]),
    "digests of images": file_digest,
    "digests of weights": sha256_of,
    "git's names": git_blob_of,
    "headers of images": stored_size,
    "depths of images": is_deep,
    "metadata of images": lambda path: focal_length_px(path, (640, 480)),
    "checkpoints": load_checkpoint,
    "archives": lambda path: unpack(path, path.parent / "unpacked"),
    "files of a data set": lambda path: FileTree(path.parent).read(path.name),
    "MATLAB files": read_matlab,
    "packs": read_patch_data,
    "a model's rigs": lambda path: read_model(path.parent / "model"),
}


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns or raises; in another thread, since what waits for a pipe never returns."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert found, "it waits"
    return found[0]


@pytest.mark.parametrize("kind", READERS)
def test_a_pipe_without_a_writer_is_refused(kind: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    if kind == "a model's rigs":
        (tmp_path / "model").mkdir()
        pycolmap.synthesize_dataset(pycolmap.SyntheticDatasetOptions()).write(str(tmp_path / "model"))
        pipe = tmp_path / "model" / "rigs.bin"
        pipe.unlink()
        os.mkfifo(pipe)
    error = outcome(lambda: READERS[kind](pipe if kind != "a model's rigs" else tmp_path / "pipe.png"))
    assert isinstance(error, BadInputError), repr(error)
    assert str(error).startswith(f"{pipe}: not a file but a pipe or a device; give the file itself")


def test_an_open_pipe_is_read_as_often_as_a_file(tmp_path: Path) -> None:
    """Several stages read a list of pairs: a second reader of bash's `<(command)` would find it empty."""
    reads, writes = os.pipe()
    try:
        with open(writes, "w", encoding="utf-8") as stream:
            stream.write("a.jpg b.jpg\na.jpg c.jpg\n")
        path = Path(f"/dev/fd/{reads}")
        first, second = outcome(lambda: read_pairs(path)), outcome(lambda: read_pairs(path))
        digest = files_digest([path])
    finally:
        os.close(reads)
    assert [(pair.name0, pair.name1) for pair in first] == [("a.jpg", "b.jpg"), ("a.jpg", "c.jpg")]
    assert second == first
    assert digest == files_digest([_written(tmp_path / "pairs.txt", "a.jpg b.jpg\na.jpg c.jpg\n")])


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
