"""Build, extend, merge, align and export maps, and run the rendered demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from featkit.api.options import CAMERAS, MAPPING, Device, GpsFile, ModelNumber, Option, Overwrite, Param, with_options
from featkit.api.stages import camera_options, extract_options, matcher_options
from featkit.core.config import load_pipeline
from featkit.core.errors import UsageError
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.geometry.poses import Geodetic, is_on_earth
from featkit.mapping import export as exporting
from featkit.mapping import metric
from featkit.mapping.align import SimilarityConfig
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.scene import find_model

SFM, DEMO, EXTEND, MERGE = (load_pipeline(name) for name in ("sfm", "demo", "extend", "merge"))

# ----------------------------------------------------------------------------------------------------------------------
# Photographs -> map.


@with_options(
    SFM.SfmConfig,
    "",
    "config",
    "config_file",
    **extract_options("extract."),
    pairs=Option("pairs", panel=MAPPING),
    **matcher_options(panel=MAPPING),
    mapper=Option("map.mapper", panel=MAPPING),
    min_registered=Option("min_registered", panel=MAPPING),
    **camera_options("map.camera."),
    fix_intrinsics=Option("map.camera.refine", flag=False, help="Do not refine the cameras.", panel=CAMERAS),
    rig=Option("rig", panel=CAMERAS, metavar="FILE|folders"),
    seed=Option("seed", also=("map.seed", "map.verify.seed")),
)
def reconstruct(
    scene: Annotated[Path, Param(help="Folder with images/, or of images.")],
    out: Annotated[Path | None, Param("--out", "-o", help="Output folder.", unset="scene/featkit")] = None,
    *,
    config: Any,
    gps_file: GpsFile = None,
    reference: Annotated[
        Path | None,
        Param(help="Triangulate with the poses of this model or poses.txt.", panel=MAPPING),
    ] = None,
    truth: Annotated[Path | None, Param(help="poses.txt with true poses to compare with.", panel=MAPPING)] = None,
    intrinsics: Annotated[
        Path | None,
        Param(
            metavar="FILE",
            help="`name MODEL width height params...` a line, or a .csv; others are inferred.",
            panel=CAMERAS,
        ),
    ] = None,
    config_file: Annotated[
        Path | None, Param("--config", metavar="FILE", help="A saved run; other options override it.", unset="none")
    ] = None,
    save_config: Annotated[
        bool, Param("--save-config", help="Write everything that decides this run to run.yaml in --out.")
    ] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    engine: EngineConfig = LOCAL,
) -> Any:
    """Build a map from a folder of photographs. Returns `pipelines/sfm.py`'s SfmResult; raises featkit's errors."""
    if gps_file is not None:
        if config.pairs != "gps":
            raise UsageError(f"--gps-file goes with --pairs gps, not with {config.pairs}")
        config = config.model_copy(update={"pairing": {"file": gps_file, **config.pairing}})
    if engine.name == "plan":
        raise UsageError("--engine plan works on single stages: extract, match, verify")
    del config_file  # `with_options` has read it
    return SFM.run(
        config,
        scene,
        out,
        reference=reference,
        truth=truth,
        intrinsics=intrinsics,
        device=device,
        overwrite=overwrite,
        engine=engine,
        save_config=save_config,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Map + new photographs -> larger map in the same coordinate frame.


@with_options(
    EXTEND.ExtendConfig,
    fixed=Option("grow.fixed"),
    prune=Option("prune"),
    num=Option("retrieval.num_matched", help="Photographs of the map that each new one is matched with."),
    **matcher_options(panel=MAPPING),
    features=Option("extract.features", panel=MAPPING, help="For a map that featkit did not make: features by name."),
    masks=Option("extract.masks", metavar="DIR", unset="none"),
    keypoints=Option(
        "extract.keypoints",
        metavar="FILE",
        help="Keypoints of the new photographs, for a map of given keypoints.",
    ),
    workers=Option("extract.workers"),
    camera_model=Option("map.camera.model", of=CameraConfig, unset="as the map's", panel=CAMERAS),
    camera_params=Option("map.camera.params", of=CameraConfig, panel=CAMERAS),
    camera_mode=Option("map.camera.mode", of=CameraConfig, unset="as the map's", panel=CAMERAS),
    fix_intrinsics=Option(
        "map.camera.refine", of=CameraConfig, flag=False, help="Do not refine the cameras.", panel=CAMERAS
    ),
    seed=Option("seed"),
)
def extend(
    map_folder: Annotated[Path, Param(metavar="MAP", help="A reconstructed scene, or a COLMAP model.")],
    photographs: Annotated[Path, Param(help="Folder of photographs; those already in the map are skipped.")],
    out: Annotated[
        Path | None, Param("--out", "-o", help="Folder of the extended map.", unset="extended/ next to the map")
    ] = None,
    *,
    config: Any,
    map_features: Annotated[Path | None, Param(help="The map's features.h5.", unset="found next to the map")] = None,
    images: Annotated[
        list[Path] | None,
        Param(metavar="DIR", help="The map's own photographs; repeatable.", unset="found near the map"),
    ] = None,
    number: ModelNumber = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> Any:
    """Register new photographs in a map, in its coordinate frame. Returns `pipelines/extend.py`'s result.

    Raises featkit's errors.
    """
    return EXTEND.run(
        config,
        map_folder,
        photographs,
        out,
        features=map_features,
        images=images or (),
        number=number,
        device=device,
        overwrite=overwrite,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Two maps -> one map.


@with_options(
    MERGE.MergeMapsConfig,
    num=Option("retrieval.num_matched", help="Photographs of MAP_A that each one of MAP_B is matched with."),
    **matcher_options(panel=MAPPING),
    max_error_px=Option("merge.max_error_px", panel=MAPPING),
    min_points=Option("merge.min_points", panel=MAPPING),
    fix_intrinsics=Option("map.camera.refine", of=CameraConfig, flag=False, help="Do not refine the cameras."),
    seed=Option("seed", also=("merge.seed",)),
)
def merge(
    first: Annotated[Path, Param(metavar="MAP_A", help="A reconstructed scene, or a model such as sparse/0.")],
    second: Annotated[Path, Param(metavar="MAP_B", help="A second map, moved into the frame of the first.")],
    out: Annotated[Path, Param("--out", "-o", help="Folder of the merged map.", unset=False)],
    *,
    config: Any,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> Any:
    """Merge two overlapping maps of a place. Returns `pipelines/merge.py`'s result; raises featkit's errors."""
    return MERGE.run(config, first, second, out, device=device, overwrite=overwrite)


# ----------------------------------------------------------------------------------------------------------------------
# A model in metres, from GPS, known camera centres, or one distance.


@with_options(SimilarityConfig, max_error=Option("max_error_m", metavar="METRES"))
def align(
    model: Annotated[Path, Param(help="COLMAP model, or a mapped scene.")],
    out: Annotated[Path, Param("--out", "-o", help="Folder of the model in metres.", unset=False)],
    *,
    config: SimilarityConfig,
    gps: Annotated[bool, Param("--gps", help="Align to GPS positions.")] = False,
    gps_file: GpsFile = None,
    images: Annotated[
        Path | None,
        Param(metavar="DIR", help="The photographs, for their EXIF.", unset="images/ next to the model"),
    ] = None,
    origin: Annotated[
        str | None,
        Param(metavar="LAT,LON[,ALT]", help="Origin of the east, north, up axes.", unset="the positions' median"),
    ] = None,
    level: Annotated[bool, Param("--level", help="Ignore GPS altitude: all cameras are at one height.")] = False,
    references: Annotated[
        Path | None, Param(metavar="FILE", help="Camera centres, `name x y z` a line, metres.")
    ] = None,
    distance: Annotated[
        tuple[str, str, float] | None,
        Param(metavar="IMG_A IMG_B METRES", help="Distance between two cameras.", unset=False),
    ] = None,
    number: ModelNumber = None,
    overwrite: Annotated[bool, Param("--overwrite", help="Replace another model that featkit made.")] = False,
    seed: int = 0,
) -> tuple[Path, metric.Alignment]:
    """Give a map its metric scale and orientation. Returns the new model's folder and the alignment.

    Raises featkit's errors.
    """
    gps = gps or gps_file is not None
    if gps + (references is not None) + (distance is not None) != 1:
        raise UsageError("align takes one of --gps, --references FILE and --distance IMG_A IMG_B METRES")
    if not gps and (images is not None or origin is not None or level):
        raise UsageError("--images, --origin and --level go with --gps")
    target: metric.Target
    if distance is not None:
        target = metric.DistanceTarget(*distance)
    elif references is not None:
        target = metric.ReferencesTarget(references)
    else:
        target = metric.GpsTarget(images, gps_file, _origin(origin), level)
    return out, metric.write_metric_model(config, model, target, out, seed=seed, overwrite=overwrite, number=number)


def _origin(given: str | Sequence[float] | None) -> Any:
    """Parse `LAT,LON[,ALT]` to a Geodetic. Raises UsageError."""
    if given is None:
        return None
    try:
        numbers = [float(part) for part in (given.split(",") if isinstance(given, str) else given)]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or not is_on_earth(*numbers[:2]) or not all(abs(n) < 1e9 for n in numbers):
        raise UsageError(f"--origin {given!r}: latitude, longitude and optionally altitude, as 47.3769,8.5417,408")
    return Geodetic(*numbers)


# ----------------------------------------------------------------------------------------------------------------------
# Export to the formats of other programs.


@with_options(
    exporting.ExportConfig,
    num=Option("pairs.num_matched"),
    undistort=Option("undistort"),
    resize_max=Option("pictures.resize_max"),
)
def export(
    model: Annotated[Path, Param(metavar="MODEL", help="A reconstructed scene, or a sparse model.")],
    out: Annotated[Path, Param("--out", "-o", help="Folder to write; for ply the file.")],
    *,
    format: Annotated[str, Param(help=f"One of {', '.join(exporting.FORMATS)}.", unset=False)],
    config: exporting.ExportConfig,
    images: Annotated[
        list[Path] | None,
        Param(metavar="DIR", help="The map's photographs; repeatable.", unset="found near the map"),
    ] = None,
    masks: Annotated[
        Path | None, Param(metavar="DIR", help="Masks of the photographs, to be exported too.", unset="none")
    ] = None,
    number: ModelNumber = None,
    overwrite: Annotated[bool, Param("--overwrite", help="Replace files of an earlier featkit export.")] = False,
) -> tuple[Path, str, exporting.Exported]:
    """Export a map for another program. Returns the output, its format and a summary; raises featkit's errors."""
    plain = exporting.ExportConfig()
    undistorted = (*exporting.UNDISTORTED, *(("nerfstudio",) if config.undistort else ()))
    for option, given, belongs_to in (
        ("--num", config.pairs != plain.pairs, ("hloc",)),
        ("--undistort", config.undistort, exporting.WITH_PHOTOGRAPHS),
        ("--resize-max", config.pictures.resize_max is not None, undistorted),
        ("--images", bool(images), exporting.WITH_PHOTOGRAPHS),
        ("--masks", masks is not None, exporting.WITH_PHOTOGRAPHS),
    ):
        if given and format not in belongs_to:
            raise UsageError(f"{option} goes with --format {' or '.join(belongs_to)}, not with {format}")
    if format == "onnx":
        raise UsageError("--format onnx is for networks, not for maps: featkit weights export NAME --out FILE.onnx")
    done = exporting.export_model(
        format, find_model(model, number), out, images=images or (), masks=masks, config=config, overwrite=overwrite
    )
    return out, format, done


# ----------------------------------------------------------------------------------------------------------------------
# The complete pipeline on a rendered scene with exact ground truth.


@with_options(DEMO.DemoConfig, seed=Option("scene.seed"))
def run_demo(
    out: Annotated[Path, Param("--out", "-o", help="Output folder.")] = Path("featkit-demo"),
    *,
    config: Any,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> Any:
    """Render a scene, map it, localize in it and compare with the truth. Returns `pipelines/demo.py`'s result."""
    return DEMO.run(config, out, device=device, overwrite=overwrite)
