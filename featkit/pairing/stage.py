"""The pair stage, and the interface of its methods: a folder of images, or features.h5 -> pairs.txt.

An existing pairs.txt is up to date if its pairs.json has the same configuration, image names and seed (and digests of
the same features, if the method reads them); otherwise it is written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from featkit.core.config import Config, Seed, differences
from featkit.core.errors import BadInputError, EmptyResultError, NotWritableError
from featkit.core.registry import Method, resolve
from featkit.core.types import Pair
from featkit.images.listing import list_images
from featkit.io.atomic import refuse_folder, refuse_foreign
from featkit.io.features import FeatureStore, open_features
from featkit.io.lists import describe_pairs, write_pairs
from featkit.retrieval.retrieve import Describe

LOGGER = logging.getLogger(__name__)


# ----------------------------------------------------------------------------------------------------------------------
# The interface of pairing methods.


RigFrames = Sequence[Sequence[Mapping[int, str]]]
"""Of every rig its frames, in the order of time; of a frame the images, by the camera's place on the rig."""


class Pairing(Protocol):
    """A method that chooses which images to match; built as `cls(config, device="auto")`.

    Config: the type of its configuration. needs_features: whether `pairs` reads descriptors, so that a folder of images
    is not enough. scratch_folder: folder for large temporary files (None: the system's default).
    """

    Config: type[Config]
    needs_features: bool
    scratch_folder: Path | None

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """Pairs of `names`: each pair once, in either order, and no image with itself.

        features: store with the descriptors of `names`; may be None unless `needs_features`.
        """
        ...


@dataclass(frozen=True)
class Sources:
    """What a pairing may use in addition to the features, unless its configuration names it.

    images: the folder to which names are relative. model: folder of a COLMAP model. describe: function that computes
    image vectors for retrieval; None: this process. rigs: cameras that took images at one time.
    """

    images: Path | None = None
    model: Path | None = None
    describe: Describe | None = None
    rigs: RigFrames = ()


@runtime_checkable
class Describes(Protocol):
    """A pairing that compares image vectors."""

    describe: Describe


@runtime_checkable
class ReadsSources(Protocol):
    """A pairing that reads more than names and features: photographs, a position list, or a model."""

    sources: Sources

    def digest(self, names: list[str]) -> str:
        """Digest (16 hex digits) of everything that it reads for these names. Raises BadInputError."""
        ...


@runtime_checkable
class FollowsRigs(Protocol):
    """A pairing for which it matters what cameras of a rig took at one time."""

    rigs: RigFrames

    def uses_rigs(self) -> bool:
        """Whether it does, by its configuration."""
        ...


# ----------------------------------------------------------------------------------------------------------------------
# The stage.


class AutoConfig(Config):
    """The choice that "auto" makes."""

    exhaustive_up_to: int = Field(60, ge=2, le=10**9)
    """Largest number of images for exhaustive pairing (60 images: 1,770 pairs); above it retrieval is used."""


class PairWith(Config):
    """Which pairing a stage uses."""

    pairs: str = "auto"
    """auto, exhaustive, sequential, retrieval, gps, poses, covisible, another name in configs/, or a pairs file."""
    auto: AutoConfig = AutoConfig()
    """How "auto" chooses."""
    pairing: dict[str, Any] = Field(default_factory=dict)
    """Changes to the pairing's configuration."""
    seed: Seed = 0
    """Random seed of the clustering in retrieval."""


def auto_method(num_images: int, config: AutoConfig) -> str:
    """The pairing for that many images: "exhaustive", or "retrieval" above `exhaustive_up_to`."""
    return "exhaustive" if num_images <= config.exhaustive_up_to else "retrieval"


def choose(
    name: str,
    num_images: int,
    changes: dict[str, Any] | None = None,
    device: str = "auto",
    auto: AutoConfig | None = None,
) -> Method[Pairing]:
    """The pairing of a name in configs/, or of "auto" for that many images.

    changes: changes to its configuration. Raises UsageError for an unknown name or field.
    """
    name = auto_method(num_images, auto or AutoConfig()) if name == "auto" else name
    return resolve("pairing", name, changes, device)


def run(
    method: str | Method[Pairing],
    source: Path,
    output: Path,
    *,
    names: list[str] | None = None,
    sources: Sources | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Choose pairs among the images of `source` and write them to `output` (pairs.txt, with pairs.json next to it).

    method: a method, its name in configs/, or "auto" (see `auto_method`). source: a folder of images or features.h5.
    names: use only these images of the source. sources: what methods may use in addition to the features; by default
    the photographs in `source`, if it is a folder. overwrite: write the pairs again even if they are up to date.
    Raises UsageError for an unknown method, BadInputError for fewer than two images, a folder where features are
    needed, or an `output` that featkit did not make; EmptyResultError if no pair was found.
    """
    refuse_folder(output)
    with ExitStack() as stack:
        features = None if source.is_dir() else stack.enter_context(open_features(source))
        names = _choose_names(list_images(source) if features is None else features.names(), names, source)
        method = choose(method, len(names)) if isinstance(method, str) else method
        sources = sources or Sources(images=source if features is None else None)
        pairing = method.build()  # for this run only: it caches what it reads
        if pairing.needs_features and features is None:
            raise BadInputError(
                f"{source}: {method.cls.__name__.lower()} pairing compares features;"
                " extract first, then pair features.h5"
            )
        inputs: dict[str, Any] = {"names_sha256": names_digest(names), "seed": seed}
        if pairing.needs_features and features is not None:
            inputs["features_fingerprint"] = str(features.attributes().get("fingerprint", ""))
            inputs["features_sha256"] = names_digest([features.digest(name) for name in names])
        if isinstance(pairing, ReadsSources):
            pairing.sources = sources
            inputs["sources_sha256"] = pairing.digest(names)
        if isinstance(pairing, FollowsRigs):
            pairing.rigs = sources.rigs if pairing.uses_rigs() else ()
            frames = [[sorted(frame.items()) for frame in frames] for frames in pairing.rigs]
            inputs["rigs_sha256"] = names_digest([repr(frames)]) if frames else None  # as before there were rigs
        if not overwrite and _is_up_to_date(output, method.config, inputs):
            LOGGER.info("pair: %s is done already", output)
            return output
        refuse_foreign(output, output.with_suffix(".json"))
        pairing.scratch_folder = output.parent
        if isinstance(pairing, Describes) and sources.describe is not None:
            pairing.describe = sources.describe
        _make_folder(output.parent)
        pairs = pairing.pairs(names, features, np.random.default_rng(seed))
    if not pairs:
        raise EmptyResultError(f"{source}: no two of its {len(names)} images could be paired")
    LOGGER.info("pair: %d pairs of %d images", len(pairs), len(names))
    return write_pairs(output, pairs, method.config, inputs)


def image_names(source: Path) -> list[str]:
    """The images of a folder or of features.h5, in order. Raises BadInputError."""
    if source.is_dir():
        return list_images(source)
    with open_features(source) as store:
        return store.names()


def check_sources(method: Method[Pairing], names: list[str], sources: Sources) -> None:
    """Read what a method needs in addition to features, so that errors are found before the work begins.

    Raises what its `pairs` would raise.
    """
    pairing = method.build()
    if isinstance(pairing, ReadsSources):
        pairing.sources = sources
        pairing.digest(names)


def _choose_names(available: list[str], names: list[str] | None, source: Path) -> list[str]:
    """The images to pair, in the order of `available`. Raises BadInputError if there are fewer than two."""
    requested = None if names is None else set(names)
    chosen = [name for name in available if requested is None or name in requested]
    if len(chosen) < 2:
        which = "" if requested is None else f" of the {len(requested)} asked for"
        raise BadInputError(f"{source}: pairs need two images, but there are {len(chosen)}{which}")
    return chosen


def names_digest(names: list[str]) -> str:
    """sha256 of a list of names (or other one-line strings), in hex."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _is_up_to_date(output: Path, config: Config, inputs: dict[str, Any]) -> bool:
    """Whether `output` was made with this configuration and these inputs."""
    if not output.exists() or output.is_symlink():
        return False
    described = describe_pairs(output)
    if described is None:
        return False
    same_method = described.get("method") == type(config).__name__
    if same_method and described.get("fingerprint") == config.fingerprint():
        changed = [key for key, value in inputs.items() if described.get(key) != value]
        if not changed:
            return True
        LOGGER.info("pair: %s is made again, for other %s", output, ", ".join(changed))
    else:
        changes = differences(json.dumps(described.get("config", {})), config) if same_method else "another method"
        LOGGER.info("pair: %s is made again (%s)", output, changes)
    return False


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritableError(f"{folder}: cannot be made ({error.strerror}); choose another place") from None
