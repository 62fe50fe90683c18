"""Patches -> descriptors: resizing as in training and tests, and the network in batches that fit the cache."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from featkit.data.patch_set import PatchArray
from featkit.device import torch_device
from featkit.features.frozen import FrozenNetwork, Precision
from featkit.features.patch_cutting import KeypointPatches
from featkit.matching.packed_bits import BYTE, pack_bits
from featkit.models.patch_network import PatchNetwork

BATCH_SIZES = {"cpu": 32, "cuda": 2048}  # on the CPU the largest map of a batch (4 MB) stays in the cache

Patches: TypeAlias = PatchArray | KeypointPatches | Tensor


def resize_patches(patches: Shaped[Tensor, "n s s"], out_px: int) -> Float[Tensor, "n out out"]:
    """Patches in [0, 1] at another size, bilinear with half-pixel centres: 64 -> 32 is the mean of 2 x 2 pixels.

    patches: uint8, or floating point in [0, 1].
    """
    values = patches.float() / 255.0 if patches.dtype == torch.uint8 else patches.float()
    if values.shape[-1] == out_px:
        return values
    if values.shape[-1] == 2 * out_px:
        return F.avg_pool2d(values[:, None], 2)[:, 0]  # the same, faster
    return F.interpolate(values[:, None], size=(out_px, out_px), mode="bilinear", align_corners=False)[:, 0]


def describe_patches(
    network: PatchNetwork | FrozenNetwork,
    patches: Patches,
    device: str | torch.device = "auto",
    batch_size: int = 0,
    precision: Precision = "fp32",
) -> Float[np.ndarray, "n d"] | UInt8[np.ndarray, "n d/8"]:
    """Descriptors of patches (n, s, s): uint8 (also mapped from files), or floating point in [0, 1].

    Returns float32 with unit rows, or the packed bits (np.packbits) of a binary descriptor: 1 where raw is above 0.
    network: left as it is; a FrozenNetwork decides device and precision itself. batch_size: 0 for a good one. The
    network always sees whole batches (the last one is filled up with zeros): on the CPU a patch's descriptor is the
    same to the last bit whatever the others are; another batch size changes it by rounding (1e-6), as BLAS does.
    """
    if not isinstance(network, FrozenNetwork):
        device = torch_device(device) if isinstance(device, str) else device
        network = FrozenNetwork(network, device, precision)
    size = batch_size or BATCH_SIZES.get(network.device.type, BATCH_SIZES["cpu"])
    batches = [np.arange(start, min(start + size, len(patches))) for start in range(0, len(patches), size)]
    width, kind = (network.dimension // BYTE, np.uint8) if network.is_binary else (network.dimension, np.float32)
    found = np.empty((len(patches), width), kind)

    def work(index: np.ndarray) -> None:
        found[index] = _describe_batch(network, patches, index, size)

    if network.device.type != "cpu":
        for index in batches:
            work(index)
        return found
    with _one_batch_per_core(len(batches)) as pool:
        list(pool.map(work, batches))
    return found


def _describe_batch(network: FrozenNetwork, patches: Patches, index: np.ndarray, size: int) -> np.ndarray:
    with torch.inference_mode():
        given = torch.as_tensor(patches[index]).to(network.device)
        values = resize_patches(given, network.input_px)
        if len(values) < size:
            values = F.pad(values, (0, 0, 0, 0, 0, size - len(values)))
        described = network(values)[: len(index)]
        if network.is_binary:
            return pack_bits((described > 0).cpu().numpy())
        return described.cpu().numpy()


@contextmanager
def _one_batch_per_core(batches: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that each describe a batch on one core: several cores on one batch would wait for each other."""
    cores = torch.get_num_threads()
    threads = max(1, min(cores, batches))
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, "describe", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)
