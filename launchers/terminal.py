"""What the terminal shows of a run: a live line with its progress, and a line for each evaluation."""

import contextlib
import logging as standard_logging
import os
import pathlib
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

import rich.console
import rich.progress
import rich.table
from absl import logging

from launchers.population import logdirs
from launchers.run import Run
from runtime import metrics

PLAIN_SECONDS = 10.0  # between two progress lines, where the output is no terminal
SPEED_SECONDS = 120.0  # the speed over the last of these seconds estimates the time left
# What the live line may say besides the time left, the most important first. It says as much as there is room for.
IMPORTANCE = (
    "starting",
    "evaluating",
    "return",
    "env_steps",
    "speed",
    "learner_waits",
    "actors_wait",
    "updates",
    "lag",
)


@contextlib.contextmanager
def native_lines_in(path: pathlib.Path) -> Iterator[None]:
    """Appends what C++ code writes to the standard error to the file `path`, until the block ends: Reverb would write
    notes on its servers into the middle of the live line. What Python writes there is shown as before."""
    path.parent.mkdir(exist_ok=True)
    python, seen = sys.stderr, os.dup(2)
    mine = python is sys.__stderr__  # else other code has replaced it already, and it stays
    # absl's handler, and those that a library may have set up before. Each holds the stream that it found then.
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
    """Shows a run from the CSVs that its roles write, wherever they run. `refresh` is to be called now and then."""

    def __init__(self, run: Run, logdir: pathlib.Path):
        self._run, self._logdirs = run, logdirs(run, logdir)
        self._console = rich.console.Console(file=sys.stdout, soft_wrap=True, highlight=False)
        for logdir in self._logdirs:
            metrics.show(logdir, "evaluating", None)  # left by an earlier sitting that was killed
        self._evaluations = [len(metrics.read(logdir / "evaluator.csv")) for logdir in self._logdirs]
        self._next_plain = time.monotonic() + PLAIN_SECONDS
        self._bar = rich.progress.BarColumn()
        self._progress = rich.progress.Progress(
            self._bar,
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeRemainingColumn(table_column=rich.table.Column(no_wrap=True)),
            rich.progress.TextColumn("{task.description}", markup=False),
            console=self._console,
            auto_refresh=False,
            transient=True,
            speed_estimate_period=SPEED_SECONDS,
        )
        # The speed is measured from where the run is now: an earlier sitting may have been slower or faster.
        done: Any = self._env_steps(self._newest("learner"))
        self._task = self._progress.add_task("", total=run.max_env_steps, completed=done)

    def __enter__(self) -> "Display":
        if self._console.is_interactive:
            self._advance()
            self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.refresh()
        if self._console.is_interactive:
            with contextlib.suppress(OSError):
                self._progress.stop()

    def refresh(self) -> None:
        """Shows what is new. An output that is closed, or on a full disk, does not end the run."""
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
        if self._console.is_interactive:
            self._advance()
            self._progress.refresh()
        elif time.monotonic() > self._next_plain:
            self._next_plain = time.monotonic() + PLAIN_SECONDS
            self._console.print(self._text())

    def _advance(self) -> None:
        """Updates the live line's progress and text."""
        self._bar.bar_width = max(1, self._console.width // 8)
        done = self._env_steps(self._newest("learner"))
        self._progress.update(self._task, completed=done, description=self._short_text())

    def _newest(self, role: str) -> list[dict[str, float]]:
        rows = [metrics.latest(logdir, role) for logdir in self._logdirs]
        return [row for row in rows if row]

    def _env_steps(self, learners: list[dict[str, float]]) -> float:
        """Returns the environment steps of the run so far: the mean over its learners, given the newest row of each."""
        return sum(row["env_steps"] for row in learners) / len(self._logdirs)

    def _text(self) -> str:
        return " · ".join(self._parts().values())

    def _short_text(self) -> str:
        """Returns what the live line says after the time left: everything, or as much as fits in one line of the
        terminal's present width."""
        parts = self._parts()
        whole = " · ".join(["left", *parts.values()])
        if "env_steps" in parts:
            parts["env_steps"] = f"{self._env_steps(self._newest('learner')):,.0f} env steps"
        for row in self._newest("evaluating")[:1]:
            parts["evaluating"] = f"evaluating {row['episodes']:.0f}/{row['of']:.0f}"
        # Besides the bar the line has a percentage (100%), the time left (100:00:00) and a space after each.
        room = self._console.width - (self._bar.bar_width or 0) - len("100%100:00:00") - 3
        if len(whole) <= room:
            return whole
        said: dict[str, str] = {}
        for name in IMPORTANCE:
            more = {each: part for each, part in parts.items() if each in said or each == name}
            if len(" · ".join(["left", *more.values()])) <= room:
                said = more
        text = " · ".join(["left", *said.values()])
        return text if len(text) <= room else ""

    def _parts(self) -> dict[str, str]:
        """Returns all that can be said of the run, in words, by the names of IMPORTANCE."""
        learners = self._newest("learner")
        if not learners:
            return {"starting": "starting: compiling and connecting"}
        actors = [row for task in range(self._run.num_actors) for row in self._newest(f"actor_{task}")]
        of_each = " of each" * (self._run.population > 0)
        parts = {
            "env_steps": f"{self._env_steps(learners):,.0f}/{self._run.max_env_steps:,} env steps{of_each}",
            "speed": f"{sum(row['env_steps_per_second'] for row in learners):,.0f}/s",
            "updates": f"{sum(row['learner_steps_per_second'] for row in learners):.1f} updates/s",
        }
        if "lag" in learners[0]:
            parts["lag"] = f"lag {_mean(learners, 'lag'):.1f}"
        parts["learner_waits"] = f"learner waits {_mean(learners, 'wait_fraction'):.0%}"
        if actors:
            parts["actors_wait"] = f"actors wait {_mean(actors, 'wait_fraction'):.0%}"
            played = [row for row in actors if row["episodes"]]
            if played:
                parts["return"] = f"return {_mean(played, 'return_mean'):.1f}"
        for row in self._newest("evaluating")[:1]:
            parts["evaluating"] = evaluating(**row)
        return parts

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._console.print(text)


def tell_of_end(run: Run, logdir: pathlib.Path) -> None:
    """Prints a line if a run was done before its max_env_steps, because an evaluation came to --stop_at_return."""
    ends_at = run.ends_at(logdir)
    if ends_at < run.max_env_steps:
        print(
            f"the run is done: an evaluation at {ends_at:,.0f} env steps came to --stop_at_return="
            f"{run.stop_at_return:g}",
            flush=True,
        )


def evaluating(episodes: float, steps: float, of: float, most: float) -> str:
    """Returns in words how far an evaluation is: `episodes` out of `of` have ended, after `steps` steps of each
    environment, which takes at most `most` steps."""
    return f"evaluating: {episodes:.0f} of {of:.0f} episodes, {steps:,.0f} of at most {most:,.0f} steps"


def watch(playing: Generator[Any, None, Any], of: int, most: int) -> Any:
    """Runs `playing`, evaluator.play's generator, and returns its episodes. Prints a line on stderr now and then, which
    says how far it is; `of` and `most` are as in `evaluating`."""
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
    count = row.get("episodes_cut", 0.0)  # rows of an older version lack the column
    return f", {count:.0f} of which were cut" if count else ""


def _mean(rows: list[dict[str, float]], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)
