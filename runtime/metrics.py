"""Metrics: TensorBoard, one CSV per role, and the newest row of each for the terminal."""

import contextlib
import csv
import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorboardX
import tensorboardX.record_writer
import tensorboardX.summary
from tensorboardX.proto.event_pb2 import Event

SETTINGS = "events.out.tfevents.0.settings"  # sorts before the files that a Recorder writes


class Recorder:
    """Writes rows of numbers to LOGDIR/ROLE.csv and to TensorBoard under LOGDIR/tensorboard/ROLE.

    The first row decides the columns, after `wall_seconds`: seconds since the run began, those of earlier processes
    of the same run counted in. A resumed run appends.

    What a process that was killed left of a row is no row: readers pass over it.
    """

    def __init__(self, logdir: pathlib.Path, role: str):
        self._path = logdir / f"{role}.csv"
        self._writer: Any = None
        self.last = last = latest(logdir, role)  # the row that an earlier process of this run wrote last
        self._start = time.monotonic() - (last.get("wall_seconds", 0.0) if last else 0.0)
        self._columns = _columns(self._path)
        self._file = open(self._path, "a", newline="", buffering=1)  # noqa: SIM115 (closed by close)
        if not _ends_a_line(self._path):
            self._file.write("\n")  # else the first row would be the rest of what a killed process left
        self._tensorboard = tensorboardX.SummaryWriter(str(logdir / "tensorboard" / role))

    def write(self, row: dict[str, Any], histograms: Mapping[str, Sequence[float]] | None = None) -> None:
        """One row; `env_steps` in it is TensorBoard's x axis. `histograms` of many values are TensorBoard's alone.

        Raises:
          OSError: it cannot be written, or the file was removed.
        """
        if not os.fstat(self._file.fileno()).st_nlink:
            raise OSError(f"{self._path} was removed while the run went on: give it a --logdir that stays")
        wall_seconds = round(time.monotonic() - self._start, 3)
        row = {"env_steps": 0, "learner_steps": 0, "wall_seconds": wall_seconds} | row
        if self._columns is None:
            self._columns = list(row)
            csv.writer(self._file).writerow(self._columns)
        csv.DictWriter(self._file, self._columns, extrasaction="ignore").writerow(row)
        for name, value in row.items():
            if value == value:  # not NaN
                self._tensorboard.add_scalar(name, value, row["env_steps"])
        for name, values in (histograms or {}).items():
            self._tensorboard.add_histogram(name, np.asarray(values), row["env_steps"])

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


def show_settings(logdir: pathlib.Path, role: str, settings: Mapping[str, Any]) -> None:
    """Has TensorBoard show a run's settings beside the numbers of a role: in the HParams tab, which compares runs by
    them, with the role's numbers as its metrics, and as text.

    They are in a file of their own, which is replaced as a whole: a run that is resumed may have been given other
    settings, and TensorBoard keeps to the first that it finds. It reads a role's files in the order of their names, and
    some of its versions never turn back to an earlier one; so this one comes first.

    Args:
      settings: as in LOGDIR/config.json, where `config` holds the fields of the agent's Config.
    """
    flat = {f"config.{name}": value for name, value in settings["config"].items()}
    flat |= {name: value for name, value in settings.items() if name != "config"}
    kinds = bool | int | float | str | None  # of which TensorBoard knows all but None, which is left out
    flat = {name: value if isinstance(value, kinds) else json.dumps(value) for name, value in flat.items()}
    # What is left out is which hyperparameters and metrics there are: TensorBoard then takes those of all runs that it
    # shows, and puts first what differs; a list it would take from one run alone, whose agent may have others.
    _, hparams, _ = tensorboardX.summary.hparams(flat, {})
    block = "\n".join(f"    {line}" for line in json.dumps(settings, indent=2).splitlines())  # Markdown's, for code
    folder, now = logdir / "tensorboard" / role, time.time()
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / "settings.new"  # which TensorBoard does not take for one of its files
    writer = tensorboardX.record_writer.RecordWriter(str(new))
    for event in (
        Event(wall_time=now, file_version="brain.Event:2"),
        Event(wall_time=now, summary=hparams),
        Event(wall_time=now, summary=tensorboardX.summary.text("config", block)),
    ):
        writer.write(event.SerializeToString())
    writer.close()
    new.replace(folder / SETTINGS)


def show(logdir: pathlib.Path, name: str, row: Mapping[str, float] | None) -> None:
    """Has LOGDIR/NAME.csv hold one row, of what is so now alone; None: nothing is, and there is no such file."""
    path = logdir / f"{name}.csv"
    if row is None:
        path.unlink(missing_ok=True)
        return
    new = path.with_suffix(".new")  # whoever reads sees the one or the other
    new.write_text(",".join(row) + "\n" + ",".join(str(value) for value in row.values()) + "\n")
    new.rename(path)


def return_means(names: Sequence[str], owners: Any, returns: Any) -> dict[str, float]:
    """`return_mean_NAME` of each of several names, NaN where it has no episode; nothing of a single one.

    Args:
      names: of tasks, or of members.
      owners: int [n], whose each of the `returns` [n] is.
    """
    if len(names) == 1:
        return {}
    owners, returns = np.asarray(owners, int), np.asarray(returns, np.float64)
    of_each = [returns[owners == index] for index in range(len(names))]
    return {
        f"return_mean_{name}": float(x.mean()) if x.size else float("nan")
        for name, x in zip(names, of_each, strict=True)
    }


def read(path: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a role's CSV; none if it does not exist. A line that is broken, or still being written, is no row."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        return _parse(_columns(path), file)


def read_on(path: pathlib.Path, start: int, size: int) -> tuple[list[dict[str, float]], int]:
    """Rows of a role's CSV from a byte on where a line begins, about `size` bytes of them, and the byte to go on from.
    A line that is still being written is left for the next time."""
    if not path.exists():
        return [], start
    with open(path, "rb") as file:
        file.seek(start)
        lines = [line for line in file.readlines(size) if line.endswith(b"\n")]
    return _parse(_columns(path), lines), start + sum(map(len, lines))


def latest(logdir: pathlib.Path, role: str) -> dict[str, float] | None:
    """The last row of a role's CSV, if there is one; from the file's end, however long it has grown."""
    path = logdir / f"{role}.csv"
    if not path.exists():
        return None
    names = _columns(path)
    with open(path, "rb") as file:
        if path.stat().st_size > 10_000:
            file.seek(-10_000, os.SEEK_END)
            file.readline()  # the rest of a row
        rows = _parse(names, file)
    return rows[-1] if rows else None


def _columns(path: pathlib.Path) -> list[str] | None:
    """The columns of a role's CSV: its first whole line that names steps of any kind. None: it has none."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        for line in file:
            names = line.decode(errors="replace").strip().split(",")
            if any(name.endswith("steps") for name in names) and line.endswith(b"\n"):
                return names
    return None


def _parse(names: list[str] | None, lines: Iterable[bytes]) -> list[dict[str, float]]:
    """The rows of these columns; lines of another length, or of something else than numbers, are left out."""
    rows = []
    for line in lines:
        values = line.strip().split(b",")
        if names and line.endswith(b"\n") and len(values) == len(names):
            with contextlib.suppress(ValueError):
                rows.append(dict(zip(names, map(float, values), strict=True)))
    return rows


def _ends_a_line(path: pathlib.Path) -> bool:
    """Whether a file is empty, or ends with a whole line."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        return file.read() in (b"", b"\n")
