"""An exact synthetic scene without photographs: features.h5 + matches.h5 -> the map everybody knows beforehand."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.types import Features, Matches, Pair, Pose
from featkit.geometry.pixels import from_colmap
from featkit.io.features import append_features
from featkit.io.lists import write_pairs
from featkit.io.matches import append_matches
from featkit.mapping import verify
from featkit.mapping.align import compare_with_truth
from featkit.mapping.cameras import CameraConfig, to_pose
from featkit.mapping.model import map_statistics, point_ids
from featkit.mapping.reference import Reference
from featkit.mapping.stage import MapConfig, build_map, database_config, read_largest
from featkit.mapping.verify import DatabaseConfig, VerifyConfig, build_database

POINTS = 300
CAMERA = (1280.0, 1270.0, 512.0, 384.0)


class Exact(Config):
    source: str = "projections"


@dataclass(frozen=True)
class Scene:
    images: Path
    features: Path
    pairs: Path
    matches: Path
    poses: dict[str, Pose]
    model: pycolmap.Reconstruction


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Ten cameras that all see 300 points; keypoints are exact projections, matches are right."""
    folder = tmp_path_factory.mktemp("scene")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 10, POINTS
    options.camera_model_id, options.camera_params = pycolmap.CameraModelId.PINHOLE, list(CAMERA)
    pycolmap.set_random_seed(3)
    model = pycolmap.synthesize_dataset(options)
    images = {image.name.replace(" ", "_"): image for image in model.images.values()}
    names = sorted(images)
    (folder / "images").mkdir()
    with append_features(folder / "features.h5", Exact()) as store:
        for name in names:
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (1024, 768)).save(path)
            pixels = np.array([p.xy for p in images[name].points2D])
            rows = Features(
                from_colmap(pixels).astype(np.float32), np.ones((len(pixels), 2), np.float16), np.ones(len(pixels)),
                (1024, 768),
            )  # fmt: skip
            store.write(name, rows)
    pairs = [Pair(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    with append_matches(folder / "matches.h5", Exact(), Exact().fingerprint()) as store:
        for pair in pairs:
            ids0, ids1 = point_ids(images[pair.name0]), point_ids(images[pair.name1])
            place = {int(point): index for index, point in enumerate(ids1) if point >= 0}
            found = np.array([place.get(int(point), -1) for point in ids0], np.int32)
            store.write(pair, Matches(found, (found >= 0).astype(np.float32)), ("", ""), len(ids1))
    write_pairs(folder / "pairs.txt", pairs)
    poses = {name: to_pose(image.cam_from_world()) for name, image in images.items()}
    return Scene(folder / "images", folder / "features.h5", folder / "pairs.txt", folder / "matches.h5", poses, model)


def reference(scene: Scene, focal_factor: float = 1.0) -> Reference:
    params = (CAMERA[0] * focal_factor, CAMERA[1] * focal_factor, *CAMERA[2:])
    camera = pycolmap.Camera(camera_id=1, model="PINHOLE", width=1024, height=768, params=params)
    return Reference(scene.poses, {1: camera}, dict.fromkeys(scene.poses, 1))


def build(scene: Scene, folder: Path, config: MapConfig, known: Reference | None) -> pycolmap.Reconstruction:
    database = folder / "database.db"
    verified = database_config(config)
    build_database(verified, scene.images, scene.features, scene.pairs, scene.matches, database, reference=known)
    build_map(config, scene.images, database, folder / "sparse", reference=known)
    return read_largest(folder / "sparse")


def test_triangulation_finds_every_point(scene: Scene, tmp_path: Path) -> None:
    """pycolmap 4.2.1 drops two-view geometries without `config` in silence: nothing would come out."""
    config = MapConfig(extract_colors=False, threads=1)
    model = build(scene, tmp_path, config, reference(scene))
    found = map_statistics(model, 10)
    assert (found.points, found.registered) == (POINTS, 10)
    assert found.observations == scene.model.compute_num_observations()
    assert found.reprojection_px < 1e-3
    errors = compare_with_truth(model, scene.poses, align=False)
    assert errors.centre.max() < 1e-9
    assert errors.rotation_deg.max() < 1e-9
    true = np.array(sorted(tuple(p.xyz) for p in scene.model.points3D.values()))
    assert np.array(sorted(tuple(p.xyz) for p in model.points3D.values())) == pytest.approx(true, abs=1e-4)
    with pycolmap.Database.open(str(tmp_path / "database.db")) as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        first, second = sorted(ids)[:2]
        geometry = database.read_two_view_geometry(ids[first], ids[second])
        assert geometry.config == pycolmap.TwoViewGeometryConfiguration.CALIBRATED
        assert len(geometry.inlier_matches) == POINTS
        keypoints = database.read_keypoints(ids[first])[:, :2]
    stored = np.array([p.xy for p in next(i for i in scene.model.images.values() if i.name == first).points2D])
    assert keypoints == pytest.approx(stored, abs=1e-3), "the half pixel is added once"


def test_the_incremental_map_is_the_scene(scene: Scene, tmp_path: Path) -> None:
    camera = CameraConfig(model="PINHOLE", params=CAMERA, mode="single", refine=False)
    model = build(scene, tmp_path, MapConfig(camera=camera, threads=1), None)
    assert model.num_reg_images() == 10
    assert model.num_points3D() == POINTS
    errors = compare_with_truth(model, scene.poses)
    centres = np.array([image.projection_center() for image in scene.model.images.values()])
    extent = np.linalg.norm(centres.max(0) - centres.min(0))
    assert errors.centre.max() / extent < 1e-6
    assert errors.rotation_deg.max() < 1e-4


def test_done_is_skipped_and_another_camera_is_not(scene: Scene, tmp_path: Path) -> None:
    """The reference's cameras decide the map too: with others it is made anew."""
    config = MapConfig(extract_colors=False, threads=1)
    build(scene, tmp_path, config, reference(scene))
    before = [(tmp_path / name).stat().st_mtime_ns for name in ("database.db", "sparse/0/points3D.bin")]
    build(scene, tmp_path, config, reference(scene))
    assert before == [(tmp_path / name).stat().st_mtime_ns for name in ("database.db", "sparse/0/points3D.bin")]
    model = build(scene, tmp_path, config, reference(scene, 1.0001))
    assert model.cameras[1].params[0] == pytest.approx(1.0001 * CAMERA[0])
    moved = {name: Pose(pose.qvec, pose.tvec + 1e-9) for name, pose in scene.poses.items()}
    known = Reference(moved, reference(scene).cameras, reference(scene).camera_ids)
    model = build(scene, tmp_path, config, known)
    assert compare_with_truth(model, moved, align=False).centre.max() < 1e-12


def test_too_few_images(scene: Scene, tmp_path: Path) -> None:
    one = dict(list(scene.poses.items())[:1])
    known = reference(scene)
    with pytest.raises(BadInputError, match="two images or more, 1 are usable"):
        build(scene, tmp_path, MapConfig(), Reference(one, known.cameras, known.camera_ids))


Geometries = dict[tuple[str, str], tuple[int, list[list[int]]]]


def verified(scene: Scene, folder: Path, known: Reference | None) -> Geometries:
    """Configuration and inliers of every two-view geometry, by image names."""
    config = DatabaseConfig(camera=CameraConfig(model="PINHOLE", params=CAMERA, mode="single"))
    path = folder / "database.db"
    build_database(config, scene.images, scene.features, scene.pairs, scene.matches, path, reference=known)
    with pycolmap.Database.open(str(path)) as database:
        names = {image.image_id: image.name for image in database.read_all_images()}
        pair_ids, geometries = database.read_two_view_geometries()
    pairs = [tuple(names[i] for i in pycolmap.pair_id_to_image_pair(pair_id)) for pair_id in pair_ids]
    return {
        (a, b): (int(geometry.config), geometry.inlier_matches.tolist())
        for (a, b), geometry in zip(pairs, geometries, strict=True)
    }


@pytest.mark.parametrize("by_known_poses", [True, False])
def test_chunks_of_pairs_change_nothing(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_known_poses: bool
) -> None:
    known = reference(scene) if by_known_poses else None
    whole = verified(scene, tmp_path / "whole", known)
    monkeypatch.setattr(verify, "MIN_CHUNK", 7)
    assert len(whole) == 45
    assert verified(scene, tmp_path / "chunks", known) == whole


def test_a_stopped_verification_goes_on(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunks that were done are neither written nor verified again, and the outcome is that of one run."""
    whole = verified(scene, tmp_path / "whole", None)
    monkeypatch.setattr(verify, "MIN_CHUNK", 7)
    by_ransac, by_then = verify.verify_by_ransac, []

    def stop_at_the_third(path: Path, config: VerifyConfig, pairs: list[Pair]) -> None:
        by_then.append(path)
        if len(by_then) == 3:
            raise KeyboardInterrupt
        by_ransac(path, config, pairs)

    monkeypatch.setattr(verify, "verify_by_ransac", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        verified(scene, tmp_path / "stopped", None)
    with pycolmap.Database.open(str(by_then[-1])) as database:
        assert database.num_matched_image_pairs() == 21
        assert len(database.read_two_view_geometries()[0]) == 14
    assert not (tmp_path / "stopped" / "database.db").exists()
    written = []
    monkeypatch.setattr(verify, "verify_by_ransac", by_ransac)
    monkeypatch.setattr(verify.db, "write_images", lambda *args: written.append(args))
    assert verified(scene, tmp_path / "stopped", None) == whole
    assert not written, "the images were there already"
