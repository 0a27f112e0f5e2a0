"""Runs whose environment breaks. They end with one line and exit code 2, the learner saves as it does on a signal, and
the same command continues the run once the environment is sound."""

import jax
import numpy as np
import pytest

from launchers import flags, train
from launchers import run as runs
from runtime import metrics
from runtime.checkpoint import Checkpointer
from tests.launchers import command_line
from tests.launchers.test_bad_input import expect_one_line

SMALL = (
    *command_line.TINY[1:],
    "--config.hidden_sizes=8",
    "--eval_episodes=2",
    "--max_env_steps=400",
    "--eval_period=400",
)


def environment(place: str, way: str) -> str:
    return f"gymnasium:tests.environments.shaky:{place}-{way}-v0"


def learnt(logdir) -> int:
    """Returns the environment steps of the newest checkpoint; asserts that all its numbers are finite."""
    run = runs.load(logdir)
    state, version = Checkpointer(logdir / "checkpoints", run.make_agent(run.spec())).restore()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state) if np.issubdtype(np.asarray(x).dtype, np.floating))
    return version.env_steps


@pytest.mark.parametrize("placement", ["serial", "threads"])
@pytest.mark.parametrize("way", ["SystemExit", "nan", "nanReward"])
def test_the_learner_saves_and_the_same_command_goes_on(placement, way, tmp_path, monkeypatch, capfd):
    arguments = [
        *SMALL,
        f"--env={environment('step8', way)}",
        f"--placement={placement}",
        f"--logdir={tmp_path / 'run'}",
    ]
    arguments += [
        "--carrier=local",
        "--config.unroll_length=1",
    ]  # short unrolls and a queue of one batch: most of the eight steps are learnt before the failure
    code = flags.attempt(train.train, ["train", *arguments])
    line = f"environment {environment('step8', way)} failed at its step 8: "
    expect_one_line(code, "".join(capfd.readouterr()), [line])
    before = learnt(tmp_path / "run")
    assert before > 0
    monkeypatch.setenv("SHOAL_TEST_SOUND", "1")
    code = flags.attempt(train.train, ["train", *arguments])
    assert code == 0, capfd.readouterr()
    assert learnt(tmp_path / "run") >= 400 > before
    assert metrics.latest(tmp_path / "run", "evaluator")["return_mean"] == 10.0


def test_an_evaluators_environment_may_break_too(tmp_path, monkeypatch, capfd):
    """The evaluator has environments of its own. This one breaks in its second episode, which no actor here reaches."""
    arguments = [*SMALL, f"--env={environment('secondReset', 'Odd')}", "--placement=serial", "--carrier=local"]
    arguments += [f"--logdir={tmp_path / 'run'}", "--eval_period=40", "--eval_episodes=101"]
    code = flags.attempt(train.train, ["train", *arguments])
    expect_one_line(code, "".join(capfd.readouterr()), ["failed at its step 11: tests.environments.shaky.Odd"])
    assert learnt(tmp_path / "run") == 40, "no actor came so far"


def test_in_processes_too(tmp_path):
    """A role that ends with such an error is not started again, and its line is the run's."""
    arguments = (*SMALL, f"--env={environment('step8', 'SystemExit')}", "--config.unroll_length=2")
    code, output = command_line.run("train", *arguments, "--placement=processes", f"--logdir={tmp_path}")
    expect_one_line(code, output, ["actor_0: environment ", "failed at its step 8: SystemExit: 0 (shaky.py, line "])
    assert "restart" not in output
    assert not command_line.processes_of(tmp_path)
