"""Samples of posed pairs and of single photographs: exact geometry on the canvas, determinism, the feed."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from posed_scenes import MadeScene, make_scene, smooth_noise

from featkit.core.errors import BadInputError
from featkit.data.posed_pairs import read_posed_pairs, split_pairs
from featkit.data.posed_samples import (
    HomographyPairs,
    PairAugmentation,
    PairFeed,
    PairOrder,
    PixelCache,
    PosedSamples,
    WarpConfig,
)
from featkit.data.views import CanvasConfig, JitterConfig, ViewConfig, draw_view
from featkit.geometry.epipolar import epipolar_distances
from featkit.geometry.pixels import apply_homography
from featkit.losses.scfeat_warm_up import map_points
from featkit.losses.two_views import inside_image

CANVAS = CanvasConfig(width=128, height=96)
STRONG = ViewConfig(rotation_deg=40, scale_max=1.6, perspective=0.25)
BEYOND_THE_HORIZON = (219, 301, 306, 394, 444)  # seeds of such views
STILL = JitterConfig(brightness=0, contrast=0, saturation=0, hue=0)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> MadeScene:
    return make_scene(tmp_path_factory.mktemp("posed"), images=5)


def samples_of(scene: MadeScene, config: PairAugmentation | None = None, cache_mb: float = 100) -> PosedSamples:
    config = config or PairAugmentation(canvas=CANVAS, views=STRONG)
    return PosedSamples(read_posed_pairs(scene.folder.parents[2]), config, cache_mb)


def test_true_matches_lie_on_their_lines_on_the_canvas(scene: MadeScene) -> None:
    samples = samples_of(scene)
    pairs = read_posed_pairs(scene.folder.parents[2]).pairs
    for index in range(len(samples)):
        sample = samples.sample(index, np.random.default_rng(index))
        x0 = apply_homography(sample.canvas0_from_image, scene.seen(pairs[index, 1]))
        x1 = apply_homography(sample.canvas1_from_image, scene.seen(pairs[index, 2]))
        seen = np.isfinite(x0).all(axis=1) & np.isfinite(x1).all(axis=1)
        assert seen.sum() > 50
        found = epipolar_distances(sample.fundamental01, x0[seen], x1[seen])
        assert max(d.max() for d in found) < 1e-6
        assert np.linalg.norm(sample.fundamental01) == pytest.approx(1)


def test_shapes_and_margins(scene: MadeScene) -> None:
    sample = samples_of(scene, PairAugmentation(canvas=CANVAS, views=STRONG)).sample(2, np.random.default_rng(0))
    assert sample.image0.shape == sample.image1.shape == (96, 128, 3)
    assert (sample.image0.dtype, sample.valid0.dtype) == (np.uint8, np.bool_)
    assert sample.fundamental01.dtype == np.float64
    assert not sample.valid0.all()
    assert not sample.image0[~sample.valid0].any()
    assert sample.names == ("a/dense0/000.png", "a/dense0/003.png")


def test_images_of_a_pair_are_varied_independently(scene: MadeScene) -> None:
    samples = samples_of(scene)
    sample = samples.sample(1, np.random.default_rng(0))  # 000 and 002: both lie
    assert np.abs(sample.canvas0_from_image - sample.canvas1_from_image).max() > 0.01
    plain = samples_of(scene, PairAugmentation(canvas=CANVAS, jitter=STILL)).sample(1, np.random.default_rng(0))
    direct = read_posed_pairs(scene.folder.parents[2]).pixels(0, 0)
    expected = cv2.resize(direct, CANVAS.size, interpolation=cv2.INTER_LINEAR)
    assert np.abs(plain.image0.astype(int) - expected).max() <= 2
    assert plain.valid0.all()


def test_both_images_are_cut_about_the_same_place(scene: MadeScene) -> None:
    """001 and 003 stand upright; on a canvas that they cover, equal boxes are cut alike, anew every time."""
    covered = CanvasConfig(width=128, height=96, cover_min=1)
    samples = samples_of(scene, PairAugmentation(canvas=covered))
    drawn = [samples.sample(5, np.random.default_rng(seed)) for seed in range(8)]
    assert drawn[0].names == ("a/dense0/001.png", "a/dense0/003.png")
    for sample in drawn:
        np.testing.assert_array_equal(sample.canvas0_from_image, sample.canvas1_from_image)
    assert np.std([sample.canvas0_from_image[1, 2] for sample in drawn]) > 5


def test_both_images_of_a_pair_are_zoomed_alike(scene: MadeScene) -> None:
    small = CanvasConfig(width=64, height=64, cover_min=1, zoom_max=3)
    samples = samples_of(scene, PairAugmentation(canvas=small))
    drawn = [samples.sample(5, np.random.default_rng(seed)) for seed in range(8)]
    scales = [(one.canvas0_from_image[0, 0], one.canvas1_from_image[0, 0]) for one in drawn]
    assert all(first == second for first, second in scales)
    assert max(scales)[0] > 1.2 * min(scales)[0]


def test_the_same_generator_gives_the_same_bytes(scene: MadeScene) -> None:
    first, again, other = (
        samples_of(scene, cache_mb=cache).sample(3, np.random.default_rng(seed))
        for cache, seed in ((9, 1), (0, 1), (9, 2))
    )
    assert first.image0.tobytes() == again.image0.tobytes()
    assert first.fundamental01.tobytes() == again.fundamental01.tobytes()
    assert first.image1.tobytes() != other.image1.tobytes()


def test_a_sample_of_a_broken_photograph_is_an_error(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    (scene.folder / "images" / "001.png").write_bytes(b"")
    with pytest.raises(BadInputError, match=r"001\.png"):
        samples_of(scene).sample(0, np.random.default_rng(0))


def test_the_cache_keeps_what_came_first() -> None:
    cache, loads = PixelCache(2.5e-3), []

    def load(key: int) -> np.ndarray:
        loads.append(key)
        return np.full((10, 100), key, np.uint8)

    for key in (1, 2, 3, 1, 2, 3):
        assert cache.get(key, lambda key=key: load(key))[0, 0] == key
    assert loads == [1, 2, 3, 3]
    assert cache.held_bytes == 2000
    with pytest.raises(ValueError, match="read-only"):
        cache.get(1, lambda: load(1))[0, 0] = 7


# ------------------------------------------------------------------------------------------------ photographs


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (120, 160)), ("b.jpg", (200, 150)), ("more/c.png", (96, 128))):
        cv2.imwrite(str(folder / name), smooth_noise(shape, rng))
    return folder


def test_the_homography_joins_the_two_views(photographs: Path) -> None:
    """Colours at a pixel of canvas 0 are found again at its place in canvas 1."""
    pairs = HomographyPairs([photographs], WarpConfig(canvas=CANVAS, jitter=STILL))
    assert len(pairs) == 3
    for index in range(3):
        sample = pairs.sample(index, np.random.default_rng(index))
        y, x = np.mgrid[:96, :128]
        places = np.stack([x, y], axis=2).reshape(-1, 2).astype(np.float32)
        there = apply_homography(sample.homography01, places).reshape(96, 128, 2).astype(np.float32)
        read = cv2.remap(sample.image1, there[..., 0], there[..., 1], cv2.INTER_LINEAR)
        valid = cv2.remap(sample.valid1.astype(np.uint8), there[..., 0], there[..., 1], cv2.INTER_NEAREST) > 0
        kernel = np.ones((5, 5), np.uint8)
        both = cv2.erode((valid & sample.valid0).astype(np.uint8), kernel) > 0
        assert both.mean() > 0.2
        difference = np.abs(read.astype(int) - sample.image0)[both]
        assert difference.mean() < 2.0
        shifted = np.abs(np.roll(read, 1, axis=1).astype(int) - sample.image0)[both]
        assert shifted.mean() > 2 * difference.mean()


def test_what_both_views_see_is_in_front_and_nothing_else(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strong views, some of whose pixels (0, 0) lie beyond the other's horizon. What a view sees is a quadrilateral."""
    views = ViewConfig(rotation_deg=45, scale_max=2, perspective=0.3)
    pairs = HomographyPairs([photographs], WarpConfig(canvas=CANVAS, jitter=STILL, views=views))
    y, x = np.mgrid[:96:3, :128:3]
    pixels = np.stack([x, y], axis=2).reshape(-1, 2).astype(float)
    corners = np.array([[0.0, 0], [127, 0], [127, 95], [0, 95]])
    beyond = 0
    for seed in (*BEYOND_THE_HORIZON, *range(30)):
        rng = np.random.default_rng(seed)
        drawn = [draw_view(views, CANVAS.size, rng) for _ in range(2)]
        monkeypatch.setattr("featkit.data.posed_samples.draw_view", lambda *_, left=iter(drawn): next(left))
        sample = pairs.sample(seed % 3, rng)
        points = cv2.perspectiveTransform(pixels[None], np.linalg.inv(drawn[0]))[0]
        quadrilateral = cv2.perspectiveTransform(corners[None], np.linalg.inv(drawn[1])).astype(np.float32)
        depth = np.array([cv2.pointPolygonTest(quadrilateral, point, True) for point in points.tolist()])
        moved = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1) @ sample.homography01.T
        there = moved[:, :2] / moved[:, 2:]
        shown = (moved[:, 2] > 0) & (there >= 0).all(axis=1) & (there <= [127, 95]).all(axis=1)
        sure = np.abs(depth) > 0.01
        np.testing.assert_array_equal(shown[sure], depth[sure] > 0)
        expected = cv2.perspectiveTransform(points[None], drawn[1])[0]
        np.testing.assert_allclose(there[shown], expected[shown], atol=1e-6)
        found, front = map_points(torch.from_numpy(sample.homography01)[None], torch.from_numpy(pixels)[None])
        np.testing.assert_array_equal((front & inside_image(found, (128, 96)))[0].numpy(), shown)
        beyond += bool(sample.homography01[2, 2] < 0 and shown.any())
    assert beyond >= len(BEYOND_THE_HORIZON)


def test_photographs_are_zoomed(tmp_path: Path) -> None:
    """Of a photograph that grows brighter to the right a part as wide as the zoom lets be seen is shown."""
    cv2.imwrite(str(tmp_path / "ramp.png"), np.tile(np.arange(256, dtype=np.uint8), (192, 1)))
    canvas = CanvasConfig(width=64, height=64, cover_min=1, zoom_max=4)
    pairs = HomographyPairs([tmp_path], WarpConfig(canvas=canvas, jitter=STILL, views=ViewConfig()))
    shown = [int(np.ptp(pairs.sample(0, np.random.default_rng(seed)).image0)) for seed in range(12)]
    assert 60 <= min(shown) < 90 < 150 < max(shown) < 192


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    pixels = smooth_noise((96, 128), np.random.default_rng(0))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    config = WarpConfig(canvas=CANVAS, jitter=STILL)
    turned, plain = (HomographyPairs([tmp_path / name], config) for name in ("turned.png", "upright.png"))
    for pairs in (turned, plain):
        assert len(pairs) == 1
    first, second = (pairs.sample(0, np.random.default_rng(0)) for pairs in (turned, plain))
    np.testing.assert_array_equal(first.image0, second.image0)


def test_photographs_in_a_zip(photographs: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", photographs))
    folder, packed = HomographyPairs([photographs]), HomographyPairs([archive])
    first, second = (pairs.sample(2, np.random.default_rng(0)) for pairs in (folder, packed))
    np.testing.assert_array_equal(first.image1, second.image1)
    assert len(HomographyPairs([archive / "more", photographs / "a.png"])) == 2
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text("")
    with pytest.raises(BadInputError, match="no photographs"):
        HomographyPairs([tmp_path / "none"])


# ------------------------------------------------------------------------------------------------ the feed


def test_every_pair_once_per_epoch() -> None:
    order = PairOrder(7, seed=3)
    numbers = [order[i] for i in range(21)]
    epochs = [numbers[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    fresh = PairOrder(7, seed=3)
    assert [fresh[i] for i in (20, 3, 14)] == [numbers[i] for i in (20, 3, 14)]
    assert [PairOrder(7, seed=4)[i] for i in range(7)] != epochs[0]


def batches(feed: PairFeed, count: int) -> list[bytes]:
    found = [feed.next() for _ in range(count)]
    feed.close()
    return [batch.images0.numpy().tobytes() + batch.fundamentals01.numpy().tobytes() for batch in found]


def test_threads_change_nothing(scene: MadeScene) -> None:
    plain, threaded = (batches(PairFeed(samples_of(scene), 3, seed=5, workers=workers), 6) for workers in (0, 3))
    assert plain == threaded
    assert len(set(plain)) == 6


def test_a_resumed_feed_goes_on_with_the_same_batches(scene: MadeScene) -> None:
    through = batches(PairFeed(samples_of(scene), 3, seed=5), 6)
    feed = PairFeed(samples_of(scene), 3, seed=5)
    for _ in range(4):
        feed.next()
    state = feed.state()
    feed.close()
    resumed = PairFeed(samples_of(scene), 3, seed=5)
    resumed.restore(state)
    assert batches(resumed, 2) == through[4:]
    rewound = PairFeed(samples_of(scene), 3, seed=5)
    rewound.next()
    rewound.restore({"batches": 0})
    assert batches(rewound, 2) == through[:2]


def test_processes_share_a_batch(scene: MadeScene) -> None:
    whole = PairFeed(samples_of(scene), 3, seed=5, workers=0)
    parts = [
        PairFeed(samples_of(scene), 3, seed=5, workers=0, part=lambda count, rank=rank: slice(2 * rank, 2 * rank + 2))
        for rank in (0, 1)
    ]
    for _ in range(2):
        batch, first, second = (feed.next() for feed in (whole, *parts))
        assert (len(first), len(second)) == (2, 1)
        assert first.names + second.names == batch.names
        np.testing.assert_array_equal(second.images1[0], batch.images1[2])


def test_batches_of_photographs(photographs: Path) -> None:
    feed = PairFeed(HomographyPairs([photographs], WarpConfig(canvas=CANVAS)), 2)
    batch = feed.next()
    feed.close()
    assert tuple(batch.images0.shape) == (2, 96, 128, 3)
    assert tuple(batch.homographies01.shape) == (2, 3, 3)
    assert tuple(batch.valid1.shape) == (2, 96, 128)
    assert len(batch) == len(set(batch.names)) == 2


class Slow:
    """A source that says what it was asked for."""

    def __init__(self, broken: int = -1):
        self.asked: list[int] = []
        self._broken, self._lock = broken, threading.Lock()

    def __len__(self) -> int:
        return 100

    def sample(self, index: int, generator: np.random.Generator) -> int:
        time.sleep(0.02)
        with self._lock:
            self.asked.append(index)
            if len(self.asked) > self._broken >= 0:
                raise BadInputError("broken.jpg: cannot be decoded")
        return index

    def collate(self, samples: object) -> object:
        return samples


def test_reads_ahead_and_stops() -> None:
    source = Slow()
    feed: PairFeed = PairFeed(source, 2, workers=2)
    feed.next()
    deadline = time.monotonic() + 20
    while len(source.asked) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(source.asked) == 6
    assert feed.waited_s > 0.01
    feed.close()
    assert len(source.asked) == 6


def test_an_error_comes_out_where_the_batch_is_asked_for() -> None:
    feed: PairFeed = PairFeed(Slow(broken=2), 2, workers=1)
    feed.next()
    for _ in range(2):
        with pytest.raises(BadInputError, match="cannot be decoded"):
            feed.next()
    feed.close()


# ------------------------------------------------------------------------------------------------ held out


def test_held_out_images_are_never_learned_from(tmp_path: Path) -> None:
    make_scene(tmp_path, "a", images=12, size=(80, 64))
    make_scene(tmp_path, "b", images=10, size=(80, 64), seed=1)
    pairs = read_posed_pairs(tmp_path)
    learned, held = split_pairs(pairs, 0.3, seed=0)
    for scene, wanted in ((0, 4), (1, 3)):
        images = [set(part.pairs[part.pairs[:, 0] == scene, 1:].ravel().tolist()) for part in (learned, held)]
        assert images[0] & images[1] == set()
        assert len(images[1]) == wanted
    everything = {tuple(row) for row in pairs.pairs.tolist()}
    kept = [tuple(row) for part in (learned, held) for row in part.pairs.tolist()]
    assert len(kept) == len(set(kept)) < len(everything)
    again = split_pairs(pairs, 0.3, seed=0)
    np.testing.assert_array_equal(again[1].pairs, held.pairs)
    np.testing.assert_array_equal(again[1].boxes, held.boxes)
    drawn = {split_pairs(pairs, 0.3, seed)[1].pairs.tobytes() for seed in range(6)}
    assert len(drawn) > 1


def test_held_out_images_lie_together(tmp_path: Path) -> None:
    """In a chain 0-1, 1-2, ... only neighbours are pairs: images drawn apart would hold nothing out."""
    scene = make_scene(tmp_path, images=20, size=(80, 64))
    lines = [f"{a:03d}.png {a + 1:03d}.png\n" for a in range(19)]
    (scene.folder / "pairs.txt").write_text("".join(lines))
    learned, held = split_pairs(read_posed_pairs(tmp_path), 0.25, seed=2)
    assert len(held) == 4
    assert len(learned) in {13, 14}


def test_few_images_hold_pairs_out(tmp_path: Path) -> None:
    make_scene(tmp_path, images=4, size=(80, 64))
    pairs = read_posed_pairs(tmp_path)
    learned, held = split_pairs(pairs, 0.2, seed=0)
    assert (len(learned), len(held)) == (5, 1)
    with pytest.raises(BadInputError, match="too few"):
        split_pairs(pairs.select(np.array([0])), 0.2, seed=0)
