"""Metrics: TensorBoard, one CSV per role, and the newest row of each for the terminal."""

import csv
import pathlib
import time
from typing import Any

from flax.metrics import tensorboard


class Recorder:
    """Writes rows of numbers to LOGDIR/ROLE.csv and to TensorBoard under LOGDIR/tensorboard/ROLE.

    The first row decides the columns, after `wall_seconds`: seconds since the run began, those of earlier processes
    of the same run counted in. A resumed run appends.
    """

    def __init__(self, logdir: pathlib.Path, role: str):
        self._path = logdir / f"{role}.csv"
        self._writer: Any = None
        last = latest(logdir, role)
        self._start = time.monotonic() - (last["wall_seconds"] if last else 0.0)
        self._columns = list(last) if last else None
        self._file = open(self._path, "a", newline="", buffering=1)
        self._tensorboard = tensorboard.SummaryWriter(str(logdir / "tensorboard" / role))

    def write(self, row: dict[str, Any]) -> None:
        """One row; `env_steps` in it is TensorBoard's x axis."""
        row = {"env_steps": row["env_steps"], "learner_steps": row["learner_steps"], "wall_seconds": round(time.monotonic() - self._start, 3), **row}
        if self._columns is None:
            self._columns = list(row)
            csv.writer(self._file).writerow(self._columns)
        csv.DictWriter(self._file, self._columns, extrasaction="ignore").writerow(row)
        for name, value in row.items():
            if value == value:  # not NaN
                self._tensorboard.scalar(name, value, row["env_steps"])

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


def read(path: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a role's CSV; none if it does not exist. A line that is still being written is left out."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    return [
        {name: float(value) for name, value in zip(rows[0], row, strict=True)}
        for row in rows[1:]
        if len(row) == len(rows[0])
    ]


def latest(logdir: pathlib.Path, role: str) -> dict[str, float] | None:
    """The last row of a role's CSV, if there is one."""
    rows = read(logdir / f"{role}.csv")
    return rows[-1] if rows else None
