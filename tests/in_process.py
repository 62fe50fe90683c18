"""featkit's commands run within the test's own process, and what they say."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from featkit.cli.main import app


def run(*arguments: object) -> Result:
    """`featkit ARGUMENTS`."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def results(*arguments: object) -> dict[str, Any]:
    """What a command that ends well prints with --json."""
    ran = run(*arguments, "--json", "--quiet")
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def refused(ran: Result, code: int, *words: str) -> None:
    """The command ended with this exit code and one line of error that has these words."""
    assert ran.exit_code == code, ran.output
    assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr
    for word in words:
        assert word in ran.stderr
