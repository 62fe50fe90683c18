"""Which images see points in common: tracks of a model, and the pairs of images that share the most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from pydantic import Field

from featkit.config import Config
from featkit.types import Pair


class CovisibleConfig(Config):
    """Which images of a model are matched."""

    num_matched: int = Field(default=20, ge=1)
    """Images that each one is paired with (hloc: 20)."""


@dataclass(frozen=True)
class Tracks:
    """Who sees which point. images: indices into `names`, those of point i from starts[i] up to starts[i + 1]."""

    names: tuple[str, ...]
    starts: Int[np.ndarray, " m1"]
    images: Int[np.ndarray, " n"]


def covisible_pairs(tracks: Tracks, num: int) -> list[Pair]:
    """Each image with the `num` images that share the most points with it; each pair once, images in their order.

    Of images with equally many shared points the earlier one comes first. An image that shares none is in no pair.
    One image's tracks are in memory at a time, beside all tracks (about 40 bytes an observation while they are sorted).
    """
    total = len(tracks.names)
    points, images, starts = _each_once(tracks)
    by_image = np.argsort(images, kind="stable")
    first = np.searchsorted(images[by_image], np.arange(total + 1))
    found: dict[tuple[int, int], Pair] = {}
    for index in range(total):
        seen = points[by_image[first[index] : first[index + 1]]]
        shared = np.bincount(images[_ranges(starts[seen], starts[seen + 1])], minlength=total)
        shared[index] = 0
        for other in np.argsort(-shared, kind="stable")[:num].tolist():
            if shared[other] == 0:
                break
            key = (min(index, other), max(index, other))
            found.setdefault(key, Pair(tracks.names[index], tracks.names[other]))
    return list(found.values())


def tracks_of_images(tracks: Tracks, names: Sequence[str]) -> Tracks:
    """The same tracks, as seen by these images alone (all of them in `tracks`), in this order."""
    place = np.full(len(tracks.names), -1, np.int32)
    index = {name: i for i, name in enumerate(tracks.names)}
    place[[index[name] for name in names]] = np.arange(len(names))
    kept = place[tracks.images] >= 0
    before = np.concatenate([[0], np.cumsum(kept)])
    return Tracks(tuple(names), before[tracks.starts], place[tracks.images[kept]])


def _each_once(tracks: Tracks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Point and image of every observation, an image once per point; where each point's observations start."""
    total, count = len(tracks.names), len(tracks.starts) - 1
    points = np.repeat(np.arange(count, dtype=np.int64), np.diff(tracks.starts))
    keys = np.unique(points * total + tracks.images)
    points, images = keys // max(total, 1), (keys % max(total, 1)).astype(np.int32)
    return points, images, np.searchsorted(points, np.arange(count + 1))


def _ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """All integers from starts[i] up to ends[i], one range after the other."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())
