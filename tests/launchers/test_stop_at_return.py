"""Runs that are done once an evaluation's return is high enough, wherever their roles run."""

import csv
import pathlib
import re

import jax
import numpy as np
import pytest

from launchers import flags, role, train
from launchers import run as runs
from launchers.ports import free_port
from runtime import metrics
from runtime.checkpoint import Checkpointer
from tests.launchers import command_line
from tests.launchers.test_pod import ends, saved, start

QUEUE = (*command_line.TINY, "--config.hidden_sizes=8", "--eval_period=200", "--eval_episodes=2")
REPLAY = (
    "--agent=ddpg", "--env=Pendulum-v1", "--num_actors=1", "--envs_per_actor=4", "--config.hidden_sizes=8",
    "--config.batch_size=8", "--config.min_replay_size=64", "--eval_period=200", "--eval_episodes=2",
)  # fmt: skip
GRADIENTS = ("--agent=a3c", *QUEUE[:3], "--config.batch_size=4", *QUEUE[4:])
FOR_EVER = ("--max_env_steps=1000000000", "--checkpoint_seconds=100000")
COME_TO = {QUEUE: 1.0, REPLAY: -1999.0, GRADIENTS: 1.0}  # returns that any policy reaches
SERIAL = ("--placement=serial", "--carrier=local")


def attempt(logdir: pathlib.Path, *arguments: str) -> int:
    return flags.attempt(train.train, ["train", f"--logdir={logdir}", *FOR_EVER, *arguments])


def write(logdir: pathlib.Path, *evaluations: tuple[float, float]) -> None:
    """Writes some evaluations, each (environment steps, return), as a run leaves them."""
    with open(logdir / "evaluator.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["env_steps", "learner_steps", "wall_seconds", "episodes", "return_mean", "return_std"])
        rows.writerows([steps, steps, 0.0, 2, value, 0.0] for steps, value in evaluations)


def check_done(logdir: pathlib.Path, least: float, output: str) -> None:
    """Asserts that a run was done at its first evaluation, and that its end is saved."""
    (row,) = metrics.read(logdir / "evaluator.csv")
    assert row["return_mean"] >= least
    version = saved(logdir)
    assert version.env_steps >= row["env_steps"] and version.learner_steps >= row["learner_steps"]
    said = f"the run is done: an evaluation at {row['env_steps']:,.0f} env steps came to --stop_at_return={least:g}"
    assert said in output, output


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        *((arguments, ("--placement=threads", "--carrier=local")) for arguments in (QUEUE, REPLAY, GRADIENTS)),
        (QUEUE, ("--placement=threads",)),
        *((arguments, SERIAL) for arguments in (QUEUE, REPLAY)),
    ],
)
def test_a_run_is_done_and_saved_and_the_same_command_says_so_again(arguments, where, tmp_path, capsys):
    given = (*arguments, *where, f"--stop_at_return={COME_TO[arguments]}")
    assert attempt(tmp_path, *given, "--unfinished_code=75") == 0
    check_done(tmp_path, COME_TO[arguments], capsys.readouterr().out)
    version = saved(tmp_path)
    assert attempt(tmp_path, *given, "--unfinished_code=75") == 0
    check_done(tmp_path, COME_TO[arguments], capsys.readouterr().out)
    assert saved(tmp_path) == version, "nothing was left to do"


@pytest.mark.parametrize("other", [("--stop_at_return=1e9",), ()])
def test_asked_for_more_or_for_none_it_goes_on(other, tmp_path, capsys):
    for asked, least in ((("--stop_at_return=1",), 0), ((*other, "--max_env_steps=1000"), 1000)):
        assert attempt(tmp_path, *QUEUE, *SERIAL, *asked) == 0
        assert ("the run is done" in capsys.readouterr().out) == (least == 0)
        assert saved(tmp_path).env_steps >= least


def test_a_serial_run_is_done_with_the_parameters_that_were_evaluated(tmp_path):
    states = []
    for name in ("a", "b"):
        assert attempt(tmp_path / name, *QUEUE, *SERIAL, "--stop_at_return=1") == 0
        run = runs.load(tmp_path / name)
        states.append(Checkpointer(tmp_path / name / "checkpoints", run.make_agent(run.spec())).restore())
        (row,) = metrics.read(tmp_path / name / "evaluator.csv")
        assert states[-1][1].learner_steps == row["learner_steps"]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize("where", [SERIAL, ("--placement=threads", "--carrier=local")])
def test_what_was_evaluated_and_lost_by_a_kill_is_learnt_again(where, tmp_path, capsys):
    """The evaluation was written, but the learner was killed before it saved. The learner goes on until it has come as
    far again, and saves."""
    write(tmp_path, (300, 0.5), (600, 2.0), (900, 1.0))
    assert attempt(tmp_path, *QUEUE, *where, "--stop_at_return=2") == 0
    assert 600 <= saved(tmp_path).env_steps < 600 + 40, "of an update"
    assert len(metrics.read(tmp_path / "evaluator.csv")) == 3
    assert "an evaluation at 600 env steps came to --stop_at_return=2" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(20))
def test_a_run_ends_where_the_first_evaluation_came_to_it(seed, tmp_path):
    draw = np.random.default_rng(seed)
    values = [*draw.normal(size=draw.integers(0, 30)).tolist()]
    evaluations = [(10 * (n + 1), float("nan") if draw.random() < 0.1 else value) for n, value in enumerate(values)]
    write(tmp_path, *evaluations)
    with open(tmp_path / "evaluator.csv", "a") as file:
        file.write("310,31,1e")  # a row that is being written, or that a kill cut off
    for least in (-9.0, 0.0, *values[:3], 9.0):
        run = runs.make("a2c", "CartPole-v1", {"stop_at_return": least, "max_env_steps": 205}, {})
        come = [steps for steps, value in evaluations if value >= least]
        assert run.ends_at(tmp_path) == min([205, *come])
    assert runs.make("a2c", "CartPole-v1", {"max_env_steps": 205}, {}).ends_at(tmp_path) == 205


def test_a_population_is_refused_in_one_line(tmp_path, capsys):
    population = ("--population=2", "--tune=learning_rate:log:1e-4:1e-2")
    assert attempt(tmp_path / "run", *QUEUE, *population, "--stop_at_return=1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --stop_at_return is for a run without a population")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["learner", "evaluator"])
def test_roles_that_share_no_folder_are_refused_in_one_line(kind, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = (f"--role={kind}", "--replay=localhost:1", "--logdir=memory://run", "--carrier=reverb", *QUEUE)
    code = flags.attempt(role.role, ["role", *given, "--stop_at_return=1"])
    error = capsys.readouterr().err.splitlines()[-1]
    no_reverb = "--carrier=reverb: Reverb is not installed" in error
    assert code == 2 and (no_reverb or error.startswith("error: --stop_at_return with --logdir=memory://run")), error


@pytest.mark.timeout(900)
@pytest.mark.parametrize("placement", ["processes", "ray"])
def test_processes_end_by_themselves(placement, tmp_path):
    given = (*QUEUE, *FOR_EVER, f"--logdir={tmp_path}", f"--placement={placement}", "--stop_at_return=1")
    code, output = command_line.run("train", *given)
    assert code == 0 and "Traceback" not in output, output
    check_done(tmp_path, 1.0, output)
    assert not command_line.processes_of(tmp_path)
    version = saved(tmp_path)
    code, output = command_line.run("train", *given)
    assert code == 0 and saved(tmp_path) == version, output
    check_done(tmp_path, 1.0, output)


@pytest.mark.timeout(900)
def test_the_hosts_of_a_pod_end_together_though_one_alone_evaluates(tmp_path):
    """Each host has a folder of its own."""
    folders = {f"host_{host}": (f"--logdir={tmp_path / str(host)}",) for host in range(2)}
    given = (*QUEUE, "--agent=impala", "--carrier=local", *FOR_EVER, "--stop_at_return=1", "--unfinished_code=75")
    for _ in range(2):
        hosts = ends(start(2, tmp_path / "none", *given, **folders))
        assert [code for code, _ in hosts] == [0, 0], hosts
        check_done(tmp_path / "0", 1.0, hosts[0][1])
    assert not (tmp_path / "1" / "evaluator.csv").exists()


@pytest.mark.timeout(900)
def test_roles_by_hand_end_by_themselves_with_two_learner_hosts(tmp_path):
    ports = [free_port(), free_port()]
    common = [*QUEUE, *FOR_EVER, f"--logdir={tmp_path}", f"--replay=localhost:{ports[0]}", "--stop_at_return=1"]
    learner = ["--role=learner", f"--coordinator=localhost:{ports[1]}", "--num_learners=2"]
    playing = {
        "replay": command_line.start("role", *common, "--role=replay", f"--port={ports[0]}"),
        "learner 0": command_line.start("role", *common, *learner, "--task=0"),
        "learner 1": command_line.start("role", *common, *learner, "--task=1"),
        "evaluator": command_line.start("role", *common, "--role=evaluator"),
        "actor": command_line.start("role", *common, "--role=actor"),
    }
    try:
        for name in ("learner 0", "learner 1", "evaluator"):
            output = command_line.output_of(playing[name], 200)
            assert playing[name].returncode == 0, f"{name}: {output}"
            check_done(tmp_path, 1.0, output)
    finally:
        for process in playing.values():
            process.kill()
    assert re.search("learner_steps_[0-9]+", str([*(tmp_path / "checkpoints").iterdir()]))
