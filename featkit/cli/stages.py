"""`featkit extract`, `pairs`, `match`, `verify`, and the same in shards: `plan` and `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featkit.cli import app as options
from featkit.cli.app import Outcome, RunOptions, fail, verb
from featkit.cli.engine import with_engine
from featkit.core.config import make, merge, overrides
from featkit.core.errors import UsageError
from featkit.core.registry import configured
from featkit.engine import stages
from featkit.engine.plan import EngineConfig, join, read_plan, run_shard
from featkit.engine.stages import describer
from featkit.features import stage as extraction
from featkit.images.read import DecodeConfig
from featkit.io.features import open_features
from featkit.io.lists import read_pairs
from featkit.io.matches import open_matches
from featkit.mapping.cameras import check
from featkit.mapping.database import database_counts
from featkit.mapping.verify import DatabaseConfig, build_database
from featkit.matching import stage as matching
from featkit.pairing import stage as pairing
from featkit.pairing.base import Sources
from featkit.pairing.by_retrieval import given_retrieval

# ----------------------------------------------------------------------------------------------------------------------
# `featkit extract`: images -> features.h5.


EXTRACT_HELP = """Extract local features of all images of a folder.

Example: `featkit extract images/ --out feats.h5 --features rootsift --resize-max 1600`

Pixels that are masked (--masks) or transparent have no keypoints. Stopped at any moment, it goes on where it was when
the same command is run again."""


@verb
@with_engine
def extract_command(
    images: Annotated[Path, typer.Argument(help="Folder of images (searched recursively).")],
    out: options.Out,
    features: options.Features = "rootsift",
    resize_max: options.ResizeMax = None,
    max_keypoints: options.MaxKeypoints = None,
    weights: options.Weights = None,
    masks: options.Masks = None,
    ignore_alpha: options.IgnoreAlpha = False,
    workers: options.Workers = 0,
    skip_broken: options.SkipBroken = False,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    engine: EngineConfig,
    run: RunOptions,
) -> Outcome:
    config = extraction.ExtractConfig(
        features=features,
        decode=DecodeConfig(**options.decode_fields(resize_max, ignore_alpha)),
        workers=workers,
        skip_broken=skip_broken,
        masks=masks,
    )
    changes = overrides(settings or []) | options.given(max_keypoints=max_keypoints, weights=weights)
    job = extraction.ExtractJob.resolve(config, changes, run.device)
    stages.extract(engine, job, images, out, overwrite=overwrite)
    with open_features(out) as store:
        counts = [store.count(name) for name in store.names()]
    data = {"out": str(out), "images": len(counts), "keypoints": sum(counts), "features": features}
    return Outcome(data, [f"{out}: {sum(counts):,} keypoints of {len(counts):,} images"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit pairs`: images or features.h5 -> pairs.txt.


PAIRS_HELP = """Choose which images to match.

Example: `featkit pairs feats.h5 --method retrieval --num 20 --out pairs.txt`

`retrieval` compares the descriptors in feats.h5 (VLAD); all others also take a folder of images. `gps` pairs
photographs taken near each other, by their EXIF or a csv of `name,lat,lon[,alt]`; one without a position is paired with
all. `poses` pairs cameras of a COLMAP model that stand near each other and look the same way, `covisible` those that
see the most points in common.
With --retrieval FILE images are compared by anybody's global descriptors: an h5 file with a group per image that holds
`global_descriptor`, as hloc writes for NetVLAD and others."""


@verb
@with_engine
def pairs_command(
    source: Annotated[Path, typer.Argument(help="Folder of images, or feats.h5.")],
    out: options.Out,
    method: Annotated[
        str, typer.Option(help="auto, exhaustive, sequential, retrieval, gps, poses or covisible.")
    ] = "auto",
    num: Annotated[
        int | None, typer.Option(help="Images each one is paired with.", min=1, show_default="the configuration's")
    ] = None,
    retrieval: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Global descriptors in hloc's layout; twice for two files."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="gps: the photographs of feats.h5, for their EXIF.")
    ] = None,
    gps_file: options.GpsFile = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="poses, covisible: a COLMAP model or a mapped scene.")
    ] = None,
    settings: options.Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make the pairs anew in any case.")] = False,
    *,
    engine: EngineConfig,
    run: RunOptions,
) -> Outcome:
    changes = overrides(settings or [])
    near = {"gps": "num_matched", "poses": "num_matched", "covisible": "num_matched"}
    number_of = {"retrieval": "num_matched", "sequential": "overlap", **near}
    asked = [("--images", images, {"gps"}), ("--gps-file", gps_file, {"gps"}), ("--model", model, {*near} - {"gps"})]
    for option, path, methods in asked:
        if path is not None and method not in methods:
            raise UsageError(f"{option} goes with --method {' or '.join(sorted(methods))}, not with {method}")
    if gps_file is not None:
        changes["file"] = gps_file
    if retrieval:
        if method not in {"auto", "retrieval"}:
            raise UsageError(f"--retrieval compares descriptors; it does not go with --method {method}")
        method = "retrieval"
    if num is not None:
        if method not in number_of:
            raise UsageError(f"--num goes with {' or '.join(number_of)}, not with {method}")
        changes[number_of[method]] = num
    if method == "auto" and changes:
        raise UsageError("--set goes with a named --method")
    chosen: str | pairing.Method = "auto"
    if retrieval:
        chosen = given_retrieval(retrieval, changes)
    elif method != "auto":
        chosen = configured("pairing", method, changes)
    sources = Sources(images or (source if source.is_dir() else None), model)
    pairing.run(
        chosen, source, out, seed=run.seed, device=run.device, overwrite=overwrite, sources=sources,
        describe=describer(engine, out),
    )  # fmt: skip
    pairs = read_pairs(out)
    paired = len({name for pair in pairs for name in (pair.name0, pair.name1)})
    return Outcome(
        {"out": str(out), "pairs": len(pairs), "images": paired, "method": method},
        [f"{out}: {len(pairs):,} pairs of {paired:,} images"],
    )


# ----------------------------------------------------------------------------------------------------------------------
# `featkit match`: features.h5 + pairs.txt -> matches.h5.


MATCH_HELP = """Match the features of image pairs.

Example: `featkit match feats.h5 pairs.txt --out matches.h5 --ratio 0.8`

Stopped at any moment, it goes on where it was when the same command is run again."""


@verb
@with_engine
def match_command(
    features: Annotated[Path, typer.Argument(help="The features file.")],
    pairs: Annotated[Path, typer.Argument(help="The pairs file.")],
    out: options.Out,
    matcher: options.Matcher = "mutual",
    ratio: options.Ratio = None,
    min_score: Annotated[
        float | None, typer.Option(help="Smallest similarity of a match.", min=-1, max=1, show_default="none")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs at a time; changes no result.", min=1, show_default="the configuration's")
    ] = None,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    engine: EngineConfig,
    run: RunOptions,
) -> Outcome:
    changes = overrides(settings or []) | options.given(ratio=ratio, min_score=min_score, batch_size=batch_size)
    built, config = matching.resolve(matcher, changes, run.device)
    stages.match(engine, matcher, built, config, features, pairs, out, device=run.device, overwrite=overwrite)
    with open_matches(out) as store:
        counts = [store.read(pair).count for pair in read_pairs(pairs)]
    data = {"out": str(out), "pairs": len(counts), "matches": sum(counts)}
    return Outcome(data, [f"{out}: {sum(counts):,} matches of {len(counts):,} pairs"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit verify`: features and matches -> a COLMAP database with two-view geometries.


VERIFY_HELP = """Verify matches geometrically, and write a COLMAP database that any mapper takes.

Example: `featkit verify images/ feats.h5 pairs.txt matches.h5 --out database.db --camera-mode single`

Stopped at any moment, it goes on where it was when the same command is run again."""


@verb
@with_engine
def verify_command(
    images: Annotated[Path, typer.Argument(help="Folder of the images, for their cameras.")],
    features: Annotated[Path, typer.Argument(help="The features file.")],
    pairs: Annotated[Path, typer.Argument(help="The pairs file.")],
    matches: Annotated[Path, typer.Argument(help="The matches file.")],
    out: options.Out,
    camera_model: options.CameraModel = None,
    camera_params: options.CameraParams = None,
    camera_mode: Annotated[
        str, typer.Option(help="single, per-folder or per-image.", rich_help_panel=options.CAMERAS)
    ] = "per-image",
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    engine: EngineConfig,
    run: RunOptions,
) -> Outcome:
    camera = {**options.camera_fields(camera_model, camera_params), "mode": camera_mode}
    values = merge({"camera": camera, "verify": {"seed": run.seed}}, overrides(settings or []))
    config = make(DatabaseConfig, values, where="verify")
    check(config.camera)
    verifier = stages.verifier(engine)
    build_database(config, images, features, pairs, matches, out, overwrite=overwrite, verifier=verifier)
    counts = database_counts(out)
    said = f"{out}: {counts['verified_pairs']:,} verified pairs, {counts['inlier_matches']:,} inlier matches"
    return Outcome({"out": str(out), **counts}, [said])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit plan`: a stage cut into shards for a job array.


PLAN_HELP = """\
Cut a stage into shards that any machine can run: extract, pairs, match or verify, each with its own options.

Example: `featkit plan --shards 64 extract images/ --out feats.h5 --features scfeat`

Run one with `featkit run PLAN --shard I` (of SLURM: `sbatch --array=0-63`, I = `$SLURM_ARRAY_TASK_ID`). The planned
command, run again without `plan`, or `featkit run PLAN`, joins them. All machines must see the same files."""
PLAN_SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False}  # what follows is the stage's own
STAGES = ("extract", "pairs", "match", "verify")


def plan_command(
    context: typer.Context,
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="STAGE ARGUMENTS...", help="extract, pairs, match or verify, and its arguments."),
    ],
    shards: Annotated[int, typer.Option(help="How many; 0: by their size.", min=0)] = 0,
) -> None:
    stage, *rest = arguments
    if stage not in STAGES:
        fail(UsageError(f"featkit plan: {stage!r} cannot be planned; one of {', '.join(STAGES)}"))
    root = context.find_root().command
    verb = root.get_command(context, stage)  # type: ignore[attr-defined]
    asked = ["--shards", str(shards)] if shards else []
    with verb.make_context(f"featkit {stage}", [*rest, *asked, "--engine", "plan"]) as inner:
        inner.command.invoke(inner)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit run`: shards of a plan.


RUN_HELP = """Run shards of a plan: one, or all that are left, which are then joined.

Example: `featkit run feats.h5.shards/1c9d0a7e5b3f2468 --shard 3`

A shard that is there is not worked again. One that is stopped leaves nothing half-written."""


@verb
def run_command(
    plan: Annotated[Path, typer.Argument(help="The folder that featkit plan printed.")],
    shard: Annotated[
        int | None, typer.Option(help="Only this one, from 0.", min=0, show_default="all that are left; then join")
    ] = None,
    *,
    run: RunOptions,
) -> Outcome:
    read = read_plan(plan)
    if shard is not None:
        run_shard(read, shard)
        data = {"shard": str(read.shard(shard)), "left": len(read.waiting())}
        return Outcome(data, [f"{read.shard(shard)}: done; {len(read.waiting())} of {len(read.sizes)} shards are left"])
    for number in read.waiting():
        run_shard(read, number)
    output = join(read)
    return Outcome({"out": str(output), "shards": len(read.sizes)}, [f"{output}: {len(read.sizes)} shards joined"])
