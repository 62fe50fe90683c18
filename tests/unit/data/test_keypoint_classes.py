"""Which detections are one keypoint: worlds in which every right answer is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from featkit.data.keypoint_classes import Assignment, ClassesConfig, DepthConfig, Detections
from featkit.data.scene_classes import SceneClasses, dense_points, scene_classes, select_classes
from featkit.data.tracks import SceneTracks

FOCAL, WIDTH, HEIGHT = 800.0, 800, 600
SPARSE = ClassesConfig(dense=None, depth_radius=0.15)  # points stand some 60 px apart


@dataclass(frozen=True)
class Pinhole:
    """The simplest camera."""

    def project(self, points: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = FOCAL * points[:, :2] / points[:, 2:] + (WIDTH / 2, HEIGHT / 2)
        pixels[points[:, 2] <= 0] = np.nan
        return pixels

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([(pixels - (WIDTH / 2, HEIGHT / 2)) / FOCAL, np.ones((len(pixels), 1))], axis=1)


@dataclass
class World:
    """Keypoints on planes z = const, cameras that look along +z, moved and rolled: all predictions are exact.

    sizes: metres of one sigma. angles: of the direction in the planes. rolls: of the cameras, radians.
    """

    points: np.ndarray
    sizes: np.ndarray
    angles: np.ndarray
    centres: np.ndarray
    rolls: np.ndarray

    def rotation(self, image: int) -> np.ndarray:
        c, s = math.cos(self.rolls[image]), math.sin(self.rolls[image])
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])

    def detections(self, image: int) -> Detections:
        """What an ideal detector finds: detection i is point i."""
        local = (self.points - self.centres[image]) @ self.rotation(image).T
        return Detections(Pinhole().project(local), self.sizes * FOCAL / local[:, 2], self.angles + self.rolls[image])

    def tracks(self, observed: np.ndarray) -> SceneTracks:
        """observed: (points, images), whether the map matched the point there."""
        which, images = np.nonzero(observed)
        rotations = np.stack([self.rotation(image) for image in range(len(self.centres))])
        return SceneTracks(
            name="world",
            image_names=tuple(f"{i}.jpg" for i in range(len(self.centres))),
            image_sizes=np.tile([WIDTH, HEIGHT], (len(self.centres), 1)),
            rotations=rotations,
            translations=-np.einsum("mij,mj->mi", rotations, self.centres),
            projectors=(Pinhole(),) * len(self.centres),
            points=self.points,
            observed_points=which,
            observed_images=images,
            observed_xy=np.stack([self.detections(i).xy[p] for p, i in zip(which, images, strict=True)]),
        )


def grid_world(images: int = 5, columns: int = 9, rows: int = 7, seed: int = 0) -> World:
    """Points 4 m ahead, some 60 px apart, of sigmas about 2.4 px."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1.2, 1.2, columns), np.linspace(-0.9, 0.9, rows))
    points = np.stack([x.ravel(), y.ravel(), np.full(x.size, 4.0)], axis=1)
    count = len(points)
    return World(
        points=points,
        sizes=0.012 * 2.0 ** rng.uniform(-0.5, 0.5, count),
        angles=rng.uniform(-math.pi, math.pi, count),
        centres=np.stack([np.linspace(-0.25, 0.25, images), rng.uniform(-0.1, 0.1, images), np.zeros(images)], axis=1),
        rolls=rng.uniform(-0.6, 0.6, images),
    )


def changed(found: Detections, index: int, dx: float = 0, octaves: float = 0, turn: float = 0) -> Detections:
    """One detection moved (px), enlarged, and turned."""
    xy, scales, oris = found.xy.copy(), found.scales.copy(), found.oris.copy()
    xy[index, 0] += dx
    scales[index] *= 2.0**octaves
    oris[index] += turn
    return Detections(xy, scales, oris)


def with_more(found: Detections, xy: np.ndarray, scales: np.ndarray, oris: np.ndarray) -> Detections:
    return Detections(np.r_[found.xy, xy], np.r_[found.scales, scales], np.r_[found.oris, oris])


def rows(classes: SceneClasses) -> set[tuple[int, int, int]]:
    """(point, image, detection) of every patch."""
    members = classes.members
    points = classes.keypoints.points[members.keypoints]
    return set(zip(points.tolist(), members.images.tolist(), members.detections.tolist(), strict=True))


WORLD = grid_world()
COUNT, IMAGES = len(WORLD.points), len(WORLD.centres)
EVERYWHERE = np.ones((COUNT, IMAGES), bool)
EXACT = {(p, i, p) for p in range(COUNT) for i in range(IMAGES)}
MIDDLE = COUNT // 2


def found_in(world: World = WORLD) -> list[Detections]:
    return [world.detections(image) for image in range(len(world.centres))]


def test_exact_detections_are_all_found() -> None:
    classes = scene_classes(WORLD.tracks(EVERYWHERE), found_in(), SPARSE)
    assert rows(classes) == EXACT
    assert classes.counts["classes"] == COUNT
    assert classes.counts["patches"] == classes.counts["patches_matched"] == COUNT * IMAGES
    np.testing.assert_allclose(classes.keypoints.log_sizes, np.log2(WORLD.sizes), atol=1e-6)
    wanted = np.stack([np.cos(WORLD.angles), np.sin(WORLD.angles), 0 * WORLD.angles], axis=1)
    np.testing.assert_allclose(classes.keypoints.directions, wanted, atol=1e-6)


def test_members_are_sorted_by_class_then_image() -> None:
    members = scene_classes(WORLD.tracks(EVERYWHERE), found_in(), SPARSE).members
    order = np.lexsort((members.images, members.keypoints))
    np.testing.assert_array_equal(order, np.arange(len(order)))


def test_wrong_detections_beside_the_right_ones_are_passed_over() -> None:
    """At every keypoint also one that is too large, one that is turned, and one that lies beside it."""
    found = []
    for exact in found_in():
        worse = with_more(exact, exact.xy, exact.scales * 2**0.4, exact.oris)
        worse = with_more(worse, exact.xy, exact.scales, exact.oris + 0.6)
        found.append(with_more(worse, exact.xy + np.array([4.5, 0]), exact.scales, exact.oris))
    kept = rows(scene_classes(WORLD.tracks(EVERYWHERE), found, SPARSE))
    families: dict[int, set[int]] = {}
    for point, _, detection in kept:
        assert detection % COUNT == point
        families.setdefault(point, set()).add(detection // COUNT)
        assert detection // COUNT != 3
    assert all(len(family) == 1 for family in families.values()), "a class never mixes two kinds"
    assert len(kept) == COUNT * IMAGES


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        ({"octaves": 0.24}, True),
        ({"octaves": 0.27}, False),
        ({"octaves": -0.27}, False),
        ({"turn": math.pi / 8 - 0.02}, True),
        ({"turn": math.pi / 8 + 0.02}, False),
        ({"turn": 2 * math.pi - 0.1}, True),
        ({"dx": 1.2}, True),
        ({"dx": 5.1}, False),
    ],
)
def test_tolerances_are_ubcs(change: dict[str, float], stays: bool) -> None:
    found = found_in()
    found[3] = changed(found[3], MIDDLE, **change)
    kept = rows(scene_classes(WORLD.tracks(EVERYWHERE), found, SPARSE))
    assert ((MIDDLE, 3, MIDDLE) in kept) == stays
    assert kept >= EXACT - {(MIDDLE, 3, MIDDLE)}


def test_small_keypoints_may_lie_less_far_off() -> None:
    """0.94 sigma, at most 5 px: a patch is 12 sigmas wide."""
    for sigma, dx, stays in ((2.0, 1.8, True), (2.0, 2.0, False), (8.0, 4.9, True), (8.0, 5.2, False)):
        world = replace(WORLD, sizes=np.full(COUNT, sigma * 4 / FOCAL))
        found = found_in(world)
        found[1] = changed(found[1], MIDDLE, dx=dx)
        kept = rows(scene_classes(world.tracks(EVERYWHERE), found, SPARSE))
        assert ((MIDDLE, 1, MIDDLE) in kept) == stays, (sigma, dx)


def test_one_wrong_reference_is_outvoted() -> None:
    """The first image's detection is turned by 90 degrees and half as large: the others decide."""
    found = found_in()
    found[0] = changed(found[0], MIDDLE, octaves=-1, turn=math.pi / 2)
    classes = scene_classes(WORLD.tracks(EVERYWHERE), found, SPARSE)
    assert rows(classes) == EXACT - {(MIDDLE, 0, MIDDLE)}
    row = int(np.flatnonzero(classes.keypoints.points == MIDDLE)[0])
    assert classes.keypoints.log_sizes[row] == pytest.approx(np.log2(WORLD.sizes[MIDDLE]))


def test_votes_count_images_not_detections() -> None:
    """Three detections of one image at one place do not make a class that two images do not agree upon."""
    observed = np.zeros_like(EVERYWHERE)
    observed[:, :2] = True
    found = found_in()
    found[1] = changed(found[1], MIDDLE, turn=1.5)
    exact = found[0]
    for _ in range(3):
        found[0] = with_more(found[0], exact.xy[[MIDDLE]], exact.scales[[MIDDLE]], exact.oris[[MIDDLE]])
    for image in (2, 3, 4):
        found[image] = Detections(np.zeros((0, 2)), np.zeros(0), np.zeros(0))
    classes = scene_classes(WORLD.tracks(observed), found, SPARSE)
    assert MIDDLE not in classes.keypoints.points
    assert classes.counts["elected_points"] == len(classes.keypoints) == COUNT - 1


def test_of_two_that_fit_the_nearer_belongs() -> None:
    found = found_in()
    for image, exact in enumerate(found):
        aside = Detections(exact.xy + np.array([0.4, 0.0]), exact.scales, exact.oris)
        found[image] = with_more(aside, exact.xy, exact.scales, exact.oris)  # the exact one comes second
    assert rows(scene_classes(WORLD.tracks(EVERYWHERE), found, SPARSE)) == {(p, i, p + COUNT) for p, i, _ in EXACT}


def test_memory_is_bounded_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scene_classes(WORLD.tracks(EVERYWHERE), found_in(), SPARSE)
    monkeypatch.setattr("featkit.data.keypoint_classes.PAIRS_AT_ONCE", 60)
    parts = scene_classes(WORLD.tracks(EVERYWHERE), found_in(), SPARSE)
    assert rows(parts) == rows(whole)
    np.testing.assert_array_equal(parts.keypoints.log_sizes, whole.keypoints.log_sizes)


def hidden(point: int = MIDDLE, image: int = 4) -> np.ndarray:
    """A track that lost one image."""
    observed = EVERYWHERE.copy()
    observed[point, image] = False
    return observed


def origin_of(classes: SceneClasses, point: int, image: int) -> Assignment | None:
    members = classes.members
    here = (classes.keypoints.points[members.keypoints] == point) & (members.images == image)
    return Assignment(int(members.origins[here][0])) if here.any() else None


def test_images_that_were_not_matched_are_searched() -> None:
    classes = scene_classes(WORLD.tracks(hidden()), found_in(), SPARSE)
    assert rows(classes) == EXACT
    assert origin_of(classes, MIDDLE, 4) is Assignment.EXTRA
    assert origin_of(classes, MIDDLE, 3) is Assignment.MATCHED
    assert classes.counts["patches_extra"] == 1
    without = scene_classes(WORLD.tracks(hidden()), found_in(), SPARSE.model_copy(update={"extra_views": False}))
    assert rows(without) == EXACT - {(MIDDLE, 4, MIDDLE)}


def test_extra_views_are_held_to_a_share_of_the_tolerances() -> None:
    for octaves, stays in ((0.17, True), (0.2, False)):
        found = found_in()
        found[4] = changed(found[4], MIDDLE, octaves=octaves)
        classes = scene_classes(WORLD.tracks(hidden()), found, SPARSE)
        assert (origin_of(classes, MIDDLE, 4) is Assignment.EXTRA) == stays


def test_a_point_behind_what_is_seen_around_it_is_hidden() -> None:
    """One point 0.5 m behind the plane: the points around it say that the image sees the plane there."""
    points = WORLD.points.copy()
    points[MIDDLE, 2] = 4.5
    world = replace(WORLD, points=points)
    classes = scene_classes(world.tracks(hidden()), found_in(world), SPARSE)
    assert origin_of(classes, MIDDLE, 4) is None
    assert origin_of(classes, MIDDLE, 3) is Assignment.MATCHED, "where it was matched nobody doubts it"
    tolerant = SPARSE.model_copy(update={"depth_tolerance": 0.2})
    assert origin_of(scene_classes(world.tracks(hidden()), found_in(world), tolerant), MIDDLE, 4) is Assignment.EXTRA


def test_a_depth_that_too_few_points_tell_is_not_trusted() -> None:
    lonely = SPARSE.model_copy(update={"depth_radius": 0.02})
    assert origin_of(scene_classes(WORLD.tracks(hidden()), found_in(), lonely), MIDDLE, 4) is None


def test_views_from_elsewhere_are_not_searched() -> None:
    """The last camera stands 3 m aside: 37 degrees from the nearest that matched the middle."""
    centres = WORLD.centres.copy()
    centres[4] = (-3.0, 0, 0)
    world = replace(WORLD, centres=centres)
    config = SPARSE.model_copy(update={"max_view_angle_deg": 45.0})
    point = int(np.argmin(np.linalg.norm(world.points[:, :2] - (-1.2, 0), axis=1)))  # the image's right half sees it
    far = scene_classes(world.tracks(hidden(point)), found_in(world), SPARSE)
    assert 30 < angle(world, point) < 45
    assert origin_of(far, point, 4) is None
    assert origin_of(scene_classes(world.tracks(hidden(point)), found_in(world), config), point, 4) is Assignment.EXTRA


def angle(world: World, point: int) -> float:
    """Between the last camera's ray and the nearest other's, degrees."""
    rays = world.centres - world.points[point]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    return float(np.degrees(np.arccos((rays[:4] @ rays[4]).max())))


@pytest.mark.parametrize(
    ("octaves", "turn", "together"),
    [(0.0, 0.0, False), (0.4, 0.0, False), (0.0, 0.7, False), (0.6, 0.0, True), (0.0, 0.9, True)],
)
def test_keypoints_that_cannot_be_told_apart_are_not_two_classes(octaves: float, turn: float, together: bool) -> None:
    """A second point 2 mm beside the middle one, seen by fewer images: told apart beyond twice the tolerances."""
    world = replace(
        WORLD,
        points=np.r_[WORLD.points, WORLD.points[[MIDDLE]] + (0.002, 0, 0)],
        sizes=np.r_[WORLD.sizes, WORLD.sizes[[MIDDLE]] * 2**octaves],
        angles=np.r_[WORLD.angles, WORLD.angles[[MIDDLE]] + turn],
    )
    observed = np.r_[EVERYWHERE, [[True, True, True, False, False]]]
    config = SPARSE.model_copy(update={"extra_views": False})
    points = scene_classes(world.tracks(observed), found_in(world), config).keypoints.points
    assert MIDDLE in points
    assert (COUNT in points) == together


@pytest.fixture(scope="module")
def between() -> tuple[World, World]:
    """The grid, and keypoints in the middle between its points."""
    rng = np.random.default_rng(5)
    step = np.array([0.15, 0.15, 0])
    return WORLD, replace(WORLD, points=WORLD.points + step, angles=rng.uniform(-3, 3, COUNT))


def joined(worlds: tuple[World, World]) -> list[Detections]:
    return [with_more(a, b.xy, b.scales, b.oris) for a, b in zip(found_in(worlds[0]), found_in(worlds[1]), strict=True)]


DENSE = ClassesConfig(dense=DepthConfig(radius=0.2, neighbours=6))


def test_detections_between_the_points_are_classes_too(between: tuple[World, World]) -> None:
    classes = scene_classes(WORLD.tracks(EVERYWHERE), joined(between), DENSE)
    members = classes.members
    own = members.origins == Assignment.DENSE
    assert rows(classes) >= EXACT
    assert classes.counts["classes_dense"] > 0.6 * COUNT
    for keypoint in np.unique(members.keypoints[own]):
        here = members.keypoints == keypoint
        assert len(set(members.detections[here])) == 1, "all images see the same keypoint"
        assert members.detections[here][0] >= COUNT
        assert here.sum() >= 3
    found = {int(d) for d in members.detections[own]}
    assert classes.counts["classes_dense"] == len(found), "one class each, though every image proposes it"
    assert classes.counts["classes"] == len(classes.keypoints) == COUNT + len(found)


def tilted(points: np.ndarray) -> np.ndarray:
    """z = 4 + 0.3 x - 0.2 y."""
    return np.c_[points[:, :2], 4 + points[:, :2] @ (0.3, -0.2)]


def test_a_plane_tells_every_depth_exactly(between: tuple[World, World]) -> None:
    grid, middles = (replace(world, points=tilted(world.points)) for world in between)
    exact = DepthConfig(radius=0.2, slope_ridge=0.0)
    dense = dense_points(grid.tracks(EVERYWHERE), found_in(middles), exact)
    assert len(dense.points) > 0.6 * COUNT * IMAGES
    np.testing.assert_allclose(dense.points, tilted(dense.points), atol=1e-9)
    own = dense.searched_rows[:, None] == np.arange(len(dense.points))
    assert (own.sum(axis=0) == IMAGES).all(), "every image observed the neighbours, so every image is searched"


def test_points_at_many_depths_tell_none(between: tuple[World, World]) -> None:
    rough = np.random.default_rng(0).uniform(-0.3, 0.3, (COUNT, 1)) * (0, 0, 1)
    grid = replace(WORLD, points=WORLD.points + rough)
    config = DepthConfig(radius=0.2)
    flat = dense_points(WORLD.tracks(EVERYWHERE), found_in(between[1]), config)
    assert len(dense_points(grid.tracks(EVERYWHERE), found_in(between[1]), config).points) < 0.1 * len(flat.points)


def test_images_that_saw_too_few_neighbours_are_not_searched(between: tuple[World, World]) -> None:
    """The last image observed the left half only."""
    observed = EVERYWHERE.copy()
    observed[WORLD.points[:, 0] > 0.01, 4] = False
    dense = dense_points(
        WORLD.tracks(observed), found_in(between[1])[:4] + found_in(WORLD)[4:], DepthConfig(radius=0.2)
    )
    asked = np.unique(dense.searched_rows[dense.searched_images == 4])
    right = dense.points[:, 0] > 0.4
    assert right.any()
    assert not right[asked].any()
    assert len(asked) > 0


def test_dense_classes_need_more_images(between: tuple[World, World]) -> None:
    found = joined(between)
    for image in (2, 3, 4):  # only two images keep the detections between the points
        found[image] = WORLD.detections(image)
    assert scene_classes(WORLD.tracks(EVERYWHERE), found, DENSE).counts["classes_dense"] == 0
    two = DENSE.model_copy(update={"dense": DepthConfig(radius=0.2, min_patches=2)})
    assert scene_classes(WORLD.tracks(EVERYWHERE), found, two).counts["classes_dense"] > 0


def test_only_some_classes_are_kept_under_new_names() -> None:
    classes = scene_classes(WORLD.tracks(EVERYWHERE), found_in(), SPARSE)
    kept = np.arange(COUNT) % 3 == 1
    some = select_classes(classes, kept)
    assert rows(some) == {row for row in EXACT if row[0] % 3 == 1}
    np.testing.assert_array_equal(np.unique(some.members.keypoints), np.arange(kept.sum()))
    assert some.counts["patches"] == kept.sum() * IMAGES


def test_a_scene_without_detections_has_no_classes() -> None:
    nothing = [Detections(np.zeros((0, 2)), np.zeros(0), np.zeros(0))] * IMAGES
    for config in (SPARSE, ClassesConfig()):
        assert scene_classes(WORLD.tracks(EVERYWHERE), nothing, config).counts["patches"] == 0
