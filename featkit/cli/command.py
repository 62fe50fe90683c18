"""Generate a command from a featkit.api function: its parameters, the engine's options, and those of all commands."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from featkit.api.options import FieldOption, Option
from featkit.cli.app import Outcome, RunOptions, typer_option, typer_parameter, verb
from featkit.core.config import make
from featkit.engine.plan import EngineConfig
from featkit.engine.stages import Planned

SHARED = ("device", "seed")  # options of every command, passed in RunOptions
KEYWORD = inspect.Parameter.KEYWORD_ONLY


def command(function: Callable[..., Any]) -> Callable[[Callable[[Any], Outcome]], Callable[..., None]]:
    """Make a Typer command from a featkit.api function; the decorated function turns its result into an Outcome."""
    declared = function.declared  # type: ignore[attr-defined]
    own = [one for one in declared.own if one.name not in (*SHARED, "engine", "settings")]
    first = [one for one in own if one.kind is not KEYWORD or one.default is one.empty]
    last = [one for one in own if one not in first]
    generated = [
        inspect.Parameter(name, KEYWORD, default=one.default, annotation=typer_option(one))
        for name, one in declared.options.items()
        if name not in SHARED
    ]
    settings = [typer_parameter(one) for one in declared.own if one.name == "settings"]
    shared = {one.name for one in declared.own if one.name in SHARED} | (declared.options.keys() & set(SHARED))

    def decorated(show: Callable[[Any], Outcome]) -> Callable[..., None]:
        def run_function(*, run: RunOptions, **values: Any) -> Outcome:
            values |= {name: getattr(run, name) for name in shared}
            unsaid = declared.options.keys() - run.given  # a default does not go over the value of a saved run
            return show(function(**{name: value for name, value in values.items() if name not in unsaid}))

        parameters = [*map(typer_parameter, first), *generated, *settings, *map(typer_parameter, last)]
        if any(one.name == "engine" for one in declared.own):
            parameters.append(inspect.Parameter("engine", KEYWORD, annotation=EngineConfig))
        parameters.append(inspect.Parameter("run", KEYWORD, annotation=RunOptions))
        run_function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run_function.__name__, run_function.__doc__ = show.__name__, show.__doc__
        run_function.__module__ = show.__module__
        return verb(with_engine(run_function))

    return decorated


# ----------------------------------------------------------------------------------------------------------------------
# The engine's options, which choose where a stage runs: shared by all commands that an engine can run.


ENGINE_PANEL = "Engine"


OPTIONS = {
    name: FieldOption.of(name, option, EngineConfig)
    for name, option in {
        "engine": Option("name", panel=ENGINE_PANEL),
        "ray_address": Option("address", panel=ENGINE_PANEL, metavar="HOST:PORT"),
        "shards": Option("shards", panel=ENGINE_PANEL),
        "task_cpus": Option("cpus", panel=ENGINE_PANEL),
        "task_gpus": Option("gpus", panel=ENGINE_PANEL),
    }.items()
}


def with_engine(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Replace a command's parameter `engine` (an EngineConfig) by options.

    If the stage was only planned, the command succeeds and reports the plan's location.
    """
    parameters = inspect.signature(function, eval_str=False).parameters
    if "engine" not in parameters:
        return function

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Outcome:
        values: dict[str, Any] = {}
        for name, option in OPTIONS.items():
            values |= option.placed(kwargs.pop(name, option.default))
        try:
            return function(*args, **kwargs, engine=make(EngineConfig, values, where="engine"))
        except Planned as planned:
            return _planned_outcome(planned)

    own = _parameters_without_engine(function)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=typer_option(one), default=one.default)
        for name, one in OPTIONS.items()
    ]
    wrapped.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    del wrapped.__wrapped__
    return wrapped


def _parameters_without_engine(function: Callable[..., Outcome]) -> list[inspect.Parameter]:
    """The function's parameters except `engine`, whose annotation may not be importable yet."""
    if hasattr(function, "__signature__"):
        return [one for name, one in inspect.signature(function).parameters.items() if name != "engine"]
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
