"""What was recorded of a baseline: FOLDER/record.json, its settings in config.json, and each seed's evaluations in
seedN.csv."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable

import numpy as np

from runtime import metrics, statistics

FILE = "record.json"


@dataclasses.dataclass(frozen=True)
class Result:
    """Of one seed. What a version before the record did not keep is None."""

    return_mean: float  # of the last checkpoint, over `episodes`
    return_std: float | None = None
    episodes: int = 100
    env_steps: int | None = None
    wall_seconds: float | None = None  # of scripts/train
    cpu_seconds: float | None = None
    params: str | None = None  # the digest that scripts/evaluate prints
    date: str = ""
    commit: str = ""  # of the code; "+" behind it: with changes
    lock: str = ""  # the lock file, the beginning of its SHA-256, and the Python
    machine: str = ""
    earlier: str = ""  # the command line of an older version that this stands for, whose settings were not kept


@dataclasses.dataclass(frozen=True)
class Record:
    command: str
    results: dict[int, Result]  # by seed

    @property
    def returns(self) -> np.ndarray:
        """[seeds], in the order of the seeds."""
        return np.array([self.results[seed].return_mean for seed in sorted(self.results)])

    @property
    def made(self) -> set[int]:
        """The seeds that were made since there is a record of settings."""
        return {seed for seed, result in self.results.items() if not result.earlier}

    @property
    def is_earlier(self) -> bool:
        return len(self.made) < len(self.results)


def read(folder: pathlib.Path) -> Record | None:
    """None where nothing was recorded.

    Raises:
      ValueError: the file is not as `write` leaves it.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        return Record(values["command"], {int(seed): Result(**each) for seed, each in values["seeds"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no record: {error!r}") from error


def write(folder: pathlib.Path, record: Record) -> None:
    """Whole, or not at all."""
    seeds = {
        str(seed): {name: value for name, value in dataclasses.asdict(result).items() if value not in (None, "")}
        for seed, result in sorted(record.results.items())
    }
    unfinished = folder / f"{FILE}.unfinished"
    unfinished.write_text(json.dumps({"command": record.command, "seeds": seeds}, indent=1) + "\n")
    unfinished.replace(folder / FILE)


def curve(path: pathlib.Path, x: str = "env_steps") -> np.ndarray:
    """The evaluations of an evaluator.csv, [n, 2]: `x`, which only grows, and the returns' mean.

    Where `x` goes back, as after a start from an older checkpoint, what came later takes the place of what it was by
    then. What is not finite is left out. Of a file that is not there there are none.

    Raises:
      ValueError: it has other columns.
    """
    points: list[tuple[float, ...]] = []
    columns = (x, "return_mean")
    for row in metrics.read(path):
        check_columns(path, row, columns)
        point = tuple(row[column] for column in columns)
        if not all(map(math.isfinite, point)):
            continue
        while points and points[-1][0] >= point[0]:
            points.pop()
        points.append(point)
    return np.array(points).reshape(-1, 2)


def check_columns(path: pathlib.Path, row: dict[str, float], columns: Iterable[str]) -> None:
    """Raises ValueError unless a row of the file has these columns."""
    for column in columns:
        if column not in row:
            raise ValueError(f"{path} has no column {column}")


def curves(folder: pathlib.Path, record: Record) -> list[np.ndarray]:
    """The evaluations of each seed that has some, by itself and not by its members, [n, 2] each."""
    found = [curve(folder / f"seed{seed}.csv") for seed in sorted(record.results)]
    return [each for each in found if len(each)]


def last_five(folder: pathlib.Path, record: Record) -> np.ndarray:
    """The mean return of each seed's last five evaluations, [seeds]: what the last checkpoint alone may hide."""
    return np.array([each[-5:, 1].mean() for each in curves(folder, record)])


def area(folder: pathlib.Path, record: Record) -> np.ndarray:
    """The mean return over each seed's run, [seeds]: the area under its curve over its length."""
    import scipy.integrate  # only now: it takes half a second

    long = [each for each in curves(folder, record) if len(each) > 1]
    return np.array([scipy.integrate.trapezoid(*each.T[::-1]) / np.ptp(each[:, 0]) for each in long])


def spoken(values: np.ndarray) -> str:
    """A mean over seeds with its interval: `498.2 [495.1, 500]`; of a single seed the value alone."""
    if not len(values):
        return ""
    low, high = statistics.interval(values[:, None])
    mean = number(values.mean())
    return mean if len(values) == 1 else f"{mean} [{number(low[0])}, {number(high[0])}]"


def number(value: float) -> str:
    """With as many places as a return needs: 5841, 498.2, -16.1, 0.97."""
    places = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{places}f}".rstrip("0").rstrip(".") if places else f"{value:,.0f}"
