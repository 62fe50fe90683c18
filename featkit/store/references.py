"""Known camera centres: `name x y z` a line, in metres.

A name with spaces is legal: the last three fields are the numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from featkit.errors import BadInputError
from featkit.store.text import read_lines


def read_references(path: Path) -> dict[str, Float[np.ndarray, "3"]]:
    """Positions by image name, in any right-handed frame. Raises BadInputError."""
    positions: dict[str, Float[np.ndarray, "3"]] = {}
    for number, line in read_lines(path):
        fields = line.rsplit(maxsplit=3)
        if len(fields) != 4:
            raise BadInputError(f"{path}:{number}: expected `name x y z`")
        try:
            position = np.array([float(field) for field in fields[1:]])
        except ValueError:
            raise BadInputError(f"{path}:{number}: expected numbers after the name, got {line!r}") from None
        if not np.all(np.isfinite(position)):
            raise BadInputError(f"{path}:{number}: a number is not finite")
        if fields[0] in positions:
            raise BadInputError(f"{path}:{number}: {fields[0]!r} has a position already")
        positions[fields[0]] = position
    if not positions:
        raise BadInputError(f"{path}: no positions in it; `name x y z` a line")
    return positions
