"""Training from Python, as scripts/train does it, in this process."""

import json
import signal
import sys
from typing import Any

from agents.agent import Agent
from launchers import flags as command_line
from launchers import train as command
from launchers.settings import Logdir, UsageError

HERE = ("threads", "serial")  # placements that need no other process
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _words(given: dict[str, Any]) -> list[str]:
    """Keyword arguments as words of a command line."""
    config = given.pop("config", None) or {}
    named = {name: value for name, value in given.items() if value is not None}
    named |= {f"config.{name}": value for name, value in config.items()}
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}" for name, value in named.items()]


def train(*, agent: str = "impala", env: str = "CartPole-v1", **flags: Any) -> Logdir:
    """Trains in this process until the run is done, or is interrupted; the LOGDIR, for `shoal.load`. The same LOGDIR
    resumes it.

        shoal.train(agent="dqn", env="CartPole-v1", max_env_steps=100_000, config={"n_step": 3})

    Args:
      flags: those of scripts/train, by name, and `config`, fields of the agent's Config. The carrier is the local one,
        and the placement `threads` or `serial`.

    Raises:
      UsageError: a ValueError, one line: what scripts/train would refuse.
      EnvironmentFailure, OSError or FloatingPointError: what ends scripts/train with one line.
    """
    given = {"carrier": "local", "placement": "threads"} | flags
    if given["carrier"] != "local" or given["placement"] not in HERE:
        raise UsageError(
            f"shoal.train has carrier='local' and placement='threads' or 'serial', not {given['carrier']!r} and "
            f"{given['placement']!r}, for which there is scripts/train"
        )
    command_line.parse(command.train, ["shoal.train", *_words({"agent": agent, "env": env} | given)])
    logdir = command_line.logdir_from_flags()
    command_line.FLAGS["logdir"].value = logdir
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        command.train()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if sys.modules.get("tensorflow", True) is None:  # left out of the run; whoever wants it now may have it
            del sys.modules["tensorflow"]
    return logdir


def make_agent(*, agent: str = "impala", env: str = "CartPole-v1", **flags: Any) -> Agent:
    """The agent that scripts/train would train, a record of pure functions (agents/agent.py), for an environment that
    is made once to be looked at; `flags` as of `train`."""
    words = _words({"agent": agent, "env": env, "carrier": "local"} | flags)
    command_line.parse(command.train, ["shoal.make_agent", *words])
    run = command_line.run_from_flags()
    return run.make_agent(run.spec())
