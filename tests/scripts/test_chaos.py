"""Short uses of scripts/chaos, which harasses real runs, and of scripts/soak, which watches them."""

import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from launchers import flags
from scripts import chaos, soak
from tests.launchers import command_line


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("placement", "kills"), [("processes", 2), ("pod", 2), ("ray", 1)])
def test_a_run_takes_faults_and_leaves_nothing(placement, kills, tmp_path):
    """The run takes some faults, and then its launcher's end. A busy machine is given time, by --patience."""
    pytest.importorskip("reverb")
    command = [sys.executable, "scripts/chaos.py", "--runs=queue", "--stop_seconds=1", "--patience=120"]
    command += [f"--kills={kills}", f"--placement={placement}"]
    done = subprocess.run(
        [*command, f"--logdir={tmp_path}"],
        cwd=command_line.ROOT,
        env=command_line.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} faults, 0 failures" in done.stdout and f"queue {kills}/{kills}: " in done.stdout
    assert not list(chaos.processes_of(tmp_path / "queue"))


class Interrupted(chaos.Run):
    """A run, of a process that only sleeps, in whose fault this command is interrupted."""

    error: BaseException

    def start(self):
        self.launcher = subprocess.Popen(["sleep", "600"])

    def rows(self, role):
        return 1

    def fault(self, rng, stop_seconds):
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(15), KeyboardInterrupt(), OSError("full"), chaos.Failure("late")])
def test_no_run_outlives_the_command(error, tmp_path):
    run = Interrupted("queue", tmp_path / "queue", [], patience=1.0)
    run.error, fault = error, isinstance(error, chaos.Failure)
    try:
        assert chaos.harass(run, 1, False, 0.0, random.Random(0)) == ["late"] and fault
    except (KeyboardInterrupt, OSError) as raised:
        assert raised is error
    finally:
        run.launcher.terminate()
    assert run.launcher.wait(timeout=60) == -signal.SIGKILL


@pytest.mark.parametrize("command", [chaos.chaos, soak.soak])
@pytest.mark.parametrize(
    ("runs", "words"),
    [("", "'' is not one of"), ("quue", "'quue' is not one of queue, replay"), ("queue,queue", "once")],
)
def test_unknown_runs_are_refused(command, runs, words, capsys):
    assert flags.attempt(command, ["command", f"--runs={runs}"]) == 2
    assert words in capsys.readouterr().err


def test_the_rows_of_an_earlier_call_are_kept(tmp_path, capsys):
    (tmp_path / soak.ROWS).write_text("an hour of rows")
    assert flags.attempt(soak.soak, ["soak", f"--logdir={tmp_path}"]) == 2
    assert "choose another --logdir" in capsys.readouterr().err
    assert (tmp_path / soak.ROWS).read_text() == "an hour of rows"


HOLDING = """
import os, sys, threading
files, stop, ballast = [], threading.Event(), b""
for line in sys.stdin:
    if line == "more\\n":
        ballast = bytearray(os.urandom(2**20) * 256)
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(7)]
        for _ in range(3):
            threading.Thread(target=stop.wait, daemon=True).start()
    print("ready", flush=True)
"""


def test_what_a_process_holds_is_seen():
    """The process that is measured is another one, because threads of other tests come and go in this one."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def held(command: str) -> tuple[float, int, int]:
            process.stdin.write(command + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "ready\n"
            return soak.holds(process.pid)

        few, more = held("few"), held("more")
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    assert 200 < more[0] - few[0] < 300
    assert (more[1] - few[1], more[2] - few[2]) == (3, 7)


def test_levels_and_growth_are_those_of_a_line_after_the_start():
    rows = [(float(m), "queue learner_0", 100.0 if m < 10 else 400.0 + m / 2, 20, 30) for m in range(61)]
    rows += [(30.0, "queue actor_0", 50.0, 4, 5)]  # seen only once, so without growth
    actor, learner = soak.summarize(rows, first=10.0)
    assert actor == (
        "queue actor_0: 50.0 mb (+0.0 in an hour), 4.0 threads (+0.0 in an hour), 5.0 descriptors (+0.0 in an hour)"
    )
    assert learner.startswith("queue learner_0: 417.5 mb (+30.0 in an hour), 20.0 threads (")
    assert abs(soak.growth(np.arange(10.0), np.full(10, 3.0))[1]) < 1e-9
