"""Runs that are interrupted, killed and resumed, with real processes and real signals."""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess

import jax
import numpy as np
import pytest

from launchers import run as runs
from launchers.ports import free_port
from runtime import metrics
from runtime.checkpoint import Checkpointer
from tests.launchers import command_line
from tests.pictures import has_curve


def checkpoint(logdir):
    """Returns the (state, version) of the newest checkpoint."""
    run = runs.load(logdir)
    return Checkpointer(logdir / "checkpoints", run.make_agent(run.spec())).restore()


def env_steps(logdir):
    row = metrics.latest(logdir, "learner")
    return row["env_steps"] if row else 0.0


def restarted(logdir, role, victim):
    return command_line.processes_of(logdir).get(role, [victim]) != [victim]


def test_serial_is_reproducible_to_the_bit_over_a_resume_too(tmp_path):
    states = []
    for name in ("a", "b"):
        for steps in (2000, 4000):
            arguments = (f"--logdir={tmp_path / name}", "--placement=serial", f"--max_env_steps={steps}", "--seed=3")
            code, output = command_line.run("train", *command_line.TINY, *arguments)
            assert code == 0, output
        states.append(checkpoint(tmp_path / name))
    (a, version), (b, _) = states
    assert version.env_steps >= 4000
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a3c_with_one_worker_is_a2c_to_the_bit(tmp_path):
    states = []
    for travels in ("experience", "gradients"):
        arguments = (*command_line.TINY, "--agent=a2c", "--placement=serial", "--num_actors=1", "--envs_per_actor=8")
        code, output = command_line.run(
            "train", *arguments, f"--logdir={tmp_path / travels}", f"--travels={travels}", "--max_env_steps=3000"
        )
        assert code == 0, output
        states.append(checkpoint(tmp_path / travels))
    (a2c, version), (a3c, same) = states
    assert version == same and version.env_steps >= 3000
    jax.tree.map(np.testing.assert_array_equal, a2c, a3c)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_then_resume_loses_no_learner_step(tmp_path, number):
    arguments = (*command_line.TINY, f"--logdir={tmp_path}", "--max_env_steps=1000000000")
    training = command_line.start("train", *arguments)
    command_line.wait_for("learning to begin", lambda: env_steps(tmp_path) > 0, running=[training])
    training.send_signal(number)
    output = command_line.output_of(training, 60)
    assert training.returncode == 0, output
    _, saved = checkpoint(tmp_path)
    assert saved.learner_steps >= metrics.latest(tmp_path, "learner")["learner_steps"]
    # The run resumes where it was: with nothing left to do, it makes no further update.
    finished = (*arguments[:-1], f"--max_env_steps={saved.env_steps}")
    code, output = command_line.run("train", *finished)
    assert code == 0, output
    assert checkpoint(tmp_path)[1] == saved
    # scripts/evaluate plays the same checkpoint.
    code, output = command_line.run("evaluate", f"--logdir={tmp_path}", "--episodes=3")
    assert code == 0, output
    words = dict(word.split("=") for word in output.splitlines()[-1].split())
    assert words["episodes"] == "3" and words["env_steps"] == str(saved.env_steps)
    # Any episodes of CartPole are within these bounds; test_roles.py tests the deviation itself.
    assert 8.0 <= float(words["return_mean"]) <= 500.0 and 0.0 <= float(words["return_std"]) < 250.0


def test_processes_survive_any_end_of_any_role_and_leave_nothing_behind(tmp_path):
    arguments = (*command_line.TINY, f"--logdir={tmp_path}", "--placement=processes", "--checkpoint_seconds=1")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the launcher would inherit that it is ignored
    try:
        training = command_line.start("train", *arguments, "--max_env_steps=1000000000")
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        command_line.wait_for(
            "learning and a checkpoint",
            lambda: env_steps(tmp_path) > 0 and any((tmp_path / "checkpoints").glob("learner_steps_*[0-9]")),
            running=[training],
        )
        code, output = command_line.run("train", *arguments, "--max_env_steps=1000000000")
        assert code == 2 and "is running already" in output.splitlines()[-1], output
        for role, number in (
            ("actor", signal.SIGTERM),
            ("actor", signal.SIGKILL),
            ("evaluator", signal.SIGTERM),
            ("replay", signal.SIGKILL),
            ("learner", signal.SIGINT),
            ("learner", signal.SIGKILL),
        ):
            (victim,) = command_line.processes_of(tmp_path)[role]
            os.kill(victim, number)
            before = env_steps(tmp_path)
            again = functools.partial(restarted, tmp_path, role, victim)
            command_line.wait_for(f"another {role}", again, running=[training])
            further = functools.partial(lambda steps: env_steps(tmp_path) > steps, before)
            command_line.wait_for(f"learning to go on without its first {role}", further, running=[training])
        training.send_signal(signal.SIGHUP)
        output = command_line.output_of(training, 120)
        assert training.returncode == 0, output
        assert "actor_0 was ended by SIGTERM; restart 1 of" in output
        assert "learner_0 was killed by SIGKILL; restart 2 of" in output
        assert not command_line.processes_of(tmp_path)
        assert checkpoint(tmp_path)[1].env_steps >= env_steps(tmp_path)
    finally:
        training.kill()


def test_a_worker_that_is_killed_loses_its_own_rollout_alone(tmp_path):
    """Whenever a worker dies, the learner goes on: first without it, with whole gradients only, then with another."""
    arguments = ("--agent=async_q", "--env=CartPole-v1", "--num_actors=2", "--actors_per_process=1")
    training = command_line.start(
        "train", *arguments, "--placement=processes", f"--logdir={tmp_path}", "--max_env_steps=1000000000"
    )
    try:
        command_line.wait_for("learning", lambda: env_steps(tmp_path) > 0, running=[training])
        learner = command_line.processes_of(tmp_path)["learner"]
        for _ in range(2):
            victim = max(command_line.processes_of(tmp_path)["actor"])
            os.kill(victim, signal.SIGKILL)
            before = env_steps(tmp_path)
            further = functools.partial(lambda s: env_steps(tmp_path) > s, before)
            command_line.wait_for("learning to go on", further, running=[training])
            command_line.wait_for(
                "another worker",
                functools.partial(
                    lambda v: len([p for p in command_line.processes_of(tmp_path).get("actor", []) if p != v]) == 2,
                    victim,
                ),
                running=[training],
            )
        assert command_line.processes_of(tmp_path)["learner"] == learner, "the learner was restarted too"
        training.terminate()
        output = command_line.output_of(training, 120)
        assert training.returncode == 0, output
        assert not command_line.processes_of(tmp_path)
        assert metrics.latest(tmp_path, "learner")["loss"] >= 0
    finally:
        training.kill()


def test_replay_servers_survive_kill_9_with_their_contents(tmp_path):
    arguments = (*command_line.TINY_REPLAY, f"--logdir={tmp_path}", "--placement=processes", "--checkpoint_seconds=1")
    training = command_line.start("train", *arguments, "--max_env_steps=1000000000")

    def learner_steps():
        row = metrics.latest(tmp_path, "learner")
        return row["learner_steps"] if row else 0.0

    try:
        command_line.wait_for(
            "learning and a checkpoint of both replays",
            lambda: env_steps(tmp_path) > 0 and all(any((tmp_path / f"replay_{k}").glob("20*/DONE")) for k in (0, 1)),
            running=[training],
        )
        for task in (0, 1):
            learner, victims = (command_line.processes_of(tmp_path)[role] for role in ("learner", "replay"))
            os.kill(min(victims), signal.SIGKILL)  # the oldest: first one server, then the other
            command_line.wait_for(
                f"another replay server {task}",
                functools.partial(
                    lambda old: {*command_line.processes_of(tmp_path).get("replay", [])} - {*old}, victims
                ),
                running=[training],
            )
            before = learner_steps()
            # Each batch has a share from both servers, so learning goes on only once both serve again.
            command_line.wait_for(
                f"learning to go on without the first replay server {task}",
                functools.partial(lambda steps: learner_steps() > steps + 20, before),
                running=[training],
            )
            assert command_line.processes_of(tmp_path)["learner"] == learner, "the learner was restarted too"
        training.terminate()
        output = command_line.output_of(training, 120)
        assert training.returncode == 0, output
        assert not command_line.processes_of(tmp_path)
    finally:
        training.kill()


def test_a_replay_is_resumed_with_what_it_held(tmp_path):
    arguments = (*command_line.TINY_REPLAY, f"--logdir={tmp_path}", "--max_env_steps=1000000000")
    training = command_line.start("train", *arguments)
    command_line.wait_for("learning", lambda: env_steps(tmp_path) > 0, running=[training])
    training.terminate()
    output = command_line.output_of(training, 100)
    assert training.returncode == 0, output
    _, saved = checkpoint(tmp_path)
    # There are far fewer new transitions than the replay's minimum, but the saved replay lets it learn at once.
    code, output = command_line.run("train", *arguments[:-1], f"--max_env_steps={saved.env_steps + 40}")
    assert code == 0, output
    _, resumed = checkpoint(tmp_path)
    assert resumed.learner_steps > saved.learner_steps

    # These settings make a server's share another table: the run is refused, and the contents are kept.
    other = (*command_line.TINY_REPLAY, f"--logdir={tmp_path}", "--max_env_steps=1000000000")
    (tmp_path / "config.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints")
    code, output = command_line.run("train", *other, "--config.n_step=2", "--config.replay_size=5000")
    assert code == 2 and "replay_0" in output and "Traceback" not in output, output


def test_children_end_when_the_launcher_is_killed_in_order_and_the_learner_saves(tmp_path):
    arguments = (*command_line.TINY_REPLAY, f"--logdir={tmp_path}", "--placement=processes")
    training = command_line.start("train", *arguments, "--max_env_steps=1000000000", "--checkpoint_seconds=1000")
    command_line.wait_for("learning to begin", lambda: env_steps(tmp_path) > 0, running=[training])
    training.kill()
    training.wait()

    def learner_ended() -> bool:
        left = command_line.processes_of(tmp_path)
        assert "learner" not in left or len(left["replay"]) == 2, "the learner has still to save what they hold"
        return "learner" not in left

    assert not learner_ended()
    command_line.wait_for("the learner's end", learner_ended)
    command_line.wait_for("every child to end", lambda: not command_line.processes_of(tmp_path))
    run = runs.load(tmp_path)
    checkpointer = Checkpointer(tmp_path / "checkpoints", run.make_agent(run.spec()))
    _, saved = checkpointer.restore()
    assert saved.learner_steps >= metrics.latest(tmp_path, "learner")["learner_steps"]
    assert checkpointer.counts["replay"] > 0


def test_roles_by_hand_with_two_learner_hosts(tmp_path):
    """Starts each role by its own command, as a person does on several machines. Two learners average gradients."""
    ports = [free_port(), free_port()]
    common = [*command_line.TINY, f"--logdir={tmp_path}", "--max_env_steps=3000", f"--replay=localhost:{ports[0]}"]
    learner = ["--role=learner", f"--coordinator=localhost:{ports[1]}", "--num_learners=2"]
    roles = {
        "replay": command_line.start("role", *common, "--role=replay", f"--port={ports[0]}"),
        "learner 0": command_line.start("role", *common, *learner, "--task=0"),
        "learner 1": command_line.start("role", *common, *learner, "--task=1"),
        "actor": command_line.start("role", *common, "--role=actor"),
    }
    try:
        for name in ("learner 0", "learner 1"):
            output = command_line.output_of(roles[name], 200)
            assert roles[name].returncode == 0, f"{name}: {output}"
        for name in ("actor", "replay"):
            roles[name].terminate()
            output = command_line.output_of(roles[name], 100)
            assert roles[name].returncode == 128 + signal.SIGTERM, f"{name}: {output}"
    finally:
        for process in roles.values():
            process.kill()
    _, version = checkpoint(tmp_path)
    # An update counts both learners' 8 sequences of 5 rows, except rows that are no transitions. The count may be two
    # updates late.
    assert 3000 <= version.env_steps <= version.learner_steps * 2 * 8 * 5
    assert version.env_steps > 0.8 * (version.learner_steps - 2) * 2 * 8 * 5


def test_processes_end_by_themselves_with_the_contract_files(tmp_path):
    arguments = (*command_line.TINY, f"--logdir={tmp_path}", "--placement=processes", "--max_env_steps=3000")
    code, output = command_line.run("train", *arguments, "--eval_period=1000", "--eval_episodes=4")
    assert code == 0, output
    assert not command_line.processes_of(tmp_path)
    rows = metrics.read(tmp_path / "evaluator.csv")
    assert rows[-1]["env_steps"] >= 3000 and rows[-1]["episodes"] == 4
    assert {"env_steps", "learner_steps", "wall_seconds", "episodes", "return_mean", "return_std"} <= rows[-1].keys()
    for name in ("learner.csv", "actor_0.csv", "actor_1.csv", "checkpoints"):
        assert (tmp_path / name).exists(), name
    # In a short run the evaluator may see only the end, and one evaluation makes no curve.
    assert has_curve(tmp_path / "curve.png") if len(rows) > 1 else not (tmp_path / "curve.png").exists()
    assert json.loads((tmp_path / "config.json").read_text())["env"] == "CartPole-v1"


def test_a_run_in_a_network_of_its_own_cannot_be_reached(tmp_path):
    """The run is started as docs/machines.md says, to keep strangers out."""
    apart = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no network namespaces")
    port = free_port()
    arguments = (*command_line.TINY, f"--logdir={tmp_path}", "--max_env_steps=1000000000", f"--port={port}")
    training = subprocess.Popen(
        [*apart, *command_line.command("train", *arguments)],
        env=command_line.ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        command_line.wait_for("learning", lambda: env_steps(tmp_path) > 0, running=[training])
        for host in ("127.0.0.1", "::1", socket.gethostname()):
            with pytest.raises(OSError), socket.create_connection((host, port), timeout=2):
                pass
        training.terminate()
        output = command_line.output_of(training, 60)
        assert training.returncode == 0, output
        assert "listens on every network interface" in output
    finally:
        training.kill()
