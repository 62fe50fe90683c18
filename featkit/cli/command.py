"""A command made of the function that does its work: the same parameters, then what is common to all commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from featkit.cli.app import Outcome, RunOptions, option_of, parameter_of, verb
from featkit.cli.engine import with_engine
from featkit.engine.plan import EngineConfig

SHARED = ("device", "seed")  # of every command, by RunOptions
KEYWORD = inspect.Parameter.KEYWORD_ONLY


def command(function: Callable[..., Any]) -> Callable[[Callable[[Any], Outcome]], Callable[..., None]]:
    """Make a Typer command of a function of featkit.api; what is decorated says what its result looks like."""
    taken = function.taken  # type: ignore[attr-defined]
    own = [one for one in taken.own if one.name not in (*SHARED, "engine", "settings")]
    first = [one for one in own if one.kind is not KEYWORD or one.default is one.empty]
    last = [one for one in own if one not in first]
    generated = [
        inspect.Parameter(name, KEYWORD, default=one.default, annotation=option_of(one))
        for name, one in taken.options.items()
        if name not in SHARED
    ]
    settings = [parameter_of(one) for one in taken.own if one.name == "settings"]
    shared = {one.name for one in taken.own if one.name in SHARED} | (taken.options.keys() & set(SHARED))

    def decorated(show: Callable[[Any], Outcome]) -> Callable[..., None]:
        def ran(*, run: RunOptions, **values: Any) -> Outcome:
            return show(function(**values, **{name: getattr(run, name) for name in shared}))

        parameters = [*map(parameter_of, first), *generated, *settings, *map(parameter_of, last)]
        if any(one.name == "engine" for one in taken.own):
            parameters.append(inspect.Parameter("engine", KEYWORD, annotation=EngineConfig))
        parameters.append(inspect.Parameter("run", KEYWORD, annotation=RunOptions))
        ran.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        ran.__name__, ran.__doc__, ran.__module__ = show.__name__, show.__doc__, show.__module__
        return verb(with_engine(ran))

    return decorated
