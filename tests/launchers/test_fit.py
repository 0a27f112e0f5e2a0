"""Checks, made from a run's settings alone, that it fits its environment and that its replay fits into memory."""

import os

import numpy as np
import pytest

from agents.agent import Agent, DiscreteActions, EnvironmentSpec, Sequences, Stacks, TableSpec, Transitions
from launchers import roles, run

FRAMES = EnvironmentSpec((84, 84), np.dtype(np.uint8), DiscreteActions(6), max_episode_steps=100)
WINDOWS = {
    "transitions": Transitions(3, 0.99),
    "stacked": Stacks(3, 0.99, 4),
    "sequences": Sequences(40, 80, 40),
}


def settings(**changes) -> run.Run:
    """Returns the settings of a run whose replay is in Reverb's tables."""
    return run.make("ddpg", "Pendulum-v1", {"max_env_steps": 10**9, "carrier": "reverb"} | changes, {})


def agent_of(window, max_size: int) -> Agent:
    def memory(num_envs, ranks):
        return {"hidden": np.zeros((num_envs, 512), np.float32), "cell": np.zeros((num_envs, 512), np.float32)}

    table = TableSpec("replay", window, "uniform", max_size)
    return Agent(None, None, memory, None, None, None, table, batch_size=32)


class Fixed:
    """A run with a given agent and spec, which need no files, on a machine with `gigabytes` of memory."""

    def __init__(self, monkeypatch, window, max_size: int, gigabytes: float, **changes):
        monkeypatch.undo()
        self.run = settings(**changes)
        agent = agent_of(window, max_size)
        monkeypatch.setattr(run, "agent_module", lambda name: self)
        monkeypatch.setattr(run.Run, "spec", lambda self: FRAMES)
        monkeypatch.setattr(run.Run, "_check_sizes", lambda *_: None)  # this agent's functions are None
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": int(gigabytes * 1e9)}.get)
        self.make = lambda config, spec: agent


@pytest.mark.parametrize(
    ("window", "max_size", "gigabytes", "noun"),
    [
        ("transitions", 10**6, 15.6, "transitions"),
        ("stacked", 10**6, 8.6, "stacks"),
        ("sequences", 10**5, 32.7, "sequences"),
    ],
)
def test_a_replay_that_does_not_fit_is_refused_and_one_that_fits_is_not(monkeypatch, window, max_size, gigabytes, noun):
    """The sizes are the measured ones in docs/replay.md, with a margin of a tenth either way."""
    fits = Fixed(monkeypatch, WINDOWS[window], max_size, 1.1 * gigabytes)
    fits.run.check_fit(1)
    fails = Fixed(monkeypatch, WINDOWS[window], max_size, gigabytes / 1.1)
    with pytest.raises(run.UsageError, match=f"a replay of {max_size:,} {noun} takes about .* --config.replay_size"):
        fails.run.check_fit(1)
    fails.run.check_fit(0)  # a machine without a replay server


def test_a_million_stacked_frames_fit_in_ten_gigabytes(monkeypatch):
    Fixed(monkeypatch, WINDOWS["stacked"], 10**6, 10.0).run.check_fit(1)


def test_no_more_is_counted_than_a_run_will_write(monkeypatch):
    """A sequence takes 40 steps, so a run of 40,000 steps writes 1,000 sequences."""
    steps = 40 * 1000
    Fixed(monkeypatch, WINDOWS["sequences"], 10**6, 1000 * 400e3 / 1e9, max_env_steps=steps).run.check_fit(1)
    with pytest.raises(run.UsageError, match="a replay of 1,000 sequences"):
        Fixed(monkeypatch, WINDOWS["sequences"], 10**6, 0.1, max_env_steps=steps).run.check_fit(1)


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (Stacks(101, 0.99, 4), "config.n_step=101 is above 100, the most steps of an episode of Pendulum-v1"),
        (Transitions(101, 0.99), "config.n_step=101"),
        (Sequences(0, 101, 50), "config.sequence_length=101 is above 100, the most steps of an episode of Pendulum-v1"),
    ],
)
def test_a_window_longer_than_any_episode_is_refused(monkeypatch, window, words):
    with pytest.raises(run.UsageError, match=words) as error:
        Fixed(monkeypatch, window, 10**4, 100.0, carrier="local").run.check_fit(1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("window", [Stacks(100, 0.99, 4), Sequences(500, 100, 50)])
def test_the_longest_window_of_an_episode_is_not(monkeypatch, window):
    Fixed(monkeypatch, window, 10**4, 100.0).run.check_fit(1)


def test_where_the_longest_episode_is_not_known_none_is_refused(monkeypatch):
    fixed = Fixed(monkeypatch, Sequences(0, 101, 50), 10**4, 100.0)
    monkeypatch.setattr(
        run.Run, "spec", lambda self: FRAMES.__class__((84, 84), FRAMES.observation_dtype, FRAMES.actions)
    )
    fixed.run.check_fit(1)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"hidden_sizes": (2**31 - 1,)},
            "the agent's state takes about .* GB .*: give a smaller --config.hidden_sizes",
        ),
        ({"unroll_length": 2**31 - 1}, "the batch of an update takes about .* GB .* --config.unroll_length"),
    ],
)
def test_what_no_machine_has_room_for_is_refused(config, words):
    run.make("impala", "CartPole-v1", {}, {}).check_fit()
    with pytest.raises(run.UsageError, match=words) as error:
        run.make("impala", "CartPole-v1", {}, config).check_fit()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("vectorization", "count"), [("sync", 100), ("async", 8)])
def test_an_evaluation_has_no_more_processes_than_an_actor(vectorization, count):
    changes = {"gymnasium_vectorization": vectorization, "eval_episodes": 200, "envs_per_actor": 9}
    assert run.make("impala", "gymnasium:CartPole-v1", changes, {}).eval_envs == count


def test_whole_episodes_need_no_turns_and_no_even_parts():
    """Each whole episode is an item of its own, however many environments an actor has."""
    run.make("reinforce", "CartPole-v1", {"envs_per_actor": 3}, {}).check_fit()
    run.make("reinforce", "CartPole-v1", {"placement": "serial", "carrier": "local"}, {}).check_fit()
    with pytest.raises(
        run.UsageError, match=r"max_episode_steps=20 must be 500 or more, the most steps of this environment's episodes"
    ):
        run.make("reinforce", "CartPole-v1", {}, {"max_episode_steps": 20}).check_fit()


def test_whole_episodes_do_not_travel_through_reverb_in_one_thread():
    carried = {"carrier": "reverb"}
    run.make("reinforce", "CartPole-v1", carried, {}).check_fit()
    with pytest.raises(
        run.UsageError, match=r"reinforce learns from whole episodes, .*; give --carrier=local or --placement=threads$"
    ):
        run.make("reinforce", "CartPole-v1", carried | {"placement": "serial"}, {}).check_fit()


def test_traces_need_one_actor_whose_environments_are_the_batch():
    run.make("actor_critic", "CartPole-v1", {}, {}).check_fit()
    with pytest.raises(run.UsageError, match=r"--num_actors=1 --envs_per_actor=32, as many as config\.batch_size"):
        run.make("actor_critic", "CartPole-v1", {"num_actors": 2}, {}).check_fit()


@pytest.mark.parametrize(
    ("agent", "config", "devices", "message"),
    [
        ("impala", {"batch_size": 12}, 8, "config.batch_size=12 must be a multiple of 8, the number of devices"),
        (
            "ppo",
            {"batch_size": 8, "minibatches": 4, "lstm_size": 8, "separate_value": False},
            4,
            "give a multiple of 16",
        ),
        ("ppo", {"batch_size": 8, "minibatches": 4, "unroll_length": 7}, 4, "give a multiple of 16"),
        ("ppo", {"batch_size": 8, "minibatches": 4, "unroll_length": 6}, 8, "give a multiple of 16"),
        ("ppo", {"batch_size": 16, "minibatches": 4, "lstm_size": 8, "separate_value": False}, 4, None),
        ("ppo", {"batch_size": 8, "minibatches": 4, "unroll_length": 6}, 4, None),
        ("ppo", {"batch_size": 8, "minibatches": 4, "unroll_length": 128}, 8, None),
    ],
)
def test_each_device_gets_a_share_of_the_batch_that_it_can_cut(agent, config, devices, message):
    envs = {"envs_per_actor": config["batch_size"], "max_env_steps": 1000}
    spec = EnvironmentSpec((4,), np.dtype(np.float32), DiscreteActions(2))
    made = run.make(agent, "CartPole-v1", envs, config).make_agent(spec)
    if message is None:
        roles.check_shares(made, devices)
        return
    with pytest.raises(run.UsageError) as error:
        roles.check_shares(made, devices)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_each_device_gets_as_many_of_each_stacked_member():
    spec = EnvironmentSpec((4,), np.dtype(np.float32), DiscreteActions(2))
    settings = {"population": 3, "population_mode": "vmap", "tune": "learning_rate=log:1e-4:1e-2"}
    settings |= {"envs_per_actor": 8, "max_env_steps": 1000}
    made = run.make(
        "ppo", "CartPole-v1", settings, {"batch_size": 8, "minibatches": 4, "lstm_size": 8, "separate_value": False}
    ).make_agent(spec)
    assert (made.batch_size, made.share_multiple) == (3 * 8, 3 * 4)
    roles.check_shares(made, 2)
    with pytest.raises(run.UsageError, match="give a multiple of 48"):
        roles.check_shares(made, 4)


MEMBERS = {"population": 2, "tune": "learning_rate:log:1e-4:1e-2"}


@pytest.mark.parametrize(
    ("agent", "changes", "on_hosts", "on_pod"),
    [
        ("impala", {}, None, None),
        ("reinforce", {"synchronous": False}, None, None),
        ("dqn", {"carrier": "local"}, "an agent with a replay learns on one host", None),
        ("actor_critic", {}, "eligibility traces learns on one host", "eligibility traces learns on one host"),
        ("a2c", MEMBERS, "each learner of a population is on one host", "the members of a population cannot be on"),
        ("a2c", {"synchronous": True}, "with --synchronous .* the learner is on one host", None),
        ("a2c", {"synchronous": False}, None, None),
        ("a3c", {}, "with --travels=gradients the learner is on one host", "with --travels=gradients the learner is"),
    ],
)
def test_what_one_host_alone_can_learn_is_refused_on_several(agent, changes, on_hosts, on_pod):
    made = run.make(agent, "CartPole-v1", changes, {})
    for check, why, flag in ((made.check_hosts, on_hosts, "--num_learners=2"), (made.check_pod, on_pod, "--placement")):
        if why is None:
            check(2)
            continue
        with pytest.raises(run.UsageError, match=f"^{flag}.*{why}") as error:
            check(2)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("batch", [8, 12])
def test_each_host_of_a_pod_has_an_equal_part_of_a_batch_that_its_blocks_can_make(batch):
    for envs in (1, 2, 3, 4, 6, 8, 12, 24):
        if batch % envs and envs % batch:
            continue  # not on one host either
        made = run.make("impala", "CartPole-v1", {"placement": "pod", "envs_per_actor": envs}, {"batch_size": batch})
        for count in range(1, 7):
            share = batch // count
            if batch % count:
                words = f"--num_hosts={count} must divide config.batch_size={batch}"
            elif share % envs and envs % share:
                words = f"a host's part of a batch is {share}, and --envs_per_actor={envs} must divide it"
            else:
                made.check_pod(count)
                continue
            with pytest.raises(run.UsageError) as error:
                made.check_pod(count)
            assert words in str(error.value) and "\n" not in str(error.value)


def test_every_task_has_equally_many_episodes_in_an_evaluation():
    names = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0"]
    usual = run.make("a2c", names[0], {}, {}).eval_episodes
    for count in (1, 2, 3):
        together = run.make("a2c", ",".join(names[:count]), {"envs_per_actor": 6 * count}, {"batch_size": 12 * count})
        assert together.eval_episodes % count == 0 and 0 <= together.eval_episodes - usual < count
        assert together.eval_envs % count == 0 and together.eval_episodes % together.eval_envs == 0


def test_checkpoints_without_a_config_are_no_run_to_go_on_with(tmp_path):
    made = run.make("a2c", "CartPole-v1", {}, {})
    run.save(made, tmp_path / "new")
    assert run.load(tmp_path / "new") == made
    checkpoint = tmp_path / "old" / "checkpoints" / "learner_steps_3"
    checkpoint.mkdir(parents=True)
    with pytest.raises(run.UsageError, match=r"has checkpoints of a run, but no config\.json to say which"):
        run.save(made, tmp_path / "old")
    assert not (tmp_path / "old" / "config.json").exists()
    checkpoint.rmdir()
    run.save(made, tmp_path / "old")
