"""What reaches the terminal when something is wrong: one line, nothing that steers it, json where it is asked for."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from featkit.core import log
from featkit.core.errors import LONGEST_LINE, BadInputError, EmptyResultError, blaming, one_line, printable

STOPPED_WHILE_IMPORTING = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Finder())
sys.argv = ["featkit", "info", "x"]
runpy.run_module("featkit", run_name="__main__", alter_sys=True)
"""


def featkit(*arguments: str, shell: str = "") -> subprocess.CompletedProcess[str]:
    """The command; shell: redirections."""
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "featkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_what_a_terminal_obeys_is_escaped() -> None:
    assert one_line("a\nb\x1b[31m\x9b\u2028\u202e\udcffä 日本 \\n") == (r"a\nb\x1b[31m\x9b\u2028\u202e\udcffä 日本 \n")
    assert printable("two\nlines\x07", keep="\n") == "two\nlines\\x07"


def test_a_long_message_keeps_both_ends() -> None:
    short = one_line(f"{'x' * 5_000_000}.jpg: not an image; remove it")
    assert len(short) < LONGEST_LINE + 100
    assert short.startswith("xxx")
    assert "4,998,0" in short
    assert short.endswith("remove it")
    assert one_line("x" * LONGEST_LINE) == "x" * LONGEST_LINE


def test_log_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup()
    logging.getLogger("featkit.test").warning("%s: passed over", "a\nfeatkit: done\x1b[2J.jpg")
    assert capsys.readouterr().err == "a\\nfeatkit: done\\x1b[2J.jpg: passed over\n"


def test_a_name_reaches_the_terminal_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "a\nfeatkit: all is well\x1b[2J"
    ran = featkit("reconstruct", str(folder), "--json")
    assert ran.returncode == 3
    assert ran.stderr.count("\n") == 1
    assert "\x1b" not in ran.stderr + ran.stdout
    assert r"a\nfeatkit: all is well\x1b[2J" in json.loads(ran.stdout)["error"].replace("\\\\", "\\")


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "--no-such-option", "--json"),
        ("no-such-verb", "--json"),
        ("match", "--json"),
        ("reconstruct", "x", "--max-keypoints", "\x1b[2J\nmany", "--json"),
    ],
)
def test_usage_errors_as_json(arguments: tuple[str, ...]) -> None:
    ran = featkit(*arguments)
    assert ran.returncode == 2
    told = json.loads(ran.stdout)
    assert told["exit_code"] == 2
    assert told["error"]
    assert "\x1b[2J" not in ran.stdout + ran.stderr
    assert ran.stderr.startswith("featkit: ")
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.endswith(" --help\n")


def test_usage_errors_without_json_print_nothing_on_stdout() -> None:
    ran = featkit("info", "--no-such-option")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "No such option" in ran.stderr


@pytest.mark.slow
def test_closed_streams(tmp_path: Path) -> None:
    """What is opened next would get the number 2, and what libraries write there would be in it."""
    (tmp_path / "pairs.txt").write_text("a.jpg b.jpg\n")
    ran = featkit("info", str(tmp_path / "pairs.txt"), "--json", shell="2>&-")
    assert (ran.returncode, json.loads(ran.stdout)["pairs"]) == (0, 1)
    assert featkit("info", str(tmp_path / "none.txt"), shell="2>&-").returncode == 3
    assert featkit("info", str(tmp_path / "none.txt"), shell="2>/dev/full").returncode == 3
    ran = featkit("info", str(tmp_path / "pairs.txt"), shell=">&- 2>&- <&-")
    assert ran.returncode == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_the_command_is_loaded(name: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", STOPPED_WHILE_IMPORTING.format(name=name)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 128 + getattr(signal, name)
    assert ran.stderr == "featkit: stopped; run the same command again to go on\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RecursionError("maximum recursion depth exceeded"), "maximum recursion depth"),
        (OverflowError("int too large"), "int too large"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
        (AssertionError(), "AssertionError"),
        (MemoryError(), "more memory than there is"),
        (FileNotFoundError(2, "No such file", "x.bin"), "x.bin: no such file"),
        (PermissionError(13, "Permission denied"), "cannot be read (Permission denied)"),
    ],
)
def test_whatever_a_file_causes_is_its_fault(error: Exception, words: str) -> None:
    with pytest.raises(BadInputError, match=r"^x\.bin: ") as caught, blaming(Path("x.bin"), "a list", "make it again"):
        raise error
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_featkits_own_errors_pass() -> None:
    with pytest.raises(EmptyResultError, match=r"^nothing$"), blaming(Path("x"), "a list", "make it again"):
        raise EmptyResultError("nothing")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("weights", "export", "x", "--out", "y", "--max-mb", "-1"), "'--max-mb': -1.0 is not at least 0"),
        (("serve", "x", "--port", "65536"), "'--port': 65536 is not at least 0 and at most 65535"),
    ],
)
def test_a_number_out_of_its_range(arguments: tuple[str, ...], said: str) -> None:
    ran = featkit(*arguments)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1
