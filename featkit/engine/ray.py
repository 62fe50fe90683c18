"""Shards as Ray tasks. A task whose node is lost is retried on another one; finished shards are not run again.

The machines of the cluster need the same version of featkit and the same files under the same paths.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featkit.core import log
from featkit.core.errors import BadInputError, FeatkitError, UsageError, WorkerDiedError
from featkit.core.log import progress
from featkit.engine.plan import EngineConfig, Plan, read_plan, run_shard

LOGGER = logging.getLogger(__name__)
WAIT_S = 1.0  # interval at which the cluster is checked while no task finishes
HEAD_GONE_S = 15.0  # time without an answer after which the head node counts as lost (Ray ends this process at 60 s)


def run_on_ray(plan: Plan, engine: EngineConfig) -> None:
    """Run the unfinished shards of a plan; an error in one ends the run, and finished shards are kept.

    Raises UsageError without Ray or for resources that no machine has, BadInputError for a cluster that does not answer
    or has another version, WorkerDiedError for a shard lost more often than `retries` or a lost head node, and the
    stage's errors.
    """
    ray = _import_ray()
    waiting = plan.waiting()
    if len(waiting) < len(plan.sizes):
        LOGGER.info("%d of %d shards are done already", len(plan.sizes) - len(waiting), len(plan.sizes))
    if not waiting:
        return
    with _connect(ray, engine):
        _check_resources(ray, engine)
        task = ray.remote(_run_shard_in_worker).options(
            num_cpus=engine.cpus, num_gpus=engine.gpus, max_retries=engine.retries, scheduling_strategy="SPREAD"
        )
        pending = {task.remote(str(plan.folder), number): number for number in waiting}
        total = sum(plan.sizes[number] for number in waiting)
        try:
            with progress(plan.task.stage, total, plan.task.unit) as advance:
                for number in _wait_for_shards(ray, pending, plan):
                    advance(plan.sizes[number])
        finally:
            for unfinished in pending:
                with contextlib.suppress(Exception):
                    ray.cancel(unfinished)


def _run_shard_in_worker(folder: str, number: int) -> None:
    """Run one shard in a worker of the cluster. Errors name the machine."""
    log.setup(-1)
    try:
        run_shard(read_plan(Path(folder)), number)
    except FeatkitError as error:
        raise type(error)(f"{error} (on {socket.gethostname()}, shard {number})") from None


def _wait_for_shards(ray: Any, pending: dict[Any, int], plan: Plan) -> Iterator[int]:
    answered = time.monotonic()
    while pending:
        ready, _ = ray.wait(list(pending), timeout=WAIT_S)
        for reference in ready:
            number = pending.pop(reference)
            _raise_worker_error(ray, reference, number, plan)
            yield number
        if ready or _head_answers(ray):
            answered = time.monotonic()
        elif time.monotonic() - answered > HEAD_GONE_S:
            raise WorkerDiedError(
                f"the head node of the Ray cluster no longer answers; {len(plan.waiting())} of {len(plan.sizes)} shards"
                " are unfinished: start the cluster and run the same command again"
            )


def _raise_worker_error(ray: Any, reference: Any, number: int, plan: Plan) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FeatkitError):
            raise cause from None
        raise WorkerDiedError(
            f"shard {number}: {type(cause).__name__}: {_first_line(cause)}; for details run `featkit run {plan.folder}"
            f" --shard {number} --debug`"
        ) from error
    except ray.exceptions.RayError as error:
        raise WorkerDiedError(
            f"shard {number}: its worker or node was lost, also in all retries ({type(error).__name__}), probably out"
            " of memory; run the same command again, with more --task-cpus or more --shards"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else "no message"


def _head_answers(ray: Any) -> bool:
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=WAIT_S):
            return True
    except OSError:
        return False


@contextmanager
def _connect(ray: Any, engine: EngineConfig) -> Iterator[None]:
    """Connect this process to the cluster; an existing connection is used and kept."""
    if ray.is_initialized():
        yield
        return
    where = engine.address or "a cluster on this machine"
    try:
        ray.init(address=engine.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise BadInputError(
            f"{where}: no Ray cluster answers ({_first_line(error)}); `ray start --head` starts one"
        ) from None
    except (RuntimeError, ValueError, OSError) as error:
        raise BadInputError(f"{where}: cannot connect ({' '.join(str(error).split())})") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_resources(ray: Any, engine: EngineConfig) -> None:
    """Raise UsageError for resources that no machine has, for which Ray would wait forever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for resource, requested, option in (("CPU", engine.cpus, "--task-cpus"), ("GPU", engine.gpus, "--task-gpus")):
        largest = max((machine.get(resource, 0.0) for machine in machines), default=0.0)
        if requested > largest:
            raise UsageError(
                f"{option} {requested:g}: the largest of {len(machines)} machines in the cluster has"
                f" {largest:g} {resource}s"
            )


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError('--engine ray needs Ray: pip install "featkit[ray]"') from None
    return ray
