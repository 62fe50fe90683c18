"""`featkit serve` under load on loopback: rate, p50 and p95 of the answers, with broken requests in between.

    python benchmarks/serve_load.py [--scene ../shared/data/posed/castle-P19] [--seconds 60] [--clients 2]

Each fourth photograph of the scene is a query, the others are mapped. Every client posts one photograph after another,
each second time something broken (no image, a photograph cut off, nothing). As it comes, and with --points-only. Writes
benchmarks/results/serve_load.json.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from localizer import CASTLE, SplitScene, mapped, percentiles, split
from machine import write_result

from featkit.core.errors import FeatkitError
from featkit.images.listing import list_images

BROKEN_EVERY = 2
START_S = 300


@dataclass
class Load:
    """What came back. seconds: of answers with a pose or a reason. broken: status codes of broken requests."""

    seconds: list[float] = field(default_factory=list)
    localized: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    broken: Counter[int] = field(default_factory=Counter)


def started(found: SplitScene, log: Path, options: list[str]) -> tuple[subprocess.Popen[bytes], str]:
    """The server and its address, once it is ready."""
    command = [sys.executable, "-m", "featkit", "serve", str(found.map), "--port", "0", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stderr=errors, stdout=subprocess.DEVNULL)
    for _ in range(START_S * 10):
        message = re.search(r"ready: (http://\S+)", log.read_text())
        if message:
            return process, message.group(1)
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")
        time.sleep(0.1)
    process.kill()
    raise RuntimeError(f"the server was not ready within {START_S} s")


def posted(url: str, data: bytes) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data, method="POST"), timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def client(url: str, photographs: list[bytes], number: int, until: float, load: Load, turn: threading.Lock) -> None:
    """Post until the time is over."""
    broken = (b"no image", photographs[0][:5000], b"")
    count = number
    while time.monotonic() < until:
        count += 1
        is_broken = count % BROKEN_EVERY == 0
        data = broken[count // BROKEN_EVERY % 3] if is_broken else photographs[count // BROKEN_EVERY % len(photographs)]
        began = time.monotonic()
        try:
            status, answer = posted(url, data)
        except (OSError, ValueError) as error:
            status, answer = 0, {"error": type(error).__name__}
        with turn:
            if is_broken:
                load.broken[status] += 1
            elif status == 200:
                load.seconds.append(time.monotonic() - began)
                load.localized += answer["localized"]
            else:
                load.failures[f"{status} {answer.get('error')}"] += 1


def run(found: SplitScene, work: Path, seconds: float, clients: int, options: list[str]) -> dict[str, Any]:
    """Start the server, load it, stop it."""
    process, address = started(found, work / "log", options)
    try:
        camera = " ".join(map(str, (found.camera.model, found.camera.width, found.camera.height, *found.camera.params)))
        url = f"{address}/localize?{urllib.parse.urlencode({'intrinsics': camera})}"
        photographs = [(found.queries / name).read_bytes() for name in list_images(found.queries)]
        posted(url, photographs[0])
        load, turn = Load(), threading.Lock()
        began = time.monotonic()
        until = began + seconds
        workers = [
            threading.Thread(target=client, args=(url, photographs, i, until, load, turn)) for i in range(clients)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        took = time.monotonic() - began
        memory = psutil.Process(process.pid).memory_info().rss / 1e6
        with urllib.request.urlopen(f"{address}/healthz", timeout=20) as answer:
            health = json.load(answer)
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    return {
        "seconds": round(took, 1),
        "clients": clients,
        "options": options,
        "answers": len(load.seconds),
        "answers_per_s": round(len(load.seconds) / took, 3),
        **(percentiles(load.seconds) if load.seconds else {}),
        "localized": load.localized,
        "failures": dict(load.failures),
        "broken_requests": {str(status): count for status, count in sorted(load.broken.items())},
        "memory_mb": round(memory),
        "health_after": health["status"],
        "exit_code": code,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, default=CASTLE)
    parser.add_argument("--features", default="rootsift")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="print only")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as work:
            found = split(arguments.scene, Path(work))
            mapped(found, arguments.features)
            rows = []
            for more in ([], ["--points-only"]):
                options = ["--threads", str(arguments.threads), *more]
                rows.append(run(found, Path(work), arguments.seconds, arguments.clients, options))
                print(json.dumps(rows[-1], indent=1), flush=True)
    except (FeatkitError, RuntimeError) as error:
        sys.exit(str(error))
    if not arguments.dry:
        named = {"scene": arguments.scene.name, "features": arguments.features}
        print(write_result("serve_load", {**named, "rows": rows}))


if __name__ == "__main__":
    main()
