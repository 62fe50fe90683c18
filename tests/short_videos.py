"""Short videos of which everything is known: windows onto one large texture, a turning cylinder, files cut off."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from pathlib import Path

import cv2
import numpy as np

SIZE = (160, 112)  # width, height, px
RATE = 25.0  # frames/s
BLUR_PX = 9  # of frames that are moved while they are taken


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth grey noise of several sizes, (height, width, 3) uint8."""
    total = np.zeros((height, width), np.float32)
    for number, spacing in enumerate((3, 8, 20)):
        noise = np.random.default_rng([seed, number]).standard_normal((height // spacing + 2, width // spacing + 2))
        total += cv2.resize(noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.cvtColor(np.clip(128 + 40 * total, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)


def window(canvas: np.ndarray, left: float, blurred: bool = False) -> np.ndarray:
    """What a camera sees that has panned so far: `canvas[:, left : left + width]`, to parts of a pixel."""
    shift = np.array([[1, 0, left], [0, 1, 0]], np.float64)
    seen = cv2.warpAffine(canvas, shift, SIZE, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    return cv2.blur(seen, (BLUR_PX, 1)) if blurred else seen


def panned(lefts: Iterable[float], blurred: Collection[int] = (), seed: int = 0) -> list[np.ndarray]:
    """Frames of a pan over one texture."""
    places = list(lefts)
    canvas = texture(int(max(places)) + SIZE[0] + 8, SIZE[1], seed)
    return [window(canvas, left, number in blurred) for number, left in enumerate(places)]


def turning_cylinder(degrees: Iterable[float]) -> list[np.ndarray]:
    """Frames of an upright textured cylinder before black, half as wide as the picture, that turns in its place."""
    skin = texture(720, SIZE[1])
    x, y = np.meshgrid(np.arange(SIZE[0], dtype=np.float32), np.arange(SIZE[1], dtype=np.float32))
    across = (x - SIZE[0] / 2) / (SIZE[0] / 4)
    angle = np.degrees(np.arcsin(np.clip(across, -1, 1)))
    frames = []
    for turn in degrees:
        seen = cv2.remap(skin, ((angle + turn) % 360 * 2).astype(np.float32), y, cv2.INTER_LINEAR)
        frames.append(np.where((np.abs(across) < 1)[..., None], seen, 0).astype(np.uint8))
    return frames


def write_video(path: Path, frames: Iterable[np.ndarray], rate: float = RATE) -> Path:
    """An .avi of JPEG frames, or an .mp4 of MPEG-4 part 2."""
    code = cv2.VideoWriter_fourcc(*{".avi": "MJPG", ".mp4": "mp4v"}[path.suffix])  # type: ignore[attr-defined]
    writer = cv2.VideoWriter(str(path), code, rate, SIZE)
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def turned_by_phone(mp4: Path) -> None:
    """Write into an .mp4 that it is to be shown turned clockwise by a quarter, as phones do (the matrix of `tkhd`)."""
    data = bytearray(mp4.read_bytes())
    start = data.index(b"tkhd") + 44  # after version, flags, times, id, duration, layer, group and volume
    one = 1 << 16
    assert data[start : start + 36] == struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    data[start : start + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, SIZE[1] * one, 0, 1 << 30)
    mp4.write_bytes(data)


def cut_off(video: Path, share: float) -> Path:
    """A copy that ends early."""
    data = video.read_bytes()
    cut = video.with_name(f"cut_{video.name}")
    cut.write_bytes(data[: int(len(data) * share)])
    return cut
