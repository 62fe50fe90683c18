"""Data that descriptors are trained and tested on: made of mapped scenes, packed into one file, or fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from featkit.api.options import Option, Out, Overwrite, RandomSeed, Shown, addresses, takes
from featkit.core.config import Config, make
from featkit.core.errors import UsageError
from featkit.data.fetch import DataSet, FetchedFile, FetchOptions, data_set
from featkit.data.fetch import fetch as fetch_files
from featkit.data.image_pack import ImagePackConfig, kind_of, write_image_pack
from featkit.data.make_patches import PatchesConfig, check_patches_output
from featkit.data.make_patches import make_patches as make_patch_set
from featkit.data.make_posed_pairs import PosedPairsConfig, check_pairs_output
from featkit.data.make_posed_pairs import make_posed_pairs as make_pair_set
from featkit.data.patch_pack import PackConfig, write_pack
from featkit.mapping.covisibility import mapped_scenes, photograph_folders

OutFolder = Annotated[Path, Shown("--out", "-o", help="The folder to write.")]
Licence = Annotated[str | None, Shown(help="Licence of the photographs.", unset="the scene's licence file")]


@dataclass(frozen=True)
class MadeData:
    """What was written. summary: counts, by set or scene; what the dataset.json or manifest holds."""

    out: Path
    summary: dict[str, Any]


@takes(
    PatchesConfig,
    source=Option("source"),
    max_patches=Option("max_patches"),
    workers=Option("workers"),
)
def make_patches(
    scenes: Annotated[list[Path], Shown(metavar="SCENE...", help="Mapped scenes; for homographies: photographs.")],
    *,
    out: OutFolder,
    config: PatchesConfig,
    keypoints: Annotated[
        list[Path] | None,
        Shown(
            help="features.h5 with the keypoints of a scene, of any detector; one for each scene.", unset="detect DoG"
        ),
    ] = None,
    licence: Licence = None,
    overwrite: Overwrite = False,
    seed: RandomSeed = 0,
) -> MadeData:
    """Cut patches of the same points out of photographs, in UBC PhotoTour's format. Raises featkit's errors."""
    check_patches_output(out, overwrite)
    of_photographs = config.source == "homographies"
    if of_photographs and keypoints:
        raise UsageError("--keypoints: of mapped scenes only; homographies take the detector of --set detector.kind")
    found = photograph_folders(scenes, licence) if of_photographs else mapped_scenes(scenes, licence, keypoints)
    return MadeData(out, make_patch_set(config, found, out, seed, overwrite))


@takes(
    PosedPairsConfig,
    max_side=Option("max_side"),
    max_pairs=Option("choice.max_pairs", help="Pairs of each photograph."),
    workers=Option("workers"),
)
def make_posed_pairs(
    scenes: Annotated[list[Path], Shown(metavar="SCENE...", help="Folders of mapped scenes.")],
    *,
    out: OutFolder,
    config: PosedPairsConfig,
    licence: Licence = None,
    overwrite: Overwrite = False,
    seed: RandomSeed = 0,
) -> MadeData:
    """Make pairs of photographs with exact poses of mapped scenes, in MegaDepth's layout. Raises featkit's errors."""
    check_pairs_output(out)
    return MadeData(out, make_pair_set(config, mapped_scenes(scenes, licence), out, seed, overwrite))


class PackRecipe(Config):
    """How a pack is made."""

    changes: dict[str, Any] = Field(default_factory=dict)
    """What differs from the defaults of `PackConfig` (patches) or `ImagePackConfig` (photographs)."""


@takes(
    PackRecipe,
    "changes",
    "recipe",
    max_mb=Option(
        "changes.max_mb",
        of=PackConfig,
        help="Largest size of the file, 10^6 bytes.",
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
        Shown(metavar="DIR...", help="Patches (UBC PhotoTour's format), or posed pairs and photographs."),
    ],
    *,
    out: Out,
    recipe: PackRecipe,
    seed: RandomSeed = 0,
) -> MadeData:
    """Pack folders of patches, or of posed pairs and photographs, into one file. Raises featkit's errors."""
    kinds = {folder: kind_of(folder) for folder in folders}
    of_patches = [folder for folder, kind in kinds.items() if kind == "patches"]
    if len(of_patches) == len(kinds):
        config = make(PackConfig, recipe.changes, where="data pack of patches")
        return MadeData(out, write_pack(config, folders, out, seed))
    if of_patches:
        raise UsageError(f"{of_patches[0]}: no photographs in it; patches and photographs go into packs of their own")
    images = make(ImagePackConfig, recipe.changes, where="data pack of photographs")
    return MadeData(out, write_image_pack(images, folders, out, seed))


@dataclass(frozen=True)
class FetchedData:
    """A data set on the disk."""

    name: str
    data_set: DataSet
    files: list[FetchedFile]


@takes(None)
def fetch_data(
    name: Annotated[str, Shown(help="The data set.")],
    *,
    out: Annotated[Path, Shown("--out", "-o", help="The folder to put it in.")],
    only: Annotated[list[str] | None, Shown(help="This file only; repeatable.", unset="all")] = None,
    url: Annotated[
        list[str] | None,
        Shown(metavar="FILE=ADDRESS", help="Another address of a file; repeatable.", unset="the catalogue's"),
    ] = None,
    archive: Annotated[list[Path] | None, Shown(help="A file that is on the disk; repeatable.", unset="none")] = None,
    keep_archives: Annotated[bool, Shown("--keep-archives", help="Keep what was unpacked.")] = False,
    overwrite: Overwrite = False,
) -> FetchedData:
    """Download a benchmark from its authors. url: also as a mapping. Raises featkit's errors."""
    wanted = data_set(name)
    options = FetchOptions(addresses(url), archive or [], only or [], keep_archives, overwrite)
    return FetchedData(name, wanted, fetch_files(wanted, out, options))
