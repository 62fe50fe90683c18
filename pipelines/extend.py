"""From a map and new photographs to a larger map in the same frame, step by step. `featkit extend` runs this.

Copy it, change what you like, and run it: `python extend.py scene/ new_photographs/`. The original map is not changed;
the extended one is written to its own folder with its features, so that it can be used for localization and extended
again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from featkit import __version__
from featkit.core import log
from featkit.core.config import Count, Seed, digest
from featkit.core.errors import BadInputError, UsageError
from featkit.core.log import LOGGER, timed
from featkit.core.registry import Method, resolve
from featkit.core.types import Pair
from featkit.features import stage as extraction
from featkit.features.stage import ExtractConfig, config_of_features
from featkit.images.exif import some_names
from featkit.images.listing import file_digest, list_images
from featkit.images.read import stored_size
from featkit.io.artifact import artifact, locked, scratch, write_text
from featkit.io.atomic import explained_by_disk, read_stamp, refuse_foreign
from featkit.io.features import FeatureStore, extractor_name, open_features
from featkit.io.lists import Spelling, read_pairs, write_pairs
from featkit.io.matches import MatchStore, open_matches
from featkit.io.shards import merge_stores
from featkit.mapping.cameras import CameraConfig, check_camera_config, check_photographs
from featkit.mapping.covisibility import covisible_pairs
from featkit.mapping.export import model_tracks
from featkit.mapping.grow import (
    MADE_WITH,
    GrowConfig,
    Grown,
    NewImages,
    grow,
    has_same_keypoints,
    original_config,
    refuse_no_growth,
    remove_images,
    shared_camera,
)
from featkit.mapping.map_rigs import (
    AddedFrame,
    added_frames,
    check_sizes_on_rigs,
    prefixes_of,
    recorded_prefixes,
    report_added,
    rig_metrics,
)
from featkit.mapping.model import (
    Model,
    alignment_files,
    map_statistics,
    poses_digest,
    read_model,
    refuse_other_models,
    write_models,
)
from featkit.mapping.photographs import find_photographs, names_by_folder, refuse_missing_folders
from featkit.mapping.scene import find_features, find_model, image_folder
from featkit.mapping.stage import MapConfig
from featkit.matching import stage as match
from featkit.matching.config import MatchWith
from featkit.pairing.by_retrieval import RetrievalConfig, pairs_with

RECORD = "extend.json"
MIN_IMAGES = 2  # of a map


class ExtendConfig(MatchWith):
    """Everything that determines how a map is extended."""

    extract: ExtractConfig = ExtractConfig()
    """Feature extraction, for a map without featkit's features; otherwise the map's own extractor is used."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """Retrieval of the map images that each new image is matched with."""
    exhaustive_up_to: Count = 60
    """Maximum number of new images that are all matched with each other; more are paired by retrieval."""
    map: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the configuration that the map was made with (fields of `reconstruct`'s `map`)."""
    grow: GrowConfig = GrowConfig()
    """Registration and bundle adjustment."""
    prune: bool = False
    """Remove images from the map that are no longer in the folder of images."""
    seed: Seed = 0
    """Random seed of the retrieval clustering."""


@dataclass(frozen=True)
class ExtendResult:
    """Location of the extended map, and the contents of extend.json as `metrics`."""

    output: Path
    sparse: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """The map to extend, its features (None: not made by featkit), and the images to add (new) and remove (gone)."""

    folder: Path
    model: Model
    features: Path | None
    files: dict[str, Path]
    new: list[str]
    gone: list[str]


def run(
    config: ExtendConfig,
    map_folder: Path,
    photographs: Path,
    output: Path | None = None,
    *,
    features: Path | None = None,
    images: Sequence[Path] = (),
    number: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> ExtendResult:
    """Register the images of a folder in a map, and write the extended map. Steps that are up to date are skipped.

    map_folder: a scene, its featkit/ folder, or a COLMAP model. photographs: may include images of the map; names are
    relative to it. features: the map's features.h5, if it is not next to the map. images: folders of the map's own
    images, needed for a map without featkit's features. number: which of several models. Raises featkit's errors.
    """
    folder = find_model(map_folder, number)
    output = output or (folder.parent.parent if folder.name.isdigit() else folder.parent) / "extended"
    _check_output(output, folder)
    photographs = image_folder(photographs)
    work = _find_work(config, folder, photographs, features, images)
    made_with = original_config(folder, work.model, config.map)
    recorded = recorded_prefixes(folder)
    frames = _on_rigs(work, recorded, made_with, photographs)
    _check_cameras(made_with.camera, photographs, work.new, frames)
    matcher = resolve("matcher", config.matcher, config.matching, device).ready()
    seconds: dict[str, float] = {}

    with timed("extract", seconds):
        stored = _extract(config, work, photographs, output / "features.h5", device, overwrite)
    with timed("pairs", seconds):
        pairs = _pair(config, work, stored, output / "pairs.txt", device)
    with timed("match", seconds):
        matches = match.run(matcher, stored, pairs, output / "matches.h5", overwrite=overwrite)
    resolved = config.model_copy(update={"matching": matcher.config.result_fields()})
    with (
        locked(output / "sparse"),
        explained_by_disk(output / "sparse"),
        open_features(stored) as store,
        open_matches(matches, store) as found,
    ):
        inputs = _inputs(work, made_with, store, pairs, frames)
        made = artifact(output / "sparse", resolved, inputs, output / "sparse.json")
        record = read_stamp(output / RECORD) or {}
        if made.up_to_date and record.get("inputs") == inputs and not overwrite:
            LOGGER.info("extend: done already")
            return ExtendResult(output, output / "sparse", record)
        with timed("extend", seconds):
            old, pruned, grown = _grow(config, work, made_with, frames, photographs, store, found, pairs, output)

        def stamp() -> None:
            made.write_stamp(kind="map", models=1, **{MADE_WITH: made_with.result_fields()})

        write_models([grown.model], output / "sparse", stamp, alignment_files(folder))
    for name, reason in grown.left_out.items():
        LOGGER.warning("extend: %s is not in the map: %s", name, reason)
    described = {"inputs": inputs, "map": str(folder), "photographs": str(photographs), "old": old}
    measured = {**_measured(grown, old + len(work.new)), **rig_metrics(grown.model, recorded)}
    metrics = {**described, **measured, "pruned": pruned, "seconds": seconds}
    write_text(output / RECORD, json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    return ExtendResult(output, output / "sparse", metrics)


def _grow(
    config: ExtendConfig,
    work: Work,
    made_with: MapConfig,
    frames: list[AddedFrame],
    photographs: Path,
    store: FeatureStore,
    matches: MatchStore,
    pairs: list[Pair],
    output: Path,
) -> tuple[int, list[str], Grown]:
    """The map after pruning and growing: its images before growing, the pruned names, and how it grew."""
    pruned = remove_images(work.model, work.gone, work.folder) if work.gone else []
    old = work.model.num_reg_images()
    sizes = {stored_size(photographs / name) for name in work.new if store.has(name)}
    shared = None if _names_a_camera(config.map) else shared_camera(work.model, sizes)
    new = NewImages(work.new, photographs, made_with.camera, shared, frames)
    with scratch(output / ".sparse.work") as temporary:
        grown = grow(config.grow, made_with, work.model, new, store, matches, pairs, temporary, photographs=work.files)
    if config.extract.keypoints is not None:
        _name_those_without_keypoints(grown.left_out, config.extract.keypoints)
    if not pruned:
        refuse_no_growth(grown, photographs)
    return old, pruned, grown


def _check_output(output: Path, folder: Path) -> None:
    """Raise BadInputError for files that featkit did not make, or for the map's own folder."""
    names = ("features.h5", "matches.h5", "pairs.txt", "pairs.json", "sparse.json", RECORD)
    refuse_foreign(*(output / name for name in names))
    refuse_other_models(output / "sparse")
    if (output / "sparse").resolve() in (folder.resolve(), *folder.resolve().parents):
        raise BadInputError(f"{output}: is the map itself, which stays as it is; choose another --out")


def _check_cameras(config: CameraConfig, photographs: Path, names: Sequence[str], frames: Sequence[AddedFrame]) -> None:
    """Check the cameras of the new images that no rig took, before any work. Raises UsageError and BadInputError."""
    check_camera_config(config)
    on_rigs = {name for frame in frames for name in frame.images.values()}
    check_photographs(config, photographs, [name for name in names if name not in on_rigs])


def _names_a_camera(changes: Mapping[str, Any]) -> bool:
    """Whether the user gives the new images' cameras; otherwise they may be from a camera of the map."""
    camera = changes.get("camera", {})
    return any(camera.get(key) is not None for key in ("model", "params")) or camera.get("mode", "single") != "single"


def _name_those_without_keypoints(left_out: dict[str, str], keypoints: Path) -> None:
    """Correct the reasons of images that the file of keypoints does not have."""
    with open_features(keypoints) as given:
        left_out.update({name: f"{keypoints} has no keypoints of it" for name in left_out if not given.has(name)})


def _measured(grown: Grown, total: int) -> dict[str, Any]:
    """Contents of extend.json for the extended map. total: number of images that it could have."""
    statistics = map_statistics(grown.model, total)
    return {
        "featkit_version": __version__,
        "kind": "extension",
        "registered": grown.registered,
        "left_out": grown.left_out,
        "images": statistics.registered,
        "points": statistics.points,
        "reprojection_px": statistics.reprojection_px,
        "moved_median": grown.moved[0],
        "moved_max": grown.moved[1],
    }


def _on_rigs(work: Work, recorded: Sequence[str], made_with: MapConfig, photographs: Path) -> list[AddedFrame]:
    """The frames of new photographs that the map's rigs took, by their names. Raises BadInputError for a wrong size."""
    prefixes = prefixes_of(work.model, recorded)
    frames = added_frames(work.model, prefixes, work.new, made_with.rigs, work.gone)
    check_sizes_on_rigs(work.model, prefixes, frames, photographs)
    report_added(prefixes, frames, work.new)
    return frames


def _inputs(
    work: Work, made_with: MapConfig, store: FeatureStore, pairs: Sequence[Pair], frames: Sequence[AddedFrame]
) -> str:
    """Digest of all inputs of the extended map."""
    features = [f"{name} {store.digest(name)}" for name in work.new if store.has(name)]
    listed = [f"{pair.name0}\t{pair.name1}" for pair in pairs]
    on_rigs = ["", *map(repr, frames)] if frames else []
    return digest(
        poses_digest(work.folder), made_with.canonical_json(), *features, "", *listed, "", *work.gone, *on_rigs
    )


def _find_work(
    config: ExtendConfig, folder: Path, photographs: Path, features: Path | None, images: Sequence[Path]
) -> Work:
    """Find new and missing images. Raises BadInputError if there is nothing to do, or a name has two meanings."""
    model = read_model(folder)
    model.tear_down()  # removes images without a pose, which models of other programs may list
    registered = {image.name: model.cameras[image.camera_id] for image in model.images.values() if image.has_pose}
    if not registered:
        raise BadInputError(f"{folder}: no image of this model has a pose")
    listed = list_images(photographs)
    spelled = Spelling(lambda: registered)  # the map's own names, which may be in the other Unicode form
    new = [name for name in listed if spelled(name) not in registered]
    gone = sorted(registered.keys() - set(map(spelled, listed))) if config.prune else []
    alone = all(len(frame.data_ids) == 1 for frame in model.frames.values())  # a rig's frame is removed as a whole
    if config.prune and len(registered) - len(gone) < (MIN_IMAGES if alone else 1):
        some = len(registered) - len(gone) or "none"
        raise BadInputError(
            f"{photographs}: has {some} of the map's {len(registered)} photographs, and --prune would take all others"
            " out; give the folder that they are in"
        )
    refuse_missing_folders(images)
    features = features or _own_features(folder)
    files: dict[str, Path] = {}
    if features is None or len(new) < len(listed):
        try:
            files = find_photographs(folder, sorted(registered), images or ([photographs] if config.prune else []))
        except BadInputError:
            if features is None:
                raise
    known = {name: spelled(name) for name in listed if spelled(name) in registered}
    _refuse_other_photographs(photographs, known, registered, files, features)
    if not new and not gone:
        raise BadInputError(
            f"{photographs}: nothing to do: all of its {len(listed)} photographs are in the map already"
        )
    return Work(folder, model, features, files, new, gone)


def _refuse_other_photographs(
    photographs: Path,
    listed: Mapping[str, str],
    registered: Mapping[str, Any],
    files: Mapping[str, Path],
    features: Path | None,
) -> None:
    """Raise BadInputError for a photograph that is not the map's of that name: of another size, or another file.

    listed: the map's names by those in the folder. files: the map's photographs, as far as they are known. Otherwise
    the digests in the map's features tell; where none is the same there may have been masks, and a warning is given.
    """
    sources: dict[str, str] = {}
    if features is not None:
        with open_features(features) as store:
            sources = {own: store.source(own) for own in listed.values() if own not in files and store.has(own)}
    others = []
    for name, own in listed.items():
        there, camera, found = photographs / name, registered[own], file_digest(photographs / name)
        if (own in files and file_digest(files[own]) != found) or stored_size(there) != (camera.width, camera.height):
            raise BadInputError(f"{there}: is another photograph than the map's of that name; rename it")
        if sources.get(own, "") not in {"", found, digest(found, "views")}:  # the last: of a panorama
            others.append(name)
    if others and len(others) < len(sources):
        raise BadInputError(f"{photographs / others[0]}: is another photograph than the map's of that name; rename it")
    if others:
        LOGGER.warning(
            "%s: left out, as the map has photographs of these names: %s; if they are others, rename them (--images"
            " with the map's photographs tells)",
            *(photographs, some_names(others)),
        )


def _own_features(folder: Path) -> Path | None:
    """The features from which featkit made the map; None for a map of another program."""
    found = find_features(folder)
    if found is None:
        return None
    with open_features(found) as store:
        return found if isinstance(store.attributes().get("config"), dict) else None


def _refuse_other_features(wanted: ExtractConfig, features: Path) -> None:
    """Raise UsageError where other features are named than the map's, which new photographs get in any case."""
    if wanted.features == ExtractConfig().features:
        return
    named = extractor_name(extraction.extraction_method(wanted).config.result_fields())
    with open_features(features) as store:
        if named != store.extractor:
            raise UsageError(
                f"--features {wanted.features}: the map's are {store.extractor}, and new photographs get the same;"
                " leave it out"
            )


def _extract(config: ExtendConfig, work: Work, photographs: Path, output: Path, device: str, overwrite: bool) -> Path:
    """Features of the map's images and of the new ones, in one store."""
    if work.features is not None:
        _refuse_other_features(config.extract, work.features)
        if overwrite or not output.exists():
            merge_stores([work.features], output, overwrite=overwrite)
        method = _as_the_map(config.extract, work, output, device)
    else:
        method = extraction.extraction_method(config.extract, device=device)
        _extract_map(method, work, output, overwrite)
    if work.new:
        assert method.stage is not None
        reading = method.stage.model_copy(
            update={"skip_broken": True}
        )  # a new one that is broken is left out, and named
        extraction.run(replace(method, stage=reading), photographs, output, work.new)
    with open_features(output) as store:
        if work.features is not None and not has_same_keypoints(work.model, store):
            raise BadInputError(
                f"{output}: not the keypoints of the model in {work.folder}; name the features it was made from by"
                " --map-features, or start again with --overwrite"
            )
    return output


def _as_the_map(config: ExtractConfig, work: Work, output: Path, device: str) -> Method[Any]:
    """The extraction of the map's features, for new images. Raises UsageError, BadInputError for keypoints."""
    assert work.features is not None
    with open_features(work.features) as store:
        described = store.attributes()["config"].get("keypoints_digest", "")
    if config.keypoints is not None and not described:
        raise UsageError(f"--keypoints: the features of {work.folder} detect their own keypoints; leave it out")
    settings = config_of_features(work.features, config.workers, config.keypoints)
    method = extraction.extraction_method(settings.model_copy(update={"masks": config.masks}), device=device)
    if config.keypoints is None:
        return method
    _refuse_other_points(output, config.keypoints, work.new)
    assert method.stage is not None
    one_store = method.stage.model_copy(update={"keypoints_digest": described})  # the map's, whose file is another
    return replace(method, stage=one_store)


def _refuse_other_points(output: Path, keypoints: Path, names: Sequence[str]) -> None:
    """Raise BadInputError where images were described at other keypoints by an earlier run."""
    with open_features(output) as done, open_features(keypoints) as given:
        for name in names:
            if done.has(name) and given.has(name):
                own = {tuple(row) for row in given.keypoints(name).tolist()}
                if not own.issuperset(map(tuple, done.keypoints(name).tolist())):
                    raise BadInputError(f"{output}: {name!r} has other keypoints than {keypoints}; add --overwrite")


def _extract_map(method: Method[Any], work: Work, output: Path, overwrite: bool) -> None:
    for number, (folder, names) in enumerate(names_by_folder(work.files).items()):
        extraction.run(method, folder, output, names, overwrite and number == 0)


def _pair(config: ExtendConfig, work: Work, stored: Path, output: Path, device: str) -> list[Pair]:
    """Pairs of new images with those of the map and each other; for a map without features, also among its images."""
    with open_features(stored) as store:
        new = [name for name in work.new if store.has(name) and store.count(name)]
        old = sorted(image.name for image in work.model.images.values() if image.name not in set(work.gone))
        inputs = digest(*(f"{name} {store.digest(name)}" for name in (*new, *old)), *new, str(work.features is None))
        settings = config.model_copy(update={"matcher": "", "matching": {}, "map": {}, "grow": GrowConfig()})
        if artifact(output, settings, inputs).up_to_date:
            LOGGER.info("pairs: done already")
            return read_pairs(output)
        pairs = _retrieved(config, store, new, old, output, device)
    if work.features is None:
        pairs += covisible_pairs(model_tracks(work.model), config.retrieval.num_matched)
    if pairs:
        write_pairs(output, pairs, settings, {"inputs": inputs, "method": "extension"})
    return pairs


def _retrieved(
    config: ExtendConfig, store: FeatureStore, new: list[str], old: list[str], output: Path, device: str
) -> list[Pair]:
    if not new:
        return []
    generator = np.random.default_rng(config.seed)
    arguments: dict[str, Any] = {"device": device, "spill_folder": output.parent}
    found = pairs_with(store, new, old, config.retrieval, generator, **arguments)
    if len(new) <= config.exhaustive_up_to:
        return found + [Pair(a, b) for index, a in enumerate(new) for b in new[index + 1 :]]
    among = pairs_with(store, new, new, config.retrieval, generator, **arguments)
    return found + list({pair.key(): pair for pair in among if pair.name0 != pair.name1}.values())


def describe(result: ExtendResult) -> list[str]:
    """Summary in a few lines of text."""
    found = result.metrics
    total = len(found["registered"]) + len(found["left_out"])
    lines = [f"{len(found['registered'])} of {total} new photographs are in the map, which had {found['old']}"]
    lines += [f"not in the map: {name}: {reason}" for name, reason in found["left_out"].items()]
    if found.get("rigs"):
        lines.append(f"rigs of the map: {found['rigs']}, with {found['frames']} frames")
    lines += [f"taken out: {some_names(found['pruned'])}"] if found["pruned"] else []
    return [*lines, f"map: {result.sparse / '0'}"]


if __name__ == "__main__":  # worker processes import this file: only the main one may run it
    log.setup()
    print(run(ExtendConfig(), Path(sys.argv[1]), Path(sys.argv[2])).sparse)
