"""Patch networks as safetensors files: half precision, and what the network is in the file's metadata.

Tensors of one axis (biases, thresholds, BatchNorm's statistics) stay float32: they are few, and FRN's scale and bias
nearly cancel. The last convolution of a network that would be larger than `LARGEST_BYTES` (256 bits) is kept in 8 bits,
each row with a factor of its own: `NAME` int8 and `NAME.step` float32.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.config import make
from featkit.errors import BadInputError, NotWritableError, UsageError
from featkit.weights.manifest import WeightInfo, find, listed, sha256_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from featkit.models.patch_network import PatchNetwork, PatchNetworkConfig

FORMAT = "featkit patch network 1"
LARGEST_BYTES = 3_000_000
LARGEST_HALF = 65504.0
LARGEST_INT8 = 127
STEP = ".step"
COUNTED = "num_batches_tracked"  # BatchNorm's counter: nothing reads it


def save_patch_network(path: Path, network: PatchNetwork, metadata: dict[str, str] | None = None) -> Path:
    """Write a network; the same network and metadata give the same bytes.

    metadata: whatever is worth knowing, beside `format` and `config`. Raises NotWritableError, and BadInputError for a
    network with values that are no numbers.
    """
    from safetensors.torch import save

    tensors = _small(network, path)
    own = {"format": FORMAT, "config": network.config.canonical_json()}
    content = _with_metadata(save(tensors), {**(metadata or {}), **own})
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise NotWritableError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    return path


def load_patch_network(
    name_or_path: str | Path, device: str | torch.device = "cpu"
) -> tuple[PatchNetwork, WeightInfo | None]:
    """A network in float32 and eval mode, and its row of the manifest when it is one of featkit's own.

    Raises UsageError for an unknown name, BadInputError for a file that is missing, damaged, of another network, or not
    the one that the manifest means.
    """
    path, row = find(name_or_path), listed(str(name_or_path))
    if row is not None and (found := sha256_of(path)) != row.sha256:
        raise BadInputError(f"{path}: its sha256 is {found}, the manifest says {row.sha256}; install featkit again")
    metadata, tensors = _read(path)
    return filled(_config_of(path, metadata), _full(tensors), path).to(device), row


def read_metadata(path: Path) -> dict[str, str]:
    """What `save_patch_network` was told, and `format` and `config`. Raises BadInputError."""
    return _read(path)[0]


def filled(config: PatchNetworkConfig, tensors: dict[str, Tensor], path: Path) -> PatchNetwork:
    """A network of these tensors, in eval mode. Raises BadInputError for missing, unknown, misshapen or broken ones."""
    import torch

    from featkit.models.patch_network import PatchNetwork

    with torch.device("meta"):  # first weights are not drawn: that would take time, and move torch's generator on
        network = PatchNetwork(config)
    network.to_empty(device="cpu")
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in tensors and not name.endswith(COUNTED)]
    unknown = [name for name in tensors if name not in wanted]
    what = f"{path}: not the weights of {network.config.architecture!r} with {network.dimension} dimensions"
    for problem, names in (("it lacks", missing), ("the network has no place for its", unknown)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadInputError(f"{what}: {problem} {names[0]!r}{more}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
            raise BadInputError(f"{what}: {name!r} has the shape {shapes}")
        if not bool(torch.isfinite(tensor).all()):
            raise BadInputError(f"{path}: {name!r} holds values that are no numbers; it is of no use")
    network.load_state_dict({name: tensors.get(name, torch.tensor(0)) for name in wanted})
    return network.eval()


def _small(network: PatchNetwork, path: Path) -> dict[str, Tensor]:
    """The network's tensors as they are written."""
    import torch

    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.endswith(COUNTED)
    }
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BadInputError(f"{path}: not written, {name!r} holds values that are no numbers")
    small = {name: t.half() if t.ndim > 1 and t.abs().amax() < LARGEST_HALF else t.float() for name, t in state.items()}
    if sum(tensor.nbytes for tensor in small.values()) > LARGEST_BYTES:
        largest = max(small, key=lambda name: small[name].nbytes)
        small[largest], small[largest + STEP] = in_8_bits(state[largest])
    return small


def in_8_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and the step of each row (first axis), float32: weight ~ values * step."""
    import torch

    step = weight.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST_INT8
    values = torch.round(weight / step.reshape(-1, *[1] * (weight.ndim - 1)))
    return values.to(torch.int8), step


def _full(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `_small` wrote, in float32."""
    full = {name: tensor.float() for name, tensor in tensors.items()}
    for name in [name for name in full if name.endswith(STEP) and name.removesuffix(STEP) in full]:
        step = full.pop(name)
        weight = full[name.removesuffix(STEP)]
        full[name.removesuffix(STEP)] = weight * step.reshape(-1, *[1] * (weight.ndim - 1))
    return full


def _with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    """A safetensors file with metadata in order: safetensors itself writes it in another order each time.

    The file is the length of a json header (8 bytes, little endian), the header, and the tensors' bytes.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    ordered = {"__metadata__": {key: str(metadata[key]) for key in sorted(metadata)}, **header}
    text = json.dumps(ordered, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[end:]


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        what = str(error).splitlines()[0]
        raise BadInputError(
            f"{path}: not a safetensors file ({what}); a published .pth becomes one with `featkit weights import`"
        ) from None


def _config_of(path: Path, metadata: dict[str, str]) -> PatchNetworkConfig:
    from featkit.models.patch_network import PatchNetworkConfig

    if metadata.get("format") != FORMAT:
        raise BadInputError(f"{path}: not a patch network of this featkit (its metadata has no format {FORMAT!r})")
    try:
        values = json.loads(metadata["config"])
        return make(PatchNetworkConfig, values, f"{path}: its network")
    except UsageError as error:
        raise BadInputError(str(error)) from None
    except (KeyError, ValueError, TypeError):
        raise BadInputError(f"{path}: its metadata does not say which network it is") from None
