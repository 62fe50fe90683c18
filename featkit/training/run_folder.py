"""The folder of a training run: records, checkpoint, and progress display."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from jaxtyping import UInt8

from featkit import __version__
from featkit.core.config import Config
from featkit.core.errors import BadInputError, NotWritableError, blaming, refuse_pipe
from featkit.core.log import progress
from featkit.images.listing import marked
from featkit.io.artifact import explained, no_links, write_bytes, write_text, writing
from featkit.io.atomic import is_foreign, refuse_foreign, require_space

LOGGER = logging.getLogger(__name__)
# ----------------------------------------------------------------------------------------------------------------------
# Records of a training next to its checkpoint: config.yaml, metrics.csv, TensorBoard events, summary.json.


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
FIRST_COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "wait_share")
ROOM_BYTES = 1 << 20  # TensorBoard's writer thread does not handle a full disk
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
        """Raises BadInputError if files with a run's names exist that featkit did not write."""
        folders = (self.snapshots, self.pictures, self.path / "tensorboard")
        refuse_foreign(*(path for path in folders if path.is_symlink()))
        if not (self.checkpoint.is_file() and not is_foreign(self.checkpoint)) and not _is_own_config(
            self.path / CONFIG
        ):
            refuse_foreign(*(self.path / name for name in FILES), self.snapshots, self.pictures)

    def remove(self) -> None:
        """Delete only the files of an earlier run. Raises BadInputError, NotWritableError."""
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
        """Write config.yaml and the rows so far; rows that a killed run wrote after its checkpoint are dropped."""
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
        """Write all rows to metrics.csv."""
        names = dict.fromkeys(FIRST_COLUMNS) | dict.fromkeys(key for row in history for key in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: repr(value) if key != "step" else int(value) for key, value in row.items()} for row in history
        )
        write_text(self.metrics, text.getvalue(), owned=True)

    def add(self, row: Row, history: list[Row]) -> None:
        """Append a row, the last of `history`. Raises NotWritableError before the disk is full."""
        require_space(self.checkpoint, ROOM_BYTES)
        header = self._read_header() if len(history) > 1 else []
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

    def _read_header(self) -> list[str]:
        """Columns of metrics.csv."""
        if not self.metrics.exists():
            return []
        with self.metrics.open(newline="") as file:
            return next(csv.reader(file), [])

    def add_pictures(self, step: int, pictures: dict[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        """Write RUN/pictures/NAME_STEP.jpg, and add the pictures to TensorBoard."""
        for name, pixels in pictures.items():
            is_encoded, content = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), JPEG)
            assert is_encoded
            write_bytes(self.pictures / f"{name}_{step:07d}.jpg", marked(content.tobytes()), owned=True)
            if self._events is not None:
                self._events.add_image(name, pixels, step, dataformats="HWC")

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_text(self.summary, json.dumps(summary, indent=1) + "\n", owned=True)

    def save_bad_batch(self, step: int, arrays: dict[str, Any]) -> None:
        """Save the batch that led to NaN or infinity."""
        with writing(self.bad_batch, owned=True) as file:
            np.savez(file, step=step, **arrays)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def _is_own_config(config: Path) -> bool:
    """Whether featkit wrote this config.yaml; files of earlier versions are recognised by their keys."""
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
    """The rows of a metrics.csv, without empty cells."""
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value != ""} for row in csv.DictReader(file)]


# ----------------------------------------------------------------------------------------------------------------------
# The checkpoint: everything needed to resume, written atomically and read without executing code.


FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state (tensors, arrays, plain values) atomically. Raises NotWritableError."""
    try:
        with writing(path, owned=True, sync=True) as file:  # foreign files were refused at the start of the run
            torch.save(picklable({"format": FORMAT, **state}), file)
    except (NotWritableError, RuntimeError) as error:  # torch raises RuntimeError when the disk is full
        reason = str(error).splitlines()[0].removeprefix(f"{path}: ")
        raise NotWritableError(
            f"{path}: the checkpoint cannot be written ({reason}); the previous one is kept"
        ) from None


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state, on the CPU; None if there is no file. Raises BadInputError if it is not a featkit checkpoint."""
    if not path.exists():
        return None
    with blaming(path, "a checkpoint of featkit", "use --overwrite to discard it"):
        refuse_pipe(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BadInputError(f"{path}: not a checkpoint of this featkit; use --overwrite to discard it")
    return state


def picklable(value: Any) -> Any:
    """The value with numpy arrays as tensors and numpy scalars as Python's, as torch.load(weights_only=True) needs."""
    if isinstance(value, dict):
        return {key: picklable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [picklable(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    return value


# ----------------------------------------------------------------------------------------------------------------------
# Progress display: log lines with loss, speed, time left and validation score; a progress bar on a terminal.


LINE_EVERY_S = 15.0
RECENT = 0.9  # decay of the displayed loss's moving average


class Progress:
    """Counts steps and reports progress; `speed` covers the steps since its last call."""

    def __init__(self, steps: int, done: int, items_per_step: int, unit: str, quiet: bool = False):
        """unit: name of a step's items, in the plural."""
        self._steps, self._first, self._step = steps, done, done
        self._items, self._unit, self._quiet = items_per_step, unit, quiet
        self._bar = progress("train", steps - done, "steps") if sys.stderr.isatty() and not quiet else None
        self._loss: float | None = None
        self._started = self._last_line_at = self._speed_since = time.monotonic()
        self._speed_step, self._speed_wait_s = done, 0.0

    def __enter__(self) -> Progress:
        self._advance = self._bar.__enter__() if self._bar is not None else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    def stepped(self, loss: float, score: str) -> None:
        """Count one step. score: text of the validation score, if it was evaluated after this step."""
        self._step += 1
        self._loss = loss if self._loss is None else RECENT * self._loss + (1 - RECENT) * loss
        if self._advance is not None:
            self._advance(1)
        now = time.monotonic()
        if self._quiet or (not score and now - self._last_line_at < LINE_EVERY_S):
            return
        self._last_line_at = now
        rate = (self._step - self._first) / max(now - self._started, 1e-9)
        text = f"step {self._step}/{self._steps}: loss {self._loss:.4f}, {number(rate * self._items)} {self._unit}/s"
        if self._step < self._steps:
            text += f", {duration((self._steps - self._step) / rate)} left"
        LOGGER.info("%s", f"{text}, {score}" if score else text)

    def paused(self, seconds: float) -> None:
        """Exclude this time from the speed."""
        self._speed_since += seconds

    def speed(self, waited_s: float) -> dict[str, float]:
        """<unit>_per_s and wait_share since the last call. waited_s: total seconds waited for data so far."""
        now = time.monotonic()
        span = max(now - self._speed_since, 1e-9)
        steps = self._step + 1 - self._speed_step  # the step of this row is counted after it
        row = {
            f"{self._unit}_per_s": steps * self._items / span,
            "wait_share": (waited_s - self._speed_wait_s) / span,
        }
        self._speed_since, self._speed_step, self._speed_wait_s = now, self._step + 1, waited_s
        return row


def number(value: float) -> str:
    """At least three significant digits: `286`, `4.31`."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
