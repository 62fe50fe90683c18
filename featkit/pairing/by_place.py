"""Pairs by location: by GPS, camera poses, or covisibility."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64
from pydantic import Field

from featkit.core.config import Config, Count, Degrees, Metres, Runtime, digest
from featkit.core.errors import BadInputError, UsageError
from featkit.core.types import Pair, Pose
from featkit.geometry.poses import Geodetic, camera_centre, ecef, middle, rotation_matrix
from featkit.images.exif import Located, locate, some_names
from featkit.io.features import FeatureStore
from featkit.mapping.covisibility import CovisibleConfig, Tracks, covisible_pairs, tracks_of_images
from featkit.mapping.reference import poses_of_model, tracks_of_model
from featkit.mapping.scene import find_model
from featkit.pairing.by_retrieval import each_once
from featkit.pairing.stage import Sources

LOGGER = logging.getLogger(__name__)
# ----------------------------------------------------------------------------------------------------------------------
# Each image with the nearest images by GPS: the number of pairs grows with n, not with n^2.
#
# Similar: COLMAP's spatial matching (`SpatialPairingOptions`), which skips images without a position.


class GpsConfig(Config):
    """Pairing by GPS: number of neighbours and source of the positions."""

    num_matched: Count = 16
    """Number of nearest images with which each image is paired. In a survey along strips, two before and two after on
    the same strip and five on each neighbouring strip are 14; two more allow for GPS errors."""
    max_distance_m: Metres | None = None
    """Largest distance of paired images, m; None: any distance (COLMAP: 100)."""
    use_altitude: bool = False
    """Include altitudes in distances; unknown ones are set to the median. Off as in COLMAP (`ignore_z`), since GPS is
    least accurate in height."""
    without_position: Literal["all", "none"] = "all"
    """Partners of an image without a position: "all" other images, so that it is not lost, or "none"."""
    file: Runtime[Path | None] = None
    """Csv file with `name,lat,lon[,alt]` per line; None: EXIF of the photographs."""


class Gps:
    """The nearest images by distance on the earth (chord lengths, which are continuous across 180 degrees)."""

    Config = GpsConfig
    needs_features = False
    scratch_folder: Path | None = None

    def __init__(self, config: GpsConfig, device: str = "auto"):
        self.config = config
        self.sources = Sources()
        self._located: tuple[tuple[str, ...], Located] | None = None

    def digest(self, names: list[str]) -> str:
        """See `ReadsSources.digest`: a digest of the positions."""
        return digest(*(f"{name} {position}" for name, position in self._cached_positions(names).positions.items()))

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; sorted by first image, then by distance; images without a position last.

        Raises UsageError if neither a csv nor the photographs are known, BadInputError if no image has a position, or
        if all of more than `num_matched` + 1 images have the same one.
        """
        located = self._cached_positions(names)
        listed = list(located.positions)
        self._refuse_identical_positions(located)
        best = nearest(self._positions_in_metres(located), self.config.num_matched, self.config.max_distance_m)
        near_pairs = [Pair(listed[a], listed[b]) for a, b in each_once(best).tolist()]
        return near_pairs + self._pairs_without_position(located)

    def _cached_positions(self, names: list[str]) -> Located:
        """Positions of the unique names; cached."""
        listed = tuple(dict.fromkeys(names))
        if self._located is None or self._located[0] != listed:
            self._located = listed, locate(listed, self.sources.images, self.config.file)
        return self._located[1]

    def _positions_in_metres(self, located: Located) -> np.ndarray:
        positions = list(located.positions.values())
        median_altitude = middle(positions).altitude_m if self.config.use_altitude else None
        if median_altitude is None:
            return ecef([replace(position, altitude_m=None) for position in positions])
        return ecef([p if p.altitude_m is not None else replace(p, altitude_m=median_altitude) for p in positions])

    def _refuse_identical_positions(self, located: Located) -> None:
        """Refuse many images at one position: it cannot tell which are near, so pairs would be by name order."""
        names_at: dict[Geodetic, list[str]] = {}
        for name, position in located.positions.items():
            names_at.setdefault(position, []).append(name)
        largest = max(names_at.values(), key=len, default=[])
        if len(largest) <= self.config.num_matched + 1:
            return
        where = f"{len(largest)} of {len(located.positions)} images have the same GPS position ({some_names(largest)})"
        if len(names_at) == 1:
            raise BadInputError(f"{where}, so it cannot tell which are near; use another pairing (--pairs retrieval)")
        LOGGER.warning("pair: %s: each is paired with %d of them, by name order", where, self.config.num_matched)

    def _pairs_without_position(self, located: Located) -> list[Pair]:
        """Pairs of the images without a position; one warning names them."""
        if not located.without:
            return []
        to_all = self.config.without_position == "all"
        all_names = [*located.positions, *located.without]
        first = len(located.positions)
        all_pairs = [Pair(name, other) for i, name in enumerate(located.without) for other in all_names[: first + i]]
        LOGGER.warning(
            "pair: %d of %d images have no GPS position and are paired with %s: %s",
            len(located.without),
            len(all_names),
            f"every other image, {len(all_pairs)} pairs" if to_all else "none",
            some_names(located.without),
        )
        return all_pairs if to_all else []


# ----------------------------------------------------------------------------------------------------------------------
# Each image with the images whose cameras are nearest and look in a similar direction, in an existing model.
#
# Similar: hloc's pairs_from_poses. It compares full rotations; here only viewing directions count, because a camera
# that is rotated about its optical axis still sees the same scene.


class PosesConfig(Config):
    """Pairing by camera poses: number of neighbours, and which cameras are neighbours."""

    num_matched: Count = 20
    """Number of nearest images with which each image is paired (as in retrieval)."""
    max_angle_deg: Degrees = Field(30.0, gt=0)
    """Largest angle between viewing directions, degrees (hloc: 30, of the full rotation)."""
    max_distance: Metres | None = None
    """Largest distance between camera centres, in the model's units; None: any."""
    model: Runtime[Path | None] = None
    """Folder of a COLMAP model, or of a mapped scene; None: the model given to the command."""


class ByPoses:
    """The nearest cameras of a model that look in a similar direction."""

    Config = PosesConfig
    needs_features = False
    scratch_folder: Path | None = None

    def __init__(self, config: PosesConfig, device: str = "auto"):
        self.config = config
        self.sources = Sources()
        self._cache: tuple[list[str], dict[str, Pose]] | None = None

    def digest(self, names: list[str]) -> str:
        """See `ReadsSources.digest`: a digest of the poses of these images."""
        poses = self._cached_poses(names)
        return digest(*(f"{name} {pose.qvec.tolist()} {pose.tvec.tolist()}" for name, pose in poses.items()))

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; sorted by first image, then by distance. Images without a pose are in no pair.

        Raises UsageError without a model, BadInputError if the model has none of the images.
        """
        poses = self._cached_poses(names)
        warn_of_missing(names, poses)
        listed = list(poses)
        centres = np.array([camera_centre(pose) for pose in poses.values()])
        axes = np.array([rotation_matrix(pose.qvec)[2] for pose in poses.values()])  # +z of the cameras, in the world
        best = nearest(centres, self.config.num_matched, self.config.max_distance, axes, self.config.max_angle_deg)
        return [Pair(listed[a], listed[b]) for a, b in each_once(best).tolist()]

    def _cached_poses(self, names: list[str]) -> dict[str, Pose]:
        """Poses of the names that have one, in their order; cached."""
        if self._cache is None or self._cache[0] != names:
            model = model_folder(self.config.model, self.sources, "poses")
            poses = poses_of_model(model)
            self._cache = list(names), {name: poses[name] for name in known_names(names, poses, model)}
        return self._cache[1]


# ----------------------------------------------------------------------------------------------------------------------
# Each image with the images that share the most points with it, in an existing model.
#
# Similar: hloc's pairs_from_covisibility.


class CovisiblePairingConfig(CovisibleConfig):
    """Pairing by covisibility: number of partners, and the model."""

    model: Runtime[Path | None] = None
    """Folder of a COLMAP model, or of a mapped scene; None: the model given to the command."""


class Covisible:
    """The images of a model that share the most points."""

    Config = CovisiblePairingConfig
    needs_features = False
    scratch_folder: Path | None = None

    def __init__(self, config: CovisiblePairingConfig, device: str = "auto"):
        self.config = config
        self.sources = Sources()
        self._cache: tuple[list[str], Tracks] | None = None

    def digest(self, names: list[str]) -> str:
        """See `ReadsSources.digest`: a digest of the tracks of these images."""
        tracks = self._cached_tracks(names)
        return digest(*tracks.names, str(tracks.starts.tolist()), str(tracks.images.tolist()))

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; sorted by first image, then by the number of shared points.

        An image that is not in the model, or shares no point, is in no pair. Raises UsageError without a model,
        BadInputError when the model has none of the images.
        """
        tracks = self._cached_tracks(names)
        warn_of_missing(names, set(tracks.names))
        return covisible_pairs(tracks, self.config.num_matched)

    def _cached_tracks(self, names: list[str]) -> Tracks:
        """Tracks of the names that the model has, in their order; cached."""
        if self._cache is None or self._cache[0] != names:
            model = model_folder(self.config.model, self.sources, "covisibility")
            tracks = tracks_of_model(model)
            self._cache = list(names), tracks_of_images(tracks, known_names(names, tracks.names, model))
        return self._cache[1]


# ----------------------------------------------------------------------------------------------------------------------
# Exact nearest neighbours among a set of positions, in a reproducible order.


def nearest(
    places: Float[np.ndarray, "n d"],
    num: int,
    max_distance: float | None = None,
    directions: Float[np.ndarray, "n 3"] | None = None,
    max_angle_deg: float = 180.0,
) -> Int64[np.ndarray, "n num"]:
    """For every position its `num` nearest others, nearest first, ties by lower index; -1 if there are fewer.

    max_distance: largest distance, in the units of the positions. directions: unit vectors, which may differ by at most
    `max_angle_deg`. Time is O(n^2); one row of distances is in memory at a time.
    """
    neighbours = np.full((len(places), num), -1, np.int64)
    min_cosine = np.cos(np.radians(max_angle_deg))
    for row, place in enumerate(places):
        squares = ((places - place) ** 2).sum(axis=1)
        squares[row] = np.inf
        if directions is not None:
            squares[directions @ directions[row] < min_cosine] = np.inf
        if max_distance is not None:
            squares[squares > max_distance**2] = np.inf
        best = _smallest_indices(squares, num)
        neighbours[row, : len(best)] = best
    return neighbours


def _smallest_indices(values: Float[np.ndarray, " n"], num: int) -> Int64[np.ndarray, " m"]:
    """Indices of the `num` smallest finite values in order, without sorting all values."""
    candidates = np.flatnonzero(np.isfinite(values))
    if len(candidates) > num:
        bound = np.partition(values[candidates], num - 1)[num - 1]
        candidates = candidates[values[candidates] <= bound]  # including ties with the last one
    return candidates[np.argsort(values[candidates], kind="stable")][:num]


# ----------------------------------------------------------------------------------------------------------------------
# The model that a pairing reads: from its configuration, or from the command that runs it.


def model_folder(configured: Path | None, sources: Sources, method: str) -> Path:
    """Folder of the COLMAP model. Raises UsageError if none is named, BadInputError if it contains no model."""
    folder = configured or sources.model
    if folder is None:
        raise UsageError(
            f"pairing by {method} needs a COLMAP model: `featkit pairs --model DIR`, or --reference DIR of reconstruct"
        )
    return find_model(folder)


def known_names(names: Sequence[str], in_model: Collection[str], model: Path) -> list[str]:
    """The unique names that the model has. Raises BadInputError if it has none of them."""
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
    """Warn about the images that are not in the model, and therefore in no pair."""
    listed = list(dict.fromkeys(names))
    missing = [name for name in listed if name not in known]
    if missing:
        LOGGER.warning(
            "pair: %d of %d images are not in the model and in no pair: %s",
            len(missing),
            len(listed),
            some_names(missing),
        )
