"""Stores that a kill has left half written."""

from __future__ import annotations

from pathlib import Path

import pytest
from killed_writes import NAMES, Made, Moment, Moments, features_of

from featkit.io import journal
from featkit.io.features import append_features


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Moments:
    """A store is written, and one of its items once more."""
    folder = tmp_path_factory.mktemp("moments")
    found = Moments(folder / "features.h5", folder / "at")
    with append_features(found.store, Made()):
        pass
    found.flushed = found.store.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_write_all", found.in_halves)
        for name in ("truncate", "flush", "close"):
            plain = getattr(journal.JournalledFile, name)
            patch.setattr(journal.JournalledFile, name, found.around(plain, flushes=name == "flush"))
        with append_features(found.store, Made()) as store:
            for name in (*NAMES, NAMES[0]):
                store.write(name, features_of(name))
                found.items.append(name)
    return found


@pytest.fixture
def torn(moments: Moments, tmp_path: Path) -> tuple[Path, Moment]:
    """A store of which the most has been overwritten since its last flush."""
    journals = [moments.folder / str(number) / ".features.h5.journal" for number in range(len(moments.moments))]
    number = max(range(len(journals)), key=lambda i: journals[i].stat().st_size if journals[i].exists() else 0)
    return moments.copy(number, tmp_path), moments.moments[number]
