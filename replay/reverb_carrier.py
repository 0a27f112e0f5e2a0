"""The carrier between threads, processes and machines: Reverb's tables, as channels."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from agents.agent import Agent, TableSpec
from replay import server
from replay.channels import QueueChannel, way
from replay.flushing import flush
from replay.priorities import update_priorities
from replay.reverb_import import reverb
from replay.rows import Batch, Priority, Writer, never
from replay.sampler import Replay
from replay.structures import Structure
from replay.variables import VARIABLES, VariableContainer

ANSWER_SECONDS = 10  # in which a server answers that is there


class ReverbQueue:
    """A queue on one server."""

    def __init__(self, client: reverb.Client, name: str, stopped: Callable[[], bool] = never):
        """`stopped`: asked while the table has no room."""
        self._client, self._name, self._stopped = client, name, stopped
        self._writer: Any = None
        self.turn: Callable[[], None] | None = None  # what `take` calls where it would wait: of roles that take turns

    def put(self, item: list[np.ndarray]) -> None:
        """Returns once the table holds the item, or when stopped."""
        if self._writer is None:  # opened late: the learner only takes
            self._writer = self._client.trajectory_writer(num_keep_alive_refs=1)
        self._writer.append(item)
        self._writer.create_item(self._name, 1.0, [column[-1] for column in self._writer.history])
        flush(self._writer, self._name, 0, self._stopped)

    def take(self, count: int) -> list[list[np.ndarray]]:
        """The next items; waits for them in C++, which nothing can interrupt: call it in a thread."""
        if self.turn is None:
            return self._sample(count)
        taken: list[list[np.ndarray]] = []
        while len(taken) < count:  # one by one: the table may have room for fewer
            while not self._client.server_info()[self._name].current_size:
                self.turn()
            taken += self._sample(1)
        return taken

    def _sample(self, count: int) -> list[list[np.ndarray]]:
        return [list(s.data) for s in self._client.sample(self._name, num_samples=count, emit_timesteps=False)]

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class TableChannel:
    """A replay in the tables of one or more servers."""

    source = None  # its samples come through the host

    def __init__(self, clients: Sequence[reverb.Client], table: TableSpec, structure: Structure, batch_size: int):
        self._clients, self._table, self._structure = clients, table, structure
        self._batch_size = batch_size

    def writer(self, task: int, priority: Priority | None, stopped: Callable[[], bool]) -> Writer:
        """Of actor `task`, which writes to one of the servers."""
        client = self._clients[task % len(self._clients)]
        writer: Writer = way(self._table).writer(client, self._table, self._structure, priority, stopped)
        return writer

    def batches(self) -> Iterator[Batch]:
        """Samples for ever; what is written from now on is counted as new."""
        return iter(Replay(self._clients, self._table, self._structure, self._batch_size))

    def feedback(self, keys: tuple[np.ndarray, ...], priorities: np.ndarray) -> None:
        """Gives the items of a batch, servers by turns, their new priorities [B]; waits for servers that are down."""
        by_server = priorities.reshape(-1, len(keys)).T
        for client, mine, theirs in zip(self._clients, keys, by_server, strict=True):
            update_priorities(client, self._table.name, mine, theirs)

    def count(self) -> int:
        """Items in the tables of the servers that answer."""
        count = 0
        for client in self._clients:
            with contextlib.suppress(reverb.errors.ReverbError, RuntimeError):
                count += client.server_info(timeout=ANSWER_SECONDS)[self._table.name].current_size
        return count

    def save(self) -> None:
        """Has the servers save their tables, where they were told to."""
        for client in self._clients:
            server.save_tables(client)


class ReverbCarrier:
    """What the roles of one process know of the servers."""

    def __init__(
        self, clients: Sequence[reverb.Client], servers: Sequence[reverb.Server] = (), max_env_steps: float = math.inf
    ):
        """
        Args:
          clients: the first serves queues and variables.
          servers: those of this process, which live as long.
          max_env_steps: that parameters of this run can have come.
        """
        self._clients, self._servers, self._max_env_steps = clients, servers, max_env_steps
        self._containers: dict[str, VariableContainer] = {}
        self._lock = threading.Lock()

    def variables(self, structure: Structure, name: str = VARIABLES) -> VariableContainer:
        """A container by that name. Where the servers are in this process, so are all who push: they and those who pull
        share one, and nothing has to be sampled from the table.

        Raises:
          ValueError: the server holds none of this structure.
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
        """How the table's items, of `structure`, travel to a learner of batches of `batch_size`. Servers know the
        rest."""
        del agent
        if table.kind != "queue":
            return TableChannel(self._clients, table, structure, batch_size)
        return QueueChannel(
            table,
            structure,
            batch_size,
            lambda task, stopped: ReverbQueue(self._clients[task % len(self._clients)], table.name, stopped),
        )
