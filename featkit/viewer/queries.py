"""The queries that `featkit localize` located in a map, for the page of `featkit view`.

The residuals that tell inliers are computed again from poses.json and the stores next to it; a match counts as inlier
within the threshold that the pose was estimated with. Only results for the very model that is shown are used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from featkit.core.errors import BadInputError
from featkit.evaluation.pictures import posed_camera
from featkit.geometry.pixels import apply_affine, to_colmap
from featkit.io.artifact import inside
from featkit.io.features import open_features
from featkit.io.lists import read_pairs
from featkit.io.matches import open_matches
from featkit.localization.absolute_pose import partner_matches, squared_residuals
from featkit.localization.stage import StoredResults, read_results
from featkit.mapping.cameras import to_camera, to_rigid
from featkit.mapping.model import Model, point_ids, poses_digest
from featkit.mapping.scene import numbered_models
from featkit.viewer.photographs import Photographs, PhotographView, Response, binary_response, json_response

LEVELS = 2  # above a model that are searched for results, as in scene/featkit/sparse/0
NAME = "localize"  # how folders of results are called without --out: localize, localize-1
POSES = "poses.json"
"""Every folder with this file, made by featkit, is a folder of results."""


@dataclass(frozen=True)
class FoundResults:
    """The results to show, if any, and sentences about those that are not shown."""

    shown: StoredResults | None
    notes: tuple[str, ...] = ()


def find_results(model: Path, given: Path | None) -> FoundResults:
    """The newest results of `featkit localize` for this very model, in `given` or in a folder near the model.

    Damaged results and those for another map are named if they were given or have the name that `featkit localize`
    chooses: other folders near a model may belong to other maps. Raises BadInputError if `given` has none.
    """
    if given is not None and not (given / POSES).is_file():
        raise BadInputError(f"{given}: no {POSES} here; give the folder that `featkit localize` wrote (its --out)")
    digest, siblings = poses_digest(model), {poses_digest(path) for path in numbered_models(model).values()}
    current: list[StoredResults] = []
    notes = []
    for folder in [given, *_inner(given)] if given is not None else _near(model):
        is_named = given is not None or any(name.startswith(NAME) for name in (folder.name, folder.parent.name))
        try:
            results = read_results(folder)
        except BadInputError as error:
            notes += [f"Queries are not shown: {error}"] if is_named else []
            continue
        if results.map_digest == digest:
            current.append(results)
        elif results.map_digest not in siblings and is_named:
            notes.append(
                f"{folder}: {len(results.queries)} queries were localized in another map than this one and are not"
                " shown; localize again."
            )
    newest_first = sorted(current, key=lambda one: -(one.folder / POSES).stat().st_mtime)
    for other in newest_first[1:]:
        notes.append(f"{other.folder}: {len(other.queries)} more queries; show them with --localize.")
    return FoundResults(newest_first[0] if newest_first else None, tuple(notes))


def _near(model: Path) -> list[Path]:
    """Folders of results in the folder of a model and in those above it, and in folders of these."""
    bases = [model, *model.resolve().parents[:LEVELS]]
    found = {folder: None for base in bases for one in _folders(base) for folder in [one, *_inner(one)]}
    return [folder for folder in found if (folder / POSES).is_file()]


def _inner(folder: Path) -> list[Path]:
    """Results for the map's other models, model-1 and so on, in a folder of results."""
    return [one for one in _folders(folder) if one.name.startswith("model-") and (one / POSES).is_file()]


def _folders(base: Path) -> list[Path]:
    try:
        with os.scandir(base) as entries:  # which needs no system call for each of a million photographs
            return sorted(base / entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []


class QueryMatches(NamedTuple):
    """Matches of a query with keypoints of map images that see points.

    keypoints: all of the query, in the pixels of its file. seen: keypoint and id of the point. of_map: keypoint of the
    map image. partner: place of that image among the retrieved ones.
    """

    keypoints: Float[np.ndarray, "n 2"]
    seen: Int[np.ndarray, "m 2"]
    of_map: Int[np.ndarray, " m"]
    partner: Int[np.ndarray, " m"]


NOTHING = QueryMatches(np.zeros((0, 2)), np.zeros((0, 2), np.int64), *(np.zeros(0, np.int64) for _ in range(2)))


class ViewedQueries:
    """Queries of one folder of results, which answers the page's requests about them.

    model, names, indices: the map, its shown images, and the index of each point id. map_features: the store that the
    map was made from, if it was found. folder: of the queries' photographs; None: as recorded, else queries/ near the
    results.
    """

    def __init__(
        self,
        results: StoredResults,
        model: Model,
        names: Sequence[str],
        indices: Int[np.ndarray, " n"],
        map_features: Path | None,
        photographs: Photographs,
        folder: Path | None = None,
    ):
        self.results, self.model, self.names, self.indices = results, model, names, indices
        self.queries = results.queries
        self._cameras = [None if query.camera is None else to_camera(query.camera) for query in self.queries]
        self.photographs = photographs
        self._map_features = map_features
        self._images = {image.name: image for image in model.images.values() if image.has_pose}
        self._by_name = {name: index for index, name in enumerate(names)}
        self.files = self._find_files(folder)

    def _find_files(self, given: Path | None) -> dict[str, Path]:
        near = [base / "queries" for base in self.results.folder.resolve().parents[: LEVELS + 1]]
        folders = [given] if given is not None else [self.results.images] if self.results.images else near
        for folder in folders:
            found = {query.name: inside(folder, query.name) for query in self.queries}
            if found := {name: path for name, path in found.items() if path.is_file()}:
                return found
        return {}

    @cached_property
    def partners(self) -> dict[str, list[str]]:
        """Images of the map that each query was matched with, best retrieved first; empty if this is not known."""
        found: dict[str, list[str]] = {}
        try:
            for pair in read_pairs(self.results.folder / "pairs.txt", directed=True):
                if pair.name1 in self._by_name:
                    found.setdefault(pair.name0, []).append(pair.name1)
        except BadInputError:
            return {}
        return found

    @property
    def missing(self) -> list[str]:
        """Sentences that describe what was not found."""
        lost = [query for query in self.queries if query.name not in self.files and query.numbers.get("keypoints")]
        if not lost:
            return []
        which = "None" if len(lost) == len(self.queries) else f"{len(self.queries) - len(lost)}"
        return [f"{which} of the {len(self.queries)} query photographs were found; give their folder with --queries."]

    # ---- answers ----------------------------------------------------------------------------------------------------

    def paths(self, number: int) -> list[str]:
        """All paths that the page may request about a query."""
        of_map = [f"query-pair/{number}-{index}.bin" for index, _, _ in self._retrieved(number)[0]]
        pictures = [f"query-thumb/{number}.jpg", f"query-photo/{number}.jpg"]
        has_picture = self.queries[number].name in self.files
        return [f"query/{number}.json", f"query/{number}.bin", *(pictures if has_picture else []), *of_map]

    def summary(self, middle: Float[np.ndarray, "3"]) -> list[dict[str, Any]]:
        """The queries for scene.json; localized ones with their cameras, relative to `middle`."""
        return [self._summary(number, middle) for number in range(len(self.queries))]

    def _summary(self, number: int, middle: Float[np.ndarray, "3"]) -> dict[str, Any]:
        query, camera = self.queries[number], self._cameras[number]
        state = "not localized" if query.pose is None else "uncertain" if query.uncertain else "localized"
        about = {
            "name": query.name,
            "state": state,
            "why": query.reason or query.uncertain,
            "inliers": query.numbers.get("inliers", 0),
            "matches": query.numbers.get("matches_3d", 0),
            "photo": query.name in self.files,
        }
        if query.pose is None or camera is None:
            return about
        shown = posed_camera(query.name, query.pose, camera, "query")
        return about | {
            "rotation": shown.rotation.ravel().tolist(),
            "centre": (shown.centre - middle).tolist(),
            "width": shown.width,
            "height": shown.height,
            "focal": shown.focal_px,
        }

    def about(self, number: int) -> Response:
        """A query's numbers, its photograph's geometry, and the retrieved images with inliers and matches."""
        query, seen = self.queries[number], self._geometry(number)
        retrieved, problem = self._retrieved(number)
        camera = self._cameras[number]
        return json_response(
            {
                "size": seen.size,
                "uv": None if camera is None else seen.corners_uv(camera.width, camera.height),
                "camera": None if camera is None else camera.model_name,
                "camera_size": None if camera is None else [camera.width, camera.height],
                "params": [] if camera is None else [float(value) for value in camera.params],
                "limit_px": self.results.max_error_px,
                "pairs": retrieved,
                "problem": problem,
                **query.numbers,
            }
        )

    def matches(self, number: int) -> Response:
        """Distinct matches of a query with points: x y float32 (k, 2), index of the point int32, inlier uint8."""
        try:
            read = self._read(number)
        except BadInputError:  # described by `about`
            read = NOTHING
        _, first = np.unique(read.seen, axis=0, return_index=True)
        points, ids = read.keypoints[read.seen[first, 0]], read.seen[first, 1]
        shown = apply_affine(self._geometry(number).from_camera, points).astype("<f4")
        return binary_response(
            shown, np.searchsorted(self.indices, ids).astype("<i4"), self._inliers(number, read)[first].astype(np.uint8)
        )

    def pair(
        self, number: int, index: int, of_image: Float[np.ndarray, "k 2"], view: PhotographView
    ) -> Response | None:
        """Matches of a query with points that a map image sees: x0 y0 x1 y1 float32 (m, 4), inliers uint8 (m,).

        of_image: the image's keypoints in its camera's pixels. view: geometry of its photograph. None: was not matched.
        Raises BadInputError.
        """
        partners = self.partners.get(self.queries[number].name, [])
        if self.names[index] not in partners:
            return None
        read = self._read(number)
        rows = np.flatnonzero(read.partner == partners.index(self.names[index]))
        ends = [
            apply_affine(self._geometry(number).from_camera, read.keypoints[read.seen[rows, 0]]),
            apply_affine(view.from_camera, of_image[read.of_map[rows]]),
        ]
        inlier = self._inliers(number, read)[rows]
        return binary_response(np.column_stack(ends).astype("<f4"), inlier.astype(np.uint8))

    def picture(self, number: int, kind: str) -> Response | None:
        """A query's photograph as JPEG; None if it is not there. kind: "thumb" or "photo"."""
        path = self.files.get(self.queries[number].name)
        return None if path is None else self.photographs.picture(path, kind)

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _geometry(self, number: int) -> PhotographView:
        query = self.queries[number]
        size = (4, 3) if query.camera is None else (query.camera.width, query.camera.height)
        return self.photographs.geometry(self.files.get(query.name), size)

    def _retrieved(self, number: int) -> tuple[list[tuple[int, int, int]], str]:
        """Retrieved images: index, inliers, matches with points; most inliers first. Why these are unknown, or ""."""
        indices = [self._by_name[name] for name in self.partners.get(self.queries[number].name, [])]
        try:
            read = self._read(number)
        except BadInputError as error:
            return [(index, 0, 0) for index in indices], f"Its matches cannot be shown: {error}"
        inlier = self._inliers(number, read)
        counts = [
            (index, int(inlier[read.partner == place].sum()), int((read.partner == place).sum()))
            for place, index in enumerate(indices)
        ]
        return sorted(counts, key=lambda count: (-count[1], -count[2])), ""

    def _read(self, number: int) -> QueryMatches:
        """The matches of a query. Raises BadInputError."""
        if not self.partners.get(self.queries[number].name):
            return NOTHING
        return self.photographs.cache.get(("query", number), lambda: self._read_stores(number))

    def _read_stores(self, number: int) -> QueryMatches:
        if self._map_features is None:
            raise BadInputError("no features.h5 was found near the map")
        name, folder = self.queries[number].name, self.results.folder
        partners = self.partners[name]
        with (
            open_features(folder / "features.h5") as query_store,
            open_features(self._map_features) as map_store,
            open_matches(folder / "matches.h5", query_store, map_store) as matches,
        ):
            for partner in partners:
                if map_store.count(partner) != self._images[partner].num_points2D():
                    raise BadInputError(f"{self._map_features}: has other keypoints than the map")
            rows = partner_matches(name, partners, matches, lambda partner: point_ids(self._images[partner]))
            keypoints = query_store.keypoints(name).astype(np.float64)
        return QueryMatches(
            keypoints,
            np.concatenate([row.seen for row in rows]),
            np.concatenate([row.of_map for row in rows]),
            np.repeat(np.arange(len(rows)), [len(row.seen) for row in rows]),
        )

    def _inliers(self, number: int, read: QueryMatches) -> Bool[np.ndarray, " m"]:
        """Which matches have a residual below the threshold; none without a pose."""
        pose, camera, limit = self.queries[number].pose, self._cameras[number], self.results.max_error_px
        ids = read.seen[:, 1]
        if pose is None or camera is None or limit is None or not len(ids):
            return np.zeros(len(ids), bool)
        xyz = np.array([self.model.points3D[int(point)].xyz for point in ids])
        points = to_colmap(read.keypoints[read.seen[:, 0]])
        return squared_residuals(to_rigid(pose), camera, points, xyz) <= limit**2
