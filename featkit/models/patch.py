"""A patch descriptor: an optional Spatial Transformer, L2-Net or HyNet, and a real-valued or binary head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from featkit.core.config import Config, Epsilon, Factor, Later, Number, Share

# ----------------------------------------------------------------------------------------------------------------------
# L2-Net (Tian et al. 2017) as HardNet trains it: seven convolutions without bias, BatchNorm without affine, ReLU.


InputNorm = Literal["standard_deviation", "variance"]
L2NET_CHANNELS = ((1, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
"""Input channels, output channels and stride of the six 3x3 convolutions."""
LAST_PX = 8
"""Side of the maps before the last convolution, which covers them completely."""


class L2Net(nn.Module):
    """Patches of 32x32 px -> vectors that are not yet normalised; 1,334,560 parameters for 128 dimensions.

    Published HardNet checkpoints name their tensors `features.*` too.
    """

    def __init__(self, dimension: int, dropout: float, input_norm: InputNorm, input_eps: float):
        """input_eps: see `standardise`."""
        super().__init__()
        self.input_norm: InputNorm = input_norm
        self.input_eps = input_eps
        layers: list[nn.Module] = []
        for before, after, stride in L2NET_CHANNELS:
            layers += [
                nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(after, affine=False),
                nn.ReLU(inplace=True),
            ]
        layers += [
            nn.Dropout(dropout),
            nn.Conv2d(L2NET_CHANNELS[-1][1], dimension, LAST_PX, bias=False),
            nn.BatchNorm2d(dimension, affine=False),
        ]
        self.features = nn.Sequential(*layers)

    def forward(self, patches: Float[Tensor, "b 1 32 32"]) -> Float[Tensor, "b d"]:
        return self.features(standardise(patches, self.input_norm, self.input_eps)).flatten(1)


def standardise(patches: Float[Tensor, "b 1 s s"], norm: InputNorm, eps: float) -> Float[Tensor, "b 1 s s"]:
    """Patches normalised to mean 0 and standard deviation 1 each; a constant patch becomes 0.

    standard_deviation: divided by (unbiased deviation + eps), mean and deviation held constant in the gradient
    (HardNet's code, eps 1e-7). variance: divided by sqrt(biased variance + eps) (SOSNet's InstanceNorm, eps 1e-5).
    """
    if norm == "variance":
        variance, mean = torch.var_mean(patches, dim=(1, 2, 3), correction=0, keepdim=True)
        return (patches - mean) * torch.rsqrt(variance + eps)
    deviation, mean = torch.std_mean(patches.detach(), dim=(1, 2, 3), keepdim=True)
    return (patches - mean) / (deviation + eps)


# ----------------------------------------------------------------------------------------------------------------------
# The network: an optional Spatial Transformer, a trunk, and a head.


PATCH_PX = 32
DIMENSION = 128


class PatchNetworkConfig(Config):
    """Layers of a patch descriptor and their initialisation."""

    architecture: Literal["l2net", "hynet"] = "hynet"
    """Trunk of the network. l2net: HardNet, AdaSample and DOAP. hynet: HyNet and SDGMNet."""
    dropout: Share = Field(0.3, lt=1)
    """Dropout probability before the last convolution. HardNet's, HyNet's and SDGMNet's code: 0.3; DOAP: 0.1 (0.5 on
    RomePatches)."""
    spatial_transformer: bool = False
    """Align patches of 42x42 px by a Spatial Transformer first (DOAP's "ST" rows, section 4.2)."""
    transformer_rate: Factor = 0.01
    """Learning rate of the layer that predicts the affine map, relative to the others' (DOAP, appendix B)."""
    bits: int = Field(0, ge=0, le=65536, multiple_of=8)
    """Bits of a binary descriptor, tanh values in training (DOAP eq. 8: 256). 0: 128 real values with unit norm."""
    init: Literal["by_architecture", "orthogonal", "uniform", "he"] = "by_architecture"
    """Initialisation of the convolutions. by_architecture: orthogonal for l2net (HardNet's code), uniform for hynet
    (PyTorch's default). he: normal with variance 2 / fan-in, biases 0 (He et al. 2015, eq. 10), as in DOAP (appendix
    D)."""
    init_gain: Factor = 0.6
    """Gain of the orthogonal initialisation (HardNet's code)."""
    input_norm: InputNorm = "standard_deviation"
    """How patches are standardised, l2net only; "variance" is SOSNet's InstanceNorm. HyNet's FRN needs none."""
    input_eps: Epsilon = 1e-7
    """Added to the standard deviation (HardNet's code) or variance (SOSNet: 1e-5) of patches in [0, 1], l2net only."""
    frn_eps: Epsilon = 1e-6
    """Added to the mean square of a map, not learned, hynet only (FRN, section 3.1)."""
    tau_init: Number = -1.0
    """Initial threshold of the TLUs, hynet only (HyNet's code; the FRN paper has 0)."""
    norm_eps: Epsilon = 1e-10
    """Added to the squared norm of the raw vector (HardNet's and HyNet's code)."""
    magnification: Later[Factor] = 12.0
    """Side of the patches it is trained on, divided by the keypoint's scale: SIFT's 4 x 4 cells of 3 scales each (Lowe
    2004; VLFeat). Taken from the training data where it is recorded; extraction cuts patches as large."""


class PatchDescription(NamedTuple):
    """raw: before normalisation. descriptor: unit rows, or tanh(raw) for binary descriptors. At least float32.

    A named tuple, since Lightning Fabric traverses a module's outputs and rejects frozen dataclasses.
    """

    raw: Float[Tensor, "b d"]
    descriptor: Float[Tensor, "b d"]


class PatchNetwork(nn.Module):
    """Grey patches in [0, 1] -> descriptors. `input_px`: side of the patches. `dimension`: values of a descriptor."""

    def __init__(self, config: PatchNetworkConfig, generator: torch.Generator | None = None):
        """generator: for the initial weights (on the CPU); None: torch's global one."""
        super().__init__()
        self.config = config
        self.dimension = config.bits or DIMENSION
        self.input_px = INPUT_PX if config.spatial_transformer else PATCH_PX
        self.transformer = SpatialTransformer() if config.spatial_transformer else None
        self.trunk: L2Net | HyNet
        if config.architecture == "l2net":
            self.trunk = L2Net(self.dimension, config.dropout, config.input_norm, config.input_eps)
        else:
            self.trunk = HyNet(self.dimension, config.dropout, config.frn_eps, config.tau_init)
        initialise_convolutions(self, generator)
        self.to(memory_format=torch.channels_last)  # convolutions on the CPU take 0.6 to 0.8 of the time

    @property
    def is_binary(self) -> bool:
        return self.config.bits > 0

    def forward(self, patches: Float[Tensor, "b 1 s s"]) -> PatchDescription:
        """patches: in [0, 1], s = `input_px`; b may be 0 (in eval mode). Raises ValueError for another shape."""
        if patches.shape[1:] != (1, self.input_px, self.input_px):
            raise ValueError(f"patches of shape {tuple(patches.shape)}: not (b, 1, {self.input_px}, {self.input_px})")
        if len(patches) == 0:
            nothing = patches.new_zeros((0, self.dimension), dtype=torch.float32)
            return PatchDescription(nothing, nothing)
        if self.transformer is not None:
            patches = self.transformer(patches)
        return self.described(self.trunk(patches))

    def described(self, raw: Float[Tensor, "b d"]) -> PatchDescription:
        """Turn the trunk's vectors into descriptors."""
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.is_binary:
            return PatchDescription(raw, torch.tanh(raw))
        norm = torch.sqrt(raw.square().sum(dim=1, keepdim=True) + self.config.norm_eps)
        return PatchDescription(raw, raw / norm)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: the layer that predicts the affine map learns at `transformer_rate` x lr."""
        if self.transformer is None:
            return [{"params": list(self.parameters()), "lr": lr}]
        slow = list(self.transformer.prediction.parameters())
        others = [p for p in self.parameters() if all(p is not s for s in slow)]
        return [{"params": others, "lr": lr}, {"params": slow, "lr": lr * self.config.transformer_rate}]


def initialise_convolutions(network: PatchNetwork, generator: torch.Generator | None) -> None:
    """Initialise all convolutions; normalisation layers keep their defaults."""
    config = network.config
    init = config.init
    if init == "by_architecture":
        init = "orthogonal" if config.architecture == "l2net" else "uniform"
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        bound = layer.weight[0].numel() ** -0.5  # PyTorch's default: U(-bound, bound) for weight and bias
        with torch.no_grad():
            if init == "orthogonal":
                nn.init.orthogonal_(layer.weight, config.init_gain, generator)
            elif init == "he":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            else:
                layer.weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None and init == "he":
                layer.bias.zero_()
            elif layer.bias is not None:
                layer.bias.uniform_(-bound, bound, generator=generator)
    if network.transformer is not None:
        network.transformer.start_as_identity()


# ----------------------------------------------------------------------------------------------------------------------
# The network of HyNet (Tian et al. 2020) and SDGMNet: L2-Net with FRN and TLU (Singh and Krishnan 2020).


class HyNet(nn.Module):
    """Patches of 32x32 px -> vectors that are not yet normalised; 1,336,355 parameters for 128 dimensions."""

    def __init__(self, dimension: int, dropout: float, frn_eps: float, tau_init: float):
        super().__init__()
        self.first = FrnTlu(1, frn_eps, tau_init)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, padding=1) for before, after, stride in L2NET_CHANNELS
        )
        self.activations = nn.ModuleList(FrnTlu(after, frn_eps, tau_init) for _, after, _ in L2NET_CHANNELS)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(L2NET_CHANNELS[-1][1], dimension, LAST_PX, bias=False)
        self.norm = nn.BatchNorm2d(dimension, affine=False)

    def forward(self, patches: Float[Tensor, "b 1 32 32"]) -> Float[Tensor, "b d"]:
        maps = self.first(patches)
        for convolution, activation in zip(self.convolutions, self.activations, strict=True):
            maps = activation(convolution(maps))
        return self.norm(self.last(self.dropout(maps))).flatten(1)


# ----------------------------------------------------------------------------------------------------------------------
# Filter response normalisation with a thresholded linear unit (Singh and Krishnan 2020, section 3), memory-efficient.
#
# Per map of h x w values and per channel:
#
#     s = 1 / sqrt(mean of x^2 over the map + eps),   y = max(scale * s * x + bias, tau)
#
# As a plain PyTorch formula this takes more training time than all convolutions of HyNet: a dozen passes over maps that
# do not fit into the cache, each allocating memory. Here forward and backward process parts of the batch that do fit,
# and save only x, y (which the next convolution keeps anyway) and s.


PART_BYTES = 2**20
"""Size of the maps processed at once on the CPU. Anything from 0.5 to 4 MiB takes the same time."""


class FrnTlu(nn.Module):
    """One scale, bias and threshold per channel, starting at 1, 0 and `tau`."""

    def __init__(self, channels: int, eps: float, tau: float):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.tau = nn.Parameter(torch.full((channels,), tau))

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Computed in float32 even for half precision, since trained scale and bias nearly cancel. Keeps the dtype."""
        by_parts = not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # the compiler fuses the formula
        function = _FrnTlu.apply if by_parts else frn_tlu
        return function(maps, self.scale, self.bias, self.tau, self.eps)


def frn_tlu(
    maps: Float[Tensor, "b c h w"],
    scale: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    tau: Float[Tensor, " c"],
    eps: float,
) -> Float[Tensor, "b c h w"]:
    """The formula above, directly."""
    x = maps.to(_compute_dtype(maps))
    s = torch.rsqrt(x.square().mean(dim=(2, 3), keepdim=True) + eps)
    return torch.maximum(_per_channel(scale) * s * x + _per_channel(bias), _per_channel(tau)).to(maps.dtype)


class _FrnTlu(torch.autograd.Function):
    """`frn_tlu` with the derivatives

    g = dL/dy where y > tau else 0,   dL/dx = scale * s * (g - x * s^2 * mean of g x over the map),
    dL/dscale = sum of g s x,   dL/dbias = sum of g,   dL/dtau = sum of dL/dy where y = tau.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, scale: Tensor, bias: Tensor, tau: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(maps)
        inverse = torch.empty((*maps.shape[:2], 1, 1), dtype=_compute_dtype(maps), device=maps.device)
        size = maps.shape[2] * maps.shape[3]
        for x, y, s in _cache_sized_parts(maps, out, inverse):
            x = x.to(s.dtype)
            mean_square = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True).square_().div_(size)
            torch.rsqrt(mean_square.add_(eps), out=s)
            if y.dtype == s.dtype:
                torch.addcmul(_per_channel(bias), x, _per_channel(scale) * s, out=y)
                torch.maximum(y, _per_channel(tau), out=y)
            else:
                y.copy_(torch.addcmul(_per_channel(bias), x, _per_channel(scale) * s).maximum(_per_channel(tau)))
        ctx.save_for_backward(maps, out, inverse, scale, tau)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        maps, out, inverse, scale, tau = ctx.saved_tensors
        grad_in = torch.empty_like(maps)
        grads = inverse.new_zeros((3, len(scale)))  # of scale, bias and tau
        size = maps.shape[2] * maps.shape[3]
        threshold = _per_channel(tau).to(out.dtype)  # as `out` was rounded
        for x, y, s, gy, gx in _cache_sized_parts(maps, out, inverse, grad_out, grad_in):
            x, gy = x.to(s.dtype), gy.to(s.dtype)
            g = gy * (y > threshold).to(s.dtype)
            along = (g * x).sum(dim=(2, 3), keepdim=True)
            grads[0] += (along * s).sum(dim=(0, 2, 3))
            grads[1] += g.sum(dim=(0, 2, 3))
            grads[2] += (gy - g).sum(dim=(0, 2, 3))  # exactly 0 if nothing is clipped: Adam would amplify any residue
            slope = _per_channel(scale) * s
            gx.copy_(g.mul_(slope).addcmul_(x, slope * s.square() * along, value=-1.0 / size))
        return grad_in, *grads.to(scale.dtype).unbind(), None


def _compute_dtype(maps: Tensor) -> torch.dtype:
    return torch.promote_types(maps.dtype, torch.float32)


def _per_channel(values: Float[Tensor, " c"]) -> Float[Tensor, "c 1 1"]:
    return values[:, None, None]


def _cache_sized_parts(maps: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split all tensors into corresponding parts that fit into the cache; on a GPU one part."""
    count = len(maps)
    if maps.device.type == "cpu" and count > 0:
        count = max(1, PART_BYTES // (maps[0].numel() * maps.element_size()))
    return zip(*(tensor.split(max(1, count)) for tensor in (maps, *others)), strict=True)


# ----------------------------------------------------------------------------------------------------------------------
# DOAP's Spatial Transformer (He et al. 2018, section 4.2 and appendix B): aligns a patch before it is described.
#
# From the paper: 42x42 px input, three convolutions that predict a 6-DOF affine map, 32x32 px sampled by it, identity
# initialisation, learning rate of the prediction layer x 0.01, boundary pixels repeated outside the patch. The sizes of
# the convolutions are not given: they are ours, in the style of L2-Net.


INPUT_PX = 42
OUTPUT_PX = 32
TRANSFORMER_CHANNELS = (16, 32)
STANDARDISE_EPS = 1e-7


class SpatialTransformer(nn.Module):
    """Patches of 42x42 px -> patches of 32x32 px, resampled by a predicted affine map.

    Untrained it is the identity map: the complete patch resized to 32x32 px, bilinear with half-pixel centres, so that
    it covers the same square of the image as without the transformer.
    """

    def __init__(self) -> None:
        super().__init__()
        first, second = TRANSFORMER_CHANNELS
        self.features = nn.Sequential(
            nn.Conv2d(1, first, 5, stride=2, padding=2, bias=False),  # 42 -> 21
            nn.BatchNorm2d(first, affine=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 5, stride=2, padding=2, bias=False),  # 21 -> 11
            nn.BatchNorm2d(second, affine=False),
            nn.ReLU(inplace=True),
        )
        self.prediction = nn.Conv2d(second, 6, 11)

    def start_as_identity(self) -> None:
        """Predict the identity map for every patch."""
        nn.init.zeros_(self.prediction.weight)
        nn.init.zeros_(self.prediction.bias)

    def affine(self, patches: Float[Tensor, "b 1 42 42"]) -> Float[Tensor, "b 2 3"]:
        """Maps from output to input coordinates (x, y, 1), both in [-1, 1] over the complete patch."""
        change = self.prediction(self.features(standardise(patches, "standard_deviation", STANDARDISE_EPS)))
        change = change.to(torch.promote_types(change.dtype, torch.float32))
        return torch.eye(2, 3, dtype=change.dtype, device=change.device) + change.reshape(-1, 2, 3)

    def forward(self, patches: Float[Tensor, "b 1 42 42"]) -> Float[Tensor, "b 1 32 32"]:
        affine = self.affine(patches)
        with torch.autocast(patches.device.type, enabled=False):  # sampling positions need full precision
            grid = F.affine_grid(affine, [len(patches), 1, OUTPUT_PX, OUTPUT_PX], align_corners=False)
            return F.grid_sample(patches.to(grid.dtype), grid, padding_mode="border", align_corners=False)
