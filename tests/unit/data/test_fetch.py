"""Downloads from a server that cuts, lies and sends archives that do harm."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bad_server import Faults, serving

from featkit.core.errors import BadInputError, EmptyResultError, NotWritableError, UsageError
from featkit.data.download import DownloadConfig, RemoteFile, download
from featkit.data.fetch import RECORD, CatalogueFile, DataSet, FetchOptions, Source, data_set, data_sets, fetch
from featkit.data.unpack import UnpackConfig, unpack

BODY = np.random.default_rng(0).bytes(100_000)
MD5 = hashlib.md5(BODY).hexdigest()
SHA256 = hashlib.sha256(BODY).hexdigest()
HASTY = DownloadConfig(wait_s=0, attempts=3, timeout_s=5)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


def tarred(entries: dict[str, bytes], *odd: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for info in odd:
            file.addfile(info)
    return buffer.getvalue()


# --- one file over the line ---


def test_a_file_arrives_whole(tmp_path: Path) -> None:
    with serving(Faults({"a.bin": BODY})) as address:
        fetched = download(RemoteFile(f"{address}/a.bin", "a.bin", MD5, SHA256, len(BODY)), tmp_path, HASTY)
    assert files_of(tmp_path) == {"a.bin": BODY}
    assert (fetched.md5, fetched.sha256, fetched.size) == (MD5, SHA256, len(BODY))


def test_a_cut_connection_is_gone_on_with(tmp_path: Path) -> None:
    faults = Faults({"a.bin": BODY}, cut_after=[30_000, 0, 0, 50_000, None], etags=['"v1"'])
    with serving(faults) as address:
        download(RemoteFile(f"{address}/a.bin", "a.bin", MD5), tmp_path, HASTY)
    assert files_of(tmp_path) == {"a.bin": BODY}
    assert [wanted for _, wanted in faults.requests] == [None, *["bytes=30000-"] * 3, "bytes=80000-"]


def test_a_second_run_goes_on_where_the_first_gave_up(tmp_path: Path) -> None:
    faults = Faults({"a.bin": BODY}, cut_after=[30_000, 0, 0, 0, None], etags=['"v1"'])
    with serving(faults) as address:
        remote = RemoteFile(f"{address}/a.bin", "a.bin", MD5, size=len(BODY))
        with pytest.raises(EmptyResultError, match=r"30,000 of 100,000 bytes arrived .* run the same command again"):
            download(remote, tmp_path, HASTY)
        assert not (tmp_path / "a.bin").exists(), "a part never has the file's name"
        download(remote, tmp_path, HASTY)
    assert files_of(tmp_path) == {"a.bin": BODY}
    assert faults.requests[-1][1] == "bytes=30000-"


def test_a_server_without_ranges_begins_anew(tmp_path: Path) -> None:
    with serving(Faults({"a.bin": BODY}, cut_after=[30_000, None], ranges=False)) as address:
        download(RemoteFile(f"{address}/a.bin", "a.bin", MD5), tmp_path, HASTY)
    assert files_of(tmp_path) == {"a.bin": BODY}


def test_a_part_that_was_not_asked_for_is_not_glued_on(tmp_path: Path) -> None:
    """The server answers each range with one that starts 7 bytes earlier; nothing but the checksum would tell."""
    faults = Faults({"a.bin": BODY}, cut_after=[30_000, None, None], wrong_range=True)
    with serving(faults) as address:
        download(RemoteFile(f"{address}/a.bin", "a.bin"), tmp_path, HASTY)
    assert files_of(tmp_path) == {"a.bin": BODY}


@pytest.mark.parametrize(("tag", "newer"), [('"v2"', BODY[::-1]), ("", b"newer" * 9_000)], ids=["tag", "size"])
def test_a_file_that_changed_meanwhile_is_begun_anew(tmp_path: Path, tag: str, newer: bytes) -> None:
    faults = Faults({"a.bin": BODY}, cut_after=[30_000, 0, 0, 0, None], etags=['"v1"'] if tag else [])
    with serving(faults) as address:
        remote = RemoteFile(f"{address}/a.bin", "a.bin")
        with pytest.raises(EmptyResultError):
            download(remote, tmp_path, HASTY)
        faults.files["a.bin"], faults.etags = newer, [tag] if tag else []
        download(remote, tmp_path, HASTY)
    assert files_of(tmp_path) == {"a.bin": newer}


def test_a_length_that_is_never_reached_gives_up(tmp_path: Path) -> None:
    with serving(Faults({"a.bin": BODY}, stated_extra=10, ranges=False)) as address:
        with pytest.raises(EmptyResultError, match=r"100,000 bytes arrived .*cut after 100,000 of 100,010"):
            download(RemoteFile(f"{address}/a.bin", "a.bin"), tmp_path, HASTY)
        assert not (tmp_path / "a.bin").exists()


def test_a_length_that_the_server_takes_back_is_forgiven(tmp_path: Path) -> None:
    """Asked for what is missing it says that the file ends there."""
    faults = Faults({"a.bin": BODY}, stated_extra=10, etags=['"v1"'])
    with serving(faults) as address:
        download(RemoteFile(f"{address}/a.bin", "a.bin"), tmp_path, HASTY)
    assert [wanted for _, wanted in faults.requests] == [None, "bytes=100000-"]
    assert files_of(tmp_path) == {"a.bin": BODY}


def test_a_body_without_length_is_held_against_the_known_size(tmp_path: Path) -> None:
    with serving(Faults({"a.bin": BODY}, no_length=True, cut_after=[40_000, None])) as address:
        download(RemoteFile(f"{address}/a.bin", "a.bin", size=len(BODY)), tmp_path, HASTY)
    assert files_of(tmp_path) == {"a.bin": BODY}


def test_an_endless_body_is_stopped(tmp_path: Path) -> None:
    small = DownloadConfig(wait_s=0, attempts=2, max_bytes=50_000)
    for faults in (Faults({"a.bin": BODY}), Faults({"a.bin": BODY}, no_length=True)):
        with serving(faults) as address, pytest.raises(BadInputError, match="50,000"):
            download(RemoteFile(f"{address}/a.bin", "a.bin"), tmp_path, small)


@pytest.mark.parametrize("wrong", [{"md5": "0" * 32}, {"sha256": "0" * 64}, {"size": 99_999}])
def test_the_wrong_file_is_not_kept(tmp_path: Path, wrong: dict[str, str | int]) -> None:
    with serving(Faults({"a.bin": BODY})) as address, pytest.raises(BadInputError, match="not the published"):
        download(RemoteFile(f"{address}/a.bin", "a.bin", **wrong), tmp_path, HASTY)  # type: ignore[arg-type]
    assert files_of(tmp_path) == {}


def test_a_part_that_is_whole_already_is_recognised(tmp_path: Path) -> None:
    faults = Faults({"a.bin": BODY}, cut_after=[len(BODY), None], no_length=True, etags=['"v1"'])
    with serving(faults) as address:
        remote = RemoteFile(f"{address}/a.bin", "a.bin", size=len(BODY) + 1)
        with pytest.raises(BadInputError, match="not the published 100,001"):
            download(remote, tmp_path, HASTY)
    assert "bytes=100000-" in [wanted for _, wanted in faults.requests]


def test_a_missing_file_is_not_asked_for_again(tmp_path: Path) -> None:
    faults = Faults({})
    with serving(faults) as address, pytest.raises(EmptyResultError, match="404"):
        download(RemoteFile(f"{address}/a.bin", "a.bin"), tmp_path, HASTY)
    assert len(faults.requests) == 1


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    with serving(Faults({"a.bin": BODY}, status=[503, 429])) as address:
        download(RemoteFile(f"{address}/a.bin", "a.bin", MD5), tmp_path, HASTY)
    assert files_of(tmp_path) == {"a.bin": BODY}


def test_nobody_answers(tmp_path: Path) -> None:
    with serving(Faults({})) as address:
        pass
    with pytest.raises(EmptyResultError, match="nothing arrived"):
        download(RemoteFile(f"{address}/a.bin", "a.bin"), tmp_path, HASTY)


def test_only_the_web_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    with pytest.raises(UsageError, match="not an http or https address"):
        download(RemoteFile(secret.as_uri(), "a.bin"), tmp_path / "out", HASTY)
    refusals = {secret.as_uri(): EmptyResultError, "ftp://127.0.0.1/a.bin": UsageError}
    for target, error in refusals.items():
        faults = Faults({"a.bin": BODY}, redirect_to=target)
        with serving(faults) as address, pytest.raises(error, match=r"is not allowed|not an http or https address"):
            download(RemoteFile(f"{address}/a.bin", "a.bin"), tmp_path / "out", HASTY)
        assert len(faults.requests) == 1, "asking again does not help"
    assert files_of(tmp_path / "out") == {}
    with serving(Faults({"target": BODY}, redirect_to="/target")) as address:
        download(RemoteFile(f"{address}/a.bin", "a.bin", MD5), tmp_path / "out", HASTY)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with serving(Faults({"a.bin": BODY})) as address, pytest.raises(NotWritableError):
        download(RemoteFile(f"{address}/a.bin", "a.bin"), tmp_path / "file" / "below", HASTY)


# --- archives ---


def written(tmp_path: Path, content: bytes, name: str = "archive") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


GOOD = {"set/info.txt": b"info", "set/deep/patches0000.bmp": b"bits" * 100}
PLAIN = {"info.txt": b"info", "deep/patches0000.bmp": b"bits" * 100}


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("entries", [GOOD, PLAIN])
def test_one_folder_around_everything_is_left_out(tmp_path: Path, pack: object, entries: dict[str, bytes]) -> None:
    assert callable(pack)
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_bytes(b"replaced")
    archive = written(tmp_path, pack(entries))
    with pytest.raises(BadInputError, match="not made by featkit"):
        unpack(archive, out)
    assert files_of(out) == {"old": b"replaced"}
    assert unpack(archive, out, owned=True) == 2
    assert files_of(out) == PLAIN
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "out"], "nothing else is left"


ESCAPES = ["../out.txt", "a/../../out.txt", "/tmp/featkit-escaped", "C:/out.txt", "..\\out.txt", "a\\..\\..\\out.txt"]


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_outside_are_refused(tmp_path: Path, pack: object, name: str) -> None:
    assert callable(pack)
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = written(inner, pack({"set/info.txt": b"info", name: b"harm"}))
    with pytest.raises(BadInputError, match="leads outside"):
        unpack(archive, inner / "out")
    assert files_of(tmp_path) == {"inner/archive": archive.read_bytes()}


def odd(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo("set/odd")
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "info",
    [
        odd(tarfile.SYMTYPE, "/etc/passwd"),
        odd(tarfile.LNKTYPE, "set/info.txt"),
        odd(tarfile.CHRTYPE),
        odd(tarfile.FIFOTYPE),
    ],
    ids=["symlink", "hardlink", "device", "fifo"],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, info: tarfile.TarInfo) -> None:
    with pytest.raises(BadInputError, match="a link or a device"):
        unpack(written(tmp_path, tarred(GOOD, info)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo("set/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(BadInputError, match="a link or a device"):
        unpack(written(tmp_path, buffer.getvalue()), tmp_path / "out")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_bomb_is_not_unpacked(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    archive = written(tmp_path, pack({"zeros": bytes(3_000_000)}))
    assert archive.stat().st_size < 5_000
    careful = UnpackConfig(ratio_floor_bytes=1_000_000)
    with pytest.raises(BadInputError, match="unpacks to more than"):
        unpack(archive, tmp_path / "out", careful)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]
    assert unpack(archive, tmp_path / "out", UnpackConfig()) == 1, "a small file of zeros is none"


def test_a_zip_that_lies_about_its_sizes_is_counted_by_its_bytes(tmp_path: Path) -> None:
    content = bytearray(zipped({"zeros": bytes(3_000_000)}))
    true_size = (3_000_000).to_bytes(4, "little")
    assert content.count(true_size) == 2
    archive = written(tmp_path, bytes(content.replace(true_size, (10).to_bytes(4, "little"))))
    with pytest.raises(BadInputError):
        unpack(archive, tmp_path / "out", UnpackConfig(ratio_floor_bytes=1_000_000))
    assert not (tmp_path / "out").exists()


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    archive = written(tmp_path, zipped({f"{number}": b"" for number in range(20)}))
    with pytest.raises(BadInputError, match="more than 10 files"):
        unpack(archive, tmp_path / "out", UnpackConfig(max_files=10))


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_half_an_archive_is_refused(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    whole = pack({"set/noise": BODY})
    with pytest.raises(BadInputError, match="not a complete zip or tar archive"):
        unpack(written(tmp_path, whole[: len(whole) // 2]), tmp_path / "out")
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0xFF
    with pytest.raises(BadInputError, match="not a complete zip or tar archive"):
        unpack(written(tmp_path, bytes(broken)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_error_page_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="not a complete zip or tar archive"):
        unpack(written(tmp_path, b"<html>this domain is for sale</html>"), tmp_path / "out")


# --- a data set ---


def a_set(address: str, **checksums: str) -> DataSet:
    archive = CatalogueFile(name="set.zip", folder="set", sources=[Source(url=f"{address}/set.zip", **checksums)])
    plain = CatalogueFile(name="labels.mat", sources=[Source(url=f"{address}/labels.mat")])
    return DataSet(summary="", page="http://example.org", terms="", files=[archive, plain])


def test_a_set_is_fetched_unpacked_and_noted(tmp_path: Path) -> None:
    content = zipped(GOOD)
    faults = Faults({"set.zip": content, "labels.mat": BODY})
    with serving(faults) as address:
        wanted = a_set(address, md5=hashlib.md5(content).hexdigest())
        first = fetch(wanted, tmp_path / "out", download_config=HASTY)
        asked = len(faults.requests)
        second = fetch(wanted, tmp_path / "out", download_config=HASTY)
        assert len(faults.requests) == asked, "what is there is not asked for again"
    record = files_of(tmp_path / "out").pop(RECORD)
    assert json.loads(record)["labels.mat"]["sha256"] == SHA256
    assert files_of(tmp_path / "out" / "set") == PLAIN
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [RECORD, "labels.mat", "set"]
    assert [f.was_there for f in first + second] == [False, False, True, True]


def test_an_archive_that_is_none_of_the_files_is_refused(tmp_path: Path) -> None:
    """It would be passed over, and the file downloaded."""
    (tmp_path / "sets.zip").write_bytes(zipped(GOOD))
    for name, error in (("sets.zip", UsageError), ("set.zip", BadInputError)):
        with pytest.raises(error, match=name):
            fetch(a_set("http://127.0.0.1:9"), tmp_path / "out", FetchOptions({}, archives=[tmp_path / name]), HASTY)
    assert not (tmp_path / "out").exists()


def test_one_file_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    message = r"^missing: set.zip \(1 of 2 files are there\); .*404"
    with serving(Faults({"labels.mat": BODY})) as address, pytest.raises(EmptyResultError, match=message):
        fetch(a_set(address), tmp_path, download_config=HASTY)
    assert (tmp_path / "labels.mat").read_bytes() == BODY


@pytest.mark.parametrize("dead", ["gone", "page", "harm"])
def test_the_next_source_is_tried(tmp_path: Path, dead: str) -> None:
    files = {"good.zip": zipped(GOOD), "page.zip": b"<html></html>", "harm.zip": zipped({"../harm": b"harm"})}
    with serving(Faults(files)) as address:
        sources = [Source(url=f"{address}/{dead}.zip"), Source(url=f"{address}/good.zip")]
        file = CatalogueFile(name="set.zip", folder="set", sources=sources)
        wanted = DataSet(summary="", page="", terms="", files=[file])
        (done,) = fetch(wanted, tmp_path, download_config=HASTY)
    assert done.source.endswith("good.zip")
    assert files_of(tmp_path / "set") == PLAIN
    assert sorted(path.name for path in tmp_path.iterdir()) == [RECORD, "set"]


def test_what_one_source_began_is_kept_while_the_next_is_tried(tmp_path: Path) -> None:
    faults = Faults({"first.mat": BODY}, cut_after=[30_000, 0, 0, 0], etags=['"v1"'])
    with serving(faults) as address:
        sources = [Source(url=f"{address}/first.mat"), Source(url=f"{address}/second.mat")]
        file = CatalogueFile(name="a.mat", sources=sources)
        wanted = DataSet(summary="", page="", terms="", files=[file])
        with pytest.raises(EmptyResultError):
            fetch(wanted, tmp_path, download_config=HASTY)
        fetch(wanted, tmp_path, download_config=HASTY)
    assert faults.requests[-1] == ("/first.mat", "bytes=30000-")
    assert (tmp_path / "a.mat").read_bytes() == BODY


def test_a_harmful_archive_is_refused_and_not_kept(tmp_path: Path) -> None:
    faults = Faults({"set.zip": zipped({"../harm": b"harm"}), "labels.mat": BODY})
    with serving(faults) as address, pytest.raises(BadInputError, match="leads outside"):
        fetch(a_set(address), tmp_path / "out", download_config=HASTY)
    assert not (tmp_path / "harm").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [RECORD, "labels.mat"]


def test_without_a_published_checksum_the_first_download_decides(tmp_path: Path) -> None:
    faults = Faults({"set.zip": zipped(GOOD), "labels.mat": BODY})
    with serving(faults) as address:
        fetch(a_set(address), tmp_path, download_config=HASTY)
        faults.files["set.zip"] = zipped(PLAIN)
        with pytest.raises(BadInputError, match="at the first download it was"):
            fetch(a_set(address), tmp_path, FetchOptions({}, overwrite=True), HASTY)
    assert files_of(tmp_path / "set") == PLAIN, "what was there stays"


def test_an_archive_from_elsewhere_is_checked_and_kept(tmp_path: Path) -> None:
    archive = written(tmp_path, zipped(GOOD), "set.zip")
    other = a_set("http://127.0.0.1:9", md5="0" * 32)
    with pytest.raises(BadInputError, match="not the published"):
        fetch(other, tmp_path / "out", FetchOptions({}, archives=[archive], only=["set"]))
    (done,) = fetch(a_set("http://127.0.0.1:9"), tmp_path / "out", FetchOptions({}, archives=[archive], only=["set"]))
    assert files_of(done.path) == PLAIN
    assert archive.exists()


def test_another_address_can_be_given(tmp_path: Path) -> None:
    with serving(Faults({"mirror.mat": BODY})) as address:
        options = FetchOptions({"labels": f"{address}/mirror.mat"}, only=["labels"])
        (done,) = fetch(a_set("http://127.0.0.1:9"), tmp_path, options, HASTY)
    assert done.path.read_bytes() == BODY
    with pytest.raises(UsageError, match="not a file of this data set"):
        fetch(a_set("http://127.0.0.1:9"), tmp_path, FetchOptions({"label": "http://x"}))


def test_the_catalogue_is_whole() -> None:
    assert set(data_sets()) == {"phototour", "hpatches", "hpatches-sequences", "rome", "aachen"}
    assert [file.folder for file in data_set("phototour").files] == ["liberty", "notredame", "yosemite"]
    for wanted in data_sets().values():
        for file in wanted.files:
            assert all(source.url.startswith(("http://", "https://")) for source in file.sources)
    with pytest.raises(UsageError, match="did you mean 'phototour'"):
        data_set("phototur")
