"""What every result file says of its origin, and how a command's time and memory are measured."""

from __future__ import annotations

import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).resolve().parent / "results"
LIBRARIES = ("featkit", "torch", "pycolmap", "opencv-python-headless", "numpy", "faiss-cpu")
POLL_S = 0.05


@dataclass(frozen=True)
class Finished:
    """A command that ended well, or was stopped. peak_memory_mb: largest sum of resident sizes over it and its
    children. cpu_seconds: of all of them together; other programs on the machine change it little."""

    stdout: str
    seconds: float
    peak_memory_mb: float
    stopped: bool = False
    cpu_seconds: float = 0.0


def measure(command: list[str], limit_s: float | None = None) -> Finished:
    """Run a command; raises RuntimeError with the end of its stderr when it fails.

    Python may keep the bytecode of modules, as it does for an installed package.

    limit_s: it is killed, and counts as stopped, when it takes longer.
    """
    _adopt_orphans()
    before = _children()
    started, used = time.perf_counter(), _cpu_seconds_of_children()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    peak, done = [0.0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, done), daemon=True)
    watcher.start()
    stopped = False
    try:
        stdout, stderr = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        stopped = True
        process.kill()
        stdout, stderr = process.communicate()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    psutil.wait_procs(_children() - before)
    if process.returncode and not stopped:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}\n{stderr[-2000:]}")
    return Finished(stdout, seconds, round(peak[0], 1), stopped, round(_cpu_seconds_of_children() - used, 2))


PR_SET_CHILD_SUBREAPER = 36  # prctl.h


def _adopt_orphans() -> None:
    """Make this process the parent of processes that outlive their own, such as fork servers, to count their time."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def _cpu_seconds_of_children() -> float:
    """User and system time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _watch(pid: int, peak: list[float], done: threading.Event) -> None:
    while not done.wait(POLL_S):
        total = 0
        try:
            root = psutil.Process(pid)
            for process in (root, *root.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        except psutil.NoSuchProcess:
            return
        peak[0] = max(peak[0], total / 1e6)


def origin() -> dict[str, Any]:
    """Command, versions, machine and date of a result."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *(_portable(word) for word in sys.argv[1:])]),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": platform.platform(terse=True),
        },
        "date": datetime.date.today().isoformat(),
    }


def commit() -> str:
    """The first 12 digits of the checked-out commit."""
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parent, check=False).stdout.strip()


def _portable(word: str) -> str:
    """A word of the command line without the folders of one machine."""
    return Path(word).name if Path(word).is_absolute() else word


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write benchmarks/results/<name>.json, the origin first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**origin(), **result}, indent=1) + "\n", encoding="utf-8")
    return path
