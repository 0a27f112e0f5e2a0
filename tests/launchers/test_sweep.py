"""Sweeps: ordinary runs whose values Optuna chooses. A sweep can be stopped and continued at any time."""

import os
import pathlib
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from agents import pbt
from launchers import flags, shutdown, study, sweep, train, trial
from runtime import metrics
from tests import pictures
from tests.launchers import command_line

# The placement is serial, so that the same command line gives the same run to the bit.
SMALL = (
    *("--agent=a2c", "--env=CartPole-v1", "--placement=serial", "--carrier=local", "--num_actors=1"),
    *("--envs_per_actor=8", "--config.batch_size=8", "--config.unroll_length=5", "--config.hidden_sizes=8"),
    *("--eval_episodes=2", "--checkpoint_seconds=100000"),
)
TUNE = "--tune=learning_rate:log:1e-4:1e-2,entropy_cost:linear:0:0.1"
RANGES = {"learning_rate": pbt.Range("log", 1e-4, 1e-2), "unroll_length": pbt.Range("step", 1.0, 10.0, 2.0)}
ENDLESS = "--max_env_steps=1000000000"
WAIT = 120.0


def start(folder: pathlib.Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "launchers.sweep", *SMALL, f"--logdir={folder}", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=command_line.ENVIRONMENT, start_new_session=True, **streams)


def end(sweeping: subprocess.Popen, folder: pathlib.Path) -> tuple[int, str]:
    """Waits for a sweep to end; returns its (exit code, output). No process of a trial may be left then."""
    output = command_line.output_of(sweeping, 2 * WAIT)
    assert not trials_of(folder), "processes are left"
    return sweeping.returncode, output


def trials_of(folder: pathlib.Path) -> dict[str, int]:
    """Returns the processes of a sweep's trials: name of the trial's folder -> process id."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            given = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # the process has ended
            continue
        for argument in given:
            if argument.startswith(f"--logdir={folder}/trial_"):
                found[argument.rpartition("/")[2]] = int(path.parent.name)
    return found


def evaluated(folder: pathlib.Path, number: int) -> list[dict[str, float]]:
    rows = metrics.read(folder / f"trial_{number}" / "evaluator.csv")
    return [{name: value for name, value in row.items() if name != "wall_seconds"} for row in rows]


def known(folder: pathlib.Path) -> list[optuna.trial.FrozenTrial]:
    return study.load(folder, "none").get_trials()


@pytest.mark.timeout(600)
def test_a_sweep_that_is_asked_to_end_goes_on_with_its_trials(tmp_path):
    folder = tmp_path / "sweep"
    given = ("--trials=3", "--jobs=2", TUNE, "--max_env_steps=60000", "--eval_period=3000", "--pruner=none")
    given = (*given, "--unfinished_code=75")
    values, before = [], [[], []]
    for ask in (lambda sweeping: sweeping.terminate(), lambda sweeping: os.killpg(sweeping.pid, signal.SIGINT)):
        sweeping = start(folder, *given)
        command_line.wait_for(
            "evaluations of two trials that were not there before",
            lambda: all(len(evaluated(folder, n)) > len(before[n]) for n in range(2)),
            WAIT,
            [sweeping],
        )
        running = trials_of(folder)
        assert running.keys() == {"trial_0", "trial_1"}
        cores = [os.sched_getaffinity(process) for process in running.values()]
        if len(os.sched_getaffinity(0)) > 1:
            assert not cores[0] & cores[1] and cores[0] | cores[1] == os.sched_getaffinity(0)
        ask(sweeping)  # a terminal's Ctrl-C reaches the whole group
        code, output = end(sweeping, folder)
        assert code == 75 and "Traceback" not in output, output
        assert output.count(" goes on: ") == 2 * bool(values) and "was asked to end" in output, output
        assert not values or values == [each.params for each in known(folder)]
        values = [each.params for each in known(folder)]
        assert len(values) == 2 and len(values[0]) == 2
        for n in range(2):
            rows = evaluated(folder, n)
            assert rows[: len(before[n])] == before[n], "the run began anew"
            before[n] = rows
            assert list((folder / f"trial_{n}" / "checkpoints").glob("learner_steps_*"))
    code, output = end(start(folder, *given), folder)
    assert code == 0 and output.count(" goes on: ") == 2, output
    trials = known(folder)
    assert [each.state for each in trials] == 3 * [TrialState.COMPLETE]
    assert [each.params for each in trials[:2]] == values
    for n, each in enumerate(trials):
        rows = evaluated(folder, n)
        assert rows[-1]["env_steps"] >= 60000 and (n == 2 or rows[: len(before[n])] == before[n])
        assert each.value == pytest.approx(sum(row["return_mean"] for row in rows[-5:]) / 5)
    assert pictures.has_curve(folder / "sweep.png")


@pytest.mark.timeout(600)
def test_the_best_trial_is_remade_by_the_line_that_the_sweep_prints(tmp_path):
    folder = tmp_path / "sweep"
    given = ("--trials=2", "--jobs=2", TUNE, "--max_env_steps=400", "--eval_period=200", "--sampler=random", "--seed=7")
    code, output = end(start(folder, *given), folder)
    assert code == 0, output
    number, line = re.search(r"the best is trial_(\d); make it again by\n  scripts/train (.*)", output).groups()
    trials = known(folder)
    assert trials[int(number)].value == max(each.value for each in trials)
    code, again = end(start(folder, *given), folder)
    assert code == 0 and again == output[output.index("\n┏") + 1 :], "nothing was left to do"
    assert flags.attempt(train.train, ["train", *shlex.split(line), f"--logdir={tmp_path / 'trial_9'}"]) == 0
    assert evaluated(tmp_path, 9) == evaluated(folder, int(number))
    table = [line for line in output.splitlines() if line.startswith("│")]
    assert len(table) == 2 and table[0].split()[1] == number


def test_a_run_that_cannot_learn_is_pruned_and_saved_though_the_sweep_was_killed_meanwhile(tmp_path):
    ranges = {"learning_rate": optuna.distributions.FloatDistribution(1e-12, 1e-11, log=True)}
    known_before = study.load(tmp_path, "median")
    for index in range(study.FIRST_TRIALS):
        reported = {step: 400.0 + index for step in range(1, 200)}
        values = {"params": {"learning_rate": 2e-12}, "distributions": ranges, "intermediate_values": reported}
        known_before.add_trial(optuna.trial.create_trial(value=500.0, **values))
    given = ("--trials=6", "--tune=learning_rate:log:1e-12:1e-11", "--eval_period=10000", ENDLESS)
    sweeping = start(tmp_path, *given)
    command_line.wait_for("an evaluation", lambda: evaluated(tmp_path, 5), WAIT, [sweeping])
    sweeping.kill()
    sweeping.wait(WAIT)
    command_line.wait_for("the end of the trial of a sweep that was killed", lambda: not trials_of(tmp_path), WAIT)
    before = evaluated(tmp_path, 5)
    code, output = end(start(tmp_path, *given), tmp_path)
    assert code == 0 and "trial_5 goes on: " in output and "trial_5 was pruned at " in output, output
    assert evaluated(tmp_path, 5)[: len(before)] == before
    *_, last = known(tmp_path)
    assert last.state == TrialState.PRUNED and last.value < 100 and len(evaluated(tmp_path, 5)) >= trial.LAST
    assert list((tmp_path / "trial_5" / "checkpoints").glob("learner_steps_*"))


def test_a_run_that_diverges_is_told_as_one_that_was_pruned_and_the_sweep_goes_on(tmp_path):
    given = ("--trials=2", "--tune=learning_rate:log:1e29:1e30", "--jobs=2", ENDLESS)
    code, output = end(start(tmp_path, *given), tmp_path)
    assert code == 0 and len(re.findall(r"trial_[01] diverged", output)) == 2 and "the best" not in output, output
    assert [each.state for each in known(tmp_path)] == 2 * [TrialState.PRUNED]


def test_a_trial_that_fails_otherwise_ends_the_sweep_in_one_line_and_is_taken_up_again(tmp_path):
    (tmp_path / "trial_1").mkdir()
    (tmp_path / "trial_1" / "config.json").write_text("{}")
    given = ("--trials=2", "--jobs=2", TUNE, "--max_env_steps=400", "--eval_period=200")
    code, output = end(start(tmp_path, *given), tmp_path)
    assert code == 2 and "Traceback" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: trial_1 ended with 2: ") and "config.json" in line
    (tmp_path / "trial_1" / "config.json").unlink()
    code, output = end(start(tmp_path, *given), tmp_path)
    assert code == 0 and [each.state for each in known(tmp_path)] == 2 * [TrialState.COMPLETE], output


@pytest.fixture
def searched(monkeypatch):
    """Returns a list that collects what accepted sweeps would have searched; nothing is searched."""
    calls = []
    monkeypatch.setattr(sweep, "search", lambda *given: calls.append(given))
    monkeypatch.setattr(shutdown, "stop_on_signals", lambda notice: threading.Event())  # keeps the tests' own handlers
    return calls


def attempt(folder: pathlib.Path, *arguments: str) -> int:
    given = ("--trials=2", TUNE, "--max_env_steps=400", *arguments)
    return flags.attempt(sweep.sweep, ["sweep", *SMALL, f"--logdir={folder}", *given])


OTHER = [
    *("--max_env_steps=800", "--eval_period=7", "--eval_episodes=4", "--placement=threads", "--seed=1"),
    *("--config.discount=0.9", "--stop_at_return=9", "--tune=learning_rate:log:1e-4:1e-3"),
]


@pytest.mark.parametrize("other", OTHER)
def test_another_sweep_in_the_same_folder_is_refused_in_one_line(other, tmp_path, searched, capsys):
    assert attempt(tmp_path) == 0
    assert attempt(tmp_path, "--trials=9", "--jobs=3", "--sampler=random", "--pruner=none") == 0
    kept = (tmp_path / "config.json").read_text()
    assert attempt(tmp_path, other) == 2
    (line,) = capsys.readouterr().err.splitlines()
    name = other.split("=")[0].removeprefix("--")
    assert line.startswith(f"error: {tmp_path} holds another sweep or run (") and f"{name} is " in line
    assert (tmp_path / "config.json").read_text() == kept and len(searched) == 2


def test_the_folder_of_a_run_is_refused(tmp_path, searched, capsys):
    assert flags.attempt(train.train, ["train", *SMALL, f"--logdir={tmp_path}", "--max_env_steps=80"]) == 0
    assert attempt(tmp_path) == 2 and not searched
    assert "tune is " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (("--trials=0", TUNE), {"jax", "optuna"}),
        ((TUNE,), {"jax", "optuna"}),
        (("--trials=2",), {"jax", "optuna"}),
        (("--trials=2", TUNE, "--population=2"), {"jax", "optuna"}),
        (("--trials=2", TUNE, "--sampler=grid"), {"jax", "optuna"}),
        (("--trials=2", "--tune=learning_rat:log:1e-4:1e-2"), {"optuna", "matplotlib", "reverb"}),
    ],
)
def test_a_mistake_waits_for_nothing_that_it_does_not_need(arguments, loaded, tmp_path):
    program = (
        "import sys; from launchers import flags, sweep; code = flags.attempt(sweep.sweep, sys.argv); "
        f"print(code, *({loaded} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, *arguments, f"--logdir={tmp_path / 'new'}"]
    done = subprocess.run(command, env=command_line.ENVIRONMENT, capture_output=True, text=True, timeout=WAIT)
    assert done.stdout.split() == ["2"] and len(done.stderr.splitlines()) == 1, done.stdout + done.stderr
    assert not (tmp_path / "new").exists()


def invent(folder: pathlib.Path, sampler: str, trials: int, interrupted: random.Random | None) -> list[dict]:
    """Makes a study whose trials return a function of their values, and returns the values of all trials. With
    `interrupted`, the study is now and then loaded again in the middle of a trial."""
    of = study.load(folder, "median")
    for number in range(trials):
        each = study.trial(of, number, RANGES, sampler, seed=number)
        if interrupted and interrupted.random() < 0.5:
            of = study.load(folder, "median")
            assert study.unfinished(of) == [number]
            again = study.trial(of, number, RANGES, sampler, seed=number)
            assert again.params == each.params
            each = again
        of.tell(each, -abs(each.params["learning_rate"] - 3e-3) + each.params["unroll_length"])
    return [each.params for each in of.get_trials()]


@pytest.mark.parametrize("sampler", sorted(study.SAMPLERS))
@pytest.mark.parametrize("seed", range(3))
def test_an_interrupted_sweep_draws_the_values_of_one_in_one_go(sampler, seed, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    values = invent(whole, sampler, 14, None)
    assert invent(parts, sampler, 14, random.Random(seed)) == values
    assert len({each["learning_rate"] for each in values}) == 14
    for each in values:
        assert 1e-4 <= each["learning_rate"] <= 1e-2 and each["unroll_length"] in (1, 3, 5, 7, 9)


@pytest.mark.parametrize("seed", range(20))
def test_a_study_that_was_cut_or_damaged_is_loaded_or_refused_in_one_line(seed, tmp_path):
    invent(tmp_path, "random", 4, None)
    path, draw = tmp_path / "study.log", random.Random(seed)
    whole = path.read_bytes()
    (tmp_path / "study.log.lock").symlink_to(path)  # as a killed sweep leaves it
    path.write_bytes(whole[: draw.randrange(len(whole))])
    of = study.load(tmp_path, "median")  # a study that was cut is loaded as far as it goes
    assert len(of.get_trials()) <= 4
    of.tell(study.trial(of, len(of.get_trials()), RANGES, "random", 0), 1.0)
    assert len(study.load(tmp_path, "median").get_trials()) == len(of.get_trials())
    damaged = bytearray(whole)
    damaged[draw.randrange(len(whole))] = draw.randrange(256)
    path.write_bytes(damaged)
    try:
        study.load(tmp_path, "median")
    except flags.UsageError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("seed", range(20))
def test_evaluations_that_were_lost_with_a_kill_do_not_count(seed, tmp_path):
    draw, kept = random.Random(seed), []
    with open(tmp_path / "evaluator.csv", "w") as file:
        file.write("env_steps,return_mean\n")
        for _ in range(draw.randrange(30)):
            steps = draw.randrange(1, 40)
            value = float("nan") if draw.random() < 0.1 else float(draw.randrange(9))
            file.write(f"{steps},{value}\n")
            kept = [row for row in kept if row[0] < steps] + [(steps, value)]
    assert trial.evaluations(tmp_path) == [row for row in kept if row[1] == row[1]]


@pytest.mark.parametrize("cores", range(1, 9))
@pytest.mark.parametrize("jobs", range(1, 12))
def test_jobs_share_the_cores(cores, jobs):
    there = [3 * core for core in range(cores)]
    shares = [sweep.share_of(there, job, jobs) for job in range(jobs)]
    assert {core for share in shares for core in share} == {*there} and all(shares)
    if jobs <= cores:
        assert sum(map(len, shares)) == cores and max(map(len, shares)) - min(map(len, shares)) <= 1
    else:
        assert all(len(share) == 1 for share in shares)


def test_several_trials_share_an_accelerators_memory(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert trial.memory_share(1) == {}
    for jobs in (2, 3, 8):
        assert 0.7 < jobs * float(trial.memory_share(jobs)["XLA_CLIENT_MEM_FRACTION"]) < 0.76
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.1")
    assert trial.memory_share(4) == {}


class Looks:
    """Stands for a running trial, which is done at its second look. `now` are those that run, `most` how many did."""

    now: list["Looks"] = []
    most = 0
    cores: list[list[int]] = []

    def __init__(self, trial, run, sweep, cores):
        self.trial, self.left = trial, 2
        self.process = SimpleNamespace(terminate=lambda: None, wait=lambda: None)
        Looks.now.append(self)
        Looks.most = max(Looks.most, len(Looks.now))
        Looks.cores.append(list(cores))

    def look(self, stop):
        self.left -= 1
        if not self.left:
            Looks.now.remove(self)
            self.trial.study.tell(self.trial, float(self.trial.number % 5))
        return not self.left


@pytest.mark.parametrize("sampler", sorted(study.SAMPLERS))
def test_each_trial_is_drawn_by_a_seed_of_its_own_and_so_many_run_at_a_time(sampler, tmp_path, monkeypatch, capsys):
    for name, value in {"now": [], "most": 0, "cores": []}.items():
        monkeypatch.setattr(Looks, name, value)
    monkeypatch.setattr(trial, "RunningTrial", Looks)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 7})
    drawn = []
    for seed, folder in ((1, "one"), (1, "again"), (2, "other")):
        given = (*SMALL, TUNE, f"--sampler={sampler}", "--trials=7", "--jobs=3", f"--seed={seed}")
        flags.parse(sweep.sweep, ["sweep", *given])
        run, logdir = flags.run_from_flags(used=("tune",)), tmp_path / folder
        logdir.mkdir()
        sweep.search(run, sweep.ranges_of(run), logdir, threading.Event())
        trials = known(logdir)
        assert [each.state for each in trials] == [TrialState.COMPLETE] * 7
        drawn.append([each.params["learning_rate"] for each in trials])
        assert len(set(drawn[-1])) == 7
        assert "the best is trial_4" in capsys.readouterr().out
    assert drawn[0] == drawn[1] != drawn[2] and not Looks.now
    assert Looks.most == 3 and {tuple(each) for each in Looks.cores} == {(1,), (5,), (7,)}


@pytest.mark.parametrize("known_before", [0, 3])
def test_optuna_is_told_the_mean_of_the_last_evaluations_once_for_each_step(known_before, tmp_path, monkeypatch):
    """A sweep that goes on with a trial reports only what it did not report before."""
    returns, said = [float(number**2) for number in range(12)], []
    reported, ended = [], []
    before = {step: 0.0 for step in range(1, known_before + 1)}
    of = SimpleNamespace(
        get_trials=lambda deepcopy: [SimpleNamespace(intermediate_values=before)],
        tell=lambda told, value=None, state=None: ended.append((value, state)),
    )
    fake = SimpleNamespace(
        number=0, params={}, study=of, report=lambda *what: reported.append(what), should_prune=lambda: False
    )
    process = SimpleNamespace(code=None, poll=lambda: process.code, terminate=lambda: said.append("terminated"))
    monkeypatch.setattr(trial.subprocess, "Popen", lambda *_, **__: process)
    monkeypatch.setattr(trial, "words", lambda *_: [])
    monkeypatch.setattr(trial, "say", said.append)
    flags.parse(sweep.sweep, ["sweep", *SMALL, TUNE, "--trials=1"])
    running = trial.RunningTrial(fake, SimpleNamespace(eval_period=100), tmp_path, [0])
    (tmp_path / "trial_0").mkdir()
    recorder = metrics.Recorder(tmp_path / "trial_0", "evaluator")
    stop = threading.Event()
    for number, value in enumerate(returns, 1):
        recorder.write({"env_steps": 100 * number + 7, "learner_steps": number, "return_mean": value})
        if number % 3 == 0:
            assert not running.look(stop)
    process.code = 0
    assert running.look(stop)
    recorder.close()
    means = [sum(returns[max(0, n - trial.LAST) : n]) / min(n, trial.LAST) for n in range(1, 13)]
    assert [step for _, step in reported] == list(range(known_before + 1, 13))
    assert [value for value, _ in reported] == pytest.approx(means[known_before:])
    assert [value for value, _ in ended] == pytest.approx(means[-1:]) and not stop.is_set()
    assert "terminated" not in said
