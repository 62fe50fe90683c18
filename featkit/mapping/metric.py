"""Gives a model metric scale: aligned to GPS positions or known camera centres, or scaled by one known distance.

The aligned model is written together with alignment.json: the transform, its origin, and all residuals.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from jaxtyping import Float

from featkit import __version__
from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.geometry.poses import Geodetic, enu, middle
from featkit.images.exif import locate, some_names
from featkit.io.atomic import is_foreign, is_own_json
from featkit.io.lists import read_references, respelled
from featkit.mapping.align import MIN_POSITIONS, SimilarityConfig, SimilarityFit, fit_similarity, scale_of
from featkit.mapping.model import is_replaceable_model, read_model, write_model
from featkit.mapping.scene import find_image_folder, find_model

LOGGER = logging.getLogger(__name__)
WRITTEN = "alignment.json"
UNSURE_DEG = 5.0  # warn if the standard deviation of the orientation is larger
SAME_PLACE = 1e-9  # cameras closer than this share of the model's extent are at the same place
LARGEST = 1e9  # scale, m per unit of the model, and shift, m


@dataclass(frozen=True)
class GpsTarget:
    """Align to GPS: axes east, north, up at `origin` (None: median of the positions).

    images: folder of the photographs; None: found near the model. file: a csv of positions. level: ignore altitudes and
    assume that all cameras are at the origin's height.
    """

    images: Path | None = None
    file: Path | None = None
    origin: Geodetic | None = None
    level: bool = False


@dataclass(frozen=True)
class ReferencesTarget:
    """Align to the camera centres in a file, `name x y z` per line."""

    file: Path


@dataclass(frozen=True)
class DistanceTarget:
    """Scale to a known distance between two camera centres, metres, without rotation or translation."""

    name0: str
    name1: str
    metres: float


Target = GpsTarget | ReferencesTarget | DistanceTarget


@dataclass(frozen=True)
class Alignment:
    """The alignment of a model. names: images with a known position, in the order of `fit` (None: scaled by distance).

    without: registered images without a known position.
    """

    method: str
    metric_from_model: Float[np.ndarray, "3 4"]
    names: tuple[str, ...] = ()
    fit: SimilarityFit | None = None
    without: tuple[str, ...] = ()
    origin: Geodetic | None = None

    @property
    def scale(self) -> float:
        """Metres per model unit."""
        return scale_of(self.metric_from_model)

    def as_json(self) -> dict[str, Any]:
        """Plain values: lengths in metres; offsets are aligned camera centres minus given positions."""
        found: dict[str, Any] = {
            "method": self.method,
            "scale": self.scale,
            "metric_from_model": self.metric_from_model.tolist(),
        }
        if self.origin is not None:
            found["frame"] = "x east, y north, z up at the origin, WGS 84"
            found["origin"] = asdict(self.origin)
        if self.fit is not None:
            kept = self.fit.residuals[self.fit.used]
            found |= {
                "positions": len(self.names),
                "used": int(self.fit.used.sum()),
                "without_position": list(self.without),
                "residual_m": {
                    "rms": float(np.sqrt((kept**2).mean())),
                    "median": float(np.median(kept)),
                    "max": float(kept.max()),
                },
                "orientation_std_deg": self.fit.orientation_std_deg,
                "scale_std": self.fit.scale_std,
                "images": [
                    {"name": name, "residual_m": float(residual), "offset_m": offset.tolist(), "used": bool(used)}
                    for name, residual, offset, used in zip(
                        self.names, self.fit.residuals, self.fit.offsets, self.fit.used, strict=True
                    )
                ],
            }
        return found


def write_metric_model(
    config: SimilarityConfig,
    model: Path,
    target: Target,
    output: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    number: int | None = None,
) -> Alignment:
    """Write the model in metres to the folder `output`, with alignment.json. The write is atomic.

    model: a COLMAP model's folder, or a mapped scene. number: which of its models. overwrite: replace another model
    made by featkit. Raises BadInputError, UsageError (an invalid distance, GPS without a source), EmptyResultError if
    the positions do not fit, NotWritableError.
    """
    folder = find_model(model, number)
    refuse_output(output, folder, overwrite)
    reconstruction = read_model(folder)
    centres = _camera_centres(reconstruction, folder)
    if isinstance(target, DistanceTarget):
        found = scale_to_distance(centres, target, folder)
    elif isinstance(target, ReferencesTarget):
        found = align_to_references(centres, target, config, seed)
    else:
        found = align_to_gps(centres, target, folder, config, seed)
    _refuse_extremes(found.metric_from_model, folder)
    reconstruction.transform(pycolmap.Sim3d(found.metric_from_model))
    described = {"kind": "alignment", "featkit_version": __version__, "model": folder.name, "seed": seed}
    described |= {"config": config.result_fields(), **found.as_json()}
    write_model(reconstruction, output, {WRITTEN: json.dumps(described, indent=1, ensure_ascii=False) + "\n"})
    return found


def _refuse_extremes(metric_from_model: Float[np.ndarray, "3 4"], model: Path) -> None:
    """Raise BadInputError for a scale or a shift with which the model's numbers would overflow or vanish."""
    scale, shift = (float(np.abs(part).max()) for part in (metric_from_model[:, :3], metric_from_model[:, 3]))
    if not (1 / LARGEST <= scale <= LARGEST and shift <= LARGEST):
        raise BadInputError(
            f"{model}: would be scaled by {scale:.3g} and moved by {shift:.3g} m; check the distance or positions"
        )


def refuse_output(output: Path, model: Path, overwrite: bool) -> None:
    """Raise BadInputError if `output` contains something that must not be replaced."""
    if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
        return
    is_own = is_replaceable_model(output, (WRITTEN,)) and not is_foreign(output)
    if is_own and (overwrite or is_own_json(output / WRITTEN)):
        return
    what = "is the model itself" if output.resolve() == model.resolve() else "is not empty"
    if not is_own:
        what += ", which featkit did not make"
    raise BadInputError(f"{output}: {what}; {'--overwrite, or another --out' if is_own else 'choose another --out'}")


def align_to_gps(
    centres: Mapping[str, np.ndarray], target: GpsTarget, model: Path, config: SimilarityConfig, seed: int
) -> Alignment:
    """Align to east, north and up in metres from GPS positions. Raises the errors of `align`."""
    images = target.images or (find_image_folder(model) if target.file is None else None)
    located = locate(list(centres), images, target.file)
    positions, without = dict(located.positions), list(located.without)
    flat = [name for name, position in positions.items() if position.altitude_m is None]
    level = target.level or len(flat) == len(positions)
    if level and not target.level:
        LOGGER.warning("align: no position has an altitude; all cameras are assumed to be at one height")
    if not level:
        positions = {name: position for name, position in positions.items() if name not in flat}
        without = [name for name in centres if name not in positions]
    origin = target.origin or middle(list(positions.values()))
    if level:
        positions = {name: replace(p, altitude_m=origin.altitude_m) for name, p in positions.items()}
    known = dict(zip(positions, enu(list(positions.values()), origin), strict=True))
    found = _align_to_positions("gps", centres, known, located.source, config, seed, tuple(without), origin)
    if without:
        LOGGER.warning(
            "align: %d of %d registered images have no GPS position%s and are not used: %s",
            len(without),
            len(centres),
            " with an altitude" if flat and not level else "",
            some_names(without),
        )
    return found


def align_to_references(
    centres: Mapping[str, np.ndarray], target: ReferencesTarget, config: SimilarityConfig, seed: int
) -> Alignment:
    """Align to known camera centres. Warns of centres of images that are not in the model."""
    listed = respelled(read_references(target.file), lambda: centres)
    known = {name: listed[name] for name in centres if name in listed}
    unknown = [name for name in listed if name not in centres]
    if len(known) < MIN_POSITIONS:
        raise BadInputError(
            f"{target.file}: {len(known)} of its {len(listed)} names are registered images of the model;"
            f" {MIN_POSITIONS} are needed" + (f" (not in the model: {some_names(unknown)})" if unknown else "")
        )
    without = tuple(name for name in centres if name not in known)
    found = _align_to_positions("references", centres, known, target.file, config, seed, without, None)
    if unknown:
        LOGGER.warning(
            "align: %d of %d references are not registered in the model and are ignored: %s",
            len(unknown),
            len(listed),
            some_names(unknown),
        )
    return found


def scale_to_distance(centres: Mapping[str, np.ndarray], target: DistanceTarget, model: Path) -> Alignment:
    """Scale the model to a known distance between two camera centres; its axes and origin are kept."""
    if not (np.isfinite(target.metres) and target.metres > 0):
        raise UsageError(f"--distance {target.metres:g}: the distance in metres must be more than 0")
    for name in (target.name0, target.name1):
        if name not in centres:
            near = difflib.get_close_matches(name, centres, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"it has {next(iter(centres))!r} and {len(centres) - 1} more"
            )
            raise BadInputError(f"{model}: no image {name!r} is registered in this model; {hint}")
    apart = float(np.linalg.norm(centres[target.name0] - centres[target.name1]))
    every = np.array(list(centres.values()))
    if apart <= SAME_PLACE * float(np.linalg.norm(np.ptp(every, axis=0))):
        raise BadInputError(f"{target.name0!r} and {target.name1!r} are at one place in the model; choose two others")
    return Alignment("distance", np.eye(3, 4) * (target.metres / apart))


def _align_to_positions(
    method: str,
    centres: Mapping[str, np.ndarray],
    known: Mapping[str, np.ndarray],
    source: Path,
    config: SimilarityConfig,
    seed: int,
    without: tuple[str, ...],
    origin: Geodetic | None,
) -> Alignment:
    try:
        fit = fit_similarity(np.array([centres[name] for name in known]), np.array(list(known.values())), config, seed)
    except (BadInputError, EmptyResultError) as error:
        raise type(error)(f"{source}: {error}") from None
    if fit.orientation_std_deg > UNSURE_DEG:
        LOGGER.warning(
            "align: the orientation is uncertain by %.1f degrees (one standard deviation): the cameras are almost"
            " collinear, or the positions are too inaccurate for such a small scene",
            fit.orientation_std_deg,
        )
    return Alignment(method, fit.target_from_source, tuple(known), fit, without, origin)


def _camera_centres(model: pycolmap.Reconstruction, folder: Path) -> dict[str, Float[np.ndarray, "3"]]:
    """Camera centres of the registered images by name, sorted by name."""
    found = {image.name: image.projection_center() for image in model.images.values() if image.has_pose}
    if not found:
        raise BadInputError(f"{folder}: no image of this model has a pose")
    return dict(sorted(found.items()))
