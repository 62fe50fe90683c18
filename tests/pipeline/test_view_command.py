"""`featkit view` as a process: it prints its address, serves the page and ends with a signal; and errors."""

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
from synthetic_view import MadeView, localize_view, make_view

import featkit

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeView:
    """Never written to."""
    return make_view(tmp_path_factory.mktemp("view") / "scene", points=20, frames=2)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_page_until_a_signal(made: MadeView, tmp_path: Path, number: int, code: int) -> None:
    """It ends as every command does, and its port is free again."""
    command = [sys.executable, "-m", "featkit", "view", str(made.scene), "--no-browser"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert process.stderr is not None
        message = process.stderr.readline()
        found = re.search(r"(http://127\.0\.0\.1:(\d+)) \(2 images, 20 points\); Ctrl-C stops", message)
        assert found, message + process.stderr.read()
        with urllib.request.urlopen(f"{found[1]}/scene.json", timeout=60) as answer:
            assert json.loads(answer.read())["points"] == 20
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (code, "", "featkit: stopped; run the same command again to go on\n")
        with socket.create_server(("127.0.0.1", int(found[2]))):
            pass
    finally:
        process.kill()


def test_results_of_localize(featkit_here: Command, tmp_path: Path) -> None:
    """Named on the terminal: of this map how many, of another one a warning."""
    made = make_view(tmp_path / "scene", frames=3)
    results = localize_view(made, output=tmp_path / "out")
    page = tmp_path / "page"
    ran = featkit_here("view", made.scene, "--localize", results, "--queries", made.scene / "queries", "--out", page)
    assert ran.code == 0, ran.err
    assert (page / "query-photo" / "2.jpg").is_file()
    described = json.loads((results / "poses.json").read_text())
    (results / "poses.json").write_text(json.dumps({**described, "map": "another"}))
    ran = featkit_here("view", made.scene, "--localize", results, "--out", page, "--overwrite")
    assert ran.code == 0
    assert f"{results}: 3 queries were localized in another map than this one and are not shown" in ran.err
    assert not (page / "query-photo" / "2.jpg").exists()


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
            ((made.scene, "--localize", tmp_path), 3, "no poses.json here"),
            ((made.scene, "--port", port, "--no-browser"), 2, f"--port {port}: Address already in use"),
            ((made.scene, "--host", "no.such.host.invalid", "--no-browser"), 2, "--host no.such.host.invalid"),
            ((made.scene, "--photograph-px", "3"), 2, "--photograph-px"),
        ):
            ran = featkit_here("view", *words, "-q")
            assert (ran.code, ran.out) == (code, ""), ran.err
            assert message in ran.err
            assert len(ran.err.splitlines()) == 1
