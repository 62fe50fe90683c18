"""featkit inside hloc: on a stand-in always (see tests/hloc_stand_in.py), on the real hloc when it is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import itertools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hloc_stand_in import write_stand_in

from featkit import hloc as plug_in
from featkit.core.errors import BadInputError, UsageError
from featkit.core.registry import resolve
from featkit.core.types import Features, Matches, Pair
from featkit.features import stage as extract
from featkit.features.base import pack_bits
from featkit.features.stage import ExtractConfig, extraction_method
from featkit.hloc import features_of, matches_as_hloc, pixels_of, prediction_of
from featkit.images.read import DecodeConfig
from featkit.io.features import open_features
from featkit.io.matches import open_matches
from featkit.matching import stage as match
from featkit.matching.mutual import MutualConfig, MutualMatcher
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
from featkit.weights.files import save_scfeat_network

NAMES = ["db/a.png", "db/b.png", "query/c.png"]
REAL = importlib.util.find_spec("hloc") is not None


def forget_hloc() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "hloc"]:
        del sys.modules[name]


@pytest.fixture(params=["stand-in", "real"])
def hloc(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`import hloc` gives the one or the other, with nothing registered yet."""
    if request.param == "real" and not REAL:
        pytest.skip("hloc is not installed: " + plug_in.INSTALL)
    forget_hloc()
    if request.param == "stand-in":
        monkeypatch.syspath_prepend(str(write_stand_in(tmp_path / "stand-in")))
    yield request.param
    forget_hloc()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three views of one smooth texture, cut at different places; in colours."""
    rng = np.random.default_rng(3)
    canvas = cv2.GaussianBlur(rng.uniform(0, 255, (360, 420, 3)).astype(np.float32), (0, 0), 2.0)
    canvas = ((canvas - canvas.min()) / np.ptp(canvas) * 255).astype(np.uint8)
    for name, (x, y) in zip(NAMES, [(0, 0), (40, 20), (60, 50)], strict=True):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), canvas[y : y + 240, x : x + 320])
    return tmp_path / "images"


def extracted(conf: dict[str, Any], images: Path, out: Path) -> Path:
    return importlib.import_module("hloc.extract_features").main(conf, images, out)


def conf_of(name: str) -> dict[str, Any]:
    return importlib.import_module("hloc.extract_features").confs[name]


def test_every_extractor_and_matcher_is_there(hloc: str) -> None:
    added = plug_in.register()
    assert {"featkit-rootsift", "featkit-scfeat", "featkit-dog+sdgmnet"} <= set(added.extractors)
    assert {"featkit-lightglue", "featkit-mutual", "featkit-mutual-nn"} == set(added.matchers)
    assert plug_in.register() == added, "once more changes nothing"
    extract_features = importlib.import_module("hloc.extract_features")
    match_features = importlib.import_module("hloc.match_features")
    assert set(added.extractors) < set(extract_features.confs)
    assert set(added.matchers) < set(match_features.confs)
    assert conf_of("featkit-scfeat")["preprocessing"]["grayscale"] is False
    assert conf_of("featkit-rootsift")["preprocessing"]["grayscale"] is True
    outputs = [conf["output"] for conf in (*extract_features.confs.values(), *match_features.confs.values())]
    assert len(set(outputs)) == len(outputs)
    load = importlib.import_module("hloc.utils.base_model").dynamic_load
    for room, confs in ((extract_features.extractors, extract_features.confs),):
        for name in added.extractors:
            load(room, confs[name]["model"]["name"])(confs[name]["model"])  # built as hloc builds it


def untrained(folder: Path) -> dict[str, Any]:
    """What makes "scfeat" run without a trained weight."""
    network = SCFeatNetwork(SCFeatNetworkConfig(encoder="resnet18"), torch.Generator().manual_seed(0))
    return {"weights": str(save_scfeat_network(folder / "s.safetensors", network)), "threshold": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rootsift", "scfeat"])
def test_features_by_hloc_are_featkits(hloc: str, name: str, images: Path, tmp_path: Path) -> None:
    """Without resizing the same pixels go in, so the same keypoints come out; not rounded to hloc's float16."""
    plug_in.register()
    changes = untrained(tmp_path) if name == "scfeat" else {}
    conf = conf_of(f"featkit-{name}")
    theirs = extracted({**conf, "model": {**conf["model"], "changes": changes}}, images, tmp_path / "out1")
    method = extraction_method(ExtractConfig(features=name, workers=1), changes)
    ours = extract.run(method, images, tmp_path / "ours.h5")
    with open_features(theirs) as a, open_features(ours) as b:
        assert a.names() == b.names() == NAMES
        for image in NAMES:
            one, other = a.read(image), b.read(image)
            assert len(one) == len(other) > 20
            assert np.array_equal(one.keypoints, other.keypoints)
            assert np.array_equal(one.descriptors, other.descriptors)
            assert one.image_size == other.image_size == (320, 240)
            assert np.allclose(one.scores, other.scores, rtol=1e-3), "scores are halves in hloc's file"
            assert one.uncertainty_px == other.uncertainty_px


def test_pixels_of_a_resized_image(hloc: str, tmp_path: Path) -> None:
    """A blob drawn at a known place is found there, though hloc halved the image: no half pixel is lost on the way."""
    centres = np.array([[100.5, 80.25], [201.0, 151.75]])
    y, x = np.mgrid[:240, :320]
    blobs = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 8.0**2)) for cx, cy in centres)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "blobs.png"), np.rint(40 + 180 * blobs).astype(np.uint8))
    plug_in.register()
    conf = conf_of("featkit-rootsift")
    conf = {**conf, "preprocessing": {**conf["preprocessing"], "resize_max": 160}}
    path = extracted(conf, tmp_path / "images", tmp_path / "out2")
    with open_features(path) as store:
        found = store.read("blobs.png")
    assert found.scales is not None
    for centre in centres:
        distance = np.linalg.norm(found.keypoints - centre, axis=1)
        assert distance.min() < 0.1
        assert found.scales[distance.argmin()] == pytest.approx(8.0, rel=0.25), "scale, in pixels of the file"
    method = extraction_method(ExtractConfig(features="rootsift", decode=DecodeConfig(resize_max=160), workers=1))
    ours = extract.extract_one(method, tmp_path / "images" / "blobs.png")
    for centre in centres:
        nearest = [f.keypoints[np.linalg.norm(f.keypoints - centre, axis=1).argmin()] for f in (ours, found)]
        assert np.abs(nearest[0] - nearest[1]).max() < 0.05, "hloc resizes real numbers, featkit bytes"
    assert found.uncertainty_px == ours.uncertainty_px == 2.0


def test_matches_by_hloc_are_featkits(hloc: str, images: Path, tmp_path: Path) -> None:
    """On hloc's file of features: hloc's stage with featkit's matcher, and featkit's stage, give the same matches."""
    plug_in.register()
    features = extracted(conf_of("featkit-rootsift"), images, tmp_path / "out3")
    pairs = tmp_path / "pairs.txt"
    wanted = list(itertools.combinations(NAMES, 2))
    pairs.write_text("".join(f"{a} {b}\n" for a, b in wanted))
    match_features = importlib.import_module("hloc.match_features")
    theirs = match_features.main(match_features.confs["featkit-mutual"], pairs, features, matches=tmp_path / "m.h5")
    ours = match.run(resolve("matcher", "mutual"), features, pairs, tmp_path / "ours-m.h5")
    with open_matches(theirs) as a, open_matches(ours) as b:
        for names in wanted:
            one, other = a.read(Pair(*names)), b.read(Pair(*names))
            assert one.count == other.count > 30
            assert np.array_equal(one.matches0, other.matches0)
            assert np.allclose(one.scores0, other.scores0, atol=1e-3), "scores are halves in hloc's file"


def test_changes_of_the_configuration(hloc: str, images: Path, tmp_path: Path) -> None:
    plug_in.register()
    conf = conf_of("featkit-rootsift")
    model = {**conf["model"], "changes": {"max_keypoints": 15}}
    with open_features(extracted({**conf, "model": model}, images, tmp_path / "out4")) as store:
        assert [store.count(name) for name in store.names()] == [15, 15, 15]
    with pytest.raises(UsageError, match="max_keypoints"):
        extracted({**conf, "model": {**model, "changes": {"max_keypoint": 15}}}, images, tmp_path / "out5")


def test_command_line(hloc: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if hloc == "real":
        pytest.importorskip("tqdm")
    out = tmp_path / "out6"
    words = ["--conf", "featkit-rootsift", "--image_dir", str(images), "--export_dir", str(out)]
    assert plug_in.main(["extract_features", *words]) == 0
    with open_features(out / "feats-featkit-rootsift.h5") as store:
        assert store.names() == NAMES
    assert plug_in.main([]) == 0
    assert "featkit-mutual-nn" in capsys.readouterr().out.splitlines()
    for words, message in (
        (["no_such"], "no module 'no_such'"),
        (["extractors"], "has no command line"),
        (["--instead", "theirs", "extract_features"], "THEIRS=OURS"),
        (["--instead", "nothing=featkit-sift", "extract_features"], "not two configurations"),
    ):
        assert plug_in.main(words) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len([line for line in error if line.startswith("featkit: ") and message in line]) == 1, error


def test_one_stands_in_for_another(hloc: str) -> None:
    theirs = {"stand-in": "theirs", "real": "superpoint_max"}[hloc]
    plug_in.register({theirs: "featkit-scfeat"})
    assert conf_of(theirs) == conf_of("featkit-scfeat")
    with pytest.raises(UsageError, match="not two configurations"):
        plug_in.register({theirs: "featkit-mutual"})  # an extractor's place is not a matcher's


def test_no_hloc(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_hloc()
    monkeypatch.setitem(sys.modules, "hloc", None)
    with pytest.raises(UsageError, match=r"not installed; pip install .*@[0-9a-f]{40}"):
        plug_in.register()


@pytest.mark.parametrize(("version", "warned"), [("4.2.1", True), ("4.2.0", False), ("4.1.1", False)])
def test_warns_of_pycolmap(
    version: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(logging.getLogger("featkit"), "propagate", True)
    plug_in._warn_of_pycolmap_version()
    lines = [record.getMessage() for record in caplog.records]
    assert (len(lines) == 1 and "4.2.0" in lines[0] and "\n" not in lines[0]) == warned
    assert bool(lines) == warned


def test_pixels_come_back_exactly() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = torch.from_numpy(values.astype(np.float32) / 255.0)[None, None]
    assert np.array_equal(pixels_of(grey, colour=False), values)
    assert np.array_equal(pixels_of(grey, colour=True), np.repeat(values[..., None], 3, axis=2))
    rgb = np.stack([values, values[::-1], values.T], axis=2)
    colours = torch.from_numpy(rgb.transpose(2, 0, 1).astype(np.float32) / 255.0)[None]
    assert np.array_equal(pixels_of(colours, colour=True), rgb)
    assert np.array_equal(pixels_of(colours, colour=False), cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))


def packed(n: int, seed: int) -> Features:
    bits = np.random.default_rng(seed).random((n, 256)) > 0.5
    xy = np.random.default_rng(seed).uniform(0, 99, (n, 2)).astype(np.float32)
    return Features(xy, pack_bits(bits), np.ones(n, np.float32), (100, 100), oris=np.full(n, np.pi / 6, np.float32))


def as_handed_over(*both: Features) -> dict[str, torch.Tensor]:
    """What hloc's dataset makes of two images: everything as float32."""
    return {
        f"{key}{side}": values.to(torch.float32)
        for side, features in enumerate(both)
        for key, values in prediction_of(features).items()
    }


def test_bits_survive_hlocs_floats() -> None:
    """hloc's own matchers see products that order as Hamming distances do; featkit's sees the bits again."""
    a, b = packed(40, 1), packed(50, 2)
    data = as_handed_over(a, b)
    rows = data["descriptors0"][0].T @ data["descriptors1"][0]
    equal = (np.unpackbits(a.descriptors, axis=1)[:, None] == np.unpackbits(b.descriptors, axis=1)[None]).sum(2)
    assert np.allclose(rows.numpy(), (2 * equal - 256) / 256, atol=1e-6)
    for side, features in enumerate((a, b)):
        back = features_of(data, side)
        assert np.array_equal(back.descriptors, features.descriptors)
        assert np.array_equal(back.keypoints, features.keypoints)
    matcher = MutualMatcher(MutualConfig(ratio=0.99), "cpu")
    (direct,) = matcher.match([(a, b)])
    (through,) = matcher.match([(features_of(data, 0), features_of(data, 1))])
    assert np.array_equal(direct.matches0, through.matches0)
    assert data["oris0"].numpy() == pytest.approx(30.0), "degrees, as in hloc's own files"


def test_no_keypoints_on_one_side() -> None:
    data = as_handed_over(packed(5, 1), packed(0, 1))
    assert data["keypoints1"].shape == (1, 0, 2)
    assert data["descriptors1"].shape == (1, 256, 0)
    found = Matches(np.full(5, -1, np.int32), np.zeros(5, np.float32))
    assert matches_as_hloc(found)["matches0"].tolist() == [[-1] * 5]


def test_what_int16_cannot_hold_is_refused() -> None:
    fits = matches_as_hloc(Matches(np.array([32767, -1]), np.ones(2, np.float32)))["matches0"]
    assert fits[0].short().tolist() == [32767, -1]
    with pytest.raises(BadInputError, match="int16 ends at 32,767"):
        matches_as_hloc(Matches(np.array([32768]), np.ones(1, np.float32)))


@pytest.mark.skipif(not REAL, reason="hloc is not installed: " + plug_in.INSTALL)
def test_the_versions_of_pycolmap_without_points(tmp_path: Path) -> None:
    """What the plug-in warns of is so: hloc's triangulation of exact matches, with the pycolmap that is installed."""
    import h5py
    import pycolmap

    forget_hloc()
    triangulation = importlib.import_module("hloc.triangulation")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_points3D, options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 100, 1, 1, 4
    truth = pycolmap.synthesize_dataset(options)
    (tmp_path / "truth").mkdir()
    truth.write(tmp_path / "truth")
    seen = {i.name: [p.point3D_id if p.has_point3D() else None for p in i.points2D] for i in truth.images.values()}
    with h5py.File(tmp_path / "f.h5", "w") as features, h5py.File(tmp_path / "m.h5", "w") as matches:
        for image in truth.images.values():
            features[f"{image.name}/keypoints"] = np.array([p.xy for p in image.points2D]) - 0.5
        for a, b in itertools.combinations(sorted(seen), 2):
            place = {point: index for index, point in enumerate(seen[b]) if point is not None}
            found = np.array([place.get(point, -1) for point in seen[a]], np.int16)
            key = f"{a.replace('/', '-')}/{b.replace('/', '-')}"
            matches[f"{key}/matches0"], matches[f"{key}/matching_scores0"] = found, np.ones(len(found), np.float16)
    (tmp_path / "p.txt").write_text("".join(f"{a} {b}\n" for a, b in itertools.combinations(sorted(seen), 2)))
    where = [tmp_path / name for name in ("sfm", "truth", "", "p.txt", "f.h5", "m.h5")]
    made = triangulation.main(*where)
    expected = 0 if pycolmap.__version__ in plug_in.NO_POINTS else truth.num_points3D()
    assert made.num_points3D() == expected
    forget_hloc()
