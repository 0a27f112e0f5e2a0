"""What becomes of a command whose output nobody reads, or has no room for: it goes on, or says so in one line."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launchers import flags
from tests.launchers.command_line import ENVIRONMENT, ROOT

PRINTING = """
import sys
from launchers import flags

@flags.command()
def printing():
    "Prints much."
    for i in range(100_000):
        print("a line", i)
    print("done", file=sys.stderr)
    return 7

flags.main(printing)
"""


def run(stdout: int | None, *arguments: str) -> tuple[int, list[str]]:
    """Runs a command that prints much to the file `stdout`, or to none; returns its exit code and its errors' lines."""
    words = [sys.executable, "-c", PRINTING, *arguments]
    if stdout is None:
        words = ["bash", "-c", 'exec "$@" >&-', "bash", *words]
    done = subprocess.run(
        words, cwd=ROOT, env=ENVIRONMENT, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60
    )
    return done.returncode, done.stderr.splitlines()


def test_what_nobody_reads_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    assert run(writing) == (7, ["done"])
    os.close(writing)


def test_a_closed_output_is_no_error():
    assert run(None) == (7, ["done"])


def test_ctrl_c_is_no_traceback(capsys):
    @flags.command()
    def interrupted():
        raise KeyboardInterrupt

    assert flags.attempt(interrupted, ["interrupted"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_an_output_without_room_is_said_in_one_line(arguments):
    with open("/dev/full", "w") as full:
        code, lines = run(full.fileno(), *arguments)
    if arguments:
        assert (code, lines) == (0, [])
    else:
        assert code == 2 and len(lines) == 1 and "cannot write to the standard output" in lines[0]


@flags.command()
def waiting() -> int:
    """Tidies up after a wait."""
    held: list = [multiprocessing.get_context("spawn").Lock()]  # Python warns of it unless it is freed before the end
    held.append(held)
    try:
        print("waiting", flush=True)
        time.sleep(60)
    finally:
        print("tidied up", flush=True)
    return 0


WAITING = """
import signal, sys
if "as a terminal starts it" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
from launchers import flags
from tests.launchers.test_output import waiting
sys.argv[1:] = []
flags.main(waiting)
"""


@pytest.mark.parametrize("nohup", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_which_tidies_up(number, nohup):
    """The exit code is that of shells. Under nohup the command goes on when its terminal is closed."""
    command = [sys.executable, "-c", WAITING]
    words = ["nohup", *command] if nohup else [*command, "as a terminal starts it"]
    with subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(number)
        ignored = nohup and number == signal.SIGHUP
        if ignored:
            process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + (signal.SIGTERM if ignored else number)
    assert said == b"tidied up\n" and (errors == b"" or nohup)


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, IsADirectoryError, OSError])
@pytest.mark.parametrize("name", [None, "a/file", pathlib.Path("b/file")])
def test_an_error_of_a_file_names_it_and_what_is_wrong(error, name, capsys):
    @flags.command()
    def failing():
        raise error(28, "why not", name)

    assert flags.attempt(failing, ["failing"]) == 2
    assert capsys.readouterr().err == (f"error: {name}: why not\n" if name else "error: why not\n")
