"""SCFeat (Sun, Zhu, Ji 2022): keypoints and descriptors from one network (section III-E).

Images are padded to multiples of 16 px by repeating the last column and row; keypoints are detected only inside the
image. Keypoints of other detectors are described from the same dense map. One thread runs the network for all callers,
with all cores or the GPU; on a GPU, waiting images of the same size form one batch.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field, field_validator
from torch import Tensor

from featkit.core.config import Config, CountOrZero, FactorOrZero, KeypointCount, Later, Runtime
from featkit.core.runtime import torch_cores, torch_device
from featkit.core.types import Features
from featkit.features.fast.scfeat import DenseFeatures, FrozenSCFeat
from featkit.geometry.batched import sample_map
from featkit.geometry.pixels import apply_affine, resize_affine
from featkit.models.scfeat import SCALE
from featkit.weights.files import load_scfeat_network
from featkit.weights.manifest import find_weights, sha256_of

LOGGER = logging.getLogger(__name__)
MIN_SIDE_PX = 64
MULTIPLE_PX = 16


class ScfeatConfig(Config):
    """Network, keypoint selection and descriptors."""

    weights: str = "scfeat-s"
    """Name of weights in weights/manifest.json, or the path of a safetensors file."""
    max_keypoints: KeypointCount = 8192
    """Maximum keypoints per image, those with the highest scores (IV-B: 8k)."""
    threshold: FactorOrZero = 1.0
    """Minimum score, eps_s (IV-B: 1.0; 0.5 for night queries)."""
    nms_window: int = Field(3, ge=1, le=1023)
    """Side of the non-maximum suppression window, px, odd; 1: no suppression. If the paper's N x N means a radius, this
    is 2 N + 1 (3 for its 1 on HPatches); if it means a side, N: docs/scfeat.md."""
    border_px: int = Field(1, ge=0, le=2**16)
    """Width of the image border without keypoints, px (authors' code)."""
    min_keypoints: CountOrZero = 0
    """Minimum keypoints, reached by adding the best maxima below the threshold (authors' code: 128; paper: none)."""
    refine: bool = True
    """Refine keypoints to subpixel positions by the score-weighted mean of 3 x 3 px (authors' code)."""
    descriptor_map: Literal["fused", "normalised"] = "fused"
    """Map that descriptors are sampled from: fused: before the bridge, "w/ pruning" (III-E); normalised: after it,
    "w/o pruning" (Tab. III)."""
    normalisation: Literal["l2", "fusion"] = "l2"
    """Descriptor normalisation: l2: eq. 22; fusion: eq. 25 with m = 4, plus one value, so that rows have length 1."""
    turns: Literal[1, 4] = 1
    """Number of image rotations to describe; 4: 0, 90, 180 and 270 degrees, concatenated in one row, from which the
    matcher finds the rotation between two images. For images that are not all upright; takes four times as long."""
    scales: Later[tuple[Annotated[float, Field(ge=0.05, le=4)], ...]] = Field((1.0,), min_length=1, max_length=16)
    """Image scales at which keypoints are detected and described, as fractions of the image's size; the best keypoints
    of all scales are kept. Several different scales, such as (1, 0.71, 0.5), help with photographs from different
    distances."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the network's activations. Half precision needs a GPU, or a CPU that supports it natively."""
    max_pixels: Runtime[int] = Field(6_000_000, ge=512 * 512, le=10**9)
    """Maximum pixels of one forward pass. Larger images are tiled: equal up to rounding, several times slower."""
    batch_size: Runtime[int] = Field(16, ge=1, le=10**6)
    """Maximum images of one size per GPU batch, within max_pixels. Changes results only by rounding."""
    compile: Runtime[bool] = False
    """Compile the network with torch.compile: takes minutes once per image size, worthwhile on a GPU."""

    @field_validator("scales")
    @classmethod
    def _check_scales_differ(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each scale once")
        return value

    @field_validator("nms_window")
    @classmethod
    def _check_odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value


class Scfeat:
    """SCFeat keypoints with float16 descriptors of length 1. Scores are the detector's, above the threshold."""

    Config: ClassVar[type[Config]] = ScfeatConfig
    colour: ClassVar[bool] = True
    holds_gil = False

    def __init__(self, config: ScfeatConfig, device: str = "auto"):
        self.config, self._device_name = config, device
        self._loading = threading.Lock()
        self._network: FrozenSCFeat | None = None
        self._thread: NetworkThread[Request] | None = None

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file. Raises UsageError for missing weights."""

        return sha256_of(find_weights(self.config.weights))

    def extract(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Features:
        """Features of one RGB image; see `Extractor.extract`.

        An image with a side under 64 px (with a warning) or of a single colour has no features.
        """
        return self.extract_batch([pixels])[0]

    def extract_batch(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[Features]:
        """Features of several images; consecutive images of the same size are batched on a GPU."""
        thread = self._start_thread()
        waiting = [
            [thread.submit(Request(resize_image(image, s))) for s in self._scales(image)]
            if self._is_usable(image)
            else []
            for image in images
        ]
        return [
            self._merge_scales([part.result() for part in parts], image) if parts else self._no_features(image)
            for parts, image in zip(waiting, images, strict=True)
        ]

    def _scales(self, image: np.ndarray) -> list[float]:
        """The scales at which the image is large enough for the network; 1 if there is none."""
        side = min(image.shape[:2])
        return [scale for scale in self.config.scales if round(scale * side) >= MIN_SIDE_PX] or [1.0]

    def _merge_scales(self, parts: list[Features], image: np.ndarray) -> Features:
        """Merge the features of an image and its resized copies: the best ones, in pixels of the image."""
        if self.config.scales == (1.0,):
            return parts[0]
        height, width = image.shape[:2]
        moved = [
            apply_affine(resize_affine(part.image_size, (width, height)), part.keypoints.astype(np.float64))
            for part in parts
        ]
        factors = [np.full(len(part), width / part.image_size[0], np.float32) for part in parts]
        joined = replace(
            parts[0],
            keypoints=np.concatenate(moved).astype(np.float32),
            descriptors=np.concatenate([part.descriptors for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            scales=np.concatenate(factors),
            image_size=(width, height),
        )
        return joined.select(np.argsort(-joined.scores, kind="stable")[: self.config.max_keypoints])

    def describe_points(self, pixels: UInt8[np.ndarray, "h w 3"], points: Features) -> Features:
        """Describe given keypoints from the network's map; see `DescribesPoints`. Orientations are ignored.

        With several `scales`, each keypoint is described in the resized copy whose pixel size, in pixels of the image,
        is closest to the keypoint's scale (1 if it has none). If `extract` finds no features in an image because of its
        size or content, none are returned here either.
        """
        if not self._is_usable(pixels):
            return self._no_features(pixels)
        thread, size = self._start_thread(), (pixels.shape[1], pixels.shape[0])
        copies = [resize_image(pixels, scale) for scale in self._scales(pixels)]
        own = np.ones(len(points), np.float32) if points.scales is None else points.scales
        of_copies = np.log([size[0] / copy.shape[1] for copy in copies])
        chosen = np.abs(np.log(own)[:, None] - of_copies).argmin(axis=1)
        parts = [np.flatnonzero(chosen == number) for number in range(len(copies))]
        waiting = []
        for copy, index in zip(copies, parts, strict=True):
            there = points.select(index)
            moved = apply_affine(
                resize_affine(size, (copy.shape[1], copy.shape[0])), there.keypoints.astype(np.float64)
            )
            waiting.append(thread.submit(Request(copy, replace(there, keypoints=moved.astype(np.float32)))))
        rows = np.concatenate([part.result().descriptors for part in waiting])
        descriptors = np.empty_like(rows)
        descriptors[np.concatenate(parts)] = rows
        return replace(points, descriptors=descriptors, turns=self.config.turns)

    def _is_usable(self, image: np.ndarray) -> bool:
        height, width = image.shape[:2]
        if min(height, width) < MIN_SIDE_PX:
            LOGGER.warning("an image of %d x %d px is too small for SCFeat (64 px): no features", width, height)
            return False
        return bool((image != image[0, 0]).any())

    def _no_features(self, image: np.ndarray) -> Features:
        self._start_thread()
        assert self._network is not None
        dimension = (self._network.dimension + (self.config.normalisation == "fusion")) * self.config.turns
        height, width = image.shape[:2]
        nothing = np.zeros((0, 2), np.float32), np.zeros((0, dimension), np.float16), np.zeros(0, np.float32)
        scales = None if self.config.scales == (1.0,) else np.zeros(0, np.float32)
        return Features(*nothing, image_size=(width, height), scales=scales, turns=self.config.turns)

    def _start_thread(self) -> NetworkThread[Request]:
        """The thread that runs the network; the network is loaded on the first call."""

        config = self.config
        with self._loading:
            if self._thread is None:
                device = torch_device(self._device_name)
                network = load_scfeat_network(config.weights)
                self._network = FrozenSCFeat(
                    network, device, config.precision, config.descriptor_map, config.max_pixels, config.compile
                )
                at_once = config.batch_size if device.type != "cpu" else 1
                self._thread = NetworkThread(self._run_batch, at_once, config.max_pixels)
            return self._thread

    def _run_batch(self, requests: list[Request]) -> list[Features]:
        """Features of images of one size. Runs in the network's thread."""

        images = [one.pixels for one in requests]
        height, width = images[0].shape[:2]
        maps, scores = self._dense(images)
        found = [
            self._keypoints(of_image) if one.points is None else as_scored_points(one.points, of_image.device)
            for one, of_image in zip(requests, scores[:, 0], strict=True)
        ]
        rows = [[self._rows(values, keypoints.points)] for values, keypoints in zip(maps, found, strict=True)]
        for turn in range(1, self.config.turns):
            maps, _ = self._dense([np.rot90(image, turn) for image in images])
            for values, keypoints, of_image in zip(maps, found, rows, strict=True):
                of_image.append(self._rows(values, rotate_points(keypoints.points, (height, width), turn)))
        return [
            Features(
                keypoints.points.float().cpu().numpy(),
                concatenate_rotations(of_image),
                keypoints.scores.float().cpu().numpy(),
                image_size=(width, height),
                scales=None if one.points is None else one.points.scales,
                oris=None if one.points is None else one.points.oris,
                turns=self.config.turns,
            )
            for one, keypoints, of_image in zip(requests, found, rows, strict=True)
        ]

    def _dense(self, images: list[np.ndarray]) -> DenseFeatures:
        """Descriptor maps of the padded images, and scores cropped to the images."""

        assert self._network is not None
        height, width = images[0].shape[:2]
        bottom, right = -height % MULTIPLE_PX, -width % MULTIPLE_PX
        padded = [np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge") for image in images]
        maps, scores = self._network(torch.from_numpy(np.stack(padded)))
        return DenseFeatures(maps, scores[:, :, :height, :width])

    def _keypoints(self, scores: Tensor) -> ScoredPoints:
        config = self.config
        return find_keypoints(
            scores,
            config.threshold,
            config.nms_window,
            config.border_px,
            config.max_keypoints,
            config.min_keypoints,
            config.refine,
        )

    def _rows(self, maps: Float[Tensor, "d h/4 w/4"], points: Float[Tensor, "n 2"]) -> Float[np.ndarray, "n d2"]:
        """Descriptors with rows of length 1. maps: of the padded image."""

        padded_size = (maps.shape[2] * SCALE, maps.shape[1] * SCALE)
        with torch.inference_mode():
            vectors = sample_map(maps[None], points[None], padded_size)[0]
            return normalised_rows(vectors, self.config.normalisation).cpu().numpy()


def resize_image(image: UInt8[np.ndarray, "h w c"], scale: float) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Resize an image by a factor."""
    if scale == 1:
        return image
    size = round(scale * image.shape[1]), round(scale * image.shape[0])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


# ----------------------------------------------------------------------------------------------------------------------
# Score map -> keypoints (SCFeat III-E): the best local maxima above a threshold, with subpixel refinement.


REFINE_PX = 3


class ScoredPoints(NamedTuple):
    """Keypoints in pixels of the score map, best first. scores: at the unrefined pixel."""

    points: Float[Tensor, "n 2"]
    scores: Float[Tensor, " n"]


def find_keypoints(
    scores: Float[Tensor, "h w"],
    threshold: float,
    nms_window: int,
    border_px: int,
    max_keypoints: int,
    min_keypoints: int = 0,
    refine: bool = True,
) -> ScoredPoints:
    """Local maxima with a score above `threshold`; ties in row-major order.

    nms_window: side of the square in which a pixel must be the maximum, odd. border_px: width of the image border that
    is skipped. min_keypoints: reached by adding the best maxima below the threshold. refine: see `refine_positions`;
    excludes a border of at least one pixel.
    """
    border_px = max(border_px, REFINE_PX // 2) if refine else border_px
    allowed = local_maxima(scores, nms_window) & _inside_border(scores, border_px)
    if min_keypoints == 0:
        allowed &= scores > threshold
    index = torch.nonzero(allowed.flatten())[:, 0]
    values, order = torch.sort(scores.flatten()[index], descending=True, stable=True)
    count = min(max(int((values > threshold).sum()), min_keypoints), max_keypoints)
    index, values = index[order[:count]], values[:count]
    pixels = torch.stack([index % scores.shape[1], index // scores.shape[1]], dim=1)
    return ScoredPoints(refine_positions(scores, pixels) if refine else pixels.to(scores.dtype), values)


def as_scored_points(points: Features, device: torch.device) -> ScoredPoints:
    """Given keypoints of another detector, in their order."""
    return ScoredPoints(torch.from_numpy(points.keypoints).to(device), torch.from_numpy(points.scores).to(device))


def local_maxima(scores: Float[Tensor, "h w"], window: int) -> Bool[Tensor, "h w"]:
    """Pixels that are the maximum of the window around them; among equal ones only the first."""
    if window == 1:
        return torch.ones_like(scores, dtype=torch.bool)
    _, first = F.max_pool2d(scores[None, None], window, stride=1, padding=window // 2, return_indices=True)
    own = torch.arange(scores.numel(), device=scores.device).view_as(scores)
    return first[0, 0] == own


def refine_positions(scores: Float[Tensor, "h w"], pixels: Int[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Score-weighted mean position in the 3x3 pixels around each (authors' code). No pixel may be at the edge."""
    steps = torch.arange(REFINE_PX, device=scores.device) - REFINE_PX // 2
    rows = pixels[:, 1, None, None] + steps[:, None]
    columns = pixels[:, 0, None, None] + steps
    weights = scores[rows, columns]
    shares = weights / weights.sum(dim=(1, 2), keepdim=True)
    offsets = torch.stack([(shares.sum(1) * steps).sum(1), (shares.sum(2) * steps).sum(1)], dim=1)
    return pixels + offsets


def _inside_border(scores: Float[Tensor, "h w"], border_px: int) -> Bool[Tensor, "h w"]:
    inside = torch.zeros_like(scores, dtype=torch.bool)
    height, width = scores.shape
    inside[border_px : max(height - border_px, 0), border_px : max(width - border_px, 0)] = True
    return inside


# ----------------------------------------------------------------------------------------------------------------------
# Sampled descriptor vectors -> rows of length 1 (SCFeat III-E, eq. 22; IV-B, eq. 25).


Normalisation = Literal["l2", "fusion"]
FUSED_NORMS = 4
"""m of eq. 25; the weight of the L_p norm is p (section IV-B)."""
LEAST_NORM = 1e-12
LIFT_RADIUS = 8.0
"""Radius of the sphere onto which fused vectors (length up to 2.3, mostly 1.6) are lifted."""


def normalised_rows(vectors: Float[Tensor, "n d"], normalisation: Normalisation) -> Float[Tensor, "n d2"]:
    """Normalise rows to length 1. l2: d2 = d. fusion: d2 = d + 1, see `lift_to_unit`."""
    if normalisation == "l2":
        return F.normalize(vectors, dim=1)
    return lift_to_unit(fusion(vectors))


def fusion(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Eq. 25: mean of the vectors divided by their L_1 to L_4 norms, weighted by 1 to 4. Not of unit length.

    Norms use absolute values: the paper's formula has roots of negative numbers for odd p.
    """
    orders = range(1, FUSED_NORMS + 1)
    scale = sum(p / torch.linalg.vector_norm(vectors, p, dim=1, keepdim=True).clamp_min(LEAST_NORM) for p in orders)
    return vectors * scale / sum(orders)


def lift_to_unit(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d+1"]:
    """Turn vectors of any length into unit vectors by adding one value, nearly preserving the order of distances.

    Matchers need unit rows. (v, sqrt(R^2 - |v|^2)) / R has length 1, and the squared distance of two such vectors is
    (|a - b|^2 + e) / R^2. The error e, about ((|a|^2 - |b|^2) / (2 R))^2 or less, is 1 % of |a - b|^2 for R = 8.
    """
    height = torch.sqrt(LIFT_RADIUS**2 - vectors.square().sum(dim=1, keepdim=True))
    return torch.cat([vectors, height], dim=1) / LIFT_RADIUS


# ----------------------------------------------------------------------------------------------------------------------
# Descriptors of an image rotated by multiples of 90 degrees, for images that are not all upright.
#
# A network trained on upright images tolerates rotations of about 45 degrees. With the descriptors of the image
# rotated by 0, 90, 180 and 270 degrees concatenated, the matcher can compare any two images nearly upright
# (`matching/nearest.py`). The paper does not address rotation.


def rotate_points(points: Float[Tensor, "n 2"], shape: tuple[int, int], quarters: int) -> Float[Tensor, "n 2"]:
    """Positions of points in `np.rot90(image, quarters)`. shape: height and width of the image before rotation."""
    height, width = shape
    for _ in range(quarters):
        points = torch.stack([points[:, 1], width - 1 - points[:, 0]], dim=1)
        height, width = width, height
    return points


def concatenate_rotations(rows: Sequence[Float[np.ndarray, "n d"]]) -> Float[np.ndarray, "n k*d"]:
    """Concatenate unit rows of k rotations to unit rows, float16."""
    return (np.concatenate(rows, axis=1) / len(rows) ** 0.5).astype(np.float16)


# ----------------------------------------------------------------------------------------------------------------------
# One thread runs a network on the images of many threads, in order of arrival, batched where possible.
#
# A network on the CPU uses all cores: two threads at once would only slow each other down (and OpenMP keeps a thread
# pool for each of them). A GPU processes several images in little more time than one.


class HasShape(Protocol):
    """Input of a network: pixels (h, w, c), possibly with additional data."""

    @property
    def shape(self) -> tuple[int, ...]: ...


AnImage = TypeVar("AnImage", bound=HasShape)


class Request(NamedTuple):
    """An image, with the keypoints to describe; None: detect keypoints."""

    pixels: UInt8[np.ndarray, "h w c"]
    points: Features | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels."""
        return self.pixels.shape


class NetworkThread(Generic[AnImage]):
    """Calls `work`, a method of the extractor that owns this, in one thread, with batches of images of one size.

    The extractor is held weakly: otherwise the two would form a cycle, and its network would stay in memory until
    Python's garbage collector runs. at_once: maximum images per batch. most_pixels: maximum pixels per batch; a larger
    image forms a batch of its own.
    """

    def __init__(self, work: Callable[[list[AnImage]], list[Features]], at_once: int, most_pixels: int):
        self._work, self._at_once, self._most_pixels = weakref.WeakMethod(work), at_once, most_pixels
        self._waiting: deque[tuple[AnImage, Future[Features]]] = deque()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "network", initializer=torch.set_num_threads, initargs=(torch_cores(),))

    def submit(self, image: AnImage) -> Future[Features]:
        """Future of its features. An exception in `work` is raised by the result of every image in the batch."""
        done: Future[Features] = Future()
        with self._lock:
            self._waiting.append((image, done))
        self._pool.submit(self._serve)
        return done

    def _serve(self) -> None:
        batch = self._next_batch()
        if not batch:
            return  # already in the batch of an earlier call
        try:
            work = self._work()
            assert work is not None  # whoever waits for the features holds the extractor
            found = work([image for image, _ in batch])
            del work
        except BaseException as error:
            for _, done in batch:
                done.set_exception(error)
            return
        for (_, done), features in zip(batch, found, strict=True):
            done.set_result(features)

    def _next_batch(self) -> list[tuple[AnImage, Future[Features]]]:
        with self._lock:
            if not self._waiting:
                return []
            batch = [self._waiting.popleft()]
            shape = batch[0][0].shape
            count = min(self._at_once, self._most_pixels // (shape[0] * shape[1]))
            while len(batch) < count and self._waiting and self._waiting[0][0].shape == shape:
                batch.append(self._waiting.popleft())
            return batch
