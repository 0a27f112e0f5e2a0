"""Rings that are filled where they lie: what RingWriter does on the host, inside the compiled program that makes the
rows."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import Memory, Params, Step
from replay.ring_channel import RingChannel
from replay.rings import NEVER, Chunk, Masses, Ring, Rows
from replay.rows import Batch, Priority


class Filling(NamedTuple):
    """How far one actor's ring is filled, on one device; E is its share of the environments."""

    slot: chex.Array  # int32, where the next row goes
    tail: chex.Array  # int32 [L, E], `position` of the last rows; L: rows that an item may reach ahead, and one
    opened: chex.Array  # int32 [E], of the places for memories, the next


class Kept(NamedTuple):
    """A replay on its way through a compiled program."""

    rows: Rows
    masses: Masses
    filling: Filling
    inserted: chex.Array  # int32, items so far, up to COUNTED
    owed: chex.Array  # float32, samples that are due
    ranked: chex.Array  # int32 [2], items that were there, and samples since, when all were ranked last


COUNTED = 2**30 - 1  # twice that is an int32, too


def append(
    ring: Ring,
    priority: Priority | None,
    rows: Rows,
    masses: Masses,
    filling: Filling,
    steps: Step,
    memory: Memory,
    params: Params,
) -> tuple[Rows, Masses, Filling, chex.Array]:
    """Adds C = `ring.chunk` rows of the only actor, and the items that they complete; int32, how many these are.

    Args:
      priority: of new items, as of an Agent.
      steps: [C, E, ...].
      memory: [C, E, ...] before each row, where the ring keeps any.
      params: that acted.
    """
    length, size = len(filling.tail), ring.chunk
    positions = _positions(filling.tail[-1], steps.first)
    position = jnp.concatenate([filling.tail, positions])  # [L + C, E]
    opening = jnp.where(position == 0, jnp.arange(len(position))[:, None], NEVER)
    following = jax.lax.cummin(opening, reverse=True)
    over = jnp.concatenate([following[1:], jnp.full((1, ring.share), NEVER)])
    completed = jnp.where(position >= 0, ring.cut.completed_by(position, over, jnp), NEVER)
    new = (completed >= length) & (completed < len(position))

    def anchors(offsets: Any) -> chex.Array:
        """Of rows, counted from the next one."""
        place = (filling.slot + offsets) % ring.length
        return (place[:, None] * ring.share + jnp.arange(ring.share)).astype(jnp.int32)

    # What is written over loses its items, but not those that are new in its place.
    gone = anchors(jnp.arange(size + ring.cut.back))
    lost = masses.of_rows.reshape(-1)[gone] > 0
    replaced = jnp.concatenate([new[length:], jnp.zeros((ring.cut.back, ring.share), bool)])
    gone = jnp.where(replaced, ring.anchors, gone).reshape(-1)

    # The new ones first, then what stands for none.
    count = jnp.sum(new, dtype=jnp.int32)
    items = jnp.where(new, anchors(jnp.arange(-length, size)), ring.anchors).reshape(-1)
    items = jnp.pad(items[jnp.argsort(~new.reshape(-1), stable=True)], (0, ring.at_once), constant_values=ring.anchors)

    chunk = Chunk(
        jax.tree.map(
            lambda x: x.reshape(size, ring.share, *x.shape[1:]),
            ring.cut.kept(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps), jnp),
        ),
        positions,
        *_memories(ring, filling, positions, memory),
        items[: ring.at_once],
        gone,
        (count - jnp.sum(lost, dtype=jnp.int32))[None],
        np.int32(0),
        filling.slot,
    )
    rows, masses = ring.insert(priority, rows, masses, chunk, params)

    def further(carry: Any) -> Any:
        done, masses = carry
        more = jax.lax.dynamic_slice(items, (done,), (ring.at_once,))
        return done + ring.at_once, ring.add(priority, rows, masses, more, params)

    _, masses = jax.lax.while_loop(lambda carry: carry[0] < count, further, (jnp.int32(ring.at_once), masses))
    opened = filling.opened
    if ring.memory_slots:
        opened = (opened + jnp.sum(ring.cut.opens(positions), axis=0, dtype=jnp.int32)) % ring.memory_slots
    filling = Filling((filling.slot + size) % ring.length, position[-length:], opened)
    return rows, masses, filling, count


def _positions(before: chex.Array, first: chex.Array) -> chex.Array:
    """int32 [C, E], each row's place in its episode, `first` [C, E]; `before` [E], that of the row before them."""
    row = jnp.arange(len(first))[:, None]
    opened = jax.lax.cummax(jnp.where(first, row, -1))
    return jnp.where(opened >= 0, row - opened, before + 1 + row).astype(jnp.int32)


def _memories(ring: Ring, filling: Filling, positions: chex.Array, memory: Memory) -> tuple[list[Any], Any, Any]:
    """Of a Chunk: the memories to be kept, where they go, and of each row where its own is."""
    if not ring.memory_slots:
        return [], (), ()
    opens = ring.cut.opens(positions)  # [C, E]
    place = jnp.cumsum(opens, axis=0) - 1  # of those that a chunk keeps, which it is
    slots = (filling.opened + place) % ring.memory_slots
    shape = ring.memories_at_once, ring.share
    index = jnp.where(opens, place, shape[0]), jnp.arange(ring.share)
    flat = ring.cut.kept_memory(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), memory), jnp)
    memories = [
        jnp.zeros((*shape, *x.shape[1:]), x.dtype).at[index].set(x.reshape(*opens.shape, *x.shape[1:]), mode="drop")
        for x in flat
    ]
    kept = jnp.full(shape, ring.memory_slots, jnp.int32).at[index].set(slots.astype(jnp.int32), mode="drop")
    return memories, kept, jnp.where(opens, slots, 0).astype(jnp.int32)


class FilledRings(RingChannel):
    """A replay whose one actor is part of the learner's program."""

    _kept: Kept | None = None  # None: no program had it yet

    @property
    def kept_specs(self) -> Kept:
        """How a Kept lies on the mesh's devices."""
        mesh = self._mesh
        filling = Filling(mesh.REPLICATED, mesh.COLUMNS, mesh.ROWS)
        return Kept(*self.specs, filling, *[mesh.REPLICATED] * 3)

    def give(self) -> Kept:
        """As a program takes it, which it is donated to."""
        if self._kept is None:
            ring, limiter = self.ring, self._limiter
            owed = limiter.owed() if limiter.limits and limiter.inserted >= limiter.min_size else 0.0
            filling = Filling(
                np.int32(self.heads[0] % ring.length),
                self.tails[0],
                (self.opened[0] % max(1, ring.memory_slots)).astype(np.int32),
            )
            counts = np.int32(min(limiter.inserted, COUNTED)), np.float32(owed), np.zeros(2, np.int32)
            rest = self._mesh.put((filling, *counts), self.kept_specs[2:])
            self._kept = Kept(self.rows, self.masses, *rest)
        return self._kept

    def take(self, kept: Kept, rows: int) -> None:
        """As it was given back, after so many rows."""
        self._kept, self.rows, self.masses = kept, kept.rows, kept.masses
        self.heads += rows

    def batches(self) -> Iterator[Batch]:
        """One for each call of the program, until `stopped`."""
        while not self.stopped():
            yield Batch(None, None, 0)

    def state(self) -> dict[str, Any]:
        """As of any RingChannel: whoever fills rings can go on with it."""
        if self._kept is not None:
            filling, specs = self._kept.filling, self.kept_specs.filling
            _, tail, opened = self._mesh.fetch((filling.slot, filling.tail, filling.opened), tuple(specs))
            self.tails, self.opened = tail[None], opened.astype(np.int64)[None]
            limiter = self._limiter
            self._items[:] = 0
            self._items[0] = limiter.inserted = self.count()
            owed = self._mesh.host(self._kept.owed).item()
            limiter.sampled = max(0, round((limiter.inserted - limiter.min_size) * limiter.ratio - owed))
        return super().state()

    def count(self) -> int:
        return super().count() if self._kept is None else int(self._mesh.host(self._kept.inserted))
