"""What README.md, CONTRIBUTING.md and docs/ say is what the files and the commands say."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import typer

from featkit.cli.main import app
from featkit.core.config import config_names

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "weights" / "README.md", *(ROOT / "docs").glob("*.md")]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(PAGES)}
README = TEXTS["README.md"]
SHELL = r"\$|^(for|timeout) |;|\.\.\."  # a line for a shell: variables, loops, ellipses


def blocks(text: str, language: str = "") -> list[str]:
    return [
        code for name, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if name == language
    ]


def commands(name: str) -> list[str]:
    """Commands of a page that can be read without a shell; reproduce.md has a test of its own with all of them."""
    lines = [re.sub(r"\s+#.*", "", line).strip() for text in blocks(TEXTS[name]) for line in text.splitlines()]
    return [line for line in lines if line.startswith("featkit ") and not re.search(SHELL, line) and line[-1] != "\\"]


def script(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str((ROOT / path).parent))  # as for the script: it has files beside it
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_result_files(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = script("benchmarks/tables.py", monkeypatch)
    for path, text in tables.made().items():
        assert text == path.read_text(encoding="utf-8"), f"{path}: run python benchmarks/tables.py"
    shown = {name for text in TEXTS.values() for name in re.findall(r"<!-- ([\w-]+) -->", text)}
    assert shown == set(tables.TABLES)


def test_the_command_line_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    made = script("docs/make_cli.py", monkeypatch).page()
    assert TEXTS["docs/cli.md"] == made, "run python docs/make_cli.py"


@pytest.mark.parametrize(("name", "line"), [(name, line) for name in TEXTS for line in commands(name)])
def test_commands_parse(name: str, line: str) -> None:
    _, verb, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[verb].load()  # type: ignore[attr-defined]
    while hasattr(command, "commands"):
        verb, *arguments = arguments
        command = command.commands[verb]
    context = command.make_context(verb, list(arguments), resilient_parsing=False)
    assert context.command.name


def test_there_are_commands_to_check() -> None:
    assert len(commands("README.md")) >= 7
    assert len(commands("docs/quickstart.md")) >= 7
    assert sum(len(commands(name)) for name in TEXTS) >= 40


@pytest.mark.parametrize(("name", "code"), [(name, code) for name in TEXTS for code in blocks(TEXTS[name], "python")])
def test_python_imports_what_there_is(name: str, code: str) -> None:
    """The examples are Python, and what they import of featkit is there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("featkit"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, target) for name, text in TEXTS.items() for target in re.findall(r"\]\(([^):]+)\)", text)],
)
def test_links_lead_somewhere(name: str, target: str) -> None:
    file, _, anchor = target.partition("#")
    page = (ROOT / name).parent / file if file else ROOT / name
    assert page.exists()
    if anchor:
        heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


def test_the_readme_is_short_and_names_every_page() -> None:
    assert README.count("\n") <= 150
    for name in TEXTS:
        assert name in ("README.md", "weights/README.md") or f"({name})" in README, name


def test_features_page_has_every_name_and_licence() -> None:
    page = TEXTS["docs/features.md"]
    assert [name for name in config_names("extractor") if f"`{name}`" not in page] == []
