"""Global descriptors in hloc's layout: a group per image (slashes nest) with the dataset `global_descriptor` (d,)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float32

from featkit.errors import BadInputError
from featkit.store import h5
from featkit.store.damage import DAMAGE

DATASET = "global_descriptor"
NAMED = 3  # missing images that an error names
CHUNK = 1 << 22


def read_global_descriptors(files: Sequence[Path], names: Sequence[str]) -> Float32[np.ndarray, "n d"]:
    """Descriptors of `names`, each from the first of the files that has it, as they are stored.

    Raises BadInputError for a file that cannot be read, images that no file has (it names them), and descriptors that
    are not finite or not of one length.
    """
    rows: list[np.ndarray] = []
    missing: list[str] = []
    with ExitStack() as stack:
        opened = [stack.enter_context(h5.reading(path)) for path in files]
        for name in names:
            group = next((file[name] for file in opened if _has(file, name)), None)
            if group is None:
                missing.append(name)
            else:
                rows.append(_row(group, name))
            if rows and len(rows[-1]) != len(rows[0]):
                raise BadInputError(
                    f"{group.file.filename if group is not None else files[0]}: {name!r} has a {DATASET} of"
                    f" {len(rows[-1])} numbers, {names[0]!r} one of {len(rows[0])}; describe all images alike"
                )
    if missing:
        where = " and ".join(map(str, files))
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise BadInputError(
            f"{where}: no {DATASET} of {', '.join(map(repr, missing[:NAMED]))}{more} ({len(missing)} of {len(names)}"
            " images); describe these too, by the same names"
        )
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


def _has(file: h5py.File, name: str) -> bool:
    try:
        return name in file and isinstance(file[name], h5py.Group) and DATASET in file[name]
    except DAMAGE:
        return False


def _row(group: h5py.Group, name: str) -> Float32[np.ndarray, " d"]:
    try:
        row = np.asarray(group[DATASET][()], dtype=np.float32).reshape(-1)
    except DAMAGE as error:
        raise BadInputError(f"{group.file.filename}: the {DATASET} of {name!r} is damaged ({error})") from None
    if len(row) == 0 or not np.isfinite(row).all():
        raise BadInputError(f"{group.file.filename}: the {DATASET} of {name!r} is not a row of finite numbers")
    return row


def files_digest(files: Sequence[Path]) -> str:
    """16 hex digits of the files' contents. Raises BadInputError."""
    hashed = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    hashed.update(chunk)
        except OSError as error:
            raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    return hashed.hexdigest()[:16]
