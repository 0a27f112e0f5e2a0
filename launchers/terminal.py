"""What a person sees of a run: a live line with its progress, a line per evaluation."""

import contextlib
import logging as standard_logging
import os
import pathlib
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

import rich.console
import rich.live
import rich.progress_bar
import rich.table
from absl import logging

from launchers.population import logdirs
from launchers.run import Run
from runtime import metrics

PLAIN_SECONDS = 10.0  # between two progress lines where the output is no terminal


@contextlib.contextmanager
def native_lines_in(path: pathlib.Path) -> Iterator[None]:
    """Has what C++ writes to the standard error appended to a file: Reverb notes there, in the middle of the live line,
    what its servers do. What Python writes to it is seen as before."""
    path.parent.mkdir(exist_ok=True)
    python, seen = sys.stderr, os.dup(2)
    mine = python is sys.__stderr__  # else somebody has put another in its place already
    # Absl's handler, and what a library may have set up before: each has the stream that it found.
    there: list[Any] = [logging.get_absl_handler().python_handler, *standard_logging.root.handlers]
    handlers = [h for h in there if isinstance(h, standard_logging.StreamHandler) and h.stream is python]
    with open(path, "ab") as file, open(seen, "w", buffering=1, errors="backslashreplace") as terminal:
        os.dup2(file.fileno(), 2)
        if mine:
            sys.stderr = terminal
            for handler in handlers:
                handler.setStream(terminal)
        try:
            yield
        finally:
            os.dup2(seen, 2)
            if mine:
                sys.stderr = python
                for handler in handlers:
                    handler.setStream(python)


class Display:
    """Shows a run from the CSVs that its roles write, wherever they run; call `refresh` now and then."""

    def __init__(self, run: Run, logdir: pathlib.Path):
        self._run, self._logdirs = run, logdirs(run, logdir)
        self._console = rich.console.Console(file=sys.stdout, soft_wrap=True, highlight=False)
        for logdir in self._logdirs:
            metrics.show(logdir, "evaluating", None)  # of an earlier sitting, if that was killed
        self._evaluations = [len(metrics.read(logdir / "evaluator.csv")) for logdir in self._logdirs]
        self._next_plain = time.monotonic() + PLAIN_SECONDS
        self._live = rich.live.Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self.refresh()
        with contextlib.suppress(OSError):
            self._live.stop()

    def refresh(self) -> None:
        """Shows what is new. A run outlives its terminal, and a full disk under its output."""
        with contextlib.suppress(OSError):
            self._refresh()

    def _refresh(self) -> None:
        for index, logdir in enumerate(self._logdirs):
            who = f"{logdir.name}: " if len(self._logdirs) > 1 else ""
            for row in metrics.read(logdir / "evaluator.csv")[self._evaluations[index] :]:
                self._evaluations[index] += 1
                self._console.print(
                    f"{who}evaluation at {row['env_steps']:,.0f} env steps: return {row['return_mean']:.2f} "
                    f"± {row['return_std']:.2f} over {row['episodes']:.0f} episodes" + _cut(row)
                )
        if self._console.is_terminal:
            self._live.update(self._line(), refresh=True)
        elif time.monotonic() > self._next_plain:
            self._next_plain = time.monotonic() + PLAIN_SECONDS
            self._console.print(self._text())

    def _line(self) -> rich.table.Table:
        learners = self._newest("learner")
        done = sum(row["env_steps"] for row in learners) / len(self._logdirs)
        grid = rich.table.Table.grid(padding=(0, 1))
        grid.add_row(rich.progress_bar.ProgressBar(self._run.max_env_steps, done, width=20), self._text())
        return grid

    def _newest(self, role: str) -> list[dict[str, float]]:
        rows = [metrics.latest(logdir, role) for logdir in self._logdirs]
        return [row for row in rows if row]

    def _text(self) -> str:
        learners = self._newest("learner")
        if not learners:
            return "starting: compiling and connecting"
        actors = [row for task in range(self._run.num_actors) for row in self._newest(f"actor_{task}")]
        env_steps = sum(row["env_steps"] for row in learners) / len(self._logdirs)
        parts = [
            f"{env_steps:,.0f}/{self._run.max_env_steps:,} env steps" + " of each" * (self._run.population > 0),
            f"{sum(row['env_steps_per_second'] for row in learners):,.0f}/s",
            f"{sum(row['learner_steps_per_second'] for row in learners):.1f} updates/s",
            *([f"lag {_mean(learners, 'lag'):.1f}"] if "lag" in learners[0] else []),
            f"learner waits {_mean(learners, 'wait_fraction'):.0%}",
        ]
        if actors:
            parts.append(f"actors wait {_mean(actors, 'wait_fraction'):.0%}")
            played = [row for row in actors if row["episodes"]]
            if played:
                parts.append(f"return {_mean(played, 'return_mean'):.1f}")
        parts += [evaluating(**row) for row in self._newest("evaluating")[:1]]
        return " · ".join(parts)

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._console.print(text)


def tell_of_end(run: Run, logdir: pathlib.Path) -> None:
    """Says so if a run is done before its max_env_steps."""
    ends_at = run.ends_at(logdir)
    if ends_at < run.max_env_steps:
        print(
            f"the run is done: an evaluation at {ends_at:,.0f} env steps came to --stop_at_return="
            f"{run.stop_at_return:g}",
            flush=True,
        )


def evaluating(episodes: float, steps: float, of: float, most: float) -> str:
    """How far an evaluation is, in words: `episodes` of so many have ended, in `steps` of each environment, of which
    there are `most`."""
    return f"evaluating: {episodes:.0f} of {of:.0f} episodes, {steps:,.0f} of at most {most:,.0f} steps"


def watch(playing: Generator[Any, None, Any], of: int, most: int) -> Any:
    """The episodes that evaluator.play returns; a line on stderr says now and then how far it is."""
    due = time.monotonic() + PLAIN_SECONDS
    while True:
        try:
            progress = next(playing)
        except StopIteration as end:
            return end.value
        if time.monotonic() > due:
            due = time.monotonic() + PLAIN_SECONDS
            print(evaluating(progress.episodes, progress.steps, of, most), file=sys.stderr, flush=True)


def _cut(row: dict[str, float]) -> str:
    count = row.get("episodes_cut", 0.0)  # a version without the column has written the rows
    return f", {count:.0f} of which were cut" if count else ""


def _mean(rows: list[dict[str, float]], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)
