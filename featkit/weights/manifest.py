"""weights/manifest.json: what featkit ships, one row per weight, `{"weights": [row, ...]}` in order of name."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from featkit.core.config import Bytes, Config, resource_dir
from featkit.core.errors import BadInputError, UsageError
from featkit.io.artifact import inside, write_text
from featkit.io.atomic import refuse_foreign

MANIFEST = "manifest.json"
SUFFIX = ".safetensors"
READ_AT_ONCE = 2**20  # bytes


class WeightInfo(Config):
    """One row of the manifest: which file, and how it came to be."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """What the user types, and `descriptor:` of a configuration says."""
    kind: Literal["patch", "scfeat"] = "patch"
    """patch: a patch descriptor. scfeat: dense descriptors and a detector."""
    file: str
    """Its name in the manifest's folder."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the file; checked whenever it is loaded."""
    bytes: Bytes
    """Size of the file, bytes."""
    config: dict[str, Any]
    """The network: the values of a PatchNetworkConfig, or of an SCFeatNetworkConfig."""
    recipe: str = ""
    """The configuration it was trained with: a name in configs/, and the options that differ."""
    commit: str = ""
    """featkit's commit when it was trained."""
    data: str = ""
    """What it was trained on."""
    scenes: tuple[str, ...] = ()
    """Names of the scenes and sets among that: what is not measured on."""
    licence: str = ""
    """Of the weight; the data's licences may limit it."""
    scores: dict[str, Any] = Field(default_factory=dict)
    """Measured numbers by name, units in the name: `fpr95_percent`."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Steps, seconds, device, versions."""


def list_weights(folder: Path | None = None) -> list[WeightInfo]:
    """All rows of the manifest in `folder`, by default featkit's own. Raises BadInputError for a damaged one."""
    path = (folder or resource_dir("weights")) / MANIFEST
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["weights"]
        found = [WeightInfo(**row) for row in rows]
    except FileNotFoundError:
        return []
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(f"{path}: a row is wrong at {where!r} ({first['msg']})") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInputError(f"{path}: not a manifest of weights ({type(error).__name__}: {error})") from None
    return sorted(found, key=lambda row: row.name)


def listed(name: str) -> WeightInfo | None:
    """featkit's own weight of that name, or None."""
    return next((row for row in list_weights() if row.name == name), None)


def find(name_or_path: str | Path) -> Path:
    """The file of a weight: one of featkit's own by its name, or any by its path.

    Raises UsageError for a name that is not listed (with the nearest one), BadInputError for a file that is not there.
    """
    name = str(name_or_path)
    row = listed(name)
    path = Path(name) if row is None else inside(resource_dir("weights"), row.file)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name too long or impossible for the file system
        pass
    if row is not None:
        raise BadInputError(f"{path}: weight {name!r} is listed, but its file is missing; install featkit again")
    if path.suffix == SUFFIX or len(path.parts) > 1:
        raise BadInputError(f"{path}: no such weights file")
    known = [row.name for row in list_weights()]
    near = difflib.get_close_matches(name, known, n=1)
    others = f"there are: {', '.join(known)}" if known else "none is installed; name a file (--weights FILE)"
    raise UsageError(f"no weight named {name!r}; {f'did you mean {near[0]!r}?' if near else others}")


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal. Raises BadInputError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(READ_AT_ONCE):
                digest.update(block)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def add_row(row: WeightInfo, folder: Path) -> Path:
    """Write the row into the folder's manifest, in place of one of the same name. Raises NotWritableError."""
    if (folder / MANIFEST).is_symlink():
        refuse_foreign(folder / MANIFEST)
    rows = [other for other in list_weights(folder) if other.name != row.name]
    rows = sorted([*rows, row], key=lambda one: one.name)
    text = json.dumps({"weights": [one.model_dump(mode="json") for one in rows]}, indent=1, ensure_ascii=False)
    return write_text(folder / MANIFEST, text + "\n", owned=True)  # it was read as one
