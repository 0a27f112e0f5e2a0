"""The parameters of a run's best evaluation are kept beside its newest checkpoints, and can be evaluated."""

import pathlib

import jax
import numpy as np
import pytest

from agents.agent import Version
from launchers import evaluate, flags, roles, train
from launchers import run as runs
from runtime import best, metrics
from runtime.checkpoint import Checkpointer
from tests.launchers.test_stop_at_return import QUEUE, REPLAY, SERIAL

LSTM = ("--agent=impala", "--env=MaskedCartPole-v1", *QUEUE[1:], "--config.lstm_size=8")
R2D2 = (
    "--agent=r2d2", "--env=CartPole-v1", "--num_actors=1", "--envs_per_actor=4", "--config.batch_size=4",
    "--config.samples_per_insert=2", "--config.min_replay_size=8", "--config.replay_size=100", "--config.lstm_size=8",
    "--eval_period=200", "--eval_episodes=2",
)  # fmt: skip
TUNE = ("--population=2", "--tune=learning_rate:log:1e-4:1e-2")
STACKED = (
    "--agent=a2c",
    *QUEUE[:1],
    "--num_actors=1",
    "--envs_per_actor=4",
    "--config.batch_size=4",
    *QUEUE[6:],
    *TUNE,
)
THREADS = ("--placement=threads", "--carrier=local")


def learn(logdir: pathlib.Path, *arguments: str, steps: int = 1000) -> None:
    given = [f"--logdir={logdir}", f"--max_env_steps={steps}", *arguments]
    assert flags.attempt(train.train, ["train", *given]) == 0


def play(logdir: pathlib.Path | str, *arguments: str) -> int:
    given = [f"--logdir={logdir}", "--episodes=2", "--checkpoint=best"]
    return flags.attempt(evaluate.evaluate, ["evaluate", *given, *arguments])


def parts_of(logdir: pathlib.Path) -> roles.Parts:
    return roles.Parts(runs.load(logdir), logdir)


def check(logdir: pathlib.Path, capsys) -> best.Best:
    """Asserts that the parameters of the run's best evaluation are kept, and that scripts/evaluate plays them."""
    rows = metrics.read(logdir / "evaluator.csv")
    kept = best.restore(logdir, parts_of(logdir).params)
    highest = max(row["return_mean"] for row in rows)
    row = next(row for row in rows if row["return_mean"] == highest)
    assert kept and kept.return_mean == highest
    assert kept.version == (row["learner_steps"], row["env_steps"])
    capsys.readouterr()
    assert play(logdir) == 0
    printed = capsys.readouterr().out
    assert f"at {kept.version.env_steps:,} env steps the run's own evaluation came to {highest:.4f}" in printed
    assert f" env_steps={kept.version.env_steps} " in printed.splitlines()[-1]
    return kept


@pytest.mark.parametrize(
    ("arguments", "where"),
    [(LSTM, THREADS), (R2D2, SERIAL), (REPLAY, SERIAL), (STACKED, (*SERIAL, "--population_mode=vmap"))],
)
def test_the_best_is_kept_and_evaluated(arguments, where, tmp_path, capsys):
    learn(tmp_path, *arguments, *where)
    before = check(tmp_path, capsys)
    learn(tmp_path, *arguments, *where, steps=1600)
    after = check(tmp_path, capsys)
    assert after.return_mean > before.return_mean or after.version == before.version


def test_each_member_of_a_population_keeps_its_own(tmp_path, capsys):
    learn(tmp_path, *STACKED, *THREADS)
    for member in range(2):
        check(tmp_path / f"member_{member}", capsys)
    assert play(tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is the folder of a population: give a member's" in line and not (tmp_path / best.FILE).exists()


@pytest.mark.parametrize("arguments", [QUEUE, LSTM, R2D2])
def test_they_are_the_very_parameters(arguments, tmp_path):
    """A serial run that is done at its first evaluation ends with the parameters that were evaluated."""
    learn(tmp_path, *arguments, *SERIAL, "--stop_at_return=1", steps=10**6)
    parts = parts_of(tmp_path)
    kept, newest = best.restore(tmp_path, parts.params), Checkpointer(tmp_path / "checkpoints", parts.agent).restore()
    assert kept and newest and kept.version == newest[1]
    jax.tree.map(np.testing.assert_array_equal, kept.params, parts.agent.policy(newest[0]))


def test_a_worse_one_after_a_resume_replaces_nothing(tmp_path, capsys):
    learn(tmp_path, *QUEUE, *SERIAL, steps=400)
    parts = parts_of(tmp_path)
    kept = best.restore(tmp_path, parts.params)
    assert kept
    best.Keeper(tmp_path, parts.params).show(Version(7, 70), kept.params, 1e9)
    before = (tmp_path / best.FILE).read_bytes()
    learn(tmp_path, *QUEUE, *SERIAL, steps=800)
    assert (tmp_path / best.FILE).read_bytes() == before
    assert play(tmp_path) == 0 and "at 70 env steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"), [(None, "has no best.npz yet"), (b"PK", "is damaged"), (b"", "is damaged")]
)
def test_what_is_not_there_or_damaged_is_one_line_and_the_newest_still_plays(content, words, tmp_path, capsys):
    learn(tmp_path, *QUEUE, *SERIAL, steps=400)
    (tmp_path / best.FILE).unlink()
    if content is not None:
        (tmp_path / best.FILE).write_bytes(content)
    capsys.readouterr()
    assert play(tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --checkpoint=best: ") and words in line and "--checkpoint=newest" in line
    assert play(tmp_path, "--checkpoint=newest") == 0
    learn(tmp_path, *QUEUE, *SERIAL, steps=800)
    assert play(tmp_path) == 0, "it is sought anew"


def test_it_is_evaluated_from_a_url(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    url = f"file://{tmp_path}/there"
    given = [f"--logdir={url}", "--max_env_steps=600", *QUEUE, *SERIAL]
    assert flags.attempt(train.train, ["train", *given]) == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    capsys.readouterr()
    assert play(url) == 0
    (folder,) = (tmp_path / "second" / "shoal" / "logdirs").iterdir()
    assert f"env_steps={best.restore(folder, parts_of(folder).params).version.env_steps} " in capsys.readouterr().out
    assert not (folder / "checkpoints").exists(), "what is not played is not fetched"
