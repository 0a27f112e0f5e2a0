"""Runs the launchers as a person does: as commands."""

import contextlib
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from scripts import chaos
from tests import compiling

ROOT = pathlib.Path(__file__).parents[2]
# With the fault handler, a command that is ended by SIGABRT prints the stacks of its threads.
ENVIRONMENT = compiling.as_a_person(os.environ) | {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "PYTHONFAULTHANDLER": "1",
}

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
    """Starts a launcher as `launch` does."""
    return launch(command(module, *arguments))


def launch(command: Sequence[str]) -> subprocess.Popen:
    """Starts a command as a child process in `ENVIRONMENT`, with its output (both streams) in a pipe."""
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(module: str, *arguments: str, timeout: float = 240.0) -> tuple[int, str]:
    """Returns the (exit code, output) of a launcher that ends by itself."""
    return end(command(module, *arguments), timeout)


def end(command: list[str], timeout: float = 240.0) -> tuple[int, str]:
    """Returns the (exit code, output) of a command that ends by itself."""
    with launch(command) as process:
        try:
            output = output_of(process, timeout)
        finally:
            process.kill()
    return process.returncode, output


def output_of(process: subprocess.Popen, timeout: float = 240.0) -> str:
    """Returns the output of a process that was started with `ENVIRONMENT` and ends by itself.

    Raises:
      AssertionError: it did not end within `timeout` seconds. Its message is as `where_it_stands` has it.
    """
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        command = " ".join(map(str, process.args))
        raise AssertionError(f"waited {timeout:.0f} s for the end of {command}:\n{where_it_stands(process)}") from None


def where_it_stands(process: subprocess.Popen) -> str:
    """Aborts a process whose output is in a pipe; returns that output, with the stacks."""
    abort(process)
    try:
        return process.communicate(timeout=10.0)[0]
    except subprocess.TimeoutExpired as error:  # a process that is no child of its, but has its output open
        return (error.stdout or b"").decode(errors="replace")


def abort(process: subprocess.Popen) -> None:
    """Ends a process, its children and theirs. Those that were started with `ENVIRONMENT` print their threads' stacks
    first."""
    for number in [*descendants(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGABRT)


def descendants(number: int) -> list[int]:
    """Returns the ids of a process's children, of theirs, and so on; a process comes after its own children."""
    found: list[int] = []
    for thread in pathlib.Path(f"/proc/{number}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for child in map(int, (thread / "children").read_text().split()):
                found += [*descendants(child), child]
    return found


def wait_for(
    what: str, condition: Callable[[], object], timeout: float = 120.0, running: Sequence[subprocess.Popen] = ()
) -> None:
    """Returns once `condition()` is true.

    Raises:
      AssertionError: it is not true after `timeout` seconds, or a launcher has ended that must be `running` meanwhile.
        The message names `what`, and has the launchers' output (at a time-out as `where_it_stands` has it).
    """
    deadline = time.monotonic() + timeout
    while not condition():
        for launcher in running:
            if launcher.poll() is not None:
                output, _ = launcher.communicate(timeout=10.0)
                raise AssertionError(f"while {what} was waited for, a launcher ended: {output}")
        if time.monotonic() > deadline:
            stood = "".join(f"\n{where_it_stands(launcher)}" for launcher in running)
            raise AssertionError(f"waited {timeout:.0f} s for {what}{stood}")
        time.sleep(0.1)


def processes_of(logdir: pathlib.Path) -> dict[str, list[int]]:
    """Returns the live role processes of a run: role -> process ids."""
    found: dict[str, list[int]] = {}
    for given, process in chaos.processes_of(logdir):
        found.setdefault(given["role"], []).append(process)
    return found
