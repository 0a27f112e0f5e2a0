"""The Reverb carrier, between threads, processes and machines: channels through Reverb's tables."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from agents.agent import Agent, TableSpec
from replay import server
from replay.channels import QueueChannel, way
from replay.client import ask_tables
from replay.flushing import flush
from replay.priorities import update_priorities
from replay.reverb_import import reverb
from replay.rows import VARIABLES, Batch, Priority, ReplayUnavailable, Writer, never
from replay.sampler import Replay
from replay.structures import Structure
from replay.variables import VariableContainer

ANSWER_SECONDS = 10  # seconds within which a server that is there answers


class ReverbQueue:
    """A Queue (replay/rows.py) in a table of one server."""

    def __init__(self, client: reverb.Client, name: str, stopped: Callable[[], bool] = never):
        """`name` is the table's; `stopped` is asked while the table has no room."""
        self._client, self._name, self._stopped = client, name, stopped
        self._writer: Any = None
        self.turn: Callable[[], None] | None = None  # called instead of waiting, where roles take turns in one thread

    def put(self, item: list[np.ndarray]) -> None:
        """Adds an item; returns once the table holds it, or when stopped."""
        if self._writer is None:  # made only when needed: the learner never puts
            self._writer = self._client.trajectory_writer(num_keep_alive_refs=1)
        self._writer.append(item)
        self._writer.create_item(self._name, 1.0, [column[-1] for column in self._writer.history])
        flush(self._writer, self._name, 0, self._stopped)

    def take(self, count: int) -> list[list[np.ndarray]]:
        """Takes the next `count` items; waits in C++, which nothing can interrupt, so call it in a thread of its own.

        With `turn`, it never waits in C++.
        """
        if self.turn is None:
            return self._sample(count)
        taken: list[list[np.ndarray]] = []
        while len(taken) < count:  # one by one: the table may have room for fewer than `count`
            while not ask_tables(self._client)[self._name].current_size:
                self.turn()
            taken += self._sample(1)
        return taken

    def _sample(self, count: int) -> list[list[np.ndarray]]:
        return [list(s.data) for s in self._client.sample(self._name, num_samples=count, emit_timesteps=False)]

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class TableChannel:
    """The channel of a replay in the tables of one or more servers."""

    source = None  # samples come through the host, with the batches

    def __init__(self, clients: Sequence[reverb.Client], table: TableSpec, structure: Structure, batch_size: int):
        self._clients, self._table, self._structure = clients, table, structure
        self._batch_size = batch_size

    def writer(self, task: int, priority: Priority | None, stopped: Callable[[], bool]) -> Writer:
        """Returns the Writer of actor `task`, which writes to server `task` modulo the number of servers."""
        client = self._clients[task % len(self._clients)]
        writer: Writer = way(self._table).writer(client, self._table, self._structure, priority, stopped)
        return writer

    def batches(self) -> Iterator[Batch]:
        """Returns an endless iterator of batches, which counts what is written from now on as new experience."""
        return iter(Replay(self._clients, self._table, self._structure, self._batch_size))

    def feedback(self, keys: tuple[np.ndarray, ...], priorities: np.ndarray) -> None:
        """Gives the items of a batch their new priorities [B]; waits for servers that are down.

        `keys` has each server's items. Priorities are in the order of the batch, in which the servers' items alternate.
        """
        by_server = priorities.reshape(-1, len(keys)).T
        for client, mine, theirs in zip(self._clients, keys, by_server, strict=True):
            update_priorities(client, self._table.name, mine, theirs)

    def count(self) -> int:
        """Returns how many items the tables hold, of the servers that answer within ANSWER_SECONDS."""
        count = 0
        for client in self._clients:
            with contextlib.suppress(ReplayUnavailable):
                count += ask_tables(client, ANSWER_SECONDS)[self._table.name].current_size
        return count

    def save(self) -> None:
        """Tells the servers to save their tables to their checkpoint paths; returns when they have."""
        for client in self._clients:
            server.save_tables(client)


class ReverbCarrier:
    """One process's connections to the replay servers, from which its roles get channels and variable containers."""

    def __init__(
        self, clients: Sequence[reverb.Client], servers: Sequence[reverb.Server] = (), max_env_steps: float = math.inf
    ):
        """
        Args:
          clients: one for each server. Variable containers, and the agent's queue if any, are on the first server.
          servers: the servers that run in this process, which are kept alive with this object.
          max_env_steps: the most environment steps that parameters of this run can claim.
        """
        self._clients, self._servers, self._max_env_steps = clients, servers, max_env_steps
        self._containers: dict[str, VariableContainer] = {}
        self._lock = threading.Lock()

    def variables(self, structure: Structure, name: str = VARIABLES) -> VariableContainer:
        """Returns a variable container of that name.

        If the servers are in this process, so is everybody who pushes. Then all who push and pull share one container,
        and pulls need not sample the table.

        Raises:
          ValueError: the server has no table of that name and structure.
        """
        if not self._servers:
            return VariableContainer(self._clients[0], structure, name, self._max_env_steps)
        with self._lock:
            if name not in self._containers:
                self._containers[name] = VariableContainer(self._clients[0], structure, name)
            return self._containers[name]

    def channel(
        self, agent: Agent, table: TableSpec, structure: Structure, batch_size: int, *_: Any
    ) -> QueueChannel | TableChannel:
        """Returns the channel by which the table's items, of `structure`, get to the learner, in batches of
        `batch_size`. Ignores the other arguments of LocalCarrier's `channel`."""
        del agent
        if table.kind != "queue":
            return TableChannel(self._clients, table, structure, batch_size)
        return QueueChannel(
            table,
            structure,
            batch_size,
            lambda task, stopped: ReverbQueue(self._clients[0], table.name, stopped),  # a queue has a single server
        )
