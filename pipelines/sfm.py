"""From images to a map, step by step. `featkit reconstruct` runs this.

Copy it, change what you like, and run it: `python sfm.py scene/`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featkit.core import log
from featkit.core.config import Later, Runtime, Share, digest
from featkit.core.errors import EmptyResultError, UsageError
from featkit.core.imports import import_ahead
from featkit.core.log import LOGGER, timed
from featkit.core.registry import Method, resolve
from featkit.core.run_file import run_text
from featkit.core.types import Pose
from featkit.engine import stages
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.features.stage import ExtractConfig, extraction_method, prepare_workers, with_intensity_range
from featkit.images.exif import some_names
from featkit.images.listing import list_images
from featkit.io.artifact import write_text
from featkit.io.atomic import read_stamp, refuse_foreign
from featkit.io.features import extractor_name, open_features
from featkit.io.lists import Intrinsics, Spelling, describe_pairs, read_pairs, read_poses, respelled, write_pairs
from featkit.localization.stage import is_of_another_map
from featkit.mapping import stage as map_stage
from featkit.mapping.cameras import SPHERE, check_camera_config, check_photographs, listed_intrinsics
from featkit.mapping.model import refuse_other_models
from featkit.mapping.outcome import rig_warnings, warn_if_few
from featkit.mapping.reference import Reference, read_reference
from featkit.mapping.rigs import FOLDERS, Rig, add_rig_intrinsics, in_order, read_rigs, shared_camera_keys
from featkit.mapping.scene import image_folder, output_folder, usable_images
from featkit.mapping.stage import MapConfig
from featkit.mapping.verify import build_database
from featkit.matching.config import MatchWith
from featkit.pairing import stage as pairing
from featkit.pairing.stage import PairWith, Sources
from featkit.report.maps import map_metrics, reconstruction_report

RUN = "run.yaml"


class SfmConfig(PairWith, MatchWith):
    """Everything that determines a map."""

    extract: ExtractConfig = ExtractConfig()
    """Feature extraction, and how images are read."""
    map: MapConfig = MapConfig()
    """Cameras, geometric verification, mapping."""
    rig: Later[str | None] = None
    """Cameras on one rig: a rig.json in COLMAP's format, or "folders": equal names or times in sibling folders."""
    min_registered: Runtime[Share] = 0.0
    """Minimum share of images that must be registered; otherwise the command fails, after writing everything."""


@dataclass(frozen=True)
class SfmResult:
    """Output locations and metrics."""

    output: Path
    sparse: Path
    report: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class SceneInput:
    """Photographs to map, and what is known about them. without_pose: those that a reference leaves out."""

    images: Path
    names: list[str]
    without_pose: list[str]
    reference: Reference | None
    truth: dict[str, Pose] | None
    intrinsics: dict[str, Intrinsics] | None
    rigs: tuple[Rig, ...]


def run(
    config: SfmConfig,
    scene: Path,
    output: Path | None = None,
    *,
    reference: Path | None = None,
    truth: Path | None = None,
    intrinsics: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    engine: EngineConfig = LOCAL,
    save_config: bool = False,
) -> SfmResult:
    """Map a folder of images. Steps that are complete and up to date are skipped.

    scene: a folder with images/, or of images. reference: a COLMAP model or poses.txt to triangulate with instead of
    mapping; only its images are used. truth: poses.txt to compare with. intrinsics: list of images with their cameras.
    engine: where extraction, matching and verification run. save_config: write run.yaml, with which the run can be
    repeated. Raises featkit's errors.
    """
    images = image_folder(scene)
    output = output_folder(scene, output)
    _refuse_foreign(output, config, save_config)
    given = _read_input(config, images, reference, truth, intrinsics)
    names = given.names
    extractor = with_intensity_range(
        extraction_method(_with_panoramas(config), device=device), images, output / "features.h5", names, overwrite
    )
    is_new = engine.name == "local" and not (output / "features.h5").exists()
    if is_new:
        prepare_workers(extractor)
    pair_list = Path(config.pairs) if config.pairs.endswith(".txt") else None
    if pair_list is not None:
        read_pairs(pair_list)  # fails early if the list is wrong
    model = reference if reference is not None and reference.is_dir() else None
    describer = stages.describer(engine, output / "pairs.txt")
    sources = Sources(images, model, describer, [in_order(rig) for rig in given.rigs])
    pairs_by = None if pair_list else pairing.choose(config.pairs, len(names), config.pairing, device, config.auto)
    if pairs_by is not None:
        pairing.check_sources(pairs_by, names, sources)
    matcher = resolve("matcher", config.matcher, config.matching, device).ready()
    seconds: dict[str, float] = {}

    if is_new:
        import_ahead("torch")  # a second, which matching would wait for; worker processes extract
    with timed("extract", seconds):
        features = stages.extract(extractor, images, output / "features.h5", names, overwrite=overwrite, engine=engine)
    with timed("pairs", seconds):
        pairs = pair_list or output / "pairs.txt"
        if pairs_by is not None:
            pairing.run(pairs_by, features, pairs, names=names, sources=sources, seed=config.seed, overwrite=overwrite)
        else:
            pairs = _usable_pairs(pairs, list_images(images), features, output / "usable_pairs.txt")
    with timed("match", seconds):
        matches = stages.match(matcher, features, pairs, output / "matches.h5", overwrite=overwrite, engine=engine)
    with timed("verify", seconds):
        database = build_database(
            map_stage.database_config(config.map), images, features, pairs, matches, output / "database.db",
            names=names, reference=given.reference, intrinsics=given.intrinsics, rigs=given.rigs, overwrite=overwrite,
            verifier=stages.verifier(engine),
        )  # fmt: skip
    with timed("map", seconds):
        sparse = map_stage.build_map(
            config.map, images, database, output / "sparse", reference=given.reference, overwrite=overwrite
        )
    paired = {} if pairs_by is None else pairs_by.config.result_fields()
    resolved = {"extract": extractor.config, "pairing": paired, "matching": matcher.config.result_fields()}
    ran = config.model_copy(update=resolved)
    if save_config:
        files = {"reference": reference, "truth": truth, "intrinsics": intrinsics}
        write_text(output / RUN, run_text(output / RUN, "reconstruct", _portable(config, ran, pairs_by), files))
    metrics = _record(ran, given, output, database, seconds, overwrite)
    warn_if_few("map", metrics["registered"], len(names), extractor_name(extractor.config.result_fields()))
    result = SfmResult(output, sparse, output / "report.html", metrics)
    _warn(result, config.min_registered)
    return result


def _read_input(
    config: SfmConfig, images: Path, reference: Path | None, truth: Path | None, intrinsics: Path | None
) -> SceneInput:
    """Read and check all that is given, before any work. Raises featkit's errors."""
    check_camera_config(config.map.camera)
    if reference is not None and config.map.mapper != "incremental":
        raise UsageError(
            f"--reference gives the poses, so nothing is left for --mapper {config.map.mapper}; leave it out"
        )
    known = None if reference is None else read_reference(reference, config.map.camera)
    true_poses = None if truth is None else read_poses(truth)
    names, without_pose = usable_images(images, None if known is None else known.poses.keys())
    known = None if known is None else known.spelled_as([*names, *without_pose])
    true_poses = None if true_poses is None else respelled(true_poses, lambda: names)
    listed = _listed(intrinsics, names, known)
    rigs = _rigs(config, names, reference)
    listed = add_rig_intrinsics(rigs, images, listed)
    if known is None or known.cameras is None:
        check_photographs(config.map.camera, images, names, listed, shared_camera_keys(rigs))
    return SceneInput(images, names, without_pose, known, true_poses, listed, rigs)


def _record(
    ran: SfmConfig, given: SceneInput, output: Path, database: Path, seconds: dict[str, float], overwrite: bool
) -> dict[str, Any]:
    """Write metrics.json and report.html, unless they are of this very map; returns the metrics."""
    report, record, sparse = output / "report.html", output / "metrics.json", output / "sparse"
    truths = [str(item) for item in (given.truth or {}).items()]
    made_from = digest(
        (output / "sparse.json").read_text(), ran.canonical_json(), *given.names, "", *given.without_pose, *truths
    )
    metrics = read_stamp(record) or {}
    if metrics.get("made_from") == made_from and report.is_file() and not overwrite:
        return metrics
    with timed("report", seconds):
        metrics = map_metrics(
            sparse, database, given.names, given.truth,
            align=given.reference is None, without_pose=given.without_pose, rigs=given.rigs,
        )  # fmt: skip
        metrics["warnings"] += rig_warnings(database, sparse) if given.rigs else []
        metrics |= {"seconds": seconds, "made_from": made_from, "config": ran.result_fields()}
        reconstruction_report(ran, metrics, given.images, output / "features.h5", database, sparse, report)
    write_text(record, json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    return metrics


def _listed(intrinsics: Path | None, names: list[str], known: Reference | None) -> dict[str, Intrinsics] | None:
    """Cameras from a list. Raises UsageError if a reference has cameras too."""
    if intrinsics is None:
        return None
    if known is not None and known.cameras is not None:
        raise UsageError(
            "--intrinsics: the reference has its cameras (its model's, or camera.txt); leave out one of both"
        )
    return listed_intrinsics(intrinsics, names)


def _with_panoramas(config: SfmConfig) -> ExtractConfig:
    """How features are extracted: where the camera is a sphere, every photograph is a panorama."""
    if config.map.camera.model != SPHERE or config.extract.panoramas == "whole":
        return config.extract
    return config.extract.model_copy(update={"all_panoramas": True})


def _rigs(config: SfmConfig, names: list[str], reference: Path | None) -> tuple[Rig, ...]:
    """The rigs that were asked for. Raises UsageError with a reference, whose poses stay as they are."""
    if config.rig is None:
        return ()
    if reference is not None:
        raise UsageError("--rig: --reference gives the poses of all photographs; leave out one of both")
    return read_rigs(config.rig, names, config.map.rigs)


def _warn(result: SfmResult, min_registered: float) -> None:
    """Log what a user must know about the map. Raises EmptyResultError if too few images are registered."""
    metrics = result.metrics
    for warning in metrics["warnings"]:
        LOGGER.warning("map: %s", warning)
    poses = result.output / "localize" / "poses.txt"
    if is_of_another_map(poses, result.sparse / "0"):
        LOGGER.warning("map: %s is of an earlier map, in another frame; localize again", poses)
    if metrics["registered"] < min_registered * metrics["images"]:
        raise EmptyResultError(
            f"{result.sparse}: {metrics['registered']} of {metrics['images']} photographs are in the map, fewer than"
            f" the share of {min_registered:g} that was asked for (--min-registered); map and report are there"
        )


def _usable_pairs(given: Path, listed: Sequence[str], features: Path, output: Path) -> Path:
    """The user's pairs without photographs that were left out: unreadable, masked or not in the reference.

    given, if none was; otherwise the others are written to `output`. A name of no photograph stays: it is a mistake.
    """
    with open_features(features) as store:
        left_out = set(listed) - set(store.names())
        pairs = read_pairs(given, spelled=(Spelling(store.names),) * 2)
    usable = [pair for pair in pairs if not {pair.name0, pair.name1} & left_out]
    if len(usable) == len(pairs):
        return given
    LOGGER.warning(
        "%s: %d of %d pairs are of photographs that are left out (%s)",
        *(given, len(pairs) - len(usable), len(pairs)),
        some_names(sorted(left_out & {name for pair in pairs for name in (pair.name0, pair.name1)})),
    )
    return write_pairs(output, usable)


def _portable(config: SfmConfig, ran: SfmConfig, pairs_by: Method[Any] | None) -> SfmConfig:
    """The configuration that ran, with the pairing chosen by "auto", and absolute file paths."""
    if pairs_by is None:
        return _with_full_paths(ran, str(Path(config.pairs).resolve()), {})
    return _with_full_paths(ran, pairs_by.name, {**config.pairing, **pairs_by.config.result_fields()})


def _with_full_paths(ran: SfmConfig, pairs: str, pairing: dict[str, Any]) -> SfmConfig:
    full = {name: str(Path(value).resolve()) for name, value in pairing.items() if isinstance(value, Path)}
    files = {"masks": ran.extract.masks, "keypoints": ran.extract.keypoints}
    extract = ran.extract.model_copy(update={n: None if path is None else path.resolve() for n, path in files.items()})
    rig = ran.rig if ran.rig in (None, FOLDERS) else str(Path(ran.rig).resolve())
    changed = {"pairs": pairs, "pairing": {**pairing, **full}, "extract": extract, "rig": rig}
    return ran.model_copy(update=changed)


def _refuse_foreign(output: Path, config: SfmConfig, save_config: bool) -> None:
    """Raise BadInputError, before starting, if files with the outputs' names exist that featkit did not make."""
    names = ("features.h5", "matches.h5", "database.db", "database.json", "sparse.json", "report.html", "metrics.json")
    pairs = output / "pairs.txt"
    made_otherwise = not config.pairs.endswith(".txt") and describe_pairs(pairs) is None
    refuse_foreign(*(output / name for name in names), *([pairs] if made_otherwise else []))
    if save_config:
        refuse_foreign(output / RUN)
    refuse_other_models(output / "sparse")


if __name__ == "__main__":  # worker processes import this file: only the main one may run it
    log.setup()
    print(run(SfmConfig(), Path(sys.argv[1])).report)
