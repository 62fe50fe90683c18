"""Published features by other authors: kornia's networks with the authors' weights (weights/catalogue.yaml).

Each class consists of a configuration, the call of kornia's network, and the conversion from kornia's pixel convention
to featkit's. kornia keeps only strict maxima of the score map; the best `max_keypoints` of them are kept, as in
benchmarks. One thread runs the network for all callers; on a GPU, waiting images of the same size form one batch.

Papers, licences and training data: weights/catalogue.yaml.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from featkit.core.config import Config, FactorOrZero, KeypointCount, Magnification, Number, Runtime, Share
from featkit.core.errors import BadInputError, UsageError
from featkit.core.runtime import torch_device
from featkit.core.types import Features
from featkit.features.patches import FrozenNetwork, Patches, PatchesConfig
from featkit.features.published_cpu import CpuAliked, CpuDisk, Found, optimise_xfeat
from featkit.features.published_networks import kornia_feature, load_network
from featkit.features.scfeat import NetworkThread
from featkit.weights.catalogue import load_published, weights_sha256
from featkit.weights.exchange import published_patch_network

LOGGER = logging.getLogger(__name__)
MIN_SIDE_PX = 32
"""Largest stride of these networks (ALIKED's and XFeat's)."""
KEYNET_SCALE = 22.0
"""Scale of a Key.Net keypoint in kornia divided by the scale of its pyramid level (`s_mult`)."""
KEYNET_SIGMA = 1 / 12
"""Scale of a Key.Net keypoint divided by kornia's, which is half the side of what HardNet sees. What it sees is then 24
scales wide, as for `doghardnet`, and scales mean what they mean for DoG keypoints."""


class PublishedConfig(Config):
    """Fields shared by all published features."""

    weights: str = ""
    """File with the network's weights, or a name in the catalogue; empty: the authors' weights for this network."""
    max_keypoints: KeypointCount = 4096
    """Maximum keypoints per image, those with the highest scores."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Precision of the network's convolutions; fp16 needs a GPU (kornia samples wrongly in half precision on CPUs)."""
    max_pixels: Runtime[int] = Field(6_000_000, ge=MIN_SIDE_PX**2, le=10**9)
    """Maximum pixels of an image. Larger images are refused, because they would take many GB of memory."""
    batch_size: Runtime[int] = Field(8, ge=1, le=10**6)
    """Maximum images of one size per GPU batch, within max_pixels. Changes results only by rounding."""


class PublishedExtractor(ABC):
    """Base of all published features. Descriptors are float32 with unit rows."""

    Config: ClassVar[type[Config]]
    colour: ClassVar[bool] = True
    holds_gil = False
    dimension: int = 128
    """Dimension of a descriptor."""

    def __init__(self, config: Any, device: str = "auto"):
        self.config, self._device_name = config, device
        self._loading = threading.Lock()
        self._thread: NetworkThread[np.ndarray] | None = None
        self._network: Any = None
        self._cpu_network: Any = None
        """CPU replacement of kornia's network, with the same results."""
        self._sha256 = ""
        self._device: torch.device | None = None

    @property
    @abstractmethod
    def network_name(self) -> str:
        """Name of the network in the catalogue."""

    def _options(self) -> dict[str, Any]:
        """Arguments of kornia's network."""
        return {}

    def _make_cpu_network(self) -> Any:
        """The value of `_cpu_network`; None to run kornia's network."""
        return None

    @abstractmethod
    def _detect(self, images: Float[Tensor, "b c h w"]) -> list[Found]:
        """Features of images in [0, 1], on the network's device."""

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the authors' file. Raises UsageError, and BadInputError for missing weights.

        The network is loaded first, so that weights that do not fit are refused before anything is written.
        """
        self._load()
        return self._sha256

    def extract(self, pixels: UInt8[np.ndarray, "h w *c"]) -> Features:
        """Features of one image; see `Extractor.extract`.

        An image with a side under 32 px (with a warning) or of a single colour has no features. Raises
        BadInputError for an image of more than `max_pixels`.
        """
        return self.extract_batch([pixels])[0]

    def extract_batch(self, images: Sequence[UInt8[np.ndarray, "h w *c"]]) -> list[Features]:
        """Features of several images; consecutive images of the same size are batched on a GPU."""
        thread = self._start_thread()
        waiting = {index: thread.submit(image) for index, image in enumerate(images) if self._is_usable(image)}
        return [
            waiting[index].result() if index in waiting else self._no_features(image)
            for index, image in enumerate(images)
        ]

    def _is_usable(self, image: np.ndarray) -> bool:
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

    def _no_features(self, image: np.ndarray) -> Features:
        height, width = image.shape[:2]
        nothing = np.zeros((0, 2), np.float32), np.zeros((0, self.dimension), np.float32), np.zeros(0, np.float32)
        return self._features(nothing, (width, height))

    def _features(self, arrays: tuple[np.ndarray, np.ndarray, np.ndarray], image_size: tuple[int, int]) -> Features:
        return Features(*arrays, image_size)

    def _load(self) -> None:
        """Build the network on the CPU, once."""

        with self._loading:
            if self._network is None:
                weights = load_published(self.network_name, self.config.weights)
                self._network = load_network(self.network_name, weights, **self._options())
                self._sha256 = weights.sha256

    def _start_thread(self) -> NetworkThread[np.ndarray]:
        """The thread that runs the network on its device."""

        config = self.config
        self._load()
        with self._loading:
            if self._thread is None:
                self._device = torch_device(self._device_name)
                if config.precision == "fp16" and self._device.type == "cpu":
                    raise UsageError(f"{self.network_name}: precision fp16 is for a GPU; use fp32 with --device cpu")
                self._network.to(self._device)
                self._cpu_network = self._make_cpu_network() if self._device.type == "cpu" else None
                at_once = config.batch_size if self._device.type != "cpu" else 1
                self._thread = NetworkThread(self._run_batch, at_once, config.max_pixels)
            return self._thread

    def _run_batch(self, images: list[np.ndarray]) -> list[Features]:
        """Features of images of one size. Runs in the network's thread."""

        assert self._device is not None
        height, width = images[0].shape[:2]
        with torch.inference_mode(), _exact_float32(), self._autocast():
            pixels = torch.from_numpy(np.stack(images)).to(self._device)
            pixels = pixels.permute(0, 3, 1, 2) if self.colour else pixels[:, None]
            found = self._detect(pixels.float().contiguous() / 255)
        return [self._features((_to_numpy(a), _to_numpy(b), _to_numpy(c)), (width, height)) for a, b, c in found]

    def _autocast(self) -> contextlib.AbstractContextManager:
        assert self._device is not None
        return torch.autocast(self._device.type, torch.float16, enabled=self.config.precision == "fp16")


class AlikedConfig(PublishedConfig):
    """ALIKED (Zhao et al. 2023): choice of network and keypoints."""

    network: Literal["aliked-n16", "aliked-n16rot", "aliked-n32", "aliked-t16"] = "aliked-n16"
    """Network: n16, n32: 16 or 32 sampling positions per descriptor; n16rot: for rotated images; t16: smallest."""
    threshold: Share = Field(0.0, lt=1)
    """Minimum score; 0: the best `max_keypoints`, regardless of score. Authors: 0.2, and at most 5,000 keypoints."""
    nms_radius: int = Field(2, ge=1, le=1023)
    """Radius of non-maximum suppression, px (authors' code: 2)."""


class Aliked(PublishedExtractor):
    """Subpixel keypoints by a soft maximum; descriptors from deformable sampling positions."""

    Config: ClassVar[type[Config]] = AlikedConfig

    @property
    def network_name(self) -> str:
        """Name of the network in the catalogue."""
        return str(self.config.network)

    @property
    def dimension(self) -> int:  # type: ignore[override]
        """Dimension of a descriptor."""
        return 64 if self.config.network == "aliked-t16" else 128

    def _options(self) -> dict[str, Any]:
        config = self.config
        return {
            "max_num_keypoints": config.max_keypoints,
            "detection_threshold": config.threshold,
            "nms_radius": config.nms_radius,
        }

    def _make_cpu_network(self) -> CpuAliked:
        return CpuAliked(self._network)

    def _detect(self, images: Tensor) -> list[Found]:
        if self._cpu_network is not None:
            return [self._cpu_network(image[None]) for image in images]
        return [(one.keypoints, one.descriptors, one.keypoint_scores) for one in self._network(images)]


class DiskConfig(PublishedConfig):
    """DISK (Tyszkiewicz et al. 2020), with the weights trained with depth supervision."""

    threshold: Number = 0.0
    """Minimum score (a logit). Authors: none; here the best maxima above 0 are kept, as in kornia and hloc."""
    nms_radius: int = Field(2, ge=1, le=1023)
    """Radius of non-maximum suppression, px (authors: a window of 5 px)."""


class Disk(PublishedExtractor):
    """Keypoints at whole pixels, in row-major order."""

    Config: ClassVar[type[Config]] = DiskConfig
    network_name = "disk"

    def _make_cpu_network(self) -> CpuDisk:
        return CpuDisk(self._network)

    def _detect(self, images: Tensor) -> list[Found]:
        config = self.config
        if self._cpu_network is not None:
            limits = config.max_keypoints, config.nms_radius, config.threshold
            return [self._cpu_network(image[None], *limits) for image in images]
        found = self._network(
            images,
            n=config.max_keypoints,
            window_size=2 * config.nms_radius + 1,
            score_threshold=config.threshold,
            pad_if_not_divisible=True,
        )
        return [(one.keypoints, one.descriptors, one.detection_scores) for one in found]


class XfeatConfig(PublishedConfig):
    """XFeat (Potje et al. 2024). Non-maximum suppression uses a fixed window of 5 x 5 px."""

    threshold: Share = Field(0.05, lt=1)
    """Minimum value in the keypoint map (authors' code: 0.05, and the best 4096)."""


class Xfeat(PublishedExtractor):
    """Keypoints at whole pixels of the network's input, whose sides are multiples of 32 px."""

    Config: ClassVar[type[Config]] = XfeatConfig
    network_name = "xfeat"
    dimension = 64

    def _options(self) -> dict[str, Any]:
        return {"top_k": self.config.max_keypoints, "detection_threshold": self.config.threshold}

    def _make_cpu_network(self) -> None:
        optimise_xfeat(self._network)

    def _detect(self, images: Tensor) -> list[Found]:
        scale = images.new_tensor([max(1.0, side // 32) * 32 / side for side in (images.shape[3], images.shape[2])])
        corner = 0.5 / scale - 0.5  # kornia scales pixel indices, not pixel centres
        found = self._network.detectAndCompute(images)
        return [(one["keypoints"] + corner, one["descriptors"], one["scores"]) for one in found]


class DedodeConfig(PublishedConfig):
    """DeDoDe (Edstedt et al. 2024), detector L of the second version, descriptor B.

    There is no threshold and no non-maximum suppression: the authors take the best pixels of a density-equalised map.
    """


class Dedode(PublishedExtractor):
    """Keypoints at whole pixels, best first."""

    Config: ClassVar[type[Config]] = DedodeConfig
    network_name = "dedode-b"
    dimension = 256

    def _options(self) -> dict[str, Any]:
        return {"half": self.config.precision == "fp16"}

    def _autocast(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()  # kornia's network handles autocast itself

    def _detect(self, images: Tensor) -> list[Found]:
        keypoints, scores, descriptors = self._network(images, n=self.config.max_keypoints)
        return list(zip(keypoints - 0.5, F.normalize(descriptors, dim=2), scores, strict=True))  # kornia: centres at .5


class KeynetHardnetConfig(PublishedConfig):
    """Key.Net (Barroso-Laguna et al. 2019) with OriNet and HardNet, grey images."""

    threshold: FactorOrZero = 0.0
    """Minimum response (authors: none, the best are kept)."""


class KeynetHardnet(PublishedExtractor):
    """Keypoints at whole pixels of a pyramid level, with scales and orientations."""

    Config: ClassVar[type[Config]] = KeynetHardnetConfig
    colour: ClassVar[bool] = False
    network_name = "keynet-hardnet"

    def _options(self) -> dict[str, Any]:
        return {"num_features": self.config.max_keypoints, "score_threshold": self.config.threshold}

    def _detect(self, images: Tensor) -> list[Found]:
        return [self._detect_one(image[None]) for image in images]

    def _detect_one(self, image: Float[Tensor, "1 1 h w"]) -> Found:
        """Keypoints are (n, 4): x, y, scale, orientation."""

        feature = kornia_feature()
        frames, responses, descriptors = self._network(image)
        filled = feature.laf_is_filled(frames)[0]
        frames = frames[:, filled]
        half_sides = feature.get_laf_scale(frames)[0, :, 0, 0]
        oris = -torch.deg2rad(feature.get_laf_orientation(frames)[0, :, 0])  # kornia's are counter-clockwise
        corner = 0.5 * half_sides / KEYNET_SCALE - 0.5  # kornia scales a level's pixel indices, not pixel centres
        scales = KEYNET_SIGMA * half_sides
        keypoints = torch.cat([frames[0, :, :, 2] + corner[:, None], scales[:, None], oris[:, None]], dim=1)
        return keypoints, descriptors[0, filled], responses[0, filled]

    def _features(self, arrays: tuple[np.ndarray, np.ndarray, np.ndarray], image_size: tuple[int, int]) -> Features:
        keypoints, descriptors, scores = arrays
        rows = keypoints if len(keypoints) else np.zeros((0, 4), np.float32)
        scales, oris = rows[:, 2].copy(), rows[:, 3].copy()
        return Features(rows[:, :2].copy(), descriptors, scores, image_size, scales=scales, oris=oris)


class DogHardnetConfig(PatchesConfig):
    """SIFT keypoints described by HardNet with its authors' weights."""

    weights: str = ""
    """File with the network's weights, or a name in the catalogue; empty: the authors' weights."""
    magnification: Magnification = 24.0
    """Side of a patch divided by the keypoint's scale (as in kornia's DoGHardNet and matchers trained with it)."""


class DogHardnet(Patches):
    """`patches` with the authors' HardNet weights."""

    Config: ClassVar[type[Config]] = DogHardnetConfig
    network_name = "doghardnet"

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the authors' file. Raises UsageError, and BadInputError for missing weights."""

        return weights_sha256(self.network_name, self.config.weights)

    def _load_network(self) -> FrozenNetwork:
        with self._loading:
            if self._network is None:
                device = torch_device(self._device_name)
                weights = load_published(self.network_name, self.config.weights)
                network = published_patch_network("hardnet", weights.tensors, weights.path).to(device)
                self._network = FrozenNetwork(network, device, self.config.precision)
            return self._network


@contextlib.contextmanager
def _exact_float32() -> Iterator[None]:
    """Convolutions in full float32; cuDNN would use TF32 (10-bit mantissa) otherwise."""

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
