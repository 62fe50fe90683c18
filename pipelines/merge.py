"""From two maps to one, in the frame of the first, step by step. `featkit merge` runs this.

Copy it, change what you like, and run it: `python merge.py scene_a/ scene_b/ merged/`. The two maps are not changed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from featkit import __version__
from featkit.core import log
from featkit.core.config import Seed, digest
from featkit.core.errors import BadInputError
from featkit.core.log import LOGGER, timed
from featkit.core.registry import resolve
from featkit.core.types import Pair
from featkit.io.artifact import artifact, locked, scratch, write_text
from featkit.io.atomic import explained_by_disk, read_stamp, refuse_foreign
from featkit.io.features import open_features
from featkit.io.lists import read_pairs, write_pairs
from featkit.io.matches import open_matches
from featkit.io.shards import merge_stores
from featkit.mapping.grow import MADE_WITH, has_same_keypoints, original_config
from featkit.mapping.map_rigs import recorded_prefixes, rig_metrics
from featkit.mapping.merge import MergeConfig, Merged, merge_maps
from featkit.mapping.model import (
    Model,
    alignment_files,
    map_statistics,
    poses_digest,
    read_model,
    refuse_other_models,
    write_models,
)
from featkit.mapping.scene import find_features, find_model
from featkit.matching import stage as match
from featkit.matching.config import MatchWith
from featkit.pairing.by_retrieval import RetrievalConfig, pairs_with

RECORD = "merge.json"


class MergeMapsConfig(MatchWith):
    """Everything that determines how two maps are merged."""

    retrieval: RetrievalConfig = RetrievalConfig()
    """Retrieval of the images of the first map that each image of the second is matched with."""
    merge: MergeConfig = MergeConfig()
    """When and how two maps are merged."""
    map: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the configuration that the first map was made with (fields of `reconstruct`'s `map`)."""
    seed: Seed = 0
    """Random seed of the retrieval clustering."""


@dataclass(frozen=True)
class MergeResult:
    """Location of the merged map, and the contents of merge.json as `metrics`."""

    output: Path
    sparse: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One of the two maps. names: its registered images."""

    folder: Path
    features: Path
    model: Model
    names: list[str]


def run(
    config: MergeMapsConfig,
    first: Path,
    second: Path,
    output: Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
) -> MergeResult:
    """Merge the second map into the first, and write the result to `output`. Steps that are up to date are skipped.

    first, second: scenes, featkit/ folders, or models with their features.h5 nearby, such as sparse/0 and sparse/1 of
    one run. Raises featkit's errors: EmptyResultError for maps with too little in common.
    """
    names = ("features.h5", "matches.h5", "pairs.txt", "pairs.json", "sparse.json", RECORD)
    parts = _part(first), _part(second)
    refuse_foreign(*(output / name for name in names))
    refuse_other_models(output / "sparse")
    for part in parts:
        if output.resolve() in (part.folder.resolve(), *part.folder.resolve().parents[:2]):
            raise BadInputError(f"{output}: is one of the maps, which stay as they are; choose another --out")
    if parts[0].folder.resolve() == parts[1].folder.resolve():
        raise BadInputError(f"{second}: is the same model as {first}; name two, such as sparse/0 and sparse/1")
    made_with = original_config(parts[0].folder, parts[0].model, config.map)
    recorded = recorded_prefixes(parts[0].folder), recorded_prefixes(parts[1].folder)
    matcher = resolve("matcher", config.matcher, config.matching, device).ready()
    seconds: dict[str, float] = {}

    with timed("features", seconds):
        stored = _features(parts, output / "features.h5", overwrite)
    with timed("pairs", seconds):
        pairs = _pair(config, parts, stored, output / "pairs.txt", device)
    with timed("match", seconds):
        matches = match.run(matcher, stored, pairs, output / "matches.h5", overwrite=overwrite)
    resolved = config.model_copy(update={"matching": matcher.config.result_fields()})
    with (
        locked(output / "sparse"),
        explained_by_disk(output / "sparse"),
        open_features(stored) as store,
        open_matches(matches, store) as found,
    ):
        listed = [f"{pair.name0}\t{pair.name1}" for pair in pairs]
        on_rigs = ["", *map(repr, recorded)] if any(recorded) else []
        inputs = digest(*(poses_digest(part.folder) for part in parts), made_with.canonical_json(), *listed, *on_rigs)
        made = artifact(output / "sparse", resolved, inputs, output / "sparse.json")
        record = read_stamp(output / RECORD) or {}
        if made.up_to_date and record.get("inputs") == inputs and not overwrite:
            LOGGER.info("merge: done already")
            return MergeResult(output, output / "sparse", record)
        with timed("merge", seconds), scratch(output / ".sparse.work") as temporary:
            merged = merge_maps(
                config.merge, made_with, parts[0].model, parts[1].model, store, found, pairs, temporary,
                (parts[0].folder, parts[1].folder), recorded,
            )  # fmt: skip

        def stamp() -> None:
            made.write_stamp(kind="map", models=1, **{MADE_WITH: made_with.result_fields()})

        write_models([merged.model], output / "sparse", stamp, alignment_files(parts[0].folder))
    rigs = rig_metrics(merged.model, [*recorded[0], *recorded[1]])
    metrics = {"inputs": inputs, **_measured(parts, merged), **rigs, "seconds": seconds}
    write_text(output / RECORD, json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    return MergeResult(output, output / "sparse", metrics)


def _measured(parts: tuple[Part, Part], merged: Merged) -> dict[str, Any]:
    """Contents of merge.json for the merged map."""
    every = {name for part in parts for name in part.names}
    statistics = map_statistics(merged.model, len(every))
    return {
        "featkit_version": __version__,
        "kind": "merged map",
        "maps": [str(part.folder) for part in parts],
        "images_of": [len(part.names) for part in parts],
        "common": merged.common,
        "verified_pairs": merged.verified,
        "agreeing_points": merged.points,
        "candidate_points": merged.candidates,
        "images": statistics.registered,
        "points": statistics.points,
        "reprojection_px": statistics.reprojection_px,
        "left_out": sorted(every - {image.name for image in merged.model.images.values()}),
        "moved_median": merged.moved[0],
        "moved_max": merged.moved[1],
    }


def _part(folder: Path) -> Part:
    """A map with the features that it was made from. Raises BadInputError."""
    model_folder = find_model(folder)
    features = find_features(model_folder)
    if features is None:
        raise BadInputError(
            f"{model_folder}: the features.h5 it was made from is not beside it; only maps of featkit's are merged"
        )
    model = read_model(model_folder)
    with open_features(features) as store:
        if not has_same_keypoints(model, store):
            raise BadInputError(
                f"{features}: not the keypoints of the model in {model_folder}; merge maps of featkit's"
            )
    return Part(model_folder, features, model, sorted(image.name for image in model.images.values()))


def _features(parts: tuple[Part, Part], output: Path, overwrite: bool) -> Path:
    """One store of both maps' features. Raises BadInputError if they are incompatible, or a name has two meanings."""
    first, second = parts
    if output.exists() and not overwrite:
        with open_features(output) as store:
            if all(has_same_keypoints(part.model, store) for part in parts):
                return output
    if first.features.resolve() == second.features.resolve():
        merge_stores([first.features], output, overwrite=True)
        return output
    with open_features(first.features) as one, open_features(second.features) as two:
        same = sorted(set(one.names()) & set(two.names()))
        other = [name for name in same if one.digest(name) != two.digest(name)]
    if other:
        raise BadInputError(
            f"{second.folder}: {len(other)} of its photographs, such as {other[0]!r}, are others than those of the same"
            f" name in {first.folder}; rename them, or extract both alike"
        )
    merge_stores([first.features, second.features], output, overwrite=True, same=set(same))
    return output


def _pair(config: MergeMapsConfig, parts: tuple[Part, Part], stored: Path, output: Path, device: str) -> list[Pair]:
    """Images of the second map, each paired with the most similar ones of the first."""
    first, second = parts
    own = [name for name in second.names if name not in set(first.names)]
    with open_features(stored) as store:
        inputs = digest(
            *(f"{name} {store.digest(name)}" for name in (*own, *first.names)), str((len(own), config.seed))
        )
        if artifact(output, config.retrieval, inputs).up_to_date:
            LOGGER.info("pairs: done already")
            return read_pairs(output)
        generator = np.random.default_rng(config.seed)
        pairs = pairs_with(
            store, own, first.names, config.retrieval, generator, device=device, spill_folder=output.parent
        )
    if pairs:
        write_pairs(output, pairs, config.retrieval, {"inputs": inputs, "method": "between maps"})
    return pairs


def describe(result: MergeResult) -> list[str]:
    """Summary in a few lines of text."""
    found = result.metrics
    one, two = found["images_of"]
    return [
        f"maps of {one} and {two} photographs, {len(found['common'])} of them in both, are one of {found['images']}",
        f"{found['agreeing_points']:,} points of {found['candidate_points']:,} that both may have agree"
        f" ({found['verified_pairs']:,} verified pairs)",
        *([f"rigs: {found['rigs']}, with {found['frames']} frames"] if found.get("rigs") else []),
        f"map: {result.sparse / '0'}",
    ]


if __name__ == "__main__":  # worker processes import this file: only the main one may run it
    log.setup()
    print(run(MergeMapsConfig(), Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])).sparse)
