"""Where files of Aachen Day-Night are looked for, by empty files of the published names, and what becomes of pairs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from featkit.core.errors import BadInputError, UsageError
from featkit.core.types import Pair
from featkit.data.aachen import (
    database_pairs,
    find_aachen,
    place_images,
    published_lists,
    query_names,
    query_pairs,
    read_queries,
)
from featkit.data.fetch import data_set

CAMERA = "SIMPLE_RADIAL 1600 1200 1469.2 800 600 -0.0353"
NIGHT, MORE = "query/night/nexus5x/IMG_1.jpg", "query/night/nexus5x_additional_night/IMG_2.jpg"
V11 = "3D-models/aachen_v_1_1"
PLAIN = (
    "images/images_upright/db/1.jpg",
    f"images/images_upright/{NIGHT}",
    f"{V11}/cameras.bin",
    f"{V11}/images.bin",
    f"{V11}/points3D.bin",
    "3D-models/aachen_cvpr2018_db.nvm",
    "3D-models/database_intrinsics.txt",
)
FETCHED = (
    "images_upright/db/1.jpg",
    f"images_upright/{NIGHT}",
    f"aachen_v1_1/images_upright/{MORE}",
    f"aachen_v1_1/{V11}/aachen_v_1_1.nvm",
    f"aachen_v1_1/{V11}/database_intrinsics_v1_1.txt",
)


def put(root: Path, *names: str, text: str = "") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def listed(*names: str) -> str:
    return "".join(f"{name} {CAMERA}\n" for name in names)


def test_the_published_folders(tmp_path: Path) -> None:
    put(tmp_path, *PLAIN, "image_pairs_to_match.txt", "image_pairs_to_match_v1_1.txt")
    put(tmp_path, "pairs/aachen_v1.1/pairs-db-covis20.txt", "pairs/aachen/pairs-query-netvlad50.txt")
    put(tmp_path, "queries/night_time_queries_with_intrinsics.txt", text=listed(NIGHT, MORE))
    new, old = find_aachen(tmp_path, "1.1", "night"), find_aachen(tmp_path, "1.0", "night")
    assert (new.model, new.nvm) == (tmp_path / V11, None)
    assert (old.model, old.nvm) == (None, tmp_path / "3D-models/aachen_cvpr2018_db.nvm")
    assert old.intrinsics == tmp_path / "3D-models/database_intrinsics.txt"
    assert new.challenge_pairs == tmp_path / "image_pairs_to_match_v1_1.txt"
    assert old.challenge_pairs == tmp_path / "image_pairs_to_match.txt"
    assert new.database_pairs == tmp_path / "pairs/aachen_v1.1/pairs-db-covis20.txt"
    assert (new.query_pairs, old.database_pairs) == (None, None)
    assert old.query_pairs == tmp_path / "pairs/aachen/pairs-query-netvlad50.txt"
    assert list(read_queries(new)["night"]) == [NIGHT, MORE]
    assert list(read_queries(old)["night"]) == [NIGHT]
    assert query_names(tmp_path, "1.1") == {"night": [NIGHT, MORE]}
    with pytest.raises(BadInputError, match=r"missing: queries/day_time_queries_with_intrinsics\.txt"):
        find_aachen(tmp_path, "1.1", "day-night")


def test_as_data_fetch_leaves_it(tmp_path: Path) -> None:
    """Both versions' lists of the night are there, and the photographs lie in two folders."""
    names = {file.folder or file.name for file in data_set("aachen").files}
    flat = [name for name in names if "." in name and not name.endswith(".zip") and name != "aachen_v1_1"]
    assert {"images_upright", "aachen_v1_1"} <= names
    put(tmp_path, *FETCHED, *flat)
    put(tmp_path, "night_time_queries_with_intrinsics.txt", text=listed(NIGHT))
    put(tmp_path, "day_time_queries_with_intrinsics.txt", text=listed("query/day/nexus4/IMG_0.jpg"))
    put(tmp_path, "aachen_v1_1/queries/night_time_queries_with_intrinsics.txt", text=listed(NIGHT, MORE))
    files = find_aachen(tmp_path, "1.1", "day-night")
    assert files.nvm == tmp_path / "aachen_v1_1" / V11 / "aachen_v_1_1.nvm"
    assert list(read_queries(files)["night"]) == [NIGHT, MORE]
    lists = (files.challenge_pairs, files.database_pairs, files.query_pairs)
    assert all(path is not None and path.parent == tmp_path for path in lists)
    old = find_aachen(tmp_path, "1.0", "night")
    assert list(read_queries(old)["night"]) == [NIGHT]
    assert (old.database_pairs, old.query_pairs) != (files.database_pairs, files.query_pairs)

    assert place_images(files, ["db/1.jpg", NIGHT], tmp_path / "links") == tmp_path / "images_upright"
    assert not (tmp_path / "links").exists()
    for _ in range(2):
        links = place_images(files, ["db/1.jpg", MORE], tmp_path / "links")
        assert links == tmp_path / "links"
        assert (links / MORE).resolve() == tmp_path / "aachen_v1_1/images_upright" / MORE
    with pytest.raises(
        BadInputError, match=r"no sequences/a.jpg and 1 more of 3 .*database_and_query_images.zip and aac"
    ):
        place_images(files, ["db/1.jpg", "sequences/a.jpg", "db/2.jpg"], tmp_path / "links")
    for name in ("../1.jpg", "/etc/1.jpg"):
        with pytest.raises(BadInputError, match="leads outside"):
            place_images(files, [name], tmp_path / "links")


def test_the_catalogue_invents_nothing() -> None:
    """Every file that is looked for can be fetched; sizes and checksums stand together, for lists of pairs alone."""
    sources = {file.name: file.sources[0] for file in data_set("aachen").files}
    assert {"database_and_query_images.zip", "aachen_v1_1.zip", "aachen_cvpr2018_db.nvm"} <= sources.keys()
    for name, source in sources.items():
        assert (source.sha256 is None) == (source.size is None)
        assert source.sha256 is None or "pairs" in name
        assert source.url.startswith("https://")


def test_what_does_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match=r"--version 2: there is 1\.1 and 1\.0"):
        find_aachen(tmp_path, "2", "night")
    with pytest.raises(UsageError, match="one of night, day-night"):
        find_aachen(tmp_path, "1.1", "day")
    with pytest.raises(BadInputError, match="no such folder"):
        find_aachen(tmp_path / "none", "1.1", "night")
    with pytest.raises(BadInputError) as refused:
        find_aachen(tmp_path, "1.0", "night")
    for word in ("images_upright", "aachen_cvpr2018_db.nvm", "database_intrinsics.txt", "night_time", "data fetch"):
        assert word in str(refused.value)
    put(tmp_path, *PLAIN)
    put(tmp_path, "queries/night_time_queries_with_intrinsics.txt", text=listed(NIGHT))
    with caplog.at_level(logging.WARNING, "featkit"):
        read_queries(find_aachen(tmp_path, "1.1", "night"))
    assert "is it the list of v1.0?" in caplog.text
    put(tmp_path, "queries/night_time_queries_with_intrinsics.txt", text=listed(MORE))
    with pytest.raises(BadInputError, match=r"no query of v1\.0"):
        read_queries(find_aachen(tmp_path, "1.0", "night"))


def test_pairs_of_a_list_are_parted(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(f"db/1.jpg db/2.jpg\n{NIGHT} db/2.jpg\ndb/1.jpg {NIGHT}\ndb/2.jpg db/1.jpg\ndb/1.jpg db/9.jpg\n")
    mapped = ["db/1.jpg", "db/2.jpg"]
    assert database_pairs(path, mapped) == [Pair("db/1.jpg", "db/2.jpg")]
    assert query_pairs(path, [NIGHT, MORE], mapped) == [Pair(NIGHT, "db/2.jpg"), Pair(NIGHT, "db/1.jpg")]
    with pytest.raises(BadInputError, match="another version"):
        database_pairs(path, ["db/7.jpg"])
    with pytest.raises(BadInputError, match="another version"):
        query_pairs(path, [MORE], mapped)


def test_which_lists_belong_to_which_queries(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, *PLAIN, "image_pairs_to_match_v1_1.txt")
    for time in ("day", "night"):
        put(tmp_path, f"queries/{time}_time_queries_with_intrinsics.txt")
    files = find_aachen(tmp_path, "1.1", "day-night")
    night, both = published_lists(files, "night"), published_lists(files, "day-night")
    assert night.database == night.queries == files.challenge_pairs
    assert (both.database, both.queries) == (None, None)
    given = published_lists(files, "night", query_pairs=Path("mine.txt"))
    assert (given.database, given.queries) == (files.challenge_pairs, Path("mine.txt"))
    assert not caplog.records
    (tmp_path / "image_pairs_to_match_v1_1.txt").unlink()
    put(tmp_path, "pairs/aachen_v1.1/pairs-db-covis20.txt")
    files = find_aachen(tmp_path, "1.1", "night")
    with caplog.at_level(logging.WARNING, "featkit"):
        other = published_lists(files, "night")
    assert (other.database, other.queries) == (files.database_pairs, None)
    assert "the challenge's pair list is missing" in caplog.text
