"""Features of panoramas, extracted from pinhole views (`images.panoramas`) if so configured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featkit.core.registry import Method
from featkit.core.types import Features
from featkit.features.base import Extractor
from featkit.images.exif import taken_with
from featkit.images.panoramas import in_panorama, views_of
from featkit.images.read import DecodedImage
from featkit.io.camera_models import is_whole_sphere


def extract_decoded(method: Method[Extractor], image: DecodedImage, of_sphere: bool) -> Features:
    """Features of a decoded image, in its pixels; a panorama is cut into views if so configured.

    of_sphere: whether the image is a panorama.
    """
    if not (of_sphere and is_cut_into_views(method, image)):
        return method.built.extract(image.pixels)
    return merge_view_features(
        method, image, [method.built.extract(v.cut(image.pixels)) for v in views_of(*image.size)]
    )


def is_cut_into_views(method: Method[Extractor], image: DecodedImage) -> bool:
    """Whether a panorama is cut into views."""
    return bool(method.config.panoramas == "views") and is_whole_sphere(image.size)


def is_panorama(method: Method[Extractor], path: Path) -> bool:
    """Whether a photograph is a panorama, by the configuration or by its metadata."""
    if method.config.panoramas == "whole" or method.config.all_panoramas:
        return bool(method.config.all_panoramas)
    taken = taken_with(path)
    return taken is not None and taken.is_panorama and not taken.is_part


def merge_view_features(method: Method[Extractor], image: DecodedImage, found: Sequence[Features]) -> Features:
    """Merge the features of a panorama's views, limited to the extractor's maximum per image."""
    limit = method.own.result_fields().get("max_keypoints")
    return in_panorama(found, *image.size, limit if isinstance(limit, int) and limit > 0 else None)
