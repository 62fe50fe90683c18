"""`featkit view` as a process: it prints its address, serves the page and stops with Ctrl-C; and errors."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_view import MadeView, make_view

import featkit

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeView:
    """Never written to."""
    return make_view(tmp_path_factory.mktemp("view") / "scene", points=20, frames=2)


def test_a_page_until_ctrl_c(made: MadeView, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "featkit", "view", str(made.scene), "--no-browser"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert process.stderr is not None
        message = process.stderr.readline()
        found = re.search(r"(http://127\.0\.0\.1:\d+) \(2 images, 20 points\); Ctrl-C stops", message)
        assert found, message + process.stderr.read()
        with urllib.request.urlopen(f"{found[1]}/scene.json", timeout=60) as answer:
            assert json.loads(answer.read())["points"] == 20
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, f"{found[1]}: stopped\n", "")
    finally:
        process.kill()


def test_as_a_folder_and_as_a_function(made: MadeView, featkit_here: Command, tmp_path: Path) -> None:
    ran = featkit_here("view", made.model, "--out", tmp_path / "page", "--json")
    assert (ran.code, ran.json()) == (0, {"page": str(tmp_path / "page" / "index.html")}), ran.err
    again = featkit_here("view", made.model, "--out", tmp_path / "page", "-q")
    assert again.code == 3
    assert "--overwrite replaces it" in again.err
    assert featkit.view(made.scene, out=tmp_path / "other") == str(tmp_path / "other" / "index.html")


def test_errors_are_one_line(made: MadeView, featkit_here: Command, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for words, code, message in (
            ((tmp_path,), 3, "no COLMAP model here"),
            ((tmp_path / "none",), 3, "no such folder"),
            ((made.scene, "--model", "7"), 3, "no model 7 here"),
            ((made.scene, "--database", made.model / "images.bin"), 3, "not a COLMAP database"),
            ((made.scene, "--port", port, "--no-browser"), 2, f"--port {port}: Address already in use"),
            ((made.scene, "--host", "no.such.host.invalid", "--no-browser"), 2, "--host no.such.host.invalid"),
            ((made.scene, "--photograph-px", "3"), 2, "--photograph-px"),
        ):
            ran = featkit_here("view", *words, "-q")
            assert (ran.code, ran.out) == (code, ""), ran.err
            assert message in ran.err
            assert len(ran.err.splitlines()) == 1
