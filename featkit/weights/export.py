"""A finished training's network as one of featkit's weights: a file, and its row for the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from featkit import __version__
from featkit.config import Config, make
from featkit.errors import BadInputError
from featkit.weights.manifest import SUFFIX, WeightInfo, sha256_of
from featkit.weights.patch_files import load_patch_network, read_metadata, save_patch_network
from featkit.weights.published import from_training
from featkit.weights.scfeat_files import FORMAT as SCFEAT_FORMAT
from featkit.weights.scfeat_files import load_scfeat_network, save_scfeat_network

if TYPE_CHECKING:
    from featkit.models.patch_network import PatchNetwork
    from featkit.models.scfeat import SCFeatNetwork

CHECKPOINT = "checkpoint.pt"
SUMMARY = "summary.json"
WORDS = ("recipe", "commit", "data", "licence")
KEPT = ("steps", "patches", "seconds", "device", "devices", "versions")  # of a run's summary


class Origin(Config):
    """What is said about a weight; empty: what the run itself says. See WeightInfo."""

    recipe: str = ""
    commit: str = ""
    data: str = ""
    licence: str = ""
    scores: dict[str, Any] = Field(default_factory=dict)


def export_weight(
    source: Path,
    name: str,
    out: Path,
    origin: Origin | None = None,
    which: Literal["best", "last"] = "best",
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
    from featkit.models.scfeat import SCFeatNetwork

    return "scfeat" if isinstance(network, SCFeatNetwork) else "patch"


def read_scores(path: Path) -> dict[str, Any]:
    """A json file with scores by name. Raises BadInputError."""
    scores = _json(path)
    if not isinstance(scores, dict):
        raise BadInputError(f"{path}: scores are a json object: names and numbers")
    return scores


def _trained(source: Path, which: str) -> tuple[PatchNetwork | SCFeatNetwork, dict[str, Any]]:
    """The network, and what its run says of itself in the words of a WeightInfo."""
    if source.is_dir():
        return _from_run(source, which)
    network: PatchNetwork | SCFeatNetwork
    if source.suffix == SUFFIX:
        metadata = read_metadata(source)
        is_scfeat = metadata.get("format") == SCFEAT_FORMAT
        network = load_scfeat_network(source) if is_scfeat else load_patch_network(source)[0]
        told: dict[str, Any] = {key: metadata[key] for key in WORDS if key in metadata}
        return network, {**told, "training": {"step": int(metadata["step"])} if "step" in metadata else {}}
    network, done = from_training(source, which)
    return network, {"training": done}


def _from_run(folder: Path, which: str) -> tuple[PatchNetwork | SCFeatNetwork, dict[str, Any]]:
    """A run's folder: its weights file, or the checkpoint when the training has not ended."""
    weights, summary = folder / f"{which}{SUFFIX}", folder / SUMMARY
    network, told = _trained(weights if weights.is_file() else folder / CHECKPOINT, which)
    if not (weights.is_file() and summary.is_file()):
        return network, told
    run = _json(summary)
    try:
        measured = {key: value for key, value in run[which].items() if value is not None}
        told["recipe"], told["data"] = run["recipe"], run["data"]["name"]
        told["scenes"] = run["data"].get("scenes", [])
        told["training"] = {key: run[key] for key in KEPT if key in run} | {"network": which, **measured}
    except (KeyError, TypeError, AttributeError):
        raise BadInputError(f"{summary}: not the summary of `featkit train`") from None
    return network, told


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read as json ({error})") from None
