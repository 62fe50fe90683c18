"""Files and folders that featkit did not make are never changed by any command, with or without --overwrite.

Every command that writes, and every name it writes, against a foreign file, a foreign folder and a symbolic link there;
links where its temporary files, locks and journals belong; and names in models and archives that lead elsewhere.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from geotagged import made_model, write_made
from in_process import refused, results, run
from posed_scenes import make_scene
from short_videos import panned, write_video
from synthetic_patches import write_hpatches, write_rome
from textures import textured_patches
from warped_sequences import write_sequence

from featkit.core.errors import BadInputError
from featkit.data.phototour import write_phototour
from featkit.geometry.poses import look_at
from featkit.io import journal
from featkit.io.artifact import inside
from featkit.mapping.verify import VerifyConfig  # noqa: F401  (pycolmap, once for all commands)
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.weights.files import save_patch_network

PRECIOUS = cv2.imencode(".jpg", np.random.default_rng(5).integers(0, 255, (40, 60, 3), np.uint8))[1].tobytes()
QUIET = ("-q", "--device", "cpu")


@dataclass(frozen=True)
class World:
    """Inputs of all commands. Never written to."""

    scene: Any  # conftest's MappedScene
    folder: Path

    @property
    def map(self) -> Path:
        return self.scene.output


@pytest.fixture(scope="module")
def world(mapped_scene: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    write_video(folder / "walk.avi", panned(np.arange(0, 60, 3.0)))
    write_phototour(folder / "patches", textured_patches(30, views=2))
    make_scene(folder / "posed")
    write_sequence(folder / "sequences", "stone", seed=1)
    write_hpatches(folder / "hpatches")
    write_rome(folder / "rome")
    shutil.copytree(mapped_scene.folder / "images", folder / "photos")
    shutil.copytree(mapped_scene.output / "sparse" / "0", folder / "map" / "sparse" / "0")
    shutil.copy(mapped_scene.output / "features.h5", folder / "map" / "features.h5")
    config = PatchNetworkConfig(architecture="l2net")
    import torch

    save_patch_network(folder / "weight.safetensors", PatchNetwork(config, torch.Generator().manual_seed(1)))
    with zipfile.ZipFile(folder / "liberty.zip", "w") as archive:
        archive.writestr("liberty/info.txt", "0 0\n")
    return World(mapped_scene, folder)


@dataclass(frozen=True)
class Command:
    """words: of a world and the place of the output, up to QUIET. ending: of that place, when it is a file.

    outputs: names that it writes, in the folder `out` ("": `out` itself). overwrite: whether it has that option.
    """

    words: Callable[[World, Path], tuple[object, ...]]
    outputs: tuple[str, ...]
    ending: str = ""
    overwrite: bool = True


def reconstruct(w: World, out: Path) -> tuple[object, ...]:
    return ("reconstruct", w.scene.folder / "images", "--out", out, *w.scene.options, "--workers", 1)


def fetch(w: World, out: Path) -> tuple[object, ...]:
    return ("data", "fetch", "phototour", "-o", out, "--only", "liberty", "--archive", w.folder / "liberty.zip")


def train(w: World, out: Path) -> tuple[object, ...]:
    short = ("--steps", 2, "--batch-size", 2, "--set", "held_out.pairs=10", "--set", "patches_on=host")
    return ("train", "patch", "--data", w.folder / "patches", "--out", out, "--config", "hynet", *short)


def exported(form: str) -> Callable[[World, Path], tuple[object, ...]]:
    return lambda w, out: ("export", w.map / "sparse" / "0", "-o", out, "--format", form)


RESULTS = ("results.json", "report.html")
GROWN = ("features.h5", "matches.h5", "pairs.txt", "pairs.json", "sparse", "sparse.json")
MAP = ("features.h5", "matches.h5", "pairs.txt", "database.db", "database.json", "sparse", "sparse.json")
RUN = ("checkpoint.pt", "metrics.csv", "summary.json", "report.html", "config.yaml", "best.safetensors", "pictures")
COMMANDS = {
    "frames": Command(
        lambda w, o: ("frames", w.folder / "walk.avi", "-o", o), ("frames.csv", "frames.json", "frame_000000.jpg")
    ),
    "extract": Command(lambda w, o: ("extract", w.folder / "photos", "-o", o, "--workers", 1), ("",), ".h5"),
    "match": Command(lambda w, o: ("match", w.map / "features.h5", w.map / "pairs.txt", "-o", o), ("",), ".h5"),
    "pairs": Command(lambda w, o: ("pairs", w.folder / "photos", "-o", o), ("", "../out.json"), ".txt"),
    "pairs to a photograph": Command(lambda w, o: ("pairs", w.folder / "photos", "-o", o), ("",), ".jpg"),
    "verify": Command(
        lambda w, o: (
            "verify", w.folder / "photos", w.map / "features.h5", w.map / "pairs.txt", w.map / "matches.h5", "-o", o
        ),
        ("", "../out.json"),
        ".db",
    ),
    "store merge": Command(lambda w, o: ("store", "merge", w.map / "features.h5", "-o", o), ("",), ".h5"),
    "reconstruct": Command(reconstruct, (*MAP, "report.html", "metrics.json")),
    "reconstruct --save-config": Command(lambda w, o: (*reconstruct(w, o), "--save-config"), ("run.yaml",)),
    "extend": Command(
        lambda w, o: ("extend", w.map, w.scene.folder / "queries", "-o", o, "--workers", 1), (*GROWN, "extend.json")
    ),
    "merge": Command(
        lambda w, o: ("merge", w.map / "sparse" / "0", w.folder / "map", "-o", o), (*GROWN, "merge.json")
    ),
    "localize": Command(
        lambda w, o: ("localize", w.scene.folder, "--queries", w.scene.folder / "queries", "-o", o, "--workers", 1),
        ("features.h5", "pairs.txt", "matches.h5", "poses.txt", "poses.json", *RESULTS[1:], "metrics.json"),
    ),
    "align": Command(
        lambda w, o: ("align", w.map, "--distance", "0000.jpg", "0001.jpg", 2, "-o", o), ("",)
    ),
    "export ply": Command(exported("ply"), ("",), ".ply"),
    "export text": Command(exported("text"), ("cameras.txt", "images.txt", "points3D.txt", ".featkit.json")),
    "export hloc": Command(exported("hloc"), ("sfm/images.bin", "poses.txt", "pairs-covisible.txt")),
    "export gaussian-splatting": Command(exported("gaussian-splatting"), ("images/0000.jpg", "sparse/0/images.bin")),
    "export dense": Command(exported("dense"), ("images/0000.jpg", "sparse/images.bin", "stereo/fusion.cfg")),
    "export nerfstudio": Command(exported("nerfstudio"), ("transforms.json", "sparse_pc.ply")),
    "weights export": Command(
        lambda w, o: ("weights", "export", w.folder / "weight.safetensors", "--name", "x", "-o", o),
        ("",), ".safetensors", overwrite=False,
    ),
    "data patches": Command(lambda w, o: ("data", "patches", w.scene.folder, "-o", o, "--workers", 1), ("",)),
    "data posed-pairs": Command(
        lambda w, o: ("data", "posed-pairs", w.scene.folder, "-o", o), ("scene", "licence.txt")
    ),
    "data pack": Command(
        lambda w, o: ("data", "pack", w.folder / "patches", "-o", o), ("",), ".zip", overwrite=False
    ),
    "data pack of photographs": Command(
        lambda w, o: ("data", "pack", w.folder / "photos", "-o", o), ("",), ".zip", overwrite=False
    ),
    "data fetch": Command(fetch, ("liberty",)),
    "demo": Command(
        lambda w, o: ("demo", "-o", o), ("images/0000.jpg", "truth/poses.txt", "demo.json", "truth/scene.json")
    ),
    "train patch": Command(train, RUN),
    "train scfeat": Command(
        lambda w, o: ("train", "scfeat", "--data", w.folder / "posed", "--out", o),
        ("best.safetensors", "last.safetensors", "summary.json", "report.html"),
    ),
    "inspect": Command(
        lambda w, o: ("inspect", "informativeness", "--run", o, "--data", w.folder / "patches", "-o", o),
        ("",), ".html", overwrite=False,
    ),
    "eval hpatches": Command(
        lambda w, o: ("eval", "hpatches", "--root", w.folder / "sequences", "-o", o),
        tuple(f"hpatches/{name}" for name in RESULTS),
    ),
    "eval oxford": Command(
        lambda w, o: ("eval", "oxford", "--root", w.folder / "sequences", "-o", o),
        tuple(f"oxford/{name}" for name in RESULTS),
    ),
    "eval eth": Command(
        lambda w, o: ("eval", "eth", "--root", w.folder, "-o", o), tuple(f"eth/{name}" for name in RESULTS)
    ),
    "eval pose": Command(
        lambda w, o: ("eval", "pose", "--root", w.scene.folder, "-o", o), tuple(f"pose/{name}" for name in RESULTS)
    ),
    "eval localization": Command(
        lambda w, o: ("eval", "localization", "--root", w.scene.folder, "-o", o),
        tuple(f"localization/{name}" for name in RESULTS),
    ),
    "eval all": Command(lambda w, o: ("eval", "all", "--data", w.folder, "-o", o), RESULTS),
    "eval ubc": Command(
        lambda w, o: ("eval", "ubc", "--data", w.folder / "patches", "-o", o), ("",), ".json", overwrite=False
    ),
    "eval patches": Command(
        lambda w, o: ("eval", "patches", "--root", w.folder / "hpatches", "--split", "full", "-o", o),
        ("",), ".json", overwrite=False,
    ),
    "eval patches --write-tasks": Command(
        lambda w, o: ("eval", "patches", "--root", w.folder / "hpatches", "--split", "full", "--write-tasks", o),
        ("verif_pos_split-full.csv",), overwrite=False,
    ),
    "eval rome": Command(
        lambda w, o: ("eval", "rome", "--root", w.folder / "rome", "-o", o), ("",), ".json", overwrite=False
    ),
}  # fmt: skip
CASES = [(name, output) for name, command in COMMANDS.items() for output in command.outputs]
every_output = pytest.mark.parametrize(
    ("name", "output"), CASES, ids=[f"{name}: {output or 'out'}" for name, output in CASES]
)


def out_of(command: Command, folder: Path) -> Path:
    return folder / f"out{command.ending}"


def place_of(out: Path, output: str) -> Path:
    """Path of an output; its folder is created."""
    place = Path(os.path.normpath(out / output)) if output else out
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def tree(folder: Path) -> dict[str, bytes | str]:
    """Contents of a folder: bytes of files, targets of links."""
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def refuses(command: Command, world: World, out: Path, place: Path, *more: str) -> None:
    """The error is one line with the path and what to do, and nothing in the output's folder has changed."""
    before = tree(out.parent)
    ran = run(*command.words(world, out), *QUIET, *(more if command.overwrite else ()))
    assert ran.exit_code in (2, 3, 5), (ran.exit_code, ran.output)
    message = [line for line in ran.stderr.strip().splitlines() if line.startswith("featkit: ")]
    assert len(message) == 1, ran.stderr
    assert place.name in message[0], message
    assert any(words in message[0] for words in ("--out", "remove it", "name a file")), message
    after = tree(out.parent)
    assert {name: after.get(name) for name in before} == before


@every_output
def test_a_foreign_file(name: str, output: str, world: World, tmp_path: Path) -> None:
    command = COMMANDS[name]
    out = out_of(command, tmp_path)
    place = place_of(out, output)
    place.write_bytes(PRECIOUS)
    refuses(command, world, out, place)
    refuses(command, world, out, place, "--overwrite")


@every_output
def test_a_foreign_folder(name: str, output: str, world: World, tmp_path: Path) -> None:
    command = COMMANDS[name]
    out = out_of(command, tmp_path)
    place = place_of(out, output)
    place.mkdir()
    (place / "summer.jpg").write_bytes(PRECIOUS)
    refuses(command, world, out, place, "--overwrite")


@every_output
def test_a_symbolic_link(name: str, output: str, world: World, tmp_path: Path) -> None:
    command = COMMANDS[name]
    target = tmp_path / "elsewhere" / "summer.jpg"
    target.parent.mkdir()
    out = out_of(command, tmp_path / "here")
    place = place_of(out, output)
    place.symlink_to(target)
    refuses(command, world, out, place)
    assert tree(target.parent) == {}, "a link that leads nowhere led to a new file"
    target.write_bytes(PRECIOUS)
    refuses(command, world, out, place, "--overwrite")
    assert tree(target.parent) == {"summer.jpg": PRECIOUS}


TEMPORARY = {
    "frames": (".out.part", "out/.frames.json.part"),
    "extract": (".out.h5.part", ".out.h5.writer", ".out.h5.journal"),
    "match": (".out.h5.part", ".out.h5.writer", ".out.h5.journal"),
    "pairs": (".out.txt.part", ".out.json.part"),
    "verify": (".out.db.part", ".out.db.part.json", ".out.db.lock", ".out.db.part-wal"),
    "store merge": (".out.h5.part", ".out.h5.journal"),
    "align": (".out.part",),
    "export ply": (".out.ply.part",),
    "export text": (".out.part", "out/..featkit.json.part"),
    "weights export": (".out.safetensors.part",),
    "data pack": (".out.zip.part",),
    "data fetch": ("out/.liberty.part", "out/..fetched.json.part"),
    "data posed-pairs": ("out/.scene.part",),
    "train patch": ("out/.checkpoint.pt.part", "out/.checkpoint.pt.lock", "out/.config.yaml.part", "out/tensorboard"),
    "eval rome": (".out.json.part",),
}
LEFT = [(name, left) for name, names in TEMPORARY.items() for left in names]


@pytest.mark.parametrize("kind", ["link", "folder", "second name"])
@pytest.mark.parametrize(("name", "left"), LEFT, ids=[f"{name}: {left}" for name, left in LEFT])
def test_foreign_files_under_temporary_names(name: str, left: str, kind: str, world: World, tmp_path: Path) -> None:
    """Nothing is written through a symbolic link, into a foreign folder or into a hard-linked file."""
    precious = tmp_path / "elsewhere" / "summer.jpg"
    precious.parent.mkdir()
    precious.write_bytes(PRECIOUS)
    command = COMMANDS[name]
    out = out_of(command, tmp_path / "here")
    place = place_of(out.parent, left)
    if kind == "link":
        place.symlink_to(precious)
    elif kind == "folder":
        place.mkdir()
        (place / "autumn.jpg").write_bytes(PRECIOUS)
    else:
        place.hardlink_to(precious)
    if left.endswith("tensorboard") and kind != "link":
        return
    before = tree(place.parent)
    ran = run(*command.words(world, out), *QUIET)
    assert precious.read_bytes() == PRECIOUS
    after = tree(place.parent)
    assert {one: after.get(one) for one in before} == before
    if ran.exit_code:  # a journal of no store is nobody's business until there is one
        assert ran.exit_code in (3, 5), ran.output
        assert sum(line.startswith("featkit: ") for line in ran.stderr.splitlines()) == 1, ran.stderr
        assert place.name in ran.stderr


def test_info_follows_no_link_to_a_journal(mapped_copy: Any, tmp_path: Path) -> None:
    """Reading a store looks for the journal of a killed writer."""
    store, precious = mapped_copy.output / "features.h5", tmp_path / "summer.jpg"
    for command in (("info", store), ("store", "check", store), ("pairs", store, "-o", tmp_path / "p.txt")):
        precious.write_bytes(PRECIOUS)
        place = journal.journal_of(store)
        place.symlink_to(precious)
        refused(run(*command, "-q"), 3, place.name, "symbolic link")
        assert precious.read_bytes() == PRECIOUS
        place.unlink()
        place.write_bytes(PRECIOUS)
        refused(run(*command, "-q"), 3, place.name, "remove it yourself")
        assert place.read_bytes() == PRECIOUS
        place.unlink()
    results("info", store)


def test_foreign_work_folders_are_kept(mapped_copy: Any) -> None:
    """The mapper's temporary folder, and that of the finished map."""
    output = mapped_copy.output
    for name in (".sparse.work", ".sparse.part"):
        shutil.rmtree(output / "sparse", ignore_errors=True)
        (output / "sparse.json").unlink(missing_ok=True)
        place = output / name
        place.mkdir()
        (place / "summer.jpg").write_bytes(PRECIOUS)
        asked = ("reconstruct", mapped_copy.folder, *mapped_copy.options, "--workers", 1)
        refused(run(*asked, "-q"), 3, name, "remove it yourself")
        assert tree(place) == {"summer.jpg": PRECIOUS}
        shutil.rmtree(place)
    assert run(*asked, "-q").exit_code == 0


def test_a_colmap_project_is_kept(mapped_scene: Any, tmp_path: Path) -> None:
    """images/, database.db and sparse/0 as COLMAP lays them out, mapped in place."""
    project = tmp_path / "project"
    shutil.copytree(mapped_scene.folder / "images", project / "images")
    shutil.copytree(mapped_scene.output / "sparse", project / "sparse")
    before = tree(project)
    for more in ((), ("--overwrite",)):
        ran = run("reconstruct", project, "--out", project, *mapped_scene.options, "--workers", 1, "-q", *more)
        refused(ran, 3, "sparse", "not made by featkit", "--out")
        assert tree(project) == before
    shutil.copy(mapped_scene.output / "database.db", project)
    refused(run("reconstruct", project, "--out", project, "-q"), 3, "database.db", "not made by featkit")
    results("reconstruct", project, *mapped_scene.options, "--workers", 1)  # into project/featkit
    assert {name: data for name, data in tree(project).items() if not name.startswith("featkit/")} == {
        **before, "database.db": (mapped_scene.output / "database.db").read_bytes()
    }  # fmt: skip


def test_files_added_by_the_user_are_kept(mapped_copy: Any) -> None:
    """Photographs in sparse/, and a list of pairs that replaces featkit's."""
    output = mapped_copy.output
    asked = ("reconstruct", mapped_copy.folder, *mapped_copy.options, "--workers", 1, "--overwrite", "-q")
    (output / "sparse" / "summer.jpg").write_bytes(PRECIOUS)
    refused(run(*asked), 3, "summer.jpg", "not made by featkit")
    assert (output / "sparse" / "summer.jpg").read_bytes() == PRECIOUS
    assert (output / "sparse" / "0" / "points3D.bin").is_file()
    pairs = output / "pairs.txt"
    pairs.write_text("0000.jpg 0005.jpg\n")
    refused(run("pairs", output / "features.h5", "-o", pairs, "--overwrite", "-q"), 3, "pairs.txt")
    assert pairs.read_text() == "0000.jpg 0005.jpg\n"


def test_overwrite_replaces_featkits_own(world: World, tmp_path: Path) -> None:
    """Otherwise refusing everything would pass the other tests."""
    for name in ("extract", "match", "pairs", "verify", "export ply", "export text", "align", "weights export"):
        command = COMMANDS[name]
        out = out_of(command, tmp_path / name.replace(" ", "-"))
        out.parent.mkdir()
        words = command.words(world, out)
        assert run(*words, *QUIET).exit_code == 0, name
        first = tree(out.parent)
        again = run(*words, *QUIET, *(("--overwrite",) if command.overwrite else ()))
        assert again.exit_code == 0, (name, again.output)
        assert tree(out.parent).keys() == first.keys()


def test_files_added_to_fetched_data_are_kept(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*fetch(world, out), *QUIET).exit_code == 0
    (out / "liberty" / "summer.jpg").write_bytes(PRECIOUS)
    ran = run(*fetch(world, out), *QUIET, "--overwrite")
    assert ran.exit_code == 3
    assert "holds 1 files that were not fetched" in ran.stderr
    assert (out / "liberty" / "summer.jpg").read_bytes() == PRECIOUS
    (out / "liberty" / "summer.jpg").unlink()
    assert run(*fetch(world, out), *QUIET, "--overwrite").exit_code == 0


ESCAPING = ["../../escaped.jpg", "/{}/escaped.jpg", "a/../../../escaped.jpg"]


@pytest.mark.parametrize("name", ESCAPING)
@pytest.mark.parametrize("command", ["posed-pairs", "patches", "export nerfstudio", "export dense"])
def test_escaping_names_in_a_model_are_refused(name: str, command: str, mapped_scene: Any, tmp_path: Path) -> None:
    """The photograph exists at the escaping path, so that only the name is wrong."""
    import pycolmap

    scene = tmp_path / "deep" / "down" / "scene"
    name = name.format(str(tmp_path / "deep").strip("/"))
    shutil.copytree(mapped_scene.folder / "images", scene / "images")
    model = pycolmap.Reconstruction(str(mapped_scene.output / "sparse" / "0"))
    image = next(image for image in model.images.values() if image.name == "0000.jpg")
    there = Path(os.path.normpath(scene / "images" / name))
    there.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(scene / "images" / "0000.jpg", there)
    image.name = name
    (scene / "sparse" / "0").mkdir(parents=True)
    model.write(str(scene / "sparse" / "0"))
    before = tree(tmp_path)
    out = tmp_path / "deep" / "out"
    words = ("data", command, scene, "-o", out)
    if command.startswith("export"):
        form = command.removeprefix("export ")
        words = ("export", scene / "sparse" / "0", "--format", form, "--images", scene / "images", "-o", out)
    ran = run(*words, "-q")
    refused(ran, 3, "leads outside", "escaped.jpg")
    after = {one: data for one, data in tree(tmp_path).items() if not one.startswith("deep/out/")}
    assert after == before


@pytest.mark.parametrize("name", ["../escaped.txt", "/tmp/featkit-escaped.txt", "a\\..\\..\\escaped.txt"])
def test_escaping_names_in_an_archive_are_refused(name: str, tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("liberty/info.txt", "0 0\n")
        archive.writestr(name, "harm")
    (tmp_path / "liberty.zip").write_bytes(content.getvalue())
    asked = ("data", "fetch", "phototour", "-o", tmp_path / "a" / "out", "--only", "liberty")
    ran = run(*asked, "--archive", tmp_path / "liberty.zip", "-q")
    assert ran.exit_code == 3
    assert "leads outside" in ran.stderr
    assert sorted(tree(tmp_path)) == ["liberty.zip"]
    assert not Path("/tmp/featkit-escaped.txt").exists()


def test_escaping_names_in_the_weights_manifest_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featkit.weights import manifest

    row = {"name": "evil", "file": "../elsewhere.safetensors", "sha256": "0" * 64, "bytes": 1, "config": {}}
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "manifest.json").write_text(json.dumps({"weights": [row]}))
    monkeypatch.setattr(manifest, "resource_dir", lambda name: tmp_path / name)
    with pytest.raises(BadInputError, match="leads outside"):
        manifest.find_weights("evil")


def test_align_does_not_replace_a_foreign_model(tmp_path: Path) -> None:
    centres = {f"{i}.jpg": np.array([i, 0.1 * i * i, 3.0]) for i in range(4)}
    poses = {name: look_at(c, c - [0, 0, 1.0], np.array([0, 1.0, 0])) for name, c in centres.items()}
    model = write_made(made_model(poses), tmp_path / "model")
    other = write_made(made_model(poses), tmp_path / "other")
    before = tree(other)
    asked = ("align", model, "--distance", "0.jpg", "3.jpg", 5, "-q", "-o", other)
    for more in ((), ("--overwrite",)):
        refused(run(*asked, *more), 3, "other", "featkit did not make", "choose another --out")
    assert tree(other) == before


def test_inside_refuses_escaping_names() -> None:
    folder = Path("folder")
    assert inside(folder, "a/b c.jpg") == folder / "a" / "b c.jpg"
    assert inside(folder, "..a/b..jpg") == folder / "..a" / "b..jpg"
    for name in ("..", "a/..", "../a", "/a", "C:/a", "C:a", "a\\..\\b", "\\a", "a\0b", ""):
        with pytest.raises(BadInputError, match="leads outside"):
            inside(folder, name)


def test_files_of_featkits_are_not_replaced_by_another_kind(world: World, tmp_path: Path) -> None:
    """`verify --out features.h5` would lose the features that it reads, and --overwrite means the same kind only."""
    shutil.copytree(world.map, tmp_path / "map")
    folder, images = tmp_path / "map", world.scene.folder / "images"
    inputs = (folder / "features.h5", folder / "pairs.txt", folder / "matches.h5")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert {"features.h5", "matches.h5", "pairs.txt", "database.db", "report.html", "metrics.json"} <= before.keys()
    commands: dict[str, tuple[object, ...]] = {
        "verify": ("verify", images, *inputs),
        "pairs": ("pairs", images, "--method", "exhaustive"),
        "match": ("match", *inputs[:2]),
        "extract": ("extract", images),
        "store": ("store", "merge", inputs[0]),
    }
    own = {"verify": "database.db", "pairs": "pairs.txt", "match": "matches.h5", "extract": "features.h5", "store": ""}
    for name, command in commands.items():
        for out in ("features.h5", "matches.h5", "pairs.txt", "database.db", "report.html"):
            if out != own[name]:
                more = () if name == "verify" else ("--overwrite",)
                ran = run(*command, "--out", folder / out, *more, *(QUIET if name in ("match", "extract") else ("-q",)))
                refused(ran, 3, str(folder / out), "choose another --out")
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.suffix != ".lock"} == before
