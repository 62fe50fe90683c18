"""Objects of the rendered courtyard and the textures of its surfaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from featkit.demo.render import Rectangle

# ----------------------------------------------------------------------------------------------------------------------
# Procedural textures of stone, plaster, wood and posters, generated from noise so that no images have to be shipped.
#
# Each generator takes the surface's size in metres, the size of a texel in metres and a Generator, and returns a BGR
# image, float32, 0 to 255, rows down. Sides are multiples of 16 texels, so that every pyramid level is exactly half.
# No two places look alike: each stone has its own size and tone, with noise down to the size of a texel on top.


SIDE_MULTIPLE = 16  # texels
Colour = tuple[float, float, float]
Size = tuple[float, float]  # width, height in metres
Texture = Float[np.ndarray, "h w 3"]
HUES_DEG = (8.0, 28.0, 45.0, 52.0, 165.0, 200.0, 218.0, 345.0)  # printing inks: reds, yellows, blues, one green
PAPER: Colour = (208.0, 226.0, 234.0)
SYLLABLES = ("KA", "LO", "MI", "RE", "TU", "VEN", "SOL", "NOR", "DA", "PI", "ZE", "GRA", "BO", "LUX", "FA", "TEM")


def texels(size: Size, texel_m: float) -> tuple[int, int]:
    """Height and width in texels of a surface of `size`, rounded up to multiples of 16."""
    width, height = (SIDE_MULTIPLE * int(np.ceil(side / texel_m / SIDE_MULTIPLE)) for side in size)
    return height, width


def noise(
    shape: tuple[int, int],
    texel_m: float,
    rng: np.random.Generator,
    coarsest_m: float = 1.0,
    finest_m: float = 0.01,
    roughness: float = 0.75,
    stretch: float = 1.0,
) -> Float[np.ndarray, "h w"]:
    """Sum of octaves of smooth noise, zero mean, unit standard deviation.

    Octave wavelengths halve from coarsest_m to finest_m, and amplitudes shrink by `roughness`; `stretch` elongates the
    grain along the rows.
    """
    total = np.zeros(shape, dtype=np.float32)
    wavelength, amplitude = coarsest_m, 1.0
    while wavelength >= max(finest_m, 1.5 * texel_m):
        rows = int(shape[0] * texel_m / wavelength) + 4
        columns = int(shape[1] * texel_m / (wavelength * stretch)) + 4
        grid = rng.standard_normal((rows, columns)).astype(np.float32)
        total += amplitude * cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
        wavelength, amplitude = wavelength / 2, amplitude * roughness
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)


def tinted(base: Colour, tone: Float[np.ndarray, "h w"]) -> Texture:
    """A base colour times 1 + tone, slightly warmer where it is bright."""
    tint = np.stack([1.0 + 0.9 * tone, 1.0 + tone, 1.0 + 1.08 * tone], axis=2)
    return (np.array(base, dtype=np.float32) * tint).astype(np.float32)


def finished(texture: Texture) -> Texture:
    """Clamped away from black and white, so that lighting does not clip it."""
    return np.clip(texture, 6.0, 250.0).astype(np.float32)


def _rows_of_blocks(
    shape: tuple[int, int], texel_m: float, rng: np.random.Generator, heights: Size, widths: Size
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Courses of blocks of random height and width (metres): a random tone per block, and the depth of the joints."""
    tone = np.zeros(shape, dtype=np.float32)
    joint = np.zeros(shape, dtype=np.float32)
    thickness = max(1, round(0.012 / texel_m))
    top = 0.0
    while top < shape[0]:
        bottom = top + max(4.0, rng.uniform(*heights) / texel_m)
        left = -rng.uniform(0, widths[1]) / texel_m
        while left < shape[1]:
            right = left + max(4.0, rng.uniform(*widths) / texel_m)
            ends = (round(left), round(top)), (round(right), round(bottom))
            cv2.rectangle(tone, *ends, float(rng.normal()), cv2.FILLED)
            cv2.rectangle(joint, *ends, 1.0, thickness)
            left = right
        top = bottom
    return tone, cv2.GaussianBlur(joint, (0, 0), 0.7)


def blocks(size: Size, texel_m: float, rng: np.random.Generator, base: Colour, heights: Size, widths: Size) -> Texture:
    """Masonry: courses of blocks with ragged joints, stains and grain."""
    shape = texels(size, texel_m)
    tone, joint = _rows_of_blocks(shape, texel_m, rng, heights, widths)
    wobble_x, wobble_y = (noise(shape, texel_m, rng, 0.3, 0.04) * 0.006 / texel_m for _ in range(2))
    grid_y, grid_x = np.indices(shape, dtype=np.float32)
    tone, joint = (
        cv2.remap(layer, grid_x + wobble_x, grid_y + wobble_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        for layer in (tone, joint)
    )
    grain = noise(shape, texel_m, rng, 0.06, 0.01, 1.0)
    stains = noise(shape, texel_m, rng, 3.0, 0.2)
    picture = tinted(base, 0.13 * tone + 0.14 * grain + 0.08 * stains)
    return finished(picture * (1.0 - 0.45 * joint[..., None]))


def flagstones(size: Size, texel_m: float, rng: np.random.Generator, base: Colour, spacing_m: float) -> Texture:
    """Paving of irregular stones: the Voronoi cells of a jittered grid of seeds."""
    shape = texels(size, texel_m)
    seeds = np.full(shape, 255, dtype=np.uint8)
    step = spacing_m / texel_m
    grid = np.stack(np.meshgrid(np.arange(0, shape[0], step), np.arange(0, shape[1], step)), axis=-1)
    places = (grid + rng.uniform(0, 0.9 * step, grid.shape)).reshape(-1, 2).astype(int)
    places = places[(places[:, 0] < shape[0]) & (places[:, 1] < shape[1])]
    seeds[places[:, 0], places[:, 1]] = 0
    cells = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1]
    tones = rng.normal(size=int(cells.max()) + 1).astype(np.float32)[cells]
    edge = np.zeros(shape, dtype=np.uint8)
    edge[:, 1:] |= cells[:, 1:] != cells[:, :-1]
    edge[1:] |= cells[1:] != cells[:-1]
    joint = cv2.GaussianBlur(edge.astype(np.float32), (0, 0), max(0.6, 0.008 / texel_m))
    joint /= max(float(joint.max()), 1e-6)
    grain = noise(shape, texel_m, rng, 0.06, 0.012, 1.0)
    stains = noise(shape, texel_m, rng, 4.0, 0.25)
    picture = tinted(base, 0.12 * tones + 0.13 * grain + 0.09 * stains)
    return finished(picture * (1.0 - 0.55 * joint[..., None]))


def plaster(size: Size, texel_m: float, rng: np.random.Generator, base: Colour) -> Texture:
    """Old plaster: broad stains, grain, and exposed brick where patches have come off."""
    shape = texels(size, texel_m)
    grain = noise(shape, texel_m, rng, 0.08, 0.01, 1.0)
    picture = tinted(base, 0.09 * noise(shape, texel_m, rng, 3.0, 0.2) + 0.10 * grain)
    bricks = blocks(size, texel_m, rng, (70.0, 92.0, 150.0), (0.075, 0.085), (0.2, 0.27))
    height = noise(shape, texel_m, rng, 1.6, 0.03, 0.6)
    bare = np.clip((height - 1.15) / 0.12, 0.0, 1.0)[..., None]
    rim = np.exp(-(((height - 1.15) / 0.1) ** 2))[..., None]  # shadow at the broken edge
    return finished((picture * (1.0 - bare) + bricks * bare) * (1.0 - 0.35 * rim))


def planks(size: Size, texel_m: float, rng: np.random.Generator, base: Colour) -> Texture:
    """Boards with grain along the rows, dark gaps, nails and a stencilled number."""
    shape = texels(size, texel_m)
    tone, joint = _rows_of_blocks(shape, texel_m, rng, (0.11, 0.17), (4.0, 6.0))
    grain = noise(shape, texel_m, rng, 0.05, 0.006, 0.9, stretch=7.0)
    spots = noise(shape, texel_m, rng, 0.3, 0.015, 0.9)
    picture = tinted(base, 0.12 * tone + 0.15 * grain + 0.11 * spots)
    picture *= 1.0 - 0.6 * joint[..., None]
    for _ in range(max(6, int(20 * size[0] * size[1]))):
        place = (int(rng.integers(0, shape[1])), int(rng.integers(0, shape[0])))
        cv2.circle(picture, place, max(1, round(0.008 / texel_m)), (38.0, 40.0, 46.0), cv2.FILLED)
    _draw_text(picture, str(rng.integers(10, 99)), (0.5, 0.62), 0.35, (45.0, 48.0, 60.0))
    return finished(picture)


def foliage(size: Size, texel_m: float, rng: np.random.Generator) -> Texture:
    """Clipped leaves: small cells in many greens."""
    leaves = flagstones(size, texel_m, rng, (58.0, 118.0, 88.0), 0.035)
    depth = noise(leaves.shape[:2], texel_m, rng, 0.3, 0.02, 0.9)
    return finished(leaves * (1.0 + 0.25 * depth[..., None]))


def poster(size: Size, texel_m: float, rng: np.random.Generator) -> Texture:
    """A poster: a gradient, discs, rings, polygons and bars in bright colours, a title, paper grain, a border."""
    shape = texels(size, texel_m)
    first, second = (0.45 * _bright_colour(rng) + 0.55 * np.array(PAPER, dtype=np.float32) for _ in range(2))
    ramp = np.linspace(0.0, 1.0, shape[0], dtype=np.float32)[:, None, None]
    gradient = np.broadcast_to((1 - ramp) * first + ramp * second, (*shape, 3))
    canvas = np.ascontiguousarray(gradient).astype(np.uint8)  # OpenCV's anti-aliasing needs uint8
    side = min(shape)
    for _ in range(26):
        place = rng.uniform(0.0, 1.0, 2) * (shape[1], shape[0])
        radius = side * rng.uniform(0.02, 0.18)
        _draw_shape(canvas, place, radius, _ink_colour(rng), rng)
    picture = canvas.astype(np.float32)
    _draw_text(picture, "".join(rng.choice(SYLLABLES, 2)), (0.5, 0.3), 0.86, (30.0, 28.0, 32.0))
    _draw_text(picture, f"{rng.integers(1, 29)}.{rng.integers(1, 13)}.", (0.5, 0.9), 0.4, (40.0, 36.0, 96.0))
    border = max(2, side // 28)
    cv2.rectangle(picture, (0, 0), (shape[1] - 1, shape[0] - 1), (228.0, 234.0, 238.0), border)
    return finished(picture * (1.0 + 0.09 * noise(shape, texel_m, rng, 0.2, 0.01, 0.95)[..., None]))


def _bright_colour(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    degrees = (rng.choice(HUES_DEG) + rng.uniform(-12.0, 12.0)) % 360.0
    hue = np.array([[[degrees / 2, rng.integers(120, 215), rng.integers(150, 250)]]], dtype=np.uint8)
    return cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def _ink_colour(rng: np.random.Generator) -> Colour:
    blue, green, red = _bright_colour(rng)
    return float(blue), float(green), float(red)


def _draw_shape(
    picture: UInt8[np.ndarray, "h w 3"],
    place: Float[np.ndarray, "2"],
    radius: float,
    colour: Colour,
    rng: np.random.Generator,
) -> None:
    centre = (int(place[0]), int(place[1]))
    kind = rng.integers(0, 4)
    if kind == 0:
        cv2.circle(picture, centre, int(radius), colour, cv2.FILLED, cv2.LINE_AA)
    elif kind == 1:
        cv2.circle(picture, centre, int(radius), colour, max(2, int(radius / 4)), cv2.LINE_AA)
    else:
        # kind 2: a polygon with 3 to 6 corners; kind 3: a bar, as a polygon with a long and a short half-axis
        corners = int(rng.integers(3, 7)) if kind == 2 else 4
        angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
        axes = (radius, radius) if kind == 2 else (2.2 * radius, 0.3 * radius)
        outline = np.stack([axes[0] * np.cos(angles), axes[1] * np.sin(angles)], axis=1)
        turn = rng.uniform(0, np.pi)
        rotated = outline @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        cv2.fillPoly(picture, [np.round(place + rotated).astype(np.int32)], colour, cv2.LINE_AA)


def _draw_text(picture: Texture, text: str, place: Size, width: float, colour: Colour) -> None:
    """Draw text centred at `place`, `width` wide, both as fractions of the image."""
    height_px, width_px = picture.shape[:2]
    (unit_width, unit_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 1.0, 2)
    scale = width * width_px / unit_width
    thickness = max(1, round(3.0 * scale))
    left = round(place[0] * width_px - 0.5 * scale * unit_width)
    base = round(place[1] * height_px + 0.5 * scale * unit_height)
    ink = np.zeros((height_px, width_px), dtype=np.uint8)  # OpenCV's anti-aliasing needs uint8
    cv2.putText(ink, text, (left, base), cv2.FONT_HERSHEY_DUPLEX, scale, 255, thickness, cv2.LINE_AA)
    cover = ink[..., None].astype(np.float32) / 255.0
    picture[:] = (1.0 - cover) * picture + cover * np.array(colour, dtype=np.float32)


def window(size: Size, texel_m: float, rng: np.random.Generator) -> Texture:
    """A window with a stone surround, a painted frame, and panes with curtains and a broken reflection."""
    shape = texels(size, texel_m)
    stone = tinted((168.0, 182.0, 190.0), 0.12 * noise(shape, texel_m, rng, 0.2, 0.01, 0.95))
    rim, bar = round(0.10 / texel_m), max(1, round(0.045 / texel_m))
    picture = stone.copy()
    cv2.rectangle(picture, (rim, rim), (shape[1] - rim, shape[0] - rim), _paint_colour(rng), cv2.FILLED)
    columns, rows = 2, 3
    xs = np.linspace(rim + bar, shape[1] - rim, columns + 1).astype(int)
    ys = np.linspace(rim + bar, shape[0] - rim, rows + 1).astype(int)
    for left, right in zip(xs[:-1], xs[1:] - bar, strict=True):
        for top, bottom in zip(ys[:-1], ys[1:] - bar, strict=True):
            pane = (max(1, bottom - top), max(1, right - left))
            ramp = np.linspace(rng.uniform(-0.2, 0.5), rng.uniform(-0.5, 0.2), pane[0], dtype=np.float32)
            glow = ramp[:, None] + 0.22 * noise(pane, texel_m, rng, 0.5, 0.012, 0.85)
            picture[top:bottom, left:right] = tinted((92.0, 78.0, 66.0), glow)[: bottom - top, : right - left]
    shade = round(shape[0] * rng.uniform(0.15, 0.5))  # a blind, lowered to a random height
    blind = picture[rim + bar : shade, rim + bar : shape[1] - rim - bar]
    folds = noise(blind.shape[:2], texel_m, rng, 0.12, 0.012, 0.9) if blind.size else np.zeros(blind.shape[:2])
    blind[:] = 0.35 * blind + 0.65 * tinted(_paint_colour(rng), 0.15 * folds)
    return finished(picture)


def _paint_colour(rng: np.random.Generator) -> Colour:
    blue, green, red = 0.35 * _bright_colour(rng) + 120.0
    return float(blue), float(green), float(red)


def paste(texture: Texture, patch: Texture, place: tuple[int, int]) -> None:
    """Paste a patch onto a texture with its top-left texel at (column, row); parts outside are cropped."""
    column, row = place
    target = texture[row : row + patch.shape[0], column : column + patch.shape[1]]
    target[:] = patch[: target.shape[0], : target.shape[1]]


Maker = Callable[[Size, float, np.random.Generator], Texture]
MATERIALS: dict[str, Maker] = {
    "ashlar": lambda size, texel, rng: blocks(size, texel, rng, (150, 172, 188), (0.22, 0.4), (0.3, 0.9)),
    "pillar": lambda size, texel, rng: blocks(size, texel, rng, (140, 156, 166), (0.3, 0.5), (0.5, 1.2)),
    "brick": lambda size, texel, rng: blocks(size, texel, rng, (78, 98, 160), (0.07, 0.09), (0.18, 0.28)),
    "concrete": lambda size, texel, rng: plaster(size, texel, rng, (150, 156, 158)),
    "plaster": lambda size, texel, rng: plaster(size, texel, rng, (128, 182, 214)),
    "paving": lambda size, texel, rng: flagstones(size, texel, rng, (140, 150, 156), 0.55),
    "wood": lambda size, texel, rng: planks(size, texel, rng, (78, 124, 168)),
    "green wood": lambda size, texel, rng: planks(size, texel, rng, (104, 122, 72)),
    "foliage": foliage,
    "poster": poster,
    "window": window,
}


# ----------------------------------------------------------------------------------------------------------------------
# The courtyard: its walls, its floor and the objects in it.


CORNER_DEG = 100.0  # degrees between the two facades
FACADE_M = (11.0, 5.4)  # m: length and height of a facade
FRONT_DEG = 0.5 * CORNER_DEG  # degrees from +x: direction out of the corner
UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Decal:
    """An image on a face: its material, left and top on the face and its size, all in metres."""

    material: str
    place: tuple[float, float]
    size: Size


@dataclass(frozen=True)
class Face:
    """A rectangle, its material, and the images on it."""

    rectangle: Rectangle
    material: str
    decals: tuple[Decal, ...] = ()


@dataclass(frozen=True)
class Box:
    """A box: centre of its base (x, y, z), length along its yaw, depth, height, in metres and degrees."""

    base: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw_deg: float
    sides: str
    top: str
    decals: tuple[Decal, ...] = ()  # on the two long sides
    floats: bool = False  # its underside is visible


WINDOW = (1.1, 1.5)
X_FACADE = (
    *(Decal("window", (left, 0.7), WINDOW) for left in (0.9, 3.2, 5.5, 7.8)),
    *(Decal("window", (left, 2.9), WINDOW) for left in (0.9, 7.8)),
    Decal("green wood", (3.3, 3.0), (1.2, 2.4)),
    Decal("poster", (5.0, 3.1), (0.75, 1.05)),
    Decal("poster", (5.9, 3.15), (0.75, 1.05)),
    Decal("poster", (9.4, 3.0), (1.0, 1.4)),
)
Y_FACADE = (
    *(Decal("window", (left, 0.8), WINDOW) for left in (1.4, 4.1, 6.6, 9.2)),
    *(Decal("window", (left, 2.9), WINDOW) for left in (1.4, 6.6)),
    Decal("wood", (4.0, 3.0), (1.3, 2.4)),
    Decal("poster", (2.9, 3.2), (0.7, 1.0)),
    Decal("poster", (8.4, 3.0), (1.0, 1.4)),
    Decal("poster", (9.7, 3.05), (0.8, 1.1)),
)
KIOSK = (Decal("poster", (0.1, 0.25), (0.9, 1.3)),)
BOARD = (Decal("poster", (0.08, 0.08), (0.74, 1.05)), Decal("poster", (0.98, 0.08), (0.74, 1.05)))

BOXES = (
    Box((2.2, 2.6, 0.0), (1.1, 1.1, 2.3), 35.0, "concrete", "concrete", KIOSK),
    Box((4.4, 1.5, 0.0), (1.0, 1.0, 1.0), 12.0, "wood", "wood"),
    Box((4.35, 1.55, 1.0), (0.7, 0.7, 0.7), 40.0, "wood", "wood"),
    Box((5.5, 1.25, 0.0), (0.8, 0.8, 0.8), -8.0, "wood", "wood"),
    Box((5.1, 2.7, 0.0), (0.6, 0.6, 0.6), 57.0, "green wood", "green wood"),
    Box((0.1, 3.2, 0.0), (1.9, 0.55, 0.6), 98.0, "brick", "foliage"),
    Box((-0.35, 5.6, 0.0), (1.9, 0.55, 0.6), 101.0, "brick", "foliage"),
    Box((1.6, 5.2, 0.25), (1.8, 0.12, 1.25), 118.0, "green wood", "green wood", BOARD, True),
    Box((3.4, 3.9, 0.0), (1.7, 0.45, 0.46), 28.0, "ashlar", "concrete"),
    Box((1.25, 1.0, 0.0), (0.5, 0.5, 3.3), 50.0, "pillar", "pillar"),
    Box((7.2, 0.95, 0.0), (0.5, 0.5, 3.3), 0.0, "pillar", "pillar"),
    Box((-0.1, 7.6, 0.0), (0.5, 0.5, 3.3), 100.0, "pillar", "pillar"),
    Box((3.9, 0.5, 2.62), (1.9, 1.0, 0.16), 0.0, "wood", "wood", (), True),
    Box((-0.53, 6.1, 2.65), (1.9, 1.0, 0.16), 100.0, "green wood", "green wood", (), True),
)


def direction(angle_deg: float) -> Float[np.ndarray, "3"]:
    """Horizontal unit vector, with the angle measured from +x towards +y."""
    angle = np.radians(angle_deg)
    return np.array([np.cos(angle), np.sin(angle), 0.0])


def courtyard() -> list[Face]:
    """All faces of the scene, always in the same order."""
    out, across = direction(FRONT_DEG), direction(FRONT_DEG - 90.0)
    near, far, half = -0.2, 12.6, 9.0  # m along the direction out of the corner, and to either side
    ground = Rectangle(far * out - half * across, 2 * half * across, (near - far) * out)
    length, height = FACADE_M
    # Seen from the yard, +x points left from the corner, and the other facade is to its right.
    along_x, along_y = direction(0.0), direction(CORNER_DEG)
    faces = [
        Face(ground, "paving"),
        Face(Rectangle(length * along_x + height * UP, -length * along_x, -height * UP), "ashlar", X_FACADE),
        Face(Rectangle(height * UP, length * along_y, -height * UP), "plaster", Y_FACADE),
    ]
    for box in BOXES:
        faces += box_faces(box)
    return faces


def box_faces(box: Box) -> list[Face]:
    """Four sides, the top, and the underside if the box floats."""
    length, depth, height = box.size
    along, aside = direction(box.yaw_deg), direction(box.yaw_deg + 90.0)
    centre = np.array(box.base) + height * UP
    faces = []
    for outward, right, reach, width in (
        (-aside, along, depth, length),
        (along, aside, length, depth),
        (aside, -along, depth, length),
        (-along, -aside, length, depth),
    ):
        corner = centre + 0.5 * reach * outward - 0.5 * width * right
        decals = box.decals if width == length else ()
        faces.append(Face(Rectangle(corner, width * right, -height * UP), box.sides, decals))
    corner = centre - 0.5 * length * along + 0.5 * depth * aside
    faces.append(Face(Rectangle(corner, length * along, -depth * aside), box.top))
    if box.floats:
        corner = corner - height * UP - depth * aside
        faces.append(Face(Rectangle(corner, length * along, depth * aside), box.sides))
    return faces
