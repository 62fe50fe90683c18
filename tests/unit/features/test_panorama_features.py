"""The extract stage on panoramas: in views where metadata or the configuration say so, else as any photograph."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from featkit.core.types import Features
from featkit.features.panoramas import in_panorama, views_of
from featkit.features.stage import ExtractConfig, extract_one, extraction_method, images_to_extract, run
from featkit.geometry.poses import look_at
from featkit.images.read import DecodeConfig, decode
from featkit.io.features import open_features
from tests.geotagged import GPANO
from tests.painted_room import UP, seen, sphere, walls

pytestmark = pytest.mark.slow
LIMIT = 300


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """marked.jpg, plain.jpg: the same panorama with and without metadata; part.jpg: not of the shape of one."""
    folder = tmp_path_factory.mktemp("panoramas")
    pixels = seen(walls(), look_at(np.zeros(3), np.array([4.0, 1.0, 0.3]), UP), sphere(640)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "marked.jpg", quality=95, xmp=GPANO)
    Image.fromarray(pixels).save(folder / "plain.jpg", quality=95)
    Image.fromarray(pixels[:200]).save(folder / "part.jpg", quality=95, xmp=GPANO)
    return folder


def extracted(path: Path, **fields: object) -> Features:
    config = ExtractConfig(features="rootsift", extractor={"max_keypoints": LIMIT}, workers=1, **fields)
    return extract_one(extraction_method(config), path)


def same(a: Features, b: Features) -> bool:
    return a.keypoints.shape == b.keypoints.shape and bool(np.allclose(a.keypoints, b.keypoints))


def test_which_photographs_are_cut_into_views(photographs: Path) -> None:
    marked, plain, part = (photographs / f"{name}.jpg" for name in ("marked", "plain", "part"))
    whole = extracted(marked, panoramas="whole")
    views = extracted(marked)
    assert not same(views, whole)
    assert same(extracted(plain), whole)
    assert same(extracted(plain, all_panoramas=True), views)
    assert same(extracted(part), extracted(part, panoramas="whole"))


def test_features_of_views_are_those_of_the_views(photographs: Path) -> None:
    found = extracted(photographs / "marked.jpg")
    extractor = extraction_method(ExtractConfig(extractor={"max_keypoints": LIMIT})).built
    pixels = decode(photographs / "marked.jpg", DecodeConfig()).pixels
    own = [extractor.extract(view.cut(pixels)) for view in views_of(640, 320)]
    assert same(found, in_panorama(own, 640, 320, LIMIT))
    assert len(found) == LIMIT
    assert found.image_size == (640, 320)
    assert found.extractor == "rootsift"


def test_resized_panoramas_are_told_in_the_pixels_of_the_file(photographs: Path) -> None:
    small = extracted(photographs / "marked.jpg", decode=DecodeConfig(resize_max=320))
    assert small.image_size == (640, 320)
    assert small.keypoints[:, 0].max() > 400


def test_panoramas_of_a_store_from_before_views_are_extracted_again(photographs: Path, tmp_path: Path) -> None:
    """Such a store says nothing of panoramas: they are as the picture is. The other photographs are done."""
    config = ExtractConfig(extractor={"max_keypoints": LIMIT}, workers=1)
    output = run(extraction_method(config), photographs, tmp_path / "features.h5")
    with h5py.File(output) as file:
        fingerprint, settings = file.attrs["fingerprint"], file.attrs["config"]
    with open_features(output) as store:
        views = store.read("marked.jpg")
    run(extraction_method(config.model_copy(update={"panoramas": "whole"})), photographs, output, overwrite=True)
    with h5py.File(output, "r+") as file:
        file.attrs["fingerprint"], file.attrs["config"] = fingerprint, settings
        file["plain.jpg"].attrs["untouched"] = True
    with open_features(output) as store:
        assert not same(store.read("marked.jpg"), views)
    run(extraction_method(config), photographs, output)
    with open_features(output) as store:
        assert same(store.read("marked.jpg"), views)
    with h5py.File(output) as file:
        assert file["plain.jpg"].attrs["untouched"]
    assert (
        images_to_extract(
            extraction_method(config), photographs, output, ["marked.jpg", "part.jpg", "plain.jpg"], False
        )
        == []
    )
