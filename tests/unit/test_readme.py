"""What the README says is what the files and the commands say."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

from featkit.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line.partition("#")[0].strip() for language, text in blocks if not language for line in text.splitlines()]
    return [line for line in lines if line.startswith("featkit ")]


def test_tables_are_those_of_the_result_files(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # as for the script: it has a file beside it
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for page in tables.pages():
        assert tables.filled(page.read_text(encoding="utf-8")) == page.read_text(encoding="utf-8"), page
    assert "| **featkit** |" in README


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str) -> None:
    _, verb, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[verb].load()  # type: ignore[attr-defined]
    while hasattr(command, "commands"):
        verb, *arguments = arguments
        command = command.commands[verb]
    context = command.make_context(verb, list(arguments), resilient_parsing=False)
    assert context.params


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 16


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
