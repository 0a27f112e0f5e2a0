"""Scores runs in the Behaviour Suite (Osband et al. 2019), by bsuite's own analysis of the training episodes.

  scripts/scores runs/mine runs/other     # a line each: the level, its episodes, its score
  scripts/scores --random                 # plays bsuite's random agent on every first level, and records it

A run must have one environment and one sitting (it was not resumed), because bsuite scores the episodes in their order,
from the first on. It reads them from LOGDIR/log_0.csv.
"""

import contextlib
import csv
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from launchers import flags, settings
from launchers.baselines import BSUITE
from launchers.settings import UsageError, setting
from runtime import metrics
from runtime.files import replacing

ROOT = pathlib.Path(__file__).resolve().parents[1]
RANDOM = ROOT / "docs" / "results" / "random-bsuite"
TAGS = ("basic", "noise", "scale", "exploration", "credit_assignment", "memory", "generalization")


@dataclasses.dataclass
class Asked:
    random: bool = setting(
        False, "play bsuite's random agent on the first level of every experiment, and record its episodes"
    )
    out: pathlib.Path = setting(
        RANDOM, "the folder in which --random records", default_words="docs/results/random-bsuite"
    )


def level_of(env: str) -> str:
    """Returns the bsuite_id in an environment's name: `cartpole/0` for `...:bsuite/cartpole-0-v0`.

    Raises:
      UsageError: the environment is none of bsuite's.
    """
    _, found, name = env.rpartition(":bsuite/")
    if not found:
        raise UsageError(f"{env} is not a level of bsuite, such as gymnasium:environments.bsuite:bsuite/cartpole-0-v0")
    return "/".join(name.removesuffix("-v0").rsplit("-", 1))


def score(level: str, rows: Sequence[Mapping[str, float]]) -> float:
    """Returns bsuite's score of one level alone, about 0 for a random agent and 1 for the best.

    Args:
      level: a bsuite_id, such as "cartpole/0".
      rows: the rows of bsuite's logging of the episodes, in their order.
    """
    import pandas
    from bsuite.logging import logging_utils

    frame = logging_utils.join_metadata(pandas.DataFrame(rows).assign(bsuite_id=level))
    with _older_pandas():
        return float(analysis()[level.split("/")[0]].score(frame))


def analysis() -> dict[str, Any]:
    """Returns bsuite's score function, tags and number of episodes of each experiment, by name."""
    import matplotlib

    with matplotlib.rc_context():  # undoes what the import changes in how everything is drawn
        from bsuite.experiments import summary_analysis

    return summary_analysis.BSUITE_INFO


@contextlib.contextmanager
def _older_pandas() -> Iterator[None]:
    """Gives pandas back Series.append, which pandas 2 removed and bsuite 0.3.6 calls."""
    import pandas

    lacking = not hasattr(pandas.Series, "append")
    if lacking:
        pandas.Series.append = lambda self, other: pandas.concat([self, other])
    try:
        yield
    finally:
        if lacking:
            del pandas.Series.append


def by_tag(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns the mean score of each tag's experiments; leaves out tags of which an experiment has no score."""
    tagged = {tag: [name for name, found in analysis().items() if tag in found.tags] for tag in TAGS}
    return {
        tag: float(np.mean([scores[name] for name in names]))
        for tag, names in tagged.items()
        if scores.keys() >= set(names)
    }


def rows_of(path: pathlib.Path) -> list[dict[str, float]]:
    """Returns the rows that were logged by one environment, in one sitting.

    Raises:
      UsageError: there are no rows, or they are of several environments or sittings.
    """
    rows = metrics.read(path)
    if not rows:
        raise UsageError(f"{path} has no episodes: only bsuite's environments log them, once the first has ended")
    if any(row.get("environment") for row in rows):
        raise UsageError(
            f"{path} has several environments, and bsuite scores one: train with --num_actors=1 --envs_per_actor=1"
        )
    episodes = [row["episode"] for row in rows]
    if episodes != sorted(set(episodes)):
        raise UsageError(
            f"{path} is of a run that was resumed, which bsuite cannot score: make the run again in another --logdir"
        )
    return rows


def play_randomly(level: str) -> list[dict[str, float]]:
    """Plays all episodes of a level with bsuite's random agent; returns the rows of bsuite's logging."""
    from bsuite.baselines.random.agent import Random
    from dm_env import specs

    from environments.bsuite import Behaviour
    from environments.gymnasium import LOG

    environment = Behaviour(level)
    agent = Random(specs.DiscreteArray(int(environment.action_space.n)), seed=0)
    rows: list[dict[str, float]] = []
    environment.reset(seed=0)
    episodes = analysis()[level.split("/")[0]].episode
    while not rows or rows[-1]["episode"] < episodes:
        _, _, over, _, info = environment.step(agent.select_action(None))
        if LOG in info:
            rows.append(info[LOG])
        if over:
            environment.reset()
    return rows


def record_random(out: pathlib.Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for experiment in BSUITE:
        rows = play_randomly(f"{experiment}/0")
        with replacing(out / f"{experiment}-0.csv") as new, open(new, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(f"{experiment}/0: {score(f'{experiment}/0', rows):.2f}", flush=True)


@flags.command(Asked, arguments="the runs' folders, each a --logdir of scripts/train's")
def scores(*logdirs: str) -> int:
    if bool(logdirs) == flags.FLAGS.random:
        raise UsageError("scores needs either the folders of runs or --random")
    if flags.FLAGS.random:
        record_random(flags.FLAGS.out)
        return 0
    for logdir in map(pathlib.Path, logdirs):
        config = settings.saved(logdir)
        level, rows = level_of(config["env"]), rows_of(logdir / "log_0.csv")
        asked = analysis()[level.split("/")[0]].episode
        print(f"{config['agent']} {level} episodes={rows[-1]['episode']:.0f}/{asked} score={score(level, rows):.3f}")
    return 0


if __name__ == "__main__":
    flags.main(scores)
