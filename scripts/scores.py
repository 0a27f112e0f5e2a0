"""Scores runs in the Behaviour Suite (Osband et al. 2019), by bsuite's own analysis of the episodes of training.

  scripts/scores runs/mine runs/other     # a line each: the level, its episodes, its score
  scripts/scores --random                 # plays bsuite's random agent on every first level, and records it

A run is of one environment and in one sitting, for bsuite scores the episodes in their order, from the first on. What
it scores is in LOGDIR/log_0.csv.
"""

import contextlib
import csv
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from launchers import flags
from launchers.baselines import BSUITE
from launchers.settings import UsageError, setting
from runtime import metrics

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
    """The bsuite_id of an environment's name: `cartpole/0` of `...:bsuite/cartpole-0-v0`.

    Raises:
      UsageError: it is none of bsuite's.
    """
    _, found, name = env.rpartition(":bsuite/")
    if not found:
        raise UsageError(f"{env} is no level of bsuite: gymnasium:environments.bsuite:bsuite/cartpole-0-v0 is one")
    return "/".join(name.removesuffix("-v0").rsplit("-", 1))


def score(level: str, rows: Sequence[Mapping[str, float]]) -> float:
    """bsuite's score, about 0 for a random agent and 1 for the best, of one level alone.

    Args:
      level: a bsuite_id, as "cartpole/0".
      rows: that bsuite's logging made of the episodes, in their order.
    """
    import pandas
    from bsuite.logging import logging_utils

    frame = logging_utils.join_metadata(pandas.DataFrame(rows).assign(bsuite_id=level))
    with _older_pandas():
        return float(analysis()[level.split("/")[0]].score(frame))


def analysis() -> dict[str, Any]:
    """bsuite's score, tags and episodes of each experiment."""
    import matplotlib

    with matplotlib.rc_context():  # it changes how everything is drawn
        from bsuite.experiments import summary_analysis

    return summary_analysis.BSUITE_INFO


@contextlib.contextmanager
def _older_pandas() -> Iterator[None]:
    """bsuite 0.3.6 calls Series.append, which pandas 2 took out."""
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
    """The mean over each tag's experiments, of scores by experiment; without the tags of which one lacks."""
    tagged = {tag: [name for name, found in analysis().items() if tag in found.tags] for tag in TAGS}
    return {
        tag: float(np.mean([scores[name] for name in names]))
        for tag, names in tagged.items()
        if scores.keys() >= set(names)
    }


def rows_of(path: pathlib.Path) -> list[dict[str, float]]:
    """What was logged of one environment, in one sitting.

    Raises:
      UsageError: there is nothing, or it is of several.
    """
    rows = metrics.read(path)
    if not rows:
        raise UsageError(f"{path} has no episodes: only bsuite's environments log them, and the first ends in a while")
    if any(row.get("environment") for row in rows):
        raise UsageError(f"{path} is of several environments: bsuite scores --num_actors=1 --envs_per_actor=1")
    episodes = [row["episode"] for row in rows]
    if episodes != sorted(set(episodes)):
        raise UsageError(
            f"{path} is of several sittings, and bsuite scores one: make the run again in another --logdir"
        )
    return rows


def play_randomly(level: str) -> list[dict[str, float]]:
    """bsuite's random agent on all of a level's episodes."""
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
        with open(out / f"{experiment}-0.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(f"{experiment}/0: {score(f'{experiment}/0', rows):.2f}", flush=True)


@flags.command(Asked, arguments="the runs' folders, each a --logdir of scripts/train's")
def scores(*logdirs: str) -> int:
    if bool(logdirs) == flags.FLAGS.random:
        raise UsageError("scores needs the folders of runs, or --random")
    if flags.FLAGS.random:
        record_random(flags.FLAGS.out)
        return 0
    for logdir in map(pathlib.Path, logdirs):
        try:
            config = json.loads((logdir / "config.json").read_text())
        except OSError as error:
            raise UsageError(f"{logdir} is no run's folder: {error.strerror}") from error
        level, rows = level_of(config["env"]), rows_of(logdir / "log_0.csv")
        asked = analysis()[level.split("/")[0]].episode
        print(f"{config['agent']} {level} episodes={rows[-1]['episode']:.0f}/{asked} score={score(level, rows):.3f}")
    return 0


if __name__ == "__main__":
    flags.main(scores)
