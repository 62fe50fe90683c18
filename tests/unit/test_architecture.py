"""The house's rules that a machine can check: imports run one way, help is light, files are short, names resolve."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featkit.cli.main import VERBS, app
from featkit.core.registry import KINDS, class_of, resolve

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "featkit"
# From the ground up: a file imports from its own room and from those above it in this list.
ROOMS = (
    "core",
    "geometry",
    "io",
    "images",
    "models",
    "losses",
    "weights",
    "features",
    "matching",
    "onnx",
    "retrieval",
    "data",
    "mapping",
    "pairing",
    "localization",
    "engine",
    "evaluation",
    "training",
    "demo",
    "report",
    "viewer",
    "server",
    "hloc",
    "integrations",
    "api",
    "cli",
    "__main__",
)
# Closer than the list above: what these rooms import of others, and who may import these.
NEVER = {"models": {"io"}, "losses": {"io", "models", "weights"}, "geometry": {"io"}}
ONLY_BY = {
    "cli": {"__main__"},
    "engine": {"evaluation", "api", "cli"},
    "training": {"report", "api", "cli"},
    "server": {"api"},
}
# Imports of featkit inside functions; everywhere else they stand at the top of the file.
LATE = {
    "__main__.py": "signals are answered before anything slow is imported",
    "cli/doctor.py": "it tells what is missing, so it loads without",
    "api/localization.py": "`serve` needs an extra that `localize` does not",
    "cli/localize.py": "benchmarks load torch; `localize` does not",
    "matching/mutual.py": "torch, where something is left to match",
}
MAX_LINES = 500
SOURCES = sorted(PACKAGE.rglob("*.py"))
IDS = [path.relative_to(PACKAGE).as_posix() for path in SOURCES]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
every_source = pytest.mark.parametrize("path", SOURCES, ids=IDS)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules that code imports, inside functions too, `if TYPE_CHECKING` left out."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    return frozenset(imports(TREES[path]))


@functools.cache
def files_of(path: Path) -> set[Path]:
    """Files of featkit that a file imports."""
    found = set()
    for name in imports_of(path):
        place = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if name.startswith("featkit.") and place.is_file() and place != path:
            found.add(place)
    return found


def test_every_room_is_listed() -> None:
    assert {room_of(path) for path in SOURCES} - {"__init__"} == set(ROOMS)


@every_source
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":  # names its one class without importing it
        return
    for other in {room_of(file) for file in files_of(path)} - {room}:
        assert ROOMS.index(other) < ROOMS.index(room), f"{room} imports {other}"
        assert other not in NEVER.get(room, set()), f"{room} imports {other}"
        assert room in ONLY_BY.get(other, {room}), f"{room} imports {other}"


def test_no_files_import_each_other() -> None:
    left = {path: files_of(path) for path in SOURCES}
    while ready := {path for path, needs in left.items() if not needs & left.keys()}:
        left = {path: needs for path, needs in left.items() if path not in ready}
    assert not left, f"in a circle: {sorted(path.relative_to(PACKAGE).as_posix() for path in left)}"


@every_source
def test_imports_stand_at_the_top(path: Path) -> None:
    functions = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {name for node in functions for name in imports(node) if name.split(".")[0] == "featkit"}
    assert bool(late) == (path.relative_to(PACKAGE).as_posix() in LATE), sorted(late)


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("pycolmap", ("mapping/", "localization/", "features/sift.py", "features/worker.py", "io/camera_models.py")),
        ("plotly", ("report/",)),
        ("jinja2", ("report/",)),
        ("h5py", ("io/",)),
        ("typer", ("cli/",)),
        ("kornia", ("features/published.py", "features/published_networks.py")),
    ],
)
def test_a_library_stays_in_its_rooms(library: str, allowed: tuple[str, ...]) -> None:
    users = [
        name for path, name in zip(SOURCES, IDS, strict=True) if library in {i.split(".")[0] for i in imports_of(path)}
    ]
    assert [user for user in users if not user.startswith(allowed)] == []


# Where files are renamed or removed by hand: parts of one output, whose place `io/artifact.py` has looked at.
BY_HAND = {
    "io/artifact.py",
    "io/h5.py",
    "engine/plan.py",
    "data/unpack.py",
    "data/make_posed_pairs.py",
    "data/download.py",
    "mapping/export.py",
    "mapping/verify.py",  # a temporary list for pycolmap
    "server.py",  # a photograph in a temporary folder
}


@every_source
def test_there_is_one_way_to_write(path: Path) -> None:
    """`write_text(path, text)` and the like are `artifact`'s; `path.write_text(text)` would overwrite anything."""
    if path.relative_to(PACKAGE).as_posix() in BY_HAND:
        return
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert called not in {"os.replace", "os.rename", "shutil.rmtree", "shutil.move"}, f"{path}:{node.lineno}"
            assert node.func.attr not in {"write_text", "write_bytes", "rename"}, f"{path}:{node.lineno}: {called}"


def test_training_needs_neither_pycolmap_nor_faiss() -> None:
    for path in SOURCES:
        if room_of(path) in {"training", "losses", "models", "data"}:
            assert not {"pycolmap", "faiss"} & {name.split(".")[0] for name in imports_of(path)}


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["main", "doctor"])
def test_the_command_line_is_light(module: str) -> None:
    heavy = {"torch", "faiss", "pycolmap", "cv2", "h5py", "plotly", "jinja2", "kornia", "scipy"}
    assert loaded_after(f"import featkit.cli.{module}") & heavy == set()


@pytest.mark.parametrize("module", ["stages", "stores", "view"])
def test_these_verbs_load_no_torch(module: str) -> None:
    assert not {"torch", "faiss"} & loaded_after(f"import featkit.cli.{module}")


def test_the_list_of_verbs_is_what_they_say_themselves() -> None:
    import typer

    listed = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert list(listed) == list(VERBS)
    for name, late in listed.items():
        own = late.load()
        assert own.name == name
        assert " ".join(own.help.split("\n\n")[0].split()) == late.help


@pytest.mark.slow
def test_importing_installs_nothing() -> None:
    code = (
        "import logging, sys; import featkit, featkit.features.sift, featkit.matching.mutual, featkit.io.features;"
        "assert not logging.getLogger().handlers and not logging.getLogger('featkit').handlers;"
        "import torch; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_extraction_needs_no_torch() -> None:
    assert not {"torch", "faiss"} & loaded_after("import featkit.features.stage, featkit.features.sift")


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
    assert isinstance(class_of(kind, name), type)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_builds(path: Path) -> None:
    import yaml

    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    kinds = [kind for kind in KINDS if kind in values]
    assert len(kinds) == 1, "a configuration names one class"
    method = resolve(kinds[0], path.stem, device="cpu")
    assert isinstance(method.own, method.cls.Config)
    assert set(values) - {kinds[0], "base"} <= set(method.cls.Config.model_fields)
    assert isinstance(method.built, method.cls)


def test_every_row_has_a_yaml() -> None:
    import yaml

    listed = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "configs").glob("*.yaml")]
    for kind, table in KINDS.items():
        assert set(table) == {str(values[kind]) for values in listed if kind in values}
