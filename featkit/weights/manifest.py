"""weights/manifest.json: the weights featkit ships, one row each, `{"weights": [row, ...]}` sorted by name."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from featkit.core.config import Bytes, Config, resource_dir
from featkit.core.errors import BadInputError, UsageError, open_input
from featkit.io.artifact import inside, write_text
from featkit.io.atomic import refuse_foreign

MANIFEST = "manifest.json"
SUFFIX = ".safetensors"
READ_AT_ONCE = 2**20  # bytes


class WeightInfo(Config):
    """One row of the manifest: a weights file and its origin."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Name used on the command line, and in `descriptor:` of a configuration."""
    kind: Literal["patch", "scfeat"] = "patch"
    """patch: a patch descriptor. scfeat: dense descriptors and a detector."""
    file: str
    """File name in the manifest's folder."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the file; checked whenever it is loaded."""
    bytes: Bytes
    """Size of the file, bytes."""
    config: dict[str, Any]
    """Network configuration: the values of a PatchNetworkConfig or an SCFeatNetworkConfig."""
    recipe: str = ""
    """Training configuration: a name in configs/, and the options that differ."""
    commit: str = ""
    """featkit's commit at the time of training."""
    data: str = ""
    """Training data."""
    scenes: tuple[str, ...] = ()
    """Names of the scenes and sets in the training data, which must not be used for evaluation."""
    licence: str = ""
    """Licence of the weights; the data's licences may restrict it."""
    scores: dict[str, Any] = Field(default_factory=dict)
    """Measured scores by name, with units in the name: `fpr95_percent`."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Steps, seconds, device, versions of the training."""


def manifest_rows(folder: Path | None = None) -> list[WeightInfo]:
    """All rows of the manifest in `folder`, by default featkit's own. Raises BadInputError for a damaged one."""
    path = (folder or resource_dir("weights")) / MANIFEST
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["weights"]
        infos = [WeightInfo(**row) for row in rows]
    except FileNotFoundError:
        return []
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(f"{path}: a row is wrong at {where!r} ({first['msg']})") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInputError(f"{path}: not a manifest of weights ({type(error).__name__}: {error})") from None
    return sorted(infos, key=lambda row: row.name)


def listed(name: str) -> WeightInfo | None:
    """The row of featkit's own weights of that name, or None."""
    return next((row for row in manifest_rows() if row.name == name), None)


def find_weights(name_or_path: str | Path) -> Path:
    """A weights file: featkit's own by name, or any file by path.

    Raises UsageError for an unknown name (suggesting the closest), BadInputError for a missing file.
    """
    name = str(name_or_path)
    row = listed(name)
    path = Path(name) if row is None else inside(resource_dir("weights"), row.file)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name that is too long or invalid for the file system
        pass
    if row is not None:
        raise BadInputError(f"{path}: the file of the weights {name!r} is missing; install featkit again")
    if path.suffix == SUFFIX or len(path.parts) > 1:
        raise BadInputError(f"{path}: no such weights file")
    known = [row.name for row in manifest_rows()]
    near = difflib.get_close_matches(name, known, n=1)
    others = f"there are: {', '.join(known)}" if known else "none is installed; name a file (--weights FILE)"
    raise UsageError(f"no weights named {name!r}; {f'did you mean {near[0]!r}?' if near else others}")


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal. Raises BadInputError."""
    digest = hashlib.sha256()
    try:
        with open_input(path) as file:
            while block := file.read(READ_AT_ONCE):
                digest.update(block)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def add_row(row: WeightInfo, folder: Path) -> Path:
    """Write the row to the folder's manifest, replacing one of the same name. Raises NotWritableError."""
    if (folder / MANIFEST).is_symlink():
        refuse_foreign(folder / MANIFEST)
    rows = [other for other in manifest_rows(folder) if other.name != row.name]
    rows = sorted([*rows, row], key=lambda info: info.name)
    text = json.dumps({"weights": [info.model_dump(mode="json") for info in rows]}, indent=1, ensure_ascii=False)
    return write_text(folder / MANIFEST, text + "\n", owned=True)  # reading it showed that it is a manifest
