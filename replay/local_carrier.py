"""The local carrier, for one process: it hands everything over by reference, and keeps replays on learner devices."""

import collections
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from agents.agent import Agent, TableSpec, Version
from replay.channels import QueueChannel, way
from replay.flushing import STALL_SECONDS
from replay.ring_channel import RingChannel
from replay.rows import VARIABLES, ReplayUnavailable, never
from replay.structures import Structure


def _same(pushed: Any) -> Any:
    return pushed


class LocalVariables:
    """A variable container (`rows.Variables`) for the threads of one process, which holds what was pushed last."""

    def __init__(self, view: Callable[[Any], Any]):
        """`view` makes what is pulled from what was pushed."""
        self._view, self._changed = view, threading.Condition()
        self._newest: tuple[Version, Any] | None = None
        self._pushes = 0
        self._pulled: tuple[Version, Any] | None = None

    def push(self, version: Version, params: Any) -> None:
        with self._changed:
            self._newest, self._pushes = (version, params), self._pushes + 1
            self._pulled = None
            self._changed.notify_all()

    def filled(self) -> bool:
        """Returns whether anything was ever pushed."""
        return self._newest is not None

    def pushes(self) -> int:
        """Returns how often something was pushed: the number changes when there is something new to pull."""
        return self._pushes

    def wait(self, timeout: float = 300.0) -> None:
        """Returns once something was pushed.

        Raises:
          ReplayUnavailable: nothing was pushed within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(self.filled, timeout):
                raise ReplayUnavailable(f"no learner published parameters within {timeout:.0f} s: is one running?")

    def pull(self) -> tuple[Version, Any]:
        """Returns the newest (version, params); all who pull the same push get the same arrays."""
        self.wait()
        with self._changed:
            if self._pulled is None:
                assert self._newest is not None
                version, params = self._newest
                self._pulled = version, self._view(params)
            return self._pulled


class LocalQueue:
    """A queue for the threads of one process, which hands items over by reference; `_QueueEnd` makes it a Queue."""

    def __init__(self, capacity: int):
        self._items: collections.deque[list[Any]] = collections.deque()
        self._capacity, self._changed = capacity, threading.Condition()
        self.turn: Callable[[], None] | None = None

    def put(self, item: list[Any], stopped: Callable[[], bool] = never) -> None:
        """Adds an item once there is room for it, or at once when `stopped`, or where roles take turns."""
        waiting_since = time.monotonic()
        with self._changed:
            while len(self._items) >= self._capacity and self.turn is None and not stopped():
                self._changed.wait(0.2)
                if time.monotonic() - waiting_since > STALL_SECONDS:
                    logging.warning("an actor has waited %d s for room: does a learner run?", STALL_SECONDS)
                    waiting_since = time.monotonic()
            self._items.append(item)
            self._changed.notify_all()

    def take(self, count: int) -> list[list[Any]]:
        """Takes the next `count` items; may wait for ever, so call it in a thread that may be left waiting."""
        while self.turn is not None and len(self._items) < count:
            self.turn()
        with self._changed:
            taken: list[list[Any]] = []
            while len(taken) < count:  # one by one: the queue may have room for fewer than `count`
                self._changed.wait_for(lambda: self._items)
                taken.append(self._items.popleft())
                self._changed.notify_all()
            return taken


class _QueueEnd:
    """One role's end of a LocalQueue, as a Queue of replay.rows."""

    def __init__(self, queue: LocalQueue, stopped: Callable[[], bool]):
        self._queue, self._stopped = queue, stopped

    @property
    def turn(self) -> Callable[[], None] | None:
        return self._queue.turn

    @turn.setter
    def turn(self, turn: Callable[[], None] | None) -> None:
        self._queue.turn = turn

    def put(self, item: list[Any]) -> None:
        self._queue.put(item, self._stopped)

    def take(self, count: int) -> list[list[Any]]:
        return self._queue.take(count)

    def close(self) -> None:
        """Does nothing."""


class LocalCarrier:
    """The variable containers and channels that all roles of one process share."""

    def __init__(self, mesh: Any, device: jax.Device):
        """`mesh` is the runtime.devices.Mesh of the devices that learn; `device` is the one that actors act on."""
        self._mesh, self._device, self._lock = mesh, device, threading.Lock()
        self._variables: dict[str, LocalVariables] = {}
        self._channels: dict[str, QueueChannel | RingChannel] = {}

    def variables(self, structure: Structure, name: str = VARIABLES) -> LocalVariables:
        """Returns the variable container of that name, the same one to every role."""
        del structure  # nothing to check: all roles are in this process, with the same config
        with self._lock:
            view = self._near if name.endswith(VARIABLES) else _same
            return self._variables.setdefault(name, LocalVariables(view))

    def _near(self, pushed: Any) -> Any:
        """Returns pushed parameters on the actors' device.

        Learners push parameters that are on their own devices. If actors act on another, all of them share one copy.
        """
        params = self._mesh.one(pushed)
        there = all(x.devices() == {self._device} for x in jax.tree.leaves(params))
        return params if there else jax.device_put(params, self._device)

    def channel(
        self,
        agent: Agent,
        table: TableSpec,
        structure: Structure,
        batch_size: int,
        num_actors: int,
        num_envs: int,
        max_rows: int,
        saved: dict[str, Any] | None = None,
    ) -> QueueChannel | RingChannel:
        """Returns the table's channel, by which its items get to the learner; makes it when it is first asked for.

        Args:
          structure: that of one item.
          batch_size: sequences in a batch.
          num_envs: environments of each actor.
          max_rows: rows that the run can ever write.
          saved: a replay's state, from an earlier process of the run.

        Raises:
          ValueError: a replay's environments do not divide over the learner's devices, or `saved` was filled by other
            actors.
        """
        with self._lock:
            if table.name not in self._channels:
                self._channels[table.name] = (
                    RingChannel(self._mesh, agent, table, structure, batch_size, num_actors, num_envs, max_rows, saved)
                    if table.kind != "queue"
                    else self._open(table, structure, batch_size)
                )
            return self._channels[table.name]

    def _open(self, table: TableSpec, structure: Structure, batch_size: int) -> QueueChannel:
        queue = LocalQueue(max(1, table.max_size // way(table).sequences_per_item(structure)))
        return QueueChannel(table, structure, batch_size, lambda task, stopped: _QueueEnd(queue, stopped))
