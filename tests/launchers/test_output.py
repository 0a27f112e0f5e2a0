"""What becomes of a command whose output nobody reads, or has no room for: it goes on, or says so in one line."""

import os
import subprocess
import sys

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
