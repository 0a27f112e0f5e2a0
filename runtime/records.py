"""Records of baselines. FOLDER has a record.json, the settings in config.json, and each seed's evaluations in
seedN.csv."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable

import numpy as np

from runtime import metrics, statistics
from runtime.files import replacing

FILE = "record.json"


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one seed. Fields that older versions of Shoal did not record are None."""

    return_mean: float  # mean return of the last checkpoint, over `episodes` episodes
    return_std: float | None = None
    episodes: int = 100
    env_steps: int | None = None
    wall_seconds: float | None = None  # taken by scripts/train
    cpu_seconds: float | None = None  # taken by all its sittings
    params: str | None = None  # the digest of the parameters that scripts/evaluate prints
    date: str = ""
    commit: str = ""  # the code's; a "+" behind it: the code had changes that were not committed
    lock: str = ""  # the lock file, the beginning of its SHA-256, and the Python
    machine: str = ""
    earlier: str = ""  # if an older version made it, whose settings were not kept: that version's command line


@dataclasses.dataclass(frozen=True)
class Record:
    command: str
    results: dict[int, Result]  # by seed

    @property
    def returns(self) -> np.ndarray:
        """The mean return of each seed, [seeds], in the order of the seeds."""
        return np.array([self.results[seed].return_mean for seed in sorted(self.results)])

    @property
    def made(self) -> set[int]:
        """The seeds whose settings were kept, unlike those of older versions."""
        return {seed for seed, result in self.results.items() if not result.earlier}

    @property
    def is_earlier(self) -> bool:
        return len(self.made) < len(self.results)


def read(folder: pathlib.Path) -> Record | None:
    """Returns a baseline's record, or None if nothing was recorded.

    Raises:
      OSError: the file cannot be read, or is not as `write` leaves it.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        return Record(values["command"], {int(seed): Result(**each) for seed, each in values["seeds"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OSError(f"{path} is not the record of a baseline: {error!r}") from error


def write(folder: pathlib.Path, record: Record) -> None:
    """Writes a record, whole or not at all."""
    seeds = {
        str(seed): {name: value for name, value in dataclasses.asdict(result).items() if value not in (None, "")}
        for seed, result in sorted(record.results.items())
    }
    with replacing(folder / FILE) as new:
        new.write_text(json.dumps({"command": record.command, "seeds": seeds}, indent=1) + "\n")


def curve(path: pathlib.Path, x: str = "env_steps") -> np.ndarray:
    """Returns the evaluations in an evaluator.csv, [n, 2]: the column `x`, which only grows, and the mean return.

    Where `x` goes back in the file, as after a start from an older checkpoint, the later rows replace the earlier ones
    from there on. Rows that are not finite are left out. Without a file there are no rows.

    Raises:
      ValueError: the file has other columns.
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
    """Returns the evaluations of each seed, [n, 2] each. Seeds without any, or whose members have their own, are left
    out."""
    found = [curve(folder / f"seed{seed}.csv") for seed in sorted(record.results)]
    return [each for each in found if len(each)]


def last_five(folder: pathlib.Path, record: Record) -> np.ndarray:
    """Returns the mean return of each seed's last five evaluations, [seeds]; it shows what one checkpoint may hide."""
    return np.array([each[-5:, 1].mean() for each in curves(folder, record)])


def area(folder: pathlib.Path, record: Record) -> np.ndarray:
    """Returns the mean return over each seed's run, [seeds]: the area under its curve, divided by its length."""
    import scipy.integrate  # only now: it takes half a second

    long = [each for each in curves(folder, record) if len(each) > 1]
    return np.array([scipy.integrate.trapezoid(*each.T[::-1]) / np.ptp(each[:, 0]) for each in long])


def spoken(values: np.ndarray) -> str:
    """Returns a mean over seeds and its interval as text, `498.2 [495.1, 500]`; the value alone for a single seed."""
    if not len(values):
        return ""
    low, high = statistics.interval(values[:, None])
    mean = number(values.mean())
    return mean if len(values) == 1 else f"{mean} [{number(low[0])}, {number(high[0])}]"


def number(value: float) -> str:
    """Returns a number as text with as many places as a return needs: 5,841, 498.2, -16.1, 0.97."""
    places = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{places}f}".rstrip("0").rstrip(".") if places else f"{value:,.0f}"
