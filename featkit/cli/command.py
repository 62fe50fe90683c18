"""Generate a command from a featkit.api function: the same parameters, then the options common to all commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from featkit.cli.app import Outcome, RunOptions, typer_option, typer_parameter, verb
from featkit.cli.engine import with_engine
from featkit.engine.plan import EngineConfig

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
