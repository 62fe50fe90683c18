"""The three mappers on a synthetic aerial survey: all cameras are at their true positions."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from featkit.core.types import Matches, Pair
from featkit.io.features import open_features
from featkit.io.lists import write_pairs
from featkit.io.matches import append_matches
from featkit.mapping.align import compare_with_truth
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.stage import (
    ClusterConfig,
    MapConfig,
    _adjustment_options,
    build_map,
    database_config,
    hierarchical_options,
    incremental_options,
    read_largest,
)
from featkit.mapping.verify import VerifyConfig, build_database, verify_by_ransac

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
IMAGES = 30
CLUSTER = 12
MIN_SHARED = 20


@pytest.fixture(scope="module")
def survey_module():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import survey
    finally:
        sys.path.remove(str(BENCHMARKS))
    return survey


@pytest.fixture(scope="module")
def scene(survey_module, tmp_path_factory) -> Path:
    """A verified database with correct matches, except for some misplaced keypoints."""
    folder = tmp_path_factory.mktemp("survey")
    made = survey_module.make_survey(survey_module.SurveyConfig(images=IMAGES, points_per_image=250, dims=4))
    survey_module.write_survey(made, folder)
    seen = {name: made.seen(name)[0] for name in made.poses}
    found = {}
    for a in seen:
        for b in (b for b in seen if a < b):
            _, first, second = np.intersect1d(seen[a], seen[b], return_indices=True)
            if len(first) >= MIN_SHARED:
                matches0 = np.full(len(seen[a]), -1, np.int32)
                matches0[first] = second
                found[Pair(a, b)] = Matches(matches0, np.ones(len(matches0), np.float32))
    write_pairs(folder / "pairs.txt", found)
    with append_matches(folder / "matches.h5", made.config, "exact") as store:
        for pair, matches in found.items():
            store.write(pair, matches, ("", ""))
    files = (folder / "images", folder / "features.h5", folder / "pairs.txt", folder / "matches.h5")
    build_database(database_config(config(survey_module)), *files, folder / "database.db")
    return folder


def config(survey_module, **changes) -> MapConfig:
    camera = CameraConfig(model="PINHOLE", params=survey_module.PARAMS, mode="single", refine=False)
    return MapConfig(camera=camera, extract_colors=False, threads=1, **changes)


@pytest.mark.parametrize("mapper", ["incremental", "global", "hierarchical"])
def test_cameras_are_at_their_true_positions(scene, survey_module, mapper) -> None:
    clusters = ClusterConfig(leaf_max_images=CLUSTER, overlap=8)
    chosen = config(survey_module, mapper=mapper, clusters=clusters)
    sparse = build_map(chosen, scene / "images", scene / "database.db", scene / mapper)
    truth = survey_module.make_survey(survey_module.SurveyConfig(images=IMAGES, points_per_image=250, dims=4)).poses
    errors = compare_with_truth(read_largest(sparse), truth)
    assert len(errors.names) == IMAGES
    assert np.median(errors.centre) < 0.06  # m, of a camera 60 m up whose pixel is 5 cm on the ground
    assert errors.centre.max() < 0.5
    assert np.median(errors.rotation_deg) < 0.1


def test_clusters_are_mapped_separately_and_merged(scene, survey_module, monkeypatch) -> None:
    """Two overlapping clusters have more images in total than the scene; one bundle adjustment follows the merge."""
    adjusted = []
    whole = pycolmap.bundle_adjustment
    monkeypatch.setattr(pycolmap, "bundle_adjustment", lambda *given: (adjusted.append(1), whole(*given)))
    for leaf, expected in ((IMAGES, 0), (CLUSTER, 1)):
        chosen = config(survey_module, mapper="hierarchical", clusters=ClusterConfig(leaf_max_images=leaf, overlap=8))
        build_map(chosen, scene / "images", scene / "database.db", scene / f"leaf{leaf}")
        assert len(adjusted) == expected


def test_verifying_pairs_in_parts_gives_the_same_result(scene, tmp_path) -> None:
    """Some pairs, then all others: the same geometries as in one run."""
    database = tmp_path / "database.db"
    shutil.copyfile(scene / "database.db", database)
    known, ids = geometries(database)
    some = list(known)[:: len(known) // 20]
    with pycolmap.Database.open(str(database)) as opened:
        for pair in some:
            opened.delete_two_view_geometry(*ids[pair])
    verify_by_ransac(database, VerifyConfig(), some[:7])
    assert len(geometries(database)[0]) == len(known) - len(some) + 7
    spaced = [Pair("no such.png", "other.png")]  # a name that pycolmap's list of pairs cannot hold
    verify_by_ransac(database, VerifyConfig(), spaced)
    again = geometries(database)[0]
    assert again.keys() == known.keys()
    assert all(again[pair][0] == known[pair][0] for pair in some)
    assert all(np.array_equal(again[pair][1], known[pair][1]) for pair in some)


def geometries(database: Path) -> tuple[dict, dict]:
    """Kind and inliers of every two-view geometry by image names, and the image ids."""
    with pycolmap.Database.open(str(database)) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
        ids = [pycolmap.pair_id_to_image_pair(one) for one in opened.read_two_view_geometry_num_inliers()[0]]
        found = {Pair(names[a], names[b]): opened.read_two_view_geometry(a, b) for a, b in ids}
    kinds = {pair: (int(one.config), one.inlier_matches) for pair, one in found.items()}
    return kinds, dict(zip(found, ids, strict=True))


def test_config_fields_reach_the_mapper() -> None:
    clusters = ClusterConfig(leaf_max_images=70, overlap=9, branching=3, strongest_pairs=11, workers=1)
    options = hierarchical_options(MapConfig(clusters=clusters, global_adjustment_growth=1.4), 1000)
    cut = options.clustering_options
    given = (cut.leaf_max_num_images, cut.image_overlap, cut.branching, cut.num_image_matches, options.num_workers)
    assert given == (70, 9, 3, 11, 1)
    one = incremental_options(MapConfig(global_adjustment_growth=1.4), 10)
    assert one.ba_global_frames_ratio == one.ba_global_points_ratio == 1.4
    assert options.incremental_options.ba_global_frames_ratio == 1.4


@pytest.mark.parametrize(("images", "expected"), [(200, 0.0), (201, 1e-5)])
def test_adjustment_tolerance_depends_on_map_size(images: int, expected: float) -> None:
    chosen = MapConfig(global_adjustment_tolerance=1e-5, local_adjustment_tolerance=1e-3)
    assert incremental_options(chosen, images).ba_global_function_tolerance == expected
    assert incremental_options(chosen, images).ba_local_function_tolerance == 1e-3
    assert hierarchical_options(chosen, images).incremental_options.ba_global_function_tolerance == expected
    whole = _adjustment_options(chosen, images)
    assert getattr(whole, "ceres", whole).solver_options.function_tolerance == expected


def test_synthetic_keypoints_agree_with_the_cameras(scene, survey_module) -> None:
    """Keypoints are within their noise of pycolmap's projections, except for the misplaced share."""
    made = survey_module.make_survey(survey_module.SurveyConfig(images=IMAGES, points_per_image=250, dims=4))
    camera = pycolmap.Camera(model="PINHOLE", width=1600, height=1200, params=survey_module.PARAMS)
    name = list(made.poses)[7]
    index, _ = made.seen(name)
    w, x, y, z = made.poses[name].qvec
    rigid = pycolmap.Rigid3d(pycolmap.Rotation3d([x, y, z, w]), made.poses[name].tvec)
    expected = np.array([camera.img_from_cam(rigid * point) for point in made.points[index]]).reshape(-1, 2) - 0.5
    with open_features(scene / "features.h5") as store:
        off = np.linalg.norm(store.keypoints(name) - expected, axis=1)
    assert 0.4 < np.median(off) < 0.8  # the median of a Rayleigh distribution of 0.5 px is 0.59
    assert 0.02 < np.mean(off > 5) < 0.16
