"""A replay on the learner's devices as a channel: actors' rows in, batches that the devices draw themselves out.

Actors keep rows until there is a chunk of them and hand it over; the learner's thread puts chunks into the rings
between two updates. No row passes through anything but one copy.
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
    further: list[np.ndarray]  # items that found no place in it, int32 [devices * P] each
    params: Params  # that the actor acted with
    env_steps: int  # transitions that it made


class RingChannel:
    """The replay of one learner, which alone touches what is on the devices; actors are threads, or take turns."""

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
          mesh: runtime.devices.Mesh of the learner; this host's devices hold the rings of its own actors.
          structure: of one item, as `item_structure` gives it.
          batch_size: items that one dispatch draws, over all of this host's devices.
          num_envs: of each of the actors.
          max_rows: that can ever be written.
          saved: what `state` gave in an earlier process of the run.

        Raises:
          ValueError: environments or batches do not divide over the devices.
        """
        self._learners, self._mesh, self._batch_size = mesh, mesh.alone(), batch_size
        mesh = self._mesh
        cut = channels.way(table).ring(table, structure)
        least = int(saved["length"][0]) if saved else 0
        self.ring = ring = Ring(table, cut, num_actors, num_envs, mesh.size, max_rows, least)
        self._limiter = Limiter(table, batch_size, ring.chunk * num_envs)
        self._handed: collections.deque[_Handed] = collections.deque()
        self._changed = threading.Condition()
        self._items = np.zeros(mesh.size, np.int64)  # completed so far, of each device
        self._env_steps = 0  # transitions put into the rings that no batch has told of yet
        self.turn: Callable[[], None] | None = None  # what the learner calls where it would wait, in one thread
        self.stopped: Callable[[], bool] = never  # whether the learner is to end
        self.heads = np.zeros(num_actors, np.int64)  # rows that are in each actor's ring, and that were
        self.tails = np.full((num_actors, cut.ahead + 1, num_envs), -1, np.int32)  # `position` of the last of them
        self.opened = np.zeros((num_actors, num_envs), np.int64)  # memories that are kept, and that were

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
        self._ranked_at = 0, 0  # items inserted and sampled when all were ranked last
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
                    f"the replay that was saved was filled by {before[0]} actors of {before[1]} environments, and here "
                    f"are {num_actors} of {num_envs}: go on in the --placement that it was filled in"
                )
            self._load(saved)
        # bool [A, T, E], the anchors that have an item; each actor's is its writer's to change.
        self.present = mesh.fetch(self.masses.of_rows, columns).reshape(num_actors, ring.length, -1) > 0

    # Actors -----------------------------------------------------------------------------------------------------------

    def writer(self, task: int, priority: Priority | None, stopped: Callable[[], bool]) -> "RingWriter":
        """Of actor `task`; its items get their priorities on the learner's devices, by the actor's own parameters."""
        del priority
        return RingWriter(self, task, stopped)

    def hand_over(self, handed: _Handed, completed: np.ndarray, stopped: Callable[[], bool]) -> None:
        """Returns once the learner may be given the chunk, or when stopped; `completed`: items [devices]."""
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
        """A batch for each dispatch that is due, for ever or until `stopped`; its sample is drawn by the update."""
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
                ready = self._limiter.limits  # else there is a turn for each batch
            if not ready and self.turn is not None:
                self.turn()
            if time.monotonic() - waiting_since > STALL_SECONDS:
                logging.warning("the learner has waited %d s for a batch: do actors run and write?", STALL_SECONDS)
                waiting_since = time.monotonic()

    def _drain(self, handed: collections.deque[_Handed]) -> None:
        """Puts chunks into the rings."""
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
        """Where priorities are rank-based, ranks all items anew: whenever there were twice as many, for at first all
        changes fast, and whenever as many were drawn as the rings have places."""
        limiter, (inserted, sampled) = self._limiter, self._ranked_at
        places = self.ring.anchors * self._mesh.size
        if self._rank and (limiter.inserted >= 2 * inserted or limiter.sampled - sampled >= places):
            self.masses, self._ranked_at = self._rank(self.masses), (limiter.inserted, limiter.sampled)

    def drain(self) -> int:
        """Puts what actors handed over into the rings; the items that were completed so far."""
        with self._changed:
            handed, self._handed = self._handed, collections.deque()
        self._drain(handed)
        return self._limiter.inserted

    def draw(self, rows: Rows, masses: Masses, key: Any, size: int) -> tuple[Sample, Any]:
        """On each device, inside the compiled update: a sample of `size`, and the anchors of its items."""
        return self.ring.draw(rows, masses, key, size)

    def reprioritize(self, masses: Masses, items: Any, priorities: Any) -> Masses:
        """Likewise: the masses with the items' new priorities."""
        return self.ring.reprioritize(masses, items, priorities) if self.ring.prioritized else masses

    def bind(self, update: Callable[..., Any]) -> Callable[..., Any]:
        """Of a compiled (state, step, rows, masses) -> (state, step, masses, feedback), the update of a Learner: on
        several hosts from the rings of all of them."""
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
        """Where a compiled update draws its samples."""
        return self

    def feedback(self, keys: tuple[np.ndarray, ...], priorities: np.ndarray) -> None:
        """New priorities never leave the devices."""

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def count(self) -> int:
        """Items that it has, or had: every one that was ever completed."""
        return int(self._items.sum())

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds, on the host; what actors have not handed over yet is not in it."""
        self.drain()
        limiter, rows = self._limiter, self._mesh.fetch(self.rows, self.specs[0])
        return {
            # By number: a checkpoint gives back dictionaries, in the order of their keys.
            "rows": {f"{i:03}": x for i, x in enumerate(jax.tree.leaves(rows))},
            "masses": self._mesh.fetch(self.ring.numbers(self.masses), self._mesh.COLUMNS),
            "heads": self.heads,
            "tails": self.tails,
            "opened": self.opened,
            "counts": np.array([limiter.inserted, limiter.sampled], np.int64),
            "length": np.array([self.ring.length], np.int64),
        }

    def _load(self, saved: dict[str, Any]) -> None:
        """Goes on from what `state` gave. Rings that are longer now, for a longer run, were never full."""

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
    """An actor's rows on their way to its ring."""

    def __init__(self, channel: RingChannel, task: int, stopped: Callable[[], bool]):
        self._channel, self._task, self._stopped = channel, task, stopped
        self._ring = ring = channel.ring
        self._head = int(channel.heads[task])
        self._tail = channel.tails[task]  # `position` of the rows before the chunk
        self._present = channel.present[task]  # bool [T, E], the anchors that have an item
        self._opened = channel.opened[task].copy()  # memories kept so far, of each environment
        self._position = np.full(ring.num_envs, -1)
        self._env_steps = self._reported = 0
        self._start()

    def _start(self) -> None:
        """Nothing is held; memories have arrays of their own for each chunk, for the last one's are on their way."""
        ring = self._ring
        shape = ring.memories_at_once, ring.num_envs
        self._held: list[Step] = []
        self._memories = [np.zeros((*shape, *x.shape), x.dtype) for x in ring.cut.memory_structs if ring.memory_slots]
        self._slots: Any = np.full(shape, ring.memory_slots, np.int32) if ring.memory_slots else ()
        self._memory_of: Any = np.zeros((ring.chunk, ring.num_envs), np.int32) if ring.memory_slots else ()
        self._taken = np.zeros(ring.num_envs, int)  # of the places for memories

    def append(self, row: Row) -> bool:
        """As of any Writer; true each time the environments made as many transitions as the way pulls after.

        Rows are held as they are until there is a chunk of them: an environment does not write over what it gave.
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
        """Where sequences open with a row."""
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
        """int32 [C, E], each row's place in its episode, `first` [C, E], after those before."""
        row = np.arange(len(first))[:, None]
        opened = np.maximum.accumulate(np.where(first, row, -1))
        return np.where(opened >= 0, row - opened, self._tail[-1] + 1 + row).astype(np.int32)

    def _hand_over(self, row: Row) -> None:
        ring, first = self._ring, self._head - len(self._tail)
        steps: Step = jax.tree.map(lambda *x: np.stack(x), *self._held)
        size = ring.chunk * ring.num_envs
        # Packed as one batch of rows, all at once.
        kept = ring.cut.kept(jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), steps))
        kept = jax.tree.map(lambda x: x.reshape(ring.chunk, ring.num_envs, *x.shape[1:]), kept)
        positions = self._positions(steps.first)
        position = np.concatenate([self._tail, positions])
        opening = np.where(position == 0, np.arange(len(position))[:, None], NEVER)
        following = np.minimum.accumulate(opening[::-1])[::-1]
        over = np.concatenate([following[1:], np.full((1, ring.num_envs), NEVER)])
        completed = np.where(position >= 0, ring.cut.completed_by(position, over), NEVER)
        length = len(self._tail)
        rows, environments = np.nonzero((completed >= length) & (completed < len(position)))
        devices = environments // ring.share
        anchors = self._anchors(first + rows, environments)
        counts = np.bincount(devices, minlength=ring.devices)
        calls = max(1, -(-int(counts.max(initial=0)) // ring.at_once))
        items = np.full((ring.devices, calls * ring.at_once), ring.anchors, np.int32)
        # Items lose a row that is written over; those that are new in its place do not.
        gone = self._anchors(self._head + np.arange(ring.chunk + ring.cut.back)[:, None], np.arange(ring.num_envs))
        lost = self._present[gone_rows := (self._head + np.arange(ring.chunk + ring.cut.back)) % ring.length]
        change = counts - lost.sum(axis=0).reshape(ring.devices, ring.share).sum(axis=1)
        self._present[gone_rows] = False
        self._present[(first + rows) % ring.length, environments] = True
        for device in range(ring.devices):
            mine = np.flatnonzero(devices == device)
            items[device, : len(mine)] = anchors[mine]
            at_once = mine[: ring.at_once]
            replaced = at_once[rows[at_once] >= length]
            gone[rows[replaced] - length, environments[replaced]] = ring.anchors
        parts = [part.reshape(-1) for part in np.split(items, calls, axis=1)]
        gone = np.moveaxis(gone.reshape(len(gone), ring.devices, ring.share), 1, 0).reshape(-1)
        chunk = Chunk(
            kept,
            positions,
            self._memories,
            self._slots,
            self._memory_of,
            parts[0],
            gone,
            change.astype(np.int32),
            np.int32(self._task),
            np.int32(self._head % ring.length),
        )
        env_steps, self._reported = self._env_steps - self._reported, self._env_steps
        self._channel.hand_over(_Handed(chunk, parts[1:], row.params, env_steps), counts, self._stopped)
        self._head += ring.chunk
        self._tail = position[-len(self._tail) :]
        self._start()

    def _anchors(self, rows: np.ndarray, environments: np.ndarray) -> np.ndarray:
        """Of an actor's rows, counted from its first, as they are counted on the environments' device."""
        ring = self._ring
        place = self._task * ring.length + rows % ring.length
        return (place * ring.share + environments % ring.share).astype(np.int32)

    def close(self) -> None:
        """Rows that make no chunk are dropped."""
