"""Dense points of a map, as the ETH benchmark counts them: undistorted, patch-match stereo, fused. Takes CUDA."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pycolmap

from featkit.config import Config
from featkit.errors import FeatkitError
from featkit.mapping.model import read_model
from featkit.store.artifact import inside, making, write_stamp
from featkit.store.stamp import is_stamped, read_stamp

LOGGER = logging.getLogger(__name__)


class DenseConfig(Config):
    """The ETH local-feature benchmark's settings."""

    max_image_size: int = 1200
    """Longer side of the undistorted images, px."""
    geometric_consistency: bool = False
    """A second pass that compares depths between images."""
    min_fused_pixels: int = 5
    """Pixels that must agree on a point."""


def dense_is_possible() -> bool:
    """Whether this pycolmap was built with CUDA."""
    return bool(pycolmap.has_cuda)


def count_dense_points(config: DenseConfig, images: Path, model: Path, output: Path, inputs: str) -> int:
    """Number of fused points of a model; done once per configuration and `inputs` (a digest of the model).

    The points stay in output/fused.ply. Raises FeatkitError when COLMAP fails.
    """
    stamp = output / "dense.json"
    if is_stamped(stamp, config, inputs):
        return int((read_stamp(stamp) or {}).get("points", 0))
    for image in read_model(model).images.values():
        inside(output, image.name)  # COLMAP writes the undistorted photographs by these names
    with making(output) as new:
        points = _fused(config, images, model, new)
        write_stamp(new / stamp.name, config, inputs, kind="dense", points=points)
    return points


def _fused(config: DenseConfig, images: Path, model: Path, output: Path) -> int:
    undistorted = pycolmap.UndistortCameraOptions()
    undistorted.max_image_size = config.max_image_size
    stereo = pycolmap.PatchMatchOptions()
    stereo.geom_consistency = config.geometric_consistency
    fusion = pycolmap.StereoFusionOptions()
    fusion.min_num_pixels = config.min_fused_pixels
    try:
        LOGGER.info("dense: stereo at work, minutes to hours")
        pycolmap.undistort_images(str(output), str(model), str(images), undistort_options=undistorted)
        pycolmap.patch_match_stereo(str(output), options=stereo)
        kind = "geometric" if config.geometric_consistency else "photometric"
        fused = pycolmap.stereo_fusion(
            str(output / "fused.ply"), str(output), input_type=kind, options=fusion, output_type="PLY"
        )
    except Exception as error:  # pycolmap's own exception types differ from one version to the next
        raise FeatkitError(f"{model}: no dense points ({str(error).splitlines()[0]}); --set dense=null skips") from None
    for folder in ("images", "stereo", "sparse"):  # many times the size of the map
        shutil.rmtree(output / folder, ignore_errors=True)
    return int(fused.num_points3D())
