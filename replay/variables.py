"""The variable container: a Reverb table of size one, which takes parameters from the learner to the actors.

The members of a population use others like it, to show each other their returns and states.
"""

import math
import time
from typing import Any

import numpy as np
from absl import logging

from agents.agent import Version
from replay.client import ask_tables
from replay.reverb_import import reverb
from replay.rows import VARIABLES, ReplayUnavailable
from replay.structures import Structure


class VariableContainer:
    """A container of parameters, which `push` replaces and `pull` reads from any thread, process or host."""

    def __init__(
        self, client: reverb.Client, structure: Structure, name: str = VARIABLES, max_env_steps: float = math.inf
    ):
        """
        Args:
          structure: that of (Version, params), as `params_structure` returns it.
          name: the table's name.
          max_env_steps: the most environment steps that a version of this run can have. Parameters that claim more are
            from another run, and are not pulled.

        Raises:
          ValueError: the server has no such table, or one for other parameters (another config or environment).
          ReplayUnavailable: the server does not answer.
        """
        self._client, self._structure, self._name, self._max_env_steps = client, structure, name, max_env_steps
        info = ask_tables(client).get(name)
        if info is None or info.max_size != 1:
            raise ValueError(f"the replay server has no table {name!r} of size one: it does not serve a run of Shoal")
        theirs = [(tuple(spec.shape), spec.dtype.as_numpy_dtype) for spec in info.signature]
        ours = [(leaf.shape, leaf.dtype.type) for leaf in structure.leaves]
        if theirs != ours:
            raise ValueError("the replay server holds another agent's parameters: it serves a run with another config")
        self._writer: Any = None
        self._pushed: tuple[Version, Any] | None = None
        self._pushes = 0

    def push(self, version: Version, params: Any) -> None:
        """Publishes `params` (a pytree of arrays); returns when the table holds them."""
        self._pushed, self._pushes = (Version(*map(int, version)), params), self._pushes + 1
        if self._writer is None:  # made only when needed: most containers only pull
            self._writer = self._client.trajectory_writer(num_keep_alive_refs=1)
        version = Version(*(np.int64(count) for count in version))
        self._writer.append(self._structure.flatten((version, params)))
        self._writer.create_item(self._name, 1.0, [column[-1] for column in self._writer.history])
        self._writer.flush()

    def filled(self) -> bool:
        """Returns whether anything was ever pushed; raises ReplayUnavailable if the server does not answer."""
        return self._pushed is not None or ask_tables(self._client)[self._name].current_size > 0

    def pushes(self) -> int:
        """Returns a number that changes when there may be something new to pull; this costs less than a pull.

        The number is -1 while the server does not answer.
        """
        if self._pushed is not None:
            return self._pushes
        try:
            info = ask_tables(self._client)[self._name]
        except ReplayUnavailable:
            return -1
        completed: int = info.rate_limiter_info.insert_stats.completed
        return completed

    def wait(self, timeout: float = 300.0) -> None:
        """Returns once something was pushed.

        Raises:
          ReplayUnavailable: nothing was pushed within `timeout` seconds, or the server does not answer.
        """
        deadline = time.monotonic() + timeout
        while not self.filled():
            if time.monotonic() > deadline:
                raise ReplayUnavailable(f"no learner published parameters within {timeout:.0f} s: is one running?")
            time.sleep(0.05)

    def pull(self) -> tuple[Version, Any]:
        """Returns the newest (version, params); waits if nothing was ever pushed.

        This is what was pushed to this object, if anything was; else it is a fresh sample of the table, without
        prefetching.
        """
        if self._pushed is not None:  # whoever pushes to a table is the only one to do so
            return self._pushed
        while True:
            (sample,) = self._client.sample(self._name, num_samples=1, emit_timesteps=False)
            version, params = self._structure.unflatten(sample.data)
            version = Version(*(int(count) for count in version))
            if version.env_steps <= self._max_env_steps:
                return version, params
            logging.log_every_n_seconds(
                logging.WARNING,
                "the replay server has parameters of %d environment steps, which this run cannot have: somebody else "
                "writes to it; waiting for the learner's",
                60,
                version.env_steps,
            )
            time.sleep(1.0)
