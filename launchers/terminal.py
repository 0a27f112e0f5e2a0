"""What a person sees of a run: a live line with its progress, a line per evaluation."""

import pathlib
import time

import rich.console
import rich.live
import rich.progress_bar
import rich.table

from launchers.run import Run
from runtime import metrics

PLAIN_SECONDS = 10.0  # between two progress lines where the output is no terminal


class Display:
    """Shows a run from the CSVs that its roles write, wherever they run; call `refresh` now and then."""

    def __init__(self, run: Run, logdir: pathlib.Path):
        self._run, self._logdir = run, logdir
        self._console = rich.console.Console(soft_wrap=True, highlight=False)
        self._evaluations = len(metrics.read(logdir / "evaluator.csv"))
        self._next_plain = time.monotonic() + PLAIN_SECONDS
        self._live = rich.live.Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self.refresh()
        self._live.stop()

    def refresh(self) -> None:
        for row in metrics.read(self._logdir / "evaluator.csv")[self._evaluations :]:
            self._evaluations += 1
            self._console.print(
                f"evaluation at {row['env_steps']:,.0f} env steps: return {row['return_mean']:.2f} "
                f"± {row['return_std']:.2f} over {row['episodes']:.0f} episodes"
            )
        if self._console.is_terminal:
            self._live.update(self._line(), refresh=True)
        elif time.monotonic() > self._next_plain:
            self._next_plain = time.monotonic() + PLAIN_SECONDS
            self._console.print(self._text())

    def _line(self) -> rich.table.Table:
        learner = metrics.latest(self._logdir, "learner") or {"env_steps": 0.0}
        grid = rich.table.Table.grid(padding=(0, 1))
        bar = rich.progress_bar.ProgressBar(self._run.max_env_steps, learner["env_steps"], width=20)
        grid.add_row(bar, self._text())
        return grid

    def _text(self) -> str:
        learner = metrics.latest(self._logdir, "learner")
        if learner is None:
            return "starting: compiling and connecting"
        newest = [metrics.latest(self._logdir, f"actor_{task}") for task in range(self._run.num_actors)]
        actors = [row for row in newest if row]
        parts = [
            f"{learner['env_steps']:,.0f}/{self._run.max_env_steps:,} env steps",
            f"{learner['env_steps_per_second']:,.0f}/s",
            f"{learner['learner_steps_per_second']:.1f} updates/s",
            *([f"lag {learner['lag']:.1f}"] if "lag" in learner else []),
            f"learner waits {learner['wait_fraction']:.0%}",
        ]
        if actors:
            parts.append(f"actors wait {sum(row['wait_fraction'] for row in actors) / len(actors):.0%}")
            returns = [row["return_mean"] for row in actors if row["episodes"]]
            if returns:
                parts.append(f"return {sum(returns) / len(returns):.1f}")
        return " · ".join(parts)

    def say(self, text: str) -> None:
        self._console.print(text)
