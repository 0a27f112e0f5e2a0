"""The channel of a replay on the learner's devices: actors hand rows over, and the update draws its own batches.

An actor keeps its rows until there is a chunk of them, and hands the chunk over. The learner's thread puts chunks into
the rings between two updates. On the host, an observation is copied only once: when its chunk is made.
"""

import collections
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from agents.agent import Agent, Params, Sample, Step, TableSpec
from replay import channels
from replay.flushing import STALL_SECONDS
from replay.limiter import Limiter
from replay.rings import NEVER, Chunk, Masses, Ranks, Ring, Rows
from replay.rows import Batch, Priority, Row, never
from replay.structures import Structure


class _Handed(NamedTuple):
    """A chunk on its way from an actor to the rings."""

    chunk: Chunk
    further: list[np.ndarray]  # anchors of completed items for which the chunk has no room, int32 [devices * P] each
    params: Params  # the parameters that the actor acted with
    env_steps: int  # transitions that the actor made since its last chunk


class RingChannel:
    """The channel of one learner's replay. Actors are threads, or take turns with the learner in one thread; only the
    learner touches what is on the devices."""

    def __init__(
        self,
        mesh: Any,
        agent: Agent,
        table: TableSpec,
        structure: Structure,
        batch_size: int,
        num_actors: int,
        num_envs: int,
        max_rows: int,
        saved: dict[str, Any] | None = None,
    ):
        """
        Args:
          mesh: the learner's runtime.devices.Mesh; this host's devices hold the rings of its own actors.
          structure: that of one item, as `item_structure` returns it.
          batch_size: items that one dispatch draws, over all of this host's devices.
          num_envs: environments of each actor.
          max_rows: rows that can ever be written.
          saved: what `state` returned in an earlier process of the run.

        Raises:
          ValueError: environments do not divide over the devices, or `saved` was filled by other actors.
        """
        self._learners, self._mesh, self._batch_size = mesh, mesh.alone(), batch_size
        mesh = self._mesh
        cut = channels.way(table).ring(table, structure)
        least = int(saved["length"][0]) if saved else 0
        self.ring = ring = Ring(table, cut, num_actors, num_envs, mesh.size, max_rows, least)
        self._limiter = Limiter(table, batch_size, ring.chunk * num_envs)
        self._handed: collections.deque[_Handed] = collections.deque()
        self._changed = threading.Condition()
        self._items = np.zeros(mesh.size, np.int64)  # items completed so far on each device
        self._env_steps = 0  # transitions in the rings that no batch has counted yet
        self.turn: Callable[[], None] | None = None  # called instead of waiting, where roles take turns in one thread
        self.stopped: Callable[[], bool] = never  # asked whether the learner is to end
        self.heads = np.zeros(num_actors, np.int64)  # rows that were ever put into each actor's ring
        self.tails = np.full((num_actors, cut.ahead + 1, num_envs), -1, np.int32)  # `position` of the last of these
        self.opened = np.zeros((num_actors, num_envs), np.int64)  # memories that were ever put into each actor's ring

        rows_specs = Rows(mesh.COLUMNS, mesh.COLUMNS, mesh.COLUMNS, mesh.COLUMNS)
        ranks_specs = Ranks(mesh.COLUMNS, mesh.ROWS) if ring.ranked else ()
        mass_specs = Masses(mesh.COLUMNS, mesh.ROWS, mesh.ROWS, mesh.ROWS, ranks_specs)
        columns = mesh.COLUMNS
        chunk_specs = Chunk(*[columns] * 5, *[mesh.ROWS] * 3, *[mesh.REPLICATED] * 2)
        self.specs = rows_specs, mass_specs
        replicated = mesh.REPLICATED
        write, add = (functools.partial(each, agent.priority) for each in (ring.insert, ring.add))
        self._write = mesh.compile(write, (*self.specs, chunk_specs, replicated), self.specs, donate_argnums=(0, 1))
        self._add = mesh.compile(add, (*self.specs, mesh.ROWS, replicated), mass_specs, donate_argnums=(1,))
        self._rank = mesh.compile(ring.rank, (mass_specs,), mass_specs, donate_argnums=(0,)) if ring.ranked else None
        self._ranked_at = 0, 0  # the limiter's counts of items inserted and sampled when all were ranked last
        self._feed = lambda chunk: mesh.feed(chunk, chunk_specs)
        self._with_params = agent.priority is not None
        self._sent: tuple[Params, Any] = (), mesh.put(())
        nothing = mesh.put(np.zeros(0))
        self.rows, self.masses = mesh.compile(lambda _: (ring.init(), ring.init_masses()), (replicated,), self.specs)(
            nothing
        )
        if saved:
            before = len(saved["heads"]), saved["tails"].shape[-1]
            if before != (num_actors, num_envs):
                raise ValueError(
                    f"the saved replay was filled by {before[0]} actors of {before[1]} environments, and this run has "
                    f"{num_actors} of {num_envs}: give the --placement in which it was filled"
                )
            self._load(saved)
        # bool [A, T, E], which anchors have an item. Only an actor's own writer changes its part.
        self.present = mesh.fetch(self.masses.of_rows, columns).reshape(num_actors, ring.length, -1) > 0

    # Actors -----------------------------------------------------------------------------------------------------------

    def writer(self, task: int, priority: Priority | None, stopped: Callable[[], bool]) -> "RingWriter":
        """Returns the Writer of actor `task`.

        Its items get their priorities on the learner's devices, but by the parameters that the actor acted with.
        """
        del priority
        return RingWriter(self, task, stopped)

    def hand_over(self, handed: _Handed, completed: np.ndarray, stopped: Callable[[], bool]) -> None:
        """Gives the learner a chunk, once the limiter allows it or when stopped; the actor's thread calls this.

        `completed` is the number of items that the chunk completes on each device, int [devices].
        """
        waiting_since = time.monotonic()
        with self._changed:
            while self.turn is None and not self._limiter.may_insert() and not stopped():
                self._changed.wait(0.2)
                if time.monotonic() - waiting_since > STALL_SECONDS:
                    logging.warning("an actor has waited %d s for samples: does a learner run?", STALL_SECONDS)
                    waiting_since = time.monotonic()
            self._handed.append(handed)
            self._items += completed
            self._limiter.inserted += int(completed.sum())
            self._changed.notify_all()

    # The learner ------------------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[Batch]:
        """Yields a batch without a sample for each dispatch that is due, until `stopped`: the update draws its own."""
        waiting_since = time.monotonic()
        while not self.stopped():
            with self._changed:
                handed, self._handed = self._handed, collections.deque()
                ready = self._items.min() > 0 and self._limiter.may_sample(self._batch_size)
                if ready:
                    self._limiter.sampled += self._batch_size
                    self._changed.notify_all()
                elif not handed and self.turn is None:
                    self._changed.wait(0.2)
            self._drain(handed)
            if ready:
                self._rank_if_due()
                env_steps, self._env_steps = self._env_steps, 0
                yield Batch(None, None, env_steps)
                waiting_since = time.monotonic()
                ready = self._limiter.limits  # without a ratio to keep to, actors get a turn for each batch
            if not ready and self.turn is not None:
                self.turn()
            if time.monotonic() - waiting_since > STALL_SECONDS:
                logging.warning("the learner has waited %d s for a batch: do actors run and write?", STALL_SECONDS)
                waiting_since = time.monotonic()

    def _drain(self, handed: collections.deque[_Handed]) -> None:
        """Puts chunks into the rings, on the devices."""
        for chunk, further, params, env_steps in handed:
            if self._with_params and params is not self._sent[0]:
                self._sent = params, self._mesh.put(params)
            sent = self._sent[1]
            self.rows, self.masses = self._write(self.rows, self.masses, self._feed(chunk), sent)
            for items in further:
                self.masses = self._add(self.rows, self.masses, self._mesh.put(items, self._mesh.ROWS), sent)
            actor, tail = int(chunk.actor), self.tails[chunk.actor]
            self.heads[actor] += len(chunk.position)
            self.tails[actor] = np.concatenate([tail, chunk.position])[-len(tail) :]
            if self.ring.memory_slots:
                self.opened[actor] += (chunk.memory_slots < self.ring.memory_slots).sum(axis=0)
            self._env_steps += env_steps

    def _rank_if_due(self) -> None:
        """Ranks all items anew, if priorities are rank-based and a new ranking is due.

        It is due whenever twice as many items were inserted as at the last ranking, for ranks change fast at first, and
        whenever as many were drawn since as the rings have places.
        """
        limiter, (inserted, sampled) = self._limiter, self._ranked_at
        places = self.ring.anchors * self._mesh.size
        if self._rank and (limiter.inserted >= 2 * inserted or limiter.sampled - sampled >= places):
            self.masses, self._ranked_at = self._rank(self.masses), (limiter.inserted, limiter.sampled)

    def drain(self) -> int:
        """Puts what actors handed over into the rings; returns how many items were completed so far."""
        with self._changed:
            handed, self._handed = self._handed, collections.deque()
        self._drain(handed)
        return self._limiter.inserted

    def draw(self, rows: Rows, masses: Masses, key: Any, size: int) -> tuple[Sample, Any]:
        """Draws a sample of `size` items; returns it and their anchors. Runs on each device, in the compiled update."""
        return self.ring.draw(rows, masses, key, size)

    def reprioritize(self, masses: Masses, items: Any, priorities: Any) -> Masses:
        """Returns the masses with the items' new priorities. Runs on each device, in the compiled update."""
        return self.ring.reprioritize(masses, items, priorities) if self.ring.prioritized else masses

    def bind(self, update: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a Learner's update, (state, step, sample) -> (state, step, feedback), which draws from the rings.

        `update` is compiled, (state, step, rows, masses) -> (state, step, masses, feedback). On several hosts, it draws
        from the rings of all hosts.
        """
        mesh, (rows_specs, mass_specs) = self._learners, self.specs

        def update_from_rings(state, step, sample):
            del sample
            rows, masses = mesh.span(self.rows, rows_specs), mesh.span(self.masses, mass_specs)
            state, step, masses, feedback = update(state, step, rows, masses)
            self.masses = mesh.own(masses, mass_specs)
            return state, step, feedback

        return update_from_rings

    @property
    def source(self) -> "RingChannel":
        """The object that a compiled update draws its samples from: this one."""
        return self

    def feedback(self, keys: tuple[np.ndarray, ...], priorities: np.ndarray) -> None:
        """Does nothing: new priorities never leave the devices."""

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def count(self) -> int:
        """Returns how many items were completed so far; of a saved replay, only those that it held when it was loaded
        are counted."""
        return int(self._items.sum())

    def state(self) -> dict[str, Any]:
        """Returns all that a checkpoint holds, on the host, without the rows that actors have not handed over yet."""
        self.drain()
        limiter, rows = self._limiter, self._mesh.fetch(self.rows, self.specs[0])
        return {
            # Keys are numbers with leading zeros: a checkpoint gives dictionaries back in the order of their keys.
            "rows": {f"{i:03}": x for i, x in enumerate(jax.tree.leaves(rows))},
            "masses": self._mesh.fetch(self.ring.numbers(self.masses), self._mesh.COLUMNS),
            "heads": self.heads,
            "tails": self.tails,
            "opened": self.opened,
            "counts": np.array([limiter.inserted, limiter.sampled], np.int64),
            "length": np.array([self.ring.length], np.int64),
        }

    def _load(self, saved: dict[str, Any]) -> None:
        """Goes on from what `state` returned. Rings that are longer now, for a longer run, had never been full."""

        def put(old: Any, ring: Any) -> Any:
            old, rows, actors = np.asarray(old), ring.shape[0], len(self.heads)
            grown = np.zeros((actors, rows // actors, *old.shape[1:]), old.dtype)
            grown[:, : len(old) // actors] = old.reshape(actors, -1, *old.shape[1:])
            return self._mesh.put(grown.reshape(rows, *old.shape[1:]), self._mesh.COLUMNS)

        empty = jax.tree.leaves(jax.eval_shape(self.ring.init))
        rows = [put(*pair) for pair in zip(jax.tree.leaves(saved["rows"]), empty, strict=True)]
        masses = put(saved["masses"], jax.eval_shape(self.ring.init_masses).of_rows)
        self.rows = jax.tree.unflatten(jax.tree.structure(self.rows), rows)
        build = self._mesh.compile(self.ring.init_masses, (self._mesh.COLUMNS,), self.specs[1])
        self.masses = build(masses)
        self.heads[:], self.tails[:], self.opened[:] = saved["heads"], saved["tails"], saved["opened"]
        self._limiter.inserted, self._limiter.sampled = (int(x) for x in saved["counts"])
        self._items[:] = self._mesh.local(self.masses.count)
        self._ranked_at = self._limiter.inserted, self._limiter.sampled


class RingWriter:
    """An actor's Writer: it collects rows into chunks, finds the items that each completes, and hands chunks over."""

    def __init__(self, channel: RingChannel, task: int, stopped: Callable[[], bool]):
        self._channel, self._task, self._stopped = channel, task, stopped
        self._ring = ring = channel.ring
        self._head = int(channel.heads[task])
        self._tail = channel.tails[task]  # `position` of the last rows before the chunk
        self._present = channel.present[task]  # bool [T, E], which anchors have an item
        self._opened = channel.opened[task].copy()  # memories kept so far for each environment
        self._position = np.full(ring.num_envs, -1)
        self._env_steps = self._reported = 0
        self._start()

    def _start(self) -> None:
        """Begins a chunk, with new arrays for memories: those of the last chunk may still be on their way."""
        ring = self._ring
        shape = ring.memories_at_once, ring.num_envs
        self._held: list[Step] = []
        self._memories = [np.zeros((*shape, *x.shape), x.dtype) for x in ring.cut.memory_structs if ring.memory_slots]
        self._slots: Any = np.full(shape, ring.memory_slots, np.int32) if ring.memory_slots else ()
        self._memory_of: Any = np.zeros((ring.chunk, ring.num_envs), np.int32) if ring.memory_slots else ()
        self._taken = np.zeros(ring.num_envs, int)  # memories of each environment in this chunk

    def append(self, row: Row) -> bool:
        """Adds a row, as every Writer does; returns True after every `Cut.pull_period` transitions.

        Holds rows without a copy until there is a chunk of them: an environment never overwrites arrays that it gave.
        """
        if self._ring.memory_slots:
            self._keep_memory(row)
        self._held.append(row.step)
        before, period = self._env_steps, self._ring.cut.pull_period
        self._env_steps += len(row.step.first) - int(np.count_nonzero(row.step.first))
        if len(self._held) == self._ring.chunk:
            self._hand_over(row)
        return before // period != self._env_steps // period

    def _keep_memory(self, row: Row) -> None:
        """Keeps the memory before a row, for the environments where a sequence opens with the row."""
        self._position = np.where(row.step.first, 0, self._position + 1)
        opens = np.flatnonzero(self._ring.cut.opens(self._position))
        if not len(opens):
            return
        slots, places = self._opened[opens] % self._ring.memory_slots, self._taken[opens]
        for array, value in zip(self._memories, self._ring.cut.kept_memory(row.memory), strict=True):
            array[places, opens] = value[opens]
        self._slots[places, opens] = slots
        self._memory_of[len(self._held), opens] = slots
        self._opened[opens] += 1
        self._taken[opens] += 1

    def _positions(self, first: np.ndarray) -> np.ndarray:
        """Returns each row's place in its episode, int32 [C, E], from `first` [C, E] and the rows before the chunk."""
        row = np.arange(len(first))[:, None]
        opened = np.maximum.accumulate(np.where(first, row, -1))
        return np.where(opened >= 0, row - opened, self._tail[-1] + 1 + row).astype(np.int32)

    def _hand_over(self, row: Row) -> None:
        """Hands over a chunk of the rows held, with the items that they complete and those that they write over."""
        ring = self._ring
        steps: Step = jax.tree.map(lambda *x: np.stack(x), *self._held)
        positions = self._positions(steps.first)
        position = np.concatenate([self._tail, positions])
        rows, environments = self._completed(position)
        devices = environments // ring.share
        nth = np.zeros(len(devices), int)  # each item's number among the new items of its device
        for device in range(ring.devices):
            mine = devices == device
            nth[mine] = np.arange(np.count_nonzero(mine))
        counts = np.bincount(devices, minlength=ring.devices)
        calls = max(1, -(-int(np.max(counts, initial=0)) // ring.at_once))
        items = np.full((ring.devices, calls * ring.at_once), ring.anchors, np.int32)
        items[devices, nth] = self._anchors(rows, environments)
        with_chunk, *further = (part.reshape(-1) for part in np.split(items, calls, axis=1))
        gone, lost = self._write_over(rows, environments, nth < ring.at_once)
        chunk = Chunk(
            self._kept(steps),
            positions,
            self._memories,
            self._slots,
            self._memory_of,
            with_chunk,
            gone,
            (counts - lost).astype(np.int32),
            np.int32(self._task),
            np.int32(self._head % ring.length),
        )
        env_steps, self._reported = self._env_steps - self._reported, self._env_steps
        self._channel.hand_over(_Handed(chunk, further, row.params, env_steps), counts, self._stopped)
        self._head += ring.chunk
        self._tail = position[-len(self._tail) :]
        self._start()

    def _kept(self, steps: Step) -> Any:
        """Returns what the ring keeps of Steps [C, E, ...], as `Cut.kept` returns it; all rows are packed at once."""
        ring = self._ring
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)
        return jax.tree.map(lambda x: x.reshape(ring.chunk, ring.num_envs, *x.shape[1:]), ring.cut.kept(rows))

    def _completed(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the anchors of the items that the chunk completes: their rows and environments, int [items] each.

        `position` [rows, E] is that of the tail and of the chunk after it. The rows returned are counted from the
        actor's first ever.
        """
        opening = np.where(position == 0, np.arange(len(position))[:, None], NEVER)
        following = np.minimum.accumulate(opening[::-1])[::-1]
        over = np.concatenate([following[1:], np.full((1, position.shape[1]), NEVER)])
        completed = np.where(position >= 0, self._ring.cut.completed_by(position, over), NEVER)
        rows, environments = np.nonzero((completed >= len(self._tail)) & (completed < len(position)))
        return self._head - len(self._tail) + rows, environments

    def _write_over(
        self, rows: np.ndarray, environments: np.ndarray, with_chunk: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Notes which anchors have an item once the chunk is written.

        Args:
          rows, environments: the anchors of the new items, as `_completed` returns them.
          with_chunk: bool, which of the new items are written together with the chunk; the others follow later.

        Returns:
          `gone` of the Chunk, the anchors that lose a row, and how many items are lost on each device.
        """
        ring = self._ring
        reach = self._head + np.arange(ring.chunk + ring.cut.back)  # rows without which no old item is whole
        lost = self._present[reach % ring.length].sum(axis=0).reshape(ring.devices, ring.share).sum(axis=1)
        self._present[reach % ring.length] = False
        self._present[rows % ring.length, environments] = True
        gone = self._anchors(reach[:, None], np.arange(ring.num_envs))
        # A new item whose anchor is a row of the chunk must not be taken for the old item of the same anchor.
        new = with_chunk & (rows >= self._head)
        gone[rows[new] - self._head, environments[new]] = ring.anchors
        return np.moveaxis(gone.reshape(len(reach), ring.devices, ring.share), 1, 0).reshape(-1), lost

    def _anchors(self, rows: np.ndarray, environments: np.ndarray) -> np.ndarray:
        """Returns the anchors, counted as on the environments' device, of rows counted from the actor's first ever."""
        ring = self._ring
        place = self._task * ring.length + rows % ring.length
        return (place * ring.share + environments % ring.share).astype(np.int32)

    def close(self) -> None:
        """Does nothing: rows that make no whole chunk yet are dropped."""
