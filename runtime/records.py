"""What was recorded of a baseline: FOLDER/record.json, its settings in config.json, and each seed's evaluations in
seedN.csv."""

import dataclasses
import json
import pathlib

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
    def is_earlier(self) -> bool:
        return any(each.earlier for each in self.results.values())


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


def evaluations(folder: pathlib.Path, seed: int) -> np.ndarray:
    """Those of a seed's run: environment steps and mean returns, [n, 2]; of a population's members the mean."""
    rows = metrics.read(folder / f"seed{seed}.csv")
    return np.array([(row["env_steps"], row["return_mean"]) for row in rows]).reshape(-1, 2)


def last_five(folder: pathlib.Path, record: Record) -> np.ndarray:
    """The mean return of each seed's last five evaluations, [seeds]: what the last checkpoint alone may hide."""
    curves = [evaluations(folder, seed) for seed in sorted(record.results)]
    return np.array([curve[-5:, 1].mean() for curve in curves if len(curve)])


def area(folder: pathlib.Path, record: Record) -> np.ndarray:
    """The mean return over each seed's run, [seeds]: the area under its curve over its length."""
    import scipy.integrate  # only now: it takes half a second

    curves = [evaluations(folder, seed) for seed in sorted(record.results)]
    return np.array(
        [scipy.integrate.trapezoid(*curve.T[::-1]) / np.ptp(curve[:, 0]) for curve in curves if len(curve) > 1]
    )


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
