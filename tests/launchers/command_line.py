"""Runs the launchers as a person does: as commands."""

import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from scripts import chaos
from tests import compiling

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = compiling.as_a_person(os.environ) | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

# A run of a few seconds.
TINY = (
    "--env=CartPole-v1",
    "--num_actors=2",
    "--envs_per_actor=4",
    "--config.batch_size=8",
    "--config.unroll_length=5",
)

# The same with a prioritized replay on two servers.
TINY_REPLAY = (
    "--agent=ddpg",
    "--env=Pendulum-v1",
    "--num_actors=2",
    "--num_replay_servers=2",
    "--config.replay=prioritized",
    "--config.hidden_sizes=8",
    "--config.batch_size=8",
    "--config.samples_per_insert=8",
    "--config.min_replay_size=200",
)


def command(module: str, *arguments: str) -> list[str]:
    if importlib.util.find_spec("reverb") is None:  # raised here, tests/conftest.py skips the test
        raise ModuleNotFoundError("No module named 'reverb'", name="reverb")
    return [sys.executable, "-m", f"launchers.{module}", *arguments]


def start(module: str, *arguments: str) -> subprocess.Popen:
    """Starts a launcher as a child process, with its output (both streams) in a pipe."""
    return subprocess.Popen(
        command(module, *arguments), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(module: str, *arguments: str, timeout: float = 240.0) -> tuple[int, str]:
    """Returns the (exit code, output) of a launcher that ends by itself."""
    return end(command(module, *arguments), timeout)


def end(command: list[str], timeout: float = 240.0) -> tuple[int, str]:
    """Returns the (exit code, output) of a command that ends by itself."""
    done = subprocess.run(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout


def wait_for(
    what: str, condition: Callable[[], object], timeout: float = 120.0, running: Sequence[subprocess.Popen] = ()
) -> None:
    """Returns once `condition()` is true. Raises AssertionError, which names `what`, after `timeout` seconds, and at
    once if a launcher ends that must be `running` meanwhile."""
    deadline = time.monotonic() + timeout
    while not condition():
        for launcher in running:
            if launcher.poll() is not None:
                output, _ = launcher.communicate(timeout=10.0)
                raise AssertionError(f"while {what} was waited for, a launcher ended: {output}")
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s for {what}"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def processes_of(logdir: pathlib.Path) -> dict[str, list[int]]:
    """Returns the live role processes of a run: role -> process ids."""
    found: dict[str, list[int]] = {}
    for given, process in chaos.processes_of(logdir):
        found.setdefault(given["role"], []).append(process)
    return found
