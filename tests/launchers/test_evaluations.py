"""Evaluations of episodes that need not end. They are cut, and each result says how many episodes were cut."""

import csv
import re

import pytest

from launchers import evaluate, flags, train
from launchers import run as runs
from launchers.terminal import Display
from runtime import metrics
from tests.launchers import command_line

SMALL = (
    *command_line.TINY[1:],
    "--config.hidden_sizes=8",
    "--max_env_steps=160",
    "--eval_period=80",
    "--carrier=local",
)
# Gymnasium's CliffWalking has no time limit, and an untrained agent seldom reaches the goal.
ENDLESS = ("--env=gymnasium:CliffWalking-v1", "--eval_max_steps=3", "--eval_episodes=202")
ENDING = ("--env=CartPole-v1", "--eval_episodes=202")


def run(command, *arguments):
    return flags.attempt(command, ["command", *SMALL * (command is train.train), *arguments])


def cut_lines(logdir, capsys, *arguments) -> tuple[list[str], list[dict[str, float]]]:
    """Trains a run. Returns the lines that it printed about cut episodes, and the rows of its evaluations."""
    assert run(train.train, f"--logdir={logdir}", *arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    return [line for line in printed if re.search(r"\bcut\b", line)], metrics.read(logdir / "evaluator.csv")


@pytest.mark.parametrize("placement", ["serial", "threads"])
def test_what_was_cut_is_said_everywhere(placement, tmp_path, capsys):
    lines, rows = cut_lines(tmp_path, capsys, *ENDLESS, f"--placement={placement}")
    assert lines[0] == (
        "no time limit is known for gymnasium:CliffWalking-v1: an evaluation's episodes are cut after 3 steps "
        "(--eval_max_steps)"
    )
    assert len(lines) == 1 + len(rows) and all(line.endswith(", 202 of which were cut") for line in lines[1:])
    assert [row["episodes_cut"] for row in rows] == [202] * len(rows) and rows
    assert not (tmp_path / "evaluating.csv").exists()
    assert run(evaluate.evaluate, f"--logdir={tmp_path}", "--episodes=5") == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-2] == "episodes_cut=5"


def test_where_the_environment_ends_its_episodes_nothing_is_cut(tmp_path, capsys):
    lines, rows = cut_lines(tmp_path, capsys, *ENDING, "--placement=serial")
    assert lines == [] and {row["episodes_cut"] for row in rows} == {0}
    assert run(evaluate.evaluate, f"--logdir={tmp_path}", "--episodes=5") == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-2] == "episodes_cut=0"


def test_a_limit_beyond_the_evaluations_is_named(tmp_path, capsys):
    lines, rows = cut_lines(tmp_path, capsys, *ENDING, "--placement=serial", "--eval_max_steps=5")
    assert lines[0].startswith(
        "a time limit of 500 steps is known for CartPole-v1: an evaluation's episodes are cut after 5 "
    )
    assert {row["episodes_cut"] for row in rows} == {202} and {row["return_mean"] for row in rows} == {5}


def test_a_run_of_a_version_without_the_column_goes_on(tmp_path, capsys):
    _, rows = cut_lines(tmp_path, capsys, *ENDLESS, "--placement=serial")
    path, older = tmp_path / "evaluator.csv", [name for name in rows[0] if name != "episodes_cut"]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, older, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    lines, more = cut_lines(tmp_path, capsys, *ENDLESS, "--placement=serial", "--max_env_steps=320")
    assert len(more) > len(rows) and all([*row] == older for row in more)
    assert len(lines) == 1, "an evaluation of a column that is not there says nothing of it"


def test_a_run_says_how_far_its_evaluation_is(tmp_path):
    """The display shows an evaluation only while it runs, and ignores what a process left that was killed earlier."""
    here = runs.make("impala", "CartPole-v1", {}, {})
    metrics.show(tmp_path, "evaluating", {"episodes": 9, "steps": 9, "of": 9, "most": 9})
    display = Display(here, tmp_path)
    learner = metrics.Recorder(tmp_path, "learner")
    learner.write({"env_steps": 5, "env_steps_per_second": 5.0, "learner_steps_per_second": 5.0, "wait_fraction": 0.5})
    learner.close()
    assert "evaluating" not in display._text()
    metrics.show(tmp_path, "evaluating", {"episodes": 3, "steps": 12_000, "of": 10, "most": 27_000})
    assert display._text().endswith(" · evaluating: 3 of 10 episodes, 12,000 of at most 27,000 steps")
    metrics.show(tmp_path, "evaluating", None)
    assert "evaluating" not in display._text()
