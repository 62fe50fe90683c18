"""Photographs on the page: the answer to a request, their geometry and their pixels, cached in memory."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from featkit.core.config import Config, Megabytes, Quality
from featkit.core.errors import BadInputError
from featkit.geometry.pixels import apply_affine, compose, resize_affine
from featkit.images.read import DecodeConfig, read_file, read_header, stored_from_upright
from featkit.images.thumbnails import Longer, jpeg, thumbnail

OVERHEAD = 64  # approximate size of a small object in memory, bytes


class PageImageConfig(Config):
    """Size and quality of the photographs on the page."""

    thumbnail_px: Longer = 320
    """Longer side of thumbnails, px."""
    photograph_px: Longer = 1600
    """Longer side of photographs, px; keypoints and matches are drawn on these."""
    jpeg_quality: Quality = 85
    """JPEG quality of thumbnails and photographs, 1 to 100."""
    cache_mb: Megabytes = 128
    """Memory for caching photographs, MB (10^6 bytes)."""


class Response(NamedTuple):
    """The response to one request. kind: content type."""

    kind: str
    data: bytes


def json_response(value: Any) -> Response:
    """A response with json. Raises ValueError for NaN and infinity, which json lacks."""
    return Response("application/json", json.dumps(value, allow_nan=False, separators=(",", ":")).encode())


def binary_response(*arrays: np.ndarray) -> Response:
    """A response with arrays, one after the other."""
    return Response("application/octet-stream", b"".join(array.tobytes() for array in arrays))


class PhotographView(NamedTuple):
    """Geometry of an upright photograph. size: px. from_camera: affine map from its camera's pixels to its own.

    there: whether the photograph's file exists.
    """

    size: tuple[int, int]
    from_camera: Float[np.ndarray, "2 3"]
    there: bool

    def corners_uv(self, width: int, height: int) -> list[float]:
        """Corners of its camera's image (width x height px) on the photograph: u to the right, v up, each 0 to 1.

        Order: top left, top right, bottom right, bottom left of the camera's image.
        """
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
        shown = (apply_affine(self.from_camera, corners) + 0.5) / np.array(self.size)
        return np.round(np.column_stack([shown[:, 0], 1 - shown[:, 1]]), 6).ravel().tolist()


class Photographs:
    """Geometry and pixels of photographs' files. grey_range: black and white of files of more than 8 bits."""

    def __init__(self, config: PageImageConfig, grey_range: tuple[float, float] | None):
        self.config, self._range = config, grey_range
        self.cache = Cache(int(config.cache_mb * 1e6))

    def picture(self, path: Path, kind: str) -> Response:
        """A photograph as JPEG. kind: "thumb" or "photo". Raises BadInputError."""
        side = self.config.thumbnail_px if kind == "thumb" else self.config.photograph_px
        make = lambda: jpeg(thumbnail(path, side, self._range).pixels, self.config.jpeg_quality)  # noqa: E731
        return Response("image/jpeg", self.cache.get((kind, path), make))

    def geometry(self, path: Path | None, size: tuple[int, int]) -> PhotographView:
        """Geometry of a photograph whose camera has this size; without a file that can be read, that of its camera."""
        return self.cache.get(("geometry", path, size), lambda: _geometry(path, size))


def _geometry(path: Path | None, size: tuple[int, int]) -> PhotographView:
    try:
        header = None if path is None else read_header(path, read_file(path), DecodeConfig())
    except BadInputError:
        header = None
    if header is None:
        return PhotographView(size, np.eye(2, 3), False)
    back = np.vstack([stored_from_upright(header.size, header.orientation), [0, 0, 1]])
    to_upright = np.linalg.inv(back)[:2]
    turned = abs(to_upright[0, 0]) < 0.5
    shown = header.size[::-1] if turned else header.size
    return PhotographView(shown, compose(to_upright, resize_affine(size, header.size)), True)


class Cache:
    """A thread-safe cache of the most recently used values, limited in bytes."""

    def __init__(self, limit: int):
        self._limit, self._total = limit, 0
        self._items: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of a key, made if it is not cached."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key][0]
        value = make()
        weight = len(value) if isinstance(value, bytes) else sum(getattr(part, "nbytes", OVERHEAD) for part in value)
        with self._lock:
            if key not in self._items:
                self._items[key] = (value, weight)
                self._total += weight
            while self._total > self._limit and len(self._items) > 1:
                self._total -= self._items.popitem(last=False)[1][1]
        return value
