"""`featkit frames`, `extract`, `pairs`, `match`, `verify`, and the same in shards: `plan` and `run`."""

from __future__ import annotations

from typing import Annotated

import typer

from featkit.api import stages as api
from featkit.cli.app import Outcome, fail
from featkit.cli.command import command
from featkit.core.errors import UsageError
from featkit.images.video import Frames

# ----------------------------------------------------------------------------------------------------------------------
# `featkit frames`: a video -> images.


FRAMES_HELP = """Take sharp frames with a target overlap out of a video.

Example: `featkit frames walk.mp4 --out scene/images`

The motion of the picture is followed from frame to frame; when the overlap with the frame kept before has fallen to
--overlap, the sharpest of the frames around is kept. Where the camera stands still nothing is kept, where it is fast
more. --fps takes the sharpest frame by time instead. frames.csv lists names, times in seconds, frame numbers, sharpness
and overlap. The rotation that phones record is applied. A file that is cut off gives the frames that can be read.
Then map them: `featkit reconstruct scene/ --pairs sequential`."""


@command(api.frames)
def frames_command(done: Frames) -> Outcome:
    data = {"out": str(done.out), "frames": done.frames, "read": done.read, "duration_s": done.duration_s}
    kept = f"{done.frames:,} of {done.read:,} frames in {done.duration_s:.1f} s"
    cut = ", as far as the file can be read" if done.is_cut_off else ""
    return Outcome({**data, "is_cut_off": done.is_cut_off}, [f"{done.out}: {kept}{cut}; times in frames.csv"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit extract`: images -> features.h5.


EXTRACT_HELP = """Extract local features of all images of a folder.

Example: `featkit extract images/ --out feats.h5 --features rootsift --resize-max 1600`

Pixels that are masked (--masks) or transparent have no keypoints. Stopped at any moment, it goes on where it was when
the same command is run again."""


@command(api.extract)
def extract_command(done: api.Extracted) -> Outcome:
    data = {"out": str(done.out), "images": done.images, "keypoints": done.keypoints, "features": done.features}
    return Outcome(data, [f"{done.out}: {done.keypoints:,} keypoints of {done.images:,} images"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit pairs`: images or features.h5 -> pairs.txt.


PAIRS_HELP = """Choose which images to match.

Example: `featkit pairs feats.h5 --method retrieval --num 20 --out pairs.txt`

`retrieval` compares the descriptors in feats.h5 (VLAD); all others also take a folder of images. `gps` pairs
photographs taken near each other, by their EXIF or a csv of `name,lat,lon[,alt]`; one without a position is paired with
all. `poses` pairs cameras of a COLMAP model that stand near each other and look the same way, `covisible` those that
see the most points in common. `sequential` pairs each image with the next ones in name order; with
`--set loop_closure=5` (feats.h5) also with similar ones of other times, with `--set across_cameras=true` across the
cameras of a rig (cam0/0001.jpg, cam1/0001.jpg).
With --retrieval FILE images are compared by anybody's global descriptors: an h5 file with a group per image that holds
`global_descriptor`, as hloc writes for NetVLAD and others."""


@command(api.pairs)
def pairs_command(done: api.Paired) -> Outcome:
    data = {"out": str(done.out), "pairs": done.pairs, "images": done.images, "method": done.method}
    return Outcome(data, [f"{done.out}: {done.pairs:,} pairs of {done.images:,} images"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit match`: features.h5 + pairs.txt -> matches.h5.


MATCH_HELP = """Match the features of image pairs.

Example: `featkit match feats.h5 pairs.txt --out matches.h5 --ratio 0.8`

Stopped at any moment, it goes on where it was when the same command is run again."""


@command(api.match)
def match_command(done: api.Matched) -> Outcome:
    data = {"out": str(done.out), "pairs": done.pairs, "matches": done.matches}
    return Outcome(data, [f"{done.out}: {done.matches:,} matches of {done.pairs:,} pairs"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit verify`: features and matches -> a COLMAP database with two-view geometries.


VERIFY_HELP = """Verify matches geometrically, and write a COLMAP database that any mapper takes.

Example: `featkit verify images/ feats.h5 pairs.txt matches.h5 --out database.db --camera-mode single`

Features and matches may be of other programs: hloc's, also without descriptors, or COLMAP's text of matches (a .txt:
two names, a line per match with both indices, an empty line). Indices are checked against the keypoints.
Stopped at any moment, it goes on where it was when the same command is run again."""


@command(api.verify)
def verify_command(done: api.Verified) -> Outcome:
    found = f"{done.counts['verified_pairs']:,} verified pairs, {done.counts['inlier_matches']:,} inlier matches"
    return Outcome({"out": str(done.out), **done.counts}, [f"{done.out}: {found}"])


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


@command(api.run)
def run_command(done: api.Ran) -> Outcome:
    if done.shard is not None:
        line = f"{done.shard}: done; {done.left} of {done.shards} shards are left"
        return Outcome({"shard": str(done.shard), "left": done.left}, [line])
    return Outcome({"out": str(done.out), "shards": done.shards}, [f"{done.out}: {done.shards} shards joined"])
