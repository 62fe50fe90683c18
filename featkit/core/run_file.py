"""Run file: the complete configuration of a command and its other arguments, to run it again.

    # featkit run file: `featkit reconstruct scene/ --config run.yaml` runs it again
    featkit_version: 0.1.0
    command: reconstruct
    arguments: {truth: ../truth/poses.txt}
    config: {...}

Paths are relative to the file, so that it can be moved together with its scene. A hand-written yaml of configuration
fields is a run file too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from featkit import __version__
from featkit.core.config import Config, read_yaml
from featkit.core.errors import BadInputError

LOGGER = logging.getLogger(__name__)
VERSION = "featkit_version"
PARTS = ("command", "arguments", "config")
RUN_FILE = b"# featkit run file"
"""First bytes of a run file, by which featkit recognises its own."""


@dataclass(frozen=True)
class SavedRun:
    """values: the configuration's values. arguments: paths of the command's other arguments, by name."""

    values: dict[str, Any]
    arguments: dict[str, Path]


def run_text(path: Path, command: str, config: Config, arguments: Mapping[str, Path | None]) -> str:
    """Content of the run file `path`: everything that decides the run."""
    content = {
        VERSION: __version__,
        "command": command,
        "arguments": {
            name: Path(os.path.relpath(argument.resolve(), path.resolve().parent)).as_posix()
            for name, argument in arguments.items()
            if argument is not None
        },
        "config": config.model_dump(mode="json"),
    }
    head = f"{RUN_FILE.decode()}: `featkit {command} scene/ --config {path.name}` runs it again\n"
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def read_run(path: Path, command: str) -> SavedRun:
    """Read a run file of a command. Raises BadInputError if it is another command's, or not a run file."""
    content = read_yaml(path)
    if "config" not in content or "command" not in content:
        return SavedRun(content, {})
    if content["command"] != command:
        raise BadInputError(f"{path}: is a run of `featkit {content['command']}`, not of `featkit {command}`")
    if unknown := sorted(content.keys() - {VERSION, *PARTS}):
        raise BadInputError(
            f"{path}: {unknown[0]!r} is no part of a saved run, which are {', '.join(PARTS)}; remove it"
        )
    values, arguments = content["config"], content.get("arguments") or {}
    if not isinstance(values, dict) or not isinstance(arguments, dict):
        raise BadInputError(f"{path}: its `config` and `arguments` are mappings of names to values; write it again")
    for name, given in arguments.items():
        if not isinstance(given, str) or not given or "\0" in given:
            raise BadInputError(f"{path}: {name} is a path under `arguments`, not {str(given)[:40]!r}; write it again")
    if content.get(VERSION, __version__) != __version__:
        LOGGER.warning("%s: written by featkit %s, run by %s", path, content[VERSION], __version__)
    return SavedRun(values, {str(name): path.resolve().parent / str(argument) for name, argument in arguments.items()})
