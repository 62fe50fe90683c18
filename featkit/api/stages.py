"""From a video or photographs to verified matches: frames, extract, pairs, match, verify, and shards; of files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from featkit.api.options import CAMERAS, Device, GpsFile, Option, Out, Overwrite, Shown, takes
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
from featkit.mapping.cameras import check, check_photographs
from featkit.mapping.database import database_counts
from featkit.mapping.verify import DatabaseConfig, build_database
from featkit.matching.config import MatchWith, MutualConfig
from featkit.pairing import stage as pairing
from featkit.pairing.base import Sources
from featkit.pairing.by_retrieval import given_retrieval
from featkit.pairing.stage import PairWith

NAMED = "the configuration's"


def extract_options(at: str = "") -> dict[str, Option]:
    """The options of extraction; at: where a configuration holds its ExtractConfig, as "extract."."""
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
        "ignore_alpha": Option(f"{at}decode.min_alpha", flag=0, help="Keypoints in transparent pixels too."),
        "panoramas": Option(f"{at}panoramas"),
        "workers": Option(f"{at}workers"),
        "skip_broken": Option(f"{at}skip_broken"),
    }


def matcher_options(panel: str | None = None) -> dict[str, Option]:
    """A matcher, and the ratio test that most have."""
    ratio = Option("matching.ratio", of=MutualConfig, unset="the matcher's", panel=panel)
    return {"matcher": Option("matcher", panel=panel), "ratio": ratio}


def camera_options(at: str) -> dict[str, Option]:
    """The options of cameras; at: where a configuration holds its CameraConfig, as "map.camera."."""
    return {
        "camera_model": Option(f"{at}model", panel=CAMERAS),
        "camera_params": Option(f"{at}params", panel=CAMERAS),
        "camera_mode": Option(f"{at}mode", panel=CAMERAS),
    }


@takes(
    videos.FramesConfig,
    "",
    overlap=Option("overlap"),
    fps=Option("fps"),
    max_frames=Option("max_frames"),
    resize_max=Option("resize_max"),
)
def frames(
    video: Annotated[Path, Shown(help="The video: mp4, mov, avi, mkv, webm, ...")],
    out: Annotated[Path, Shown("--out", "-o", help="Folder for the frames and frames.csv.")],
    *,
    config: videos.FramesConfig,
    overwrite: Overwrite = False,
) -> videos.Frames:
    """Write sharp frames of a video that overlap as a map needs. Raises featkit's errors."""
    return videos.run(config, video, out, overwrite=overwrite)


@dataclass(frozen=True)
class Extracted:
    """A features file, and what it holds."""

    out: Path
    images: int
    keypoints: int
    features: str


@takes(ExtractConfig, "extractor", **extract_options())
def extract(
    images: Annotated[Path, Shown(help="Folder of images (searched recursively).")],
    out: Out,
    *,
    config: ExtractConfig,
    overwrite: Overwrite = False,
    device: Device = "auto",
    engine: EngineConfig = LOCAL,
) -> Extracted:
    """Extract local features of all images of a folder; what is done already is skipped. Raises featkit's errors."""
    method = extraction.with_intensities(extraction.extraction(config, device=device), images, out, overwrite=overwrite)
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
    """A pairs file, how many pairs of how many images it holds, and how they were chosen."""

    out: Path
    pairs: int
    images: int
    method: str


NUMBER_OF = {
    "retrieval": "num_matched",
    "sequential": "overlap",
    "gps": "num_matched",
    "poses": "num_matched",
    "covisible": "num_matched",
}
METHODS = "auto, exhaustive, sequential, retrieval, gps, poses or covisible."


@takes(PairWith, "pairing", method=Option("pairs", help=METHODS), seed=Option("seed"))
def pairs(
    source: Annotated[Path, Shown(help="Folder of images, or feats.h5.")],
    out: Out,
    *,
    config: PairWith,
    num: Annotated[int | None, Shown(help="Images each one is paired with.", unset="the configuration's")] = None,
    retrieval: Annotated[
        list[Path] | None,
        Shown(metavar="FILE", help="Global descriptors in hloc's layout; twice for two files."),
    ] = None,
    images: Annotated[
        Path | None, Shown(metavar="DIR", help="gps: the photographs of feats.h5, for their EXIF.")
    ] = None,
    gps_file: GpsFile = None,
    model: Annotated[
        Path | None, Shown(metavar="DIR", help="poses, covisible: a COLMAP model or a mapped scene.")
    ] = None,
    overwrite: Annotated[bool, Shown("--overwrite", help="Make the pairs anew in any case.")] = False,
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
        if method not in NUMBER_OF:
            raise UsageError(f"--num goes with {' or '.join(NUMBER_OF)}, not with {method}")
        changes[NUMBER_OF[method]] = num
    if method == "auto" and changes:
        raise UsageError("--set goes with a named --method")
    chosen: Method
    if retrieval:
        chosen = given_retrieval(retrieval, changes)
    else:
        count = len(pairing.image_names(source)) if method == "auto" else 0
        chosen = pairing.choose(method, count, changes, device, config.auto)
    sources = Sources(images or (source if source.is_dir() else None), model, stages.describer(engine, out))
    pairing.run(chosen, source, out, sources=sources, seed=config.seed, overwrite=overwrite)
    found = read_pairs(out)
    return Paired(out, len(found), len({name for pair in found for name in (pair.name0, pair.name1)}), method)


@dataclass(frozen=True)
class Matched:
    """A matches file, and what it holds."""

    out: Path
    pairs: int
    matches: int


@takes(
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
    features: Annotated[Path, Shown(help="The features file.")],
    pairs: Annotated[Path, Shown(help="The pairs file.")],
    out: Out,
    *,
    config: MatchWith,
    overwrite: Overwrite = False,
    device: Device = "auto",
    engine: EngineConfig = LOCAL,
) -> Matched:
    """Match the features of image pairs; what is done already is skipped. Raises featkit's errors."""
    method = resolve("matcher", config.matcher, config.matching, device).ready()
    stages.match(method, features, pairs, out, overwrite=overwrite, engine=engine)
    with open_matches(out) as store:
        spelled = Spelling(lambda: _names(features))
        counts = [store.read(pair).count for pair in read_pairs(pairs, spelled=(spelled, spelled))]
    return Matched(out, len(counts), sum(counts))


def _names(features: Path) -> list[str]:
    with open_features(features) as store:
        return store.names()


@dataclass(frozen=True)
class Verified:
    """A COLMAP database, and its counts by name."""

    out: Path
    counts: dict[str, int]


@takes(DatabaseConfig, **camera_options("camera."), seed=Option("verify.seed"))
def verify(
    images: Annotated[Path, Shown(help="Folder of the images, for their cameras.")],
    features: Annotated[Path, Shown(help="The features file.")],
    pairs: Annotated[Path, Shown(help="The pairs file.")],
    matches: Annotated[Path, Shown(help="The matches file (.h5, or COLMAP's text as .txt).")],
    out: Out,
    *,
    config: DatabaseConfig,
    overwrite: Overwrite = False,
    engine: EngineConfig = LOCAL,
) -> Verified:
    """Verify matches geometrically, and write a COLMAP database that any mapper takes. Raises featkit's errors."""
    check(config.camera)
    check_photographs(config.camera, images, _names(features))
    verifier = stages.verifier(engine)
    build_database(config, images, features, pairs, matches, out, overwrite=overwrite, verifier=verifier)
    return Verified(out, database_counts(out))


@dataclass(frozen=True)
class Ran:
    """A plan after shards of it ran. shard: the one that was asked for; out: the file of all, once they are joined."""

    shard: Path | None
    left: int
    shards: int
    out: Path | None


@takes(None)
def run(
    plan: Annotated[Path, Shown(help="The folder that featkit plan printed.")],
    *,
    shard: Annotated[
        int | None, Shown(help="Only this one, from 0.", low=0, unset="all that are left; then join")
    ] = None,
) -> Ran:
    """Run shards of a plan: one, or all that are left, which are then joined. Raises featkit's errors."""
    read = read_plan(plan)
    if shard is not None:
        run_shard(read, shard)
        return Ran(read.shard(shard), len(read.waiting()), len(read.sizes), None)
    for number in read.waiting():
        run_shard(read, number)
    return Ran(None, 0, len(read.sizes), join(read))
