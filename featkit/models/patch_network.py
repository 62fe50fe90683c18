"""A patch descriptor: an optional Spatial Transformer, L2-Net or HyNet, and a real-valued or binary head."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from featkit.config import Config
from featkit.models.hynet import HyNet
from featkit.models.l2net import InputNorm, L2Net
from featkit.models.spatial_transformer import INPUT_PX, SpatialTransformer

PATCH_PX = 32
DIMENSION = 128


class PatchNetworkConfig(Config):
    """What decides the layers of a patch descriptor, and how they start."""

    architecture: Literal["l2net", "hynet"] = "hynet"
    """l2net: HardNet, AdaSample and DOAP. hynet: HyNet and SDGMNet."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Before the last convolution: 0.3 in HardNet's, HyNet's and SDGMNet's code; 0.1 in DOAP (0.5 on RomePatches)."""
    spatial_transformer: bool = False
    """DOAP's "ST" rows: patches of 42x42 px are aligned first (section 4.2)."""
    transformer_rate: float = Field(default=0.01, gt=0)
    """Learning rate of the layer that predicts the affine map, as a share of the others' (DOAP, appendix B)."""
    bits: int = Field(default=0, ge=0, multiple_of=8)
    """0: 128 real values with unit norm. Otherwise that many bits, tanh in training (DOAP eq. 8: 256)."""
    init: Literal["by_architecture", "orthogonal", "uniform", "he"] = "by_architecture"
    """orthogonal: HardNet's code, for l2net. uniform: PyTorch's default for convolutions, for hynet. he: normal with
    variance 2 / inputs of a unit, biases 0 (He et al. 2015, eq. 10), which DOAP takes (appendix D)."""
    init_gain: float = Field(default=0.6, gt=0)
    """Gain of the orthogonal start (HardNet's code)."""
    input_norm: InputNorm = "standard_deviation"
    """l2net only: how a patch is standardised; "variance" is SOSNet's InstanceNorm. HyNet's FRN does this itself."""
    input_eps: float = Field(default=1e-7, gt=0)
    """l2net only: added to the deviation (HardNet's code), or to the variance (SOSNet: 1e-5). Patches in [0, 1]."""
    frn_eps: float = Field(default=1e-6, gt=0)
    """hynet only: added to the mean square of a map, not learned (FRN, section 3.1)."""
    tau_init: float = -1.0
    """hynet only: where the thresholds of the TLUs start (HyNet's code; the FRN paper has 0)."""
    norm_eps: float = Field(default=1e-10, gt=0)
    """Added to the squared norm of the raw vector (HardNet's and HyNet's code)."""


class PatchDescription(NamedTuple):
    """raw: before normalisation. descriptor: unit rows, or tanh(raw) of a binary descriptor. float32 at least.

    A named tuple, not a dataclass: Lightning Fabric walks through what a module returns and refuses frozen ones.
    """

    raw: Float[Tensor, "b d"]
    descriptor: Float[Tensor, "b d"]


class PatchNetwork(nn.Module):
    """Grey patches in [0, 1] -> descriptors. `input_px`: side of the patches. `dimension`: values of a descriptor."""

    def __init__(self, config: PatchNetworkConfig, generator: torch.Generator | None = None):
        """generator: draws the first weights (on the CPU); None: torch's own."""
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
        initialise(self, generator)
        self.to(memory_format=torch.channels_last)  # convolutions on the CPU take 0.6 to 0.8 of the time

    @property
    def is_binary(self) -> bool:
        return self.config.bits > 0

    def forward(self, patches: Float[Tensor, "b 1 s s"]) -> PatchDescription:
        """patches: in [0, 1], s = `input_px`; none is fine (in eval mode). Raises ValueError for another shape."""
        if patches.shape[1:] != (1, self.input_px, self.input_px):
            raise ValueError(f"patches of shape {tuple(patches.shape)}: not (b, 1, {self.input_px}, {self.input_px})")
        if len(patches) == 0:
            nothing = patches.new_zeros((0, self.dimension), dtype=torch.float32)
            return PatchDescription(nothing, nothing)
        if self.transformer is not None:
            patches = self.transformer(patches)
        return self.described(self.trunk(patches))

    def described(self, raw: Float[Tensor, "b d"]) -> PatchDescription:
        """Descriptors of the trunk's vectors."""
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


def initialise(network: PatchNetwork, generator: torch.Generator | None) -> None:
    """Draw the weights of all convolutions; normalisations start as they were built."""
    config = network.config
    init = config.init
    if init == "by_architecture":
        init = "orthogonal" if config.architecture == "l2net" else "uniform"
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        bound = layer.weight[0].numel() ** -0.5  # of PyTorch's own start: U(-bound, bound) for weight and bias
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
