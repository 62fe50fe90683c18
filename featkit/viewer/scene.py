"""The data of a map that the page of `featkit view` requests.

Requests contain only numbers: images by index among the sorted names, points by index among the sorted ids. So the
browser never sends a file name. Pixels are those of the upright, decoded photograph (the centre of the top-left pixel
is (0, 0)). Binary responses are little-endian arrays, one after the other:

    points.bin        xyz float32 (n, 3) minus `middle`, RGB uint8 (n, 3)
    image/I.bin       keypoints float32 (k, 2), index of the point that each sees int32 (k,), -1: none
    pair/I-J.bin      matches x0 y0 x1 y1 float32 (m, 4), inlier flags uint8 (m,)
    tracks/C.json     points 1000 C .. 1000 C + 999: id, error in px, (image, x, y) of every observation
    query/Q.bin       matches with points: x y float32 (k, 2), index of the point int32 (k,), inlier flags uint8 (k,)
    query-pair/Q-I.bin  as pair/I-J.bin: a query of `featkit localize` and an image of the map
    scene.json, image/I.json, thumb/I.jpg, photo/I.jpg, query/Q.json, query-thumb/Q.jpg, query-photo/Q.jpg
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from featkit import __version__
from featkit.core.errors import BadInputError, EmptyResultError
from featkit.core.types import Pair
from featkit.evaluation.pictures import posed_camera
from featkit.geometry.pixels import apply_affine, from_colmap, to_colmap
from featkit.io.features import open_features
from featkit.mapping.cameras import to_pose
from featkit.mapping.database import PairLines, ReadOnlyDatabase
from featkit.mapping.model import point_ids, read_model
from featkit.mapping.photographs import existing_photographs
from featkit.mapping.scene import find_features
from featkit.report.scene3d import frustum_depth, upright_rotation, view_box
from featkit.viewer.photographs import (
    PageImageConfig,
    Photographs,
    PhotographView,
    Response,
    binary_response,
    json_response,
)
from featkit.viewer.queries import ViewedQueries, find_results

CHUNK = 1000  # number of points per response with tracks
DATABASE = "database.db"
FARTHEST = 1e15  # coordinate that a point is drawn at; the squares of larger ones leave float32
NEAR = 2  # levels above a model that are searched for its database, as in scene/featkit/sparse/0
NUMBER = "([0-9]{1,9})"
ROUTE = re.compile(
    rf"(scene\.json|points\.bin)|(tracks|image|thumb|photo|query|query-thumb|query-photo)/{NUMBER}\.(json|bin|jpg)"
    rf"|(pair|query-pair)/{NUMBER}-{NUMBER}\.bin"
)


class ViewedScene:
    """A map with its photographs and matches, which answers the page's requests. Files are only read.

    `missing` describes what was not found. Raises BadInputError for a model that cannot be read or has image names that
    leave the photographs' folder, EmptyResultError for a model without a posed image.
    """

    def __init__(
        self,
        folder: Path,
        config: PageImageConfig | None = None,
        *,
        images: Sequence[Path] = (),
        database: Path | None = None,
        localize: Path | None = None,
        queries: Path | None = None,
    ):
        """folder: a COLMAP model. images: folders of its photographs. database: COLMAP's; by default found near it.

        localize: results of `featkit localize`; by default found near it. queries: folder of their photographs.
        """
        self.folder, self.config = folder, config or PageImageConfig()
        self.model = read_model(folder)
        self.images = sorted((i for i in self.model.images.values() if i.has_pose), key=lambda image: image.name)
        if not self.images:
            raise EmptyResultError(f"{folder}: no image of this model has a pose")
        self.names = [image.name for image in self.images]
        self.by_name = {name: index for index, name in enumerate(self.names)}
        self.place = {image.image_id: index for index, image in enumerate(self.images)}
        self.point_ids = np.array(sorted(self.model.points3D), dtype=np.int64)
        self.files = existing_photographs(folder, self.names, images)
        self._notes: list[str] = []
        self.database = self._database(database)
        self.verified = self.database is not None and any(kept for _, kept in self.database.counts.values())
        self.features = find_features(folder)
        self.photographs = Photographs(self.config, self._intensity_range())
        self._cache = self.photographs.cache
        self._prepare_geometry()
        self.queries = self._queries(localize, queries)

    def _prepare_geometry(self) -> None:
        """Points and cameras relative to the middle of the map, so that float32 is precise for georeferenced maps."""
        points = [self.model.points3D[int(number)] for number in self.point_ids]
        xyz = np.array([point.xyz for point in points], dtype=np.float64).reshape(-1, 3)
        self.xyz = xyz.clip(-FARTHEST, FARTHEST)
        self.rgb = np.array([point.color for point in points], dtype=np.uint8).reshape(-1, 3)
        self.errors_px = np.array([point.error for point in points], dtype=np.float64)
        self.cameras = [
            posed_camera(image.name, to_pose(image.cam_from_world()), self.model.cameras[image.camera_id], "map")
            for image in self.images
        ]
        self.turn = upright_rotation(self.cameras)
        centres = np.array([camera.centre for camera in self.cameras])
        box = view_box(self.xyz @ self.turn.T, centres @ self.turn.T)
        self.middle, self.side = self.turn.T @ box.middle, box.side
        self.depth = frustum_depth(centres, box)

    def _database(self, given: Path | None) -> ReadOnlyDatabase | None:
        if given is not None:
            return self._checked(ReadOnlyDatabase(given))
        near = [self.folder, *self.folder.resolve().parents[:NEAR]]
        path = next((base / DATABASE for base in near if (base / DATABASE).is_file()), None)
        if path is None:
            self._notes.append("No database.db was found near the model: pairs are images with common points.")
            return None
        try:
            return self._checked(ReadOnlyDatabase(path))
        except BadInputError as error:  # show the map without it
            self._notes.append(f"Matches cannot be shown: {error}; pairs are images with common points.")
            return None

    def _checked(self, database: ReadOnlyDatabase) -> ReadOnlyDatabase:
        if not database.ids.keys() & self.by_name.keys():
            raise BadInputError(f"{database.path}: has no image of the map {self.folder}; give the map's own database")
        return database

    def _queries(self, given: Path | None, photographs: Path | None) -> ViewedQueries | None:
        found = find_results(self.folder, given)
        self._notes += found.notes
        if found.shown is None:
            return None
        try:
            return ViewedQueries(
                found.shown, self.model, self.names, self.point_ids, self.features, self.photographs, photographs
            )
        except BadInputError as error:  # a name that leaves the folder
            self._notes.append(f"Queries are not shown: {error}")
            return None

    def _intensity_range(self) -> tuple[float, float] | None:
        if self.features is None:
            return None
        try:
            with open_features(self.features) as store:
                return store.intensity_range
        except BadInputError:  # show the map without a damaged store
            self.features = None
            return None

    @property
    def missing(self) -> list[str]:
        """Sentences that describe what was not found."""
        found = []
        left = len(self.images) - len(self.files)
        if left:
            which = "None" if not self.files else f"{len(self.files)}"
            found.append(f"{which} of the {len(self.images)} photographs were found; give their folder with --images.")
        if self.database is not None and not self.verified:
            found.append(f"{self.database.path.name} has no verified pair: pairs are images with common points.")
        unposed = len(self.model.images) - len(self.images)
        if unposed:
            found.append(f"{unposed} images of the model have no pose and are not shown.")
        if not len(self.point_ids):
            found.append("The model has no points.")
        return [*found, *self._notes, *([] if self.queries is None else self.queries.missing)]

    # ---- answers ----------------------------------------------------------------------------------------------------

    def answer(self, path: str) -> Response | None:
        """The response to a path without its leading slash; None for an unknown path.

        Raises BadInputError for a photograph that cannot be decoded.
        """
        route = ROUTE.fullmatch(path)
        if route is None:
            return None
        whole, kind, number, form, pair, first, second = route.groups()
        if whole is not None:
            return self._scene() if whole == "scene.json" else self._points()
        if pair is not None:
            return (self._pair if pair == "pair" else self._query_pair)(int(first), int(second))
        if kind.startswith("query"):
            return self._query(kind.removeprefix("query").removeprefix("-"), form, int(number))
        make: Callable[[int], Response] | None = {
            ("tracks", "json"): self._tracks,
            ("image", "json"): self._image,
            ("image", "bin"): self._keypoints_answer,
            ("thumb", "jpg"): self._thumbnail,
            ("photo", "jpg"): self._photograph,
        }.get((kind, form))
        count = -(-len(self.point_ids) // CHUNK) if kind == "tracks" else len(self.images)
        if make is None or int(number) >= count or (form == "jpg" and self.names[int(number)] not in self.files):
            return None
        return make(int(number))

    def paths(self) -> Iterator[str]:
        """All paths that the page may request."""
        yield from ("scene.json", "points.bin")
        yield from (f"tracks/{chunk}.json" for chunk in range(-(-len(self.point_ids) // CHUNK)))
        for index, name in enumerate(self.names):
            yield from (f"image/{index}.json", f"image/{index}.bin")
            if name in self.files:
                yield from (f"thumb/{index}.jpg", f"photo/{index}.jpg")
            yield from (f"pair/{index}-{other}.bin" for other, _, _ in self.pairs_of(index) if other > index)
        if self.queries is not None:
            yield from (path for number in range(len(self.queries.queries)) for path in self.queries.paths(number))

    def _scene(self) -> Response:
        images = [
            {
                "name": camera.name,
                "rotation": camera.rotation.ravel().tolist(),
                "centre": (camera.centre - self.middle).tolist(),
                "width": camera.width,
                "height": camera.height,
                "focal": camera.focal_px,
                "photo": camera.name in self.files,
            }
            for camera in self.cameras
        ]
        queries = self.queries
        return json_response(
            {
                "title": _title(self.folder),
                "model": str(self.folder),
                "version": __version__,
                "points": len(self.point_ids),
                "observations": int(sum(image.num_points3D for image in self.images)),
                "chunk": CHUNK,
                "middle": self.middle.tolist(),
                "turn": self.turn.ravel().tolist(),
                "side": self.side,
                "depth": self.depth,
                "pairs": "verified" if self.verified else "common points",
                "missing": self.missing,
                "images": images,
                "localize": None if queries is None else str(queries.results.folder),
                "queries": [] if queries is None else queries.summary(self.middle),
            }
        )

    def _points(self) -> Response:
        return binary_response((self.xyz - self.middle).astype("<f4"), self.rgb)

    def _image(self, index: int) -> Response:
        image = self.images[index]
        camera = self.model.cameras[image.camera_id]
        seen, (points, of_point) = self.view_of(index), self.keypoints(index)
        of_seen = of_point[of_point >= 0]
        return json_response(
            {
                "size": seen.size,
                "uv": seen.corners_uv(camera.width, camera.height),
                "camera": camera.model_name,
                "camera_size": [camera.width, camera.height],
                "params": [float(value) for value in camera.params],
                "keypoints": len(points),
                "observations": len(of_seen),
                "error_px": _known_error(self.errors_px[of_seen].mean()) if len(of_seen) else None,
                "pairs": self.pairs_of(index),
            }
        )

    def _keypoints_answer(self, index: int) -> Response:
        points, of_point = self.keypoints(index)
        upright_points = apply_affine(self.view_of(index).from_camera, points).astype("<f4")
        return binary_response(upright_points, of_point.astype("<i4"))

    def _pair(self, first: int, second: int) -> Response | None:
        if max(first, second) >= len(self.images) or first == second:
            return None
        lines = self.match_lines(first, second)
        ends = [
            apply_affine(self.view_of(index).from_camera, from_colmap(points.astype(np.float64)))
            for index, points in ((first, lines.points0), (second, lines.points1))
        ]
        return binary_response(np.column_stack(ends).astype("<f4"), lines.inlier.astype(np.uint8))

    def _query(self, kind: str, form: str, number: int) -> Response | None:
        if self.queries is None or number >= len(self.queries.queries) or (kind == "") == (form == "jpg"):
            return None
        if kind:
            return self.queries.picture(number, kind) if form == "jpg" else None
        return self.queries.about(number) if form == "json" else self.queries.matches(number)

    def _query_pair(self, number: int, index: int) -> Response | None:
        if self.queries is None or number >= len(self.queries.queries) or index >= len(self.images):
            return None
        return self.queries.pair(number, index, self.keypoints(index)[0], self.view_of(index))

    def _tracks(self, chunk: int) -> Response:
        rows = []
        for number in self.point_ids[chunk * CHUNK : (chunk + 1) * CHUNK]:
            point = self.model.points3D[int(number)]
            seen_by = [
                (self.place[one.image_id], self.model.images[one.image_id].points2D[one.point2D_idx].xy)
                for one in point.track.elements
                if one.image_id in self.place
            ]
            track = [[index, *self._upright(index, xy)] for index, xy in sorted(seen_by, key=lambda one: one[0])]
            rows.append({"id": int(number), "error": _known_error(point.error), "track": track})
        return json_response(rows)

    def _upright(self, index: int, xy: Float[np.ndarray, "2"]) -> list[float]:
        (moved,) = apply_affine(self.view_of(index).from_camera, from_colmap(np.asarray(xy, np.float64)[None]))
        return [round(float(value), 3) for value in moved]

    def _thumbnail(self, index: int) -> Response:
        return self.photographs.picture(self.files[self.names[index]], "thumb")

    def _photograph(self, index: int) -> Response:
        return self.photographs.picture(self.files[self.names[index]], "photo")

    # ---- parts of a map ---------------------------------------------------------------------------------------------

    def view_of(self, index: int) -> PhotographView:
        """Geometry of an image's photograph; if there is no photograph, that of its camera."""
        camera = self.model.cameras[self.images[index].camera_id]
        return self.photographs.geometry(self.files.get(self.names[index]), (camera.width, camera.height))

    def keypoints(self, index: int) -> tuple[Float[np.ndarray, "k 2"], Int[np.ndarray, " k"]]:
        """Keypoints of an image in its camera's pixels, and the index of the point that each sees, or -1.

        If the model only has keypoints that see points, the others are read from the database or the features.
        """
        return self._cache.get(("keypoints", index), lambda: self._keypoints(index))

    def _keypoints(self, index: int) -> tuple[Float[np.ndarray, "k 2"], Int[np.ndarray, " k"]]:
        image = self.images[index]
        ids = point_ids(image)
        points = from_colmap(np.array([point.xy for point in image.points2D], dtype=np.float64).reshape(-1, 2))
        of_point = np.where(ids < 0, -1, np.searchsorted(self.point_ids, ids)).astype(np.int64)
        if (ids >= 0).all():
            others = self._all_keypoints(image.name)
            if len(others) > len(points):
                points = np.concatenate([points, others])
                of_point = np.concatenate([of_point, np.full(len(others), -1)])
        return points, of_point

    def _all_keypoints(self, name: str) -> Float[np.ndarray, "n 2"]:
        """All keypoints of an image from the database, else from the features; empty if neither has it."""
        with contextlib.suppress(BadInputError):  # damaged: show those that see points
            if self.database is not None and name in self.database.ids:
                return from_colmap(self.database.keypoints(name).astype(np.float64))
        with contextlib.suppress(BadInputError):
            if self.features is not None:
                with open_features(self.features) as store:
                    return store.keypoints(name).astype(np.float64) if store.has(name) else np.zeros((0, 2))
        return np.zeros((0, 2))

    def pairs_of(self, index: int) -> list[tuple[int, int, int]]:
        """Images matched with an image: index, inliers, matches; most inliers first. Without a database with verified
        pairs: images with common points, and their number for both."""
        if not self.verified:
            return [(other, count, count) for other, count in self._images_with_common_points(index)]
        name = self.names[index]
        assert self.database is not None
        found = [
            (self.by_name[other], inliers, matches)
            for other, (matches, inliers) in self.database.partners.get(name, {}).items()
            if other in self.by_name
        ]
        return sorted(found, key=lambda row: (-row[1], -row[2], row[0]))

    def _images_with_common_points(self, index: int) -> list[tuple[int, int]]:
        """Other images that see points of an image, and the number of common points; most first."""
        is_seen = np.zeros(len(self.point_ids), bool)
        is_seen[self._points_seen[index]] = True
        counts = [int(is_seen[of_it].sum()) for of_it in self._points_seen]
        rows = [(other, count) for other, count in enumerate(counts) if count and other != index]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    @cached_property
    def _points_seen(self) -> list[Int[np.ndarray, " k"]]:
        """Indices of the points that each image sees, without duplicates."""
        found = []
        for image in self.images:
            points = image.points2D
            ids = [points[row].point3D_id for row in image.get_observation_point2D_idxs()]
            found.append(np.unique(np.searchsorted(self.point_ids, np.array(ids, np.int64))))
        return found

    def match_lines(self, first: int, second: int) -> PairLines:
        """Matches of two images in COLMAP pixels. Without a database with verified pairs: their common points."""
        if self.verified:
            assert self.database is not None
            return self.database.lines(Pair(self.names[first], self.names[second]))
        (points0, of0), (points1, of1) = self.keypoints(first), self.keypoints(second)
        _, rows0, rows1 = np.intersect1d(of0, of1, return_indices=True)
        kept = of0[rows0] >= 0
        rows0, rows1 = rows0[kept], rows1[kept]
        return PairLines(to_colmap(points0[rows0]), to_colmap(points1[rows1]), np.ones(len(rows0), bool))


def _known_error(error: float) -> float | None:
    """A point's error, px; None if it was not computed, for which COLMAP stores -1."""
    return float(error) if np.isfinite(error) and error >= 0 else None


def _title(folder: Path) -> str:
    """The scene's name: "scene" for scene/featkit/sparse/0."""
    plain = [part for part in folder.resolve().parts if part not in {"featkit", "sparse"} and not part.isdigit()]
    return plain[-1] if plain else folder.name
