"""Textbook figures on tiny budgets: each is drawn, with the lines and seeds that it should have."""

import csv
import signal
import subprocess
import sys

import numpy as np
import pytest

import launchers.train
from environments.environment import Interruption
from launchers import flags, shutdown
from launchers.settings import Ending, Settings, Sitting
from scripts import textbook
from tests.launchers import command_line


def draw(tmp_path, name: str, *arguments: str) -> tuple[int, str, list[dict[str, str]]]:
    """Draws a figure. Returns the exit code, all that was printed, and the rows of the figure's CSV."""
    command = [sys.executable, "scripts/textbook.py", name, f"--out={tmp_path}", "--seeds=2", *arguments]
    done = subprocess.run(
        command,
        cwd=command_line.ROOT,
        env=command_line.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    data = tmp_path / f"{name}.csv"
    return done.returncode, done.stdout + done.stderr, list(csv.DictReader(data.open())) if data.exists() else []


@pytest.mark.parametrize(
    ("name", "budget", "lines"),
    [
        ("baird", 0.1, {"v_7", "v_8", "root projected Bellman error"}),
        ("cliff_walking", 0.1, {"Sarsa", "Q-learning"}),
        ("short_corridor", 0.03, {"REINFORCE, alpha = 2^-13"}),
        ("blind_cliffwalk", 0.2, {"uniform replay", "prioritised replay, proportional, alpha = 1"}),
    ],
)
def test_a_figure_is_made_of_a_tiny_budget(tmp_path, name, budget, lines):
    code, output, rows = draw(tmp_path, name, f"--budget={budget}")
    assert code == 0, output
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert lines <= {row["line"] for row in rows} and {row["seeds"] for row in rows} == {"2"}
    assert all(float(row["low"]) <= float(row["mean"]) <= float(row["high"]) for row in rows)


def test_an_unknown_figure_is_refused(tmp_path):
    code, output, _ = draw(tmp_path, "cliff")
    assert code == 2
    assert "error: textbook draws baird, cliff_walking, short_corridor, blind_cliffwalk: name one or several" in output


def test_curves_are_compared_where_all_have_points():
    x, y = textbook.common(
        [(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])), (np.array([1.5, 4.0]), np.array([0.0, 5.0]))]
    )
    np.testing.assert_array_equal(x, [2.0, 3.0])
    np.testing.assert_allclose(y, [[2.0, 3.0], [1.0, 3.0]])


@pytest.mark.parametrize(("budget", "words"), [("0.1", "give --out too"), ("0", "--budget must be 0.001 or more")])
def test_the_recorded_figures_are_not_replaced_by_smaller_ones(budget, words, capsys):
    before = (textbook.RECORDED / "baird.csv").read_bytes()
    assert flags.attempt(textbook.textbook, ["textbook", "baird", f"--budget={budget}"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert (textbook.RECORDED / "baird.csv").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", ["before the run", "in the run"])
def test_a_signal_in_a_run_ends_the_command(number, when, tmp_path, monkeypatch):
    """It is no mistake of the person's, and how this process hears signals is as it was."""

    def train() -> int:
        if when == "in the run":
            stop = shutdown.stop_on_signals()
        signal.raise_signal(number)
        return flags.FLAGS.unfinished_code if stop.is_set() else 0

    before = {each: signal.getsignal(each) for each in shutdown.ENDING}
    monkeypatch.setattr(launchers.train, "train", flags.command(Settings, Sitting, Ending)(train))
    try:
        for each in before:  # this process may hear them in other ways, such as Ray's, or nohup's
            signal.signal(each, signal.SIG_DFL)
        shutdown.interrupt_on_signals()
        heard = {each: signal.getsignal(each) for each in shutdown.ENDING}
        with pytest.raises(Interruption):
            textbook.train(tmp_path, 0, 10, "--agent=a2c")
        if when == "in the run":
            assert heard == {each: signal.getsignal(each) for each in shutdown.ENDING}
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
