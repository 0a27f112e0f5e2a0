"""Runs over the local carrier: exact to the bit in the serial placement, and without Reverb, TensorFlow or a port."""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from agents.agent import Blocks, Step, TableSpec, TimeStep, Version
from launchers import run as runs
from launchers import serial
from launchers.settings import UsageError
from replay.blocks import Block
from replay.local_carrier import LocalCarrier
from replay.rows import Row
from replay.structures import Structure
from runtime import devices
from runtime.checkpoint import Checkpointer
from tests.launchers import command_line

SMALL = {"num_actors": 1, "placement": "serial", "carrier": "local", "eval_episodes": 1, "eval_period": 10**6}
CASES = {
    "ddpg": (
        "ddpg",
        "Pendulum-v1",
        {"envs_per_actor": 4, "updates_per_dispatch": 4},
        {"hidden_sizes": (8,), "batch_size": 8, "samples_per_insert": 8.0, "min_replay_size": 64, "replay_size": 500},
        (300, 600),
    ),
    "td3": (
        "td3",
        "Pendulum-v1",
        {"envs_per_actor": 4, "updates_per_dispatch": 4},
        {
            **{"hidden_sizes": (8,), "batch_size": 8, "samples_per_insert": 8.0, "min_replay_size": 64},
            **{"replay_size": 500, "replay": "prioritized", "n_step": 3, "normalize_observations": True},
        },
        (300, 600),
    ),
    "sac": (
        "sac",
        "Pendulum-v1",
        {"envs_per_actor": 4, "updates_per_dispatch": 4},
        {
            **{"hidden_sizes": (8,), "batch_size": 8, "samples_per_insert": 8.0, "min_replay_size": 64},
            **{"replay_size": 500, "replay": "prioritized", "n_step": 3, "normalize_observations": True},
        },
        (300, 600),
    ),
    "dmpo": (
        "dmpo",
        "Pendulum-v1",
        {"envs_per_actor": 4, "updates_per_dispatch": 4},
        {
            **{"hidden_sizes": (8,), "batch_size": 8, "samples_per_insert": 8.0, "min_replay_size": 64},
            **{"replay_size": 500, "num_samples": 4, "normalize_observations": True, "target_period": 10},
        },
        (300, 600),
    ),
    "sac with discrete actions": (
        "sac",
        "CartPole-v1",
        {"envs_per_actor": 4},
        {"hidden_sizes": (8,), "batch_size": 8, "samples_per_insert": 4.0, "min_replay_size": 64, "replay_size": 500},
        (300, 600),
    ),
    "prioritised DQN with frames": (
        "prioritized_dqn",
        "Pong-v5",
        {"envs_per_actor": 2},
        {"batch_size": 4, "samples_per_insert": 1.0, "min_replay_size": 64, "replay_size": 200, "torso": "shallow"},
        (250, 450),
    ),
    "DQN by ranks, and some of all": (
        "prioritized_dqn",
        "Catch-v0",
        {"envs_per_actor": 4, "updates_per_dispatch": 2},
        {
            **{"hidden_sizes": (8,), "batch_size": 4, "samples_per_insert": 2.0, "min_replay_size": 64},
            **{"replay_size": 200, "priority": "rank", "priority_exponent": 0.7, "uniform_fraction": 0.1},
        },
        (300, 600),
    ),
    "r2d2": (
        "r2d2",
        "Catch-v0",
        {"envs_per_actor": 4},
        {"batch_size": 4, "samples_per_insert": 2.0, "min_replay_size": 8, "replay_size": 100},
        (900, 1300),
    ),
}


def train(name: str, logdir, *lengths: int):
    """Trains a run to each of `lengths` (environment steps) in turn, and resumes it each time. Returns the last state
    of the learner, its version, and the state of the replay."""
    agent, env, settings, config, _ = CASES[name]
    for length in lengths:
        run = runs.make(agent, env, SMALL | settings | {"max_env_steps": length}, config)
        run.check_fit()
        runs.save(run, logdir)
        serial.train(run, logdir, 0)
    agent_ = run.make_agent(run.spec())
    state, version = Checkpointer(logdir / "checkpoints", agent_).restore()
    replay, _ = Checkpointer(logdir / "replay_0", None).restore()
    assert version.env_steps >= lengths[-1] and version.learner_steps > 20
    return state, version, replay


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CASES)
def test_a_serial_run_with_a_replay_is_exact_to_the_bit_and_resumes_to_it(name, tmp_path, signals):
    middle, end = CASES[name][-1]
    straight = [train(name, tmp_path / f"straight {n}", end) for n in range(2)]
    resumed = [train(name, tmp_path / f"resumed {n}", middle, end) for n in range(2)]
    for one, other in (straight, resumed):
        assert one[1] == other[1]
        jax.tree.map(np.testing.assert_array_equal, one, other)
    moved = [np.abs(np.asarray(x) - np.asarray(y)).max() for x, y in zip(
        jax.tree.leaves(straight[0][0]), jax.tree.leaves(resumed[0][0]), strict=True
    ) if np.size(x)]  # fmt: skip
    assert max(moved) > 0, "another sitting acts otherwise"


PROGRAM = """
import json, os, pathlib, sys, threading, time

def listening():
    inodes = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    tables = [pathlib.Path(f"/proc/self/net/{table}").read_text() for table in ("tcp", "tcp6")]
    rows = [row.split() for table in tables for row in table.splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]

found, ended = set(), threading.Event()
def watch():
    while not ended.wait(0.05):
        found.update(listening())
watcher = threading.Thread(target=watch)
watcher.start()
from launchers import flags, train
code = flags.attempt(train.train, sys.argv)
ended.set()
watcher.join()
import socket
probe = socket.create_server(("localhost", 0))
assert listening(), "the watcher can see one"
modules = [name for name in ("tensorflow", "reverb") if sys.modules.get(name)]
print(json.dumps({"code": code, "ports": sorted(found), "modules": modules}), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--agent=ddpg", "--env=Pendulum-v1", "--config.hidden_sizes=8", "--config.min_replay_size=64"),
        ("--agent=prioritized_dqn", "--env=Catch-v0"),
        ("--agent=impala", "--env=CartPole-v1"),
    ],
)
def test_a_local_run_opens_no_port_and_imports_neither_tensorflow_nor_reverb(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, "--carrier=local", "--max_env_steps=300", f"--logdir={tmp_path}"],
        env=command_line.ENVIRONMENT, cwd=command_line.ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"code": 0, "ports": [], "modules": []}, (
        done.stdout + done.stderr
    )
    assert any((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("placement", ["processes"])
def test_several_processes_refuse_the_local_carrier(placement):
    with pytest.raises(UsageError, match=r"^--placement=processes needs --carrier=reverb[^\n]*$"):
        runs.make("impala", "CartPole-v1", {"placement": placement, "carrier": "local"}, {})


def test_a_serial_run_with_a_replay_in_reverb_is_refused():
    why = r"give --carrier=local or --placement=threads$"
    if importlib.util.find_spec("reverb") is None:
        why = r"Reverb is not installed[^\n]*give --carrier=local$"
    with pytest.raises(UsageError, match=why):
        runs.make("ddpg", "Pendulum-v1", {"placement": "serial", "carrier": "reverb"}, {}).check_fit()


@pytest.mark.parametrize(("field", "value"), [("priority", "rank"), ("uniform_fraction", 0.1)])
@pytest.mark.parametrize("agent", ["prioritized_dqn", "r2d2"])
def test_what_reverbs_sampler_cannot_do_is_refused(agent, field, value):
    why = rf"^config.{field}={value}: [^\n]*give --carrier=local or --config.{field}=[^\n]*$"
    if importlib.util.find_spec("reverb") is None:
        why = r"Reverb is not installed[^\n]*give --carrier=local$"
    with pytest.raises(UsageError, match=why):
        runs.make(agent, "Catch-v0", {"carrier": "reverb"}, {field: value}).check_fit()


@pytest.mark.skipif(importlib.util.find_spec("reverb") is None, reason="its sampler refuses")
def test_a_uniform_replay_has_no_priorities_to_refuse():
    runs.make("dqn", "Catch-v0", {"carrier": "reverb"}, {"priority": "rank", "uniform_fraction": 0.1}).check_fit()


@pytest.mark.parametrize("mapper", devices.MAPPERS)
@pytest.mark.parametrize("name", ["variables", "member_3_variables"])
def test_actors_pull_parameters_as_one_device_has_them_and_all_else_as_it_was_pushed(mapper, name):
    device = jax.local_devices()[0]
    mesh = devices.make_mesh(mapper, [device])
    carrier, params = LocalCarrier(mesh, device), {"w": np.arange(6.0).reshape(2, 3), "b": np.int32(7)}
    container = carrier.variables(None, name)
    assert not container.filled() and container.pushes() == 0
    container.push(Version(1, 20), mesh.put(params))
    version, pulled = container.pull()
    assert version == Version(1, 20) and carrier.variables(None, name) is container
    for x, y in zip(jax.tree.leaves(pulled), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(x, y, strict=False)
        assert np.shape(x) == np.shape(y) and x.devices() == {device}
    container.push(Version(2, 40), mesh.put({"w": params["w"] + 1, "b": params["b"]}))
    version, pulled = container.pull()
    assert version == Version(2, 40) and container.pushes() == 2 and pulled["w"][0, 0] == 1.0
    state = {"w": np.arange(3.0)}
    carrier.variables(None, "member_3_state").push(Version(1, 20), state)
    assert carrier.variables(None, "member_3_state").pull()[1] is state


@pytest.mark.parametrize(("max_size", "num_envs"), [(1, 4), (7, 1), (8, 4), (11, 4), (20, 3)])
def test_a_local_queue_has_room_for_as_many_sequences_as_the_table_says(max_size, num_envs):
    number, flags = np.zeros((2, num_envs), np.float32), np.zeros((2, num_envs), bool)
    steps = Step(number, number, number, number, flags, {})
    structure = Structure(Block(steps, np.zeros(num_envs, np.float32), np.int64(0)))
    table, device = TableSpec("queue", Blocks(1), "queue", max_size), jax.local_devices()[0]
    carrier = LocalCarrier(devices.make_mesh(devices=[device]), device)
    channel = carrier.channel(None, table, structure, num_envs, 1, num_envs, 100)  # type: ignore[arg-type]
    asked: list[int] = []  # a writer asks whether it is stopped only where it would have to wait
    writer = channel.writer(0, None, lambda: asked.append(1) is None)
    count = 0
    while not asked:
        count += 1
        step = jax.tree.map(lambda x, count=count: np.full_like(x[0], count), steps)
        answer = TimeStep(step.observation, step.reward, step.discount, step.first, step.first)
        assert writer.append(Row(step, np.zeros(num_envs, np.float32), Version(count, 0), None, answer))
    assert count - 1 == max(1, max_size // num_envs)
    batches = channel.batches()
    assert [next(batches).learner_steps.tolist() for _ in range(count)] == [[n] for n in range(1, count + 1)]
