"""Keypoints of a file, described: as a network describes its own, patch by patch, where they are; what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pycolmap
import pytest
import torch
import torch.nn.functional as F
from in_process import refused, results, run
from PIL import Image
from warped_sequences import SIZE as OF_SEQUENCES
from warped_sequences import write_sequence

from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.types import Features
from featkit.features import stage as extract
from featkit.features.patches import Patches
from featkit.features.stage import ExtractConfig, config_of_features, extraction_method
from featkit.images.read import as_stored
from featkit.io.features import append_features, open_features, points_digest
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
from featkit.weights.files import load_patch_network, load_scfeat_network, save_patch_network, save_scfeat_network

SIZE = (176, 112)
TURNED = 6  # the EXIF orientation of one photograph
NAMES = ("a.png", "sub/turned.png")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained networks: what they describe is as good a test."""
    folder, draw = tmp_path_factory.mktemp("weights"), torch.Generator().manual_seed(0)
    dense = SCFeatNetwork(SCFeatNetworkConfig(encoder="resnet18"), draw).eval()
    patch = {bits: PatchNetwork(PatchNetworkConfig(architecture="hynet", bits=bits), draw).eval() for bits in (0, 64)}
    for bits, network in patch.items():
        save_patch_network(folder / f"{bits}.safetensors", network, {})
    return {
        "scfeat": save_scfeat_network(folder / "s.safetensors", dense),
        "dog+hynet": folder / "0.safetensors",
        "dog+doap-binary": folder / "64.safetensors",
    }


def pixels(seed: int) -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(SIZE[1], SIZE[0], 3)), (0, 0), 2.0)
    return np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs, the second stored turned."""
    folder = tmp_path_factory.mktemp("images")
    exif = Image.Exif()
    exif[0x0112] = TURNED
    (folder / "sub").mkdir()
    Image.fromarray(pixels(0)).save(folder / NAMES[0])
    Image.fromarray(as_stored(pixels(1), TURNED)).save(folder / NAMES[1], exif=exif)
    return folder


def write_points(path: Path, points: dict[str, dict[str, Any]]) -> Path:
    """Keypoints in hloc's layout, as another program's detector leaves them: no descriptors, not featkit's marks."""
    with h5py.File(path, "w") as file:
        for name, arrays in points.items():
            group = file.create_group(name)
            for key, values in arrays.items():
                group[key] = values
    return path


def drawn(count: int, size: tuple[int, int], seed: int = 0, **more: Any) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    keypoints = generator.uniform(8, np.array(size) - 9, (count, 2)).astype(np.float32)
    return {"keypoints": keypoints, "scores": generator.random(count).astype(np.float32), "image_size": size, **more}


def read(path: Path) -> dict[str, Features]:
    with open_features(path) as store:
        return {name: store.read(name) for name in store.names()}


def command(images: Path, out: Path, features: str, weights: dict[str, Path], *options: object) -> dict[str, Any]:
    given = ("--features", features, "--weights", weights[features], "--device", "cpu", "--workers", 1)
    return results("extract", images, "--out", out, *given, *options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("features", "options"),
    [
        ("scfeat", ("--set", "threshold=0.5")),
        ("scfeat", ("--set", "threshold=0.5", "--set", "turns=4", "--set", "normalisation=fusion")),
        ("scfeat", ("--set", "threshold=0.5", "--resize-max", 128)),
        ("scfeat", ("--set", "threshold=0.5", "--set", "scales=[1.0, 0.7]")),
        ("dog+hynet", ()),
        ("dog+doap-binary", ()),
        ("dog+hynet", ("--resize-max", 128)),
    ],
)
def test_its_own_keypoints_have_its_own_descriptors(
    images: Path, weights: dict[str, Path], tmp_path: Path, features: str, options: Sequence[object]
) -> None:
    own, again = tmp_path / "own.h5", tmp_path / "again.h5"
    limited = ("--max-keypoints", 100)
    command(images, own, features, weights, *options, *limited)
    command(images, again, features, weights, *options, "--keypoints", own)
    expected, found = read(own), read(again)
    assert found.keys() == expected.keys() == set(NAMES)
    for name, features_of_it in expected.items():
        same = found[name]
        assert len(same) > 30
        for part in ("keypoints", "scores", "scales"):
            np.testing.assert_array_equal(getattr(same, part), getattr(features_of_it, part))
        if features_of_it.oris is not None:
            np.testing.assert_allclose(same.oris, features_of_it.oris, atol=1e-6)  # degrees in the file
        for part in ("image_size", "uncertainty_px", "turns", "extractor"):
            assert getattr(same, part) == getattr(features_of_it, part)
        assert (same.from_seen is None) == (features_of_it.from_seen is None)
        if same.descriptors.dtype == np.uint8:
            assert (same.descriptors != features_of_it.descriptors).mean() < 1e-3
        else:
            np.testing.assert_allclose(same.descriptors, features_of_it.descriptors, atol=5e-4)


def test_scfeat_samples_its_map_at_the_points(images: Path, weights: dict[str, Path], tmp_path: Path) -> None:
    """By the network as it was trained, at whole pixels of the upright photograph."""
    height, width = SIZE[1], SIZE[0]
    upright = np.array([[20, 9], [150, 100], [3, 60], [90, 55]])
    stored = {NAMES[0]: upright, NAMES[1]: np.stack([upright[:, 1], width - 1 - upright[:, 0]], axis=1)}
    sizes = {NAMES[0]: SIZE, NAMES[1]: (height, width)}
    points = {n: {"keypoints": stored[n].astype(np.float32), "image_size": sizes[n]} for n in NAMES}
    for name, at in stored.items():  # the second is stored turned: the same pixel, by its colour
        seed = NAMES.index(name)
        there = np.asarray(Image.open(images / name))[at[:, 1], at[:, 0]]
        assert np.array_equal(there, pixels(seed)[upright[:, 1], upright[:, 0]])
    command(images, tmp_path / "f.h5", "scfeat", weights, "--keypoints", write_points(tmp_path / "p.h5", points))
    network = load_scfeat_network(weights["scfeat"])
    for seed, (name, found) in enumerate(read(tmp_path / "f.h5").items()):
        with torch.inference_mode():
            maps, _ = network(torch.from_numpy(pixels(seed)).permute(2, 0, 1)[None] / 255)
            large = F.interpolate(maps.descriptors, scale_factor=4, mode="bilinear")[0]
        expected = F.normalize(large[:, upright[:, 1], upright[:, 0]].T, dim=1)
        np.testing.assert_allclose(found.descriptors, expected.numpy(), atol=2e-3)
        np.testing.assert_array_equal(found.keypoints, stored[name])
        assert found.image_size == sizes[name]
        assert (found.scores == 1).all()
        assert found.scales is None


@pytest.mark.parametrize("framed", [True, False])
def test_patches_are_cut_where_and_as_the_file_says(
    images: Path, weights: dict[str, Path], tmp_path: Path, framed: bool
) -> None:
    """Sample by sample by hand, of side 12 scales and turned; without scale and orientation 64 px upright."""
    size, scales = SIZE, np.array([3.0, 4.5, 5.0], np.float32)
    more = {"scales": scales, "oris": np.array([30.0, -100.0, 0.0], np.float32)} if framed else {}
    points = write_points(tmp_path / "p.h5", {NAMES[0]: drawn(3, size, **more)})
    command(images, tmp_path / "f.h5", "dog+hynet", weights, "--keypoints", points)
    found = read(tmp_path / "f.h5")[NAMES[0]]
    grey = cv2.imread(str(images / NAMES[0]), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    network, _ = load_patch_network(weights["dog+hynet"], torch.device("cpu"))
    for index, (x, y) in enumerate(found.keypoints):
        side, angle = (12 * scales[index], np.radians(more["oris"][index])) if framed else (64.0, 0.0)
        patch = np.zeros((64, 64), np.float32)
        for i, j in np.ndindex(64, 64):
            u, v = (2 * j + 1) / 64 - 1, (2 * i + 1) / 64 - 1
            along, across = u * side / 2, v * side / 2
            at = x + along * np.cos(angle) - across * np.sin(angle), y + along * np.sin(angle) + across * np.cos(angle)
            patch[i, j] = cv2.getRectSubPix(grey, (1, 1), tuple(map(float, at)))[0, 0]
        small = patch.reshape(32, 2, 32, 2).mean(axis=(1, 3))
        with torch.no_grad():
            expected = network(torch.from_numpy(small)[None, None]).descriptor[0].numpy()
        np.testing.assert_allclose(found.descriptors[index], expected, atol=2e-3)
    assert (found.scales is None) == (found.oris is None) == (not framed)


def test_what_is_dropped_and_left_out_is_said(images: Path, weights: dict[str, Path], tmp_path: Path) -> None:
    """Keypoints beyond the image's edge or masked go; others keep their order, scores, scales and angles."""
    points = drawn(40, SIZE, scales=np.full(40, 2, np.float32), oris=np.linspace(-170, 170, 40).astype(np.float32))
    edge = {0: (-0.6, 5), 1: (-0.5, 5), 2: (175.5, 5), 3: (175.6, 5), 4: (5, np.nan), 5: (5, 111.5), 6: (5, 113)}
    for index, at in edge.items():
        points["keypoints"][index] = at
    keep = [index for index in range(40) if index not in (0, 3, 4, 6)]
    file = write_points(tmp_path / "p.h5", {NAMES[0]: points})
    ran = run(
        "extract", images, "--out", tmp_path / "f.h5", "--features", "scfeat", "--weights", weights["scfeat"],
        "--keypoints", file, "--device", "cpu",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "4 keypoints outside 1 images (a.png) dropped" in ran.stderr
    assert "no keypoints of 1 of 2 images, which are left out: sub/turned.png" in ran.stderr
    found = read(tmp_path / "f.h5")
    assert found.keys() == {NAMES[0]}
    for part in ("keypoints", "scores", "scales"):
        np.testing.assert_array_equal(getattr(found[NAMES[0]], part), points[part][keep])
    np.testing.assert_allclose(np.degrees(found[NAMES[0]].oris), points["oris"][keep], rtol=1e-6)
    masks = tmp_path / "masks"
    masks.mkdir()
    hidden = np.full(SIZE[::-1], 255, np.uint8)
    hidden[:, :90] = 0
    cv2.imwrite(str(masks / "a.png.png"), hidden)
    command(images, tmp_path / "m.h5", "scfeat", weights, "--keypoints", file, "--masks", masks)
    masked = read(tmp_path / "m.h5")[NAMES[0]]
    of_right = found[NAMES[0]].select(np.flatnonzero(found[NAMES[0]].keypoints[:, 0] >= 89.5))
    assert 5 < len(masked) < 35
    np.testing.assert_array_equal(masked.keypoints, of_right.keypoints)
    np.testing.assert_array_equal(masked.descriptors, of_right.descriptors)


def test_the_file_decides_what_may_be_gone_on_with(images: Path, weights: dict[str, Path], tmp_path: Path) -> None:
    """Another file of the same keypoints is the same; others, a score or a scale, are not. Stopped, it goes on."""
    sizes = (SIZE, SIZE[::-1])
    points = {name: drawn(20, size, seed) for seed, (name, size) in enumerate(zip(NAMES, sizes, strict=True))}
    file, out = write_points(tmp_path / "p.h5", points), tmp_path / "f.h5"
    method = extraction_method(
        ExtractConfig(features="scfeat", keypoints=file), {"weights": str(weights["scfeat"])}, device="cpu"
    )
    extract.run(method, images, out, [NAMES[0]])
    assert len(read(out)) == 1
    command(images, out, "scfeat", weights, "--keypoints", file)
    first = read(out)
    assert first.keys() == set(NAMES)
    more = {name: {**one, "descriptors": np.ones((3, 20), np.float32)} for name, one in points.items()}
    same = write_points(tmp_path / "copy.h5", more)
    again = run(
        "extract", images, "--out", out, "--features", "scfeat", "--weights", weights["scfeat"], "--keypoints", same
    )
    assert again.exit_code == 0, again.output
    assert "2 of 2 images are done" in again.stderr
    ask = ("extract", images, "--out", out, "--features", "scfeat", "--weights", weights["scfeat"], "-q")
    for number, change in enumerate(({"scores": np.ones(20, np.float32)}, {"scales": np.full(20, 3.0, np.float32)})):
        other = write_points(tmp_path / f"{number}.h5", {**points, NAMES[0]: {**points[NAMES[0]], **change}})
        refused(run(*ask, "--keypoints", other), 3, "f.h5", "keypoints_digest", "--overwrite")
    refused(run(*ask), 3, "keypoints_digest")
    with pytest.raises(BadInputError, match="--keypoints FILE"):
        config_of_features(out)
    again_at = extraction_method(config_of_features(out, keypoints=same), device="cpu")
    assert again_at.config.fingerprint() == method.config.fingerprint()
    at_others = extraction_method(config_of_features(out, keypoints=other), device="cpu").config
    assert at_others.extractor == method.config.extractor
    assert at_others.keypoints_digest != method.config.keypoints_digest


def test_shards_describe_what_one_run_does(images: Path, weights: dict[str, Path], tmp_path: Path) -> None:
    sizes = (SIZE, SIZE[::-1])
    points = {name: drawn(20, size, seed) for seed, (name, size) in enumerate(zip(NAMES, sizes, strict=True))}
    file = write_points(tmp_path / "p.h5", points)
    whole, out = tmp_path / "whole.h5", tmp_path / "f.h5"
    command(images, whole, "dog+hynet", weights, "--keypoints", file)
    planned = command(images, out, "dog+hynet", weights, "--keypoints", file, "--engine", "plan", "--shards", 2)
    changed = {**points, NAMES[1]: drawn(20, sizes[1], 7)}
    write_points(file, changed)
    refused(run("run", planned["plan"], "--shard", 0, "-q"), 3, "p.h5", "its keypoints have changed")
    write_points(file, points)
    results("run", planned["plan"])
    expected, found = read(whole), read(out)
    assert found.keys() == expected.keys() == set(NAMES)
    for name, one in expected.items():
        np.testing.assert_array_equal(found[name].descriptors, one.descriptors)
    with open_features(whole) as a, open_features(out) as b:
        assert a.attributes()["fingerprint"] == b.attributes()["fingerprint"]


@pytest.mark.slow
@pytest.mark.parametrize("two_steps", [False, True])
def test_several_workers(
    images: Path, weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_steps: bool
) -> None:
    """two_steps: as on a GPU, where nothing is left for processes to do."""
    for index in range(4):
        Image.fromarray(pixels(index)).save(tmp_path / f"{index}.png")
    points = write_points(tmp_path / "p.h5", {f"{index}.png": drawn(12, SIZE, index) for index in range(4)})
    monkeypatch.setattr(Patches, "two_steps", two_steps)
    for name, workers in (("one", 1), ("many", 2)):
        config = ExtractConfig(features="dog+hynet", workers=workers, keypoints=points)
        extract.run(
            extraction_method(config, {"weights": str(weights["dog+hynet"])}, "cpu"), tmp_path, tmp_path / f"{name}.h5"
        )
    one, many = read(tmp_path / "one.h5"), read(tmp_path / "many.h5")
    assert one.keys() == many.keys() == {f"{index}.png" for index in range(4)}
    for name, features in one.items():
        np.testing.assert_array_equal(features.descriptors, many[name].descriptors)


def test_what_is_refused(images: Path, weights: dict[str, Path], tmp_path: Path) -> None:
    """Keypoints of other photographs, of another size, damaged ones; features that describe only their own."""
    ask = ("extract", images, "--out", tmp_path / "f.h5", "--features", "dog+hynet", "-q", "--device", "cpu")
    ask = (*ask, "--weights", weights["dog+hynet"], "--workers", 1, "--keypoints")
    good = drawn(9, SIZE)
    for number, (points, words) in enumerate(
        (
            ({"b.png": good}, ("no keypoints of the 2 images", "a.png")),
            ({NAMES[0]: good, NAMES[1]: good}, ("176 x 112", "sub/turned.png has 112 x 176")),
            ({NAMES[1]: good, NAMES[0]: {**good, "scales": np.zeros(9, np.float32)}}, ("a.png", "scale of 0 or less")),
            (
                {NAMES[1]: good, NAMES[0]: {**good, "scales": np.full(9, 1e30, np.float32)}},
                ("a.png", "scale of 1e+30"),
            ),
            ({NAMES[1]: good, NAMES[0]: {**good, "oris": np.full(9, np.nan, np.float32)}}, ("a.png", "not finite")),
            (
                {NAMES[1]: good, NAMES[0]: {**good, "scores": np.ones(8, np.float32)}},
                ("a.png", "another number of keypoints"),
            ),
        )
    ):
        refused(run(*ask, write_points(tmp_path / f"{number}.h5", points)), 3, f"{number}.h5", *words)
    refused(run(*ask, tmp_path / "no.h5"), 3, "no.h5: no such file")
    file = write_points(tmp_path / "odd.h5", {NAMES[0]: good})
    with h5py.File(file, "a") as points:
        points[NAMES[0]]["keypoints"].attrs["uncertainty"] = np.nan
    refused(run(*ask, file), 3, "odd.h5", "a.png", "an uncertainty of nan px")
    file = write_points(tmp_path / "far.h5", {NAMES[0]: {**good, "keypoints": np.full((9, 2), 1e6, np.float32)}})
    ran = run(*ask, file, "--overwrite")
    assert ran.exit_code == 4, ran.output
    assert "far.h5 has none inside" in ran.stderr.splitlines()[-1]
    file = write_points(tmp_path / "good.h5", {NAMES[0]: good})
    refused(run(*ask, file, "--max-keypoints", 5), 2, "max_keypoints", "--keypoints")
    refused(
        run("extract", images, "--out", tmp_path / "f.h5", "--features", "rootsift", "--keypoints", file, "-q"),
        2, "rootsift", "its own keypoints only", "scfeat", "dog+hynet", "doghardnet",
    )  # fmt: skip


def test_an_image_that_cannot_be_described_has_none(weights: dict[str, Path], tmp_path: Path) -> None:
    """Of a single colour: SCFeat sees nothing in it, whatever the file has."""
    Image.fromarray(np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)).save(tmp_path / "flat.png")
    Image.fromarray(pixels(0)).save(tmp_path / "a.png")
    file = write_points(tmp_path / "p.h5", {"flat.png": drawn(9, SIZE), "a.png": drawn(9, SIZE)})
    command(tmp_path, tmp_path / "f.h5", "scfeat", weights, "--keypoints", file)
    found = read(tmp_path / "f.h5")
    assert (len(found["flat.png"]), len(found["a.png"])) == (0, 9)
    assert found["flat.png"].descriptors.shape == (0, found["a.png"].descriptors.shape[1])


def test_a_server_refuses_a_map_of_given_keypoints(tmp_path: Path) -> None:
    """At once, with the reason and what to do: the photographs that it is sent come without keypoints."""
    pycolmap.synthesize_dataset(pycolmap.SyntheticDatasetOptions()).write(str(_folder(tmp_path / "sparse")))
    points = drawn(9, SIZE)
    features = Features(points["keypoints"], np.eye(9, 16, dtype=np.float32), points["scores"], SIZE)
    for digest in ("", "0123456789abcdef"):
        with append_features(tmp_path / f"f{digest}.h5", ExtractConfig(keypoints_digest=digest)) as store:
            store.write("a.png", features)
    given = ("serve", tmp_path, "--port", 0, "--features", tmp_path / "f0123456789abcdef.h5")
    refused(
        run(*given), 3, "f0123456789abcdef.h5: describes keypoints of another", "`featkit localize --keypoints FILE`"
    )
    detected = run("serve", tmp_path, "--port", 0, "--features", tmp_path / "f.h5")
    assert "describes keypoints of another" not in detected.stderr


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_the_digest_is_of_the_keypoints_alone(tmp_path: Path) -> None:
    """featkit's own file, its descriptors another's: the same keypoints."""
    points = drawn(9, SIZE)
    features = Features(points["keypoints"], np.eye(9, 16, dtype=np.float32), points["scores"], SIZE)
    digests = []
    for number, one in enumerate((features, replace(features, descriptors=np.zeros((9, 4), np.float16)))):
        with append_features(tmp_path / f"{number}.h5", Config()) as store:
            store.write("a.png", one)
        with open_features(tmp_path / f"{number}.h5") as store:
            digests.append(points_digest(store))
    with open_features(write_points(tmp_path / "hloc.h5", {"a.png": points})) as store:
        digests.append(points_digest(store))
    assert len(set(digests)) == 1


@pytest.mark.slow
def test_a_benchmark_of_given_keypoints(weights: dict[str, Path], tmp_path: Path) -> None:
    """Keypoints at corresponding places match in the right way, and each file has predictions of its own."""
    (homography,) = write_sequence(tmp_path / "root", "wall", oxford=False, strength=0.2, images=2)
    first = np.random.default_rng(0).uniform(40, 120, (60, 2))
    moved = np.concatenate([first, np.ones((60, 1))], axis=1) @ homography.T
    points = {"wall/1.ppm": first, "wall/2.ppm": moved[:, :2] / moved[:, 2:]}
    file = write_points(tmp_path / "superpoint.h5", {n: {"keypoints": p.astype(np.float32)} for n, p in points.items()})
    ask = ("eval", "hpatches", "--root", tmp_path / "root", "--features", "scfeat", "--device", "cpu", "--out")
    found = results(*ask, tmp_path / "out", "--keypoints", file)
    (method,) = found["methods"]
    assert method["name"] == "scfeat on superpoint"
    assert method["groups"]["overall"]["features"] == 60
    assert method["groups"]["overall"]["mma"][0] > 0.5  # of exact keypoints; by chance 1 of 60
    results(
        *ask,
        tmp_path / "out",
        "--keypoints",
        write_points(tmp_path / "b.h5", {n: drawn(50, OF_SEQUENCES) for n in points}),
    )
    assert len(list((tmp_path / "out" / "predictions").iterdir())) == 2
