"""Dense points of a map, as the ETH benchmark counts them: undistorted, patch-match stereo, fused. Takes CUDA."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pycolmap

from featkit.config import Config
from featkit.errors import FeatkitError
from featkit.store.stamp import is_stamped, read_stamp, write_stamp

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
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
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
    points = int(fused.num_points3D())
    for folder in ("images", "stereo", "sparse"):  # many times the size of the map
        shutil.rmtree(output / folder, ignore_errors=True)
    write_stamp(stamp, config, inputs, kind="dense", points=points)
    return points
