"""DoG keypoints by pycolmap, each described by a patch network: HardNet, HyNet, SDGMNet, AdaSample, DOAP.

The square around a keypoint that a network sees has a side of `magnification` times its scale, and is turned by its
orientation. pycolmap cannot detect without describing; its SIFT descriptors are thrown away.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from featkit.config import Config, Runtime
from featkit.features.sift import Sift, SiftConfig
from featkit.types import Features

if TYPE_CHECKING:
    from featkit.features.frozen import FrozenNetwork


class PatchesConfig(Config):
    """Which keypoints, what is cut around them, and which network describes it."""

    weights: str = "sdgmnet"
    """A weight by its name in weights/manifest.json, or the path of a safetensors file."""
    detector: SiftConfig = SiftConfig()
    """The keypoints: COLMAP's options. `detector.upright` leaves the orientation out; `normalization` has no effect."""
    max_keypoints: int | None = None
    """Hard limit and budget, in place of the detector's own; None: the detector's."""
    magnification: float = Field(default=12.0, gt=0)
    """Side of a patch over the keypoint's scale: SIFT's 4 x 4 cells of 3 scales each (Lowe 2004; VLFeat)."""
    cut_px: int = Field(default=64, ge=0)
    """Side of the patches that are cut, then resized to the network's as in training; 0: cut at the network's side."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of the network's maps. Half precision is for GPUs, and for CPUs that compute in it."""
    batch_size: Runtime[int] = Field(default=0, ge=0)
    """Patches at a time; 0: 32 on the CPU, 2048 on a GPU. Changes descriptors by rounding only."""


@dataclass(frozen=True)
class DetectedKeypoints:
    """What is left to describe: the image, and its keypoints (with empty descriptors)."""

    pixels: UInt8[np.ndarray, "h w"]
    keypoints: Features


class Patches:
    """DoG keypoints and patch descriptors (float16 unit rows, or uint8 packed bits). Scores are scales, as for SIFT."""

    Config: ClassVar[type[Config]] = PatchesConfig
    colour: ClassVar[bool] = False
    holds_gil = True

    def __init__(self, config: PatchesConfig, device: str = "auto"):
        self.config, self._device_name = config, device
        limit = {} if config.max_keypoints is None else {"max_keypoints": config.max_keypoints}
        self._detector = Sift(config.detector.model_copy(update=limit))
        self._network: FrozenNetwork | None = None
        self._loading = threading.Lock()

    @property
    def weights_sha256(self) -> str:
        """Raises UsageError for a weight that is not there."""
        from featkit.weights import find, sha256_of

        return sha256_of(find(self.config.weights))

    @property
    def two_steps(self) -> bool:
        """Whether one process should describe what others detect: a GPU is shared badly by many processes."""
        from featkit.device import torch_device

        return torch_device(self._device_name).type != "cpu"

    def extract(self, pixels: UInt8[np.ndarray, "h w"]) -> Features:
        """Features of one grey image; see `Extractor.extract`."""
        return self.finish(self.begin(pixels))

    def begin(self, pixels: UInt8[np.ndarray, "h w"]) -> DetectedKeypoints:
        """Detect only; needs neither the network nor its device."""
        found = self._detector.extract(pixels)
        return DetectedKeypoints(pixels, replace(found, descriptors=np.zeros((len(found), 0), np.float16)))

    def finish(self, begun: DetectedKeypoints) -> Features:
        """Describe detected keypoints."""
        import torch

        from featkit.features.describe import describe_patches
        from featkit.features.patch_cutting import KeypointPatches, PatchPyramid

        network = self._loaded()
        found = begun.keypoints
        assert found.scales is not None
        assert found.oris is not None
        pixels = torch.as_tensor(np.require(begun.pixels, requirements=["C", "W"])).to(network.device)
        centres, scales, oris = (torch.from_numpy(v) for v in (found.keypoints, found.scales, found.oris))
        cut_px = self.config.cut_px or network.input_px
        patches = KeypointPatches(PatchPyramid(pixels), centres, self.config.magnification * scales, oris, cut_px)
        descriptors = describe_patches(network, patches, batch_size=self.config.batch_size)
        if not network.is_binary:
            descriptors = descriptors.astype(np.float16)
        return replace(found, descriptors=descriptors)

    def _loaded(self) -> FrozenNetwork:
        from featkit.device import torch_device
        from featkit.features.frozen import FrozenNetwork
        from featkit.weights import load_patch_network

        with self._loading:
            if self._network is None:
                device = torch_device(self._device_name)
                network, _ = load_patch_network(self.config.weights, device)
                self._network = FrozenNetwork(network, device, self.config.precision)
            return self._network
