"""Output and exit codes of the command line: help, info of every kind of input, and one-line errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

Command = Callable[..., Any]
VERBS = (
    *("reconstruct", "extend", "merge", "localize", "align", "extract", "pairs", "match", "verify", "export"),
    *("frames", "view", "serve", "run", "info", "doctor", "demo"),
)
COMMON = ("--json", "--verbose", "--quiet", "--device", "--seed", "--debug", "--help")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small photographs that have nothing in common."""
    import cv2

    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (120, 160), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.jpg"), cv2.GaussianBlur(noise, (0, 0), 1.5))
    return folder


def refused(ran: Any, code: int, *words: str) -> None:
    """One line on stderr, and nothing on stdout."""
    assert ran.code == code, ran.out + ran.err
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("featkit: ")
    assert "Traceback" not in ran.err
    assert "unexpected" not in ran.err
    assert ran.out == ""
    for word in words:
        assert word in lines[0]


def test_torch_is_not_loaded_to_resolve_a_matcher() -> None:
    """Even a run with nothing left to match resolves the matcher."""
    script = (
        "import sys; from featkit.core.registry import resolve\n"
        "resolve('matcher', 'mutual', device='cpu').ready().fingerprint\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_help_of_every_verb(featkit_here: Command) -> None:
    root = featkit_here("--help")
    assert root.code == 0
    for verb in VERBS:
        assert f" {verb} " in root.out
        shown = featkit_here(verb, "--help")
        assert shown.code == 0
        assert "Example: featkit " + verb in shown.out
        for option in COMMON:
            assert option in shown.out, f"{verb} has no {option}"
    assert "Exit codes" in root.out


def test_help_loads_no_heavy_modules() -> None:
    script = (
        "import sys, time; started = time.perf_counter(); sys.argv = ['featkit', '--help']\n"
        "from featkit.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'pycolmap', 'cv2', 'h5py', 'plotly', 'scipy'} & set(sys.modules)\n"
        "print(heavy or 'light', time.perf_counter() - started, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    what, seconds = done.stderr.split()
    assert what == "light"
    assert float(seconds) < 5  # 0.5 s on a machine with nothing else to do


@pytest.mark.parametrize("verb", ["reconstruct", "localize", "extend", "extract", "pairs", "match", "verify", "export"])
def test_commands_start_without_loading_torch(verb: str) -> None:
    """torch takes longer to load than everything else together."""
    script = (
        f"import sys; sys.argv = ['featkit', '{verb}', '--help']\n"
        "from featkit.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print({'torch', 'plotly', 'kornia', 'ray'} & set(sys.modules) or 'light', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "light"


def test_version_and_completion(featkit_command: Command) -> None:
    from typer.testing import CliRunner

    from featkit import __version__
    from featkit.cli.main import app

    assert featkit_command("--version").out == f"featkit {__version__}\n"
    script = CliRunner().invoke(app, [], prog_name="featkit", env={"_FEATKIT_COMPLETE": "source_bash"})
    assert "_FEATKIT_COMPLETE" in script.output
    words = {"_FEATKIT_COMPLETE": "complete_bash", "COMP_WORDS": "featkit re", "COMP_CWORD": "1"}
    assert CliRunner().invoke(app, [], prog_name="featkit", env=words).output.split() == ["reconstruct"]


def test_info_of_every_kind_of_input(mapped_scene: Any, featkit_here: Command, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    out, truth = mapped_scene.output, mapped_scene.folder / "truth"
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "w.safetensors", {"recipe": "by hand"})
    (tmp_path / "mine.yaml").write_text("extractor: sift\nmax_keypoints: 7\n")
    (tmp_path / "list.txt").write_text("a b.jpg PINHOLE 400 300 360 360 200 150\n")
    metrics = mapped_scene.ran.json()
    expected = {
        out / "features.h5": {"kind": "features", "images": 6, "descriptor_dimension": 128},
        out / "matches.h5": {"kind": "matches", "pairs": 15},
        out / "pairs.txt": {"kind": "pairs", "pairs": 15, "images": 6},
        truth / "poses.txt": {"kind": "poses", "poses": 6},
        tmp_path / "list.txt": {"kind": "intrinsics", "intrinsics": 1},
        out / "sparse" / "0": {"kind": "model", "registered": 6, "points": metrics["points"]},
        mapped_scene.folder: {"kind": "map"},
        mapped_scene.folder / "images": {"kind": "images", "images": 6},
        mapped_scene.folder / "images" / "0000.jpg": {"kind": "image", "width": 400, "height": 300},
        out / "database.db": {"kind": "database", "images": 6, "verified_pairs": metrics["verified_pairs"]},
        out / "metrics.json": {"registered": 6},
        tmp_path / "mine.yaml": {"kind": "extractor configuration"},
        "rootsift": {"kind": "extractor configuration", "name": "rootsift"},
        "mutual": {"kind": "matcher configuration"},
        "retrieval": {"kind": "pairing configuration"},
        tmp_path / "w.safetensors": {"kind": "weights", "tensors": 1, "metadata": {"recipe": "by hand"}},
    }
    from featkit.report.describe import describe, description_lines

    for what, facts in expected.items():
        found = describe(str(what))
        assert facts.items() <= found.items(), what
        json.dumps(found)
        assert description_lines(found)
    for what in (mapped_scene.folder, out / "features.h5", "rootsift"):
        ran = featkit_here("info", what, "--json")
        assert ran.code == 0, ran.err
        assert expected[what].items() <= ran.json().items()
    assert describe(str(mapped_scene.folder))["models"][0]["registered"] == 6
    assert "max_keypoints: 1,500" in featkit_here("info", out / "features.h5").out


def test_broken_images(featkit_command: Command, small_rendered: Any, pictures: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(pictures, tmp_path / "images"))
    whole = (small_rendered.images / "0000.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "letter.png").write_text("Dear Sir or Madam")
    for name, word in (("cut.jpg", "cut off"), ("letter.png", "not an image")):
        only = tmp_path / name.partition(".")[0]
        only.mkdir()
        shutil.copy(images / name, only)
        refused(featkit_command("extract", only, "-o", tmp_path / f"{name}.h5", "-q"), 3, name, word, "--skip-broken")
        ran = featkit_command("extract", only, "-o", tmp_path / f"{name}.h5", "-q", "--skip-broken")
        assert ran.code == 4
        assert ran.err.splitlines()[-1].startswith("featkit: ")
    ran = featkit_command("extract", images, "-o", tmp_path / "f.h5", "--skip-broken", "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["images"] == 2
    assert ran.err.count("skipped: ") == 2


def test_bad_input_and_output_paths(featkit_here: Command, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "readonly").mkdir(mode=0o555)
    target = tmp_path / "f.h5"
    refused(featkit_here("extract", tmp_path / "nowhere", "-o", target, "-q"), 3, "no such folder", "nowhere")
    refused(featkit_here("extract", tmp_path / "empty", "-o", target, "-q"), 3, "no images")
    refused(featkit_here("reconstruct", tmp_path / "nowhere", "-q"), 3, "no such folder")
    refused(featkit_here("extract", pictures, "-o", tmp_path / "file" / "f.h5", "-q"), 5, "--out")
    refused(featkit_here("reconstruct", pictures, "--out", tmp_path / "file", "-q"), 5, "file")
    refused(featkit_here("reconstruct", pictures, "--out", pictures, "-q"), 3, "holds images")
    try:
        (tmp_path / "readonly" / "probe").touch()
    except PermissionError:
        refused(featkit_here("extract", pictures, "-o", tmp_path / "readonly" / "f.h5", "-q"), 5, "readonly")
    ran = featkit_here("extract", tmp_path / "nowhere", "-o", target, "-q", "--json")
    assert ran.code == 3
    assert ran.json().keys() == {"error", "exit_code"}
    assert ran.json()["exit_code"] == 3
    assert ran.err == f"featkit: {ran.json()['error']}\n"
    assert not target.exists()


def test_bad_option_values(featkit_here: Command, pictures: Path, tmp_path: Path) -> None:
    target = tmp_path / "f.h5"
    refused(featkit_here("extract", pictures, "-o", target, "--features", "rootsif", "-q"), 2, "'rootsift'")
    refused(featkit_here("extract", pictures, "-o", target, "--set", "max_keypoint=3", "-q"), 2, "'max_keypoints'")
    scene = ("reconstruct", pictures, "--out", tmp_path / "out", "-q")
    refused(featkit_here(*scene, "--camera-params", "1,x"), 2, "--camera-params")
    refused(featkit_here(*scene, "--camera-params", "1,2"), 2, "give the model")
    refused(featkit_here(*scene, "--camera-model", "SIMPLE_PINHOL"), 2, "SIMPLE_PINHOLE")
    refused(featkit_here(*scene, "--mapper", "incrementel"), 2, "mapper")
    assert featkit_here("extract", pictures).code == 2
    assert featkit_here("extrakt").code == 2
    import torch

    if not torch.cuda.is_available():
        refused(featkit_here(*scene, "--device", "cuda"), 2, "cuda")


def test_too_little_to_map(featkit_command: Command, pictures: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(pictures / "0.jpg", one)
    refused(featkit_command("reconstruct", one, "-q"), 3, "two images")
    refused(featkit_command("reconstruct", pictures, "--out", tmp_path / "out", "-q"), 4, "match")
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_broken_and_foreign_stores(mapped_scene: Any, featkit_here: Command, tmp_path: Path) -> None:
    whole, pairs = mapped_scene.output / "features.h5", mapped_scene.output / "pairs.txt"
    cut = tmp_path / "cut.h5"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    refused(featkit_here("match", cut, pairs, "-o", tmp_path / "m.h5", "-q"), 3, "cut.h5", "truncated")
    refused(featkit_here("info", cut, "-q"), 3, "cut.h5")
    refused(featkit_here("extract", mapped_scene.folder / "images", "-o", cut, "-q"), 3, "--overwrite")
    unknown = tmp_path / "unknown.txt"
    unknown.write_text("0000.jpg 0009.jpg\n")
    refused(featkit_here("match", whole, unknown, "-o", tmp_path / "m.h5", "-q"), 3, "0009.jpg", "no features")
    other = tmp_path / "other.h5"
    assert featkit_here("extract", mapped_scene.folder / "images", "-o", other, "--max-keypoints", 50).code == 0
    matches = Path(shutil.copy(mapped_scene.output / "matches.h5", tmp_path / "matches.h5"))
    refused(featkit_here("match", other, pairs, "-o", matches, "-q"), 3, "another features fingerprint")
    refused(featkit_here("match", matches, pairs, "-o", tmp_path / "m.h5", "-q"), 3, "holds matches, not features")


def test_options_that_exclude_each_other(mapped_scene: Any, featkit_here: Command, tmp_path: Path) -> None:
    """Neither is passed over."""
    out = ("-q", "-o", tmp_path / "out.onnx")
    given = ("--reference", mapped_scene.folder / "truth" / "poses.txt", "--mapper", "global")
    refused(featkit_here("reconstruct", mapped_scene.folder, *given, *out), 2, "nothing is left for --mapper global")
    refused(featkit_here("frames", "video.mp4", "--fps", 5, "--overlap", 0.6, *out), 2, "kept by one of them")
    exported = ("weights", "export", "hardnet", "--format", "safetensors", "--name", "x")
    refused(featkit_here(*exported, *out), 2, "--format safetensors: --out")


def test_localization_mistakes(mapped_scene: Any, featkit_here: Command, pictures: Path, tmp_path: Path) -> None:
    queries, out = mapped_scene.folder / "queries", tmp_path / "out"
    (tmp_path / "empty").mkdir()
    refused(featkit_here("localize", pictures, "--queries", queries, "-o", out, "-q"), 3, "no map")
    scene = ("localize", mapped_scene.folder, "-o", out, "-q", "--queries")
    refused(featkit_here(*scene, tmp_path / "empty"), 3, "no images")
    listed = tmp_path / "list.txt"
    listed.write_text("query_0000.jpg PINHOL 400 300 360 360 200 150\n")
    refused(featkit_here(*scene, queries, "--intrinsics", listed), 3, "list.txt:1", "PINHOLE")
    listed.write_text("elsewhere.jpg PINHOLE 400 300 360 360 200 150\n")
    refused(featkit_here(*scene, queries, "--intrinsics", listed), 3, "contains none of its images")
    listed.write_text("query_0000.jpg PINHOLE 800 600 720 720 400 300\n")
    refused(featkit_here(*scene, queries, "--intrinsics", listed), 3, "400 x 300", "800 x 600")
    for lines, words in (
        ("0000.jpg query_0000.jpg\n", "no line begins with a query"),
        ("query_0000.jpg elsewhere.jpg\n", "elsewhere.jpg: no features in"),
    ):
        listed.write_text(lines)
        refused(featkit_here(*scene, queries, "--pairs", listed), 3, "list.txt", words)
    h5py.File(tmp_path / "global.h5", "w").close()
    refused(
        featkit_here(*scene, queries, "--retrieval", tmp_path / "global.h5"), 3, "no global_descriptor of '0000.jpg'"
    )
    with h5py.File(mapped_scene.output / "features.h5") as source, h5py.File(tmp_path / "other.h5", "w") as other:
        for name in source:
            source.copy(name, other)
        other["0000.jpg/keypoints"][0] += 2
    command = (*scene, queries, "--features", tmp_path / "other.h5")
    refused(featkit_here(*command), 3, "other.h5: '0000.jpg' has different keypoints from the map")
    assert not (out / "features.h5").exists()  # refused before any work
    refused(featkit_here(*scene[:2], "-o", tmp_path / "noise", "-q", "--queries", pictures), 4, "none of 2 queries")
    reasons = json.loads((tmp_path / "noise" / "poses.json").read_text())
    assert reasons["localized"] == 0
    assert all(result["reason"] for result in reasons["results"])
