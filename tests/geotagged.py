"""Images with exact positions in their EXIF, and models of cameras at those positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from featkit.core.types import Pose
from featkit.geometry.poses import look_at
from featkit.mapping.verify import to_rigid

ORIGIN = (47.3769, 8.5417, 408.0)  # latitude, longitude, altitude
FINEST = 10**7  # of a second of arc: 3 nanometres on the ground

GPANO = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"'
    b' GPano:ProjectionType="equirectangular"/></rdf:RDF></x:xmpmeta>'
)
"""XMP of a panorama of 360 degrees."""


def gps_exif(latitude: float, longitude: float, altitude: float | None = None) -> Image.Exif:
    """EXIF with a position, in degrees, minutes and seconds as cameras write them."""
    exif = Image.Exif()
    tags = exif.get_ifd(0x8825)
    exif[0x8825] = 0  # where the directory lies: Pillow takes an EXIF that does not mention it for an empty one
    tags[1], tags[2] = "N" if latitude >= 0 else "S", parts(latitude)
    tags[3], tags[4] = "E" if longitude >= 0 else "W", parts(longitude)
    if altitude is not None:
        tags[5], tags[6] = b"\1" if altitude < 0 else b"\0", abs(altitude)
    return exif


def parts(degrees: float) -> tuple[float, float, Fraction]:
    """Whole degrees, whole minutes, seconds."""
    seconds = Fraction(round(abs(degrees) * 3600 * FINEST), FINEST)
    return float(seconds // 3600), float(seconds // 60 % 60), seconds % 60


def photograph(path: Path, place: Sequence[float] | None = None, size: tuple[int, int] = (32, 24)) -> Path:
    """A small grey image, taken at latitude, longitude and optionally altitude."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("L", size, 128)
    picture.save(path, **({} if place is None else {"exif": gps_exif(*place)}))
    return path


def geodetic(east_north_up: np.ndarray, origin: Sequence[float] = ORIGIN) -> np.ndarray:
    """Latitude, longitude and altitude of points in metres around an origin, computed by COLMAP."""
    return np.array(
        pycolmap.GPSTransform(pycolmap.GPSTransformEllipsoid.WGS84).enu_to_ellipsoid(east_north_up.tolist(), *origin)
    )


def downward(centres: Mapping[str, np.ndarray]) -> dict[str, Pose]:
    """Cameras that look straight down, with north at the top."""
    return {
        name: look_at(np.asarray(c, float), np.asarray(c, float) - [0, 0, 1.0], np.array([0, 1.0, 0]))
        for name, c in centres.items()
    }


def made_model(poses: Mapping[str, Pose], points: Sequence[Sequence[str]] = ()) -> pycolmap.Reconstruction:
    """A model of these cameras. points: for each point, the cameras that see it (its position does not matter)."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(model="PINHOLE", width=640, height=480, params=[500, 500, 320, 240], camera_id=1)
    )
    seen: dict[str, int] = dict.fromkeys(poses, 0)
    tracks = []
    for names in points:
        track = pycolmap.Track()
        for name in names:
            track.add_element(list(poses).index(name) + 1, seen[name])
            seen[name] += 1
        tracks.append(track)
    for number, (name, pose) in enumerate(poses.items(), start=1):
        keypoints = np.full((seen[name], 2), 100.0)
        image = pycolmap.Image(name=name, keypoints=keypoints, camera_id=1, image_id=number)
        model.add_image_with_trivial_frame(image, to_rigid(pose))
    for number, track in enumerate(tracks):
        model.add_point3D(np.array([number, 1.0, 2.0]), track, np.zeros(3, np.uint8))
    return model


def write_made(model: pycolmap.Reconstruction, folder: Path, text: bool = False) -> Path:
    """Write a model to its own folder."""
    folder.mkdir(parents=True)
    (model.write_text if text else model.write)(str(folder))
    return folder


def turned(seed: int = 0, scale: float = 0.05) -> pycolmap.Sim3d:
    """Transform from metres to an arbitrary model frame: scaled, rotated and shifted."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=4)
    return pycolmap.Sim3d(scale, pycolmap.Rotation3d(q / np.linalg.norm(q)), rng.normal(size=3))


def survey(count: int = 12, step_m: float = 20.0, height_m: float = 60.0) -> dict[str, np.ndarray]:
    """Camera centres of a flight in strips of four images, with slightly different heights. ENU metres."""
    rng = np.random.default_rng(count)
    found = {}
    for number in range(count):
        strip, along = divmod(number, 4)
        along = along if strip % 2 == 0 else 3 - along
        found[f"{number:02d}.jpg"] = np.array([along * step_m, strip * 1.5 * step_m, height_m + rng.uniform(-3, 3)])
    return found
