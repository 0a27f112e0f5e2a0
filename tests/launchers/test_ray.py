"""Placement `ray`: a run on the nodes of a cluster, which goes on when processes or nodes die."""

import os
import random
import re
import signal
import subprocess

import pytest

from runtime import metrics
from scripts import chaos
from tests.launchers import command_line
from tests.launchers.test_pod import env_steps, saved

QUEUE = (*command_line.TINY, "--agent=impala", "--actors_per_process=1")
REPLAY = (*command_line.TINY_REPLAY, "--actors_per_process=1")
FOR_EVER = ("--max_env_steps=1000000000", "--eval_period=20000", "--checkpoint_seconds=1", "--eval_episodes=1")
STORE = 80 * 2**20  # bytes, the least that Ray allows
SECONDS = 300  # how long a test waits for a process to be started again


class Nodes:
    """A Ray cluster on this machine. Each node has an address of its own; the first node has no room for roles."""

    def __init__(self):
        from ray import cluster_utils  # here, so that only the tests that need Ray are skipped without it

        first = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
        self._cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=first)
        self.address, self._count = self._cluster.address, 1

    def add(self, **resources):
        self._count += 1
        address = f"127.0.0.{self._count}"
        return self._cluster.add_node(**resources, object_store_memory=STORE, node_ip_address=address)

    def remove(self, node):
        """Removes a node as if its machine had lost power."""
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self):
        self._cluster.shutdown()


@pytest.fixture
def nodes():
    found = Nodes()
    yield found
    found.close()


def processes(name: str, above: int | None = None) -> list[int]:
    """Returns the processes below process `above` (None: this one) that play a role whose name matches a pattern."""
    played = chaos.played_below(above or os.getpid())
    return [process for role, process in played if re.fullmatch(name, role)]


def end(launcher: subprocess.Popen) -> str:
    """Asks a launcher to end, waits until all roles have ended, and returns the launcher's output."""
    launcher.send_signal(signal.SIGTERM)
    try:
        output = command_line.output_of(launcher, 180)
    finally:
        launcher.kill()
    assert launcher.returncode == 0 and "Traceback" not in output, output
    command_line.wait_for("all roles' ends", lambda: not processes(".*"))
    return output


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("arguments", [QUEUE, REPLAY], ids=["a queue", "a replay"])
def test_a_run_outlives_its_processes_and_its_nodes(arguments, nodes, tmp_path):
    lost = nodes.add(num_cpus=16)
    launcher = command_line.start(
        "train", "--placement=ray", f"--ray_address={nodes.address}", f"--logdir={tmp_path}", *arguments, *FOR_EVER
    )

    def goes_on(after: str) -> None:
        before = env_steps(tmp_path)
        command_line.wait_for(f"learning, {after}", lambda: env_steps(tmp_path) > before + 200, SECONDS, [launcher])

    def plays_anew(name: str, before: list[int]) -> None:
        command_line.wait_for(f"{name} anew", lambda: processes(name) not in ([], before), SECONDS, [launcher])

    goes_on("at first")
    command_line.wait_for("a checkpoint", lambda: saved(tmp_path), SECONDS, [launcher])
    names = ["learner_0", "replay_0"] + ["actor_0", "actor_1", "evaluator_0"] * (arguments is QUEUE)
    random.Random(0).shuffle(names)
    for index, name in enumerate(names):
        command_line.wait_for(f"{name} to play", lambda name=name: processes(name), SECONDS, [launcher])
        before = processes(name)
        for process in before:
            os.kill(process, signal.SIGTERM if index % 2 else signal.SIGKILL)
        plays_anew(name, before)
        goes_on(f"without the first {name}")
    nodes.add(num_cpus=16)
    lost_with_it = {name: processes(name) for name in names}
    nodes.remove(lost)
    for name, before in lost_with_it.items():  # Ray's processes outlive their node by some seconds
        plays_anew(name, before)
    goes_on("on another node")

    output = end(launcher)
    for name in names:
        assert re.search(rf"{name} (died|has moved)", output), output
    assert "replay_0 has moved to 127.0.0.3:" in output, output
    assert saved(tmp_path).env_steps >= env_steps(tmp_path)
    if arguments is REPLAY:
        assert {path.name for path in tmp_path.glob("replay_?")} == {"replay_0", "replay_1"}


@pytest.mark.timeout(900)
def test_actors_join_when_there_is_room(nodes, tmp_path):
    """At first the cluster has room for only one of the two actors."""
    nodes.add(num_cpus=4)
    launcher = command_line.start(
        "train", "--placement=ray", f"--ray_address={nodes.address}", f"--logdir={tmp_path}", *QUEUE, *FOR_EVER
    )
    command_line.wait_for("one actor's learning", lambda: env_steps(tmp_path) > 200, SECONDS, [launcher])
    assert sum(bool(processes(f"actor_{task}")) for task in range(2)) == 1
    nodes.add(num_cpus=1)
    command_line.wait_for(
        "both actors", lambda: all(metrics.latest(tmp_path, f"actor_{task}") for task in range(2)), SECONDS, [launcher]
    )
    end(launcher)


@pytest.mark.timeout(900)
def test_a_learner_on_several_nodes_ends_and_begins_as_one(nodes, tmp_path):
    for _ in range(2):
        nodes.add(num_cpus=4)
    launcher = command_line.start(
        "train", "--placement=ray", f"--ray_address={nodes.address}", f"--logdir={tmp_path}", "--num_learners=2",
        *QUEUE, *FOR_EVER,
    )  # fmt: skip
    command_line.wait_for("learning", lambda: env_steps(tmp_path) > 200, SECONDS, [launcher])
    command_line.wait_for("a checkpoint", lambda: saved(tmp_path), SECONDS, [launcher])
    first = [processes(f"learner_{host}") for host in range(2)]
    assert all(first)
    for process in first[1]:
        os.kill(process, signal.SIGKILL)
    for host in range(2):
        command_line.wait_for(
            f"learner_{host} to begin anew",
            lambda host=host: processes(f"learner_{host}") not in ([], first[host]),
            SECONDS,
            [launcher],
        )
    before = saved(tmp_path)
    command_line.wait_for(
        "a later checkpoint", lambda: saved(tmp_path).env_steps > before.env_steps, SECONDS, [launcher]
    )
    # Without learner_1, learner_0 ends too, and Ray may report either of them first.
    output = end(launcher)
    assert re.search("learner_[01] died", output), output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--logdir=file:///tmp/run",), "give a folder that all nodes share"),
        (("--ray_address=localhost:1",), "nobody answers there"),
        (("--ray_address=somewhere",), "is not an address"),
        (("--ray_resources={",), "is not JSON"),
        (("--ray_resources=[]",), "an object for each kind of role"),
        (('--ray_resources={"teacher": {}}',), "'teacher' is not a kind of role"),
        (('--ray_resources={"actor": {"CPU": -1}}',), "0 or more"),
        (('--ray_resources={"actor": {"CPU": 1.5}}',), "a whole number"),
        (('--ray_resources={"learner": {"GPU": 3}}', "--connect_seconds=1"), "learner_0 needs 3 GPU"),
        (('--ray_resources={"actor": {"x": 3}}', "--connect_seconds=1"), "actor_0 needs 3 x"),
        (("--num_learners=2", "--agent=dqn"), "an agent with a replay learns on one host"),
        (("--config.learning_rate=1e30", "--config.max_gradient_norm=1e30"), "learner_0: "),
        (("--placement=threads", "--ray_address=auto"), "--ray_address is for --placement=ray"),
        (("--placement=processes", "--num_learners=2"), "--num_learners is for --placement=ray"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, words, tmp_path):
    code, output = command_line.run(
        "train", "--placement=ray", *command_line.TINY[:-1], f"--logdir={tmp_path}", *arguments, timeout=200
    )
    *_, line = output.strip().splitlines()
    assert code == 2 and line.startswith("error: ") and words in line, output
    assert "Traceback" not in output


def test_one_command_learns_without_a_cluster(tmp_path):
    before = processes(".*", above=1)
    code, output = command_line.run(
        "train", "--placement=ray", *QUEUE, f"--logdir={tmp_path}", "--max_env_steps=2000", "--eval_episodes=1"
    )
    assert code == 0 and "Traceback" not in output, output
    assert saved(tmp_path).env_steps >= 2000 and env_steps(tmp_path) >= 2000
    command_line.wait_for("all roles' ends", lambda: not {*processes(".*", above=1)} - {*before})
