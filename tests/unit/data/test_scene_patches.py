"""Patches cut out of rendered photographs, whose every pixel has a known place in the world."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from featkit.core.errors import BadInputError, EmptyResultError, NotWritableError
from featkit.data import geometric_classes
from featkit.data import make_patches as scene_patches
from featkit.data.keypoint_classes import ClassesConfig, Detections
from featkit.data.make_patches import PatchSetConfig, cut, write_patch_set
from featkit.data.phototour import find_pairs, read_image_ids, read_phototour, read_phototour_pairs
from featkit.data.tracks import Scene, SceneTracks
from featkit.demo.scene import RenderedConfig, surface_point
from featkit.geometry.poses import rotation_matrix
from featkit.images.read import DecodeConfig, decode

RENDERED = RenderedConfig(width=400, height=300, num_map=6, num_queries=2, texel_m=0.012)
CONFIG = PatchSetConfig(workers=1, test_pairs=1000)
VISIBLE_M = 0.02  # how near the surface under a projection must be to the point
MAP_POINTS = 400


@dataclass(frozen=True)
class Pinhole:
    """The rendered scene's camera."""

    focal: float
    centre: tuple[float, float]

    def project(self, points: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = self.focal * points[:, :2] / points[:, 2:] + self.centre
        pixels[points[:, 2] <= 0] = np.nan
        return pixels

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([(pixels - self.centre) / self.focal, np.ones((len(pixels), 1))], axis=1)


def true_tracks(rendered: Any) -> SceneTracks:
    """A map of random points of the surfaces, each observed by two of the photographs that see it."""
    rng = np.random.default_rng(0)
    poses = list(rendered.poses.values())
    camera = rendered.intrinsics
    projector = Pinhole(camera.params[0], (camera.params[2] - 0.5, camera.params[3] - 0.5))
    rotations = np.stack([rotation_matrix(pose.qvec) for pose in poses])
    translations = np.stack([pose.tvec for pose in poses])
    points = np.concatenate(
        [surface_point(RENDERED, pose, rng.uniform((0, 0), (399, 299), (MAP_POINTS, 2))) for pose in poses]
    )
    points = points[np.isfinite(points).all(axis=1)]
    seen = np.zeros((len(points), len(poses)), bool)
    pixels = np.zeros((len(points), len(poses), 2))
    for number, pose in enumerate(poses):
        xy = projector.project(points @ rotations[number].T + translations[number])
        inside = np.flatnonzero(((xy >= 0) & (xy <= (399, 299))).all(axis=1))
        there = surface_point(RENDERED, pose, xy[inside])
        seen[inside[np.linalg.norm(there - points[inside], axis=1) < VISIBLE_M], number] = True
        pixels[:, number] = xy
    first = np.argsort(-(seen * rng.random(seen.shape)), axis=1)[:, :4]
    observed = np.zeros_like(seen)
    np.put_along_axis(observed, first, True, axis=1)
    observed &= seen
    observed[observed.sum(axis=1) < 2] = False
    which, images = np.nonzero(observed)
    return SceneTracks(
        name="courtyard",
        image_names=tuple(rendered.poses),
        image_sizes=np.tile([400, 300], (len(poses), 1)),
        rotations=rotations,
        translations=translations,
        projectors=(projector,) * len(poses),
        points=points,
        observed_points=which,
        observed_images=images,
        observed_xy=pixels[which, images],
    )


@pytest.fixture(scope="module")
def scene(small_rendered: Any) -> Scene:
    return Scene(true_tracks(small_rendered), small_rendered.images, "ours")


@pytest.fixture(scope="module")
def detected(scene: Scene) -> dict[str, Detections]:
    return dict(
        zip(
            scene.tracks.image_names,
            scene_patches._detect_keypoints(CONFIG, scene, np.random.default_rng(0)),
            strict=True,
        )
    )


@pytest.fixture
def quick(detected: dict[str, Detections], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is detected anew: the photographs are the same in all tests."""
    monkeypatch.setattr(
        scene_patches,
        "_detect_keypoints",
        lambda config, scene, _: [detected[name] for name in scene.tracks.image_names],
    )


@pytest.fixture(scope="module")
def made(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("patches") / "courtyard"
    return out, write_patch_set(CONFIG, [scene], out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_set_comes_out(made: tuple[Path, dict[str, Any]]) -> None:
    out, summary = made
    patch_set = read_phototour(out)
    counts = summary["scenes"]["courtyard"]
    assert len(patch_set) == summary["patches"] == counts["patches"] > 500
    assert len(np.unique(patch_set.classes)) == summary["classes"] == counts["classes"] > 150
    for origin in ("matched", "extra", "dense"):
        assert counts[f"patches_{origin}"] > 20
    assert patch_set.scene_names == ("courtyard",)
    assert np.bincount(patch_set.classes).min() >= 2
    assert (out / "licence.txt").read_text() == "courtyard: ours\n"
    assert json.loads((out / "dataset.json").read_text()) == summary
    assert summary["settings"] == CONFIG.result_fields()
    assert (out / "scenes.txt").read_text().splitlines()[0] == "courtyard\t0000.jpg"
    assert sorted(path.name for path in out.parent.iterdir()) == ["courtyard"], "nothing is left beside it"


def test_a_class_has_one_patch_of_an_image(made: tuple[Path, dict[str, Any]]) -> None:
    classes, images = read_phototour(made[0]).classes, read_image_ids(made[0])
    assert len(set(zip(classes.tolist(), images.tolist(), strict=True))) == len(classes)
    np.testing.assert_array_equal(np.lexsort((images, classes)), np.arange(len(classes)))


def test_pairs_match_as_they_say(made: tuple[Path, dict[str, Any]]) -> None:
    out, summary = made
    patch_set = read_phototour(out)
    path = find_pairs(out)
    pairs = read_phototour_pairs(path, patch_set)
    assert path.name == summary["test_pairs"]["file"] == "m50_1000_1000_0.txt"
    assert pairs.match.sum() == summary["test_pairs"]["matching"] == 500
    images = read_image_ids(out)
    assert (images[pairs.index0] != images[pairs.index1])[pairs.match].all()
    a, b = normalised(patch_set.patches[pairs.index0]), normalised(patch_set.patches[pairs.index1])
    correlation = (a * b).mean((1, 2))
    assert np.median(correlation[pairs.match]) > 0.8
    assert np.median(correlation[~pairs.match]) < 0.4


def normalised(patches: np.ndarray) -> np.ndarray:
    centred = patches - patches.mean((1, 2), keepdims=True)
    return centred / (centred.std((1, 2), keepdims=True) + 1e-6)


@pytest.mark.usefixtures("quick")
def test_all_patches_of_a_class_show_one_place(scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The true surface under every detection: within 2 sigmas, a sixth of a patch's side, of its class's middle."""
    cuts: list[tuple[np.ndarray, np.ndarray]] = []

    def remember(config: PatchSetConfig, image: Any, found: Detections, index: np.ndarray) -> np.ndarray:
        cuts.append((found.xy[index], found.scales[index]))
        return np.zeros((len(index), 64, 64), np.uint8)

    monkeypatch.setattr("featkit.data.make_patches.cut", remember)
    write_patch_set(CONFIG, [scene], tmp_path / "set")
    patch_set, images = read_phototour(tmp_path / "set"), read_image_ids(tmp_path / "set")
    places, sigmas = np.zeros((len(patch_set), 3)), np.zeros(len(patch_set))
    for image, (xy, scales) in zip(np.unique(images), cuts, strict=True):
        pose = list(made_poses(scene))[image]
        rows = np.flatnonzero(images == image)
        places[rows] = surface_point(RENDERED, pose, xy)
        depth = places[rows] @ rotation_matrix(pose.qvec)[2] + pose.tvec[2]
        sigmas[rows] = scales * depth / (0.9 * 400)
    off = np.zeros(len(patch_set))
    for number in np.unique(patch_set.classes):
        here = patch_set.classes == number
        off[here] = np.linalg.norm(places[here] - np.nanmedian(places[here], axis=0), axis=1) / np.median(sigmas[here])
    assert np.mean(~(off < 2)) < 0.02
    assert np.median(off) < 0.3


def geometric(**changes: Any) -> PatchSetConfig:
    """By geometry, without jitter unless asked."""
    still = {"position_px": 0.0, "angle_deg": 0.0, "octaves": 0.0}
    values = {"jitter": still, **changes, "geometry": {"seeds_per_image": 150, **changes.get("geometry", {})}}
    return PatchSetConfig(source="geometry", workers=1, test_pairs=200, **values)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("projected_share", [0.0, 1.0])
def test_classes_by_geometry_show_one_place_of_the_surface(scene: Scene, projected_share: float) -> None:
    """The true surface under every frame, its true size, and its true direction, where no track decided anything."""
    config = geometric(geometry={"projected_share": projected_share})
    found = scene_patches._patches_of_reconstruction(config, scene, np.random.default_rng(0))
    frames, poses = found.frames, list(made_poses(scene))
    assert len(frames) == found.counts["patches"] > 400
    assert found.counts["patches_projected"] == (len(frames) if projected_share else 0)
    assert frames.sizes().min() >= 2
    assert (np.diff(frames.classes) >= 0).all()
    places, tips, metres = np.zeros((len(frames), 3)), np.zeros((len(frames), 3)), np.zeros(len(frames))
    for image, pose in enumerate(poses):
        rows = np.flatnonzero(frames.images == image)
        assert len(set(frames.classes[rows])) == len(rows)
        along = np.stack([np.cos(frames.oris[rows]), np.sin(frames.oris[rows])], axis=1)
        places[rows] = surface_point(RENDERED, pose, frames.xy[rows])
        tips[rows] = surface_point(RENDERED, pose, frames.xy[rows] + along)
        across = surface_point(RENDERED, pose, frames.xy[rows] + np.stack([-along[:, 1], along[:, 0]], axis=1))
        area = np.linalg.norm(np.cross(tips[rows] - places[rows], across - places[rows]), axis=1)  # of a pixel
        metres[rows] = frames.scales[rows] * np.sqrt(area)
    off, octaves, turns = [], [], []
    for number in range(len(frames.sizes())):
        here = np.flatnonzero(frames.classes == number)
        off.append(np.linalg.norm(places[here] - places[here[0]], axis=1)[1:] / metres[here[0]])
        octaves.append(np.abs(np.log2(metres[here] / metres[here[0]]))[1:])
        direction = tips[here] - places[here]
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        turns.append(np.degrees(np.arccos(np.clip(direction @ direction[0], -1, 1)))[1:])
    off, octaves, turns = (np.concatenate(values) for values in (off, octaves, turns))  # type: ignore[assignment]
    limits = (0.2, 0.05, 8.0) if projected_share else (0.7, 0.25, 25.0)  # detections: within their tolerances
    for values, limit in zip((off, octaves, turns), limits, strict=True):
        assert np.mean(~(np.asarray(values) < limit)) < 0.05
        assert np.nanmedian(values) < limit / 2
    again = scene_patches._patches_of_reconstruction(config, scene, np.random.default_rng(0))
    np.testing.assert_array_equal(again.frames.xy, frames.xy)


@pytest.mark.usefixtures("quick")
def test_projections_are_jittered_within_the_limits(scene: Scene) -> None:
    exact, moved = (
        scene_patches._patches_of_reconstruction(config, scene, np.random.default_rng(0)).frames
        for config in (
            geometric(geometry={"projected_share": 1.0}),
            geometric(
                geometry={"projected_share": 1.0}, jitter={"position_px": 2.0, "angle_deg": 15.0, "octaves": 0.15}
            ),
        )
    )
    np.testing.assert_array_equal(exact.classes, moved.classes)
    shift = (moved.xy - exact.xy) / (12 * exact.scales / 64)[:, None]  # px of a patch
    turn = np.degrees((moved.oris - exact.oris + np.pi) % (2 * np.pi) - np.pi)
    for values, limit in ((shift, 2.0), (turn, 15.0), (np.log2(moved.scales / exact.scales), 0.15)):
        assert np.abs(values).max() <= limit + 1e-9
        assert np.abs(values).max() > 0.95 * limit
        assert np.std(values) == pytest.approx(limit / np.sqrt(3), rel=0.1)


@pytest.mark.usefixtures("quick")
def test_a_set_by_geometry_is_written_and_limited(scene: Scene, tmp_path: Path) -> None:
    summary = write_patch_set(geometric(max_patches=120), [scene], tmp_path / "set", seed=1)
    patch_set = read_phototour(tmp_path / "set")
    assert 100 < len(patch_set) == summary["patches"] <= 120
    counts = summary["scenes"]["courtyard"]
    assert counts["patches"] == len(patch_set)
    assert 0 < counts["patches_projected"] < len(patch_set)
    pairs = read_phototour_pairs(find_pairs(tmp_path / "set"), patch_set)
    a, b = normalised(patch_set.patches[pairs.index0]), normalised(patch_set.patches[pairs.index1])
    assert np.median((a * b).mean((1, 2))[pairs.match]) > 0.8
    assert patch_set.images is not None
    np.testing.assert_array_equal(patch_set.images, read_image_ids(tmp_path / "set"))


@pytest.mark.slow
@pytest.mark.parametrize("rule", [{"surface_sigmas": 1e6}, {"depth_tolerance": 1.0}])
def test_occluded_points_are_not_taken(scene: Scene, rule: dict[str, float]) -> None:
    """Seeds moved 5 % away from their camera lie behind the surface everywhere else: no other image shows them.

    Each of the two rules that find it, depth and the surface seen from the seed's image, without the other.
    """
    detections = scene_patches._detect_keypoints(CONFIG, scene, np.random.default_rng(0))
    config = geometric(geometry=rule).geometry
    seeds = geometric_classes.draw_seeds(scene.tracks, detections, config, np.random.default_rng(0))
    behind = replace(seeds, points=seeds.points - 0.05 * np.linalg.norm(seeds.points, axis=1)[:, None] * seeds.rays)
    seen = [
        sum(int(geometric_classes.visible_seeds(scene.tracks, some, image, config).sum()) for image in range(6))
        for some in (seeds, behind)
    ]
    own = len(seeds.images)
    assert seen[0] - own > 0.9 * own
    assert seen[1] - own < 0.2 * (seen[0] - own)


def made_poses(scene: Scene) -> Any:
    from featkit.demo.scene import map_poses

    poses = map_poses(RENDERED)
    return (poses[name] for name in scene.tracks.image_names)


@pytest.mark.slow
def test_the_same_bytes_whatever_the_workers(scene: Scene, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    write_patch_set(CONFIG.model_copy(update={"workers": 2}), [scene], tmp_path / "set")
    assert contents(tmp_path / "set") == contents(made[0])


@pytest.mark.usefixtures("quick")
def test_scenes_are_joined_and_limited(scene: Scene, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    second = Scene(replace(scene.tracks, name="again"), scene.images)
    limited = CONFIG.model_copy(update={"max_patches": 100})
    summary = write_patch_set(limited, [scene, second], tmp_path / "set", seed=3)
    patch_set, images = read_phototour(tmp_path / "set"), read_image_ids(tmp_path / "set")
    assert patch_set.scene_names == ("courtyard", "again")
    assert 180 < len(patch_set) <= 200
    for number in (0, 1):
        assert 90 < (patch_set.scenes == number).sum() <= 100
    assert not set(patch_set.classes[patch_set.scenes == 0]) & set(patch_set.classes[patch_set.scenes == 1])
    assert set(images[patch_set.scenes == 1]) <= set(range(6, 12))
    pairs = read_phototour_pairs(find_pairs(tmp_path / "set"), patch_set)
    assert (patch_set.scenes[pairs.index0] == patch_set.scenes[pairs.index1]).all()
    assert summary["licences"]["again"].startswith("not stated")
    whole = np.bincount(read_phototour(made[0]).classes)
    assert set(np.bincount(patch_set.classes)) <= set(whole), "whole classes"
    write_patch_set(limited, [scene, second], tmp_path / "other", seed=4)
    assert contents(tmp_path / "other") != contents(tmp_path / "set")


def small(scene: Scene, images: int = 2) -> Scene:
    """Only the first photographs: quicker."""
    t = scene.tracks
    used = t.observed_images < images
    part = replace(
        t,
        image_names=t.image_names[:images],
        image_sizes=t.image_sizes[:images],
        rotations=t.rotations[:images],
        translations=t.translations[:images],
        projectors=t.projectors[:images],
        observed_points=t.observed_points[used],
        observed_images=t.observed_images[used],
        observed_xy=t.observed_xy[used],
    )
    return replace(scene, tracks=part)


@pytest.mark.usefixtures("quick")
def test_what_is_there_is_not_replaced_unasked(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "set"
    write_patch_set(CONFIG, [small(scene)], out)
    before = contents(out)
    with pytest.raises(BadInputError, match="--overwrite"):
        write_patch_set(CONFIG, [small(scene)], out)
    tight = CONFIG.model_copy(update={"max_patches": 10})
    write_patch_set(tight, [small(scene)], out, overwrite=True)
    assert len(read_phototour(out)) <= 10
    assert contents(out) != before
    other = tmp_path / "photographs"
    other.mkdir()
    (other / "precious.jpg").touch()
    with pytest.raises(BadInputError, match="not a patch set"):
        write_patch_set(CONFIG, [small(scene)], other, overwrite=True)
    assert (other / "precious.jpg").exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("when", ["cut", "write_scenes", "write_text"])
def test_an_interrupted_run_leaves_what_was_there(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    out = tmp_path / "set"
    write_patch_set(CONFIG, [small(scene)], out)
    before = contents(out)

    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"featkit.data.make_patches.{when}", stop)
    for place in (out, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            write_patch_set(CONFIG, [small(scene)], place, overwrite=True)
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_photographs_of_another_size_are_refused(scene: Scene, tmp_path: Path) -> None:
    wrong = replace(scene, tracks=replace(scene.tracks, image_sizes=scene.tracks.image_sizes * 2))
    with pytest.raises(BadInputError, match=r"0000.jpg: 400 x 300 pixels, but the model's camera has 800 x 600"):
        write_patch_set(CONFIG, [wrong], tmp_path / "set")


def test_a_missing_photograph_is_named(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"0000.jpg: no such image"):
        write_patch_set(CONFIG, [replace(scene, images=tmp_path)], tmp_path / "set")


@pytest.mark.usefixtures("quick")
def test_nothing_found_is_said(scene: Scene, tmp_path: Path) -> None:
    strict = CONFIG.model_copy(update={"classes": ClassesConfig(position_px=1e-6, dense=None)})
    with pytest.raises(EmptyResultError, match="found in two images"):
        write_patch_set(strict, [small(scene)], tmp_path / "set")
    (tmp_path / "file").touch()
    with pytest.raises(NotWritableError):
        write_patch_set(CONFIG, [small(scene)], tmp_path / "file" / "set")


def photograph(path: Path, seed: int = 0) -> np.ndarray:
    """A smooth random photograph of 240 x 180 px, stored without loss."""
    coarse = np.random.default_rng(seed).integers(0, 256, (18, 24), dtype=np.uint8)
    pixels = cv2.resize(coarse, (240, 180), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(pixels).save(path)
    return pixels


KEYPOINTS = Detections(
    np.array([[100.3, 90.7], [120.0, 80.0], [60.5, 100.25]]),
    np.array([4.0, 5.0, 5.3]),
    np.array([0.4, -2.0, 3.0]),
)


def test_patches_lie_as_their_keypoints_say(tmp_path: Path) -> None:
    """Against OpenCV's warp: 12 sigmas wide, the keypoint's direction along +x."""
    pixels = photograph(tmp_path / "p.png")
    patches = cut(CONFIG, decode(tmp_path / "p.png", DecodeConfig()), KEYPOINTS, np.arange(3))
    for patch, xy, scale, ori in zip(patches, KEYPOINTS.xy, KEYPOINTS.scales, KEYPOINTS.oris, strict=True):
        step = 12 * scale / 64
        turn = step * np.array([[np.cos(ori), -np.sin(ori)], [np.sin(ori), np.cos(ori)]])
        there = np.c_[turn, xy - turn @ (31.5, 31.5)]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        wanted = cv2.warpAffine(pixels, there, (64, 64), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        assert np.abs(patch.astype(int) - wanted).max() <= 3


@pytest.mark.parametrize("tag", [3, 6, 8])
def test_turned_photographs_give_the_patches_of_their_stored_pixels(tmp_path: Path, tag: int) -> None:
    """A model's keypoints are in the file's pixels; decoding turns a photograph upright by its EXIF tag."""
    pixels = photograph(tmp_path / "p.png")
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    plain, turned = (decode(tmp_path / name, DecodeConfig()) for name in ("p.png", "turned.png"))
    assert not np.array_equal(plain.pixels, turned.pixels)
    wanted, got = (cut(CONFIG, image, KEYPOINTS, np.arange(3)) for image in (plain, turned))
    assert np.abs(got.astype(int) - wanted).max() <= 1
