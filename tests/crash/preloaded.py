"""`featkit` commands that start at once, so that many can be killed: forked from a process with all imports done.

The forking process runs nothing itself: no thread and no lock of another command is copied.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FORKING = """
import importlib, json, os, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
from featkit.cli.main import main
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(order["folder"])
        for number, path in enumerate(("/dev/null", "/dev/null", order["errors"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666), number)
        sys.argv = ["featkit", *order["arguments"]]
        try:
            main()
        except SystemExit as end:
            os._exit(end.code or 0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
MODULES = (
    "featkit.features.stage", "featkit.features.sift", "featkit.matching.mutual", "featkit.pairing.by_retrieval",
    "featkit.mapping.stage", "featkit.localization.stage", "featkit.report.maps",
    "featkit.evaluation.hpatches", "featkit.training.patch", "featkit.core.config", "faiss",
)  # fmt: skip


class Preloaded:
    """Runs commands one after the other. Close it."""

    def __init__(self, scratch: Path):
        self._errors = scratch / "stderr.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKING, *MODULES],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self._line() == "ready"

    def run(self, arguments: list[object], folder: Path, kill_after_s: float | None = None) -> int:
        """The exit code of a command that runs in `folder`; -9 when SIGKILL came before its end."""
        assert self._process.stdin is not None
        order = {"folder": str(folder), "errors": str(self._errors), "arguments": [str(word) for word in arguments]}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        child = int(self._line())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with contextlib.suppress(ProcessLookupError):  # it may be done
                os.kill(child, signal.SIGKILL)
        return int(self._line())

    @property
    def errors(self) -> str:
        """What the last command said on stderr."""
        return self._errors.read_text()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
