"""Checkpoints that others published, and those of featkit's own trainings, as patch networks.

Read with `torch.load(weights_only=True)`: a file that would run code is refused.

HardNet (Mishchuk et al. 2017): {"state_dict": {"features.0.weight", ...}}. SOSNet (Tian et al. 2019): `layers.*`, the
same layers behind an InstanceNorm. HyNet (Tian et al. 2020): `layer1` to `layer7`, an FRN in front of the first.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.config import make
from featkit.errors import BadInputError, UsageError
from featkit.weights.patch_files import filled
from featkit.weights.scfeat_files import filled_scfeat

if TYPE_CHECKING:
    from torch import Tensor

    from featkit.models.patch_network import PatchNetwork
    from featkit.models.scfeat import SCFeatNetwork

NETWORKS: dict[str, dict[str, Any]] = {
    "hardnet": {"architecture": "l2net"},
    "sosnet": {"architecture": "l2net", "dropout": 0.1, "input_norm": "variance", "input_eps": 1e-5},
    "hynet": {"architecture": "hynet"},
}
"""Published networks in terms of PatchNetworkConfig. The SOSNet value is InstanceNorm's, for patches in [0, 1]."""
FIRST_KEYS = {"hardnet": "features.0.weight", "sosnet": "layers.1.weight", "hynet": "layer1.2.weight"}
INNER = ("state_dict", "model_state_dict", "model", "extractor")  # what authors call the tensors within a file
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
FRN_NAMES = {"weight": "scale", "bias": "bias", "tau": "tau"}


def import_checkpoint(path: Path, architecture: str | None = None) -> PatchNetwork:
    """A published HardNet, SOSNet or HyNet checkpoint as a network in eval mode.

    architecture: "hardnet", "sosnet" or "hynet"; None: what the tensors' names say. Raises UsageError for another
    name, BadInputError for a file of another network.
    """
    if architecture is not None and architecture not in NETWORKS:
        raise UsageError(f"no published network {architecture!r}; there are: {', '.join(NETWORKS)}")
    state = state_dict_of(path)
    kind = architecture or next((name for name, key in FIRST_KEYS.items() if key in state), None)
    if kind is None:
        some = ", ".join(sorted(state)[:3])
        raise BadInputError(f"{path}: neither HardNet, SOSNet nor HyNet (its tensors: {some}, ...)")
    return published_patch_network(kind, state, path)


def published_patch_network(architecture: str, state: dict[str, Tensor], path: Path) -> PatchNetwork:
    """A network of tensors under the names their authors gave them, in eval mode. Raises BadInputError."""
    import torch

    from featkit.models.patch_network import PatchNetworkConfig

    config = PatchNetworkConfig(**NETWORKS[architecture])
    renamed = {"hardnet": _hardnet, "sosnet": _sosnet, "hynet": _hynet}[architecture](state)
    for name in [name for name in renamed if name.endswith(".eps")]:
        if not torch.allclose(renamed.pop(name).abs(), torch.tensor(config.frn_eps), rtol=1e-3, atol=0):
            raise BadInputError(f"{path}: {name!r} is not FRN's fixed {config.frn_eps}")
    return filled(config, renamed, path)


def from_training(path: Path, which: str) -> tuple[PatchNetwork | SCFeatNetwork, dict[str, Any]]:
    """The "best" or "last" network of a training's checkpoint, and the training's progress. Raises BadInputError."""
    from featkit.models.patch_network import PatchNetworkConfig
    from featkit.models.scfeat import SCFeatNetworkConfig

    state = read_checkpoint(path)
    try:
        progress = state["progress"]
        tensors = progress["best_network"] if which == "best" else state["modules"]["network"]
        values = json.loads(state["config"])["network"]
        done = {"step": progress["best_step" if which == "best" else "step"], "seconds": progress["seconds"]}
    except (KeyError, TypeError, ValueError):
        raise BadInputError(f"{path}: not a checkpoint of `featkit train patch` or `scfeat`") from None
    if not tensors:
        raise BadInputError(f"{path}: the training has not measured any network yet; take --which last")
    try:
        if "encoder" in values:
            return filled_scfeat(make(SCFeatNetworkConfig, values, f"{path}: its network"), tensors, path), done
        return filled(make(PatchNetworkConfig, values, f"{path}: its network"), tensors, path), done
    except UsageError as error:
        raise BadInputError(str(error)) from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dict that torch.save wrote, on the CPU. Raises BadInputError for anything else."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except pickle.UnpicklingError:
        raise BadInputError(
            f"{path}: a pickle that is not tensors, or none at all; loading it could run code, so it is refused"
        ) from None
    except Exception as error:  # torch and zipfile raise what comes to hand for a damaged file
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{path}: not a checkpoint of PyTorch ({what[:100]})") from None
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: holds a {type(content).__name__}, not the tensors of a network by name")
    return content


def state_dict_of(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a checkpoint of PyTorch. Raises BadInputError for anything else."""
    import torch

    content = read_checkpoint(path)
    for key in INNER:
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    state = {}
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise BadInputError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor: no network's state")
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        state[name] = value.detach()
    return state


def _hardnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"trunk.{name}" if name.startswith("features.") else name: tensor for name, tensor in state.items()}


def _sosnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """SOSNet's layers are counted from its InstanceNorm, which has no tensors: one more than HardNet's."""

    def renamed(name: str) -> str:
        layer = re.match(r"layers\.(\d+)\.(.+)", name)
        return name if layer is None else f"trunk.features.{int(layer[1]) - 1}.{layer[2]}"

    return {renamed(name): tensor for name, tensor in state.items()}


def _hynet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Blocks of convolution, FRN, TLU; two more, FRN and TLU, come before the first convolution."""
    renamed = {}
    for name, tensor in state.items():
        part = re.match(r"layer(\d)\.(\d)\.(\w+)$", name)
        if part is None:
            renamed[name] = tensor
            continue
        block, layer, tensor_name = int(part[1]), int(part[2]), part[3]
        if block == 1:
            layer -= 2
        if block == 7:
            renamed[f"trunk.{'last' if layer == 1 else 'norm'}.{tensor_name}"] = tensor
        elif layer == 0:
            renamed[f"trunk.convolutions.{block - 1}.{tensor_name}"] = tensor
        else:
            place = "first" if layer < 0 else f"activations.{block - 1}"
            renamed[f"trunk.{place}.{FRN_NAMES.get(tensor_name, tensor_name)}"] = tensor.flatten()
    return renamed
