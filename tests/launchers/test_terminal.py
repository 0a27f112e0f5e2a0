"""What a person sees of a run in the terminal, and which lines go to a file instead."""

import fcntl
import json
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest

from launchers import run as runs
from launchers.population import logdirs
from launchers.terminal import Display
from runtime import metrics
from tests.launchers import command_line

LINES = """
import logging, os, pathlib, sys
from absl import logging as absl_logging
from launchers import terminal

for set_up in sys.argv[2:]:  # what a library may have done before
    exec(set_up)
with terminal.native_lines_in(pathlib.Path(sys.argv[1])):
    absl_logging.warning("a warning")
    logging.getLogger("library").warning("a library's")
    print("a print", file=sys.stderr)
    os.write(2, b"a native line\\n")
absl_logging.warning("a last warning")
os.write(2, b"a last native line\\n")
"""


@pytest.mark.parametrize("set_up", [(), ("logging.basicConfig()",), ("absl_logging.use_absl_handler()",)])
def test_native_lines_are_kept_and_pythons_are_seen(tmp_path, set_up):
    done = subprocess.run(
        [sys.executable, "-c", LINES, str(tmp_path / "logs" / "native.log"), *set_up],
        cwd=command_line.ROOT,
        env=command_line.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seen = ("a warning", "a library's", "a print", "a last warning", "a last native line")
    assert [line for line in seen if line not in done.stderr] == []
    assert (tmp_path / "logs" / "native.log").read_text() == "a native line\n" and "a native line" not in done.stderr


def in_terminal(command: list[str], columns: int, term: str = "xterm-256color", timeout: float = 120.0) -> str:
    """Returns all that a command writes to a terminal of `columns` columns until it ends."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in command_line.ENVIRONMENT.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, cwd=command_line.ROOT, env=environment | {"TERM": term}
    )
    os.close(its)
    written, deadline = b"", time.monotonic() + timeout
    try:
        while True:
            assert time.monotonic() < deadline, f"waited {timeout:.0f} s for the end of {command}: {written!r}"
            if select.select([ours], [], [], 0.5)[0]:
                try:
                    written += os.read(ours, 65536)
                except OSError:  # the command has closed the other end
                    break
        assert child.wait(timeout=30) == 0, written
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    return written.decode()


CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def lines_in(written: str) -> list[str]:
    """Returns the text of each line, as it was last written before the line was cleared or left."""
    plain = CONTROL.sub("", written.replace("\r\n", "\n"))
    return [line for line in re.split("[\r\n]", plain) if line.strip()]


LIVE = re.compile(r"[━╸╺]+ +\d+% (-:--:--|\d+:\d\d:\d\d) left( · .*)?")  # the live line, unless it is cut off
UP = "\x1b[1A"  # moves up a line: after each line but the first when several are redrawn, and once at the end


def test_a_run_has_one_line_with_its_progress_and_the_time_left(tmp_path):
    arguments = ("--carrier=local", "--max_env_steps=20000", "--eval_episodes=2", "--eval_period=10000")
    command = [sys.executable, "-m", "launchers.train", f"--logdir={tmp_path}", *command_line.TINY, *arguments]
    written = in_terminal(command, 80)
    assert written.count(UP) == 1, "the line never takes two"
    live = [line for line in lines_in(written) if "━" in line]
    assert all(LIVE.fullmatch(line) and len(line) <= 80 for line in live), live
    assert any("starting" in line for line in live) and "100% 0:00:00 left" in live[-1]
    assert re.search(r" · 2\d,\d{3} env steps · .*/s", live[-1]), live[-1]
    others = [line for line in lines_in(written) if "━" not in line]
    assert sum(line.startswith("evaluation at ") for line in others) == 2 and len(others) == 4, "each is whole"


SHOWN = """
import fcntl, json, pathlib, random, struct, sys, termios
from launchers import run as runs, terminal
from runtime import metrics

logdir, out, draw = pathlib.Path(sys.argv[1]), open(sys.argv[2], "w"), random.Random(0)
terminal.PLAIN_SECONDS = -1.0
most = 10**9
run = runs.make("impala", "CartPole-v1", {"max_env_steps": most, "num_actors": 2}, {})


def write(role, **row):
    recorder = metrics.Recorder(logdir, role)
    recorder.write(row)
    recorder.close()


with terminal.Display(run, logdir) as display:
    display.refresh()
    done = 0
    for _ in range(60):
        columns = draw.choice([1, 5, 12, 20, 30, 40, 60, 79, 80, 81, 100, 132, 200, 300])
        try:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        except OSError:
            pass  # it is no terminal
        done += 10 ** draw.randrange(8)
        waits, steps, rate = draw.random(), draw.randrange(10**7), 10 ** (7 * draw.random())
        rates = {"env_steps_per_second": rate, "learner_steps_per_second": rate / 9}
        write("learner", env_steps=done, **rates, wait_fraction=waits, lag=waits)
        episodes, mean = draw.randrange(2), draw.uniform(-2000, 30000)
        write("actor_0", env_steps=done, wait_fraction=waits, episodes=episodes, return_mean=mean)
        there = {"episodes": draw.randrange(100), "steps": steps, "of": 100, "most": 10**7}
        metrics.show(logdir, "evaluating", there if draw.random() < 0.5 else None)
        display.refresh()
        out.write(json.dumps([columns, display._text()]) + chr(10))
        display.say("|")
"""


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_however_wide_the_terminal_the_line_is_one_and_says_what_there_is_room_for(term, tmp_path):
    command = [sys.executable, "-c", SHOWN, str(tmp_path), str(tmp_path / "out")]
    written = in_terminal(command, 80, term)
    told = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert len(told) == 60
    if term == "dumb":
        assert lines_in(written)[1:-1:2] == [text for _, text in told], "as where there is no terminal"
        return
    assert written.count(UP) == 1
    # The live line is cleared, and "|" is written in its place.
    shown = [CONTROL.sub("", part).split("\r")[-2].strip() for part in written.split("|")[:-1]]
    evaluated = 0
    for line, (columns, text) in zip(shown, told, strict=True):
        assert len(line) <= columns, (columns, line)
        if columns >= 40:
            assert LIVE.fullmatch(line), (columns, line)
        parts = set(line.split(" · ")[1:])
        named = {part for part in text.split(" · ") if not re.search("env steps|evaluating", part)}
        if columns >= 80:
            assert ("evaluating" in text) == any(part.startswith("evaluating") for part in parts), line
            assert any(part.startswith("return") for part in parts) == ("return" in text), line
            assert "evaluating" in text or any(part.endswith(" env steps") for part in parts), line
            evaluated += "evaluating" in text
        if columns >= 200:
            assert named < parts, (named, line)
        assert columns < 300 or parts == {*text.split(" · ")}, (line, text)
        assert columns < 40 or all("evaluating" in p or "env steps" in p or p in named for p in parts), (line, text)
    assert evaluated


def test_without_a_terminal_there_are_plain_lines(tmp_path):
    command = [sys.executable, "-c", SHOWN, str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(
        command, cwd=command_line.ROOT, env=command_line.ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    start, *lines, end = done.stdout.splitlines()
    assert start == "starting: compiling and connecting" and end == told[-1][1] and "\x1b" not in done.stdout
    assert lines == [line for _, text in told for line in (text, "|")]


@pytest.mark.parametrize("before", [0, 500_000])
@pytest.mark.parametrize("speed", [1.0, 750.0, 12_345.0])
def test_the_time_left_is_by_the_speed_of_this_sitting(before, speed, tmp_path):
    here, now = runs.make("impala", "CartPole-v1", {"max_env_steps": 10**6}, {}), 0.0

    def learn(env_steps: float) -> None:
        learner = metrics.Recorder(tmp_path, "learner")
        rates = {"env_steps_per_second": speed, "learner_steps_per_second": 1.0}
        learner.write({"env_steps": round(env_steps), **rates, "wait_fraction": 0.0})
        learner.close()

    if before:
        learn(before)
    display = Display(here, tmp_path)
    display._progress.get_time = lambda: now
    display._advance()
    assert display._progress.tasks[0].time_remaining is None, "nothing is known yet"
    for second in range(5, 30, 5):
        now = float(second)
        learn(before + speed * second)
        display._advance()
    left = (10**6 - before - speed * now) / speed
    assert display._progress.tasks[0].time_remaining == pytest.approx(left, abs=1.5)


@pytest.mark.parametrize("mode", ["separate", "vmap"])
def test_a_populations_line_is_of_all_its_learners(mode, tmp_path):
    """Steps, waits and returns are means over the members, speeds are sums. Who has no episodes yet has no return."""
    tuned = {"population": 3, "population_mode": mode, "tune": "learning_rate:log:1e-4:1e-2"}
    here = runs.make("a2c", "CartPole-v1", tuned | {"max_env_steps": 9000, "num_actors": 2}, {})
    folders = logdirs(here, tmp_path)
    assert len(folders) == (3 if mode == "separate" else 1)
    for number, folder in enumerate(folders, 1):
        folder.mkdir(exist_ok=True)
        row = {"env_steps": 1000 * number, "env_steps_per_second": 100 * number, "wait_fraction": 0.1 * number}
        rows = {"learner": row | {"learner_steps_per_second": 10 * number, "lag": number}}
        for task in (0, 1):
            played = {"episodes": number - 1, "return_mean": 50.0 * number + task}
            rows[f"actor_{task}"] = {"env_steps": 0, "wait_fraction": 0.2 * number} | played
        for role, values in rows.items():
            recorder = metrics.Recorder(folder, role)
            recorder.write(values)
            recorder.close()
    separate = ["2,000/9,000 env steps of each", "600/s", "60.0 updates/s", "lag 2.0", "learner waits 20%",
                "actors wait 40%", "return 125.5"]  # fmt: skip
    stacked = ["1,000/9,000 env steps of each", "100/s", "10.0 updates/s", "lag 1.0", "learner waits 10%",
               "actors wait 20%"]  # fmt: skip
    assert Display(here, tmp_path)._text().split(" · ") == (separate if mode == "separate" else stacked)
