"""Options that several verbs take, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featkit.errors import UsageError

CAMERAS = "Cameras"
MAPPING = "Mapping"

Features = Annotated[str, typer.Option(help="By name (`featkit features` lists them), or a yaml file.")]
ResizeMax = Annotated[
    int | None, typer.Option(help="Longer side after resizing, px.", min=16, show_default="no resizing")
]
MaxKeypoints = Annotated[
    int | None, typer.Option(help="Never more keypoints per image.", min=1, show_default="the configuration's")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Weights by name, or a file (.safetensors; .pth of a published network).",
        show_default="the configuration's",
    ),
]
Workers = Annotated[int, typer.Option(help="Processes that extract; 0: one per core.", min=0)]
Masks = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Masks named as COLMAP's (a/b.jpg.png of a/b.jpg): no keypoint where one is zero."
    ),
]
IgnoreAlpha = Annotated[bool, typer.Option("--ignore-alpha", help="Keypoints in transparent pixels too.")]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Pass over images that cannot be read.")]
Matcher = Annotated[str, typer.Option(help="Matcher by name, or a yaml file.", rich_help_panel=MAPPING)]
Ratio = Annotated[
    float | None,
    typer.Option(
        help="Ratio test on both sides; 1: none.",
        min=0.01,
        max=1,
        show_default="the matcher's",
        rich_help_panel=MAPPING,
    ),
]
CameraModel = Annotated[
    str | None, typer.Option(help="COLMAP camera model.", show_default="SIMPLE_RADIAL", rich_help_panel=CAMERAS)
]
CameraParams = Annotated[
    str | None,
    typer.Option(help="Known parameters, comma-separated.", show_default="EXIF", rich_help_panel=CAMERAS),
]
GpsFile = Annotated[
    Path | None,
    typer.Option(metavar="CSV", help="Positions, `name,lat,lon[,alt]` a line.", show_default="the photographs' EXIF"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change any field of the configuration; repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]


def given(**values: Any) -> dict[str, Any]:
    """Only the options that were given: the others keep the configuration's defaults."""
    return {name: value for name, value in values.items() if value is not None}


def addresses(urls: list[str] | None) -> dict[str, str]:
    """`["a=http://x"]` as addresses by file name. Raises UsageError."""
    pairs = [text.partition("=") for text in urls or []]
    if not all(equals and address for _, equals, address in pairs):
        raise UsageError("--url: FILE=ADDRESS, as liberty=http://example.org/liberty.zip")
    return {file: address for file, _, address in pairs}


def decode_fields(resize_max: int | None, ignore_alpha: bool) -> dict[str, Any]:
    """Fields of a DecodeConfig."""
    return {"resize_max": resize_max} | ({"min_alpha": 0} if ignore_alpha else {})


def camera_fields(model: str | None, params: str | None) -> dict[str, Any]:
    """Fields of a CameraConfig. Raises UsageError for parameters that are no numbers."""
    try:
        numbers = None if params is None else [float(part) for part in params.split(",")]
    except ValueError:
        raise UsageError(f"--camera-params {params!r}: numbers parted by commas, as 1200,960,540,0.01") from None
    return given(model=model, params=numbers)
