"""Results of older photographs, other images or another list are never used as current ones."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featkit.core.config import load_pipeline
from featkit.core.errors import BadInputError
from featkit.core.registry import resolve
from featkit.core.types import Pair
from featkit.demo.scene import RenderedConfig, render_scene
from featkit.features import stage as extract
from featkit.features.stage import ExtractConfig, extraction_method
from featkit.io.features import open_features
from featkit.io.lists import write_pairs
from featkit.io.matches import open_matches
from featkit.localization.stage import is_of_another_map
from featkit.matching import stage as match

SMALL = RenderedConfig(width=320, height=240, num_map=5, num_queries=1, texel_m=0.02)
CAPPED = {"max_keypoints": 100}  # every image has exactly this many: counts cannot tell them apart


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    render_scene(SMALL, folder)
    return folder


def texture(path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 255, (24, 32), dtype=np.uint8)
    Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(path)


def extracted(folder: Path) -> Path:
    method = extraction_method(ExtractConfig(workers=1), CAPPED)
    return extract.run(method, folder / "images", folder / "features.h5")


def test_a_replaced_photograph_is_extracted_and_matched_again(tmp_path: Path) -> None:
    """Even if neither the file size nor the number of keypoints changes (BMP, and a fixed limit)."""
    (tmp_path / "images").mkdir()
    for name, seed in (("a.bmp", 0), ("b.bmp", 0)):
        texture(tmp_path / "images" / name, seed)
    pairs = write_pairs(tmp_path / "pairs.txt", [Pair("a.bmp", "b.bmp")])
    matcher = resolve("matcher", "mutual")

    def run() -> tuple[str, int]:
        features = extracted(tmp_path)
        matches = match.run(matcher, features, pairs, tmp_path / "matches.h5")
        with open_features(features) as store, open_matches(matches) as found:
            assert (store.count("a.bmp"), store.count("b.bmp")) == (100, 100)
            return store.digest("b.bmp"), found.read(Pair("a.bmp", "b.bmp")).count

    old_digest, old_count = run()
    size = (tmp_path / "images" / "b.bmp").stat().st_size
    texture(tmp_path / "images" / "b.bmp", 1)
    assert (tmp_path / "images" / "b.bmp").stat().st_size == size
    digest, count = run()
    assert digest != old_digest
    assert old_count > 50 > count


def test_a_removed_photograph_leaves_the_map(rendered: Path, tmp_path: Path) -> None:
    sfm = load_pipeline("sfm")
    shutil.copytree(rendered / "images", tmp_path / "images")
    first = sfm.run(sfm.SfmConfig(), tmp_path)
    (tmp_path / "images" / "0004.jpg").unlink()
    second = sfm.run(sfm.SfmConfig(), tmp_path)
    assert first.metrics["images"] == 5
    assert second.metrics["images"] == 4
    assert "0004.jpg" not in (tmp_path / "featkit" / "pairs.txt").read_text()


def test_poses_of_an_earlier_map_are_reported_as_outdated(
    rendered: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sfm, localize = load_pipeline("sfm"), load_pipeline("localize")
    shutil.copytree(rendered / "images", tmp_path / "images")
    sfm.run(sfm.SfmConfig(), tmp_path)
    done = localize.run(localize.LocalizationConfig(), tmp_path, rendered / "queries")
    with caplog.at_level(logging.WARNING, "featkit"):
        sfm.run(sfm.SfmConfig(), tmp_path)
        assert not is_of_another_map(done.output / "poses.txt", tmp_path / "featkit" / "sparse" / "0")
        assert "earlier map" not in caplog.text
        (tmp_path / "images" / "0004.jpg").unlink()
        sfm.run(sfm.SfmConfig(), tmp_path)
    assert "localize/poses.txt is of an earlier map, in another frame; localize again" in caplog.text


def test_metrics_contain_the_configuration(rendered: Path) -> None:
    sfm = load_pipeline("sfm")
    config = sfm.run(sfm.SfmConfig(), rendered).metrics["config"]
    assert config["extract"]["extractor"]["normalization"] == "l1_root"
    assert config["matching"]["ratio"] == 0.8


def test_featkits_map_takes_precedence_over_a_foreign_model(rendered: Path, tmp_path: Path) -> None:
    sfm, localize = load_pipeline("sfm"), load_pipeline("localize")
    scene = tmp_path / "scene"
    shutil.copytree(rendered / "images", scene / "images")
    result = sfm.run(sfm.SfmConfig(), scene)
    shutil.copytree(result.sparse / "0", scene / "sparse")
    found = localize.run(localize.LocalizationConfig(), scene, rendered / "queries")
    assert found.metrics["localized"] == 1
    assert found.output == scene / "featkit" / "localize"


def test_every_failed_query_has_a_reason(rendered: Path, tmp_path: Path) -> None:
    """An unreadable and a missing query fail without affecting others; both count in the recall."""
    sfm, localize = load_pipeline("sfm"), load_pipeline("localize")
    sfm.run(sfm.SfmConfig(), rendered)
    queries = tmp_path / "queries"
    shutil.copytree(rendered / "queries", queries)
    (queries / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    camera = (rendered / "truth" / "camera.txt").read_text().splitlines()[-1]
    names = ("query_0000.jpg", "broken.jpg", "missing.jpg")
    listed = tmp_path / "queries.txt"
    listed.write_text("".join(f"{name} {camera}\n" for name in names))
    truth = tmp_path / "truth.txt"
    pose = (rendered / "truth" / "query_poses.txt").read_text().strip().splitlines()[-1].split(" ", 1)[1]
    truth.write_text("".join(f"{name} {pose}\n" for name in names) + (rendered / "truth" / "poses.txt").read_text())
    result = localize.run(
        localize.LocalizationConfig(), rendered, queries, tmp_path / "out", intrinsics=listed, truth=truth
    )
    described = json.loads((tmp_path / "out" / "poses.json").read_text())
    reasons = {entry["name"]: entry["reason"] for entry in described["results"]}
    assert reasons == {
        "query_0000.jpg": None,
        "broken.jpg": "the image cannot be read",
        "missing.jpg": "there is no such image",
    }
    assert list(result.metrics["recall"].values()) == pytest.approx([1 / 3] * 3)


def test_given_pairs_with_an_unreadable_query(rendered: Path, tmp_path: Path) -> None:
    sfm, localize = load_pipeline("sfm"), load_pipeline("localize")
    sfm.run(sfm.SfmConfig(), rendered)
    queries = tmp_path / "queries"
    shutil.copytree(rendered / "queries", queries)
    (queries / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    given = [Pair(query, f"000{i}.jpg") for query in ("broken.jpg", "query_0000.jpg") for i in range(5)]
    pairs = write_pairs(tmp_path / "given.txt", given)
    found = localize.run(localize.LocalizationConfig(), rendered, queries, tmp_path / "out", pairs=pairs)
    assert found.metrics["localized"] == 1
    assert found.metrics["failed"] == {"broken.jpg": "the image cannot be read"}


def test_known_poses_without_intrinsics_are_refused(rendered: Path, tmp_path: Path) -> None:
    sfm = load_pipeline("sfm")
    poses = shutil.copy(rendered / "truth" / "poses.txt", tmp_path / "poses.txt")
    with pytest.raises(BadInputError, match=r"focal length is unknown.*--camera-params"):
        sfm.run(sfm.SfmConfig(), rendered, tmp_path / "out", reference=Path(poses))


def test_overwrite_keeps_all_photographs(rendered: Path, tmp_path: Path) -> None:
    photograph = shutil.copy(rendered / "images" / "0000.jpg", tmp_path / "precious.jpg")
    method = extraction_method(ExtractConfig(workers=1), CAPPED)
    before = Path(photograph).read_bytes()
    with pytest.raises(BadInputError, match="not made by featkit, so it is not replaced"):
        extract.run(method, rendered / "images", Path(photograph), overwrite=True)
    assert Path(photograph).read_bytes() == before
