"""Placement `device`: the learner's devices make the same experience, and learn the same, as other placements."""

import jax
import numpy as np
import pytest

from launchers import device, serial
from launchers import run as runs
from launchers.settings import UsageError
from runtime import device_learner, metrics
from runtime.checkpoint import Checkpointer
from tests.runtime import several_devices

pytest.importorskip("gymnax")

RUN = {"num_actors": 1, "publish_period": 1, "eval_episodes": 1, "eval_period": 10**6, "carrier": "local"}
SMALL = {"hidden_sizes": (8,), "unroll_length": 5, "batch_size": 8}


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
        (
            "ppo",
            "CartPole-v1",
            {"envs_per_actor": 8},
            SMALL | {"minibatches": 2, "lstm_size": 4, "separate_value": False},
        ),
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


REPLAY = {"hidden_sizes": (8,), "batch_size": 8, "samples_per_insert": 2.0, "min_replay_size": 64, "replay_size": 400}


@pytest.mark.parametrize(
    ("agent", "env", "config"),
    [
        ("dqn", "CartPole-v1", REPLAY),
        ("ddpg", "Pendulum-v1", REPLAY | {"replay": "prioritized", "n_step": 3}),
        ("prioritized_dqn", "CartPole-v1", REPLAY | {"priority": "rank", "uniform_fraction": 0.1}),
        ("r2d2", "CartPole-v1", {"batch_size": 4, "samples_per_insert": 2.0, "min_replay_size": 8, "replay_size": 64}),
    ],
    ids=["uniform", "prioritised", "by ranks", "sequences"],
)
def test_a_replay_goes_on_in_either_placement(agent, env, config, tmp_path, signals, monkeypatch):
    monkeypatch.setattr(device_learner, "STEPS_AT_ONCE", 256)
    counts, sampled = [], []
    for placement, length in (("device", 1500), ("serial", 2500), ("device", 3500)):
        settings = {"envs_per_actor": 4, "max_env_steps": length}
        settings |= {} if placement == "device" else {"updates_per_dispatch": 1}
        _, version = train(placement, tmp_path, agent, f"gymnax:{env}", settings, config)
        assert version.env_steps >= length
        replay, _ = Checkpointer(tmp_path / "replay_0", None).restore()
        counts.append(int(replay["counts"][0]))
        sampled.append(version.learner_steps * config["batch_size"])
        if config["samples_per_insert"]:
            owed = (counts[-1] - config["min_replay_size"]) * config["samples_per_insert"]
            assert abs(owed - sampled[-1]) <= 0.1 * owed + 4 * config["batch_size"] + 128
    assert counts == sorted(set(counts)), "it keeps what it had"
    assert metrics.read(tmp_path / "actor_0.csv")[-1]["learner_steps"] > 0


def test_a_population_shares_the_devices(tmp_path, signals):
    settings = {"envs_per_actor": 8, "max_env_steps": 9000, "population": 2, "population_mode": "vmap"}
    tuned = {"tune": "learning_rate:log:1e-4:1e-2", "ready_env_steps": 1000}
    state, version = train("device", tmp_path, "a2c", "gymnax:CartPole-v1", settings | tuned, SMALL)
    assert jax.tree.leaves(state.params)[0].shape[0] == 2
    assert version.env_steps >= 9000
    assert {"return_mean_member_0", "return_mean_member_1"} <= metrics.read(tmp_path / "actor_0.csv")[0].keys()


@pytest.mark.parametrize("devices", [2])
def test_several_devices_make_and_learn(devices):
    """Runs tests/launchers/on_devices.py with several devices, and checks what it prints."""
    for agent, made in several_devices.run("tests.launchers.on_devices", devices).items():
        assert made["env_steps"] >= 2000 and made["finite"], agent


@pytest.mark.parametrize(
    ("agent", "settings", "config", "words"),
    [
        ("a2c", {"env": "CartPole-v1"}, {}, "give --env=gymnax:ID or brax:NAME"),
        ("a2c", {"env": "gymnasium:CartPole-v1"}, {}, "give --env=gymnax:ID or brax:NAME"),
        ("a2c", {"env": "gymnax:CartPole-v1,gymnax:Acrobot-v1"}, {}, "one task"),
        ("a2c", {"travels": "gradients"}, {}, "give --travels=experience"),
        ("reinforce", {}, {}, "learns from whole episodes"),
        ("a2c", {"num_actors": 3, "envs_per_actor": 5}, {"batch_size": 8}, "--num_actors=3 times --envs_per_actor=5"),
        ("a2c", {"env": "gymnax:Nothing-v0"}, {}, "gymnax has no 'Nothing-v0'"),
        ("a2c", {"env_kwargs": '{"weight": 1}'}, {}, "has no 'weight'"),
    ],
)
def test_what_it_cannot_do_is_one_line(agent, settings, config, words):
    settings = {"placement": "device", "env": "gymnax:CartPole-v1"} | settings
    with pytest.raises(UsageError) as error:
        runs.make(agent, settings.pop("env"), settings, config).check_fit()
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.learn
def test_ppo_learns_cartpole_inside_one_program(tmp_path, signals):
    settings = {"max_env_steps": 200_000, "eval_episodes": 20, "eval_period": 200_000}
    train("device", tmp_path, "ppo", "gymnax:CartPole-v1", settings, {})
    assert metrics.read(tmp_path / "evaluator.csv")[-1]["return_mean"] >= 475
