"""SCFeat (Sun, Zhu, Ji 2022): backbone, bridge and detector; the paper's network and a small one for CPUs."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from featkit.core.config import Config, Count
from featkit.models.resnet import WIDTH, Depth, ResNetEncoder

MULTIPLE_PX = 16
"""Height and width of an image must be multiples of this."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL: dict[str, Any] = {
    "decoder_channels": (128, 64),
    "side_channels": 64,
    "detector_feature_channels": 32,
    "detector_image_channels": 8,
    "detector_merged_channels": 16,
}
"""Default widths of `scfeat-s`: 3.8M parameters, and few channels in full-resolution maps."""


class SCFeatNetworkConfig(Config):
    """Layers of the network. `encoder` selects one of two sizes: with resnet18 the widths default to `SMALL`."""

    encoder: Literal["resnet50", "resnet18"] = "resnet50"
    """Encoder of the backbone: resnet50 for `scfeat`, as in the paper (III-A); resnet18 for `scfeat-s`."""
    encoder_width: int = Field(WIDTH, ge=1, le=4096)
    """Channels of the encoder's first map, to which all its layers scale. ImageNet weights fit only 64."""
    decoder_channels: tuple[Count, Count] = (512, 256)
    """Channels of the decoder at 1/8 and 1/4 of the resolution (authors' code)."""
    side_channels: int = Field(128, ge=1, le=4096)
    """Channels of each of the three fused maps (authors' code)."""
    descriptor_channels: int = Field(128, gt=1, le=4096)
    """Channels of the fused map, which is the descriptor length (III-A)."""
    norm_groups: int = Field(32, ge=1, le=4096)
    """Groups of every GroupNorm (authors' code); decoder_channels and side_channels must be multiples of it."""
    cross_norm: bool = True
    """Whether the network has the coupling bridge (III-B). False: "w/o cross norm." of Table III."""
    head: Literal["scfeat", "posfeat"] = "scfeat"
    """Detector head. posfeat: without peakiness, and without PReLU on the image branch (Li et al. 2022)."""
    detector_feature_channels: int = Field(192, ge=1, le=4096)
    """Channels of the detector's layer 0 on descriptor maps, at 1/4 of the resolution (authors' code)."""
    detector_image_channels: int = Field(64, ge=1, le=4096)
    """Channels of the detector's layer 0 on the image, at full resolution (authors' code)."""
    detector_merged_channels: int = Field(128, ge=1, le=4096)
    """Channels of the detector's layer 1, at full resolution (authors' code)."""

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
    """Dense maps of an image.

    descriptors: the fused map before normalisation, which gives the descriptors (III-E). normalised: after the bridge,
    used by the losses and the detector; its vectors are not unit either. shallow: the encoder's first map.
    """

    descriptors: Float[Tensor, "b d h/4 w/4"]
    normalised: Float[Tensor, "b d h/4 w/4"]
    shallow: Float[Tensor, "b s h/4 w/4"]


class SCFeatOutput(NamedTuple):
    """Maps and scores; scores are > 0, one per pixel of the image."""

    maps: DenseMaps
    scores: Float[Tensor, "b 1 h w"]


class SCFeatNetwork(nn.Module):
    """RGB images in [0, 1] -> dense descriptors and scores. 22,197,158 + 628,930 parameters by default.

    Its parts are `backbone`, `bridge` and `detector`. The detector passes no gradient to the others (III-B).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: SCFeatNetworkConfig, generator: torch.Generator | None = None):
        """generator: for the initial weights (on the CPU); None: torch's global one."""
        super().__init__()
        self.config = config
        self.backbone = F2RBackbone(
            config.encoder,
            config.encoder_width,
            config.decoder_channels,
            config.side_channels,
            config.descriptor_channels,
            config.norm_groups,
        )
        self.bridge: nn.Module = CrossNorm() if config.cross_norm else nn.Identity()
        self.detector = Detector(
            config.descriptor_channels + config.encoder_width,
            config.detector_feature_channels,
            config.detector_image_channels,
            config.detector_merged_channels,
            config.head,
        )
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1), persistent=False)
        self.fill_constants()
        initialise_scfeat(self, generator)
        self.to(memory_format=torch.channels_last)

    @property
    def dimension(self) -> int:
        """Length of a descriptor."""
        return self.config.descriptor_channels

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> SCFeatOutput:
        """Maps and scores. images: as for `describe`."""
        maps = self.describe(images)
        return SCFeatOutput(maps, self.detect(images, maps))

    def describe(self, images: Float[Tensor, "b 3 h w"]) -> DenseMaps:
        """Dense maps of images in [0, 1]. Raises ValueError unless height and width are multiples of 16."""
        check_images(images)
        fused, shallow = self.backbone(self._normalised(images))
        return DenseMaps(fused, self.bridge(fused), shallow)

    def detect(self, images: Float[Tensor, "b 3 h w"], maps: DenseMaps) -> Float[Tensor, "b 1 h w"]:
        """Scores of the images from which `maps` were computed."""
        given = torch.cat([maps.normalised, maps.shallow], dim=1).detach()
        return self.detector(self._normalised(images), given)

    def fill_constants(self) -> None:
        """Set the buffers that are neither learned nor saved, for a network created by `to_empty`."""
        for buffer, values in ((self.mean, IMAGENET_MEAN), (self.std, IMAGENET_STD)):
            buffer.copy_(torch.tensor(values, device=buffer.device).view(1, 3, 1, 1))

    def description_parameters(self) -> list[nn.Parameter]:
        """Parameters trained in the description stage: backbone and bridge."""
        return [*self.backbone.parameters(), *self.bridge.parameters()]

    def detection_parameters(self) -> list[nn.Parameter]:
        """Parameters trained in the detection stage."""
        return list(self.detector.parameters())

    def _normalised(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def check_images(images: Float[Tensor, "b 3 h w"]) -> None:
    """Raises ValueError for a shape that the network does not accept."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images of shape {tuple(images.shape)}: not (b, 3, h, w)")
    height, width = images.shape[2:]
    if height % MULTIPLE_PX or width % MULTIPLE_PX or not height or not width:
        raise ValueError(f"images of {width} x {height} px: both sides must be multiples of {MULTIPLE_PX}")


def initialise_scfeat(network: SCFeatNetwork, generator: torch.Generator | None) -> None:
    """Initialise all convolutions: normal as in He et al. 2015 in the encoder, PyTorch's default elsewhere."""
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


# ----------------------------------------------------------------------------------------------------------------------
# F2R-Backbone (SCFeat III-A, eq. 1): a ResNet encoder, a decoder of two stages, and a fusion of three of their maps.
#
#     D_desc = conv1x1(concat[side0(decoder at h/4), side1(decoder at h/8), side2(encoder at h/16)])     (b 128 h/4 w/4)
#
# A block is a convolution with bias, GroupNorm and ELU. Details not in the paper follow the authors' code: the decoder
# upsamples with align_corners=True, the sides with False.


GROUP_NORM_EPS = 1e-5


class BackboneMaps(NamedTuple):
    """descriptors: D_desc, before any normalisation. shallow: the encoder's first map, "F_0" of the paper."""

    descriptors: Float[Tensor, "b d h/4 w/4"]
    shallow: Float[Tensor, "b s h/4 w/4"]


class Block(nn.Module):
    """Convolution (k x k, same size), GroupNorm, ELU."""

    def __init__(self, before: int, after: int, kernel_px: int, groups: int):
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel_px, padding=kernel_px // 2)
        self.norm = nn.GroupNorm(groups, after, GROUP_NORM_EPS)

    def forward(self, maps: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        return F.elu(self.norm(self.conv(maps)))


class F2RBackbone(nn.Module):
    """Normalised images -> BackboneMaps. decoder: channels at h/8 and h/4. sides: channels of each fused map."""

    def __init__(self, depth: Depth, width: int, decoder: tuple[int, int], sides: int, dimension: int, groups: int):
        super().__init__()
        self.encoder = ResNetEncoder(depth, width)
        layer1, layer2, layer3 = self.encoder.channels
        eighth, quarter = decoder
        self.up3 = Block(layer3, eighth, 3, groups)
        self.join3 = Block(layer2 + eighth, eighth, 3, groups)
        self.up2 = Block(eighth, quarter, 3, groups)
        self.join2 = Block(layer1 + quarter, quarter, 3, groups)
        self.side0 = Block(quarter, sides, 1, groups)
        self.side1 = Block(eighth, sides, 3, groups)
        self.side2 = Block(layer3, sides, 3, groups)
        self.fuse = nn.Conv2d(3 * sides, dimension, 1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> BackboneMaps:
        """images: h and w multiples of 16."""
        encoded = self.encoder(images)
        eighth = self.up3(upsample_twice(encoded.layer3))
        eighth = self.join3(torch.cat([encoded.layer2, eighth], dim=1))
        quarter = self.up2(upsample_twice(eighth))
        quarter = self.join2(torch.cat([encoded.layer1, quarter], dim=1))
        sides = [
            self.side0(quarter),
            self.side1(upsample(eighth, 2)),
            self.side2(upsample(encoded.layer3, 4)),
        ]
        return BackboneMaps(self.fuse(torch.cat(sides, dim=1)), encoded.shallow)


def upsample_twice(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Bilinear upsampling with align_corners=True (authors' code)."""
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)


def upsample(maps: Float[Tensor, "b c h w"], factor: int) -> Float[Tensor, "b c factor*h factor*w"]:
    """Bilinear upsampling with align_corners=False."""
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)


# ----------------------------------------------------------------------------------------------------------------------
# The shared coupling bridge: cross normalisation of a descriptor map (SCFeat III-B, eq. 2 and 3; Fig. 5).
#
#     D^ = w_s * (gamma * (D - mu_s) / sqrt(sigma_s^2 + eps) + beta) + w_c * (D - mu_c) / sqrt(sigma_c^2 + eps)
#
# D: (b c h w). mu_s, sigma_s: of a pixel's channels. mu_c, sigma_c: of a channel's pixels. gamma and beta are one value
# per pixel, each a 7x7 convolution of the map of mu_s. The paper leaves gamma, beta and w open; from the authors' code:
# unbiased sigma_s, biased sigma_c, no affine map on the channel side, (w_s, w_c) = (a, b) / (a + b) with learned a and
# b, initially 0.7 and 0.3. 102 parameters.


CROSS_NORM_KERNEL_PX = 7
START = (0.7, 0.3)
"""Initial weights of the position and the channel branch (authors' code)."""
EPS = 1e-5


class CrossNorm(nn.Module):
    """Eq. 3: descriptor map before the bridge -> map after it, with the same shape; vectors are not of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(1, 1, CROSS_NORM_KERNEL_PX, padding=CROSS_NORM_KERNEL_PX // 2)
        self.shift = nn.Conv2d(1, 1, CROSS_NORM_KERNEL_PX, padding=CROSS_NORM_KERNEL_PX // 2)
        self.position_weight = nn.Parameter(torch.tensor(START[0]))
        self.channel_weight = nn.Parameter(torch.tensor(START[1]))

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        variance, mean = torch.var_mean(maps, dim=(2, 3), correction=0, keepdim=True)
        return self.mixed(maps, mean, variance)

    def mixed(
        self, maps: Float[Tensor, "b c h w"], mean: Float[Tensor, "b c 1 1"], variance: Float[Tensor, "b c 1 1"]
    ) -> Float[Tensor, "b c h w"]:
        """The same with given mean and variance of each channel over the complete image."""
        position_share, channel_share = self.shares()
        channel = (maps - mean) * torch.rsqrt(variance + EPS)
        return position_share * self.position_branch(maps) + channel_share * channel

    def position_branch(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        variance, mean = torch.var_mean(maps, dim=1, correction=1, keepdim=True)
        return (maps - mean) * (torch.rsqrt(variance + EPS) * self.scale(mean)) + self.shift(mean)

    def shares(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """w_s and w_c, with sum 1."""
        total = self.position_weight + self.channel_weight
        return self.position_weight / total, self.channel_weight / total


# ----------------------------------------------------------------------------------------------------------------------
# The detection network (SCFeat III-C, eq. 7 to 13): a score for every pixel of the image.
#
#     S_l = peak(F_cn + F_0)    S_r = peak(I)                                     eq. 7, 8: (b 1 h/4 w/4), (b 1 h w)
#     H_l = prelu(IN(conv3x3(S_l * (F_cn + F_0))))    H_r = prelu(IN(conv3x3(S_r * I)))                    eq. 9, 10
#     H1 = prelu(IN(conv3x3(up(H_l) + H_r)))    H2 = softplus(IN(conv1x1(H1)))                            eq. 11, 12
#     S = up(S_l) * S_r * H2                                                                  eq. 13: (b 1 h w), > 0
#
# "+" on maps is concatenation. F_cn: the map behind the bridge, 128 channels at h/4. F_0: the encoder's first map, 64
# channels at h/4. I: the normalised image. IN: instance norm, neither affine nor with running statistics. All PReLUs
# share one slope (authors' code). Head "posfeat" (Li et al. 2022): S_l = S_r = 1, and no PReLU on H_r.


Head = Literal["scfeat", "posfeat"]
INSTANCE_NORM_EPS = 1e-5
SCALE = 4
"""Pixels of the image per pixel of the descriptor map."""


class Detector(nn.Module):
    """Descriptor maps and image -> scores; 628,930 parameters in the paper's widths.

    before: channels of F_cn and F_0 together. feature, image, merged: channels of H_l, H_r and H1.
    """

    def __init__(self, before: int, feature: int, image: int, merged: int, head: Head):
        super().__init__()
        self.head: Head = head
        self.feature = nn.Conv2d(before, feature, 3, padding=1)
        self.image = nn.Conv2d(3, image, 3, padding=1)
        self.merge = nn.Conv2d(feature + image, merged, 3, padding=1)
        self.last = nn.Conv2d(merged, 1, 1)
        self.activation = nn.PReLU()

    def forward(self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b c h/4 w/4"]) -> Float[Tensor, "b 1 h w"]:
        """images: normalised. maps: F_cn and F_0."""
        if self.head == "posfeat":
            feature = self.activation(instance_norm(self.feature(maps)))
            image = instance_norm(self.image(images))
            return self._merged(feature, image)
        feature_peaks, image_peaks = peakiness(maps), peakiness(images)
        feature = self.activation(instance_norm(self.feature(feature_peaks * maps)))
        image = self.activation(instance_norm(self.image(image_peaks * images)))
        return upsample(feature_peaks, SCALE) * image_peaks * self._merged(feature, image)

    def _merged(
        self, feature: Float[Tensor, "b f h/4 w/4"], image: Float[Tensor, "b i h w"]
    ) -> Float[Tensor, "b 1 h w"]:
        both = torch.cat([upsample(feature, SCALE), image], dim=1)
        merged = self.activation(instance_norm(self.merge(both)))
        return F.softplus(instance_norm(self.last(merged)))


def instance_norm(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Every channel of every image with mean 0 and (biased) variance 1."""
    return F.instance_norm(maps, eps=INSTANCE_NORM_EPS)


# ----------------------------------------------------------------------------------------------------------------------
# Peakiness: how much a pixel exceeds its neighbours, and a channel the others (SCFeat III-C (2), eq. 4 to 6).
#
#     eta  = softplus(y - mean of y over the channels)          one per channel and pixel
#     zeta = softplus(y - mean of y over the 3x3 neighbours)    one per channel and pixel, the border mirrored
#     S    = max over the channels of zeta * eta                (b 1 h w)
#
# y: a map (b c h w) divided by its maximum over all channels and pixels of the image. This scaling is not in the paper
# but in the authors' code, which assumes a positive maximum; a dark image may have none, hence the lower bound `floor`.


PEAKINESS_KERNEL_PX = 3
FLOOR = 0.1
"""Lower bound of the divisor: about the maximum of an ImageNet-normalised image with no value above 0.5."""


def peakiness(maps: Float[Tensor, "b c h w"], floor: float = FLOOR) -> Float[Tensor, "b 1 h w"]:
    """Eq. 6 of maps scaled by their own maximum."""
    return peakiness_of_scaled(maps / largest_value(maps, floor))


def largest_value(maps: Float[Tensor, "b c h w"], floor: float = FLOOR) -> Float[Tensor, "b 1 1 1"]:
    """Largest value of each map, with a lower bound: the divisor of `peakiness`."""
    return maps.amax(dim=(1, 2, 3), keepdim=True).clamp_min(floor)


def peakiness_of_scaled(y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Eq. 4 to 6."""
    eta = F.softplus(y - y.mean(dim=1, keepdim=True))
    zeta = F.softplus(y - neighbour_mean(y))
    return (zeta * eta).amax(dim=1, keepdim=True)


def neighbour_mean(y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Mean over 3x3 pixels, the border mirrored (without repeating the outermost pixel)."""
    margin = PEAKINESS_KERNEL_PX // 2
    return F.avg_pool2d(F.pad(y, (margin,) * 4, mode="reflect"), PEAKINESS_KERNEL_PX, stride=1)
