"""Trains from Python as scripts/train does, but in this process."""

import json
import sys
import threading
from typing import Any

from agents.agent import Agent
from launchers import flags as command_line
from launchers import train as command
from launchers.settings import Logdir, UsageError
from launchers.shutdown import handlers_kept

HERE = ("threads", "serial")  # the placements of one process that shoal.train takes
_training = threading.Lock()  # held while a run is made: the flags and the ban on TensorFlow are the whole process's


def _words(given: dict[str, Any]) -> list[str]:
    """Turns keyword arguments into the words of a command line."""
    config = given.pop("config", None) or {}
    if not isinstance(config, dict):
        raise UsageError(f'config is a dict of fields of the agent\'s Config, such as {{"n_step": 3}}, not {config!r}')
    named = {name: value for name, value in given.items() if value is not None}
    named |= {f"config.{name}": value for name, value in config.items()}
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}" for name, value in named.items()]


def train(*, agent: str = "impala", env: str = "CartPole-v1", **flags: Any) -> Logdir:
    """Trains in this process until the run is done or is interrupted, and returns its LOGDIR, for `shoal.load`.

        shoal.train(agent="dqn", env="CartPole-v1", max_env_steps=100_000, config={"n_step": 3})

    A later call with the same LOGDIR resumes the run. Only the main thread hears Ctrl-C: a call in another
    thread goes on to the run's end.

    Args:
      flags: the flags of scripts/train, by name; and `config`, a dict of fields of the agent's Config. The carrier can
        only be `local`, and the placement only `threads` (the default) or `serial`.

    Raises:
      UsageError: a ValueError of one line, where scripts/train would refuse its command line.
      EnvironmentFailure, OSError or FloatingPointError: where scripts/train would end with one line.
    """
    if not _training.acquire(blocking=False):
        raise UsageError(
            "shoal.train makes one run at a time, and another thread of this process is making one: wait for its end, "
            "or train in another process"
        )
    try:
        return _train({"agent": agent, "env": env, "carrier": "local", "placement": "threads"} | flags)
    finally:
        _training.release()


def _train(given: dict[str, Any]) -> Logdir:
    if given["carrier"] != "local" or given["placement"] not in HERE:
        raise UsageError(
            f"shoal.train takes carrier='local' and placement='threads' or 'serial', not {given['carrier']!r} and "
            f"{given['placement']!r}: for those use scripts/train"
        )
    command_line.parse(command.train, ["shoal.train", *_words(given)])
    logdir = command_line.logdir_from_flags()
    command_line.FLAGS["logdir"].value = logdir
    try:
        with handlers_kept():
            command.train()
    finally:
        if sys.modules.get("tensorflow", True) is None:  # the run's ban on importing it; lift it
            del sys.modules["tensorflow"]
    return logdir


def make_agent(*, agent: str = "impala", env: str = "CartPole-v1", **flags: Any) -> Agent:
    """Returns the agent that scripts/train would train, a record of pure functions (agents/agent.py).

    The environment is made once, to find its spec. `flags` are as for `train`.
    """
    words = _words({"agent": agent, "env": env, "carrier": "local"} | flags)
    command_line.parse(command.train, ["shoal.make_agent", *words])
    run = command_line.run_from_flags()
    return run.make_agent(run.spec())
