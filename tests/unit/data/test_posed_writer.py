"""From a map to posed pairs and back: exact lines on rendered photographs, a lens, stops and wrong turns."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from posed_scenes import RadialLens, tracks_of

from featkit.core.errors import BadInputError
from featkit.data import make_posed_pairs as posed_scene
from featkit.data.make_posed_pairs import PosedPairsConfig, name_of, write_posed_pairs
from featkit.data.pair_choice import PairChoiceConfig
from featkit.data.posed_pairs import PosedConfig, PosedPairs, read_posed_pairs
from featkit.data.posed_samples import PairAugmentation, PosedSamples
from featkit.data.tracks import Scene
from featkit.data.views import CanvasConfig, ViewConfig
from featkit.demo.scene import RenderedConfig, surface_point
from featkit.geometry.epipolar import epipolar_distances
from featkit.geometry.pixels import apply_homography
from featkit.geometry.poses import rotation_matrix
from featkit.images.read import stored_from_upright, upright

RENDERED = RenderedConfig(width=400, height=300, num_map=6, num_queries=2, texel_m=0.012)  # tests/conftest.py's
CONFIG = PosedPairsConfig(max_side=220, workers=1)
K1 = -0.08
POINTS = 300


@pytest.fixture(scope="module")
def lens_scene(small_rendered: Any, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The rendered photographs as a camera with a lens takes them, and a map of points of their surfaces."""
    images = tmp_path_factory.mktemp("lens")
    focal, _, cx, cy = small_rendered.intrinsics.params
    lens = RadialLens(focal, (cx - 0.5, cy - 0.5), K1)
    y, x = np.mgrid[:300, :400]
    rays = lens.rays(np.stack([x, y], axis=2).reshape(-1, 2).astype(float))
    straight = (focal * rays[:, :2] + lens.centre).reshape(300, 400, 2).astype(np.float32)
    rng, points = np.random.default_rng(0), []
    for name, pose in small_rendered.poses.items():
        picture = cv2.imread(str(small_rendered.images / name))
        bent = cv2.remap(picture, straight[..., 0], straight[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        cv2.imwrite(str(images / name.replace(".jpg", ".png")), bent)
        points.append(surface_point(RENDERED, pose, rng.uniform((40, 30), (360, 270), (POINTS, 2))))
    cloud = np.concatenate(points)
    cloud = cloud[np.isfinite(cloud).all(axis=1)]
    poses = [(rotation_matrix(pose.qvec), pose.tvec) for pose in small_rendered.poses.values()]
    lenses = {name.replace(".jpg", ".png"): lens for name in small_rendered.poses}
    return Scene(tracks_of("courtyard", cloud, lenses, poses, (400, 300)), images, "CC0")


@pytest.fixture(scope="module")
def made(lens_scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("posed") / "out"
    return out, write_posed_pairs(CONFIG, [lens_scene], out)


def seen_by(pairs: PosedPairs, image: int, points: np.ndarray) -> np.ndarray:
    """featkit pixels of world points by the camera that was read back; NaN outside of the image."""
    cameras = pairs.scenes[0]
    local = points @ cameras.rotations[image].T + cameras.translations[image]
    mapped = local @ cameras.intrinsics[image].T
    found = mapped[:, :2] / mapped[:, 2:]
    inside = (local[:, 2] > 0) & ((found >= -0.5) & (found <= cameras.sizes[image] - 0.5)).all(axis=1)
    return np.where(inside[:, None], found, np.nan)


def test_true_matches_lie_on_their_lines(made: tuple[Path, Any], lens_scene: Scene) -> None:
    """Written, resized, undistorted, read back; then augmented by homographies: 1e-3 px."""
    pairs = read_posed_pairs(made[0])
    assert len(pairs) == made[1]["pairs"] > 5
    strong = ViewConfig(rotation_deg=40, scale_max=1.6, perspective=0.25)
    samples = PosedSamples(pairs, PairAugmentation(canvas=CanvasConfig(width=160, height=120), views=strong))
    for index, (_, first, second) in enumerate(pairs.pairs):
        x0, x1 = (seen_by(pairs, image, lens_scene.tracks.points) for image in (first, second))
        both = np.isfinite(x0).all(axis=1) & np.isfinite(x1).all(axis=1)
        assert both.sum() > 100
        found = epipolar_distances(pairs.fundamental01(index), x0[both], x1[both])
        assert max(d.max() for d in found) < 1e-3
        sample = samples.sample(index, np.random.default_rng(index))
        on0 = apply_homography(sample.canvas0_from_image, x0[both])
        on1 = apply_homography(sample.canvas1_from_image, x1[both])
        good = np.isfinite(on0).all(axis=1) & np.isfinite(on1).all(axis=1)
        assert max(d.max() for d in epipolar_distances(sample.fundamental01, on0[good], on1[good])) < 1e-3


def difference(original: np.ndarray, picture: np.ndarray, between: np.ndarray, shift_px: float) -> float:
    """Of a picture to the original seen through a homography and moved to the right, mean grey levels."""
    moved = between.copy()
    moved[0, 2] += shift_px
    seen = cv2.warpPerspective(original, moved, (picture.shape[1], picture.shape[0]), flags=cv2.INTER_LINEAR)
    return float(np.abs(seen.astype(int) - picture)[6:-6, 6:-6].mean())


def test_the_cameras_are_those_of_the_pictures(made: tuple[Path, Any], small_rendered: Any) -> None:
    """Bent by a lens, undistorted and reduced, each picture is the rendered one seen by the camera that was written."""
    pairs = read_posed_pairs(made[0])
    cameras = pairs.scenes[0]
    focal, _, cx, cy = small_rendered.intrinsics.params
    rendered = np.array([[focal, 0, cx - 0.5], [0, focal, cy - 0.5], [0, 0, 1]])
    for image, name in enumerate(cameras.image_names):
        picture = pairs.pixels(0, image)
        assert max(picture.shape) == 220
        original = cv2.imread(str(small_rendered.images / name.replace(".png.jpg", ".jpg")))[:, :, ::-1]
        original = cv2.GaussianBlur(original, (0, 0), 0.7)  # the reduction's own blur
        between = cameras.intrinsics[image] @ np.linalg.inv(rendered)

        shifts = np.linspace(-0.5, 0.5, 5)
        values = [difference(original, picture, between, shift) for shift in shifts]
        bend = np.polyfit(shifts, values, 2)
        assert abs(-bend[1] / (2 * bend[0])) < 0.1, "the best place is where the camera says"


@pytest.mark.parametrize("tag", [2, 5, 6, 8])
def test_files_that_are_stored_turned(made: tuple[Path, Any], lens_scene: Scene, tmp_path: Path, tag: int) -> None:
    """The same photograph stored on its side, its camera turned with it: the same picture, camera and pose come out.

    A mirrored one (tags 2 and 5) has no upright camera and stays as it is stored: its lines are exact all the same.
    """
    tracks = lens_scene.tracks
    images = Path(shutil.copytree(lens_scene.images, tmp_path / "images"))
    affine = stored_from_upright((300, 400) if tag in {5, 6, 8} else (400, 300), tag)
    linear, offset = affine[:, :2].round(), affine[:, 2]
    pixels = np.asarray(Image.open(images / tracks.image_names[0]))
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(stored(pixels, tag)).save(images / tracks.image_names[0], exif=exif)
    turn = np.eye(3)
    turn[:2, :2] = linear
    lens, size = tracks.projectors[0], np.abs(linear @ [400, 300]).astype(int)
    assert isinstance(lens, RadialLens)
    centre = linear @ lens.centre + offset
    mirrored = np.linalg.det(linear) < 0
    if mirrored:  # a mirrored world for a mirrored file: the camera as it would have been mapped from the file
        turn = np.eye(3)
    turned = replace(
        tracks,
        image_sizes=np.array([size, *tracks.image_sizes[1:]]),
        rotations=np.array([turn @ tracks.rotations[0], *tracks.rotations[1:]]),
        translations=np.array([turn @ tracks.translations[0], *tracks.translations[1:]]),
        projectors=(replace(lens, centre=tuple(centre)), *tracks.projectors[1:]),
    )
    write_posed_pairs(CONFIG, [replace(lens_scene, tracks=turned, images=images)], tmp_path / "out")
    found, plain = read_posed_pairs(tmp_path / "out"), read_posed_pairs(made[0])
    if mirrored:
        assert found.scenes[0].sizes[0].tolist() == plain.scenes[0].sizes[0].tolist()[:: 1 if tag == 2 else -1]
        back = upright(found.pixels(0, 0), tag)
        assert back.shape == plain.pixels(0, 0).shape
        unlike = np.abs(back.astype(int) - plain.pixels(0, 0)[::-1]).mean()
        assert np.abs(back.astype(int) - plain.pixels(0, 0)).mean() < 5 < unlike  # JPEG's blocks lie elsewhere
        return
    for name in ("intrinsics", "rotations", "translations", "sizes"):
        np.testing.assert_allclose(getattr(found.scenes[0], name), getattr(plain.scenes[0], name), atol=1e-6)
    assert np.abs(found.pixels(0, 0).astype(int) - plain.pixels(0, 0)).max() <= 2


def stored(pixels: np.ndarray, tag: int) -> np.ndarray:
    """The pixels of a file that looks like `pixels` when its EXIF orientation is followed."""
    for turned in (pixels, pixels.swapaxes(0, 1)):
        for flipped in (turned, turned[::-1], turned[:, ::-1], turned[::-1, ::-1]):
            if np.array_equal(upright(flipped, tag), pixels):
                return np.ascontiguousarray(flipped)
    raise AssertionError


def test_what_is_written(made: tuple[Path, Any]) -> None:
    out, summary = made
    aligned = out / "courtyard" / "dense0" / "aligned"
    assert sorted(p.name for p in aligned.iterdir()) == ["images", "img_cam.txt", "pairs.json", "pairs.txt"]
    assert sorted(p.name for p in out.iterdir()) == ["courtyard", "dataset.json", "licence.txt"]
    assert (out / "licence.txt").read_text() == "courtyard: CC0\n"
    assert json.loads((out / "dataset.json").read_text()) == summary
    told = json.loads((aligned / "pairs.json").read_text())
    assert all(len(told[key]) == summary["pairs"] for key in ("shared", "overlap", "scale", "angle_deg", "box0"))
    boxes = read_posed_pairs(out).boxes
    np.testing.assert_allclose(boxes[:, 0], told["box0"])
    assert (boxes[:, :, 2:] - boxes[:, :, :2] > 20).all()


def test_a_set_that_is_whole_is_kept(
    made: tuple[Path, Any], lens_scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(made[0], tmp_path / "out"))
    monkeypatch.setattr(posed_scene, "decode", None)  # nothing may be read again
    assert write_posed_pairs(CONFIG, [lens_scene], out) == made[1]
    more = PosedPairsConfig(max_side=200, workers=1)
    with pytest.raises(BadInputError, match="--overwrite"):
        write_posed_pairs(more, [lens_scene], out)
    with pytest.raises(BadInputError, match="--overwrite"):
        write_posed_pairs(CONFIG, [lens_scene], out, seed=1)
    monkeypatch.undo()
    write_posed_pairs(more, [lens_scene], out, overwrite=True)
    assert read_posed_pairs(out).scenes[0].sizes.max() == 200
    assert sorted(p.name for p in out.iterdir()) == ["courtyard", "dataset.json", "licence.txt"]


def test_stopped_it_goes_on(
    made: tuple[Path, Any], lens_scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three photographs it is stopped; the next run makes only the others, and the same bytes come out."""
    whole, calls = posed_scene._write_photograph, []

    def stops(config: Any, scene: Scene, number: int, target: Path) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(number)
        return whole(config, scene, number, target)

    out = tmp_path / "out"
    monkeypatch.setattr(posed_scene, "_write_photograph", stops)
    with pytest.raises(KeyboardInterrupt):
        write_posed_pairs(CONFIG, [lens_scene], out)
    assert not (out / "courtyard").exists()
    journal = out / ".courtyard.part" / posed_scene.JOURNAL
    journal.write_text(journal.read_text()[:-10])  # the last line was being written
    again: list[int] = []
    monkeypatch.setattr(
        posed_scene, "_write_photograph", lambda c, s, number, t: (again.append(number), whole(c, s, number, t))[1]
    )
    assert write_posed_pairs(CONFIG, [lens_scene], out) == made[1]
    assert again == [2, 3, 4, 5]
    files = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(p.relative_to(made[0]) for p in made[0].rglob("*") if p.is_file())
    assert all((out / file).read_bytes() == (made[0] / file).read_bytes() for file in files)


def cropped(scene: Scene) -> Scene:
    """As if most of what lay left of the middle had been cut off."""
    focal = scene.tracks.projectors[0].focal  # type: ignore[attr-defined]
    return replace(scene, tracks=replace(scene.tracks, projectors=(RadialLens(focal, (80.0, 149.5)),) * 6))


def test_what_a_training_refuses_is_written_only_when_asked_for(lens_scene: Scene, tmp_path: Path) -> None:
    config = PosedPairsConfig(max_side=220, workers=1, principal_tolerance=0.4)
    assert config.fingerprint() == CONFIG.fingerprint(), "what is written is the same"
    write_posed_pairs(config, [cropped(lens_scene)], tmp_path / "out")
    with pytest.raises(BadInputError, match=r"img_cam.txt:1: .*data.principal_tolerance"):
        read_posed_pairs(tmp_path / "out")
    assert len(read_posed_pairs(tmp_path / "out", PosedConfig(principal_tolerance=0.4))) > 3


def test_wrong_turns(lens_scene: Scene, tmp_path: Path) -> None:
    tracks, out = lens_scene.tracks, tmp_path / "out"
    alone = replace(tracks, observed_images=np.arange(len(tracks.observed_images)) % len(tracks.image_names))
    thin = replace(alone, observed_points=np.arange(len(alone.observed_points)) % len(alone.points))
    wrong: list[tuple[PosedPairsConfig, Scene, str]] = [
        (PosedPairsConfig(choice=PairChoiceConfig(min_shared=99999)), lens_scene, "no two images share 99999 points"),
        (CONFIG, replace(lens_scene, tracks=replace(thin, points=thin.points)), "no two images share 30 points"),
        (
            PosedPairsConfig(max_side=220, workers=1, choice=PairChoiceConfig(max_angle_deg=1.5)),
            lens_scene,
            "is within the limits",
        ),
        (
            CONFIG,
            replace(lens_scene, tracks=replace(tracks, image_sizes=tracks.image_sizes * [2, 1])),
            "cropped or rotated",
        ),
        (CONFIG, replace(lens_scene, images=tmp_path / "gone"), "no such image"),
        (CONFIG, replace(lens_scene, tracks=replace(tracks, image_names=("#a", *tracks.image_names[1:]))), "rename"),
        (
            CONFIG,
            replace(lens_scene, tracks=replace(tracks, projectors=(RadialLens(300, (199.5, 149.5), -5.0),) * 6)),
            "cannot be undistorted",
        ),
        (PosedPairsConfig(max_side=70, workers=1), lens_scene, "smaller than 64 px"),
        (CONFIG, cropped(lens_scene), r"png: its principal point is far from the image centre.*principal_tolerance"),
    ]
    for config, scene, says in wrong:
        with pytest.raises(BadInputError, match=says):
            write_posed_pairs(config, [scene], out)
        assert not (out / "courtyard").exists()
        shutil.rmtree(out, ignore_errors=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("")
    with pytest.raises(BadInputError, match=r"letter\.txt"):
        write_posed_pairs(CONFIG, [lens_scene], tmp_path / "full")


@pytest.mark.parametrize("size", [(200, 150), (641, 480)])
def test_photographs_that_were_resized(
    made: tuple[Path, Any], lens_scene: Scene, tmp_path: Path, size: tuple[int, int]
) -> None:
    """As MegaDepth's are next to its models: the same view as from the original photographs, lens and all."""
    for name in lens_scene.tracks.image_names:
        picture = cv2.imread(str(lens_scene.images / name))
        how = cv2.INTER_AREA if size[0] < 400 else cv2.INTER_CUBIC
        cv2.imwrite(str(tmp_path / name), cv2.resize(picture, size, interpolation=how))
    write_posed_pairs(CONFIG, [replace(lens_scene, images=tmp_path)], tmp_path / "out")
    resized, pairs = read_posed_pairs(tmp_path / "out"), read_posed_pairs(made[0])
    np.testing.assert_array_equal(resized.pairs, pairs.pairs)
    for index, (_, first, second) in enumerate(resized.pairs):
        x0, x1 = (seen_by(resized, image, lens_scene.tracks.points) for image in (first, second))
        both = np.isfinite(x0).all(axis=1) & np.isfinite(x1).all(axis=1)
        assert max(d.max() for d in epipolar_distances(resized.fundamental01(index), x0[both], x1[both])) < 1e-3
    for image in range(len(lens_scene.tracks.image_names)):
        own, other = resized.pixels(0, image), pairs.pixels(0, image)
        between = resized.scenes[0].intrinsics[image] @ np.linalg.inv(pairs.scenes[0].intrinsics[image])
        shifts = np.linspace(-0.5, 0.5, 5)
        bend = np.polyfit(shifts, [difference(other, own, between, shift) for shift in shifts], 2)
        assert abs(-bend[1] / (2 * bend[0])) < 0.1, "the best place is where the camera says"


def test_scenes_with_nothing_to_learn_from_are_passed_over(
    lens_scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracks = lens_scene.tracks
    thin = replace(
        tracks,
        name="thin",
        observed_points=np.arange(len(tracks.observed_points)) % len(tracks.points),
        observed_images=np.arange(len(tracks.observed_images)) % len(tracks.image_names),
    )
    near = replace(tracks, name="near", translations=0.001 * tracks.translations)
    others = [replace(lens_scene, tracks=one) for one in (thin, near)]
    config = PosedPairsConfig(max_side=100, workers=1)
    with caplog.at_level("WARNING", "featkit"):
        summary = write_posed_pairs(config, [others[0], lens_scene, others[1]], tmp_path / "out")
    assert list(summary["scenes"]) == list(summary["licences"]) == ["courtyard"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["courtyard", "dataset.json", "licence.txt"]
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[:2] for line in lines] == [["passed over", " thin"], ["passed over", " near"]]
    with pytest.raises(BadInputError, match="thin: no two images share"):
        write_posed_pairs(config, others[:1], tmp_path / "none")


def test_names() -> None:
    assert [name_of(name) for name in ("a.JPG", "b/c.jpeg", "d.png", "e")] == [
        "a.JPG",
        "b/c.jpeg",
        "d.png.jpg",
        "e.jpg",
    ]
