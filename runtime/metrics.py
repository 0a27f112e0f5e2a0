"""Writes and reads metrics: one CSV for each role, from which the terminal has its newest rows, and TensorBoard's."""

import contextlib
import csv
import json
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorboardX.record_writer
import tensorboardX.summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from runtime.files import replacing

SETTINGS = "events.out.tfevents.0.settings"  # sorts before the files that a Recorder writes


class Recorder:
    """Writes rows of numbers to LOGDIR/ROLE.csv and to TensorBoard under LOGDIR/tensorboard/ROLE.

    The first row decides the columns: env_steps, learner_steps, `wall_seconds`, and the row's own. `wall_seconds` are
    the seconds that the run has taken, including those of its earlier processes. A resumed run appends.

    If a process is killed while it writes a row, readers skip what it left.
    """

    def __init__(self, logdir: pathlib.Path, role: str):
        self._path = logdir / f"{role}.csv"
        self._writer: Any = None
        self.last = last = latest(logdir, role)  # the row that an earlier process of this run wrote last
        self._start = time.monotonic() - (last.get("wall_seconds", 0.0) if last else 0.0)
        self._columns = _columns(self._path)
        self._file = open(self._path, "a", newline="", buffering=1)  # noqa: SIM115 (closed by close)
        if not _ends_a_line(self._path):
            self._file.write("\n")  # else the first row would continue the line that a killed process left unfinished
        folder = logdir / "tensorboard" / role
        folder.mkdir(parents=True, exist_ok=True)
        # Not a SummaryWriter: that hands its rows to a thread, and what the thread has not written is lost when the
        # process ends.
        self._tensorboard = EventsWriter(str(folder / "events"), f".{time.time_ns()}")  # a name of its own

    def write(self, row: dict[str, Any], histograms: Mapping[str, Sequence[float]] | None = None) -> None:
        """Writes one row, whose `env_steps` is TensorBoard's x axis; `histograms`, of the given values, go to
        TensorBoard alone.

        Raises:
          OSError: the row cannot be written, or the file was removed.
        """
        if not os.fstat(self._file.fileno()).st_nlink:
            raise OSError(f"{self._path} was removed while the run went on: give it a --logdir that stays")
        wall_seconds = round(time.monotonic() - self._start, 3)
        row = {"env_steps": 0, "learner_steps": 0, "wall_seconds": wall_seconds} | row
        with self._named():
            if self._columns is None:
                self._columns = list(row)
                csv.writer(self._file).writerow(self._columns)
            csv.DictWriter(self._file, self._columns, extrasaction="ignore").writerow(row)
            for name, value in row.items():
                if value == value:  # not NaN
                    self._show(tensorboardX.summary.scalar(name, value), row["env_steps"])
            for name, values in (histograms or {}).items():
                # The number of values sets that of bins: by their spread, one far away would make a million of them.
                self._show(tensorboardX.summary.histogram(name, np.asarray(values), bins="sturges"), row["env_steps"])
            self._tensorboard.flush()

    def _show(self, summary: Any, env_steps: float) -> None:
        self._tensorboard.write_event(Event(wall_time=time.time(), step=int(env_steps), summary=summary))

    def close(self) -> None:
        with self._named():
            self._file.close()
            self._tensorboard.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Has an error of writing say of which file it is, which on a full disk it does not."""
        try:
            yield
        except OSError as error:
            raise OSError(f"cannot write to {self._path}: {error.strerror or error}") from error


def show_settings(logdir: pathlib.Path, role: str, settings: Mapping[str, Any]) -> None:
    """Has TensorBoard show a run's settings beside the numbers of a role.

    They are shown as text, and in the HParams tab, which compares runs by their settings and has the role's numbers as
    its metrics.

    The settings are in a file of their own, which is replaced as a whole: a resumed run may have been given other
    settings, and TensorBoard keeps the first that it finds. TensorBoard reads a role's files in the order of their
    names, and some of its versions never go back to an earlier file; so the name of this one sorts first.

    Args:
      settings: as in LOGDIR/config.json, where `config` holds the fields of the agent's Config.
    """
    flat = {f"config.{name}": value for name, value in settings["config"].items()}
    flat |= {name: value for name, value in settings.items() if name != "config"}
    kinds = bool | int | float | str | None  # TensorBoard knows all of these but None, which is left out
    flat = {name: value if isinstance(value, kinds) else json.dumps(value) for name, value in flat.items()}
    # The list of hyperparameters and metrics is left out. Without a list, TensorBoard takes those of all runs that it
    # shows, and puts those that differ first. It would take a list from one run alone, whose agent may have others.
    _, hparams, _ = tensorboardX.summary.hparams(flat, {})
    block = "\n".join(f"    {line}" for line in json.dumps(settings, indent=2).splitlines())  # code, in Markdown
    folder, now = logdir / "tensorboard" / role, time.time()
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / SETTINGS) as new:  # TensorBoard reads no file of the new one's name
        writer = tensorboardX.record_writer.RecordWriter(str(new))
        for event in (
            Event(wall_time=now, file_version="brain.Event:2"),
            Event(wall_time=now, summary=hparams),
            Event(wall_time=now, summary=tensorboardX.summary.text("config", block)),
        ):
            writer.write(event.SerializeToString())
        writer.close()


def show(logdir: pathlib.Path, name: str, row: Mapping[str, float] | None) -> None:
    """Makes `row`, which describes the present, the only row of LOGDIR/NAME.csv; None removes the file."""
    path = logdir / f"{name}.csv"
    if row is None:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as new:
        new.write_text(",".join(row) + "\n" + ",".join(str(value) for value in row.values()) + "\n")


def return_means(names: Sequence[str], owners: Any, returns: Any) -> dict[str, float]:
    """Returns the mean return of each name as `return_mean_NAME`, NaN if it has no episode; {} if there is one name.

    Args:
      names: names of tasks, or of members.
      owners: int [n], the index in `names` of whose each return is.
      returns: [n], the returns of episodes.
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
    """Returns the rows of a role's CSV, [] if there is none. Skips lines that are broken or still being written."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        return _parse(_columns(path), file)


def read_on(path: pathlib.Path, start: int, size: int) -> tuple[list[dict[str, float]], int]:
    """Returns about `size` bytes of rows of a role's CSV from byte `start` on, and the byte to read on from.

    A line must begin at `start`. A line that is still being written is left for the next call.
    """
    if not path.exists():
        return [], start
    with open(path, "rb") as file:
        file.seek(start)
        lines = [line for line in file.readlines(size) if line.endswith(b"\n")]
    return _parse(_columns(path), lines), start + sum(map(len, lines))


def latest(logdir: pathlib.Path, role: str) -> dict[str, float] | None:
    """Returns the last row of a role's CSV, or None; reads only the end of the file, however long it has grown."""
    path = logdir / f"{role}.csv"
    if not path.exists():
        return None
    names = _columns(path)
    with open(path, "rb") as file:
        if path.stat().st_size > 10_000:
            file.seek(-10_000, os.SEEK_END)
            file.readline()  # skips the rest of a row
        rows = _parse(names, file)
    return rows[-1] if rows else None


def _columns(path: pathlib.Path) -> list[str] | None:
    """Returns the columns of a role's CSV, from its first whole line that names steps of any kind; None without it."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        for line in file:
            names = line.decode(errors="replace").strip().split(",")
            if any(name.endswith("steps") for name in names) and line.endswith(b"\n"):
                return names
    return None


def _parse(names: list[str] | None, lines: Iterable[bytes]) -> list[dict[str, float]]:
    """Returns the rows of these columns; leaves out lines of another length, and lines with anything but numbers."""
    rows = []
    for line in lines:
        values = line.strip().split(b",")
        if names and line.endswith(b"\n") and len(values) == len(names):
            with contextlib.suppress(ValueError):
                rows.append(dict(zip(names, map(float, values), strict=True)))
    return rows


def _ends_a_line(path: pathlib.Path) -> bool:
    """Returns whether a file is empty or ends with a whole line."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        return file.read() in (b"", b"\n")
