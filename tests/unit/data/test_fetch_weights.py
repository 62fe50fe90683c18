"""`featkit weights fetch`: from a server with faults, from files, from a package; nothing wrong gets into the cache."""

import hashlib
import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_server import Faults, serving
from published_weights import in_catalogue, untrained
from safetensors import safe_open

from featkit.core.errors import BadInputError, EmptyResultError, NotWritableError, UsageError
from featkit.data.download import DownloadConfig
from featkit.data.fetch_weights import DOWNLOADS, CachedWeights, cache_weights
from featkit.weights import catalogue as module
from featkit.weights.catalogue import cached_file, load_published, weights_sha256

NAME = "aliked-t16"
FAST = DownloadConfig(wait_s=0.0, timeout_s=5.0, attempts=2)


def pth(tensors: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": tensors}, buffer)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def file() -> bytes:
    if not hasattr(pytest.importorskip("kornia.feature"), "ALIKED"):
        pytest.skip("this kornia has no ALIKED")
    return pth(untrained(NAME))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: bytes) -> Path:
    """An empty cache, no packages, and a catalogue that pins the file above."""
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_find_in_package", lambda file: None)
    pin(monkeypatch, file)
    return tmp_path / "cache"


def pin(monkeypatch: pytest.MonkeyPatch, file: bytes, **changes: Any) -> None:
    row = {"name": "w.pth", "url": "http://127.0.0.1:9/w.pth", "sha256": sha256(file), "size": len(file)}
    in_catalogue(monkeypatch, NAME, [{**row, **changes}])


def fetched(faults: Faults, **options: Any) -> CachedWeights:
    with serving(faults) as address:
        return cache_weights(NAME, {"w.pth": f"{address}/w.pth"}, config=FAST, **options)


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.name != "checked.json")


def test_from_a_server(file: bytes, cache: Path) -> None:
    done = fetched(Faults({"w.pth": file}))
    assert (done.path, done.sha256, done.was_there) == (cached_file(NAME), {"w.pth": sha256(file)}, False)
    assert weights_sha256(NAME) == sha256(file)
    for key, tensor in untrained(NAME).items():
        assert torch.equal(load_published(NAME).tensors[key], tensor.float())
    with safe_open(done.path, framework="pt") as opened:
        assert opened.metadata()["licence"] == "BSD-3-Clause"
    assert left(cache) == ["aliked-t16.safetensors"], "the download itself is gone"


def test_a_second_time(file: bytes) -> None:
    first = fetched(Faults({"w.pth": file}))
    content = first.path.read_bytes()
    idle = Faults({"w.pth": file})
    assert fetched(idle).was_there
    assert idle.requests == []
    assert not fetched(Faults({"w.pth": file}), overwrite=True).was_there
    assert first.path.read_bytes() == content, "the same tensors, the same bytes"


def test_a_damaged_cache_is_fetched_again(file: bytes) -> None:
    path = fetched(Faults({"w.pth": file})).path
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + b"x" + whole[-8:])
    assert not fetched(Faults({"w.pth": file})).was_there
    assert path.read_bytes() == whole


def test_it_goes_on_where_it_was_cut(file: bytes) -> None:
    half = len(file) // 2
    faults = Faults({"w.pth": file}, cut_after=[half, None], etags=['"a"'])
    assert fetched(faults).sha256 == {"w.pth": sha256(file)}
    assert faults.requests[1] == ("/w.pth", f"bytes={half}-")


def test_stopped_for_good_and_run_again(file: bytes, cache: Path) -> None:
    half = len(file) // 2
    with pytest.raises(EmptyResultError, match="arrived and are kept"):
        fetched(Faults({"w.pth": file}, cut_after=[half, 0, 0, 0], etags=['"a"']))
    assert not cached_file(NAME).exists()
    assert left(cache / DOWNLOADS)


def test_the_wrong_file(file: bytes, cache: Path) -> None:
    wrong = bytearray(file)
    wrong[1000] ^= 1
    with pytest.raises(BadInputError, match="sha256"):
        fetched(Faults({"w.pth": bytes(wrong)}))
    assert left(cache) == []


def test_no_server(cache: Path) -> None:
    with pytest.raises(EmptyResultError, match="nothing arrived"):
        cache_weights(NAME, config=FAST)
    with pytest.raises(EmptyResultError, match="404"):
        fetched(Faults({}))
    assert left(cache) == []


def test_a_file_that_nobody_pinned(file: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pin(monkeypatch, file, sha256=None, size=None)
    faults = Faults({"w.pth": file})
    with pytest.raises(UsageError, match=r"no checksum is known for w\.pth.*--sha256 w\.pth=HEX"):
        fetched(faults)
    assert faults.requests == []
    with pytest.raises(BadInputError, match="sha256"):
        fetched(faults, sha256={"w.pth": sha256(file + b" ")})
    assert not cached_file(NAME).exists()
    assert fetched(faults, sha256={"w.pth": sha256(file)}).sha256 == {"w.pth": sha256(file)}
    with pytest.raises(UsageError, match=r"--sha256 v\.pth: aliked-t16 has the files w\.pth"):
        fetched(faults, sha256={"v.pth": sha256(file)})
    with pytest.raises(UsageError, match="--sha256"):
        fetched(faults, sha256={"w.pth": "abc"})
    (tmp_path / "mine.pth").write_bytes(file)
    assert cache_weights(NAME, archives=[tmp_path / "mine.pth"]).sources == {"w.pth": str(tmp_path / "mine.pth")}


def test_a_file_that_git_names(file: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a sha256, by the name in the authors' repository: what `git hash-object` prints."""
    (tmp_path / "w.pth").write_bytes(file)
    ran = subprocess.run(["git", "hash-object", str(tmp_path / "w.pth")], capture_output=True, text=True, check=True)
    pin(monkeypatch, file, sha256=None, size=None, git_blob=ran.stdout.strip())
    with pytest.raises(BadInputError, match="it is another file"):
        fetched(Faults({"w.pth": file[:-1] + b"x"}))
    assert not cached_file(NAME).exists()
    assert fetched(Faults({"w.pth": file})).sha256 == {"w.pth": sha256(file)}


def test_as_expected_but_not_this_network(file: bytes, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    other = pth({key: value for key, value in untrained(NAME).items() if "score_head" not in key})
    pin(monkeypatch, other, sha256=None, size=None)
    with pytest.raises(BadInputError, match="not the weights of aliked-t16: it lacks"):
        fetched(Faults({"w.pth": other}), sha256={"w.pth": sha256(other)})
    assert not cached_file(NAME).exists()


class _Code:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_as_expected_but_with_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    torch.save({"conv1.weight": _Code()}, buffer)
    pin(monkeypatch, buffer.getvalue(), sha256=None, size=None)
    with pytest.raises(BadInputError, match="could run code"):
        fetched(Faults({"w.pth": buffer.getvalue()}), sha256={"w.pth": sha256(buffer.getvalue())})
    assert "run" not in capsys.readouterr().out


def test_files_on_the_disk(file: bytes, tmp_path: Path, no_network: None) -> None:
    mine = tmp_path / "any name.pth"
    mine.write_bytes(file)
    assert cache_weights(NAME, archives=[mine]).sha256 == {"w.pth": sha256(file)}
    assert mine.is_file()
    mine.write_bytes(file[:-1])
    with pytest.raises(BadInputError, match="is another file"):
        cache_weights(NAME, archives=[mine])
    with pytest.raises(BadInputError, match="no such file"):
        cache_weights(NAME, archives=[tmp_path / "none.pth"])


def test_several_files_make_one_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, parts, given = untrained("keynet-hardnet"), {}, []
    for part in ("detector.model", "detector.ori.angle_detector", "descriptor.descriptor"):
        content = pth({k.removeprefix(f"{part}."): v for k, v in whole.items() if k.startswith(part)})
        parts[f"{part}.pth"] = {"name": f"{part}.pth", "part": part, "url": "http://x/y", "sha256": sha256(content)}
        given.append(tmp_path / f"{part}.pth")
        given[-1].write_bytes(content)
    in_catalogue(monkeypatch, "keynet-hardnet", list(parts.values()))
    done = cache_weights("keynet-hardnet", archives=given)
    digests = "".join(file["sha256"] for file in parts.values())
    assert weights_sha256("keynet-hardnet") == sha256(digests.encode())
    assert load_published("keynet-hardnet").tensors.keys() == whole.keys()
    with pytest.raises(UsageError, match="not one of the files"):
        cache_weights("keynet-hardnet", archives=[*given, done.path])


def test_other_addresses_are_of_its_files() -> None:
    with pytest.raises(UsageError, match=r"aliked-t16 has the files w\.pth"):
        cache_weights(NAME, {"x.pth": "http://x/x.pth"})


def test_no_place_to_write(file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(tmp_path / "taken"))
    (tmp_path / "w.pth").write_bytes(file)
    with pytest.raises(NotWritableError):
        cache_weights(NAME, archives=[tmp_path / "w.pth"])
