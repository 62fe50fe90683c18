"""The model that a pairing reads: from its configuration, or from the command it runs in."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from featkit.errors import BadInputError, UsageError
from featkit.images.located import some_names
from featkit.mapping.scene import find_model
from featkit.pairing.base import Sources

LOGGER = logging.getLogger(__name__)


def model_folder(configured: Path | None, sources: Sources, method: str) -> Path:
    """Folder of the COLMAP model. Raises UsageError when none is named, BadInputError when there is none in it."""
    folder = configured or sources.model
    if folder is None:
        raise UsageError(
            f"pairing by {method} takes a COLMAP model: `featkit pairs --model DIR`, or --reference DIR of reconstruct"
        )
    return find_model(folder)


def known_names(names: Sequence[str], in_model: Collection[str], model: Path) -> list[str]:
    """The names, each once, that the model has. Raises BadInputError when it has none of them."""
    listed = list(dict.fromkeys(names))
    known = [name for name in listed if name in in_model]
    if not known:
        example = f", such as {next(iter(in_model))!r}" if in_model else ""
        raise BadInputError(
            f"{model}: none of its {len(in_model)} images{example}, is one of the {len(listed)} to pair, such as"
            f" {listed[0]!r}; names are relative to the folder of images"
        )
    return known


def warn_of_missing(names: Sequence[str], known: Collection[str]) -> None:
    """One warning that names the images which are not in the model, and so in no pair."""
    listed = list(dict.fromkeys(names))
    missing = [name for name in listed if name not in known]
    if missing:
        LOGGER.warning(
            "pair: %d of %d images are not in the model and in no pair: %s",
            len(missing),
            len(listed),
            some_names(missing),
        )
