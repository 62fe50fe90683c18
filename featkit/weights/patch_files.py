"""Patch networks as safetensors files (`tensor_files`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featkit.weights.manifest import WeightInfo, listed
from featkit.weights.tensor_files import (
    BYTES_PER_MB,
    config_of,
    fill,
    find_whole,
    in_8_bits,
    read_tensors,
    write_network,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from featkit.models.patch_network import PatchNetwork, PatchNetworkConfig

__all__ = ["LARGEST_BYTES", "filled", "in_8_bits", "load_patch_network", "read_metadata", "save_patch_network"]

FORMAT = "featkit patch network 1"
MAX_MB = 3.0
"""Of a file, unless another limit is asked for: only the 256-bit network needs 8 bits for it."""
LARGEST_BYTES = int(MAX_MB * BYTES_PER_MB)


def save_patch_network(
    path: Path, network: PatchNetwork, metadata: dict[str, str] | None = None, max_mb: float | None = None
) -> Path:
    """Write a network; the same network and metadata give the same bytes.

    metadata: whatever is worth knowing, beside `format` and `config`. max_mb and errors: see `write_network`.
    """
    own = {"format": FORMAT, "config": network.config.canonical_json()}
    return write_network(path, network, {**(metadata or {}), **own}, MAX_MB, max_mb)


def load_patch_network(
    name_or_path: str | Path, device: str | torch.device = "cpu"
) -> tuple[PatchNetwork, WeightInfo | None]:
    """A network in float32 and eval mode, and its row of the manifest when it is one of featkit's own.

    Raises UsageError for an unknown name, BadInputError for a file that is missing, damaged, of another network, or not
    the one that the manifest means.
    """
    from featkit.models.patch_network import PatchNetworkConfig

    path = find_whole(name_or_path)
    metadata, tensors = read_tensors(path)
    network = filled(config_of(path, metadata, FORMAT, PatchNetworkConfig), tensors, path)
    return network.to(device), listed(str(name_or_path))


def read_metadata(path: Path) -> dict[str, str]:
    """What the network was saved with, and `format` and `config`. Raises BadInputError."""
    return read_tensors(path)[0]


def filled(config: PatchNetworkConfig, tensors: dict[str, Tensor], path: Path) -> PatchNetwork:
    """A network of these tensors, in eval mode. Raises BadInputError for missing, unknown, misshapen or broken ones."""
    import torch

    from featkit.models.patch_network import PatchNetwork

    with torch.device("meta"):  # first weights are not drawn: that would take time, and move torch's generator on
        network = PatchNetwork(config)
    network.to_empty(device="cpu")
    fill(network, tensors, path, f"{config.architecture!r} with {network.dimension} dimensions")
    return network.eval()
