"""Weights from elsewhere and to elsewhere: authors' checkpoints imported, a training's network exported."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from featkit import __version__
from featkit.core.config import Config, make
from featkit.core.errors import BadInputError, UsageError
from featkit.io.atomic import read_json
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
from featkit.weights.files import (
    SCFEAT_FORMAT,
    filled,
    filled_scfeat,
    load_patch_network,
    load_scfeat_network,
    read_metadata_patch_files,
    save_patch_network,
    save_scfeat_network,
)
from featkit.weights.manifest import SUFFIX, WeightInfo, sha256_of

# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints that others published, and those of featkit's own trainings, as patch networks.
#
# Read with `torch.load(weights_only=True)`: a file that would run code is refused.
#
# HardNet (Mishchuk et al. 2017): {"state_dict": {"features.0.weight", ...}}. SOSNet (Tian et al. 2019): `layers.*`, the
# same layers behind an InstanceNorm. HyNet (Tian et al. 2020): `layer1` to `layer7`, an FRN in front of the first.


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

    config = PatchNetworkConfig(**NETWORKS[architecture])
    renamed = {"hardnet": _hardnet, "sosnet": _sosnet, "hynet": _hynet}[architecture](state)
    for name in [name for name in renamed if name.endswith(".eps")]:
        if not torch.allclose(renamed.pop(name).abs(), torch.tensor(config.frn_eps), rtol=1e-3, atol=0):
            raise BadInputError(f"{path}: {name!r} is not FRN's fixed {config.frn_eps}")
    return filled(config, renamed, path)


def from_training(path: Path, which: str) -> tuple[PatchNetwork | SCFeatNetwork, dict[str, Any]]:
    """The "best" or "last" network of a training's checkpoint, and its row's recipe, data, scenes and training.

    A checkpoint of an early version has the training alone. Raises BadInputError.
    """

    state = read_checkpoint(path)
    try:
        progress = state["progress"]
        tensors = progress["best_network"] if which == "best" else state["modules"]["network"]
        values = json.loads(state["config"])["network"]
        done = {"step": progress["best_step" if which == "best" else "step"], "seconds": progress["seconds"]}
        told: dict[str, Any] = {"training": done}
        if "origin" in state:
            data = state["origin"]["data"]
            told |= {"recipe": state["origin"]["recipe"], "data": data["name"], "scenes": data.get("scenes", [])}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise BadInputError(f"{path}: not a checkpoint of `featkit train patch` or `scfeat`") from None
    if not tensors:
        raise BadInputError(f"{path}: the training has not measured any network yet; take --which last")
    try:
        if "encoder" in values:
            return filled_scfeat(make(SCFeatNetworkConfig, values, f"{path}: its network"), tensors, path), told
        return filled(make(PatchNetworkConfig, values, f"{path}: its network"), tensors, path), told
    except UsageError as error:
        raise BadInputError(str(error)) from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dict that torch.save wrote, on the CPU. Raises BadInputError for anything else."""

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


# ----------------------------------------------------------------------------------------------------------------------
# A finished training's network as one of featkit's weights: a file, and its row for the manifest.


CHECKPOINT = "checkpoint.pt"
SUMMARY = "summary.json"
WORDS = ("recipe", "commit", "data", "licence")
KEPT = ("steps", "patches", "seconds", "device", "devices", "versions")  # of a run's summary


class Origin(Config):
    """What is said about a weight; empty: what the run itself says. See WeightInfo."""

    recipe: str = ""
    """How it was trained; empty: the run's."""
    commit: str = ""
    """featkit's commit when it was trained."""
    data: str = ""
    """What it was trained on; empty: the run's."""
    licence: str = ""
    """Licence of the weight."""
    scores: dict[str, Any] = Field(default_factory=dict)
    """Measured numbers by name, units in the name."""


def export_weight(
    source: Path,
    name: str,
    out: Path,
    origin: Origin | None = None,
    which: str = "best",
    max_mb: float | None = None,
) -> WeightInfo:
    """Write a training's network to `out`; the row that describes it is returned, not written.

    source: a run's folder, its checkpoint.pt, or a weights file. which: of the run's two networks. max_mb: size of the
    file, kept with 8 bits where need be (`write_network`). Raises UsageError for an impossible name or size,
    BadInputError for another file, NotWritableError.
    """
    network, told = _trained(source, which)
    said = {key: value for key, value in (origin or Origin()).result_fields().items() if value}
    told = {**told, **said}
    words = {key: told[key] for key in WORDS if told.get(key)}
    kind = kind_of(network)
    row = {"name": name, "kind": kind, "file": out.name, "config": network.config.result_fields(), **told}
    make(WeightInfo, {**row, "sha256": "0" * 64, "bytes": 0}, "weight")  # before anything is written
    save: Callable[..., Path] = save_scfeat_network if kind == "scfeat" else save_patch_network
    save(out, network, {**words, "name": name, "featkit_version": __version__}, max_mb)
    return make(WeightInfo, {**row, "sha256": sha256_of(out), "bytes": out.stat().st_size}, "weight")


def kind_of(network: PatchNetwork | SCFeatNetwork) -> Literal["patch", "scfeat"]:
    """What the manifest calls it."""

    return "scfeat" if isinstance(network, SCFeatNetwork) else "patch"


def read_scores(path: Path) -> dict[str, Any]:
    """A json file with scores by name. Raises BadInputError."""
    scores = read_json(path, "scores by name", "write a json object: names and numbers")
    if not isinstance(scores, dict):
        raise BadInputError(f"{path}: scores are a json object: names and numbers")
    return scores


def _trained(source: Path, which: str) -> tuple[PatchNetwork | SCFeatNetwork, dict[str, Any]]:
    """The network, and what its run says of itself in the words of a WeightInfo."""
    if source.is_dir():
        return _from_run(source, which)
    network: PatchNetwork | SCFeatNetwork
    if source.suffix == SUFFIX:
        metadata = read_metadata_patch_files(source)
        is_scfeat = metadata.get("format") == SCFEAT_FORMAT
        network = load_scfeat_network(source) if is_scfeat else load_patch_network(source)[0]
        told: dict[str, Any] = {key: metadata[key] for key in WORDS if key in metadata}
        return network, {**told, "training": {"step": int(metadata["step"])} if "step" in metadata else {}}
    return from_training(source, which)


def _from_run(folder: Path, which: str) -> tuple[PatchNetwork | SCFeatNetwork, dict[str, Any]]:
    """A run's folder: its weights file, or the checkpoint when the training has not ended."""
    weights, summary = folder / f"{which}{SUFFIX}", folder / SUMMARY
    network, told = _trained(weights if weights.is_file() else folder / CHECKPOINT, which)
    if not (weights.is_file() and summary.is_file()):
        return network, told
    run = read_json(summary, "the summary of a training", "train again, or move the run")
    try:
        measured = {key: value for key, value in run[which].items() if value is not None}
        told["recipe"], told["data"] = run["recipe"], run["data"]["name"]
        told["scenes"] = run["data"].get("scenes", [])
        told["training"] = {key: run[key] for key in KEPT if key in run} | {"network": which, **measured}
    except (KeyError, TypeError, AttributeError):
        raise BadInputError(f"{summary}: not the summary of `featkit train`") from None
    return network, told
