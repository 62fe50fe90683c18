"""Features that other authors published: kornia's networks with the authors' weights (weights/catalogue.yaml).

Each class is a configuration, the call of kornia's network, and the way from kornia's pixel frame to featkit's. kornia
keeps strict maxima of the score map alone; of these the best `max_keypoints` are kept, as benchmarks of features do.
One thread runs the network, whoever asks; on a GPU images of one size that wait together are one batch.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from jaxtyping import Float, UInt8
from pydantic import Field

from featkit.config import Config, Runtime
from featkit.errors import BadInputError, UsageError
from featkit.types import Features

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from featkit.features.dense.one_thread import OneThread

LOGGER = logging.getLogger(__name__)
MIN_SIDE_PX = 32
"""The largest stride of these networks (ALIKED's and XFeat's)."""


class PublishedConfig(Config):
    """What all published features have in common."""

    weights: str = ""
    """A file with the network's weights, or a name in the catalogue; empty: the authors' for this network."""
    max_keypoints: int = Field(default=4096, ge=1)
    """The best ones are kept."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Of the network's convolutions; fp16 is for GPUs (on a CPU kornia samples wrongly in half precision)."""
    max_pixels: Runtime[int] = Field(default=6_000_000, ge=MIN_SIDE_PX**2)
    """Of one image; a larger one is refused, because it would take many GB of memory: resize it."""
    batch_size: Runtime[int] = Field(default=8, ge=1)
    """Images of one size at a time on a GPU, at most, within max_pixels. Changes results by rounding only."""


class PublishedExtractor(ABC):
    """What all published features have in common. Descriptors are float32 with unit rows."""

    Config: ClassVar[type[Config]]
    colour: ClassVar[bool] = True
    holds_gil = False
    dimension: int
    """Values of a descriptor."""

    def __init__(self, config: PublishedConfig, device: str = "auto"):
        self.config, self._device_name = config, device
        self._loading = threading.Lock()
        self._thread: OneThread | None = None
        self._network: nn.Module | None = None
        self._device: torch.device | None = None

    @property
    @abstractmethod
    def network_name(self) -> str:
        """Its row in the catalogue."""

    @abstractmethod
    def _build(self) -> nn.Module:
        """kornia's network, without weights."""

    @abstractmethod
    def _detect(self, images: Float[Tensor, "b 3 h w"]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each image: keypoints (n, 2) with pixel centres at whole numbers, descriptors (n, d), scores (n,)."""

    @property
    def weights_sha256(self) -> str:
        """Of the authors' file, however it got here. Raises UsageError, and BadInputError for weights not there."""
        from featkit.weights.catalogue import weights_sha256

        return weights_sha256(self.network_name, self.config.weights)

    def extract(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Features:
        """Features of one RGB image; see `Extractor.extract`.

        An image with a side under 32 px has none (and a warning says so), nor has one of a single colour. Raises
        BadInputError for an image of more than `max_pixels`.
        """
        return self.extract_batch([pixels])[0]

    def extract_batch(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[Features]:
        """Features of several images; those of one size that follow each other go through a GPU together."""
        thread = self._ready()
        waiting = {index: thread.submit(image) for index, image in enumerate(images) if self._usable(image)}
        return [
            waiting[index].result() if index in waiting else self._none(image) for index, image in enumerate(images)
        ]

    def _usable(self, image: np.ndarray) -> bool:
        height, width = image.shape[:2]
        if min(height, width) < MIN_SIDE_PX:
            LOGGER.warning(
                "an image of %d x %d px is too small for %s (%d px): no features",
                *(width, height, self.network_name, MIN_SIDE_PX),
            )
            return False
        if height * width > self.config.max_pixels:
            raise BadInputError(
                f"an image of {width} x {height} px is too large for {self.network_name} ({self.config.max_pixels:,}"
                " pixels): --resize-max 1600, or --set max_pixels=N with the memory for it"
            )
        return bool((image != image[0, 0]).any())

    def _none(self, image: np.ndarray) -> Features:
        height, width = image.shape[:2]
        nothing = np.zeros((0, 2), np.float32), np.zeros((0, self.dimension), np.float32), np.zeros(0, np.float32)
        return Features(*nothing, image_size=(width, height))

    def _ready(self) -> OneThread:
        """The thread that runs the network; the network is loaded on the first call."""
        from featkit.device import torch_device
        from featkit.features.dense.one_thread import OneThread
        from featkit.models.published import filled_network
        from featkit.weights.catalogue import load_published

        config = self.config
        with self._loading:
            if self._thread is None:
                self._device = torch_device(self._device_name)
                if config.precision == "fp16" and self._device.type == "cpu":
                    raise UsageError(f"{self.network_name}: precision fp16 is for a GPU; use fp32 with --device cpu")
                weights = load_published(self.network_name, config.weights)
                self._network = filled_network(self._build, weights, self.network_name).to(self._device)
                at_once = config.batch_size if self._device.type != "cpu" else 1
                self._thread = OneThread(self._run, at_once, config.max_pixels)
            return self._thread

    def _run(self, images: list[np.ndarray]) -> list[Features]:
        """Images of one size, in the network's thread."""
        import torch

        assert self._device is not None
        height, width = images[0].shape[:2]
        with torch.inference_mode(), _exact_float32(), self._autocast():
            pixels = torch.from_numpy(np.stack(images)).to(self._device).permute(0, 3, 1, 2)
            found = self._detect(pixels.float() / 255)
        return [
            Features(_array(keypoints), _array(descriptors), _array(scores), (width, height))
            for keypoints, descriptors, scores in found
        ]

    def _autocast(self) -> contextlib.AbstractContextManager:
        import torch

        assert self._device is not None
        return torch.autocast(self._device.type, torch.float16, enabled=self.config.precision == "fp16")


class AlikedConfig(PublishedConfig):
    """ALIKED (Zhao et al. 2023): which of its networks, and which keypoints."""

    network: Literal["aliked-n16", "aliked-n16rot", "aliked-n32", "aliked-t16"] = "aliked-n16"
    """n16, n32: 16 or 32 sampling positions a descriptor; n16rot: for images that are turned; t16: the smallest."""
    threshold: float = Field(default=0.0, ge=0, lt=1)
    """Least score; 0: the best `max_keypoints`, whatever their score. The authors: 0.2, and 5,000 keypoints at most."""
    nms_radius: int = Field(default=2, ge=1)
    """A keypoint is the largest score of so many pixels around it (authors' code: 2)."""


class Aliked(PublishedExtractor):
    """Keypoints between the pixels by a soft maximum; descriptors from deformable sampling positions."""

    Config: ClassVar[type[Config]] = AlikedConfig
    config: AlikedConfig

    @property
    def network_name(self) -> str:
        """Its row in the catalogue."""
        return self.config.network

    @property
    def dimension(self) -> int:  # type: ignore[override]
        """Values of a descriptor."""
        return 64 if self.config.network == "aliked-t16" else 128

    def _build(self) -> nn.Module:
        from featkit.models.published import kornia_feature

        config = self.config
        return kornia_feature("ALIKED").ALIKED(
            config.network, config.max_keypoints, config.threshold, nms_radius=config.nms_radius
        )

    def _detect(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        assert self._network is not None
        return [(one.keypoints, one.descriptors, one.keypoint_scores) for one in self._network(images)]


@contextlib.contextmanager
def _exact_float32() -> Iterator[None]:
    """Convolutions in float32 as such: cuDNN takes TF32 (10 bits) otherwise."""
    import torch

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
