"""Registration by COLMAP's mapper, on pycolmap's synthetic scene: exact poses, a map that stays as it is, reasons."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pycolmap
import pytest
from synthetic_scene import PARAMS, SIZE, Exact, Written, write_scene

from featkit.core.errors import BadInputError, EmptyResultError
from featkit.core.types import Matches, Pair
from featkit.geometry.poses import camera_centre, rotation_matrix
from featkit.io.features import append_features, open_features
from featkit.io.lists import Intrinsics, read_poses, write_pairs
from featkit.io.matches import append_matches, open_matches
from featkit.localization import registration
from featkit.localization import stage as localize
from featkit.localization.registration import RegistrationConfig
from featkit.localization.stage import LocalizeConfig, QueryResult
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.model import read_model
from featkit.mapping.reference import Reference
from featkit.mapping.stage import MapConfig, build_map, database_config
from featkit.mapping.verify import VerifyConfig, build_database

QUERIES = ("6.png", "7.png")
WRONG = 0.4  # share of the second query's matches that are


class Localized(NamedTuple):
    scene: Written
    sparse: Path
    map_features: Path
    query_features: Path
    pairs: Path
    matches: Path

    def run(self, output: Path, run: Callable[..., list[QueryResult]], *configs: object) -> list[QueryResult]:
        known = Intrinsics("PINHOLE", *SIZE, PARAMS)
        files = (self.sparse / "0", self.map_features, self.scene.images, self.query_features)
        return run(
            *configs, *files, self.pairs, self.matches, output,
            names=[*QUERIES, "absent.png"], intrinsics=dict.fromkeys((*QUERIES, "absent.png"), known),
        )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Localized:
    """A map of six images with their true poses, and two queries; features of either kind in a store of their own."""
    folder = tmp_path_factory.mktemp("scene")
    scene = write_scene(folder)
    mapped = [name for name in scene.poses if name not in QUERIES]
    stores = {"map": mapped, "query": list(QUERIES)}
    with open_features(scene.features) as whole:
        for kind, names in stores.items():
            with append_features(folder / f"{kind}.h5", Exact()) as store:
                for name in names:
                    store.write(name, whole.read(name))
        counts = {name: whole.count(name) for name in whole.names()}
    rng = np.random.default_rng(0)
    pairs = [Pair(query, name) for query in QUERIES for name in mapped]
    with open_matches(scene.matches) as right, append_matches(folder / "query-matches.h5", Exact(), "") as found:
        for pair in pairs:
            matches0 = right.read(pair).matches0.copy()
            matches0.resize(counts[pair.name0])
            if pair.name0 == QUERIES[1]:
                wrong = np.flatnonzero(rng.random(len(matches0)) < WRONG)
                matches0[wrong] = rng.permutation(counts[pair.name1])[: len(wrong)]
            found.write(pair, Matches(matches0, np.ones(len(matches0), np.float32)), ("", ""), counts[pair.name1])
    config = MapConfig(camera=CameraConfig(model="PINHOLE", params=PARAMS, mode="single", refine=False))
    reference = Reference(scene.poses, None, None)
    database = build_database(
        database_config(config), scene.images, folder / "map.h5", scene.pairs, scene.matches,
        folder / "database.db", names=mapped, reference=reference,
    )  # fmt: skip
    sparse = build_map(config, scene.images, database, folder / "sparse", reference=reference)
    listed = write_pairs(folder / "query-pairs.txt", pairs)
    return Localized(scene, sparse, folder / "map.h5", folder / "query.h5", listed, folder / "query-matches.h5")


def test_poses_are_the_true_ones(made: Localized, tmp_path: Path) -> None:
    """With matches that are right, and with two fifths of them wrong. PnP on the same matches gives the same."""
    found = made.run(tmp_path / "a", registration.run, RegistrationConfig(), LocalizeConfig())
    by_pnp = made.run(tmp_path / "b", localize.run, LocalizeConfig())
    assert [result.name for result in found] == [*QUERIES, "absent.png"]
    assert found[2].reason == by_pnp[2].reason == "there is no such image"
    for one, other in zip(found[:2], by_pnp[:2], strict=True):
        truth = made.scene.poses[one.name]
        for result in (one, other):
            assert result.pose is not None
            assert np.linalg.norm(camera_centre(result.pose) - camera_centre(truth)) < 1e-3
            turned = rotation_matrix(result.pose.qvec) @ rotation_matrix(truth.qvec).T
            assert np.degrees(np.arccos(np.clip((np.trace(turned) - 1) / 2, -1, 1))) < 0.01
        assert one.estimate is not None
        assert 30 <= one.estimate.inlier.sum() <= one.matches_3d <= one.keypoints
        assert one.estimate.residual_px < 0.01
        assert one.intrinsics is not None
        assert one.intrinsics.params == PARAMS
        assert not one.uncertain
    assert found[1].matches_3d < by_pnp[1].matches_3d, "wrong matches end in the verification"
    poses = read_poses(tmp_path / "a" / "poses.txt")
    assert poses.keys() == set(QUERIES)
    described = json.loads((tmp_path / "a" / "poses.json").read_text())
    assert described["config"] == RegistrationConfig().result_fields()


def test_the_map_and_its_cameras_stay(made: Localized, tmp_path: Path) -> None:
    """And the database has all images under the map's ids, the queries behind them."""
    before = {path.name: path.read_bytes() for path in (made.sparse / "0").iterdir()}
    made.run(tmp_path, registration.run, RegistrationConfig(), LocalizeConfig())
    assert before == {path.name: path.read_bytes() for path in (made.sparse / "0").iterdir()}
    model = read_model(made.sparse / "0")
    with pycolmap.Database.open(str(tmp_path / "queries.db")) as database:
        images = {image.name: image for image in database.read_all_images()}
        assert {i.name: i.image_id for i in model.images.values()}.items() <= {
            name: image.image_id for name, image in images.items()
        }.items()
        assert images.keys() == made.scene.poses.keys()
        for query in QUERIES:
            camera = database.read_camera(images[query].camera_id)
            assert camera.camera_id not in model.cameras
            assert tuple(camera.params) == PARAMS
        for a, b in map(pycolmap.pair_id_to_image_pair, database.read_all_matches()[0]):
            assert len({a, b} & {images[query].image_id for query in QUERIES}) == 1


def test_the_database_is_made_again_for_other_matches_only(
    made: Localized, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def is_kept(configs: RegistrationConfig, one: Localized) -> bool:
        caplog.clear()
        with caplog.at_level("INFO"):
            one.run(tmp_path, registration.run, configs, LocalizeConfig())
        return "verify queries: done already" in caplog.text

    assert not is_kept(RegistrationConfig(), made)
    first = (tmp_path / "poses.txt").read_text()
    assert is_kept(RegistrationConfig(min_inliers=20), made)
    assert (tmp_path / "poses.txt").read_text() == first
    with_more = write_pairs(tmp_path / "fewer.txt", [Pair(query, "0.png") for query in QUERIES])
    assert not is_kept(RegistrationConfig(min_inliers=20), made._replace(pairs=with_more))


def test_reasons(made: Localized, tmp_path: Path) -> None:
    """Too few points that agree; no pair; a camera of another size."""
    with pytest.raises(EmptyResultError, match="none of 3 queries localized"):
        made.run(tmp_path, registration.run, RegistrationConfig(min_inliers=1000), LocalizeConfig())
    reasons = {r["name"]: r["reason"] for r in json.loads((tmp_path / "poses.json").read_text())["results"]}
    assert "see points of the map; 1000 that agree are needed, and 25% of them" in reasons[QUERIES[0]]
    assert (tmp_path / "poses.txt").read_text() == ""
    one = made._replace(pairs=write_pairs(tmp_path / "one.txt", [Pair(QUERIES[0], "0.png"), Pair(QUERIES[0], "1.png")]))
    found = one.run(tmp_path, registration.run, RegistrationConfig(min_inliers=10), LocalizeConfig())
    assert [result.pose is not None for result in found] == [True, False, False]
    assert found[1].reason == "it is paired with no map image"
    wrong = Intrinsics("PINHOLE", SIZE[0] + 1, SIZE[1], PARAMS)
    with pytest.raises(BadInputError, match=r"its intrinsics are for 1025 x 768"):
        registration.run(
            RegistrationConfig(), LocalizeConfig(), made.sparse / "0", made.map_features, made.scene.images,
            made.query_features, made.pairs, made.matches, tmp_path,
            names=QUERIES, intrinsics=dict.fromkeys(QUERIES, wrong),
        )  # fmt: skip


def test_the_threshold_is_that_of_the_configuration(made: Localized, tmp_path: Path) -> None:
    """Keypoints of the queries moved by 3 px of noise: not one pose at a threshold of a tenth of that."""
    rng = np.random.default_rng(0)
    moved = tmp_path / "moved.h5"
    with open_features(made.query_features) as store, append_features(moved, Exact()) as noisy:
        for name in QUERIES:
            features = store.read(name)
            noise = rng.normal(0, 3, features.keypoints.shape).astype(np.float32)
            noisy.write(name, replace(features, keypoints=features.keypoints + noise))
    other = made._replace(query_features=moved)
    loose = RegistrationConfig(verify=VerifyConfig(max_error_px=20.0), max_error_px=20.0)
    found = other.run(tmp_path / "a", registration.run, loose, LocalizeConfig())
    assert found[0].pose is not None
    strict = loose.model_copy(update={"max_error_px": 0.3})
    with pytest.raises(EmptyResultError, match="none of 3 queries localized"):
        other.run(tmp_path / "b", registration.run, strict, LocalizeConfig())
