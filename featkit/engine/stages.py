"""The stages as users call them, local or distributed: every engine writes the same output as a local run.

An engine determines which items the output lacks, plans shards for them, runs the shards and adds links to them. The
same command resumes an interrupted run: finished shards of the same plan are not run again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from featkit.core.config import digest
from featkit.core.errors import EmptyResultError, FeatkitError
from featkit.core.registry import Method
from featkit.core.types import Pair
from featkit.engine.plan import (
    LOCAL,
    DescribeTask,
    EngineConfig,
    ExtractTask,
    MatchTask,
    Plan,
    VerifyTask,
    join,
    make_plan,
    read_vectors,
    remove_plan,
    write_codebook,
)
from featkit.engine.ray import run_on_ray
from featkit.features import stage as extraction
from featkit.features.base import Extractor
from featkit.features.stage import ExtractConfig, with_stage_config
from featkit.images.listing import file_digest, list_images
from featkit.io.artifact import locked
from featkit.io.features import FeatureStore, open_features
from featkit.mapping.verify import Verifier, VerifyConfig, unverified
from featkit.matching import stage as matching
from featkit.matching.stage import Matcher
from featkit.retrieval.retrieve import Describe
from featkit.retrieval.vlad import Codebook, VladConfig

LOGGER = logging.getLogger(__name__)


class Planned(FeatkitError):
    """The work was planned, as requested, and not done."""

    exit_code = 0

    def __init__(self, plan: Plan):
        self.plan = plan
        count, last = len(plan.sizes), len(plan.sizes) - 1
        super().__init__(
            f"{plan.folder}: {count} shards planned; `featkit run {plan.folder} --shard I` runs one"
            f" (I = 0 to {last}, as a job array), the same command again joins them"
        )


def extract(
    method: Method[Extractor],
    images: Path,
    output: Path,
    names: list[str] | None = None,
    *,
    overwrite: bool = False,
    engine: EngineConfig = LOCAL,
) -> Path:
    """Features of all images in a folder: `features.stage.run` with an engine.

    Raises what it raises, Planned, and the engine's own errors.
    """
    if engine.name == "local":
        return extraction.run(method, images, output, names, overwrite)
    method = method if method.stage else with_stage_config(method, ExtractConfig())
    usable = extraction.usable_names(method, list_images(images) if names is None else names)
    with locked(output):
        todo = extraction.images_to_extract(method, images, output, usable, overwrite)
        config = method.config.model_copy(update={"workers": max(1, int(engine.cpus))})
        task = ExtractTask(config=config, images=images, device=method.device)
        inputs = digest(method.weights_sha256, *(file_digest(images / name) for name in todo))
        _run_and_join(engine, task, todo, len(usable), output, inputs)
    with open_features(output) as store:
        if not any(store.has(name) for name in usable):
            raise EmptyResultError(f"{images}: none of its {len(usable)} images could be used")
    return output


def match(
    method: Method[Matcher],
    features: Path,
    pairs: Path,
    output: Path,
    *,
    overwrite: bool = False,
    engine: EngineConfig = LOCAL,
) -> Path:
    """Matches of the pairs in a file: `matching.stage.run` with an engine. Raises as `extract` does."""
    if engine.name == "local":
        return matching.run(method, features, pairs, output, overwrite=overwrite)
    with locked(output):
        todo, total = matching.waiting(method, features, pairs, output, overwrite)
        settings = method.own.model_dump(mode="json")
        task = MatchTask(matcher=method.name, settings=settings, features=features, device=method.device)
        with open_features(features) as store:
            used = sorted({name for pair in todo for name in (pair.name0, pair.name1)})
            inputs = digest(*(f"{name} {store.digest(name)}" for name in used))
        _run_and_join(engine, task, _name_pairs(todo), total, output, inputs)
    return output


def describer(engine: EngineConfig, output: Path) -> Describe | None:
    """The function with which `pairing.stage` computes image vectors, for pairs written to `output`; None: locally."""
    return None if engine.name == "local" else partial(_describe_in_shards, engine, output)


def _describe_in_shards(
    engine: EngineConfig,
    output: Path,
    store: FeatureStore,
    names: Sequence[str],
    codebook: Codebook,
    config: VladConfig,
    device: str,
) -> Iterator[tuple[str, Any]]:
    codebook_digest = digest(codebook.basis.tobytes().hex(), codebook.centroids.tobytes().hex())
    codebook_path = output.with_name(f"{output.name}.shards") / f"codebook-{codebook_digest}.npz"
    write_codebook(codebook, codebook_path)
    task = DescribeTask(features=store.path, codebook=codebook_path, config=config, device=device)
    inputs = digest(*(f"{name} {store.digest(name)}" for name in names))
    plan = _run_plan(engine, task, names, output, inputs)
    yield from read_vectors([plan.shard(number) for number in range(len(plan.sizes))])
    remove_plan(plan)
    with contextlib.suppress(OSError):  # the folder may contain another command's plan
        codebook_path.unlink()
        codebook_path.parent.rmdir()


def verifier(engine: EngineConfig) -> Verifier | None:
    """The function with which `build_database` verifies pairs; None: locally."""
    return None if engine.name == "local" else partial(_verify_in_shards, engine)


def _verify_in_shards(
    engine: EngineConfig, config: VerifyConfig, database: Path, matches: Path, pairs: list[Pair]
) -> None:
    task = VerifyTask(config=config, database=database, matches=matches)
    todo, inputs = unverified(database, matches, pairs)
    _run_and_join(engine, task, _name_pairs(todo), len(pairs), database, inputs)


def _name_pairs(pairs: Sequence[Pair]) -> list[list[str]]:
    return [[pair.name0, pair.name1] for pair in pairs]


def _run_and_join(engine: EngineConfig, task: Any, todo: Sequence[Any], total: int, output: Path, inputs: str) -> None:
    if len(todo) < total:
        LOGGER.info("%s: %d of %d %s are done already", task.stage, total - len(todo), total, task.unit)
    if not todo:
        return
    join(_run_plan(engine, task, todo, output, inputs))


def _run_plan(engine: EngineConfig, task: Any, todo: Sequence[Any], output: Path, inputs: str) -> Plan:
    """The plan of a task with all of its shards finished. inputs: see `make_plan`. Raises Planned."""
    plan = make_plan(task, todo, output, engine.shards, inputs)
    if engine.name == "plan" and plan.waiting():
        raise Planned(plan)
    if engine.name == "ray":
        run_on_ray(plan, engine)
    return plan


__all__ = ["LOCAL", "Planned", "describer", "extract", "match", "verifier"]
