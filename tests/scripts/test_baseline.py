"""scripts/baseline: runs are made, recorded, resumed and checked, and the pages say what the record says."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from launchers import baselines, flags
from launchers.baselines import Baseline
from runtime import metrics, records
from runtime.records import Record, Result
from scripts import baseline as tool
from scripts import pages
from tests.launchers import command_line

NAME = "a2c-CartPole-v1-tiny"
# Runs the command with one more baseline in its registry, which has two seeds and takes about a second for each.
TINY = f"""
from launchers import baselines, flags
from scripts import baseline
run = "--agent=a2c --env=CartPole-v1 --num_actors=1 --envs_per_actor=4 --config.batch_size=4 --config.unroll_length=5"
run += " --max_env_steps=STEPS --eval_period=1000 --eval_episodes=2 --carrier=local"
baselines.NAMED["{NAME}"] = baselines.Baseline(run, "tiny", seeds=2)
flags.main(baseline.baseline)
"""


def start(tmp_path, *arguments: str, steps: int = 3000) -> subprocess.Popen:
    code = TINY.replace("STEPS", str(steps))
    command = [sys.executable, "-c", code, *arguments, f"--logdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    return subprocess.Popen(
        [*command, "--episodes=4"],
        cwd=command_line.ROOT,
        env=command_line.ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(tmp_path, *arguments: str, steps: int = 3000) -> tuple[int, str]:
    child = start(tmp_path, *arguments, steps=steps)
    output, _ = child.communicate(timeout=280)
    return child.returncode, output


def processes_of(folder: pathlib.Path) -> list[str]:
    """Returns the command lines of live processes that name the folder."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


def test_runs_are_recorded_then_nothing_is_left_to_do_then_checked(tmp_path):
    code, output = run(tmp_path, NAME, "--jobs=2")
    assert code == 0, output
    folder = tmp_path / "out" / NAME
    record = records.read(folder)
    assert record is not None and set(record.results) == {0, 1}, output
    assert (folder / "curve.png").stat().st_size > 5000
    assert record.command.startswith("scripts/train --agent=a2c")
    settings = json.loads((folder / "config.json").read_text())
    assert settings["max_env_steps"] == 3000 and "seed" not in settings
    for seed, result in record.results.items():
        logdir = tmp_path / "runs" / NAME / f"seed{seed}"
        assert (folder / f"seed{seed}.csv").read_text() == (logdir / "evaluator.csv").read_text()
        assert json.loads((logdir / "config.json").read_text())["seed"] == seed
        assert result.env_steps and result.env_steps >= 3000 and result.episodes == 4
        assert result.cpu_seconds and result.wall_seconds and "Python" in result.lock
        assert result.machine.startswith("1 core") or len(os.sched_getaffinity(0)) > 2
    assert record.results[0].params != record.results[1].params
    # The record says the same as scripts/evaluate does of the same checkpoint.
    code, said = command_line.run("evaluate", f"--logdir={tmp_path / 'runs' / NAME / 'seed0'}", "--episodes=4")
    words = dict(word.split("=") for word in said.splitlines()[-1].split())
    assert (float(words["return_mean"]), words["params"]) == (record.results[0].return_mean, record.results[0].params)

    code, output = run(tmp_path, NAME)
    assert code == 0 and "0 runs" in output

    code, output = run(tmp_path, "--check", NAME)
    assert "a fresh seed came to" in output and "2 recorded seeds" in output and code in (0, 1)
    assert records.read(folder) == record, "a check records nothing"


def test_a_signal_ends_all_runs_and_the_same_command_goes_on(tmp_path):
    child = start(tmp_path, NAME, "--jobs=2", steps=10**8)
    logdirs = [tmp_path / "runs" / NAME / f"seed{seed}" for seed in (0, 1)]
    command_line.wait_for(
        "both runs to have evaluated twice",
        lambda: all(len(evaluated(logdir)) > 1 for logdir in logdirs),
        running=[child],
    )
    child.send_signal(signal.SIGTERM)
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 128 + signal.SIGTERM, output
    assert "the same command goes on" in output
    assert not processes_of(tmp_path)
    before, costs = [evaluated(logdir) for logdir in logdirs], [spent(logdir) for logdir in logdirs]
    assert min(costs) > 0
    steps = int(max(rows[-1] for rows in before)) + 3000
    for logdir in logdirs:  # a run may be made shorter, or longer
        config = json.loads((logdir / "config.json").read_text()) | {"max_env_steps": steps}
        (logdir / "config.json").write_text(json.dumps(config))
    code, output = run(tmp_path, NAME, "--jobs=2", steps=steps)
    assert code == 0, output
    for logdir, earlier in zip(logdirs, before, strict=True):
        rows = evaluated(logdir)
        assert rows[: len(earlier)] == earlier and rows[-1] >= steps
        assert rows == sorted(rows), "it went on and did not begin anew"
    results = records.read(tmp_path / "out" / NAME).results
    for seed, (logdir, earlier) in enumerate(zip(logdirs, costs, strict=True)):
        assert results[seed].cpu_seconds == spent(logdir) > earlier + 1, "the time of both sittings counts"


def spent(logdir: pathlib.Path) -> float:
    """Returns the CPU seconds that a run's sittings have taken."""
    return float((logdir / "cpu_seconds.txt").read_text())


def evaluated(logdir: pathlib.Path) -> list[float]:
    """Returns the environment steps at a run's evaluations. A run always has one at its end."""
    return [row["env_steps"] for row in metrics.read(logdir / "evaluator.csv")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs names"),
        (["ppo-CartPol-v1"], "did you mean"),
        (["--all", "ppo-CartPole-v1"], "--all"),
        (["--jobs=0", "ppo-CartPole-v1"], "--jobs"),
        (["--seeds=0", "ppo-CartPole-v1"], "--seeds"),
        (["--check", "ppo-CartPole-v1"], "ppo-CartPole-v1: --check has no recorded result"),
        (["--minutes=-1", "--list"], "--minutes"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, words):
    assert flags.attempt(tool.baseline, ["baseline", *arguments, f"--out={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_run_that_fails_is_said_and_the_others_go_on(tmp_path):
    blocked = tmp_path / "runs" / NAME / "seed0"
    blocked.mkdir(parents=True)
    (blocked / "config.json").write_text("{}")
    code, output = run(tmp_path, NAME)
    assert code == 1 and "seed 0: scripts/train ended with 2: error:" in output, output
    record = records.read(tmp_path / "out" / NAME)
    assert record is not None and set(record.results) == {1}


PPO = Baseline("--agent=ppo --env=CartPole-v1", reproduced=475)


@pytest.mark.parametrize(
    ("recorded", "fresh", "reproduced", "passes", "verdict"),
    [
        ([500.0] * 5, 500.0, 475, True, "within"),
        ([500.0] * 5, 480.0, 475, True, "reproduced from 475 on"),
        ([500.0] * 5, 470.0, 475, False, "below"),
        ([500.0] * 5, 480.0, None, False, "below"),
        ([100.0, 110.0, 120.0], 60.0, None, True, "within"),
        ([100.0, 110.0, 120.0], -60.0, None, False, "below"),
        ([100.0, 110.0, 120.0], 900.0, None, True, "above"),
        ([100.0], -900.0, None, True, "within"),
    ],
)
def test_a_check_compares_with_the_recorded_seeds(recorded, fresh, reproduced, passes, verdict):
    record = Record("", {seed: Result(value) for seed, value in enumerate(recorded)})
    passed, words = tool.compare(Baseline(PPO.flags, reproduced=reproduced), record, fresh)
    assert passed == passes and words.endswith(verdict)


def make_run(logdir, **settings) -> None:
    """Writes what a finished run leaves."""
    logdir.mkdir(parents=True)
    (logdir / "config.json").write_text(
        json.dumps({"agent": "ppo", "env": "CartPole-v1", "config": {}, "max_env_steps": 200} | settings)
    )
    recorder = metrics.Recorder(logdir, "evaluator")
    for env_steps in (100, 200):
        recorder.write({"env_steps": env_steps, "return_mean": env_steps / 10, "return_std": 0.0})
    recorder.close()


def test_seeds_of_other_settings_make_room(tmp_path):
    for seed, settings in enumerate(({"discount": 0.9}, {"discount": 0.9}, {"discount": 0.99})):
        make_run(tmp_path / f"run{seed}", seed=seed, config=settings)
        tool.record(PPO, seed, Result(float(seed)), tmp_path / f"run{seed}", tmp_path)
        record = records.read(tmp_path / PPO.name)
        assert record is not None and set(record.results) == ({0}, {0, 1}, {2})[seed]
        assert {path.name for path in (tmp_path / PPO.name).glob("seed*.csv")} == {
            f"seed{seed}.csv" for seed in record.results
        }


@pytest.mark.parametrize("at", range(12))
def test_a_record_that_was_broken_off_has_no_result_of_other_settings(at, tmp_path, monkeypatch):
    """Recording a seed of new settings fails at its `at`-th step. What it leaves is whole, and recording goes on."""
    folder, left, discounts = tmp_path / PPO.name, at, {0: 0.9, 1: 0.9, 2: 0.99}
    for seed, discount in discounts.items():
        make_run(tmp_path / f"run{seed}", seed=seed, config={"discount": discount})
    record = lambda seed: tool.record(PPO, seed, Result(float(seed)), tmp_path / f"run{seed}", tmp_path)
    record(0), record(1)

    def failing(function):
        def step(*args, **named):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError("no space left")
            return function(*args, **named)

        return step

    with monkeypatch.context() as patched, contextlib.suppress(OSError):
        for owner, name in [
            *((tool.records, "write"), (tool.shutil, "copyfile"), (tool, "replacing")),
            *((pathlib.Path, "unlink"), (pathlib.Path, "write_text")),
        ]:
            patched.setattr(owner, name, failing(getattr(owner, name)))
        record(2)
    known = records.read(folder)
    config = json.loads((folder / "config.json").read_text())["config"]
    for seed in known.results:
        assert (folder / f"seed{seed}.csv").exists()
        assert config["discount"] == discounts[seed], f"seed {seed} was made with {discounts[seed]}"
    record(2)
    assert set(records.read(folder).results) == {2}
    assert {path.name for path in folder.glob("seed*.csv")} == {"seed2.csv"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"command": "x"}', '{"command": "x", "seeds": {"0": {"mean": 1}}}'])
@pytest.mark.parametrize("words", [("--list",), (PPO.name,), ("--check", PPO.name)])
def test_a_damaged_record_is_one_line(text, words, tmp_path, capsys):
    (tmp_path / PPO.name).mkdir()
    (tmp_path / PPO.name / records.FILE).write_text(text)
    logdir = f"--logdir={tmp_path / 'runs'}"
    assert flags.attempt(tool.baseline, ["baseline", *words, f"--out={tmp_path}", logdir]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / PPO.name / records.FILE) in line and not (tmp_path / "runs").exists()


def test_seeds_of_an_earlier_version_make_room(tmp_path):
    folder = tmp_path / PPO.name
    folder.mkdir()
    (folder / "seed4.csv").write_text("env_steps,return_mean\n")
    records.write(folder, Record("", {4: Result(1.0, earlier="scripts/train")}))
    assert list(tool.missing(PPO, tool.Asked(seeds=6, out=tmp_path))) == [0, 1, 2, 3, 4, 5]
    make_run(tmp_path / "run", seed=0)
    tool.record(PPO, 0, Result(2.0), tmp_path / "run", tmp_path)
    record = records.read(folder)
    assert record is not None and set(record.results) == {0} and not (folder / "seed4.csv").exists()
    assert list(tool.missing(PPO, tool.Asked(seeds=3, out=tmp_path))) == [1, 2]
    assert list(tool.missing(PPO, tool.Asked(seeds=3, out=tmp_path, again=True))) == [0, 1, 2]


def test_the_pages_are_what_was_recorded():
    """`scripts/baseline --pages` writes the pages."""
    for path, text in pages.pages(tool.RESULTS).items():
        assert path.read_text() == text, f"{path.relative_to(tool.ROOT)} is stale: scripts/baseline --pages writes it"


def test_every_recorded_folder_is_of_a_baseline_and_whole():
    folders = {path.parent.name for path in tool.RESULTS.glob("*/record.json")}
    assert folders <= baselines.NAMED.keys()
    for name in folders:
        record = records.read(tool.RESULTS / name)
        assert record is not None
        for seed in record.results:
            assert list((tool.RESULTS / name).glob(f"seed{seed}*.csv")), f"{name} lacks the evaluations of seed {seed}"
        if not record.is_earlier:
            assert record.command == f"scripts/train {baselines.NAMED[name].flags}", f"{name} was recorded otherwise"
            assert (tool.RESULTS / name / "config.json").exists()


def test_rows_say_what_was_published_and_what_is_missing(tmp_path):
    chosen = baselines.select(["ppo-Hopper-v4"])[0]
    folder = tmp_path / chosen.name
    folder.mkdir()
    returns = np.array([2000.0, 2500.0, 3000.0])
    for seed in range(3):
        (folder / f"seed{seed}.csv").write_text("env_steps,return_mean\n0,0.0\n1000,100.0\n")
    records.write(folder, Record("", {seed: Result(value, env_steps=1000) for seed, value in enumerate(returns)}))
    row = pages.table([chosen], tmp_path, "").splitlines()[2]
    assert f"{records.spoken(returns)} (3 seeds)" in row and "Fujimoto et al. 2018" in row and "yes, from 1,948" in row
    assert f"| {chosen.name} | 2 of 5 |" in pages.not_run(tmp_path)


def test_atari_stands_beside_a_person():
    pong = baselines.NAMED["impala-Pong-v5"]
    assert "human 1.00" in pages.spoken(pong, Record("", {0: Result(14.6)}))
    assert "human 0.00" in pages.spoken(pong, Record("", {0: Result(-20.7)}))
