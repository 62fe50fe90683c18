"""Run featkit's commands in the test's own process, and check their output."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from featkit.cli.main import app


def run(*arguments: object) -> Result:
    """`featkit ARGUMENTS`."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def results(*arguments: object) -> dict[str, Any]:
    """The json output of a successful command."""
    ran = run(*arguments, "--json", "--quiet")
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def refused(ran: Result, code: int, *words: str) -> None:
    """Check that the command failed with this exit code and a one-line error containing these words."""
    assert ran.exit_code == code, ran.output
    assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr
    for word in words:
        assert word in ran.stderr
