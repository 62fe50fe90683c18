"""Import of authors' checkpoints, and export of trained networks as weights."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from featkit import __version__
from featkit.core.config import Config, make
from featkit.core.errors import BadInputError, UsageError, refuse_pipe
from featkit.io.atomic import read_json
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
from featkit.weights.files import (
    SCFEAT_FORMAT,
    filled,
    filled_scfeat,
    learned_scenes,
    load_patch_network,
    load_scfeat_network,
    read_metadata_patch_files,
    save_patch_network,
    save_scfeat_network,
    scenes_metadata,
)
from featkit.weights.manifest import SUFFIX, WeightInfo, sha256_of

# ----------------------------------------------------------------------------------------------------------------------
# Published checkpoints, and those of featkit's own trainings, as patch networks.
#
# Read with `torch.load(weights_only=True)`: a file that would run code is refused.
#
# HardNet (Mishchuk et al. 2017): {"state_dict": {"features.0.weight", ...}}. SOSNet (Tian et al. 2019): `layers.*`, the
# same layers after an InstanceNorm. HyNet (Tian et al. 2020): `layer1` to `layer7`, with an FRN before the first.


NETWORKS: dict[str, dict[str, Any]] = {
    "hardnet": {"architecture": "l2net"},
    "sosnet": {"architecture": "l2net", "dropout": 0.1, "input_norm": "variance", "input_eps": 1e-5},
    "hynet": {"architecture": "hynet"},
}
"""PatchNetworkConfig of the published networks. SOSNet's `input_eps` is InstanceNorm's, for patches in [0, 1]."""
FIRST_KEYS = {"hardnet": "features.0.weight", "sosnet": "layers.1.weight", "hynet": "layer1.2.weight"}
INNER = ("state_dict", "model_state_dict", "model", "extractor")  # keys under which authors store the tensors
WRAPPERS = ("module.", "_orig_mod.")  # prefixes added by DataParallel and torch.compile
FRN_NAMES = {"weight": "scale", "bias": "bias", "tau": "tau"}


def import_checkpoint(path: Path, architecture: str | None = None) -> PatchNetwork:
    """A published HardNet, SOSNet or HyNet checkpoint as a network in eval mode.

    architecture: "hardnet", "sosnet" or "hynet"; None: detected from the tensor names. Raises UsageError for another
    name, BadInputError for a file of another network.
    """
    if architecture is not None and architecture not in NETWORKS:
        raise UsageError(f"no published network {architecture!r}; there are: {', '.join(NETWORKS)}")
    state = state_dict_of(path)
    kind = architecture or next((name for name, key in FIRST_KEYS.items() if key in state), None)
    if kind is None:
        first_names = ", ".join(sorted(state)[:3])
        raise BadInputError(f"{path}: neither HardNet, SOSNet nor HyNet (its tensors: {first_names}, ...)")
    return published_patch_network(kind, state, path)


def published_patch_network(architecture: str, state: dict[str, Tensor], path: Path) -> PatchNetwork:
    """A network from tensors with the authors' names, in eval mode. Raises BadInputError."""

    config = PatchNetworkConfig(**NETWORKS[architecture])
    renamed = {"hardnet": _rename_hardnet, "sosnet": _rename_sosnet, "hynet": _rename_hynet}[architecture](state)
    for name in [name for name in renamed if name.endswith(".eps")]:
        if not torch.allclose(renamed.pop(name).abs(), torch.tensor(config.frn_eps), rtol=1e-3, atol=0):
            raise BadInputError(f"{path}: {name!r} is not FRN's fixed {config.frn_eps}")
    return filled(config, renamed, path)


def from_training(path: Path, which: str) -> tuple[PatchNetwork | SCFeatNetwork, dict[str, Any]]:
    """The "best" or "last" network of a training checkpoint, and values for its manifest row: recipe, data, scenes,
    training (only training for checkpoints of early versions). Raises BadInputError.
    """

    state = read_checkpoint(path)
    try:
        progress = state["progress"]
        tensors = progress["best_network"] if which == "best" else state["modules"]["network"]
        values = json.loads(state["config"])["network"]
        training = {"step": progress["best_step" if which == "best" else "step"], "seconds": progress["seconds"]}
        fields: dict[str, Any] = {"training": training}
        if "origin" in state:
            data = state["origin"]["data"]
            fields |= {"recipe": state["origin"]["recipe"], "data": data["name"], "scenes": data.get("scenes", [])}
            values |= {"magnification": data["magnification"]} if "magnification" in data else {}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise BadInputError(f"{path}: not a checkpoint of `featkit train patch` or `scfeat`") from None
    if not tensors:
        raise BadInputError(f"{path}: the training has not evaluated any network yet; use --which last")
    try:
        if "encoder" in values:
            return filled_scfeat(make(SCFeatNetworkConfig, values, f"{path}: its network"), tensors, path), fields
        return filled(make(PatchNetworkConfig, values, f"{path}: its network"), tensors, path), fields
    except UsageError as error:
        raise BadInputError(str(error)) from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A dict written by torch.save, on the CPU. Raises BadInputError for anything else."""
    try:
        refuse_pipe(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's on pickles of another protocol, which are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except BadInputError:
        raise
    except pickle.UnpicklingError:
        raise BadInputError(
            f"{path}: a pickle that is not tensors alone; loading it could run code, so it is refused"
        ) from None
    except Exception as error:  # torch and zipfile raise various errors for a damaged file
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{path}: not a checkpoint of PyTorch ({what[:100]})") from None
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: contains a {type(content).__name__}, not the tensors of a network by name")
    return content


def state_dict_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch checkpoint by name. Raises BadInputError for anything else."""

    content = read_checkpoint(path)
    for key in INNER:
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    state = {}
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            what = f"is a {type(value).__name__}, not a tensor" if isinstance(name, str) else "is no name of a tensor"
            raise BadInputError(f"{path}: {name!r} {what}: not a state dict")
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        state[name] = value.detach()
    return state


def _rename_hardnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"trunk.{name}" if name.startswith("features.") else name: tensor for name, tensor in state.items()}


def _rename_sosnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename SOSNet's tensors: its layer numbers include the InstanceNorm, so they are one more than HardNet's."""

    def renamed(name: str) -> str:
        layer = re.match(r"layers\.(\d+)\.(.+)", name)
        return name if layer is None else f"trunk.features.{int(layer[1]) - 1}.{layer[2]}"

    return {renamed(name): tensor for name, tensor in state.items()}


def _rename_hynet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename HyNet's tensors: blocks of convolution, FRN and TLU, with FRN and TLU before the first convolution."""
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
# A trained network as featkit weights: a file, and its row for the manifest.


CHECKPOINT = "checkpoint.pt"
SUMMARY = "summary.json"
WORDS = ("recipe", "commit", "data", "licence")
KEPT = ("steps", "patches", "seconds", "device", "devices", "versions")  # keys of a run's summary


class WeightOrigin(Config):
    """Information about exported weights; empty: taken from the run. See WeightInfo."""

    recipe: str = ""
    """Training recipe; empty: that of the run."""
    commit: str = ""
    """featkit's commit at the time of training."""
    data: str = ""
    """Training data; empty: that of the run."""
    licence: str = ""
    """Licence of the weights."""
    scores: dict[str, Any] = Field(default_factory=dict)
    """Measured scores by name, with units in the name."""


def export_weight(
    source: Path,
    name: str,
    out: Path,
    origin: WeightOrigin | None = None,
    which: str = "best",
    max_mb: float | None = None,
) -> WeightInfo:
    """Write a trained network to `out`; its manifest row is returned, not written.

    source: a run's folder, its checkpoint.pt, or a weights file. which: "best" or "last" network of the run. max_mb:
    maximum size of the file, for which tensors are stored in 8 bits if necessary (`write_network`). Raises UsageError
    for an invalid name or size, BadInputError for other files, NotWritableError.
    """
    network, fields = _load_trained(source, which)
    given_fields = {key: value for key, value in (origin or WeightOrigin()).result_fields().items() if value}
    fields = {**fields, **given_fields}
    words = {key: fields[key] for key in WORDS if fields.get(key)}
    kind = network_kind(network)
    row = {"name": name, "kind": kind, "file": out.name, "config": network.config.result_fields(), **fields}
    make(WeightInfo, {**row, "sha256": "0" * 64, "bytes": 0}, "weight")  # before anything is written
    save: Callable[..., Path] = save_scfeat_network if kind == "scfeat" else save_patch_network
    scenes = scenes_metadata(fields.get("scenes", ()))
    save(out, network, {**words, **scenes, "name": name, "featkit_version": __version__}, max_mb)
    return make(WeightInfo, {**row, "sha256": sha256_of(out), "bytes": out.stat().st_size}, "weight")


def network_kind(network: PatchNetwork | SCFeatNetwork) -> Literal["patch", "scfeat"]:
    """The kind of a network in the manifest."""

    return "scfeat" if isinstance(network, SCFeatNetwork) else "patch"


def read_scores(path: Path) -> dict[str, Any]:
    """A json file with scores by name. Raises BadInputError."""
    scores = read_json(path, "scores by name", "write a json object: names and numbers")
    if not isinstance(scores, dict):
        raise BadInputError(f"{path}: scores are a json object: names and numbers")
    return scores


def _load_trained(source: Path, which: str) -> tuple[PatchNetwork | SCFeatNetwork, dict[str, Any]]:
    """The network, and the fields of a WeightInfo that its run provides."""
    if source.is_dir():
        return _load_from_run(source, which)
    network: PatchNetwork | SCFeatNetwork
    if source.suffix == SUFFIX:
        metadata = read_metadata_patch_files(source)
        is_scfeat = metadata.get("format") == SCFEAT_FORMAT
        network = load_scfeat_network(source) if is_scfeat else load_patch_network(source)[0]
        fields: dict[str, Any] = {key: metadata[key] for key in WORDS if key in metadata}
        fields["scenes"] = sorted(learned_scenes(source))
        return network, {**fields, "training": {"step": int(metadata["step"])} if "step" in metadata else {}}
    return from_training(source, which)


def _load_from_run(folder: Path, which: str) -> tuple[PatchNetwork | SCFeatNetwork, dict[str, Any]]:
    """The same for a run's folder: its weights file, or the checkpoint if the training has not finished."""
    weights, summary = folder / f"{which}{SUFFIX}", folder / SUMMARY
    network, fields = _load_trained(weights if weights.is_file() else folder / CHECKPOINT, which)
    if not (weights.is_file() and summary.is_file()):
        return network, fields
    run = read_json(summary, "the summary of a training", "train again, or move the run")
    try:
        measured = {key: value for key, value in run[which].items() if value is not None}
        fields["recipe"], fields["data"] = run["recipe"], run["data"]["name"]
        fields["scenes"] = run["data"].get("scenes", [])
        fields["training"] = {key: run[key] for key in KEPT if key in run} | {"network": which, **measured}
    except (KeyError, TypeError, AttributeError):
        raise BadInputError(f"{summary}: not the summary of `featkit train`") from None
    return network, fields
