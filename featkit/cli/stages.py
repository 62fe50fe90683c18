"""`featkit frames`, `extract`, `pairs`, `match` and `verify`; `plan` and `run` do the same in shards."""

from __future__ import annotations

from typing import Annotated

import typer

from featkit.api import stages as api
from featkit.cli.app import Outcome, fail
from featkit.cli.command import command
from featkit.core.errors import UsageError
from featkit.images.video import VideoFrames

# ----------------------------------------------------------------------------------------------------------------------
# `featkit frames`: a video -> images.


FRAMES_HELP = """Take sharp frames with a target overlap out of a video.

Example: `featkit frames walk.mp4 --out scene/images`

Image motion is tracked from frame to frame. When the overlap with the previous kept frame falls to --overlap, the
sharpest frame nearby is kept: none while the camera stands still, more while it moves fast. With --fps, the sharpest
frame of each time interval is kept instead. frames.csv lists names, times in seconds, frame numbers, sharpness and
overlap. The rotation that phones record is applied. From a truncated file the readable frames are used.
Then map them: `featkit reconstruct scene/ --pairs sequential`."""


@command(api.frames)
def frames_command(done: VideoFrames) -> Outcome:
    data = {"out": str(done.out), "frames": done.frames, "read": done.read, "duration_s": done.duration_s}
    kept = f"{done.frames:,} of {done.read:,} frames in {done.duration_s:.1f} s"
    cut = ", as far as the file can be read" if done.is_cut_off else ""
    return Outcome({**data, "is_cut_off": done.is_cut_off}, [f"{done.out}: {kept}{cut}; times in frames.csv"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit extract`: images -> features.h5.


EXTRACT_HELP = """Extract local features of all images of a folder.

Example: `featkit extract images/ --out feats.h5 --features rootsift --resize-max 1600`

There are no keypoints in masked (--masks) or transparent pixels. If stopped, run the same command again to resume."""


@command(api.extract)
def extract_command(done: api.Extracted) -> Outcome:
    data = {"out": str(done.out), "images": done.images, "keypoints": done.keypoints, "features": done.features}
    return Outcome(data, [f"{done.out}: {done.keypoints:,} keypoints of {done.images:,} images"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit pairs`: images or features.h5 -> pairs.txt.


PAIRS_HELP = """Choose which images to match.

Example: `featkit pairs feats.h5 --method retrieval --num 20 --out pairs.txt`

`retrieval` compares the descriptors in feats.h5 (VLAD); all other methods also take a folder of images. `gps` pairs
photographs taken near each other, by their EXIF or a csv of `name,lat,lon[,alt]`; a photograph without a position is
paired with all. `poses` pairs cameras of a COLMAP model that are close to each other and look in similar directions,
`covisible` those with the most points in common. `sequential` pairs each image with the next ones in name order; with
`--set loop_closure=5` (feats.h5) also with similar images from other times, with `--set across_cameras=true` across the
cameras of a rig (cam0/0001.jpg, cam1/0001.jpg).
With --retrieval FILE images are compared by precomputed global descriptors: an h5 file with a group per image that
holds `global_descriptor`, as hloc writes for NetVLAD and others."""


@command(api.pairs)
def pairs_command(done: api.Paired) -> Outcome:
    data = {"out": str(done.out), "pairs": done.pairs, "images": done.images, "method": done.method}
    return Outcome(data, [f"{done.out}: {done.pairs:,} pairs of {done.images:,} images"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit match`: features.h5 + pairs.txt -> matches.h5.


MATCH_HELP = """Match the features of image pairs.

Example: `featkit match feats.h5 pairs.txt --out matches.h5 --ratio 0.8`

If stopped, run the same command again to resume."""


@command(api.match)
def match_command(done: api.Matched) -> Outcome:
    data = {"out": str(done.out), "pairs": done.pairs, "matches": done.matches}
    return Outcome(data, [f"{done.out}: {done.matches:,} matches of {done.pairs:,} pairs"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit verify`: features and matches -> a COLMAP database with two-view geometries.


VERIFY_HELP = """Verify matches geometrically and write a COLMAP database for any mapper.

Example: `featkit verify images/ feats.h5 pairs.txt matches.h5 --out database.db --camera-mode single`

Features and matches may come from other programs: hloc's, also without descriptors, or COLMAP's text format of matches
(a .txt: two names, a line per match with both indices, an empty line). Indices are checked against the keypoints.
If stopped, run the same command again to resume."""


@command(api.verify)
def verify_command(done: api.Verified) -> Outcome:
    found = f"{done.counts['verified_pairs']:,} verified pairs, {done.counts['inlier_matches']:,} inlier matches"
    return Outcome({"out": str(done.out), **done.counts}, [f"{done.out}: {found}"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit plan`: split a stage into shards for a job array.


PLAN_HELP = """\
Split a stage into shards that any machine can run: extract, pairs, match or verify, with its own options.

Example: `featkit plan --shards 64 extract images/ --out feats.h5 --features scfeat`

Run a shard with `featkit run PLAN --shard I` (with SLURM: `sbatch --array=0-63`, I = `$SLURM_ARRAY_TASK_ID`). Then
`featkit run PLAN`, or the command without `plan`, joins the shards. All machines must see the same files."""
PLAN_SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False}  # the stage's options follow
STAGES = ("extract", "pairs", "match", "verify")


def plan_command(
    context: typer.Context,
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="STAGE ARGUMENTS...", help="extract, pairs, match or verify, and its arguments."),
    ],
    shards: Annotated[
        int, typer.Option(help="Number of shards; 0: chosen by their size.", min=0, metavar="INT 0..")
    ] = 0,
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
# `featkit run`: run shards of a plan.


RUN_HELP = """Run one shard of a plan, or all remaining shards and join them.

Example: `featkit run feats.h5.shards/1c9d0a7e5b3f2468 --shard 3`

Finished shards are skipped. A shard that is stopped leaves no incomplete file."""


@command(api.run)
def run_plan_command(done: api.PlanProgress) -> Outcome:
    if done.shard is not None:
        line = f"{done.shard}: done; {done.left} of {done.shards} shards are left"
        return Outcome({"shard": str(done.shard), "left": done.left}, [line])
    return Outcome({"out": str(done.out), "shards": done.shards}, [f"{done.out}: {done.shards} shards joined"])
