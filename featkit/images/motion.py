"""How a video's image moves: corners followed from frame to frame, and what two frames then have in common.

The motion is the one that most of the picture makes (turned, scaled, shifted): near things move more than far ones, and
a share of the picture is all that is asked for. A frame that cannot be followed (blurred, dark) is passed over, and the
ones after it are followed from those before.

Sources: corners and pyramidal optical flow, Shi and Tomasi (CVPR 1994) and Bouguet (2000), by OpenCV; sharpness as the
variance of the Laplacian, Pech-Pacheco et al. (ICPR 2000).
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from pydantic import Field

from featkit.core.config import Config, PositiveShare, Seconds

FEWEST = 12  # corners that a motion is found by
ROUND_TRIP_PX = 1.0  # a corner followed there and back comes as near to where it was
NEW_ANCHOR_BELOW = 0.7  # overlap
UNKNOWN = (-1, np.eye(3))  # shot and place of a frame whose motion is unknown


class MotionConfig(Config):
    """How frames are followed, in copies of `small_px`."""

    small_px: int = Field(640, ge=64, le=4096)
    """Longer side of the copies in which sharpness and motion are measured, px."""
    corners: int = Field(300, ge=20, le=10_000)
    """Corners that are followed from frame to frame."""
    min_followed: PositiveShare = 0.25
    """Least share of the corners that must be found again; otherwise the motion is unknown."""
    max_parallax: PositiveShare = 0.05
    """Corners may differ from the common motion by up to this share of the longer side."""
    max_lost_s: Seconds = 0.5
    """Frames whose motion is unknown are passed over for this long, s; then a new shot begins."""


def overlap(motion: Float[np.ndarray, "3 3"], size: tuple[int, int]) -> float:
    """Share of a picture that another one of the same size shows too, of the one that has less in common.

    motion: affine map of the other's pixels to those of the first. size: width, height.
    """
    width, height = size
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64) - 0.5
    moved = corners @ motion[:2, :2].T + motion[:2, 2]
    common, _ = cv2.intersectConvexConvex(corners.astype(np.float32), moved.astype(np.float32))
    return float(min(1.0, common / (width * height * max(1.0, abs(np.linalg.det(motion[:2, :2]))))))


def sharpness_of(grey: UInt8[np.ndarray, "h w"]) -> float:
    """Variance of the Laplacian, grey levels squared."""
    return float(cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))[1][0, 0] ** 2)


class Anchor:
    """A frame from which corners are followed into later ones. place: see `Survey.places`."""

    def __init__(self, grey: UInt8[np.ndarray, "h w"], shot: int, place: Float[np.ndarray, "3 3"], corners: int):
        self.grey, self.shot, self.place = grey, shot, place
        apart = max(3.0, 0.5 * (grey.size / corners) ** 0.5)
        found = cv2.goodFeaturesToTrack(grey, corners, 0.01, apart)
        self.points = np.zeros((0, 1, 2), np.float32) if found is None else found
        self.guess = self.points

    @property
    def has_corners(self) -> bool:
        """Whether there is enough in the frame to follow."""
        return len(self.points) >= FEWEST

    def follow(self, grey: UInt8[np.ndarray, "h w"], config: MotionConfig) -> Float[np.ndarray, "3 3"] | None:
        """Map of the other frame's pixels to the anchor's (turned, scaled, shifted); None: it cannot be followed."""
        if not self.has_corners or grey.shape != self.grey.shape:
            return None
        moved, there = _flow(self.grey, grey, self.points, self.guess)
        start = self.points + moved - self.guess  # as far from the answer as on the way there
        back, again = _flow(grey, self.grey, moved, start)
        returned = np.linalg.norm((back - self.points)[:, 0], axis=1) < ROUND_TRIP_PX
        good = there & again & returned
        if good.sum() < max(FEWEST, config.min_followed * len(self.points)):
            return None
        threshold = config.max_parallax * max(grey.shape)
        found, _ = cv2.estimateAffinePartial2D(
            moved[good], self.points[good], method=cv2.RANSAC, ransacReprojThreshold=threshold
        )
        if found is None or not np.isfinite(found).all() or abs(np.linalg.det(found[:, :2])) < 1e-3:
            return None
        motion = np.vstack([found, [0, 0, 1]])
        self.guess = cv2.perspectiveTransform(self.points, np.linalg.inv(motion)).astype(np.float32)
        self.guess[good] = moved[good]
        return motion


def _flow(
    grey: UInt8[np.ndarray, "h w"],
    other: UInt8[np.ndarray, "h w"],
    points: Float[np.ndarray, "n 1 2"],
    guess: Float[np.ndarray, "n 1 2"],
) -> tuple[Float[np.ndarray, "n 1 2"], Bool[np.ndarray, " n"]]:
    """Where points of one image are in the other, and whether they were found."""
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        grey, other, points, guess.copy(), winSize=(21, 21), maxLevel=4, flags=cv2.OPTFLOW_USE_INITIAL_FLOW
    )
    return found, status[:, 0] == 1


class Follower:
    """The motion of a video's image, frame after frame. max_lost: frames after which a new shot begins."""

    def __init__(self, config: MotionConfig, max_lost: int):
        self.config, self.max_lost = config, max_lost
        self.anchor: Anchor | None = None
        self.last: tuple[UInt8[np.ndarray, "h w"], Float[np.ndarray, "3 3"]] | None = None  # followed, after the anchor
        self.num_lost = 0

    def add(self, grey: UInt8[np.ndarray, "h w"]) -> tuple[int, Float[np.ndarray, "3 3"]]:
        """The next frame's shot, and the map of its pixels to those of the shot's first frame.

        A shot is a run of frames that hold together by known motion; -1: the frame is in none.
        """
        if self.anchor is None:
            return self._begin(grey, 0)
        motion = self.anchor.follow(grey, self.config)
        if motion is None and self.last is not None:
            self._move_anchor(*self.last)
            motion = self.anchor.follow(grey, self.config)
        if motion is not None:
            return self._followed(grey, motion)
        self.num_lost += 1
        return self._begin(grey, self.anchor.shot + 1) if self.num_lost > self.max_lost else UNKNOWN

    def _begin(self, grey: UInt8[np.ndarray, "h w"], shot: int) -> tuple[int, Float[np.ndarray, "3 3"]]:
        anchor = Anchor(grey, shot, np.eye(3), self.config.corners)
        if not anchor.has_corners:
            return UNKNOWN
        self.anchor, self.last, self.num_lost = anchor, None, 0
        return shot, anchor.place

    def _followed(
        self, grey: UInt8[np.ndarray, "h w"], motion: Float[np.ndarray, "3 3"]
    ) -> tuple[int, Float[np.ndarray, "3 3"]]:
        assert self.anchor is not None
        shot, place = self.anchor.shot, self.anchor.place @ motion
        self.last, self.num_lost = (grey, place), 0
        if overlap(motion, (grey.shape[1], grey.shape[0])) < NEW_ANCHOR_BELOW:
            self._move_anchor(grey, place)
        return shot, place

    def _move_anchor(self, grey: UInt8[np.ndarray, "h w"], place: Float[np.ndarray, "3 3"]) -> None:
        assert self.anchor is not None
        self.anchor, self.last = Anchor(grey, self.anchor.shot, place, self.config.corners), None
