"""Training and test data for descriptors: made from mapped scenes, packed into one file, or downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from featkit.api.options import Option, Out, Overwrite, Param, RandomSeed, parse_urls, with_options
from featkit.core.config import Config, make
from featkit.core.errors import UsageError
from featkit.data.fetch import DataSet, FetchedFile, FetchOptions, data_set
from featkit.data.fetch import fetch as fetch_files
from featkit.data.image_pack import ImagePackConfig, folder_kind, write_image_pack
from featkit.data.make_patches import PatchSetConfig, check_patches_output, write_patch_set
from featkit.data.make_posed_pairs import PosedPairsConfig, check_pairs_output, write_posed_pairs
from featkit.data.patch_pack import PackConfig, write_pack
from featkit.mapping.covisibility import mapped_scenes, photograph_folders

OutFolder = Annotated[Path, Param("--out", "-o", help="The folder to write.")]
Licence = Annotated[str | None, Param(help="Licence of the photographs.", unset="the scene's licence file")]


@dataclass(frozen=True)
class MadeData:
    """A data set that was written. summary: counts by set or scene, as in its dataset.json or manifest."""

    out: Path
    summary: dict[str, Any]


@with_options(
    PatchSetConfig,
    source=Option("source"),
    max_patches=Option("max_patches"),
    workers=Option("workers"),
)
def make_patches(
    scenes: Annotated[list[Path], Param(metavar="SCENE...", help="Mapped scenes; for homographies: photographs.")],
    *,
    out: OutFolder,
    config: PatchSetConfig,
    keypoints: Annotated[
        list[Path] | None,
        Param(
            help="features.h5 with the keypoints of a scene, of any detector; one for each scene.", unset="detect DoG"
        ),
    ] = None,
    licence: Licence = None,
    overwrite: Overwrite = False,
    seed: RandomSeed = 0,
) -> MadeData:
    """Cut corresponding patches out of photographs, in UBC PhotoTour's format. Raises featkit's errors."""
    check_patches_output(out, overwrite)
    of_photographs = config.source == "homographies"
    if of_photographs and keypoints:
        raise UsageError("--keypoints: for mapped scenes only; homographies use the detector of --set detector.kind")
    found = photograph_folders(scenes, licence) if of_photographs else mapped_scenes(scenes, licence, keypoints)
    return MadeData(out, write_patch_set(config, found, out, seed, overwrite))


@with_options(
    PosedPairsConfig,
    max_side=Option("max_side"),
    max_pairs=Option("choice.max_pairs", help="Maximum pairs per photograph."),
    workers=Option("workers"),
)
def make_posed_pairs(
    scenes: Annotated[list[Path], Param(metavar="SCENE...", help="Folders of mapped scenes.")],
    *,
    out: OutFolder,
    config: PosedPairsConfig,
    licence: Licence = None,
    overwrite: Overwrite = False,
    seed: RandomSeed = 0,
) -> MadeData:
    """Make pairs of photographs with poses from mapped scenes, in MegaDepth's layout. Raises featkit's errors."""
    check_pairs_output(out)
    return MadeData(out, write_posed_pairs(config, mapped_scenes(scenes, licence), out, seed, overwrite))


class PackRecipe(Config):
    """How to make a pack."""

    changes: dict[str, Any] = Field(default_factory=dict)
    """Changes to the defaults of `PackConfig` (patches) or `ImagePackConfig` (photographs)."""


@with_options(
    PackRecipe,
    "changes",
    "recipe",
    max_mb=Option(
        "changes.max_mb",
        of=PackConfig,
        help="Maximum file size, 10^6 bytes.",
        unset=f"{PackConfig().max_mb:g}; photographs: {ImagePackConfig().max_mb:g}",
    ),
    side=Option("changes.side", of=PackConfig),
    max_side=Option("changes.max_side", of=ImagePackConfig, help="Reduce photographs to this longer side, px."),
    quality=Option(
        "changes.quality", of=PackConfig, unset=f"{PackConfig().quality}; photographs: {ImagePackConfig().quality}"
    ),
)
def pack_data(
    folders: Annotated[
        list[Path],
        Param(metavar="DIR...", help="Patches (UBC PhotoTour's format), or posed pairs and photographs."),
    ],
    *,
    out: Out,
    recipe: PackRecipe,
    seed: RandomSeed = 0,
) -> MadeData:
    """Pack folders of patches, or of posed pairs and photographs, into one file. Raises featkit's errors."""
    kinds = {folder: folder_kind(folder) for folder in folders}
    of_patches = [folder for folder, kind in kinds.items() if kind == "patches"]
    if len(of_patches) == len(kinds):
        config = make(PackConfig, recipe.changes, where="data pack of patches")
        return MadeData(out, write_pack(config, folders, out, seed))
    if of_patches:
        raise UsageError(f"{of_patches[0]}: no photographs in it; pack patches and photographs separately")
    images = make(ImagePackConfig, recipe.changes, where="data pack of photographs")
    return MadeData(out, write_image_pack(images, folders, out, seed))


@dataclass(frozen=True)
class FetchedData:
    """A downloaded data set."""

    name: str
    data_set: DataSet
    files: list[FetchedFile]


@with_options(None)
def fetch_data(
    name: Annotated[str, Param(help="The data set.")],
    *,
    out: Annotated[Path, Param("--out", "-o", help="The folder to put it in.")],
    only: Annotated[list[str] | None, Param(help="Fetch only this file; repeatable.", unset="all")] = None,
    url: Annotated[
        list[str] | None,
        Param(metavar="FILE=ADDRESS", help="Another URL for a file; repeatable.", unset="the catalogue's"),
    ] = None,
    archive: Annotated[
        list[Path] | None, Param(help="A file that was downloaded already; repeatable.", unset="none")
    ] = None,
    keep_archives: Annotated[bool, Param("--keep-archives", help="Keep archives after unpacking.")] = False,
    overwrite: Overwrite = False,
) -> FetchedData:
    """Download a benchmark from its authors. url: may also be a mapping. Raises featkit's errors."""
    wanted = data_set(name)
    options = FetchOptions(parse_urls(url), archive or [], only or [], keep_archives, overwrite)
    return FetchedData(name, wanted, fetch_files(wanted, out, options))
