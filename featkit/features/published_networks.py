"""Published networks as implemented in kornia, built without downloads and loaded with checked tensors.

`load_network(name)` loads a network of the catalogue (weights/catalogue.yaml) with exactly its tensors.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch
from torch import Tensor, nn

from featkit.core.errors import UsageError
from featkit.weights.catalogue import PublishedWeights
from featkit.weights.files import fill

CONSTANTS = ("dkd.hw_grid", "confidence_thresholds")
"""Buffers that a weights file may lack, since they do not depend on training."""
ALIKED_NETWORKS = ("aliked-n16", "aliked-n16rot", "aliked-n32", "aliked-t16")
LIGHTGLUE_NETWORKS = {
    "aliked-lightglue": "aliked",
    "disk-lightglue": "disk",
    "xfeat-lighterglue": "xfeat",
    "sift-lightglue": "sift",
    "doghardnet-lightglue": "doghardnet",
}
"""Matchers, with the row of kornia's table (`LightGlue.features`) that has their settings."""
KORNIA_NAMES = {
    **dict.fromkeys(ALIKED_NETWORKS, "ALIKED"),
    **dict.fromkeys(LIGHTGLUE_NETWORKS, "LightGlue"),
    "disk": "DISK",
    "xfeat": "XFeat",
    "dedode-b": "DeDoDe",
    "keynet-hardnet": "KeyNetDetector",
    "doghardnet": "HardNet",
}
"""kornia's class names."""


def load_network(name: str, weights: PublishedWeights, **options: Any) -> nn.Module:
    """A published network in eval mode, on the CPU. options: see `build`.

    Raises UsageError without kornia, BadInputError for missing, unexpected, misshapen or non-finite tensors.
    """

    with torch.random.fork_rng(devices=[]):  # initial weights are random, then replaced
        network = build(name, **options)
    inner = network.net if name == "xfeat" else network  # the module whose tensors are in the authors' file
    own = inner.state_dict()
    constants = {key: own[key] for key in CONSTANTS if key in own}
    tensors = weights.tensors if name not in LIGHTGLUE_NETWORKS else _lightglue_tensors(weights.tensors)
    fill(inner, constants | tensors, weights.path, name)
    return network.eval().requires_grad_(False)


def build(name: str, **options: Any) -> nn.Module:
    """kornia's network with random weights. options: arguments of kornia's class. Raises UsageError."""
    feature = kornia_feature(KORNIA_NAMES[name])
    if name in ALIKED_NETWORKS:
        return feature.ALIKED(name, **options)
    if name == "xfeat":
        return feature.XFeat(**options)
    if name == "dedode-b":
        return _dedode(feature, **options)
    if name == "keynet-hardnet":
        return _keynet_hardnet(feature, **options)
    if name in LIGHTGLUE_NETWORKS:
        return _lightglue(feature, LIGHTGLUE_NETWORKS[name])
    return feature.HardNet(pretrained=False) if name == "doghardnet" else feature.DISK(**options)


def kornia_feature(*names: str) -> Any:
    """kornia's module of local features. Raises UsageError if it is missing or too old for one of `names`."""
    try:
        module = importlib.import_module("kornia.feature")
    except ImportError as error:
        raise UsageError(f"published networks run on kornia ({error}); pip install 'featkit[published]'") from None
    if lacking := [name for name in names if not hasattr(module, name)]:
        raise UsageError(
            f"this kornia has no {lacking[0]}; kornia 0.9 and Python 3.11 are needed: pip install 'featkit[published]'"
        )
    return module


def _dedode(feature: Any, half: bool = False) -> nn.Module:
    """DeDoDe without random initial weights: kornia also draws, and drops, 124 million values of VGG's classifier."""
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
    """kornia's KeyNetHardNet without its constructor, which downloads weights."""
    orienter = feature.LAFOrienter(angle_detector=feature.OriNet(pretrained=False))
    detector = feature.KeyNetDetector(False, num_features, ori_module=orienter, score_threshold=score_threshold)
    return feature.LocalFeature(detector, feature.LAFDescriptor(feature.HardNet(pretrained=False)))


def _lightglue(feature: Any, row: str) -> nn.Module:
    """kornia's LightGlue with the settings of a row of its table. Restores the global kernel setting it changes."""
    settings = {key: value for key, value in feature.LightGlue.features[row].items() if key != "weights"}
    before = torch.backends.cuda.flash_sdp_enabled()
    network = feature.LightGlue(features=None, flash=False, **settings)
    torch.backends.cuda.enable_flash_sdp(before)
    return network


def _lightglue_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors as in kornia. Older files number the blocks of each kind; DISK's has an unused `r` per layer;
    XFeat's contains the extractor too."""
    matcher = {key.removeprefix("matcher."): value for key, value in tensors.items() if key.startswith("matcher.")}
    block = re.compile(r"^(self_attn|cross_attn)\.(\d+)\.")
    renamed = {block.sub(r"transformers.\2.\1.", key): value for key, value in (matcher or tensors).items()}
    return {key: value for key, value in renamed.items() if not re.fullmatch(r"log_assignment\.\d+\.r", key)}
