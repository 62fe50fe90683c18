"""`featkit serve` under load and under attack on loopback: answers, `/healthz` meanwhile, and memory.

    python benchmarks/serve_load.py [--scene ../shared/data/posed/castle-P19] [--seconds 60] [--clients 2]

Each fourth photograph of the scene is a query, the others are mapped. Every client posts one photograph after another,
each second time something broken (no image, a photograph cut off, nothing). As it comes, and with --points-only.

Attacks, each on a fresh server with --timeout 20: 40 clients at once with 30 MB each; two photographs of noise just
below the 50-megapixel limit; 150 connections that never ask, or never end their headers, beside one honest client.
`/healthz` is asked five times a second throughout. Memory is the highest sum over the server's processes (PSS), sampled
as often. Writes benchmarks/results/serve_load.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from localizer import CASTLE, SplitScene, mapped, percentiles, split
from machine import write_result

from featkit.core.errors import FeatkitError
from featkit.images.listing import list_images

BROKEN_EVERY = 2
START_S = 300
ASK_EVERY_S = 0.2
TIMEOUT_S = 20
FLOOD, FLOOD_BYTES = 40, 30_000_000
NOISE_SIDE = 7000  # px: 49 megapixels
SILENT = 150  # of the 200 connections that the server takes
HONEST = 5  # rounds of all photographs beside them


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
    """Status and answer; the answer is read also when the server closes before it has all of the data."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=120)
    with closing(connection):
        connection.putrequest("POST", f"{parts.path}?{parts.query}")
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(data)
        answer = connection.getresponse()
        return answer.status, json.load(answer)


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
        except (OSError, ValueError, http.client.HTTPException) as error:
            status, answer = 0, {"error": type(error).__name__}
        with turn:
            if is_broken:
                load.broken[status] += 1
            elif status == 200:
                load.seconds.append(time.monotonic() - began)
                load.localized += answer["localized"]
            else:
                load.failures[f"{status} {answer.get('error')}"] += 1


@dataclass
class Watched:
    """What was seen of a server while it worked."""

    health_s: list[float] = field(default_factory=list)
    memory_mb: float = 0.0

    def as_row(self) -> dict[str, Any]:
        return {
            "healthz_asked": len(self.health_s),
            "healthz_p95_s": round(float(np.percentile(self.health_s, 95)), 4),
            "healthz_worst_s": round(max(self.health_s), 4),
            "peak_memory_mb": round(self.memory_mb),
        }


def pss_mb(process: psutil.Process) -> float:
    """Of a process and its children, shared pages counted once."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


@contextmanager
def watched(server: int, address: str) -> Iterator[Watched]:
    """Asks for its health and its memory, in two threads, until the end of the block."""
    found, over = Watched(), threading.Event()

    def ask() -> None:
        while not over.wait(ASK_EVERY_S):
            began = time.monotonic()
            with urllib.request.urlopen(f"{address}/healthz", timeout=120) as answer:
                json.load(answer)
            found.health_s.append(time.monotonic() - began)

    def weigh() -> None:
        while not over.wait(ASK_EVERY_S):
            found.memory_mb = max(found.memory_mb, pss_mb(psutil.Process(server)))

    threads = [threading.Thread(target=ask), threading.Thread(target=weigh)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextmanager
def serving(found: SplitScene, log: Path, options: list[str], ended: dict[str, Any]) -> Iterator[tuple[int, str, str]]:
    """A warm server: process id, address, and where queries go. ended: takes its state and its exit code at the end."""
    process, address = started(found, log, options)
    try:
        camera = " ".join(map(str, (found.camera.model, found.camera.width, found.camera.height, *found.camera.params)))
        url = f"{address}/localize?{urllib.parse.urlencode({'intrinsics': camera})}"
        posted(url, photographs(found)[0])
        yield process.pid, address, url
        with urllib.request.urlopen(f"{address}/healthz", timeout=20) as answer:
            ended["health_after"] = json.load(answer)["status"]
    finally:
        process.send_signal(signal.SIGINT)
        ended["exit_code"] = process.wait(60)


def photographs(found: SplitScene) -> list[bytes]:
    return [(found.queries / name).read_bytes() for name in list_images(found.queries)]


def in_threads(calls: list[Any]) -> float:
    """Run them at once; the seconds until the last has ended."""
    began = time.monotonic()
    workers = [threading.Thread(target=call) for call in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.monotonic() - began


def run(found: SplitScene, work: Path, seconds: float, clients: int, options: list[str]) -> dict[str, Any]:
    """Start the server, load it, stop it."""
    ended: dict[str, Any] = {}
    with serving(found, work / "log", options, ended) as (server, address, url):
        load, turn, images = Load(), threading.Lock(), photographs(found)
        until = time.monotonic() + seconds
        with watched(server, address) as seen:
            took = in_threads([partial(client, url, images, i, until, load, turn) for i in range(clients)])
    return {
        "seconds": round(took, 1),
        "clients": clients,
        "options": options,
        "answers": len(load.seconds),
        "answers_per_s": round(len(load.seconds) / took, 3),
        **(percentiles(load.seconds) if load.seconds else {}),
        "localized": load.localized,
        "failures": dict(load.failures),
        "broken_requests": by_status(load.broken),
        **seen.as_row(),
        **ended,
    }


def by_status(counted: Counter[int]) -> dict[str, int]:
    return {str(status): count for status, count in sorted(counted.items())}


def attacked(found: SplitScene, work: Path, attack: str, options: list[str]) -> dict[str, Any]:
    """One attack on a fresh server: what each request got, and when."""
    ended: dict[str, Any] = {}
    answered: list[tuple[int, float]] = []

    def post(url: str, data: bytes) -> None:
        began = time.monotonic()
        try:
            status = posted(url, data)[0]
        except (OSError, ValueError, http.client.HTTPException):  # closed while the body was sent
            status = 0
        answered.append((status, time.monotonic() - began))

    with serving(found, work / "log", [*options, "--timeout", str(TIMEOUT_S)], ended) as (server, address, url):
        with watched(server, address) as seen:
            if attack == "large bodies":
                padded = photographs(found)[0].ljust(FLOOD_BYTES, b"\0")
                in_threads([partial(post, url, padded)] * FLOOD)
            elif attack == "noise":
                in_threads([partial(post, f"{address}/localize", noise())] * 2)
            else:
                with silent_connections(address):
                    for image in photographs(found) * HONEST:
                        post(url, image)
        before = time.monotonic()
        status, _ = posted(url, photographs(found)[0])
    took = [seconds for _, seconds in answered]
    return {
        "attack": attack,
        "options": options,
        "requests": len(answered),
        "statuses": by_status(Counter(status for status, _ in answered)),
        **percentiles(took),
        "worst_s": round(max(took), 3),
        **seen.as_row(),
        "next_photograph": {"status": status, "seconds": round(time.monotonic() - before, 2)},
        **ended,
    }


def noise() -> bytes:
    """A photograph of noise, on which detectors find more than anywhere."""
    pixels = np.random.default_rng(0).integers(0, 256, (NOISE_SIDE, NOISE_SIDE), np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 50])[1].tobytes()


@contextmanager
def silent_connections(address: str) -> Iterator[None]:
    """Half of them say nothing, half begin a request and never end its headers."""
    host, port = urllib.parse.urlparse(address).hostname, urllib.parse.urlparse(address).port
    held = [socket.create_connection((str(host), int(port or 0))) for _ in range(SILENT)]
    try:
        for one in held[::2]:
            one.sendall(b"POST /localize HTTP/1.1\r\nhost: x\r\nx-")
        yield
    finally:
        for one in held:
            one.close()


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
            attacks = []
            for attack in ("large bodies", "noise", "silent connections"):
                attacks.append(attacked(found, Path(work), attack, ["--threads", str(arguments.threads)]))
                print(json.dumps(attacks[-1], indent=1), flush=True)
    except (FeatkitError, RuntimeError) as error:
        sys.exit(str(error))
    if not arguments.dry:
        named = {"scene": arguments.scene.name, "features": arguments.features}
        print(write_result("serve_load", {**named, "rows": rows, "attacks": attacks}))


if __name__ == "__main__":
    main()
