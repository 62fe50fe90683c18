"""The commands in docs/reproduce.md: all parse, and each runs on small data in the real layout."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import in_process
import numpy as np
import pytest
import torch
import typer
from aachen_miniature import rendered_world, write_miniature
from posed_scenes import make_scene
from synthetic_patches import write_hpatches, write_rome
from textures import textured_patches
from warped_sequences import write_sequence

from featkit.cli.main import app
from featkit.core.config import resource_dir
from featkit.data.patch_set import ClassIndex
from featkit.data.phototour import TestPairs, write_phototour, write_phototour_pairs
from featkit.demo.scene import RenderedConfig
from featkit.models.resnet import ResNetEncoder
from featkit.weights.manifest import find_weights

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
PAPERS = ("SDGMNet", "AdaSample", "DOAP", "SCFeat")
CONFIG = RenderedConfig(width=400, height=300, num_map=6, num_queries=2, texel_m=0.012)  # that of `small_rendered`
SPLITS = {"a": {"train": ["i_two", "v_one", "v_two"], "test": ["i_one"]}}
# Of these loops one turn is run, the first or the last: the others differ in nothing that could fail alone.
ONE_TURN = {"SET": 0, "SEED": 0, "LAMBDA": -1, "SETTING": -1}

SHORT = ["--steps", "2", "--set", "held_out.every=1", "--set", "held_out.pairs=10"]
TINY_SCFEAT = [
    "--set=network={encoder: resnet18, decoder_channels: [8, 8], side_channels: 8, descriptor_channels: 16,"
    " norm_groups: 4, detector_feature_channels: 4, detector_image_channels: 4, detector_merged_channels: 4}",
    *(f"--set={stage}.augmentation.canvas={{width: 96, height: 64}}" for stage in ("description", "detection")),
    *(f"--set={stage}.held_out={{every: 1.0, pairs: 2}}" for stage in ("description", "detection")),
    *("--steps", "2"),
]
FEW = ["--workers", "1", "--max-keypoints"]
SMALL: dict[str, list[str]] = {
    "train scfeat": TINY_SCFEAT,
    "eval ubc": [],
    "eval patches": ["--set", "pool_sizes=[10]", "--set", "drawn.pairs=100"],
    "eval rome": [],
    "eval hpatches": [*FEW, "150"],
    "eval oxford": [*FEW, "150"],
    "eval eth": [*FEW, "500"],
    "localize aachen": [*FEW, "800"],
    "inspect informativeness": ["--pairs", "4", "--set", "pairs=8"],
}
BATCHES = {
    "doap-hpatches-lm": 64,
    "doap-hpatches": 32,
    "doap-rome": 40,
    "doap-binary-rome": 40,
    "doap": 24,
    "doap-binary": 24,
}


class Command(NamedTuple):
    """turn: the place in each loop around it, by the loop's variable; words: after `featkit`."""

    words: tuple[str, ...]
    turn: dict[str, tuple[int, int]]

    @property
    def verb(self) -> str:
        return " ".join(self.words[:2])

    def option(self, name: str) -> str | None:
        return self.words[self.words.index(name) + 1] if name in self.words else None

    @property
    def is_run(self) -> bool:
        """Whether the command is in the loop iteration that the test runs."""
        return all(
            name not in ONE_TURN or place in (ONE_TURN[name], ONE_TURN[name] + count)
            for name, (place, count) in self.turn.items()
        )


def commands_of(text: str) -> list[Command]:
    """The commands in a page's code blocks, with bash's `for` loops unrolled."""
    found = []
    for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        loops: list[tuple[str, list[str]]] = []
        for line in block.splitlines():
            for part in line.partition("  #")[0].split(";"):
                statement = part.strip().removeprefix("do").strip() if part.strip() != "done" else "done"
                if statement.startswith("for "):
                    name, values = statement.removeprefix("for ").split(" in ")
                    loops.append((name, values.split()))
                elif statement == "done":
                    loops.pop()
                elif statement:
                    found += list(_turns(statement, loops))
        assert not loops, block
    return found


def _turns(statement: str, loops: list[tuple[str, list[str]]]) -> Any:
    for places in itertools.product(*(range(len(values)) for _, values in loops)):
        text, turn = statement, {}
        for (name, values), place in zip(loops, places, strict=True):
            text, turn[name] = text.replace(f"${name}", values[place]), (place, len(values))
        program, *words = shlex.split(text)
        assert program == "featkit", statement
        assert "$" not in text, statement
        yield Command(tuple(words), turn)


def section(name: str) -> str:
    return re.split(r"^## ", PAGE.partition(f"## {name}\n")[2], flags=re.MULTILINE)[0]


ALL = commands_of(PAGE)
PROGRAM = typer.main.get_command(app)


@pytest.mark.parametrize("verb", sorted({command.verb for command in ALL}))
def test_every_command_parses(verb: str) -> None:
    for wanted in (command for command in ALL if command.verb == verb):
        command: Any = PROGRAM
        words = list(wanted.words)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
            command = command.load() if hasattr(command, "load") else command
        assert command.make_context(verb, words).params, wanted


def test_every_paper_and_every_recipe_of_a_patch_descriptor_has_a_command() -> None:
    assert re.findall(r"^## (\w+)$", PAGE, re.MULTILINE) == ["Data", *PAPERS]
    used = {command.option("--config") for command in ALL if command.verb == "train patch"}
    known = {
        path.stem for path in resource_dir("configs").glob("*.yaml") if path.read_text().find("task: patch\n") >= 0
    }  # type: ignore[attr-defined]
    assert used == known
    fetched = {command.words[2] for command in ALL if command.verb == "data fetch"}
    assert fetched == {"phototour", "hpatches", "hpatches-sequences", "rome", "aachen"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, small_rendered: Any) -> Path:
    """A folder in which the page's paths exist, with small data."""
    root = tmp_path_factory.mktemp("reproduce")
    data = root / "data"
    for seed, name in enumerate(("liberty", "notredame", "yosemite")):
        patches = textured_patches(60, seed=seed)
        patches = replace(patches, scene_names=tuple(f"{name} {scene}" for scene in patches.scene_names))
        members = ClassIndex.of(patches.classes).members.reshape(60, 3)
        first, same = members[:, 0], members[:, 1]
        pairs = TestPairs(np.r_[first, first], np.r_[same, np.roll(same, 1)], np.repeat([True, False], 60))
        write_phototour(data / "phototour" / name, patches)
        write_phototour_pairs(data / "phototour" / name, pairs, patches.classes)
    write_hpatches(data / "hpatches", sequences={"i_one": 3, "i_two": 20, "v_one": 20, "v_two": 20})
    splits = data / "hpatches" / "hpatches-benchmark" / "tasks" / "splits" / "splits.json"
    splits.parent.mkdir(parents=True)
    splits.write_text(json.dumps(SPLITS))
    write_rome(data / "rome", groups=20, size=10)
    write_sequence(
        data / "sequences" / "hpatches-sequences-release", "v_wall", seed=1, oxford=False, strength=0.5, images=2
    )
    drawn = np.random.default_rng(0).uniform(20, 140, (150, 2)).astype(np.float32)
    with h5py.File(data / "superpoint.h5", "w") as file:
        for image in ("v_wall/1.ppm", "v_wall/2.ppm"):
            file[f"{image}/keypoints"] = drawn
    write_sequence(data / "oxford-affine", "graf", seed=2, strength=0.5, images=2)
    make_scene(data / "megadepth", images=5)
    torch.save(ResNetEncoder("resnet18").state_dict(), root / "resnet50.pth")
    for scene in ("Herz-Jesu-P8", "Madrid_Metropolis"):
        folder = data / "eth" / scene / "images"
        folder.mkdir(parents=True)
        for photograph in sorted(small_rendered.images.iterdir())[:4]:
            shutil.copy(photograph, folder)
    write_miniature(data / "aachen", rendered_world(small_rendered, CONFIG))
    return root


@pytest.mark.parametrize("paper", PAPERS)
def test_every_command_runs(paper: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    wanted = [command for command in commands_of(section(paper)) if command.is_run]
    assert len(wanted) >= 5
    trained: dict[str, set[str]] = {}
    for command in wanted:
        found = in_process.results(*command.words, *_small(command), "--device", "cpu")
        out = Path(command.option("--out") or ".")
        if command.words[0] == "train":
            assert (out / "best.safetensors").is_file(), command
            (out / "last.safetensors").unlink()  # of two steps it is the best one again
            trained.setdefault(str(out.parent.parent), set()).add(out.name)
        if (
            command.verb == "train scfeat"
        ):  # so short a training has no score above the threshold: a longer one's weight
            shutil.copy(find_weights("scfeat-s"), out / "best.safetensors")
        runs = command.option("--runs")
        if runs is not None:
            assert _rows(command, found) >= {re.sub(r"-s\d$", "", name) for name in trained[runs]}, command
        elif command.words[0] != "train":
            assert out.exists(), command
        if command.verb == "eval eth":
            assert all(row["registered"] for row in found["rows"]), found["rows"]


def _small(command: Command) -> list[str]:
    """Options that reduce the work; later options override those of the page."""
    if command.verb != "train patch":
        scenes = ["--scenes", "Madrid_Metropolis"] if "--scenes" in command.words else []
        herz_jesu = ["--scenes", "Herz-Jesu-P8"] if command.verb == "eval eth" and not scenes else []
        few = SMALL[command.verb] if "--keypoints" not in command.words else []
        return [*few, *scenes, *herz_jesu]
    recipe = command.option("--config") or ""
    clusters = ["--set", "sampler.label_mining.clusters=4"] if recipe.endswith("-lm") else []
    return [*SHORT, "--batch-size", str(BATCHES.get(recipe, 8)), *clusters]


def _rows(command: Command, found: dict[str, Any]) -> set[str]:
    """Names of the methods that have numbers."""
    if command.verb == "eval ubc":
        return {score["method"] for score in found["scores"]}
    return {label.partition(",")[0].rpartition("/")[2] for label in found["scores"]}
