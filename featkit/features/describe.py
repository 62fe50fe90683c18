"""Patches -> descriptors: resizing as in training and tests, and the network in batches that fit the cache."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from featkit.device import torch_device

Precision = Literal["fp32", "bf16"]


def resize_patches(patches: Shaped[Tensor, "n s s"], out_px: int) -> Float[Tensor, "n out out"]:
    """Patches in [0, 1] at another size, bilinear with half-pixel centres: 64 -> 32 is the mean of 2 x 2 pixels.

    patches: uint8, or floating point in [0, 1].
    """
    values = patches.float().div_(255.0) if patches.dtype == torch.uint8 else patches.float()
    if values.shape[-1] == out_px:
        return values
    if values.shape[-1] == 2 * out_px:
        return F.avg_pool2d(values[:, None], 2)[:, 0]
    return F.interpolate(values[:, None], size=(out_px, out_px), mode="bilinear", align_corners=False)[:, 0]


def describe_patches(
    network: Any,
    patches: Any,
    device: str | torch.device = "auto",
    batch_size: int = 256,
    precision: Precision = "fp32",
) -> np.ndarray:
    """Descriptors of patches (n, s, s): uint8 (also mapped from files), or a float tensor in [0, 1].

    Returns float32 (n, d) with unit rows, or packed bits uint8 (n, bits / 8) of a binary descriptor (bit i of the
    descriptor is bit 7 - i % 8 of byte i // 8, as np.packbits). network: a PatchNetwork; left in eval mode.
    """
    device = torch_device(device) if isinstance(device, str) else device
    network = network.to(device).eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(patches), batch_size):
            index = np.arange(start, min(start + batch_size, len(patches)))
            part = patches[index[0] : index[-1] + 1] if isinstance(patches, Tensor) else patches[index]
            batch = resize_patches(torch.as_tensor(part).to(device), network.input_px)[:, None]
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                descriptor = network(batch).descriptor.float()
            found.append(pack_bits(descriptor) if network.is_binary else descriptor.cpu().numpy())
    width = network.dimension // 8 if network.is_binary else network.dimension
    kind = np.uint8 if network.is_binary else np.float32
    return np.concatenate(found) if found else np.zeros((0, width), kind)


def pack_bits(relaxed: Float[Tensor, "n bits"]) -> np.ndarray:
    """Bits (value > 0) of a relaxed binary descriptor, 8 to a byte, the first one highest: uint8 (n, bits / 8)."""
    return np.packbits((relaxed > 0).cpu().numpy(), axis=1)
