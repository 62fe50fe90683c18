"""The corner of a courtyard: paving, two facades at an angle, and what stands in front of them.

World frame: metres, z up, the corner of the two facades on the ground is the origin; one facade runs along +x, the
other is turned from it by CORNER_DEG. Nothing here is random: the seed decides the textures, not the shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from featkit.data.raycast import Rectangle
from featkit.data.textures import Size

CORNER_DEG = 100.0  # degrees between the two facades
FACADE_M = (11.0, 5.4)  # m: length and height of a facade
FRONT_DEG = 0.5 * CORNER_DEG  # degrees from +x: the way out of the corner
UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Decal:
    """A picture on a face: its material, left and top on the face and its size, all in metres."""

    material: str
    place: tuple[float, float]
    size: Size


@dataclass(frozen=True)
class Face:
    """A rectangle, the material it is made of, and what hangs on it."""

    rectangle: Rectangle
    material: str
    decals: tuple[Decal, ...] = ()


@dataclass(frozen=True)
class Block:
    """A box on its own: centre of its base (x, y, z), length along its yaw, depth, height, in metres and degrees."""

    base: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw_deg: float
    sides: str
    top: str
    decals: tuple[Decal, ...] = ()  # on the two long sides
    floats: bool = False  # its underside can be seen


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

BLOCKS = (
    Block((2.2, 2.6, 0.0), (1.1, 1.1, 2.3), 35.0, "concrete", "concrete", KIOSK),
    Block((4.4, 1.5, 0.0), (1.0, 1.0, 1.0), 12.0, "wood", "wood"),
    Block((4.35, 1.55, 1.0), (0.7, 0.7, 0.7), 40.0, "wood", "wood"),
    Block((5.5, 1.25, 0.0), (0.8, 0.8, 0.8), -8.0, "wood", "wood"),
    Block((5.1, 2.7, 0.0), (0.6, 0.6, 0.6), 57.0, "green wood", "green wood"),
    Block((0.1, 3.2, 0.0), (1.9, 0.55, 0.6), 98.0, "brick", "foliage"),
    Block((-0.35, 5.6, 0.0), (1.9, 0.55, 0.6), 101.0, "brick", "foliage"),
    Block((1.6, 5.2, 0.25), (1.8, 0.12, 1.25), 118.0, "green wood", "green wood", BOARD, True),
    Block((3.4, 3.9, 0.0), (1.7, 0.45, 0.46), 28.0, "ashlar", "concrete"),
    Block((1.25, 1.0, 0.0), (0.5, 0.5, 3.3), 50.0, "pillar", "pillar"),
    Block((7.2, 0.95, 0.0), (0.5, 0.5, 3.3), 0.0, "pillar", "pillar"),
    Block((-0.1, 7.6, 0.0), (0.5, 0.5, 3.3), 100.0, "pillar", "pillar"),
    Block((3.9, 0.5, 2.62), (1.9, 1.0, 0.16), 0.0, "wood", "wood", (), True),
    Block((-0.53, 6.1, 2.65), (1.9, 1.0, 0.16), 100.0, "green wood", "green wood", (), True),
)


def direction(angle_deg: float) -> Float[np.ndarray, "3"]:
    """Level unit vector, angle counted from +x towards +y."""
    angle = np.radians(angle_deg)
    return np.array([np.cos(angle), np.sin(angle), 0.0])


def courtyard() -> list[Face]:
    """All faces of the scene, always in the same order."""
    out, across = direction(FRONT_DEG), direction(FRONT_DEG - 90.0)
    near, far, half = -0.2, 12.6, 9.0  # m along the way out of the corner, and to either side of it
    ground = Rectangle(far * out - half * across, 2 * half * across, (near - far) * out)
    length, height = FACADE_M
    # Seen from the yard, +x runs to the left of the corner and the other facade to the right of it.
    along_x, along_y = direction(0.0), direction(CORNER_DEG)
    faces = [
        Face(ground, "paving"),
        Face(Rectangle(length * along_x + height * UP, -length * along_x, -height * UP), "ashlar", X_FACADE),
        Face(Rectangle(height * UP, length * along_y, -height * UP), "plaster", Y_FACADE),
    ]
    for block in BLOCKS:
        faces += block_faces(block)
    return faces


def block_faces(block: Block) -> list[Face]:
    """Four sides, the top, and the underside of a block that floats."""
    length, depth, height = block.size
    along, aside = direction(block.yaw_deg), direction(block.yaw_deg + 90.0)
    centre = np.array(block.base) + height * UP
    faces = []
    for outward, right, reach, width in (
        (-aside, along, depth, length),
        (along, aside, length, depth),
        (aside, -along, depth, length),
        (-along, -aside, length, depth),
    ):
        corner = centre + 0.5 * reach * outward - 0.5 * width * right
        decals = block.decals if width == length else ()
        faces.append(Face(Rectangle(corner, width * right, -height * UP), block.sides, decals))
    corner = centre - 0.5 * length * along + 0.5 * depth * aside
    faces.append(Face(Rectangle(corner, length * along, -depth * aside), block.top))
    if block.floats:
        corner = corner - height * UP - depth * aside
        faces.append(Face(Rectangle(corner, length * along, depth * aside), block.sides))
    return faces
