"""SCFeat (Sun, Zhu, Ji 2022): backbone, bridge and detector; the paper's network, and a small one for CPUs."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from featkit.config import Config
from featkit.models.scfeat.backbone import F2RBackbone
from featkit.models.scfeat.cross_norm import CrossNorm
from featkit.models.scfeat.detector import Detector
from featkit.models.scfeat.resnet import STEM_CHANNELS, ResNetEncoder

MULTIPLE_PX = 16
"""Height and width of an image are multiples of this."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL: dict[str, Any] = {
    "decoder_channels": (128, 64),
    "side_channels": 64,
    "detector_feature_channels": 32,
    "detector_image_channels": 8,
    "detector_merged_channels": 16,
}
"""What `scfeat-s` has unless told otherwise: 3.8M parameters, and few channels where a map has all pixels."""


class SCFeatNetworkConfig(Config):
    """What decides the layers. `encoder` alone gives the two sizes: with resnet18 the widths default to `SMALL`."""

    encoder: Literal["resnet50", "resnet18"] = "resnet50"
    """resnet50: `scfeat`, the paper (III-A). resnet18: `scfeat-s`."""
    decoder_channels: tuple[int, int] = (512, 256)
    """Of the decoder at 1/8 and at 1/4 of the resolution (authors' code)."""
    side_channels: int = Field(default=128, gt=0)
    """Of each of the three maps that are fused (authors' code)."""
    descriptor_channels: int = Field(default=128, gt=1)
    """Of the fused map: the length of a descriptor (III-A)."""
    norm_groups: int = Field(default=32, gt=0)
    """Of every GroupNorm (authors' code); decoder_channels and side_channels are multiples of it."""
    cross_norm: bool = True
    """The coupling bridge (III-B). False: "w/o cross norm." of Table III."""
    head: Literal["scfeat", "posfeat"] = "scfeat"
    """posfeat: the detector without peakiness, and without PReLU on the image's side (Li et al. 2022)."""
    detector_feature_channels: int = Field(default=192, gt=0)
    """Of the detector's layer 0 on descriptor maps, at 1/4 of the resolution (authors' code)."""
    detector_image_channels: int = Field(default=64, gt=0)
    """Of the detector's layer 0 on the image, at full resolution (authors' code)."""
    detector_merged_channels: int = Field(default=128, gt=0)
    """Of the detector's layer 1, at full resolution (authors' code)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_small(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("encoder") == "resnet18":
            return {**SMALL, **values}
        return values

    @model_validator(mode="after")
    def _check_groups(self) -> SCFeatNetworkConfig:
        for channels in (*self.decoder_channels, self.side_channels):
            if channels <= 0 or channels % self.norm_groups:
                raise ValueError(f"{channels} channels cannot be normalised in {self.norm_groups} groups")
        return self


class DenseMaps(NamedTuple):
    """What an image's pixels are described by.

    descriptors: the fused map before normalisation, which gives the descriptors (III-E). normalised: behind the bridge,
    what the losses and the detector see; its vectors are not unit either. shallow: the encoder's first map.
    """

    descriptors: Float[Tensor, "b d h/4 w/4"]
    normalised: Float[Tensor, "b d h/4 w/4"]
    shallow: Float[Tensor, "b 64 h/4 w/4"]


class SCFeatOutput(NamedTuple):
    """scores: > 0, one per pixel of the image."""

    maps: DenseMaps
    scores: Float[Tensor, "b 1 h w"]


class SCFeatNetwork(nn.Module):
    """RGB images in [0, 1] -> dense descriptors and scores. 22,197,158 + 628,930 parameters by default.

    Its parts are `backbone`, `bridge` and `detector`. The detector never passes a gradient on to the others (III-B).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: SCFeatNetworkConfig, generator: torch.Generator | None = None):
        """generator: draws the first weights (on the CPU); None: torch's own."""
        super().__init__()
        self.config = config
        self.backbone = F2RBackbone(
            config.encoder,
            config.decoder_channels,
            config.side_channels,
            config.descriptor_channels,
            config.norm_groups,
        )
        self.bridge: nn.Module = CrossNorm() if config.cross_norm else nn.Identity()
        self.detector = Detector(
            config.descriptor_channels + STEM_CHANNELS,
            config.detector_feature_channels,
            config.detector_image_channels,
            config.detector_merged_channels,
            config.head,
        )
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1), persistent=False)
        self.fill_constants()
        initialise(self, generator)
        self.to(memory_format=torch.channels_last)

    @property
    def dimension(self) -> int:
        """Length of a descriptor."""
        return self.config.descriptor_channels

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> SCFeatOutput:
        """Both steps. images: as `describe` takes them."""
        maps = self.describe(images)
        return SCFeatOutput(maps, self.detect(images, maps))

    def describe(self, images: Float[Tensor, "b 3 h w"]) -> DenseMaps:
        """images: in [0, 1]. Raises ValueError unless height and width are multiples of 16."""
        check_images(images)
        fused, shallow = self.backbone(self._normalised(images))
        return DenseMaps(fused, self.bridge(fused), shallow)

    def detect(self, images: Float[Tensor, "b 3 h w"], maps: DenseMaps) -> Float[Tensor, "b 1 h w"]:
        """Scores of the images that `maps` were made of."""
        given = torch.cat([maps.normalised, maps.shallow], dim=1).detach()
        return self.detector(self._normalised(images), given)

    def fill_constants(self) -> None:
        """Set what is neither learned nor saved: for a network whose memory came without content (`to_empty`)."""
        for buffer, values in ((self.mean, IMAGENET_MEAN), (self.std, IMAGENET_STD)):
            buffer.copy_(torch.tensor(values, device=buffer.device).view(1, 3, 1, 1))

    def description_parameters(self) -> list[nn.Parameter]:
        """What the first stage of a training learns: backbone and bridge."""
        return [*self.backbone.parameters(), *self.bridge.parameters()]

    def detection_parameters(self) -> list[nn.Parameter]:
        """What the second stage learns."""
        return list(self.detector.parameters())

    def _normalised(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def check_images(images: Float[Tensor, "b 3 h w"]) -> None:
    """Raises ValueError for a shape that the network does not take."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images of shape {tuple(images.shape)}: not (b, 3, h, w)")
    height, width = images.shape[2:]
    if height % MULTIPLE_PX or width % MULTIPLE_PX or not height or not width:
        raise ValueError(f"images of {width} x {height} px: both sides must be multiples of {MULTIPLE_PX}")


def initialise(network: SCFeatNetwork, generator: torch.Generator | None) -> None:
    """Draw the weights of all convolutions: normal by He et al. 2015 in the encoder, PyTorch's own start elsewhere."""
    in_encoder = {id(m) for e in network.modules() if isinstance(e, ResNetEncoder) for m in e.modules()}
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        with torch.no_grad():
            if id(layer) in in_encoder:
                fan_out = layer.weight[:, 0].numel()
                layer.weight.normal_(0, (2 / fan_out) ** 0.5, generator=generator)
                continue
            bound = layer.weight[0].numel() ** -0.5  # U(-bound, bound) for weight and bias
            layer.weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.uniform_(-bound, bound, generator=generator)
