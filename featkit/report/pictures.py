"""Two images side by side with lines between matching points, as one JPEG."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from featkit.geometry.pixels import apply_affine, resize_affine
from featkit.report.content import MatchPicture
from featkit.report.detail import Detail, spread
from featkit.report.formatting import format_integer

INLIER_RGB = (36, 214, 160)
OUTLIER_RGB = (255, 96, 60)
LINE_OPACITY = 0.55
GAP_PX = 6
GAP_RGB = (128, 128, 128)
SUBPIXEL_BITS = 4  # cv2 draws at coordinates of 1/16 px
FARTHEST_PX = 20_000.0  # a point farther off than this would overflow cv2's fixed-point numbers


def match_jpeg(picture: MatchPicture, detail: Detail) -> bytes:
    """The picture as JPEG, at most `detail.picture_width_px` wide. Raises ValueError on images that are not RGB."""
    canvas, ends0, ends1 = _side_by_side(picture, detail.picture_width_px)
    finite = np.isfinite(ends0).all(axis=1) & np.isfinite(ends1).all(axis=1)
    inlier = np.asarray(picture.inlier, dtype=bool)
    # The wrong ones first, so that they do not hide the right ones; both keep their share of the lines.
    share = round(min(detail.lines, len(inlier)) * float(inlier.mean())) if len(inlier) else 0
    for wanted, colour in ((False, OUTLIER_RGB), (True, INLIER_RGB)):
        chosen = np.flatnonzero(finite & (inlier == wanted))
        chosen = chosen[spread(len(chosen), share if wanted else detail.lines - share)]
        canvas = _with_lines(canvas, ends0[chosen], ends1[chosen], colour)
    quality = [cv2.IMWRITE_JPEG_QUALITY, detail.jpeg_quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR), quality)
    if not done:
        raise ValueError(f"{picture.title}: the picture cannot be encoded")
    return encoded.tobytes()


def data_uri(jpeg: bytes) -> str:
    """A JPEG as the address of an image element."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def match_caption(picture: MatchPicture, detail: Detail) -> str:
    """How many matches there are, how many are inliers, and how many are drawn."""
    count, inliers = len(picture.inlier), int(np.sum(picture.inlier))
    if count == 0:
        return "No matches."
    text = f"{format_integer(count)} matches, {format_integer(inliers)} inliers ({100 * inliers / count:.0f} %)"
    return text + (f"; {format_integer(detail.lines)} drawn." if count > detail.lines else ".")


def _side_by_side(
    picture: MatchPicture, max_width: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]:
    """Both images at one height with a gap between them, and the points on that canvas."""
    images = [np.asarray(picture.image0), np.asarray(picture.image1)]
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"{picture.title}: an image is {image.dtype} {image.shape}, not uint8 (h, w, 3)")
    aspects = [image.shape[1] / image.shape[0] for image in images]
    height = min(max(image.shape[0] for image in images), (max_width - GAP_PX) / sum(aspects))
    small, ends = [], []
    for image, points, aspect in zip(images, (picture.points0, picture.points1), aspects, strict=True):
        size = (max(round(height * aspect), 1), max(round(height), 1))
        shrinks = size[0] < image.shape[1]
        small.append(cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))
        affine = resize_affine((image.shape[1], image.shape[0]), size)
        ends.append(apply_affine(affine, np.asarray(points, dtype=np.float64).reshape(-1, 2)))
    gap = np.full((small[0].shape[0], GAP_PX, 3), GAP_RGB, dtype=np.uint8)
    ends[1] = ends[1] + [small[0].shape[1] + GAP_PX, 0.0]
    return np.concatenate([small[0], gap, small[1]], axis=1), ends[0], ends[1]


def _with_lines(
    canvas: UInt8[np.ndarray, "h w 3"],
    ends0: Float[np.ndarray, "k 2"],
    ends1: Float[np.ndarray, "k 2"],
    colour: tuple[int, int, int],
) -> UInt8[np.ndarray, "h w 3"]:
    """The canvas with thin, slightly transparent lines and a dot at either end."""
    if not len(ends0):
        return canvas
    fixed = [
        np.round(np.clip(ends, -FARTHEST_PX, FARTHEST_PX) * 2**SUBPIXEL_BITS).astype(int) for ends in (ends0, ends1)
    ]
    drawn = canvas.copy()
    for a, b in zip(*(f.tolist() for f in fixed), strict=True):
        cv2.line(drawn, a, b, colour, 1, cv2.LINE_AA, SUBPIXEL_BITS)
    drawn = cv2.addWeighted(drawn, LINE_OPACITY, canvas, 1.0 - LINE_OPACITY, 0.0)
    for end in (*fixed[0].tolist(), *fixed[1].tolist()):
        cv2.circle(drawn, end, 2 * 2**SUBPIXEL_BITS, colour, -1, cv2.LINE_AA, SUBPIXEL_BITS)
    return drawn
