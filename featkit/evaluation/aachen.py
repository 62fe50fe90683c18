"""Aachen Day-Night: extraction, matching and localization of the database images and queries, and the results.

Every method runs through `pipelines/aachen.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from featkit.core.config import Config, Later, Seed, digest, load_pipeline, merged_values
from featkit.core.content import Cell, Headline, Link, Section, Table
from featkit.core.errors import BadInputError, UsageError
from featkit.core.registry import Method
from featkit.core.types import Pose
from featkit.data.aachen import AachenFiles, PairLists, find_aachen, published_lists
from featkit.evaluation.benchmark import Ranked, Result, SettingBenchmark, Work
from featkit.evaluation.metrics import THRESHOLDS, LocalizationScore, score_localization
from featkit.evaluation.pictures import seconds_table
from featkit.evaluation.published import published
from featkit.features.base import Extractor
from featkit.images.listing import file_digest
from featkit.io.artifact import artifact
from featkit.io.lists import read_poses, write_pairs
from featkit.localization.registration import RegistrationConfig
from featkit.localization.stage import LocalizeConfig, by_file_name, file_name
from featkit.mapping.covisibility import CovisibleConfig, Tracks, covisible_pairs
from featkit.mapping.reference import Reference, read_light_reference, read_light_tracks, read_nvm, read_nvm_reference
from featkit.mapping.stage import MapConfig
from featkit.retrieval.vlad import VladConfig

LOGGER = logging.getLogger(__name__)
NAMES = [f"{metres:g} m, {degrees:g} deg" for metres, degrees in THRESHOLDS]
UPLOAD = "The queries' true poses are not public: upload the submission to https://www.visuallocalization.net."
NIGHT_QUERIES = {"1.1": 191, "1.0": 98}
UNLIKE = "Published rows: queries of the night of v1.1."


class Sides(Config):
    """Overrides of an extractor's configuration, for database images and for queries."""

    database: dict[str, Any] = Field(default_factory=dict)
    """Overrides for the database images."""
    query: dict[str, Any] = Field(default_factory=dict)
    """Of the queries."""


class AachenConfig(Config):
    """Everything that decides the poses, apart from the data and the features."""

    extractors: dict[str, Sides] = Field(default_factory=dict)
    """Overrides by extractor (sift, patches, scfeat). Other extractors keep their configuration."""
    matched_by: str = "mutual"
    """Matcher, by its name in configs/. The challenge uses "mutual-nn", without a ratio test."""
    matching: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the matcher's configuration."""
    covisible: CovisibleConfig = CovisibleConfig()
    """How database images are paired when no list is given."""
    retrieval: VladConfig = VladConfig()
    """How database images are retrieved for queries when no list is given."""
    map: MapConfig = MapConfig()
    """Verification against the known poses, and triangulation. Cameras are not refined."""
    localize: LocalizeConfig = LocalizeConfig(num_retrieved=50)
    """Pose estimation, and the number of images retrieved per query when no list is given (hloc: 50)."""
    poses_by: Later[Literal["pnp", "registration"]] = "pnp"
    """pnp: all matches of a query with points of the map at once (hloc); registration: by COLMAP's mapper, from matches
    verified pair by pair (the challenge's own pipeline, which SCFeat and PoSFeat were measured with)."""
    registration: Later[RegistrationConfig] = RegistrationConfig()
    """Of the latter."""
    seed: Seed = 0
    """Random seed of the retrieval clustering."""


@dataclass(frozen=True)
class BothSides:
    """Features of one name, configured for database images and for queries."""

    name: str
    database: Method[Extractor]
    query: Method[Extractor]

    @property
    def fingerprint(self) -> str:
        return digest(self.database.fingerprint, self.query.fingerprint)

    def described(self) -> dict[str, Any]:
        """Both configurations, as json values."""
        return {"name": self.name, "database": self.database.described(), "query": self.query.described()}


@dataclass(frozen=True)
class AachenData:
    """The dataset and the lists of pairs to match."""

    files: AachenFiles
    lists: PairLists


@dataclass(kw_only=True)
class AachenBenchmark(SettingBenchmark[AachenData]):
    """Settings by name: `configs/aachen*.yaml`. version: "1.1" or "1.0". queries: "night" or "day-night".

    db_pairs, query_pairs: lists that replace the published ones. retrieval: files of global descriptors (hloc's
    layout) used to pair the queries. truth: poses.txt of the queries. skip_broken: skip unreadable database images.
    """

    name = "aachen"
    Config = AachenConfig
    setting = "aachen"

    version: str = "1.1"
    queries: str = "night"
    db_pairs: Path | None = None
    query_pairs: Path | None = None
    retrieval: Sequence[Path] | None = None
    truth: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retrieval and self.query_pairs:
            raise UsageError("--retrieval makes the queries' pairs; it does not go with --query-pairs")

    @staticmethod
    def seeded(seed: int) -> dict[str, Any]:
        verified = {"verify": {"seed": seed}, "seed": seed}
        return {"map": verified, "localize": {"pose": {"seed": seed}}, "registration": verified, "seed": seed}

    @property
    def place(self) -> str:
        """Folder of results."""
        return f"{self.version}-{self.queries}"

    def find(self, roots: Sequence[Path]) -> AachenData:
        files = find_aachen(roots[0], self.version, self.queries)
        lists = published_lists(files, self.queries, self.db_pairs, self.query_pairs)
        return AachenData(files, replace(lists, queries=None) if self.retrieval else lists)

    def method(
        self, name: str, label: str | None = None, changes: dict[str, Any] | None = None, **reading: Any
    ) -> BothSides:
        """Features by name, under this setting. changes: further overrides. reading: fields of `ExtractConfig`.

        Raises UsageError for an unknown name or field.
        """
        differences_by_side = self.differences(name) or Sides()
        database, query = (
            super(AachenBenchmark, self).method(
                name, label, merged_values(overrides, changes or {}), **reading, skip_broken=skip_broken
            )
            for overrides, skip_broken in (
                (differences_by_side.database, self.skip_broken),
                (differences_by_side.query, True),
            )
        )
        return BothSides(label or name, database, query)

    def run(self, data: AachenData, methods: Sequence[BothSides], work: Work) -> Result:
        pipeline = load_pipeline("aachen")
        runs = [
            pipeline.run(
                self,
                data.files,
                self.queries,
                method,
                work.folder,
                lists=data.lists,
                retrieval=self.retrieval or (),
                truth=self.truth,
                overwrite=work.overwrite,
            )
            for method in methods
        ]
        measured = {run_output.name: run_output.metrics for run_output in runs}
        links = {run_output.name: f"{run_output.output.name}/{run_output.report.name}" for run_output in runs}
        table = method_table(measured, links)
        comparison = comparison_table(measured, data.files.version, has_all_night_queries(measured, data.files.version))
        times = [seconds_table(metrics) for metrics in measured.values()]
        return Result(
            f"Aachen Day-Night v{data.files.version}, {self.queries}",
            subtitle="Localized by featkit",
            numbers={
                "version": data.files.version,
                "queries": self.queries,
                "setting": self.setting,
                "rows": [
                    {"name": run_output.name, "submission": str(run_output.submission), **run_output.metrics}
                    for run_output in runs
                ],
                "published": _published_rows(),
            },
            tables=[table, comparison],
            ranking=_ranked(measured),
            headlines=[
                Headline(
                    f"{name}, {condition}", f"{counts['localized']} / {counts['queries']}", hint="queries localized"
                )
                for name, metrics in measured.items()
                for condition, counts in metrics["conditions"].items()
            ],
            sections=[
                Section("Result", items=[table]),
                Section("As published", items=[comparison]),
                Section(
                    "Time",
                    items=[
                        replace(run_output, title=f"{run_output.title}, {name}")
                        for run_output, name in zip(times, measured, strict=True)
                    ],
                ),
            ],
            lines=[f"{run_output.submission}: to upload; {run_output.report}" for run_output in runs],
        )


def read_aachen_reference(files: AachenFiles) -> Reference:
    """Poses and cameras of the reference model, from the COLMAP model if present. Raises BadInputError."""
    if files.model is not None:
        return read_light_reference(files.model)
    assert files.nvm is not None
    assert files.intrinsics is not None
    return read_nvm_reference(files.nvm, files.intrinsics)


def read_aachen_tracks(files: AachenFiles) -> Tracks:
    """Which images of the reference model see each of its points. Raises BadInputError."""
    if files.model is not None:
        return read_light_tracks(files.model)
    assert files.nvm is not None
    tracks = read_nvm(files.nvm).tracks
    assert tracks is not None
    return tracks


def covisible_list(files: AachenFiles, config: CovisibleConfig, output: Path) -> Path:
    """Write the image pairs of the reference model that share the most points, unless the list is up to date."""
    sources = sorted(files.model.glob("*.bin")) if files.model is not None else [files.nvm]
    inputs = digest(*(f"{p.name} {file_digest(p)}" for p in sources if p is not None))
    if artifact(output, config, inputs).up_to_date:
        LOGGER.info("covisible pairs: done already")
        return output
    pairs = covisible_pairs(read_aachen_tracks(files), config.num_matched)
    if not pairs:
        raise BadInputError(f"{sources[0]}: the reference model has no points that two images see; give --db-pairs")
    return write_pairs(output, pairs, config, {"inputs": inputs, "method": "shared points of the reference model"})


def read_truth(path: Path, names: list[str]) -> dict[str, Pose]:
    """True poses by query name; the file may list full names or only file names. Raises BadInputError."""
    poses = read_poses(path)
    full_names = by_file_name(names)
    return {full_names[file_name(name)]: pose for name, pose in poses.items() if name in names or name in full_names}


def score_conditions(
    poses: Mapping[str, Pose], truth: Mapping[str, Pose], conditions: Mapping[str, list[str]]
) -> dict[str, LocalizationScore]:
    """Recall by condition ("day", "night"); queries without a true pose are left out."""
    return {
        condition: score_localization(poses, truth, names)
        for condition, names in conditions.items()
        if any(name in truth for name in names)
    }


# ----------------------------------------------------------------------------------------------------------------------
# Tables: day and night separately, and night results next to published ones.


def condition_table(metrics: dict[str, Any]) -> Table:
    """Day and night results of one method."""
    columns = ["queries", "of", "localized", *NAMES, "median m", "median deg"]
    rows = [
        [condition, *_count_cells(counts), *_recall_cells(counts)]
        for condition, counts in metrics["conditions"].items()
    ]
    return Table("Day and night", columns, rows, "" if "recall" in metrics else UPLOAD)


def method_table(measured: Mapping[str, dict[str, Any]], links: Mapping[str, str]) -> Table:
    """A row per method and condition. measured: metrics by method; links: URL of each method's page."""
    columns = ["method", "queries", "of", "localized", *NAMES, "median m", "median deg", "map points", "track"]
    rows: list[list[Cell]] = []
    for name, metrics in measured.items():
        label = Link(name, links[name]) if name in links else name
        for condition, counts in metrics["conditions"].items():
            points = [metrics["map"]["points"], metrics["map"]["track_length"]]
            rows.append([label, condition, *_count_cells(counts), *_recall_cells(counts), *points])
    has_truth = any("recall" in metrics for metrics in measured.values())
    return Table("Localized queries", columns, rows, "Recall in % of the queries." if has_truth else UPLOAD)


def comparison_table(measured: Mapping[str, dict[str, Any]], version: str, complete: bool) -> Table:
    """Our night rows above the published ones for v1.1. whole: whether the number of queries is the benchmark's."""
    rows: list[list[Cell]] = []
    for name, metrics in measured.items():
        night = metrics["conditions"]["night"]
        rows.append([name, "here", f"{night['localized']} / {night['queries']}", *_recall_cells(night)[: len(NAMES)]])
    ours = set(range(len(rows)))
    for row in _published_rows():
        rows.append([row["method"], row["from"], None, *(row[name] for name in NAMES)])
    note = UNLIKE if version == "1.1" and complete else f"{UNLIKE} These are others: they do not compare."
    return Table("Night, compared with published results", ["method", "from", "localized", *NAMES], rows, note, ours)


def has_all_night_queries(measured: Mapping[str, dict[str, Any]], version: str) -> bool:
    """Whether there are as many night queries as in the benchmark."""
    counts = {metrics["conditions"]["night"]["queries"] for metrics in measured.values()}
    return counts == {NIGHT_QUERIES[version]}


def _published_rows() -> list[dict[str, Any]]:
    """All published rows, as json values; recall in %."""
    return [
        {
            "method": row.name,
            "from": f"{table.paper.partition(' (')[0]}, {table.where.partition(';')[0]}",
            **dict(zip(NAMES, row.values, strict=True)),
        }
        for table in published("aachen").tables
        for row in table.rows
    ]


def _ranked(measured: Mapping[str, dict[str, Any]]) -> list[Ranked]:
    """Per condition: recall at the strictest threshold if the truth is known, otherwise the share localized."""
    ranking = []
    for name, metrics in measured.items():
        for condition, counts in metrics["conditions"].items():
            if "recall" in counts:
                value, measure = 100 * counts["recall"][NAMES[0]], f"Aachen {condition} {NAMES[0]}, %"
            else:
                value, measure = 100 * counts["localized"] / counts["queries"], f"Aachen {condition} localized, %"
            ranking.append(Ranked(name, measure, value, "high"))
    return ranking


def _count_cells(counts: dict[str, Any]) -> list[Cell]:
    return [counts["queries"], counts["localized"]]


def _recall_cells(counts: dict[str, Any]) -> list[Cell]:
    """Recall in %, and medians in metres and degrees; empty without ground truth."""
    if "recall" not in counts:
        return [None] * (len(NAMES) + 2)
    shares: list[Cell] = [round(100 * share, 1) for share in counts["recall"].values()]
    return [*shares, counts["median_m"], counts["median_deg"]]
