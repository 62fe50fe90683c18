"""SCFeat (Sun, Zhu, Ji 2022): keypoints and descriptors of one network (section III-E).

An image is padded to multiples of 16 px by repeating its last column and row; keypoints are found within the image
only. One thread runs the network, whoever asks, with all cores or the GPU: threads that wait together are served as one
batch on a GPU when their images have one size.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from jaxtyping import Float, UInt8
from pydantic import Field, field_validator

from featkit.config import Config, Runtime
from featkit.types import Features

if TYPE_CHECKING:
    from torch import Tensor

    from featkit.features.dense.frozen_scfeat import DenseFeatures, FrozenSCFeat
    from featkit.features.dense.keypoints import ScoredPoints
    from featkit.features.dense.one_thread import OneThread

LOGGER = logging.getLogger(__name__)
MIN_SIDE_PX = 64
MULTIPLE_PX = 16


class ScfeatConfig(Config):
    """Which network, which of its keypoints, and what describes them."""

    weights: str = "scfeat-s"
    """A weight by its name in weights/manifest.json, or the path of a safetensors file."""
    max_keypoints: int = Field(default=8192, ge=1)
    """The best ones are kept (IV-B: 8k)."""
    threshold: float = Field(default=1.0, ge=0)
    """Least score, eps_s (IV-B: 1.0; 0.5 for queries by night)."""
    nms_window: int = Field(default=3, ge=1)
    """Side of the square in which a keypoint is the maximum, px, odd; 1: no suppression. The paper's N x N read as a
    radius is 2 N + 1 (1 on HPatches: 3); as a side it is N: docs/scfeat.md."""
    border_px: int = Field(default=1, ge=0)
    """No keypoints this near the image's edge, px (authors' code)."""
    min_keypoints: int = Field(default=0, ge=0)
    """The best maxima below the threshold fill up to so many (authors' code: 128; the paper has none)."""
    refine: bool = True
    """Keypoints between the pixels: the mean of 3 x 3 px weighted by their scores (authors' code)."""
    descriptor_map: Literal["fused", "normalised"] = "fused"
    """fused: before the bridge, "w/ pruning" (III-E). normalised: behind it, "w/o pruning" of Table III."""
    normalisation: Literal["l2", "fusion"] = "l2"
    """Eq. 22, or eq. 25 with m = 4 (one more value, so that rows have length 1)."""
    turns: Literal[1, 4] = 1
    """4: each keypoint is described in the image turned by 0, 90, 180 and 270 degrees, side by side in one row, and the
    matcher finds the turn between two images: for photographs that are not all upright, in four times the time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's maps. Half precision is for GPUs, and for CPUs that compute in it."""
    max_pixels: Runtime[int] = Field(default=6_000_000, ge=512 * 512)
    """Of one forward. Larger images are computed in tiles: the same to rounding, several times slower."""
    batch_size: Runtime[int] = Field(default=16, ge=1)
    """Images of one size at a time on a GPU, at most, within max_pixels. Changes results by rounding only."""
    compile: Runtime[bool] = False
    """Let torch.compile make the network's code: minutes once for every image size, worth it on a GPU."""

    @field_validator("nms_window")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value


class Scfeat:
    """Keypoints of the detector, descriptors float16 with unit rows. Scores are the detector's, > threshold."""

    Config: ClassVar[type[Config]] = ScfeatConfig
    colour: ClassVar[bool] = True
    holds_gil = False

    def __init__(self, config: ScfeatConfig, device: str = "auto"):
        self.config, self._device_name = config, device
        self._loading = threading.Lock()
        self._network: FrozenSCFeat | None = None
        self._thread: OneThread | None = None

    @property
    def weights_sha256(self) -> str:
        """Raises UsageError for a weight that is not there."""
        from featkit.weights import find, sha256_of

        return sha256_of(find(self.config.weights))

    def extract(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Features:
        """Features of one RGB image; see `Extractor.extract`.

        An image with a side under 64 px has none (and a warning says so), nor has one of a single colour.
        """
        return self.extract_batch([pixels])[0]

    def extract_batch(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[Features]:
        """Features of several images; those of one size that follow each other go through a GPU together."""
        waiting = {index: self._ready().submit(image) for index, image in enumerate(images) if self._usable(image)}
        return [
            waiting[index].result() if index in waiting else self._none(image) for index, image in enumerate(images)
        ]

    def _usable(self, image: np.ndarray) -> bool:
        height, width = image.shape[:2]
        if min(height, width) < MIN_SIDE_PX:
            LOGGER.warning("an image of %d x %d px is too small for SCFeat (64 px): no features", width, height)
            return False
        return bool((image != image[0, 0]).any())

    def _none(self, image: np.ndarray) -> Features:
        self._ready()
        assert self._network is not None
        dimension = (self._network.dimension + (self.config.normalisation == "fusion")) * self.config.turns
        height, width = image.shape[:2]
        nothing = np.zeros((0, 2), np.float32), np.zeros((0, dimension), np.float16), np.zeros(0, np.float32)
        return Features(*nothing, image_size=(width, height), turns=self.config.turns)

    def _ready(self) -> OneThread:
        """The thread that runs the network; the network is loaded on the first call."""
        from featkit.device import torch_device
        from featkit.features.dense.frozen_scfeat import FrozenSCFeat
        from featkit.features.dense.one_thread import OneThread
        from featkit.weights import load_scfeat_network

        config = self.config
        with self._loading:
            if self._thread is None:
                device = torch_device(self._device_name)
                network = load_scfeat_network(config.weights)
                self._network = FrozenSCFeat(
                    network, device, config.precision, config.descriptor_map, config.max_pixels, config.compile
                )
                at_once = config.batch_size if device.type != "cpu" else 1
                self._thread = OneThread(self._run, at_once, config.max_pixels)
            return self._thread

    def _run(self, images: list[np.ndarray]) -> list[Features]:
        """Images of one size, in the network's thread."""
        from featkit.features.dense.turns import side_by_side, turned

        height, width = images[0].shape[:2]
        maps, scores = self._dense(images)
        found = [self._keypoints(image_scores) for image_scores in scores[:, 0]]
        rows = [[self._rows(values, keypoints.points)] for values, keypoints in zip(maps, found, strict=True)]
        for turn in range(1, self.config.turns):
            maps, _ = self._dense([np.rot90(image, turn) for image in images])
            for values, keypoints, of_image in zip(maps, found, rows, strict=True):
                of_image.append(self._rows(values, turned(keypoints.points, (height, width), turn)))
        return [
            Features(
                keypoints.points.float().cpu().numpy(),
                side_by_side(of_image),
                keypoints.scores.float().cpu().numpy(),
                image_size=(width, height),
                turns=self.config.turns,
            )
            for keypoints, of_image in zip(found, rows, strict=True)
        ]

    def _dense(self, images: list[np.ndarray]) -> DenseFeatures:
        """Descriptor maps of the padded images, scores of the images."""
        import torch

        from featkit.features.dense.frozen_scfeat import DenseFeatures

        assert self._network is not None
        height, width = images[0].shape[:2]
        bottom, right = -height % MULTIPLE_PX, -width % MULTIPLE_PX
        padded = [np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge") for image in images]
        maps, scores = self._network(torch.from_numpy(np.stack(padded)))
        return DenseFeatures(maps, scores[:, :, :height, :width])

    def _keypoints(self, scores: Tensor) -> ScoredPoints:
        from featkit.features.dense.keypoints import find_keypoints

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
        """Descriptors, rows of length 1. maps: of the padded image."""
        import torch

        from featkit.features.dense.normalise import normalised_rows
        from featkit.geometry.sampling import sample_map
        from featkit.models.scfeat.detector import SCALE

        padded_size = (maps.shape[2] * SCALE, maps.shape[1] * SCALE)
        with torch.inference_mode():
            vectors = sample_map(maps[None], points[None], padded_size)[0]
            return normalised_rows(vectors, self.config.normalisation).cpu().numpy()
