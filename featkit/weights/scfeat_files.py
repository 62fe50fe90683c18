"""SCFeat networks as safetensors files (`tensor_files`): `scfeat-s` in half precision, `scfeat` too large for 10 MB."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featkit.errors import BadInputError
from featkit.weights.tensor_files import config_of, fill, find_whole, read_tensors, write_network

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig

FORMAT = "featkit scfeat network 1"
MAX_MB = 10.0
"""Of a file, unless another limit is asked for. ResNet-50 takes 23 MB even in 8 bits, and 46 MB in half precision."""
SIZES = {"resnet50": "scfeat (resnet50)", "resnet18": "scfeat-s (resnet18)"}


def save_scfeat_network(
    path: Path, network: SCFeatNetwork, metadata: dict[str, str] | None = None, max_mb: float | None = None
) -> Path:
    """Write a network; the same network and metadata give the same bytes.

    metadata: whatever is worth knowing, beside `format` and `config`. max_mb and errors: see `write_network`.
    """
    own = {"format": FORMAT, "config": network.config.canonical_json()}
    return write_network(path, network, {**(metadata or {}), **own}, MAX_MB, max_mb)


def load_scfeat_network(
    name_or_path: str | Path, device: str | torch.device = "cpu", wanted: SCFeatNetworkConfig | None = None
) -> SCFeatNetwork:
    """A network in float32 and eval mode. wanted: the one and only that will do; None: whatever the file holds.

    Raises UsageError for an unknown name, BadInputError for a file that is missing, damaged, of another network or of
    another size, or not the one that the manifest means.
    """
    from featkit.models.scfeat import SCFeatNetworkConfig

    path = find_whole(name_or_path)
    metadata, tensors = read_tensors(path)
    config = config_of(path, metadata, FORMAT, SCFeatNetworkConfig)
    if wanted is not None:
        check_size(config, wanted, path)
    return filled_scfeat(config, tensors, path).to(device)


def check_size(config: SCFeatNetworkConfig, wanted: SCFeatNetworkConfig, path: Path) -> None:
    """Raises BadInputError when `path` holds another network than the one that is wanted."""
    if config.encoder != wanted.encoder:
        raise BadInputError(f"{path}: holds {SIZES[config.encoder]}, but {SIZES[wanted.encoder]} is asked for")
    for name in type(config).model_fields:
        given, asked = getattr(config, name), getattr(wanted, name)
        if given != asked:
            raise BadInputError(f"{path}: holds a network with {name} {given}, but {asked} is asked for")


def filled_scfeat(config: SCFeatNetworkConfig, tensors: dict[str, Tensor], path: Path) -> SCFeatNetwork:
    """A network of these tensors, in eval mode. Raises BadInputError for missing, unknown, misshapen or broken ones."""
    import torch

    from featkit.models.scfeat import SCFeatNetwork

    with torch.device("meta"):  # first weights are not drawn: that would take time, and move torch's generator on
        network = SCFeatNetwork(config)
    network.to_empty(device="cpu")
    network.fill_constants()
    fill(network, tensors, path, SIZES[config.encoder])
    return network.eval()
