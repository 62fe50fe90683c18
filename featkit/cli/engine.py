"""Where a stage runs: the same options of every verb that an engine can take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer

from featkit.cli.app import Outcome, given
from featkit.core.config import make
from featkit.engine.plan import EngineConfig
from featkit.engine.stages import Planned

ENGINE_PANEL = "Engine"


class EngineName(str, Enum):
    """Engines of the command line; "plan" has a verb of its own."""

    local = "local"
    ray = "ray"
    plan = "plan"


OPTIONS: dict[str, tuple[Any, Any]] = {
    "engine": (
        Annotated[
            EngineName,
            typer.Option(help="local, or ray (many machines); plan: see featkit plan.", rich_help_panel=ENGINE_PANEL),
        ],
        EngineName.local,
    ),
    "ray_address": (
        Annotated[
            str | None,
            typer.Option(
                metavar="HOST:PORT",
                help='"auto", or of the cluster.',
                show_default="this machine",
                rich_help_panel=ENGINE_PANEL,
            ),
        ],
        None,
    ),
    "shards": (
        Annotated[int, typer.Option(help="Parts of the work; 0: by their size.", min=0, rich_help_panel=ENGINE_PANEL)],
        0,
    ),
    "task_cpus": (
        Annotated[float, typer.Option(help="Cores of each part.", min=0.01, rich_help_panel=ENGINE_PANEL)],
        1.0,
    ),
    "task_gpus": (
        Annotated[
            float, typer.Option(help="GPUs of each part; 0.5: two share one.", min=0, rich_help_panel=ENGINE_PANEL)
        ],
        0.0,
    ),
}


def with_engine(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Replace the parameter `engine` (an EngineConfig) of a verb by the options that make one.

    What is only planned is no error: the verb then ends with where the plan lies.
    """
    parameters = inspect.signature(function, eval_str=False).parameters
    if "engine" not in parameters:
        return function

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Outcome:
        chosen = {name: kwargs.pop(name, default) for name, (_, default) in OPTIONS.items()}
        values = given(
            name=EngineName(chosen["engine"]).value,
            address=chosen["ray_address"],
            shards=chosen["shards"],
            cpus=chosen["task_cpus"],
            gpus=chosen["task_gpus"],
        )
        try:
            return function(*args, **kwargs, engine=make(EngineConfig, values, where="engine"))
        except Planned as planned:
            return _planned_outcome(planned)

    own = _evaluated(function)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in OPTIONS.items()
    ]
    wrapped.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    del wrapped.__wrapped__
    return wrapped


def _evaluated(function: Callable[..., Outcome]) -> list[inspect.Parameter]:
    """The function's parameters without `engine`, whose annotation may not be importable yet."""
    plain = dict(function.__annotations__)
    engine = function.__annotations__.pop("engine")
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    finally:
        function.__annotations__.clear()
        function.__annotations__.update(plain)
    assert engine
    return [parameter for name, parameter in parameters.items() if name != "engine"]


def _planned_outcome(planned: Planned) -> Outcome:
    plan = planned.plan
    return Outcome({"plan": str(plan.folder), "shards": len(plan.sizes), "items": sum(plan.sizes)}, [str(planned)])
