"""What a training leaves behind, beside its checkpoint: config.yaml, metrics.csv, TensorBoard events, summary.json."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from jaxtyping import UInt8

from featkit import __version__
from featkit.config import Config
from featkit.store.artifact import explained, no_links, write_bytes, write_text, writing
from featkit.store.disk import require_space
from featkit.store.stamp import is_foreign, refuse_foreign

CONFIG, HEADER = "config.yaml", "# the configuration of a training by featkit "
FILES = (
    "checkpoint.pt",
    "metrics.csv",
    "summary.json",
    "report.html",
    "bad_batch.npz",
    CONFIG,
    "best.safetensors",
    "last.safetensors",
)
LOGGER = logging.getLogger(__name__)
FIRST_COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "wait_share")
ROOM_BYTES = 1 << 20  # TensorBoard's writer, a thread of its own, does not take a full disk
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 85)
Row = dict[str, float]


class RunFolder:
    """Paths and writers of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.metrics = path / "metrics.csv"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.bad_batch = path / "bad_batch.npz"
        self.snapshots = path / "snapshots"
        self.pictures = path / "pictures"
        self._events: Any = None

    def refuse_foreign(self) -> None:
        """Raise BadInputError when files of a run's names are there that no training of featkit's wrote."""
        folders = (self.snapshots, self.pictures, self.path / "tensorboard")
        refuse_foreign(*(path for path in folders if path.is_symlink()))
        if not (self.checkpoint.is_file() and not is_foreign(self.checkpoint)) and not _is_own(self.path / CONFIG):
            refuse_foreign(*(self.path / name for name in FILES), self.snapshots, self.pictures)

    def remove(self) -> None:
        """Delete what an earlier run wrote, and nothing else. Raises BadInputError, NotWritableError."""
        self.refuse_foreign()
        with explained(self.path):
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
            for folder, pattern in (
                (self.path / "tensorboard", "events.out.tfevents.*"),
                (self.snapshots, "step_*.safetensors"),
                (self.pictures, f"*_{'[0-9]' * 7}.jpg"),
            ):
                for path in folder.glob(pattern):
                    path.unlink()
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def start(self, config: Config, task: str, history: list[Row]) -> None:
        """Write config.yaml and the rows so far; what a killed run wrote after its checkpoint goes."""
        require_space(self.checkpoint, ROOM_BYTES)
        values = {"task": task, **config.model_dump(mode="json")}
        text = f"{HEADER}{__version__}\n{yaml.safe_dump(values, sort_keys=False)}"
        write_text(self.path / CONFIG, text, owned=True)
        self.write_metrics(history)
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError:
            LOGGER.info("tensorboardX is not installed: curves are in %s only", self.metrics.name)
            return
        purge = int(history[-1]["step"]) + 1 if history else 0
        self._events = SummaryWriter(str(self.path / "tensorboard"), purge_step=purge)

    def write_metrics(self, history: list[Row]) -> None:
        """All rows, as metrics.csv."""
        names = dict.fromkeys(FIRST_COLUMNS) | dict.fromkeys(key for row in history for key in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: repr(value) if key != "step" else int(value) for key, value in row.items()} for row in history
        )
        write_text(self.metrics, text.getvalue(), owned=True)

    def add(self, row: Row, history: list[Row]) -> None:
        """One more row, the last of `history`. Raises NotWritableError before the disk is full."""
        require_space(self.checkpoint, ROOM_BYTES)
        header = self._header() if len(history) > 1 else []
        if set(row) <= set(header):
            cells = ["" if key not in row else repr(row[key]) if key != "step" else int(row[key]) for key in header]
            with open(self.metrics, "a", newline="", opener=no_links) as file:
                csv.writer(file, lineterminator="\n").writerow(cells)
        else:
            self.write_metrics(history)
        if self._events is not None:
            for key, value in row.items():
                if key != "step":
                    self._events.add_scalar(key, value, int(row["step"]))
            self._events.flush()

    def _header(self) -> list[str]:
        """Columns of metrics.csv."""
        if not self.metrics.exists():
            return []
        with self.metrics.open(newline="") as file:
            return next(csv.reader(file), [])

    def add_pictures(self, step: int, pictures: dict[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        """RUN/pictures/NAME_STEP.jpg, and in TensorBoard."""
        for name, pixels in pictures.items():
            done, content = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), JPEG)
            assert done
            write_bytes(self.pictures / f"{name}_{step:07d}.jpg", content.tobytes(), owned=True)
            if self._events is not None:
                self._events.add_image(name, pixels, step, dataformats="HWC")

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_text(self.summary, json.dumps(summary, indent=1) + "\n", owned=True)

    def save_bad_batch(self, step: int, arrays: dict[str, Any]) -> None:
        """The batch at which a number stopped being one."""
        with writing(self.bad_batch, owned=True) as file:
            np.savez(file, step=step, **arrays)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def _is_own(config: Path) -> bool:
    """Whether a training wrote a config.yaml; those of earlier versions are known by what is in them."""
    try:
        text = config.read_text(encoding="utf-8")
        values = {} if text.startswith(HEADER) else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return False
    known = {"task", "optimiser", "schedule", "held_out"}
    return not config.is_symlink() and (
        text.startswith(HEADER) or (isinstance(values, dict) and known <= values.keys())
    )


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.csv; empty cells are left out."""
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value != ""} for row in csv.DictReader(file)]
