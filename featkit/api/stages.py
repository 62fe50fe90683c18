"""The stages from a video or photographs to verified matches: frames, extract, pairs, match, verify; and shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from featkit.api.options import CAMERAS, Device, GpsFile, Option, Out, Overwrite, Param, with_options
from featkit.core.errors import EmptyResultError, UsageError
from featkit.core.registry import Method, resolve
from featkit.engine import stages
from featkit.engine.plan import LOCAL, EngineConfig, join, read_plan, run_shard
from featkit.features import stage as extraction
from featkit.features.sift import SiftConfig
from featkit.features.stage import ExtractConfig
from featkit.images import video as videos
from featkit.io.features import open_features
from featkit.io.lists import Spelling, read_pairs
from featkit.io.matches import open_matches
from featkit.mapping.cameras import check_camera_config, check_photographs
from featkit.mapping.database import database_counts
from featkit.mapping.verify import DatabaseConfig, build_database
from featkit.matching.config import MatchWith, MutualConfig
from featkit.pairing import stage as pairing
from featkit.pairing.by_retrieval import retrieval_by_global_descriptors
from featkit.pairing.stage import PairWith, Sources

NAMED = "the configuration's"


def extract_options(at: str = "") -> dict[str, Option]:
    """Options of extraction. at: prefix of the ExtractConfig's fields in the configuration, such as "extract."."""
    return {
        "features": Option(f"{at}features"),
        "resize_max": Option(f"{at}decode.resize_max"),
        "max_keypoints": Option(
            f"{at}extractor.max_keypoints",
            of=SiftConfig,
            unset=NAMED,
            help="Maximum keypoints per image.",
        ),
        "weights": Option(
            f"{at}extractor.weights",
            kind=str,
            unset=NAMED,
            help="Weights by name, or a file (.safetensors; .pth of a published network).",
        ),
        "masks": Option(f"{at}masks", metavar="DIR", unset="none"),
        "keypoints": Option(f"{at}keypoints", metavar="FILE"),
        "ignore_alpha": Option(f"{at}decode.min_alpha", flag=0, help="Detect keypoints in transparent pixels too."),
        "panoramas": Option(f"{at}panoramas"),
        "workers": Option(f"{at}workers"),
        "skip_broken": Option(f"{at}skip_broken"),
    }


def matcher_options(panel: str | None = None) -> dict[str, Option]:
    """Options of matching: the matcher, and the ratio test that most matchers have."""
    ratio = Option("matching.ratio", of=MutualConfig, unset="the matcher's", panel=panel)
    return {"matcher": Option("matcher", panel=panel), "ratio": ratio}


def camera_options(at: str) -> dict[str, Option]:
    """Options of cameras. at: prefix of the CameraConfig's fields in the configuration, such as "map.camera."."""
    return {
        "camera_model": Option(f"{at}model", panel=CAMERAS),
        "camera_params": Option(f"{at}params", panel=CAMERAS),
        "camera_mode": Option(f"{at}mode", panel=CAMERAS),
    }


@with_options(
    videos.FramesConfig,
    "",
    overlap=Option("overlap"),
    fps=Option("fps"),
    max_frames=Option("max_frames"),
    resize_max=Option("resize_max"),
)
def frames(
    video: Annotated[Path, Param(help="The video: mp4, mov, avi, mkv, webm, ...")],
    out: Annotated[Path, Param("--out", "-o", help="Folder for the frames and frames.csv.")],
    *,
    config: videos.FramesConfig,
    overwrite: Overwrite = False,
) -> videos.VideoFrames:
    """Write sharp frames of a video with enough overlap for mapping. Raises featkit's errors."""
    return videos.run(config, video, out, overwrite=overwrite)


@dataclass(frozen=True)
class Extracted:
    """A features file and its counts."""

    out: Path
    images: int
    keypoints: int
    features: str


@with_options(ExtractConfig, "extractor", **extract_options())
def extract(
    images: Annotated[Path, Param(help="Folder of images (searched recursively).")],
    out: Out,
    *,
    config: ExtractConfig,
    overwrite: Overwrite = False,
    device: Device = "auto",
    engine: EngineConfig = LOCAL,
) -> Extracted:
    """Extract local features of all images in a folder; finished images are skipped. Raises featkit's errors."""
    method = extraction.with_intensity_range(
        extraction.extraction_method(config, device=device), images, out, overwrite=overwrite
    )
    stages.extract(method, images, out, overwrite=overwrite, engine=engine)
    with open_features(out) as store:
        counts = [store.count(name) for name in store.names()]
    if not any(counts):
        source = (
            "no texture, or all of it masked" if config.keypoints is None else f"{config.keypoints} has none inside"
        )
        raise EmptyResultError(f"{images}: not one keypoint in {len(counts)} images ({source})")
    return Extracted(out, len(counts), sum(counts), config.features)


@dataclass(frozen=True)
class Paired:
    """A pairs file, its numbers of pairs and images, and the pairing method."""

    out: Path
    pairs: int
    images: int
    method: str


NUM_FIELDS = {
    "retrieval": "num_matched",
    "sequential": "overlap",
    "gps": "num_matched",
    "poses": "num_matched",
    "covisible": "num_matched",
}
METHODS = "auto, exhaustive, sequential, retrieval, gps, poses or covisible."


@with_options(PairWith, "pairing", method=Option("pairs", help=METHODS), seed=Option("seed"))
def pairs(
    source: Annotated[Path, Param(help="Folder of images, or feats.h5.")],
    out: Out,
    *,
    config: PairWith,
    num: Annotated[
        int | None, Param(help="Number of images each image is paired with.", unset="the configuration's")
    ] = None,
    retrieval: Annotated[
        list[Path] | None,
        Param(metavar="FILE", help="Global descriptors in hloc's layout; repeat the option for two files."),
    ] = None,
    images: Annotated[
        Path | None, Param(metavar="DIR", help="gps: the photographs of feats.h5, for their EXIF.")
    ] = None,
    gps_file: GpsFile = None,
    model: Annotated[
        Path | None, Param(metavar="DIR", help="poses, covisible: a COLMAP model or a mapped scene.")
    ] = None,
    overwrite: Annotated[bool, Param("--overwrite", help="Choose pairs again even if the file is up to date.")] = False,
    device: Device = "auto",
    engine: EngineConfig = LOCAL,
) -> Paired:
    """Choose which images to match. Raises featkit's errors."""
    method = config.pairs
    if retrieval and method not in {"auto", "retrieval"}:
        raise UsageError(f"--retrieval compares descriptors; it does not go with --method {method}")
    for option, path, methods in (
        ("--images", images, {"gps"}),
        ("--gps-file", gps_file, {"gps"}),
        ("--model", model, {"poses", "covisible"}),
    ):
        if path is not None and method not in methods:
            raise UsageError(f"{option} goes with --method {' or '.join(sorted(methods))}, not with {method}")
    method = "retrieval" if retrieval else method
    changes = dict(config.pairing) | ({} if gps_file is None else {"file": gps_file})
    if num is not None:
        if method not in NUM_FIELDS:
            raise UsageError(f"--num goes with {' or '.join(NUM_FIELDS)}, not with {method}")
        changes[NUM_FIELDS[method]] = num
    if method == "auto" and changes:
        raise UsageError("--set goes with a named --method")
    chosen: Method
    if retrieval:
        chosen = retrieval_by_global_descriptors(retrieval, changes)
    else:
        count = len(pairing.image_names(source)) if method == "auto" else 0
        chosen = pairing.choose(method, count, changes, device, config.auto)
    sources = Sources(images or (source if source.is_dir() else None), model, stages.describer(engine, out))
    pairing.run(chosen, source, out, sources=sources, seed=config.seed, overwrite=overwrite)
    found = read_pairs(out)
    return Paired(out, len(found), len({name for pair in found for name in (pair.name0, pair.name1)}), method)


@dataclass(frozen=True)
class Matched:
    """A matches file and its counts."""

    out: Path
    pairs: int
    matches: int


@with_options(
    MatchWith,
    "matching",
    **matcher_options(),
    min_score=Option("matching.min_score", of=MutualConfig),
    batch_size=Option(
        "matching.batch_size",
        of=MutualConfig,
        unset=NAMED,
    ),
)
def match(
    features: Annotated[Path, Param(help="The features file.")],
    pairs: Annotated[Path, Param(help="The pairs file.")],
    out: Out,
    *,
    config: MatchWith,
    overwrite: Overwrite = False,
    device: Device = "auto",
    engine: EngineConfig = LOCAL,
) -> Matched:
    """Match the features of image pairs; finished pairs are skipped. Raises featkit's errors."""
    method = resolve("matcher", config.matcher, config.matching, device).ready()
    stages.match(method, features, pairs, out, overwrite=overwrite, engine=engine)
    with open_matches(out) as store:
        spelled = Spelling(lambda: _stored_names(features))
        counts = [store.read(pair).count for pair in read_pairs(pairs, spelled=(spelled, spelled))]
    return Matched(out, len(counts), sum(counts))


def _stored_names(features: Path) -> list[str]:
    with open_features(features) as store:
        return store.names()


@dataclass(frozen=True)
class Verified:
    """A COLMAP database and its counts by name."""

    out: Path
    counts: dict[str, int]


@with_options(DatabaseConfig, **camera_options("camera."), seed=Option("verify.seed"))
def verify(
    images: Annotated[Path, Param(help="Folder of the images, from which cameras are read.")],
    features: Annotated[Path, Param(help="The features file.")],
    pairs: Annotated[Path, Param(help="The pairs file.")],
    matches: Annotated[Path, Param(help="The matches file (.h5, or COLMAP's text format as .txt).")],
    out: Out,
    *,
    config: DatabaseConfig,
    overwrite: Overwrite = False,
    engine: EngineConfig = LOCAL,
) -> Verified:
    """Verify matches geometrically and write a COLMAP database for any mapper. Raises featkit's errors."""
    check_camera_config(config.camera)
    check_photographs(config.camera, images, _stored_names(features))
    verifier = stages.verifier(engine)
    build_database(config, images, features, pairs, matches, out, overwrite=overwrite, verifier=verifier)
    return Verified(out, database_counts(out))


@dataclass(frozen=True)
class PlanProgress:
    """State of a plan after running shards. shard: the requested one's file; out: the joined file, once there is one.

    left: number of shards not run yet.
    """

    shard: Path | None
    left: int
    shards: int
    out: Path | None


@with_options(None)
def run(
    plan: Annotated[Path, Param(help="The folder that featkit plan printed.")],
    *,
    shard: Annotated[
        int | None, Param(help="Run only this shard, from 0.", low=0, unset="all remaining; then join")
    ] = None,
) -> PlanProgress:
    """Run one shard of a plan, or all remaining shards and join them. Raises featkit's errors."""
    read = read_plan(plan)
    if shard is not None:
        run_shard(read, shard)
        return PlanProgress(read.shard(shard), len(read.waiting()), len(read.sizes), None)
    for number in read.waiting():
        run_shard(read, number)
    return PlanProgress(None, 0, len(read.sizes), join(read))
