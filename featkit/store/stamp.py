"""A small json beside an output that says what made it: written last, so an output with its stamp is whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from featkit import __version__
from featkit.config import Config
from featkit.store.text import write_text


def digest(*parts: str) -> str:
    """16 hex digits of a hash over texts, in order."""
    joined = "\n".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def write_stamp(path: Path, config: Config, inputs: str, **more: Any) -> None:
    """Write the stamp `path`. inputs: digest of everything that was read."""
    described = {
        "featkit_version": __version__,
        "fingerprint": config.fingerprint(),
        "inputs": inputs,
        "config": config.result_fields(),
        **more,
    }
    write_text(path, json.dumps(described, indent=1) + "\n")


def read_stamp(path: Path) -> dict[str, Any] | None:
    """The stamp, or None when there is none that can be read."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return described if isinstance(described, dict) else None


def is_stamped(path: Path, config: Config, inputs: str) -> bool:
    """Whether `path` says that the same configuration and inputs made the output."""
    stamp = read_stamp(path)
    return stamp is not None and (stamp.get("fingerprint"), stamp.get("inputs")) == (config.fingerprint(), inputs)
