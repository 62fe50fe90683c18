"""Networks as ONNX: run by ONNX Runtime, they give what featkit's extractors and matchers give."""

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from in_process import refused, results, run
from published_weights import needs_package, untrained
from safetensors.torch import save_file

from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.core.registry import resolve
from featkit.core.types import Features
from featkit.features.patches import describe_patches
from featkit.matching.lightglue import LightGlueConfig, LightGlueMatcher
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.onnx import export as module
from featkit.onnx.export import export_onnx, prepare
from featkit.onnx.graphs import NO_KEYPOINT, SampledConv, _local_maxima
from featkit.weights.files import load_patch_network, save_patch_network
from featkit.weights.manifest import sha256_of

pytestmark = pytest.mark.slow
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def photograph(shared_data: Path, name: str, side_px: int) -> np.ndarray:
    image = cv2.imread(str(shared_data / name))[..., ::-1]
    scale = side_px / max(image.shape[:2])
    return np.ascontiguousarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def assert_same(own: Features, rows: list[np.ndarray], atol: float) -> None:
    """The same features, but for one in a hundred whose pixel is a maximum by its last digit."""
    points, scores, descriptors = rows
    there = scores > NO_KEYPOINT
    points, scores, descriptors = points[there], scores[there], descriptors[there]
    assert abs(len(own) - len(points)) <= 0.01 * len(own)
    distances = np.abs(own.keypoints[:, None] - points[None]).max(2)
    nearest, near = distances.argmin(1), distances.min(1) < 1e-3
    assert near.mean() >= 0.99
    differences = np.abs(own.descriptors[near].astype(np.float32) - descriptors[nearest[near]]).max(1)
    assert (differences < atol).mean() >= 0.99
    np.testing.assert_allclose(own.scores[near], scores[nearest[near]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["scfeat-s", "aliked-t16", "disk", "xfeat"])
def test_features_of_photographs(name: str, shared_data: Path, tmp_path: Path) -> None:
    if name != "scfeat-s":
        needs_package(name)
    changes = {"max_keypoints": 400}
    path = tmp_path / f"{name}.onnx"
    done = export_onnx(name, path, changes)
    assert done.checks["keypoints"] > 500
    network = session(path)
    extractor = resolve("extractor", name.removesuffix("-s"), changes, "cpu").built
    for photo, side_px in (("oxford-affine/graf/img1.png", 230), ("oxford-affine/boat/img1.png", 181)):
        pixels = photograph(shared_data, photo, side_px)
        both = np.stack([pixels, pixels[::-1, ::-1]]).transpose(0, 3, 1, 2).astype(np.float32) / 255
        *rows, score_map = network.run(None, {"images": both})
        if name != "xfeat":  # which sees the image at another size
            assert score_map.shape == (2, 1, *pixels.shape[:2])
        for number, image in enumerate((pixels, np.ascontiguousarray(pixels[::-1, ::-1]))):
            own = extractor.extract(image)
            assert len(own) > 100
            assert_same(own, [values[number] for values in rows], 2e-4 if name == "scfeat-s" else 1e-4)
    best = rows[1][0][rows[1][0] > NO_KEYPOINT]
    assert name.startswith("aliked") or (np.diff(best) <= 0).all(), "best first"


def test_fields_are_in_the_graph(tmp_path: Path) -> None:
    needs_package("aliked-t16")
    given = {"max_keypoints": 150, "nms_radius": 4, "threshold": 0.3}
    export_onnx("aliked-t16", tmp_path / "a.onnx", given)
    image = module._noise_image(120, 90, seed=9)
    own = resolve("extractor", "aliked-t16", given, "cpu").built.extract(image)
    pixels = image.transpose(2, 0, 1)[None].astype(np.float32) / 255
    rows = session(tmp_path / "a.onnx").run(None, {"images": pixels})[:3]
    assert_same(own, [values[0] for values in rows], 1e-4)


def test_scfeat_with_its_other_fields(tmp_path: Path) -> None:
    given = {"max_keypoints": 100, "nms_window": 7, "descriptor_map": "normalised", "normalisation": "fusion"}
    done = export_onnx("scfeat-s", tmp_path / "s.onnx", {**given, "refine": False, "border_px": 5})
    assert done.outputs["descriptors"] == ("batch", 100, 129)
    assert done.checks["shared"] == 1


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "l2net", "input_norm": "variance", "input_eps": 1e-5},
        {"architecture": "hynet"},
        {"architecture": "l2net", "spatial_transformer": True, "bits": 64},
    ],
)
def test_patches(config: dict[str, Any], tmp_path: Path) -> None:
    network = PatchNetwork(PatchNetworkConfig(**config), torch.Generator().manual_seed(3)).eval()
    if network.transformer is not None:
        torch.nn.init.normal_(network.transformer.prediction.weight, std=0.02)
    weights = save_patch_network(tmp_path / "patch.safetensors", network)
    export_onnx(str(weights), tmp_path / "patch.onnx")
    loaded, _ = load_patch_network(weights)
    patches = torch.rand(7, loaded.input_px, loaded.input_px, generator=torch.Generator().manual_seed(4))
    (found,) = session(tmp_path / "patch.onnx").run(None, {"patches": patches[:, None].numpy()})
    own = describe_patches(loaded, patches, "cpu")
    if loaded.is_binary:
        np.testing.assert_array_equal(np.packbits(found > 0, axis=1), own)
    else:
        np.testing.assert_allclose(found, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "places"), [("xfeat-lighterglue", 2), ("sift-lightglue", 4)])
def test_matches(name: str, places: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if places == 2:
        needs_package(name)
        changes: dict[str, Any] = {}
    else:  # two layers of weights as drawn: nothing is sure, so that everything above 0 is a match
        kornia_feature = pytest.importorskip("kornia.feature")
        monkeypatch.setitem(kornia_feature.LightGlue.features["sift"], "n_layers", 2)
        untrained.cache_clear()
        weights = tmp_path / "drawn.safetensors"
        save_file({key: value for key, value in untrained(name).items() if key != "confidence_thresholds"}, weights)
        changes = {"weights": str(weights), "filter_threshold": 0.0}
    done = export_onnx(name, tmp_path / "glue.onnx", changes)
    untrained.cache_clear()
    assert done.inputs["keypoints1"] == ("batch", "count1", places)
    assert done.checks["matches"] > 50
    arrays = module._example_pair(int(done.inputs["descriptors1"][2]), places == 4, 8, 30, 33)
    found = session(tmp_path / "glue.onnx").run(
        None, {key: array[None] for key, array in zip(done.inputs, arrays, strict=True)}
    )
    matcher = LightGlueMatcher(
        LightGlueConfig(**{"weights": name, "depth_confidence": -1, "width_confidence": -1, **changes}), "cpu"
    )
    pair = module._as_features(arrays[:3], name), module._as_features(arrays[3:], name)
    own = matcher.match([pair])[0]
    assert (own.matches0 >= 0).any()
    np.testing.assert_array_equal(found[0][0], own.matches0)
    np.testing.assert_allclose(found[1][0], own.scores0, rtol=0, atol=1e-3)


def test_what_a_file_says_of_itself(tmp_path: Path) -> None:
    done = results("weights", "export", "hardnet", "--out", tmp_path / "h.onnx")
    model = onnx.load(tmp_path / "h.onnx")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert model.producer_name == "featkit"
    assert (done["sha256"], done["bytes"]) == (sha256_of(tmp_path / "h.onnx"), (tmp_path / "h.onnx").stat().st_size)
    listed = results("weights", "show", "hardnet")
    assert (told["name"], told["weights_sha256"]) == ("hardnet", listed["sha256"])
    assert json.loads(told["config"])["architecture"] == "l2net"
    assert "values in [0, 1]" in told["preprocessing"]
    assert "18 times as wide as a keypoint's scale" in told["preprocessing"]
    assert told == done["metadata"]
    assert results("weights", "export", "hardnet", "--out", tmp_path / "h.onnx")["sha256"] == done["sha256"]


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_package("xfeat")
    real = module._open_session

    def slightly_wrong(*given: Any) -> Any:
        run = real(*given)
        return lambda *arrays: [values + 2e-3 for values in run(*arrays)]

    monkeypatch.setattr(module, "_open_session", slightly_wrong)
    with pytest.raises(EmptyResultError, match=r"descriptors of ONNX Runtime differ by 0\.002"):
        export_onnx("hynet", tmp_path / "h.onnx")
    with pytest.raises(EmptyResultError, match=r"of .* keypoints in the check only 0 are"):
        export_onnx("xfeat", tmp_path / "h.onnx", {"max_keypoints": 20})
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.onnx"
    for name, changes, words in (
        ("hynt", {}, "did you mean 'hynet'"),
        ("dedode-b", {}, "cannot be exported to ONNX"),
        ("hynet", {"threshold": 1}, "no settings"),
        ("scfeat-s", {"turns": 4}, "four rotations"),
        ("scfeat-s", {"min_keypoints": 9}, "lower threshold"),
        ("scfeat-s", {"max_keypoint": 9}, "max_keypoint"),
        ("xfeat-lighterglue", {"depth_confidence": 0.9}, "runs all layers"),
    ):
        with pytest.raises(UsageError, match=words):
            prepare(name, changes)
    with pytest.raises(BadInputError, match="at the end of a training"):
        prepare(str(tmp_path), {})
    (tmp_path / "mine.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    with pytest.raises(BadInputError, match="was not made by featkit"):
        export_onnx("hynet", tmp_path / "mine.onnx")
    refused(run("weights", "export", "hynet", "--out", out, "--name", "x"), 2, "--name has no meaning")
    refused(run("weights", "export", "hynet", "--out", tmp_path / "x.safetensors"), 2, "--name is missing")
    refused(run("export", tmp_path, "--format", "onnx", "--out", out), 2, "featkit weights export NAME --out FILE.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(run("weights", "export", "hynet", "--out", out), 2, "pip install 'featkit[onnx]'")
    assert not out.exists()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("radius", [1, 2])
def test_maxima(radius: int, strict: bool) -> None:
    """Against every pixel's square, looked at by itself; few values, so that many are equal."""
    scores = torch.from_numpy(np.random.default_rng(radius).integers(0, 9, (13, 17)).astype(np.float32))
    found = _local_maxima(scores[None, None], radius, strict)[0, 0]
    height, width = scores.shape
    for y in range(height):
        for x in range(width):
            rows, columns = (range(max(0, v - radius), min(n, v + radius + 1)) for v, n in ((y, height), (x, width)))
            others = {(j, i): float(scores[j, i]) for j in rows for i in columns if (j, i) != (y, x)}
            own = float(scores[y, x])
            if strict:
                expected = own > max(others.values()) and len(others) == (2 * radius + 1) ** 2 - 1
            else:
                expected = all(own > other if place < (y, x) else own >= other for place, other in others.items())
            assert bool(found[y, x]) == expected


def test_a_deformable_convolution_is_kornias() -> None:
    aliked = pytest.importorskip("kornia.feature.aliked.aliked")
    conv = aliked.DeformableConv2d(5, 7)
    torch.nn.init.normal_(conv.offset_conv.weight, std=0.3)
    maps = torch.rand(2, 5, 9, 12, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(SampledConv(conv)(maps), conv(maps), rtol=1e-4, atol=1e-5)
