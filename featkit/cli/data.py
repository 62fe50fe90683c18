"""`featkit data` and `store`: data made, packed and fetched; features and matches files checked and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featkit.cli import app as options
from featkit.cli.app import Outcome, RunOptions, verb
from featkit.core.config import make, merge, overrides
from featkit.core.errors import BadInputError, UsageError
from featkit.data.fetch import FetchOptions, data_set, fetch
from featkit.data.patch_pack import PackConfig, write_pack
from featkit.io import maintain

# ----------------------------------------------------------------------------------------------------------------------
# `featkit data fetch`: benchmark data from their authors' servers.


FETCH_HELP = """Download a benchmark: phototour, hpatches, hpatches-sequences, rome or aachen.

Example: `featkit data fetch phototour --out data/phototour --only liberty`

Stopped or cut off at any moment, the same command goes on. Archives are checked and unpacked into --out. A file that
was got in another way is given with --archive, another address with --url."""


@verb
def fetch_command(
    name: Annotated[str, typer.Argument(help="The data set.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to put it in.")],
    only: Annotated[list[str] | None, typer.Option(help="This file only; repeatable.", show_default="all")] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE=ADDRESS", help="Another address of a file; repeatable.", show_default="the catalogue's"
        ),
    ] = None,
    archive: Annotated[
        list[Path] | None, typer.Option(help="A file that is on the disk; repeatable.", show_default="none")
    ] = None,
    keep_archives: Annotated[bool, typer.Option("--keep-archives", help="Keep what was unpacked.")] = False,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from dataclasses import asdict

    wanted = data_set(name)
    urls = options.addresses(url)
    done = fetch(wanted, out, FetchOptions(urls, archive or [], only or [], keep_archives, overwrite))
    lines = [
        f"{file.path}: {'was there' if file.was_there else f'{file.size / 1e6:,.1f} MB from {file.source}'}"
        for file in done
    ]
    data = {"name": name, "files": [{**asdict(file), "path": str(file.path)} for file in done], "page": wanted.page}
    return Outcome(data, [*lines, f"{wanted.summary}; {wanted.page} ({wanted.terms})"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit data`


DATA_HELP = "Make, pack and fetch the data that descriptors are trained and tested on."
PATCHES_HELP = """Cut patches of the same points out of photographs, in UBC PhotoTour's format.

Examples: `featkit data patches scenes/church scenes/bridge --out patches/buildings`,
`featkit data patches photos --source homographies --out patches/warped`

--source says who decides what is the same point: tracks, the matches of the map; geometry, projection and visibility
alone; homographies, views that are made of single photographs. A scene is a folder with images/ and a COLMAP model in
sparse/, or one that `featkit reconstruct` has mapped. With the patches come test pairs, half of them matching."""

POSED_HELP = """Make pairs of photographs with exact camera poses out of mapped scenes, in MegaDepth's layout.

Example: `featkit data posed-pairs scenes/church scenes/bridge --out posed`

A scene is what `featkit data patches` takes. Photographs are undistorted and reduced; pairs are chosen by shared
points, angles and scale (--set choice.max_angle_deg=45 and the like). Stopped, the same command goes on."""

PACK_HELP = """Pack folders of patches, or of posed pairs and photographs, into one small file that trains elsewhere.

Examples: `featkit data pack patches/liberty patches/buildings --out patches.zip --max-mb 30`,
`featkit data pack posed photos --out photographs.zip --max-mb 60`

As many whole points, or photographs, as fit. Train with it as with a folder; one of its sets alone is
`patches.zip/liberty`."""

data_app = typer.Typer(help=DATA_HELP, no_args_is_help=True, rich_markup_mode="markdown")


@verb
def patches(
    scenes: Annotated[
        list[Path], typer.Argument(metavar="SCENE...", help="Folders of mapped scenes; for homographies: photographs.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    source: Annotated[str | None, typer.Option(help="tracks, geometry or homographies.", show_default="tracks")] = None,
    keypoints: Annotated[
        list[Path] | None,
        typer.Option(
            help="features.h5 with the keypoints of a scene, of any detector; one for each scene.",
            show_default="detect DoG",
        ),
    ] = None,
    max_patches: Annotated[
        int | None, typer.Option(help="Of each scene, by whole points.", min=2, show_default="all")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the photographs.", show_default="the scene's licence file")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that detect; 0: one per core.", min=0)] = 0,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.data.make_patches import PatchesConfig, check_patches_output, make_patches
    from featkit.mapping.covisibility import mapped_scenes, photograph_folders

    given = options.given(source=source, max_patches=max_patches, workers=workers)
    config = make(PatchesConfig, merge(overrides(settings or []), given), where="data patches")
    check_patches_output(out, overwrite)
    if config.source == "homographies":
        if keypoints:
            raise UsageError(
                "--keypoints: of mapped scenes only; homographies take the detector of --set detector.kind"
            )
        summary = make_patches(config, photograph_folders(scenes, licence), out, run.seed, overwrite)
    else:
        summary = make_patches(config, mapped_scenes(scenes, licence, keypoints), out, run.seed, overwrite)
    pairs = summary["test_pairs"]
    lines = [
        f"{name}: {c['patches']:,} patches of {c['classes']:,} points ({_origins(c)})"
        for name, c in summary["scenes"].items()
    ]
    lines.append(
        f"{out}: {summary['patches']:,} patches of {summary['classes']:,} points,"
        f" {pairs['matching'] + pairs['other']:,} test pairs ({pairs['matching']:,} matching)"
    )
    return Outcome({"out": str(out), **summary}, lines)


def _origins(counts: dict[str, int]) -> str:
    """Where the patches of a scene come from, by the counts of its source."""
    if "views" in counts:
        return f"in {counts['views']:,} views of {counts['photographs']:,} photographs"
    if "seeds" in counts:
        projected = counts["patches_projected"]
        return f"{counts['patches'] - projected:,} at detections, {projected:,} at jittered projections"
    return (
        f"{counts['patches_matched']:,} where they were matched, {counts['patches_extra']:,} found again elsewhere,"
        f" {counts['patches_dense']:,} of points between those of the map"
    )


data_app.command("patches", help=PATCHES_HELP, no_args_is_help=True)(patches)


@verb
def posed_pairs(
    scenes: Annotated[list[Path], typer.Argument(metavar="SCENE...", help="Folders of mapped scenes.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    max_side: Annotated[
        int | None, typer.Option(help="Longer side of the photographs, px.", min=64, show_default="800")
    ] = None,
    max_pairs: Annotated[int | None, typer.Option(help="Of each photograph.", min=1, show_default="30")] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the photographs.", show_default="the scene's licence file")
    ] = None,
    workers: Annotated[int, typer.Option(help="Photographs at the same time; 0: one per core.", min=0)] = 0,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.data.make_posed_pairs import PosedPairsConfig, check_pairs_output, make_posed_pairs
    from featkit.mapping.covisibility import mapped_scenes

    given = options.given(max_side=max_side, workers=workers)
    if max_pairs is not None:
        given["choice"] = {"max_pairs": max_pairs}
    config = make(PosedPairsConfig, merge(overrides(settings or []), given), where="data posed-pairs")
    check_pairs_output(out)
    summary = make_posed_pairs(config, mapped_scenes(scenes, licence), out, run.seed, overwrite)
    lines = [
        f"{name}: {c['pairs']:,} of {c['of_pairs']:,} pairs of {c['images']:,} photographs;"
        f" median {c['median_shared']:g} shared points, {c['median_angle_deg']:.1f} deg between rays,"
        f" turned by {c['median_rotation_deg']:.0f} deg, scale {c['median_scale']:.2f}"
        for name, c in summary["scenes"].items()
    ]
    lines.append(f"{out}: {summary['pairs']:,} pairs of {summary['images']:,} photographs")
    return Outcome({"out": str(out), **summary}, lines)


data_app.command("posed-pairs", help=POSED_HELP, no_args_is_help=True)(posed_pairs)
data_app.command("fetch", help=FETCH_HELP, no_args_is_help=True)(fetch_command)


@verb
def pack(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Patches (UBC PhotoTour's format), or posed pairs and photographs."),
    ],
    out: options.Out,
    max_mb: Annotated[
        float | None,
        typer.Option(help="Largest size of the file, 10^6 bytes.", min=0.01, show_default="30; photographs: 60"),
    ] = None,
    side: Annotated[
        int | None, typer.Option(help="Reduce patches to this side, px; a multiple of 8.", min=8, show_default="64")
    ] = None,
    max_side: Annotated[
        int | None, typer.Option(help="Reduce photographs to this longer side, px.", min=64, show_default="640")
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(help="Of JPEG; 0: patches without loss.", min=0, max=100, show_default="80; photographs: 88"),
    ] = None,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.data.image_pack import kind_of

    kinds = {kind_of(folder) for folder in folders}
    if kinds == {"patches"}:
        return _pack_patches(
            folders, out, run.seed, options.given(max_mb=max_mb, side=side, quality=quality, max_side=max_side)
        )
    if "patches" in kinds:
        patch_folder = next(folder for folder in folders if kind_of(folder) == "patches")
        raise UsageError(f"{patch_folder}: no photographs in it; patches and photographs go into packs of their own")
    return _pack_photographs(
        folders, out, run.seed, options.given(max_mb=max_mb, max_side=max_side, quality=quality, side=side)
    )


def _pack_patches(folders: list[Path], out: Path, seed: int, values: dict[str, Any]) -> Outcome:
    manifest = write_pack(make(PackConfig, values, where="data pack of patches"), folders, out, seed)
    size = out.stat().st_size / 1e6
    lines = [
        f"{name}: {s['patches']:,} of {s['of_patches']:,} patches, {s['classes']:,} points,"
        f" {s['test_pairs']:,} test pairs, wrong by {s['mean_abs_error']:.2f} grey levels on average"
        for name, s in manifest["sets"].items()
    ]
    total = sum(s["patches"] for s in manifest["sets"].values())
    lines.append(f"{out}: {size:.1f} MB, {total:,} patches")
    return Outcome({"out": str(out), "megabytes": size, **manifest}, lines)


def _pack_photographs(folders: list[Path], out: Path, seed: int, values: dict[str, Any]) -> Outcome:
    from featkit.data.image_pack import ImagePackConfig, write_image_pack

    manifest = write_image_pack(make(ImagePackConfig, values, where="data pack of photographs"), folders, out, seed)
    size = out.stat().st_size / 1e6
    lines = [
        f"{name}: {s['images']:,} of {s['of_images']:,} photographs"
        + (f", {s['pairs']:,} of {s['of_pairs']:,} pairs" if "pairs" in s else "")
        + f", {s['megabytes']:.1f} MB"
        for name, s in manifest["sets"].items()
    ]
    lines.append(f"{out}: {size:.1f} MB")
    return Outcome({"out": str(out), "megabytes": size, **manifest}, lines)


data_app.command("pack", help=PACK_HELP, no_args_is_help=True)(pack)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit store`: features and matches files looked after.


STORE_HELP = "Check, repair and merge features and matches files."
CHECK_HELP = """Read every item of a features or matches file, and list the damaged ones.

Example: `featkit store check feats.h5`

Ends with exit code 3 when one is."""
REPAIR_HELP = """Leave out what is damaged or missing; the command that made the file then makes it again.

Example: `featkit store repair feats.h5`"""
MERGE_HELP = """Make one file of several of the same configuration, such as the shards of an index.

Example: `featkit store merge feats.h5 --out whole.h5`"""
NAMED = 5  # broken items that are printed

store_app = typer.Typer(help=STORE_HELP, no_args_is_help=True, rich_markup_mode="markdown")
StoreFile = Annotated[Path, typer.Argument(help="A features or matches file.")]


@verb
def check_store(store: StoreFile, *, run: RunOptions) -> Outcome:
    found = maintain.check(store)
    error = None
    if found.broken:
        listed = "; ".join(f"{name!r}: {reason}" for name, reason in found.broken[:NAMED])
        more = f"; and {len(found.broken) - NAMED} more" if len(found.broken) > NAMED else ""
        error = BadInputError(
            f"{store}: {len(found.broken)} of {len(found.broken) + len(found.whole)} items are broken ({listed}{more});"
            f" `featkit store repair {store}` leaves them out"
        )
    data = {"kind": found.kind, "whole": len(found.whole), "broken": dict(found.broken), "shards": found.shards}
    where = f" in {found.shards} shards" if found.shards else ""
    return Outcome(data, [f"{store}: {found.kind}, {len(found.whole):,} whole items{where}"], error=error)


@verb
def repair_store(store: StoreFile, *, run: RunOptions) -> Outcome:
    found = maintain.check(store)
    if found.broken:
        maintain.repair(store, found)
    data = {"kept": len(found.whole), "left_out": dict(found.broken)}
    lines = [f"{name}: left out: {reason}" for name, reason in found.broken[:NAMED]]
    return Outcome(data, [*lines, f"{store}: {len(found.whole):,} items kept, {len(found.broken):,} left out"])


@verb
def merge_stores(
    stores: Annotated[list[Path], typer.Argument(help="Files of one configuration, or an index.")],
    out: options.Out,
    link: Annotated[bool, typer.Option("--link", help="An index that leads to them, which then must stay.")] = False,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    count = maintain.merge(stores, out, link=link, overwrite=overwrite)
    return Outcome({"out": str(out), "items": count}, [f"{out}: {count:,} items of {len(stores)} files"])


for name, command, text in (
    ("check", check_store, CHECK_HELP),
    ("repair", repair_store, REPAIR_HELP),
    ("merge", merge_stores, MERGE_HELP),
):
    store_app.command(name, help=text, no_args_is_help=True)(command)
