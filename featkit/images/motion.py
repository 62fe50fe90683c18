"""How a video's image moves: corners followed from frame to frame, and what two frames then have in common.

A motion is that of the picture as a whole (turned, scaled, shifted), and how far things move against each other: the
first counts when a camera pans or walks along, the second when it goes round a thing. A frame that cannot be followed
(blurred, dark) is passed over, and the ones after it are followed from those before.

Sources: corners and pyramidal optical flow, Shi and Tomasi (CVPR 1994) and Bouguet (2000), by OpenCV; sharpness as the
variance of the Laplacian, Pech-Pacheco et al. (ICPR 2000).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from pydantic import Field

from featkit.core.config import Config, PositiveShare, Seconds

FEWEST = 12  # corners that a motion is found by
ROUND_TRIP_PX = 1.0  # a corner followed there and back comes as near to where it was
NEW_ANCHOR_BELOW = 0.7  # overlap
WELL_FOLLOWED = 0.5  # share of the corners; with fewer a later anchor is taken, if there is one
WINDOW = (15, 15)  # around a corner that is followed, px
ENOUGH = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 12, 0.03)  # steps, px; ends a search
ROUNDS = 5  # of reweighting


class MotionConfig(Config):
    """How frames are followed, in copies of `small_px`."""

    small_px: int = Field(640, ge=64, le=4096)
    """Longer side of the copies in which sharpness and motion are measured, px."""
    corners: int = Field(300, ge=20, le=10_000)
    """Corners that are followed from frame to frame."""
    min_followed: PositiveShare = 0.25
    """Least share of the corners that must be found again; otherwise the motion is unknown."""
    max_lost_s: Seconds = 0.5
    """Frames whose motion is unknown are passed over for this long, s; then a new shot begins."""


def sharpness_of(grey: UInt8[np.ndarray, "h w"]) -> float:
    """Variance of the Laplacian, grey levels squared."""
    return float(cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))[1][0, 0] ** 2)


@dataclass(frozen=True)
class Motion:
    """How a frame's picture has moved since another's.

    common: affine map of its pixels to the other's, the motion of the whole. parallax: by how much things have moved
    against each other, as a mean share of the extent of what is seen; when a camera goes round a thing, this is all.
    """

    common: Float[np.ndarray, "3 3"]
    parallax: float = 0.0

    def after(self, earlier: Motion) -> Motion:
        """The motion since the frame that the earlier one is measured from."""
        return Motion(earlier.common @ self.common, earlier.parallax + self.parallax)

    def since(self, earlier: Motion) -> Motion:
        """The motion since another frame, of two that are measured from one."""
        return Motion(np.linalg.solve(earlier.common, self.common), abs(self.parallax - earlier.parallax))

    def overlap(self, size: tuple[int, int]) -> float:
        """Share of the picture that both frames show, of the one that has less in common. size: width, height."""
        width, height = size
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64) - 0.5
        moved = corners @ self.common[:2, :2].T + self.common[:2, 2]
        common, _ = cv2.intersectConvexConvex(corners.astype(np.float32), moved.astype(np.float32))
        share = common / (width * height * max(1.0, abs(np.linalg.det(self.common[:2, :2]))))
        return float(min(1.0, share) * max(0.0, 1.0 - self.parallax))


STILL = Motion(np.eye(3))
UNKNOWN = (-1, STILL)  # shot and place of a frame whose motion is unknown


class Anchor:
    """A frame from which corners are followed into later ones. place: its motion since the shot's first frame."""

    def __init__(self, grey: UInt8[np.ndarray, "h w"], shot: int, place: Motion, corners: int):
        self.grey, self.shot, self.place = grey, shot, place
        min_distance = max(3.0, 0.5 * (grey.size / corners) ** 0.5)
        corners_found = cv2.goodFeaturesToTrack(grey, corners, 0.01, min_distance)
        self.points = np.zeros((0, 1, 2), np.float32) if corners_found is None else corners_found
        self.guess = self.points
        spread = np.percentile(self.points[:, 0], (5, 95), axis=0) if len(self.points) else np.zeros((2, 2))
        self.extent = np.maximum(spread[1] - spread[0], 1.0) / 0.9

    @property
    def has_corners(self) -> bool:
        """Whether there is enough in the frame to follow."""
        return len(self.points) >= FEWEST

    def follow(self, grey: UInt8[np.ndarray, "h w"], least: float) -> Motion | None:
        """The motion from the anchor to another frame; None: less than that share of the corners is found again."""
        if not self.has_corners or grey.shape != self.grey.shape:
            return None
        moved, is_tracked = _track_points(self.grey, grey, self.points, self.guess)
        start = self.points + moved - self.guess  # as far from the answer as on the way there
        back, is_tracked_back = _track_points(grey, self.grey, moved, start)
        returned = np.linalg.norm((back - self.points)[:, 0], axis=1) < ROUND_TRIP_PX
        good = is_tracked & is_tracked_back & returned
        if good.sum() < max(FEWEST, least * len(self.points)):
            return None
        moved, points = moved[good, 0], self.points[good, 0]
        motion = similarity(moved, points)
        if not np.isfinite(motion).all() or abs(np.linalg.det(motion[:2, :2])) < 1e-3:
            return None
        self.guess = cv2.perspectiveTransform(self.points, np.linalg.inv(motion)).astype(np.float32)
        self.guess[good, 0] = moved
        residuals = np.abs(moved @ motion[:2, :2].T + motion[:2, 2] - points).mean(axis=0)
        return Motion(motion, float((residuals / self.extent).sum()))


def similarity(moved: Float[np.ndarray, "n 2"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "3 3"]:
    """Map of `moved` to `points` (turned, scaled, shifted) with the least Huber loss, by reweighted least squares
    of complex numbers.

    Not by consensus: that would change over from near things to far ones from one frame to the next.
    """
    here, there = (
        np.ascontiguousarray(coordinates, np.float64).view(np.complex128)[:, 0] for coordinates in (moved, points)
    )
    weights = np.ones(len(here))
    for _ in range(ROUNDS):
        share = weights / weights.sum()
        middle, target = share @ here, share @ there
        turn = (share * (here - middle).conj()) @ (there - target) / max(1e-9, share @ np.abs(here - middle) ** 2)
        shift = target - turn * middle
        errors = np.abs(turn * here + shift - there)
        limit = max(1.0, 1.5 * float(np.median(errors)))
        weights = np.minimum(1.0, limit / np.maximum(errors, 1e-9))
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag], [0, 0, 1]])


def _track_points(
    grey: UInt8[np.ndarray, "h w"],
    other: UInt8[np.ndarray, "h w"],
    points: Float[np.ndarray, "n 1 2"],
    guess: Float[np.ndarray, "n 1 2"],
) -> tuple[Float[np.ndarray, "n 1 2"], Bool[np.ndarray, " n"]]:
    """Where points of one image are in the other, and whether they were found."""
    tracked, status, _ = cv2.calcOpticalFlowPyrLK(
        grey,
        other,
        points,
        guess.copy(),
        winSize=WINDOW,
        maxLevel=4,
        criteria=ENOUGH,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return tracked, status[:, 0] == 1


class Follower:
    """The motion of a video's image, frame after frame. max_lost: frames after which a new shot begins."""

    def __init__(self, config: MotionConfig, max_lost: int):
        self.config, self.max_lost = config, max_lost
        self.anchor: Anchor | None = None
        self.last: tuple[UInt8[np.ndarray, "h w"], Motion] | None = None  # followed, after the anchor
        self.num_lost = 0

    def add(self, grey: UInt8[np.ndarray, "h w"]) -> tuple[int, Motion]:
        """The next frame's shot, and its motion since the shot's first frame.

        A shot is a run of frames that hold together by known motion; -1: the frame is in none.
        """
        if self.anchor is None:
            return self._begin_shot(grey, 0)
        motion = self.anchor.follow(grey, self.config.min_followed if self.last is None else WELL_FOLLOWED)
        if motion is None and self.last is not None:
            self._move_anchor(*self.last)
            motion = self.anchor.follow(grey, self.config.min_followed)
        if motion is not None:
            return self._record_motion(grey, motion)
        self.num_lost += 1
        return self._begin_shot(grey, self.anchor.shot + 1) if self.num_lost > self.max_lost else UNKNOWN

    def _begin_shot(self, grey: UInt8[np.ndarray, "h w"], shot: int) -> tuple[int, Motion]:
        anchor = Anchor(grey, shot, STILL, self.config.corners)
        if not anchor.has_corners:
            return UNKNOWN
        self.anchor, self.last, self.num_lost = anchor, None, 0
        return shot, anchor.place

    def _record_motion(self, grey: UInt8[np.ndarray, "h w"], motion: Motion) -> tuple[int, Motion]:
        assert self.anchor is not None
        shot, place = self.anchor.shot, motion.after(self.anchor.place)
        self.last, self.num_lost = (grey, place), 0
        if motion.overlap((grey.shape[1], grey.shape[0])) < NEW_ANCHOR_BELOW:
            self._move_anchor(grey, place)
        return shot, place

    def _move_anchor(self, grey: UInt8[np.ndarray, "h w"], place: Motion) -> None:
        assert self.anchor is not None
        self.anchor, self.last = Anchor(grey, self.anchor.shot, place, self.config.corners), None
