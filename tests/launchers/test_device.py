"""Placement `device`: what the learner's devices make and learn is what actors, queues and learners make of the same."""

import signal

import jax
import numpy as np
import pytest

from launchers import device, serial
from launchers import run as runs
from launchers.settings import UsageError
from runtime import device_learner, metrics
from runtime.checkpoint import Checkpointer

pytest.importorskip("gymnax")

RUN = {"num_actors": 1, "publish_period": 1, "eval_episodes": 1, "eval_period": 10**6, "carrier": "local"}
SMALL = {"hidden_sizes": (8,), "unroll_length": 5, "batch_size": 8}


@pytest.fixture
def signals():
    """Handlers as they were, for a placement sets its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(placement, logdir, agent, env, settings, config):
    run = runs.make(agent, env, RUN | settings | {"placement": placement}, config)
    run.check_fit()
    runs.save(run, logdir)
    (device if placement == "device" else serial).train(run, logdir, 0)
    return Checkpointer(logdir / "checkpoints", run.make_agent(run.spec())).restore()


@pytest.mark.parametrize(
    ("agent", "env", "settings", "config"),
    [
        ("impala", "CartPole-v1", {"envs_per_actor": 8}, SMALL | {"torso": "mlp", "frame_stack": 1}),
        ("impala", "MountainCar-v0", {"envs_per_actor": 16}, SMALL | {"torso": "mlp", "frame_stack": 1}),
        ("a2c", "Pendulum-v1", {"envs_per_actor": 4}, SMALL),
        ("ppo", "CartPole-v1", {"envs_per_actor": 8}, SMALL | {"minibatches": 2, "epochs": 2}),
        ("ppo", "CartPole-v1", {"envs_per_actor": 8}, SMALL | {"minibatches": 2, "lstm_size": 4, "separate_value": False}),
        ("sarsa", "CartPole-v1", {"envs_per_actor": 8}, {"batch_size": 8, "unroll_length": 5}),
    ],
    ids=["a block is a batch", "a block is two", "a batch is two blocks", "normalised", "a memory", "the next action"],
)
def test_it_makes_and_learns_what_serial_does(agent, env, settings, config, tmp_path, signals, monkeypatch):
    monkeypatch.setattr(device_learner, "STEPS_AT_ONCE", 1)  # so that both end at the same update
    settings = settings | {"max_env_steps": 640}
    states = [
        train(placement, tmp_path / placement, agent, f"gymnax:{env}", settings, config)
        for placement in ("serial", "device")
    ]
    (one, version), (other, same_version) = states
    assert version == same_version and version.learner_steps >= 7
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), one, other)
    played = [metrics.read(tmp_path / placement / "actor_0.csv") for placement in ("serial", "device")]
    assert all(rows and rows[0]["episodes"] >= 0 for rows in played)
