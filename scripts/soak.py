"""Watches what the processes of real runs hold: memory, threads, file descriptors.

  scripts/soak --minutes=60 --runs=queue,replay   # both at once

Every 15 seconds each process adds a row to LOGDIR/soak.csv: minutes since the start, process, resident memory in MB,
threads, descriptors. At the end the mean level of each process and its growth in an hour are printed. The growth is the
slope of a straight line. The first sixth of the time, in which processes import, compile and fill their buffers, is
left out.
"""

import csv
import dataclasses
import pathlib
import signal
import time
from collections import defaultdict

import numpy as np
import rich.progress

from launchers import flags
from launchers.settings import UsageError, setting
from scripts.chaos import ENDLESS, Run, folder_for_runs, named

PERIOD_SECONDS = 15.0
WARM_UP = 1 / 6  # share of the time that the levels and growths leave out
ROWS = "soak.csv"
COLUMNS = ("minutes", "process", "mb", "threads", "descriptors")


@dataclasses.dataclass
class Soak:
    minutes: float = setting(60.0, "minutes for which the runs go on", least=1)
    runs: str = setting(
        "queue,replay",
        "which runs, with commas between: queue (IMPALA on CartPole-v1), replay (DDPG on Pendulum-v1, two replay "
        "servers)",
    )
    seed: int = setting(0, "the random seed of the runs", least=0)
    logdir: pathlib.Path = setting(None, "the folder in which the runs are kept", default_words="a temporary folder")


def holds(process: int) -> tuple[float, int, int]:
    """Returns a process's resident memory in MB, its number of threads, and its number of file descriptors.

    Raises:
      OSError: the process has ended.
    """
    entry = pathlib.Path(f"/proc/{process}")
    status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), len(list((entry / "fd").iterdir()))


def growth(minutes: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Returns the mean of `values` [N], and their growth in an hour by a straight line over `minutes` [N]."""
    slope = np.polyfit(minutes / 60, values, 1)[0] if len(set(minutes)) > 1 else 0.0
    return float(np.mean(values)), float(slope)


def summarize(rows: list[tuple[float, str, float, int, int]], first: float) -> list[str]:
    """Returns a line for each process, of its rows from minute `first` on: what it holds, and how that grows."""
    by_process = defaultdict(list)
    for minute, process, *numbers in rows:
        if minute >= first:
            by_process[process].append((minute, *numbers))
    lines = []
    for process, seen in sorted(by_process.items()):
        minutes, *columns = np.asarray(seen, float).T
        words = []
        for name, values in zip(COLUMNS[2:], columns, strict=True):
            level, slope = growth(minutes, values)
            words.append(f"{level:.1f} {name} ({slope:+.1f} in an hour)")
        lines.append(f"{process}: {', '.join(words)}")
    return lines


@flags.command(Soak)
def soak() -> int:
    asked = flags.FLAGS
    names = named(asked.runs)
    if asked.logdir and (asked.logdir / ROWS).exists():
        raise UsageError(f"{asked.logdir / ROWS} has the rows of an earlier call: choose another --logdir")
    folder, arguments = folder_for_runs(asked.logdir, "soak"), [f"--seed={asked.seed}", ENDLESS]
    runs: list[Run] = []
    rows: list[tuple[float, str, float, int, int]] = []
    try:
        for name in names:
            run = Run(name, folder / name, arguments, patience=60.0)
            run.start()
            runs.append(run)
        start = time.monotonic()
        with open(folder / ROWS, "w", newline="") as file, rich.progress.Progress() as progress:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            bar = progress.add_task("minutes", total=asked.minutes)
            while (minutes := (time.monotonic() - start) / 60) < asked.minutes:
                for run in runs:
                    if run.over:
                        print(f"{run.name} ended with exit code {run.launcher.returncode}: see {run.logdir}")
                        return 1
                    for name, process in run.processes().items():
                        try:
                            rows.append((minutes, f"{run.name} {name}", *holds(process)))
                        except OSError:  # it has just ended
                            continue
                        writer.writerow([f"{minutes:.2f}", *rows[-1][1:]])
                file.flush()
                progress.update(bar, completed=minutes)
                time.sleep(PERIOD_SECONDS)
        for run in runs:
            print(f"{run.name}: {run.rows('learner')} rows of its learner; score {run.score()}")
            run.end(signal.SIGTERM)
    finally:
        for run in runs:
            run.kill()
    print("\n".join(summarize(rows, asked.minutes * WARM_UP)))
    print(f"rows: {folder / ROWS}")
    return 0


if __name__ == "__main__":
    flags.main(soak)
