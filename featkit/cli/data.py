"""`featkit data`: make, pack and fetch patches and posed pairs."""

from __future__ import annotations

from dataclasses import asdict

from featkit.api import data as api
from featkit.cli.app import Outcome
from featkit.cli.command import command
from featkit.cli.pages import Commands

DATA_HELP = "Make, pack and fetch training and test data for descriptors."
PATCHES_HELP = """Cut corresponding patches out of photographs, in UBC PhotoTour's format.

Examples: `featkit data patches scenes/church scenes/bridge --out patches/buildings`,
`featkit data patches photos --source homographies --out patches/warped`

--source decides which patches correspond. tracks: by the map's feature tracks. geometry: by projection and visibility
of its points alone. homographies: by synthetic views of single photographs. A scene is a folder with images/ and a
COLMAP model in sparse/, or one mapped by `featkit reconstruct`. Test pairs are written too, half of them matching."""
POSED_HELP = """Make pairs of photographs with camera poses from mapped scenes, in MegaDepth's layout.

Example: `featkit data posed-pairs scenes/church scenes/bridge --out posed`

Scenes are as for `featkit data patches`. Photographs are undistorted and reduced; pairs are chosen by shared points,
angles and scale (--set choice.max_angle_deg=45 and similar). If stopped, run the same command again to resume."""
PACK_HELP = """Pack folders of patches, or of posed pairs and photographs, into one small file for training elsewhere.

Examples: `featkit data pack patches/liberty patches/buildings --out patches.zip --max-mb 30`,
`featkit data pack posed photos --out photographs.zip --max-mb 60`

The file holds as many points (with all their patches) or photographs as fit. Use it as training data like a folder; a
single set of it is `patches.zip/liberty`."""
FETCH_HELP = """Download a benchmark: phototour, hpatches, hpatches-sequences, rome or aachen.

Example: `featkit data fetch phototour --out data/phototour --only liberty`

If interrupted, run the same command again to resume. Archives are checked and unpacked into --out. --archive gives a
file that was downloaded in another way, --url another address."""

data_app = Commands(DATA_HELP)


@command(api.make_patches)
def patches_command(done: api.MadeData) -> Outcome:
    summary, pairs = done.summary, done.summary["test_pairs"]
    lines = [
        f"{name}: {counts['patches']:,} patches of {counts['classes']:,} points ({_patch_origins(counts)})"
        for name, counts in summary["scenes"].items()
    ]
    lines.append(
        f"{done.out}: {summary['patches']:,} patches of {summary['classes']:,} points,"
        f" {pairs['matching'] + pairs['other']:,} test pairs ({pairs['matching']:,} matching)"
    )
    return Outcome({"out": str(done.out), **summary}, lines)


def _patch_origins(counts: dict[str, int]) -> str:
    """Describe where the patches of a scene come from."""
    if "views" in counts:
        return f"in {counts['views']:,} views of {counts['photographs']:,} photographs"
    if "seeds" in counts:
        projected = counts["patches_projected"]
        return f"{counts['patches'] - projected:,} at detections, {projected:,} at jittered projections"
    return (
        f"{counts['patches_matched']:,} at matched keypoints, {counts['patches_extra']:,} found in more photographs,"
        f" {counts['patches_dense']:,} of points interpolated between those of the map"
    )


@command(api.make_posed_pairs)
def posed_pairs_command(done: api.MadeData) -> Outcome:
    summary = done.summary
    lines = [
        f"{name}: {c['pairs']:,} of {c['of_pairs']:,} pairs of {c['images']:,} photographs;"
        f" median {c['median_shared']:g} shared points, {c['median_angle_deg']:.1f} deg between rays,"
        f" rotation {c['median_rotation_deg']:.0f} deg, scale {c['median_scale']:.2f}"
        for name, c in summary["scenes"].items()
    ]
    lines.append(f"{done.out}: {summary['pairs']:,} pairs of {summary['images']:,} photographs")
    return Outcome({"out": str(done.out), **summary}, lines)


@command(api.pack_data)
def pack_command(done: api.MadeData) -> Outcome:
    sets, size = done.summary["sets"], done.out.stat().st_size / 1e6
    of_patches = all("patches" in counts for counts in sets.values())
    lines = [f"{name}: {_patch_pack_counts(c) if of_patches else _image_pack_counts(c)}" for name, c in sets.items()]
    total = f", {sum(c['patches'] for c in sets.values()):,} patches" if of_patches else ""
    lines.append(f"{done.out}: {size:.1f} MB{total}")
    return Outcome({"out": str(done.out), "megabytes": size, **done.summary}, lines)


def _patch_pack_counts(counts: dict[str, float]) -> str:
    return (
        f"{counts['patches']:,} of {counts['of_patches']:,} patches, {counts['classes']:,} points,"
        f" {counts['test_pairs']:,} test pairs, mean compression error {counts['mean_abs_error']:.2f} grey levels"
    )


def _image_pack_counts(counts: dict[str, float]) -> str:
    pairs = f", {counts['pairs']:,} of {counts['of_pairs']:,} pairs" if "pairs" in counts else ""
    return f"{counts['images']:,} of {counts['of_images']:,} photographs{pairs}, {counts['megabytes']:.1f} MB"


@command(api.fetch_data)
def fetch_data_command(done: api.FetchedData) -> Outcome:
    lines = [
        f"{file.path}: {'already present' if file.was_there else f'{file.size / 1e6:,.1f} MB from {file.source}'}"
        for file in done.files
    ]
    wanted = done.data_set
    files = [{**asdict(file), "path": str(file.path)} for file in done.files]
    data = {"name": done.name, "files": files, "page": wanted.page}
    return Outcome(data, [*lines, f"{wanted.summary}; {wanted.page} ({wanted.terms})"])


for name, made, text in (
    ("patches", patches_command, PATCHES_HELP),
    ("posed-pairs", posed_pairs_command, POSED_HELP),
    ("pack", pack_command, PACK_HELP),
    ("fetch", fetch_data_command, FETCH_HELP),
):
    data_app.command(name, help=text, no_args_is_help=True)(made)
