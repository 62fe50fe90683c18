"""`featkit reconstruct`, `extend`, `merge`, `align`, `export` and `demo`."""

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
# `featkit reconstruct`: photographs -> map.


RECONSTRUCT_HELP = """\
Build a map from a folder of photographs: features, pairs, matches, verified geometry, 3D model, report.

Example: `featkit reconstruct scene/ --camera-mode single`

Photographs are in `scene/images/` or in `scene/` itself; everything is written to `scene/featkit/`. If stopped, run the
same command again to resume."""


@command(api.reconstruct)
def reconstruct_command(result: Any) -> Outcome:
    lines = [f"map: {result.sparse / '0'}", f"report: {result.report}"]
    return Outcome(result.metrics, lines, map_tables(result.metrics))


# ----------------------------------------------------------------------------------------------------------------------
# `featkit extend`: map + new photographs -> larger map in the same coordinate frame.


EXTEND_HELP = """Register new photographs in an existing map; its coordinate frame and ids are kept.

Example: `featkit extend scene/ new_photographs/ --out scene/extended`

The map may be featkit's, COLMAP's or hloc's; it is not changed, and the extended map is written to --out. New
photographs are matched with the most similar ones of the map and with each other, registered and triangulated, followed
by local bundle adjustment. `--fixed` keeps the old cameras exactly as they are, `--prune` removes photographs that are
no longer in the folder. Photographs that could not be registered are listed with the reason. Photographs that are in
the map already are skipped, so the folder may be the scene's own. On a map with rigs new photographs join
the rigs by the prefixes of their names, and a frame is registered as one."""


@command(api.extend)
def extend_command(result: Any) -> Outcome:
    return Outcome({"out": str(result.output), **result.metrics}, api.EXTEND.describe(result))


# ----------------------------------------------------------------------------------------------------------------------
# `featkit merge`: two maps -> one map.


MERGE_HELP = """Merge two maps of overlapping parts of a place, in the coordinate frame of the first.

Example: `featkit merge scene/featkit/sparse/0 scene/featkit/sparse/1 --out scene/merged`

Each photograph of the second map is matched with the most similar ones of the first. From the points that the maps then
share, a robust similarity transform moves the second map onto the first, followed by bundle adjustment of the merged
model. Both maps must be made by featkit with the same features, such as several models of one run. They are not
changed. If they have too few points in common, the command reports how many and fails. A rig of both maps is one
rig afterwards."""


@command(api.merge)
def merge_command(result: Any) -> Outcome:
    return Outcome({"out": str(result.output), **result.metrics}, api.MERGE.describe(result))


# ----------------------------------------------------------------------------------------------------------------------
# `featkit align`: a model in metres, from GPS, known camera centres, or one distance.


ALIGN_HELP = """Give a map its metric scale and orientation by one similarity transform.

Example: `featkit align scene/ --gps --out scene/metric`

`--gps`: x east, y north, z up in metres, from the photographs' EXIF or a csv. `--references FILE`: align to known
camera centres, `name x y z` per line. `--distance IMG_A IMG_B METRES`: scale only, given the distance between two
cameras. GPS is least accurate in height: `--level` ignores it, for a survey flown at constant height. Outlier positions
are detected and ignored; all residuals are printed, and written with the origin to alignment.json next to the model."""


@command(api.align)
def align_command(done: tuple[Path, Alignment]) -> Outcome:
    out, found = done
    tables = [] if found.fit is None else [alignment_table(found)]
    return Outcome({"out": str(out), **found.as_json()}, [*alignment_lines(found), f"model: {out}"], tables)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit export`: a map in the formats of other programs.


EXPORT_HELP = """Export a map for another program.

Example: `featkit export scene/ --format gaussian-splatting --out scene/splats`

`gaussian-splatting`: undistorted photographs and a model of pinhole cameras in sparse/0, as read by 3DGS, gsplat and
OpenMVS; masked and transparent pixels are transparent. `nerfstudio`: transforms.json and the points; the photographs as
they are, or undistorted (--undistort). `dense`: COLMAP's workspace for dense stereo, with masks for fusion. `ply`: the
points with their colours. `text`: COLMAP's text model. `hloc`: the model, pairs by covisibility, the cameras as hloc's
list of queries, and the poses; the map's features.h5 and matches.h5 are in hloc's layout already.
All photographs are located before anything is written. The coordinate frame is the map's; alignment.json is copied."""


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
# `featkit demo`: the complete pipeline on a rendered scene with exact ground truth.


DEMO_HELP = """Render a small 3D scene with exact cameras, map it, localize queries in it, and compare with the truth.

Example: `featkit demo --out featkit-demo`

Needs no data and no network; under a minute on two cores."""


@command(api.run_demo)
def demo_command(result: Any) -> Outcome:
    return Outcome(result.metrics, [f"report: {result.report}"], [truth_table(result.metrics)])
