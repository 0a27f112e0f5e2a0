"""Runs the tests that start ViZDoom's games, in a process that can be ended."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

SECONDS, ATTEMPTS = 240, 3


@pytest.mark.timeout(SECONDS * ATTEMPTS + 60)
def test_those_that_start_vizdooms_games_pass():
    output = ""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "vizdoom"]
    for _ in range(ATTEMPTS):
        child = subprocess.Popen(
            [*command, str(pathlib.Path(__file__).parent)],
            env=os.environ | {"SHOAL_TEST_VIZDOOM": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = child.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:  # a game did not start
            output = f"waited {SECONDS} s in vain for ViZDoom's tests to end"
        if child.returncode is None or child.returncode < 0:  # or EnvPool's own code crashed as it started them
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # also ends the games that did start
            child.wait()
            continue
        assert child.returncode == 0, output
        assert " passed" in output and "skipped" not in output, output
        return
    pytest.fail(f"{ATTEMPTS} attempts; the last: {output}")
