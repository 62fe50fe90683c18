"""Networks that others published, as kornia has them: built without its downloads, filled with checked tensors.

`load_network(name)` gives each of the catalogue's (weights/catalogue.yaml) with all its tensors and no other ones.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from featkit.errors import UsageError
from featkit.weights.catalogue import PublishedWeights
from featkit.weights.tensor_files import fill

if TYPE_CHECKING:
    from torch import nn

CONSTANTS = ("dkd.hw_grid",)
"""Buffers of kornia's that a file need not have: they do not depend on training."""
ALIKED_NETWORKS = ("aliked-n16", "aliked-n16rot", "aliked-n32", "aliked-t16")
KORNIA_NAMES = {
    **dict.fromkeys(ALIKED_NETWORKS, "ALIKED"),
    "disk": "DISK",
    "xfeat": "XFeat",
    "dedode-b": "DeDoDe",
    "keynet-hardnet": "KeyNetDetector",
    "doghardnet": "HardNet",
}
"""What kornia calls each."""


def load_network(name: str, weights: PublishedWeights, **options: Any) -> nn.Module:
    """A published network in eval mode, on the CPU. options: see `build`.

    Raises UsageError without kornia, BadInputError for missing, unknown, misshapen or broken tensors.
    """
    import torch

    with torch.random.fork_rng(devices=[]):  # first weights are drawn, then thrown away
        network = build(name, **options)
    inner = network.net if name == "xfeat" else network  # whose tensors the authors' file has
    own = inner.state_dict()
    constants = {key: own[key] for key in CONSTANTS if key in own}
    fill(inner, constants | weights.tensors, weights.path, name)
    return network.eval().requires_grad_(False)


def build(name: str, **options: Any) -> nn.Module:
    """kornia's network, with weights as drawn. options: of kornia's class, where it has any. Raises UsageError."""
    feature = kornia_feature(KORNIA_NAMES[name])
    if name in ALIKED_NETWORKS:
        return feature.ALIKED(name, **options)
    if name == "xfeat":
        return feature.XFeat(**options)
    if name == "dedode-b":
        return _dedode(feature, **options)
    if name == "keynet-hardnet":
        return _keynet_hardnet(feature, **options)
    return feature.HardNet(pretrained=False) if name == "doghardnet" else feature.DISK(**options)


def kornia_feature(*names: str) -> Any:
    """kornia's module of local features. Raises UsageError when it is missing, or too old for one of `names`."""
    try:
        module = importlib.import_module("kornia.feature")
    except ImportError as error:
        raise UsageError(f"published networks run on kornia ({error}); pip install 'featkit[published]'") from None
    if lacking := [name for name in names if not hasattr(module, name)]:
        raise UsageError(
            f"this kornia has no {lacking[0]}; it takes kornia 0.9 and Python 3.11: pip install 'featkit[published]'"
        )
    return module


def _dedode(feature: Any, half: bool = False) -> nn.Module:
    """Without its first weights: kornia draws VGG's classifier too, 124 million values that it throws away."""
    import torch
    from kornia.enhance import Normalize

    precision = torch.float16 if half else torch.float32
    with torch.device("meta"):
        network = feature.DeDoDe("L", "B", precision)
    network.to_empty(device="cpu")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's
    network.normalizer = Normalize(mean, std)
    for module in network.modules():
        if hasattr(module, "amp"):
            module.amp = half
    return network


def _keynet_hardnet(feature: Any, num_features: int = 2048, score_threshold: float = 0.0) -> nn.Module:
    """kornia's KeyNetHardNet, whose constructor downloads."""
    orienter = feature.LAFOrienter(angle_detector=feature.OriNet(pretrained=False))
    detector = feature.KeyNetDetector(False, num_features, ori_module=orienter, score_threshold=score_threshold)
    return feature.LocalFeature(detector, feature.LAFDescriptor(feature.HardNet(pretrained=False)))
