"""The videos of a run's evaluations, LOGDIR/videos/env_steps_N.gif: there is one in `video_period` evaluations."""

import pathlib

from absl import logging

from agents.agent import Version
from environments import Environment, EnvironmentFailure
from environments.filmed import Filmed
from launchers.run import Run
from runtime import metrics


class Films:
    """Makes the environments of a run's evaluations, and films the first episode of every `video_period`-th evaluation.
    The count includes the evaluations of earlier sittings, which are in LOGDIR/evaluator.csv."""

    def __init__(self, run: Run, logdir: pathlib.Path):
        self._run, self._folder = run, logdir / "videos"
        self._evaluations = len(metrics.read(logdir / "evaluator.csv"))
        self._filmed: Filmed | None = None

    def make_environment(self, version: Version) -> Environment:
        """Returns the environments of the next evaluation, that of a version's parameters. The episodes are the same
        whether they are filmed or not."""
        run, period = self._run, self._run.video_period
        seed, count = run.seed_of("evaluator", version.learner_steps), run.stacked * run.eval_envs
        drawn = period > 0 and (self._evaluations + 1) % period == 0
        environment: Environment = run.make_environment(seed, count, evaluation=True, drawn=drawn)
        self._filmed = Filmed(environment, strict=False) if drawn else None
        return self._filmed or environment

    def write(self, version: Version) -> None:
        """Writes the video of an evaluation that has ended, if it was filmed; the evaluation's row is written before.
        If the video cannot be drawn or written, a warning is logged and the run goes on."""
        self._evaluations += 1
        filmed, self._filmed = self._filmed, None
        if filmed is None:
            return
        from runtime import video  # only now, because it imports Pillow, and most runs have no videos

        path = self._folder / f"env_steps_{version.env_steps}.gif"
        try:
            if filmed.failure:
                raise filmed.failure
            path.parent.mkdir(exist_ok=True)
            video.write(path, filmed.pictures, filmed.per_second)
        except (EnvironmentFailure, OSError) as error:
            logging.warning("no video was written to %s: %s", path, error)
