"""Agents in step with their actors: each batch was acted by the very parameters that it updates."""

import pytest

from launchers import run as runs
from launchers.settings import UsageError
from runtime import metrics
from tests.launchers import command_line

TWO_ACTORS = ("--num_actors=2", "--envs_per_actor=4", "--config.batch_size=8")
# PPO measures its divergence, and so its ratios, in minibatches: with a single one, before the parameters change.
ONE_MINIBATCH = ("--config.epochs=1", "--config.minibatches=1")


@pytest.mark.parametrize(
    ("agent", "flags"),
    [
        ("trpo", ("--placement=serial", "--carrier=local")),
        ("trpo", ("--placement=threads", "--carrier=reverb", "--synchronous")),
        ("ppo", ("--placement=processes", "--synchronous", *TWO_ACTORS, *ONE_MINIBATCH)),
        ("ppo", ("--placement=serial", *TWO_ACTORS, *ONE_MINIBATCH)),
        ("a2c", ("--placement=threads", "--carrier=local", "--synchronous", *TWO_ACTORS)),
    ],
)
def test_ratios_are_1_and_nothing_is_old(agent, flags, tmp_path):
    arguments = (f"--agent={agent}", "--env=CartPole-v1", f"--logdir={tmp_path}", "--config.unroll_length=20", *flags)
    # The presets' learning rates are so large that actions of older parameters would show.
    code, output = command_line.run("train", *arguments, "--max_env_steps=6000", "--eval_episodes=1")
    assert code == 0, output
    rows = metrics.read(tmp_path / "learner.csv")
    assert rows[-1]["learner_steps"] > 10
    for row in rows:
        assert row["lag"] == 0.0, row
        assert row.get("ratio_deviation", 0.0) < 1e-5, row  # TRPO alone has it, from before its step
        if agent == "ppo":
            assert abs(row["kl"]) < 1e-6, row


IN_STEP = [("a2c", "CartPole-v1"), ("a2c", "Pendulum-v1"), ("ppo", "Pendulum-v1"), ("ppo", "HalfCheetah-v4")]


@pytest.mark.parametrize(("agent", "env"), IN_STEP)
@pytest.mark.parametrize(
    ("flags", "fits"),
    [
        ({}, True),
        ({"num_actors": 2, "envs_per_actor": 4, "batch_size": 8}, True),
        ({"num_actors": 2}, False),
        ({"envs_per_actor": 16, "batch_size": 8}, False),
        ({"publish_period": 2}, False),
        ({"population": 2, "tune": "learning_rate:log:1e-4:1e-2"}, False),
    ],
)
def test_presets_are_in_step_where_the_rest_of_a_run_allows_it(agent, env, flags, fits):
    config = {name: value for name, value in flags.items() if name == "batch_size"}
    overrides = {name: value for name, value in flags.items() if name != "batch_size"}
    run = runs.make(agent, env, overrides, config)
    assert run.synchronous == fits
    run.make_agent(run.spec())  # the run is accepted with this setting
    assert not runs.make(agent, env, overrides | {"synchronous": False}, config).synchronous
    if not fits and "population" not in flags:  # asking for it is refused, with the reason
        asked = runs.make(agent, env, overrides | {"synchronous": True}, config)
        with pytest.raises(UsageError, match="--synchronous"):
            asked.make_agent(asked.spec())


def test_gradients_that_travel_are_not_in_step():
    assert not runs.make("a3c", "CartPole-v1", {}, {}).synchronous
