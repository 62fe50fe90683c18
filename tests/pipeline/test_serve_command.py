"""`featkit serve` as a process on a mapped scene: poses equal those of `featkit.Localizer`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import featkit
from featkit.localization.localizer import LocalizerConfig
from featkit.localization.stage import query_summary

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")


@contextmanager
def serving(folder: Path, log: Path, *more: str) -> Iterator[str]:
    """Start a server and yield its address; stop it at the end."""
    command = [sys.executable, "-m", "featkit", "serve", folder, "--port", "0", "--device", "cpu", *more]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [str(word) for word in command], stderr=errors, stdout=subprocess.PIPE, text=True, cwd=log.parent
        )
    try:
        message = None
        for _ in range(600):
            message = re.search(r"ready: (http://127\.0\.0\.1:\d+) \(6 images", log.read_text())
            if message or process.poll() is not None:
                break
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        assert message, log.read_text()
        assert "no password" not in log.read_text()
        yield message.group(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def address(mapped_scene: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(mapped_scene.folder, tmp_path_factory.mktemp("serve") / "log") as found:
        yield found


def post(address: str, data: bytes, query: str = "") -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"{address}/localize{query}", data=data, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_poses_equal_those_of_the_localizer(address: str, mapped_scene: Any) -> None:
    check_poses(address, mapped_scene.folder, LocalizerConfig())


def test_points_only(mapped_scene: Any, tmp_path: Path) -> None:
    with serving(mapped_scene.folder, tmp_path / "log", "--points-only") as found:
        check_poses(found, mapped_scene.folder, LocalizerConfig(points_only=True))


def check_poses(address: str, scene: Path, config: LocalizerConfig) -> None:
    """The server's answers equal the results of a localizer with this configuration."""
    queries = sorted((scene / "queries").iterdir())
    with ThreadPoolExecutor(2) as pool:  # two at once
        answers = list(pool.map(lambda path: post(address, path.read_bytes(), f"?name={path.name}"), queries))
    with featkit.Localizer(scene, config, device="cpu") as localizer:
        for path, (status, answer) in zip(queries, answers, strict=True):
            expected = json.loads(json.dumps(query_summary(localizer.localize(path))))
            assert status == 200
            assert answer == expected
            assert answer["localized"]
            assert answer["inliers"] > 20
            assert 0 < answer["centre_std"] < 0.1


def test_an_image_without_texture_gets_a_reason(address: str) -> None:
    grey = cv2.imencode(".png", np.full((300, 400), 128, np.uint8))[1].tobytes()
    status, answer = post(address, grey)
    assert status == 200
    assert (answer["localized"], answer["qvec"], answer["reason"]) == (False, None, "no keypoint found in the image")


def test_bad_input(address: str, mapped_scene: Any) -> None:
    query = next((mapped_scene.folder / "queries").iterdir()).read_bytes()
    for data, more, code in ((b"no image", "", 400), (query[:5000], "", 400), (query, "?intrinsics=PINHOLE%209", 422)):
        status, answer = post(address, data, more)
        assert (status, list(answer)) == (code, ["error"])
    with urllib.request.urlopen(f"{address}/healthz", timeout=20) as answer:
        assert json.load(answer)["status"] == "ok"


def test_a_port_in_use(address: str, mapped_scene: Any, featkit_command: Callable[..., Any]) -> None:
    port = address.rpartition(":")[2]
    ran = featkit_command("serve", mapped_scene.folder, "--port", port, "-q")
    assert ran.code == 2
    assert f"--port {port}" in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_missing_serve_extra(mapped_scene: Any, tmp_path: Path) -> None:
    """One line that says what to install."""
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')\n")
    ran = subprocess.run(
        [sys.executable, "-m", "featkit", "serve", str(mapped_scene.folder)],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.strip() == 'featkit: featkit serve needs fastapi; pip install "featkit[serve]"'


def test_missing_map(tmp_path: Path, featkit_command: Callable[..., Any]) -> None:
    ran = featkit_command("serve", tmp_path, "--port", "0", "-q")
    assert ran.code == 3
    assert "no map here" in ran.err
