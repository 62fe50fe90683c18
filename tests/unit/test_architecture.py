"""The house's rules that a machine can check: imports run one way, help is light, files are short, names resolve."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featkit.registry import KINDS, configured, resolve

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "featkit"
# Rooms of one row may import each other and everything above them.
ROWS = [
    {
        "__init__",
        "types",
        "config",
        "errors",
        "geometry",
        "log",
        "resources",
        "registry",
        "device",
        "stopping",
        "launched",
    },
    {"store", "images"},
    {"models", "losses", "weights"},
    {"features", "matching", "data", "retrieval"},
    {"pairing", "training", "mapping", "localization", "evaluation", "engine"},
    {"report", "integrations", "server"},
    {"cli", "__main__"},
]
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}
MAX_LINES = 500
SOURCES = sorted(PACKAGE.rglob("*.py"))
IDS = [path.relative_to(PACKAGE).as_posix() for path in SOURCES]
every_source = pytest.mark.parametrize("path", SOURCES, ids=IDS)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules a file imports, inside functions too, `if TYPE_CHECKING` left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield node.module
            if node.module == "featkit":
                yield from (f"featkit.{alias.name}" for alias in node.names if not alias.name.startswith("__"))


def test_every_room_has_a_row() -> None:
    assert {room_of(path) for path in SOURCES} <= LEVEL.keys()


@every_source
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "featkit" or len(parts) == 1:
            continue
        assert LEVEL[parts[1]] <= LEVEL[room], f"{room} imports {name}"
        if parts[1] == "cli":
            assert room in {"cli", "__main__"}, f"{path} imports the command line"
        if parts[1] == "engine":
            assert room in {"engine", "evaluation", "cli"}, f"{path}: a stage knows who runs it"
        if room in {"models", "losses"}:
            assert parts[1] != "store", f"{path}: models and losses never do I/O"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("pycolmap", ("mapping/", "localization/", "features/sift.py")),
        ("plotly", ("report/",)),
        ("h5py", ("store/",)),
        ("typer", ("cli/",)),
        ("kornia", ("models/published.py",)),
    ],
)
def test_a_library_stays_in_its_rooms(library: str, allowed: tuple[str, ...]) -> None:
    users = [
        name for path, name in zip(SOURCES, IDS, strict=True) if library in {i.split(".")[0] for i in imports(path)}
    ]
    assert [user for user in users if not user.startswith(allowed)] == []


def test_training_needs_neither_pycolmap_nor_faiss() -> None:
    for path in SOURCES:
        if room_of(path) in {"training", "losses", "models", "data"}:
            assert not {"pycolmap", "faiss"} & {name.split(".")[0] for name in imports(path)}


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_the_command_line_is_light() -> None:
    heavy = {"torch", "faiss", "pycolmap", "cv2", "h5py", "plotly", "kornia", "scipy"}
    assert loaded_after("import featkit.cli.main") & heavy == set()


def test_importing_installs_nothing() -> None:
    code = (
        "import logging, sys; import featkit, featkit.features.sift, featkit.matching.mutual, featkit.store.features;"
        "assert not logging.getLogger().handlers and not logging.getLogger('featkit').handlers;"
        "import torch; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_extraction_needs_no_torch() -> None:
    assert not {"torch", "faiss"} & loaded_after("import featkit.features.extract, featkit.features.sift")


@every_source
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    assert path.stem not in {"utils", "util", "helpers", "misc", "common_utils"}


def test_packages_are_listed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        setup = tomllib.load(file)["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES if path.name == "__init__.py"}
    moved = {name for name in setup["package-dir"] if name != "featkit"}
    assert set(setup["packages"]) == folders | moved
    assert all((ROOT / setup["package-dir"][name]).is_dir() for name in moved)
    without = {path.parent for path in SOURCES} - {path.parent for path in SOURCES if path.name == "__init__.py"}
    assert without == set(), "folders without __init__.py would be left out of the wheel"


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in KINDS.items() for name in table])
def test_every_row_resolves(kind: str, name: str) -> None:
    assert isinstance(resolve(kind, name), type)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_builds(path: Path) -> None:
    import yaml

    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    kinds = [kind for kind in KINDS if kind in values]
    assert len(kinds) == 1, "a configuration names one class"
    cls, config = configured(kinds[0], path.stem)
    assert isinstance(config, cls.Config)
    assert set(values) - {kinds[0]} <= set(cls.Config.model_fields)
    cls(config, "cpu")


def test_every_row_has_a_yaml() -> None:
    import yaml

    listed = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "configs").glob("*.yaml")]
    for kind, table in KINDS.items():
        assert set(table) == {str(values[kind]) for values in listed if kind in values}
