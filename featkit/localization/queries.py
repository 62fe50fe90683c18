"""Intrinsics of query images, and their source: a list, the map, EXIF, or a guess. Map images to match them with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pycolmap

from featkit.core.config import Config, Count, digest
from featkit.core.errors import BadInputError
from featkit.images.read import stored_size
from featkit.io.artifact import artifact
from featkit.io.camera_models import camera_fault, camera_models
from featkit.io.features import files_digest, open_features
from featkit.io.lists import Intrinsics, Spelling, read_pairs, write_pairs
from featkit.mapping.cameras import CameraConfig, guessed_camera, infer_camera, to_camera
from featkit.mapping.model import read_model
from featkit.mapping.scene import MapFiles
from featkit.retrieval.retrieve import check_files, retrieve, retrieve_given
from featkit.retrieval.vlad import VladConfig

LOGGER = logging.getLogger(__name__)
Source = Literal["list", "params", "map", "exif", "guess"]


@dataclass(frozen=True)
class QueryCamera:
    """A query's camera. `source` "guess": no intrinsics are known, so the focal length is estimated with the pose."""

    camera: pycolmap.Camera
    source: Source


def query_camera(
    name: str,
    images: Path,
    config: CameraConfig,
    listed: dict[str, Intrinsics] | None,
    model: pycolmap.Reconstruction,
) -> QueryCamera:
    """Camera of one query. Raises BadInputError if a list is given that lacks it or has a different image size."""
    if listed is not None:
        if name not in listed:
            raise BadInputError(f"{name!r} is not in the list of intrinsics; add `{name} MODEL width height params...`")
        return QueryCamera(_check_camera_of_file(name, to_camera(listed[name]), images / name), "list")
    if config.params is not None:
        return QueryCamera(infer_camera(images / name, config), "params")
    return _prefer_map_camera(infer_camera(images / name, config), model)


def camera_of_pixels(
    name: str,
    size: tuple[int, int],
    config: CameraConfig,
    intrinsics: Intrinsics | None,
    model: pycolmap.Reconstruction,
) -> QueryCamera:
    """Camera of an image in memory: like `query_camera`, but without EXIF. size: (width, height), px.

    Raises BadInputError for intrinsics of a different size.
    """
    if intrinsics is not None:
        return QueryCamera(_check_camera_size(name, to_camera(intrinsics), size), "list")
    if config.params is not None:
        if fault := camera_fault(camera_models()[config.given_model], size, config.params):
            raise BadInputError(f"{name!r}: the given camera cannot be its own: {fault}")
        return QueryCamera(to_camera(Intrinsics(config.given_model, *size, config.params)), "params")
    return _prefer_map_camera(guessed_camera(config, size), model)


def _prefer_map_camera(camera: pycolmap.Camera, model: pycolmap.Reconstruction) -> QueryCamera:
    """The map's camera if it has only one, of the same size; otherwise the inferred one."""
    same = [c for c in model.cameras.values() if (c.width, c.height) == (camera.width, camera.height)]
    if len(model.cameras) == 1 and same:  # refined in mapping, so better than EXIF
        return QueryCamera(same[0], "map")
    if camera_models()[camera.model_name].is_spherical:  # the size is its only parameter
        return QueryCamera(camera, "params")
    return QueryCamera(camera, "exif" if camera.has_prior_focal_length else "guess")


def _check_camera_of_file(name: str, camera: pycolmap.Camera, path: Path) -> pycolmap.Camera:
    return _check_camera_size(name, camera, stored_size(path))


def _check_camera_size(name: str, camera: pycolmap.Camera, size: tuple[int, int]) -> pycolmap.Camera:
    if size != (camera.width, camera.height):
        raise BadInputError(
            f"{name!r} is {size[0]} x {size[1]}, its intrinsics are for {camera.width} x {camera.height}; correct them"
        )
    return camera


# ----------------------------------------------------------------------------------------------------------------------
# Map images to match with each query: the most similar ones by VLAD, trained on the map only.


def pair_queries(
    query_features: Path,
    names: Sequence[str],
    map_files: MapFiles,
    config: VladConfig,
    num: int,
    output: Path,
    seed: int,
    device: str = "auto",
) -> Path | None:
    """Write pairs (query, map image), best first, unless up to date; only registered images are retrieved.

    Queries without features (skipped images) get no pair. Returns None if there are no pairs at all.
    """
    registered = sorted(image.name for image in read_model(map_files.model).images.values() if image.has_pose)
    with open_features(query_features) as queries, open_features(map_files.features) as database:
        usable = [name for name in names if queries.has(name)]
        inputs = digest(
            str(num),
            str(seed),
            *(f"{name} {queries.digest(name)}" for name in usable),
            *(f"{name} {database.digest(name)}" for name in registered),
        )
        if artifact(output, config, inputs).up_to_date:
            LOGGER.info("retrieve: done already")
            return output
        generator = np.random.default_rng(seed)
        pairs = retrieve(
            queries, usable, database, registered, config, num, generator, device=device, spill_folder=output.parent
        )
    if not pairs:
        return None
    return write_pairs(output, pairs, config, {"inputs": inputs, "method": "retrieval of map images"})


def given_pairs(pairs: Path, query_features: Path, map_features: Path, output: Path) -> Path | None:
    """Write the pairs of a given file, without queries that could not be read, to `output`; None if none is left.

    Raises BadInputError for a file that is not a list of pairs.
    """
    with open_features(query_features) as queries, open_features(map_features) as database:
        spelled = (Spelling(queries.names), Spelling(database.names))
        usable = [pair for pair in read_pairs(pairs, True, spelled) if queries.has(pair.name0)]
    return write_pairs(output, usable) if usable else None


# ----------------------------------------------------------------------------------------------------------------------
# Map images to match with each query, by global descriptors computed by another program (`--retrieval`).


class GivenQueriesConfig(Config):
    """What determines the pairs, apart from the names."""

    content: str
    """Hash of the descriptor files, 16 hex digits."""
    num_retrieved: Count
    """Number of map images paired with each query."""


def pair_queries_given(
    files: Sequence[Path], query_features: Path, names: Sequence[str], map_files: MapFiles, num: int, output: Path
) -> Path | None:
    """Like `pair_queries`, with descriptors from files.

    files: one with all images, or one for the map and one for the queries. Raises BadInputError, which names images
    without a descriptor, and UsageError for three files.
    """
    check_files(files)
    registered = sorted(image.name for image in read_model(map_files.model).images.values() if image.has_pose)
    with open_features(query_features) as queries:
        usable = [name for name in names if queries.has(name)]
    config = GivenQueriesConfig(content=files_digest(files), num_retrieved=num)
    inputs = digest(*usable, "", *registered)
    if artifact(output, config, inputs).up_to_date:
        LOGGER.info("retrieve: done already")
        return output
    pairs = retrieve_given(files, usable, registered, num)
    if not pairs:
        return None
    return write_pairs(output, pairs, config, {"inputs": inputs, "method": "retrieval by given descriptors"})
