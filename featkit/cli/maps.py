"""`featkit reconstruct`, `extend`, `merge`, `align`, `export`, `demo`: maps made, grown, merged, placed, handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featkit.api import maps as api
from featkit.cli.app import Outcome
from featkit.cli.command import command
from featkit.mapping.export import Exported
from featkit.mapping.metric import Alignment
from featkit.report.maps import alignment_lines, alignment_table, map_tables, truth_table

# ----------------------------------------------------------------------------------------------------------------------
# `featkit reconstruct`: a folder of photographs -> a map.


RECONSTRUCT_HELP = """\
Make a map of a folder of photographs: features, pairs, matches, verified geometry, 3D model, report.

Example: `featkit reconstruct scene/ --camera-mode single`

Photographs lie in `scene/images/` or in `scene/` itself; everything is written to `scene/featkit/`. Stopped at any
moment, it goes on where it was when the same command is run again."""


@command(api.reconstruct)
def reconstruct_command(result: Any) -> Outcome:
    lines = [f"map: {result.sparse / '0'}", f"report: {result.report}"]
    return Outcome(result.metrics, lines, map_tables(result.metrics))


# ----------------------------------------------------------------------------------------------------------------------
# `featkit extend`: a map and new photographs -> a larger map in the same frame.


EXTEND_HELP = """Register new photographs in a map that is there; its frame and its ids stay.

Example: `featkit extend scene/ new_photographs/ --out scene/extended`

The map is featkit's, COLMAP's or hloc's; it stays as it is, and the grown one is written to --out. New photographs are
matched with the most similar ones of the map and with each other, registered, triangulated, and what is around them is
adjusted. `--fixed` leaves the old cameras exactly as they are, `--prune` takes out photographs that are not in the
folder any more. What could not be registered is named with the reason. Photographs of the map that lie in the folder
too are passed over, so that the folder may be the scene's own. On a map with rigs new photographs join the rigs by the
prefixes of their names, and a frame is registered as one."""


@command(api.extend)
def extend_command(result: Any) -> Outcome:
    return Outcome({"out": str(result.output), **result.metrics}, api.EXTEND.describe(result))


# ----------------------------------------------------------------------------------------------------------------------
# `featkit merge`: two maps -> one.


MERGE_HELP = """Make one map of two that show parts of one place, in the frame of the first.

Example: `featkit merge scene/featkit/sparse/0 scene/featkit/sparse/1 --out scene/merged`

Each photograph of the second map is matched with the most similar ones of the first. By the points that these matches
and common photographs give both maps the second is moved onto the first, robustly; then the whole is adjusted. Both are
featkit's, with features of one kind; several models of one run are such maps. They stay as they are, and where they
have too little in common one line says how much. A rig of both is one rig afterwards."""


@command(api.merge)
def merge_command(result: Any) -> Outcome:
    return Outcome({"out": str(result.output), **result.metrics}, api.MERGE.describe(result))


# ----------------------------------------------------------------------------------------------------------------------
# `featkit align`: a model in metres, by GPS, by known camera centres, or by one distance.


ALIGN_HELP = """Give a map its metric scale and orientation: the whole model moved by one similarity.

Example: `featkit align scene/ --gps --out scene/metric`

`--gps`: x east, y north, z up in metres, from the photographs' EXIF or a csv. `--references FILE`: onto known camera
centres, `name x y z` a line. `--distance IMG_A IMG_B METRES`: only scaled, so that the two cameras are so far apart.
GPS errs most in height: `--level` does without, for a survey flown at one height. Positions that do not fit the model's
shape are found and left out; every residual is printed, and written with the origin to alignment.json beside the
model."""


@command(api.align)
def align_command(done: tuple[Path, Alignment]) -> Outcome:
    out, found = done
    tables = [] if found.fit is None else [alignment_table(found)]
    return Outcome({"out": str(out), **found.as_json()}, [*alignment_lines(found), f"model: {out}"], tables)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit export`: a map in the formats of other programs.


EXPORT_HELP = """Write a map for another program.

Example: `featkit export scene/ --format gaussian-splatting --out scene/splats`

`gaussian-splatting`: undistorted photographs and a model of pinhole cameras in sparse/0, as 3DGS, gsplat and OpenMVS
read them; what masks or transparency hide is transparent. `nerfstudio`: transforms.json and the points; the photographs
as they are, or undistorted (--undistort). `dense`: COLMAP's workspace for dense stereo, with masks for fusion. `ply`:
the points with their colours. `text`: COLMAP's text model. `hloc`: the model, pairs by covisibility, the cameras as
hloc's list of queries, and the poses; features.h5 and matches.h5 of the map are in hloc's layout as they are.
Every photograph is looked for before anything is written. The frame stays the map's, and alignment.json comes along."""


@command(api.export)
def export_command(result: tuple[Path, str, Exported]) -> Outcome:
    out, form, done = result
    data = {"out": str(out), "format": form, "images": done.images, "points": done.points, "notes": done.notes}
    summary = f"{out}: {done.images:,} images and {done.points:,} points"
    if done.residual_px is not None:
        data["residual_px"] = done.residual_px
        summary += f"; points are {done.residual_px:.2f} px from their keypoints (median)"
    return Outcome(data | {"files": [str(path) for path in done.files]}, [*done.notes, summary])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit demo`: the whole flow on a rendered scene, against the exact truth.


DEMO_HELP = """Render a small 3D scene with exact cameras, map it, localize queries in it, and compare with the truth.

Example: `featkit demo --out featkit-demo`

Needs no data and no network; under a minute on two cores."""


@command(api.run_demo)
def demo_command(result: Any) -> Outcome:
    return Outcome(result.metrics, [f"report: {result.report}"], [truth_table(result.metrics)])
