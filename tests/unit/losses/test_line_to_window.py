"""The line-to-window search against loops over queries and samples in float64, and on scenes whose answer is known."""

import math

import numpy as np
import pytest
import torch
from synthetic_views import SyntheticViews, two_views

from featkit.losses.scfeat_description import LineToWindowConfig, WindowMatches, search_line_to_window
from featkit.losses.two_views import TwoViews, query_points

SIZE = (64, 48)
ROWS = torch.tensor([[[0.0, 0, 0], [0, 0, -1], [0, 1, 0]]])  # F of a camera moved along x: lines are rows


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_maps(seed: int, channels: int = 6, shape: tuple[int, int] = (12, 16), pairs: int = 1) -> list[torch.Tensor]:
    draw = generator(seed)
    return [torch.randn(pairs, channels, *shape, generator=draw, dtype=torch.float64) for _ in range(2)]


def bilinear(values: np.ndarray, point: np.ndarray, size: tuple[int, int], padding: str) -> np.ndarray:
    """A map (c, h, w) at a pixel of an image, cell by cell."""
    _, h, w = values.shape
    x, y = ((point[axis] + 0.5) * cells / size[axis] - 0.5 for axis, cells in ((0, w), (1, h)))
    if padding == "border":
        x, y = min(max(x, 0), w - 1), min(max(y, 0), h - 1)
    out = np.zeros(len(values))
    for column in (math.floor(x), math.floor(x) + 1):
        for row in (math.floor(y), math.floor(y) + 1):
            share = (1 - abs(x - column)) * (1 - abs(y - row))
            if 0 <= column < w and 0 <= row < h:
                out += share * values[:, row, column]
    return out


def line_ends(line: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    a, b, c = line
    right, bottom = size[0] - 1, size[1] - 1
    found = [np.array([x, -(a * x + c) / b]) for x in (0, right) if 0 <= -(a * x + c) / b <= bottom]
    return found + [np.array([-(b * y + c) / a, y]) for y in (0, bottom) if 0 <= -(b * y + c) / a <= right]


def is_shown(shown: np.ndarray | None, place: np.ndarray) -> bool:
    x, y = (round(v) for v in place)
    return shown is None or bool(0 <= x < SIZE[0] and 0 <= y < SIZE[1] and shown[y, x])


def reference(
    map0: np.ndarray,
    map1: np.ndarray,
    point: np.ndarray,
    fundamental: np.ndarray,
    config: LineToWindowConfig,
    draw: np.ndarray,
    shown: np.ndarray | None,
) -> tuple[np.ndarray, float] | None:
    """Match and deviation of one query; draw: its two uniform numbers; shown: (h, w) of the image, or no mask."""
    query = bilinear(map0, point, SIZE, "border")
    query = query / np.linalg.norm(query)
    unit = map1 / np.linalg.norm(map1, axis=0)
    line = fundamental @ [*point, 1.0]
    ends = line_ends(line / np.hypot(line[0], line[1]), SIZE)
    if len(ends) != 2:
        return None
    samples = [ends[0] + s * (ends[1] - ends[0]) for s in np.linspace(0, 1, config.line_samples)]
    samples = [s for s in samples if is_shown(shown, s)]
    if not samples:
        return None
    best = max(samples, key=lambda s: query @ bilinear(unit, s, SIZE, "border"))
    half = config.window_share * np.array(SIZE) / 2
    centre = best + config.jitter * half * (2 * draw - 1)
    if not (0 <= centre[0] <= SIZE[0] - 1 and 0 <= centre[1] <= SIZE[1] - 1):
        return None
    rows, columns = (max(config.min_window_samples, int(config.window_share * size)) for size in map1.shape[1:])
    window = [centre + half * [x, y] for y in np.linspace(-1, 1, rows) for x in np.linspace(-1, 1, columns)]
    weights = []
    for place in window:
        similarity = query @ bilinear(unit, place, SIZE, "zeros") if is_shown(shown, place) else 0.0
        weights.append(math.exp(config.temperature * similarity))
    share = np.array(weights) / sum(weights)
    mean = sum(s * p for s, p in zip(share, window, strict=True))
    variance = sum(s * (p - mean) ** 2 for s, p in zip(share, window, strict=True))
    return mean, float(np.sqrt(variance).sum())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_loops(seed: int, masked: bool) -> None:
    config = LineToWindowConfig(line_samples=23, window_share=0.3, temperature=4.0)
    views = [two_views(2 * seed, 30), two_views(2 * seed + 1, 30)]
    map0, map1 = random_maps(seed, pairs=2)
    shown = torch.ones(2, 1, SIZE[1], SIZE[0], dtype=torch.bool)
    if masked:
        shown[:, :, :, :30] = False
        shown[0, :, 20:] = False
    points0 = torch.from_numpy(np.stack([v.points0 for v in views]))
    fundamental = torch.from_numpy(np.stack([v.fundamental for v in views]))
    mask = shown if masked else None
    found = search_line_to_window(TwoViews(map0, map1, fundamental, SIZE, None, mask), points0, config, generator(seed))
    draws = torch.rand(2, 30, 2, generator=generator(seed)).double().numpy()
    valid = 0
    for pair in range(2):
        for i in range(30):
            args = (map0[pair].numpy(), map1[pair].numpy(), views[pair].points0[i], views[pair].fundamental)
            expected = reference(*args, config, draws[pair, i], shown[pair, 0].numpy() if masked else None)
            assert bool(found.valid[pair, i]) == (expected is not None)
            if expected is not None:
                valid += 1
                np.testing.assert_allclose(found.positions[pair, i].numpy(), expected[0], atol=1e-6)
                assert float(found.deviation[pair, i]) == pytest.approx(expected[1], abs=1e-6)
    assert valid > 10


def nearly_constant_maps() -> list[torch.Tensor]:
    """The middle column of map 1 is a little more similar to everything than all the rest."""
    maps = [torch.ones(1, 3, 120, 160) for _ in range(2)]
    maps[1][0, 0] *= 1 - 1e-2 * (torch.arange(160) != 80)
    return maps


def test_equal_similarities_answer_the_middle_of_the_window() -> None:
    """Match minus the best place on the line is the jitter."""
    points0 = torch.tensor([[[float(x), 240.0] for x in range(0, 640, 2)]])
    found = search_line_to_window(
        TwoViews(*nearly_constant_maps(), ROWS, (640, 480)), points0, LineToWindowConfig(), generator()
    )
    assert found.valid.all()
    moves = found.positions[0] - torch.tensor([639 * 50 / 99, 240.0])
    for axis, half in ((0, 32), (1, 24)):
        assert moves[:, axis].min() == pytest.approx(-0.707 * half, abs=0.5)
        assert moves[:, axis].max() == pytest.approx(0.707 * half, abs=0.5)
        assert moves[:, axis].std() == pytest.approx(0.707 * half / 3**0.5, rel=0.1)  # uniform
    assert abs(float(torch.corrcoef(moves.T)[0, 1])) < 0.15


def test_a_window_whose_centre_leaves_the_image_is_invalid() -> None:
    points0 = torch.tensor([[[100.0, float(y)] for y in range(24)]])
    maps, config = nearly_constant_maps(), LineToWindowConfig(jitter=1.0)
    found = search_line_to_window(TwoViews(*maps, ROWS, (640, 480)), points0, config, generator())
    moves = 24 * (2 * torch.rand(1, 24, 2, generator=generator())[..., 1] - 1)
    assert torch.equal(found.valid, points0[..., 1] + moves >= 0)
    assert 0 < found.valid.sum() < 24


def test_deviation_of_equal_similarities_is_that_of_the_grid() -> None:
    points0, config = torch.tensor([[[100.0, 240.0]]]), LineToWindowConfig(jitter=0.0)
    found = search_line_to_window(TwoViews(*nearly_constant_maps(), ROWS, (640, 480)), points0, config, generator())
    x, y = 32 * np.linspace(-1, 1, 16), 24 * np.linspace(-1, 1, 12)
    assert found.valid.all()
    assert float(found.deviation) == pytest.approx(x.std() + y.std(), rel=1e-3)


def shifted_scene(shift_cells: int, channels: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Map 1 is map 0 moved to the right; every place looks different, and like its neighbours."""
    noise = torch.randn(1, channels, 6, 8, generator=generator(4))
    base = torch.nn.functional.interpolate(noise, size=(30, 40 + shift_cells), mode="bicubic")
    return base[..., shift_cells:], base[..., :40]


@pytest.mark.parametrize("jitter", [0.0, 0.707])
def test_a_moved_image_is_found(jitter: float) -> None:
    size, shift = (160, 120), 5
    map0, map1 = shifted_scene(shift)
    cells = torch.cartesian_prod(torch.arange(4, 26), torch.arange(4, 28)).flip(1)
    points0 = (4 * cells + 1.5)[None].float()  # centres of cells of the map
    config = LineToWindowConfig(jitter=jitter, window_share=0.25)
    found = search_line_to_window(TwoViews(map0, map1, ROWS, size), points0, config, generator())
    error = (found.positions - points0 - torch.tensor([4.0 * shift, 0.0])).norm(dim=2)[found.valid]
    assert found.valid.float().mean() > 0.85
    assert error.median() < 1.5  # px; the window's samples lie 4.4 px apart
    assert (error < 4).float().mean() > 0.95


def test_a_line_outside_is_invalid() -> None:
    map0, map1 = shifted_scene(2)
    lower = torch.tensor([[[0.0, 0, 0], [0, 0, -1], [0, 1, 100.0]]])  # lines are rows, 100 px farther down
    points0 = torch.tensor([[[50.0, 10.0], [50.0, 60.0]]])
    found = search_line_to_window(
        TwoViews(map0, map1, lower, (160, 120)), points0, LineToWindowConfig(jitter=0), generator()
    )
    assert found.valid.tolist() == [[True, False]]
    nothing = search_line_to_window(
        TwoViews(map0, map1, torch.zeros(1, 3, 3), (160, 120)), points0, LineToWindowConfig(), generator()
    )
    assert not nothing.valid.any()
    assert nothing.positions.isfinite().all()


def test_gradient() -> None:
    views = two_views(5, 9)
    config = LineToWindowConfig(line_samples=9, window_share=0.3, temperature=3.0)
    shown = torch.ones(1, 1, SIZE[1], SIZE[0], dtype=torch.bool)
    shown[..., :12] = False
    points0, _, fundamental = views.tensors()

    def positions(map0: torch.Tensor, map1: torch.Tensor) -> torch.Tensor:
        found = search_line_to_window(
            TwoViews(map0, map1, fundamental, SIZE, None, shown), points0, config, generator()
        )
        return found.positions[found.valid]

    maps = [m.requires_grad_() for m in random_maps(3, channels=3, shape=(6, 8))]
    assert torch.autograd.gradcheck(positions, maps, fast_mode=True)


def test_the_deviation_has_no_gradient_and_a_floor() -> None:
    map0, map1 = (m.requires_grad_() for m in random_maps(3))
    views: SyntheticViews = two_views(5)
    points0, _, fundamental = views.tensors()
    found: WindowMatches = search_line_to_window(
        TwoViews(map0, map1, fundamental, SIZE), points0, LineToWindowConfig(temperature=1e5), generator()
    )
    assert found.positions.requires_grad
    assert not found.deviation.requires_grad
    assert found.deviation.min() == pytest.approx(0.006)


def test_half_precision_maps_are_searched_in_full() -> None:
    map0, map1 = (m.float() for m in random_maps(3))
    points0, _, fundamental = two_views(5).tensors()
    rounded = [m.bfloat16().float() for m in (map0, map1)]
    expected = search_line_to_window(
        TwoViews(*rounded, fundamental, SIZE), points0.float(), LineToWindowConfig(), generator()
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = search_line_to_window(
            TwoViews(map0.bfloat16(), map1.bfloat16(), fundamental, SIZE),
            points0.float(),
            LineToWindowConfig(),
            generator(),
        )
    assert found.positions.dtype == torch.float32
    torch.testing.assert_close(found.positions, expected.positions)


def test_query_points_are_pixels_one_in_each_cell() -> None:
    points = query_points(200, (70, 40), 16, generator())
    assert points.shape == (200, 8, 2)
    assert torch.equal(points, points.round())
    cells = (points / 16).floor()
    assert cells.unique(dim=0).shape[0] == 1
    assert cells[0].tolist() == [[x, y] for y in range(2) for x in range(4)]
    within = (points - 16 * cells).flatten(0, 1)
    counts = torch.bincount((16 * within[:, 1] + within[:, 0]).long(), minlength=256)
    assert counts.min() > 0  # 1600 draws of 256 places: the chance to miss one is 0.5
    assert counts.float().var() / counts.float().mean() < 1.4


def test_an_image_smaller_than_a_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="15 x 40 px has no cell of 16 px"):
        query_points(1, (15, 40), 16, generator())
