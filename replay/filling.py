"""Replay rings that are filled inside the compiled program that makes the rows.

The functions here do on the devices what RingWriter does on the host.
"""

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
    """How far one actor's ring is filled, on one device; E is the device's share of the environments."""

    slot: chex.Array  # int32, the place in the ring for the next row
    tail: chex.Array  # int32 [L, E], `position` of the last L rows; L is one more than an item may reach ahead
    opened: chex.Array  # int32 [E], each environment's next place for a memory


class Kept(NamedTuple):
    """A replay's contents and counts, which a compiled program takes and returns."""

    rows: Rows
    masses: Masses
    filling: Filling
    inserted: chex.Array  # int32, the items completed so far; it stops at COUNTED
    owed: chex.Array  # float32, samples that are due
    ranked: chex.Array  # int32 [2], `inserted` when all items were ranked last, and the samples drawn since


COUNTED = 2**30 - 1  # so that twice as much still fits into an int32


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
    """Adds C = `ring.chunk` rows of the only actor, and the items that they complete.

    Args:
      priority: an Agent's, which gives new items their priorities; None: 1.
      steps: the rows, [C, E, ...].
      memory: the agent's memory before each row, [C, E, ...]; read only if the ring keeps memories.
      params: the parameters that acted.

    Returns:
      The rows, masses and filling, and how many items were completed, int32.
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
        """Returns the anchors of rows at these offsets from the row that comes next, [len(offsets), E]."""
        place = (filling.slot + offsets) % ring.length
        return (place[:, None] * ring.share + jnp.arange(ring.share)).astype(jnp.int32)

    # Items that need a row that is written over are gone, but not a new item whose anchor is such a row.
    gone = anchors(jnp.arange(size + ring.cut.back))
    lost = masses.of_rows.reshape(-1)[gone] > 0
    replaced = jnp.concatenate([new[length:], jnp.zeros((ring.cut.back, ring.share), bool)])
    gone = jnp.where(replaced, ring.anchors, gone).reshape(-1)

    # The new items' anchors come first, then indices that stand for no item.
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
    """Returns each row's place in its episode, int32 [C, E], from `first` [C, E] and the place of the row before them,
    `before` [E]."""
    row = jnp.arange(len(first))[:, None]
    opened = jax.lax.cummax(jnp.where(first, row, -1))
    return jnp.where(opened >= 0, row - opened, before + 1 + row).astype(jnp.int32)


def _memories(ring: Ring, filling: Filling, positions: chex.Array, memory: Memory) -> tuple[list[Any], Any, Any]:
    """Returns a Chunk's `memories`, `memory_slots` and `memory_of`."""
    if not ring.memory_slots:
        return [], (), ()
    opens = ring.cut.opens(positions)  # [C, E]
    place = jnp.cumsum(opens, axis=0) - 1  # the memory's number among those of its environment in this chunk
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
    """The channel of a replay whose only actor is part of the learner's compiled program (--placement=device)."""

    _kept: Kept | None = None  # None until the program first asks for it

    @property
    def kept_specs(self) -> Kept:
        """The mesh specs of a Kept: how its arrays are split over the devices."""
        mesh = self._mesh
        filling = Filling(mesh.REPLICATED, mesh.COLUMNS, mesh.ROWS)
        return Kept(*self.specs, filling, *[mesh.REPLICATED] * 3)

    def give(self) -> Kept:
        """Returns the replay for a call of the program, to which its arrays are donated."""
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
        """Takes back the replay that the program returned, after it added `rows` rows of each environment."""
        self._kept, self.rows, self.masses = kept, kept.rows, kept.masses
        self.heads += rows

    def batches(self) -> Iterator[Batch]:
        """Yields an empty batch for each call of the program, until `stopped`."""
        while not self.stopped():
            yield Batch(None, None, 0)

    def state(self) -> dict[str, Any]:
        """Returns what a RingChannel's `state` does, so that RingWriters can go on with these rings too."""
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
