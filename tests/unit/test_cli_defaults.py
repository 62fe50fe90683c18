"""Commands are made from configurations: the same defaults, names and ranges as the fields and the functions have."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import typer
from in_process import refused, run
from pydantic import Field
from typer.testing import CliRunner

import featkit
from featkit.api.options import FieldOption, Option, Param, with_options
from featkit.cli.app import COMMON, Seeded
from featkit.cli.command import OPTIONS
from featkit.cli.main import VERBS, app
from featkit.core.config import Config, Seed, Share, field_docs, field_range, load_pipeline
from featkit.core.errors import UsageError
from featkit.features.stage import ExtractConfig
from featkit.mapping.stage import MapConfig

NAMED_OTHERWISE = {"demo": "run_demo"}  # featkit.demo is the package of the rendered scene
COMMANDS = {  # commands that are made of a function, by the function's name in featkit
    **{
        name: name
        for name in ("reconstruct", "extract", "pairs", "match", "verify", "run", "align", "export", "extend", "merge")
    },
    **{name: name for name in ("frames", "localize", "serve", "view")},
    "train patch": "train_patch",
    "train scfeat": "train_scfeat",
    "inspect informativeness": "informativeness",
    "data patches": "make_patches",
    "data posed-pairs": "make_posed_pairs",
    "data pack": "pack_data",
    "data fetch": "fetch_data",
    "eval all": "evaluate_all",
    "weights list": "list_weights",
    "weights show": "show_weights",
    "weights fetch": "fetch_weights",
    "weights import": "import_weights",
    "weights export": "export_weights",
    "features": "list_methods",
    "store check": "check_store",
    "store repair": "repair_store",
    "store merge": "merge_stores",
    **NAMED_OTHERWISE,
}


def parameters(verb: str) -> dict[str, Any]:
    """The options and arguments of a command by name."""
    first, *inner = verb.split()
    command = typer.main.get_command(app).commands[first].load()  # type: ignore[attr-defined]
    command = command.commands[inner[0]] if inner else command
    return {one.name: one for one in command.params if one.name != "help"}


def generated() -> Iterator[tuple[str, FieldOption]]:
    for verb, name in COMMANDS.items():
        yield from ((verb, one) for one in getattr(featkit, name).declared.options.values() if one.name != "seed")
    yield from (("extract", one) for one in OPTIONS.values())
    yield "extract", FieldOption.of("seed", Option("seed"), Seeded)


GENERATED = list(generated())


@pytest.mark.parametrize(("verb", "option"), GENERATED, ids=lambda one: getattr(one, "name", one))
def test_default_help_and_range_are_the_fields(verb: str, option: FieldOption) -> None:
    """By a way of its own: from pydantic's table of the class that the option names."""
    shown = parameters(verb)[option.name]
    if not option.field:  # inside changes to a named configuration of any class
        assert shown.default is None
        return
    field = option.config.model_fields[option.field]
    own = field.get_default(call_default_factory=True)
    if option.option.flag is not None:
        assert shown.default is False
        assert own != option.option.flag
    elif option.in_named:
        assert shown.default is None
        assert shown.show_default
    else:
        assert shown.default == own
        assert own is not None or isinstance(shown.show_default, str)
    assert shown.help
    assert shown.help.rstrip(".") in field_docs(option.config)[option.field].text or option.option.help
    low, high = field_range(option.config, option.field)
    if low is not None and option.option.flag is None and not option.option.metavar and high < 1e5:
        assert f"{low:g}..{high:g}" in shown.metavar


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_function_has_the_commands_names(verb: str) -> None:
    function = set(inspect.signature(getattr(featkit, COMMANDS[verb])).parameters) - {"engine"}
    command = set(parameters(verb)) - set(OPTIONS)
    assert command - set(COMMON) == function - set(COMMON)
    assert function & set(COMMON) <= {"device", "seed"}


def test_every_function_is_reached_by_its_name() -> None:
    assert set(COMMANDS.values()) | {"Localizer", "evaluate", "__version__"} == set(featkit.__all__)
    for name in featkit.__all__:
        assert getattr(featkit, name)
    with pytest.raises(AttributeError, match="no attribute 'recontruct'"):
        _ = featkit.recontruct


def test_importing_the_package_is_light() -> None:
    script = "import featkit, sys; print({'torch', 'pycolmap', 'cv2', 'typer', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "arguments",
    [
        ("extract", "IMAGES", "-o", "OUT", "--seed", 2**31),
        ("extract", "IMAGES", "-o", "OUT", "--workers", 100_000),
        ("extract", "IMAGES", "-o", "OUT", "--resize-max", 3),
        ("extract", "IMAGES", "-o", "OUT", "--max-keypoints", "9" * 23),
        ("extract", "IMAGES", "-o", "OUT", "--set", "octave_resolution=1e8"),
        ("extract", "IMAGES", "-o", "OUT", "--set", "first_octave=-20"),
        ("extract", "IMAGES", "-o", "OUT", "--shards", -1),
        ("reconstruct", "IMAGES", "-o", "OUT", "--set", "map.threads=100000"),
        ("reconstruct", "IMAGES", "-o", "OUT", "--set", "map.min_model_size=-5"),
        ("reconstruct", "IMAGES", "-o", "OUT", "--set", "map.verify.max_error_px=.nan"),
        ("reconstruct", "IMAGES", "-o", "OUT", "--set", "map.verify.confidence=7"),
        ("reconstruct", "IMAGES", "-o", "OUT", "--camera-mode", "double"),
        ("reconstruct", "IMAGES", "-o", "OUT", "--ratio", "nan"),
        ("reconstruct", "IMAGES", "-o", "OUT", "--camera-params", "nan,1,1,1"),
    ],
    ids=lambda arguments: " ".join(str(one)[:30] for one in arguments[4:]),
)
def test_a_wrong_value_ends_at_once_with_one_line(arguments: tuple[object, ...], tmp_path: Path) -> None:
    """Exit code 2, the option or field named, and nothing written."""
    import cv2

    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(2):
        cv2.imwrite(str(images / f"{number}.png"), np.zeros((64, 64), np.uint8))
    places = {"IMAGES": images, "OUT": out}
    named = str(arguments[-1]).partition("=")[0].rpartition(".")[2] if "--set" in arguments else str(arguments[-2])
    named = "shards" if named == "--shards" else named
    refused(run(*(places.get(str(one), one) for one in arguments), "-q"), 2, named)
    assert not out.exists()


class Inner(Config):
    share: Share = 0.25
    """How much of it. None of this is in the help."""
    draws: int | None = None
    """Draws. None: as many as there are."""


class Whole(Config):
    inner: Inner = Inner()
    """The part inside."""
    upright: bool = True
    """Whether it stands."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """What differs."""
    seed: Seed = 0
    """Of all draws."""


@with_options(
    Whole,
    "changes",
    share=Option("inner.share"),
    draws=Option("inner.draws"),
    lying=Option("upright", flag=False, help="It does not stand."),
    other=Option("changes.share", of=Inner),
    seed=Option("seed", also=("inner.draws",)),
)
def made(place: Annotated[Path, Param(help="Where.")], *, config: Whole) -> tuple[Path, Whole]:
    """Hand back what came."""
    return place, config


def test_a_function_is_given_its_configuration() -> None:
    assert made("a/b") == (Path("a/b"), Whole(inner=Inner(draws=0)))
    place, config = made(Path("c"), share=0.5, lying=True, other=0.1, seed=3, settings={"more.a": 1})
    assert config == Whole(
        inner=Inner(share=0.5, draws=3), upright=False, changes={"share": 0.1, "more": {"a": 1}}, seed=3
    )
    assert made(place, settings=["x=2"])[1].changes == {"x": 2}
    assert list(inspect.signature(made).parameters) == ["place", "share", "draws", "lying", "other", "seed", "settings"]
    assert "share: How much of it.\n" in str(made.__doc__)


def test_a_function_names_the_option_that_is_wrong() -> None:
    with pytest.raises(UsageError, match=r"made: --share: .*less than or equal to 1 \(got 2\)"):
        made("a", share=2)
    with pytest.raises(TypeError, match="shar"):
        made("a", shar=1)


def test_help_says_what_none_means() -> None:
    options = made.declared.options  # type: ignore[attr-defined]
    assert options["share"].help == "How much of it."
    assert options["draws"].unset == "as many as there are"
    assert options["other"].unset == "0.25"


def test_python_does_what_the_command_does(tmp_path: Path) -> None:
    import cv2

    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (120, 160), dtype=np.uint8)
    cv2.imwrite(str(images / "a.png"), cv2.GaussianBlur(noise, (0, 0), 1.5))
    done = featkit.extract(str(images), tmp_path / "python.h5", max_keypoints=50, settings={"first_octave": 0})
    ran = run(
        "extract", images, "-o", tmp_path / "command.h5", "--max-keypoints", 50, "--set", "first_octave=0", "--json"
    )
    message = json.loads(ran.stdout)
    assert (done.images, done.keypoints) == (message["images"], message["keypoints"])
    assert done.keypoints == 50
    assert run("info", done.out).exit_code == 0


def test_the_recipes_have_the_same_defaults() -> None:
    """What several configurations hold is one class, so a default cannot drift."""
    sfm, localize = load_pipeline("sfm").SfmConfig(), load_pipeline("localize").LocalizationConfig()
    assert sfm.extract == ExtractConfig()
    assert sfm.map == MapConfig()
    assert sfm.matcher == localize.matcher
    assert importlib.import_module("featkit.matching.config").MatchWith().matcher == sfm.matcher


def test_every_verb_loads() -> None:
    for verb in VERBS:
        assert typer.main.get_command(app).commands[verb].load().name is not None  # type: ignore[attr-defined]


def test_a_shell_completes_the_choices() -> None:
    line = {"COMP_WORDS": "featkit reconstruct --camera-mode per-", "COMP_CWORD": "3"}
    words = {"_FEATKIT_COMPLETE": "complete_bash", **line}
    offered = CliRunner().invoke(app, [], prog_name="featkit", env=words).output.split()
    assert offered == ["per-folder", "per-image"]
