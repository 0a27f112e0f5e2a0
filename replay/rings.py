"""A replay on the learner's devices: it keeps rows in rings, and cuts items from them inside the compiled update.

Each actor has a ring of T rows [E, ...], which holds each row's arrays once. An item is named by its anchor, which is
one row of one environment: the row where a transition starts, or the first row that a sequence learns from. How far an
item reaches before and after its anchor, and where an episode's end cuts it short, is for the way's `Cut` to say. Who
adds rows (RingWriter on the host, replay/filling.py on the devices) decides which items are complete, from where
episodes begin. Everything that touches stored data happens here, on each device for its share of every actor's
environments.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import AXIS, Params, Sample, Step, TableSpec
from replay import sums
from replay.rows import Priority

# Rows, counted over all its environments, that an actor keeps until it hands them over together; at least one of each
# environment. Writing costs Python and XLA as much for a few rows as for one.
CHUNK_ITEMS = 64
LEAST_MASS = 1e-30  # the least mass of an item: a mass of 0 says that there is no item
NEVER = np.iinfo(np.int32).max // 2  # in place of a row's index: there is no such row, or it is not known yet


class Look(NamedTuple):
    """A Cut's access to the rows around B anchors. Rows are named by their offsets from the anchors."""

    position: Callable[[Any], chex.Array]  # (offsets, int [W] or [B, W]) -> each row's place in its episode, [B, W]
    rows: Callable[[Any, Any], Any]  # (some of the kept arrays, offsets) -> these rows of the arrays, [B, W, ...]
    memory: Callable[[Any], Any]  # (offsets [B] of rows that `opens` is true of) -> their memories, a list of [B, size]


class Cut(Protocol):
    """How a way's items lie in a ring of rows. `xp` is numpy for rows on the host, and jax.numpy on the devices."""

    back: int  # the most rows before its anchor that an item may need
    ahead: int  # the most rows after its anchor
    memory_gap: int  # an environment's rows whose memories are kept are never closer than this; 0: none are kept
    pull_period: int  # transitions that an actor makes between two pulls of parameters
    kept_structs: Any  # shapes and dtypes of what `kept` returns, for one environment
    memory_structs: list[Any]  # shapes and dtypes of what `kept_memory` returns, for one environment

    def kept(self, step: Step, xp: Any = np) -> Any:
        """Returns what a ring keeps of a row [B, ...], as a tree of few arrays."""

    def kept_memory(self, memory: Any, xp: Any = np) -> list[Any]:
        """Returns what a ring keeps of a memory [B, ...], as a list of few arrays."""

    def opens(self, position: Any) -> Any:
        """Returns whether the memory before a row is kept, for rows at these places in their episodes."""

    def completed_by(self, position: Any, over: Any, xp: Any = np) -> Any:
        """Returns the row that completes each item, int [rows, E], for anchors in consecutive rows.

        Rows are counted from the first of these. The result is NEVER for a row that is no item's anchor, and may lie
        beyond the given rows.

        Args:
          position: int [rows, E], each row's place in its episode.
          over: int [rows, E], the first row of the next episode; NEVER if it is not known.
        """

    def cut(self, kept: Any, look: Look) -> Sample:
        """Returns the items at the anchors of `look`, as the agent's update takes them; `kept` is that of the Rows."""


class Rows(NamedTuple):
    """The experience in the rings, which does not change while an update runs.

    A is the number of actors, T the rows of a ring, E the environments and M the places for memories of an actor.
    """

    kept: Any  # arrays [A T, E, ...], as `Cut.kept` returns them
    position: chex.Array  # int32 [A T, E], the row's place in its episode
    memories: list[chex.Array]  # [A M, E, size], the memories before rows that `Cut.opens` is true of
    memory_of: Any  # int32 [A T, E], the place, below M, of such a row's memory; () where no memory is kept


class Ranks(NamedTuple):
    """The data of rank-based priorities: each item's priority, and the order from which an item gets its rank."""

    priorities: chex.Array  # float32 [A T, E], each item's priority p; 0 where there is no item
    ascending: chex.Array  # float32 [devices * anchors], each device's priorities in order, as of the last ranking


class Masses(NamedTuple):
    """Masses, in proportion to which anchors are drawn: p^alpha, or rank^-alpha; 0 where there is no item."""

    of_rows: chex.Array  # float32 [A T, E]
    sums: sums.Sums  # each device's sums over its own masses
    count: chex.Array  # int32 [devices], the number of items
    counts: Any = ()  # sums like these, but over 1 for each item; () where no items are drawn uniformly
    ranks: Any = ()  # Ranks; () where priorities are proportional


class Chunk(NamedTuple):
    """C consecutive rows of one actor, and how they change the items.

    An anchor is counted among those of its own device; `Ring.anchors` or more stands for no anchor.
    """

    kept: Any  # arrays [C, E, ...], as `Cut.kept` returns them
    position: Any  # int32 [C, E], each row's place in its episode
    memories: list[Any]  # [K, E, size], the memories that are kept, K or fewer of each environment
    memory_slots: Any  # int32 [K, E], the places where these go; M for no memory; () where none is kept
    memory_of: Any  # int32 [C, E], as in Rows; () where no memory is kept
    items: Any  # int32 [devices * P], the anchors of items that the chunk completes
    gone: Any  # int32 [devices * (C + back) * E / devices], the anchors of items that lose a row
    change: Any  # int32 [devices], the change in the number of items
    actor: Any  # int32, the actor's number
    slot: Any  # int32, the place of the chunk's first row in the actor's ring


class Ring:
    """The sizes of a replay's rings, and pure functions of their contents, which a Mesh runs on each device."""

    def __init__(
        self, table: TableSpec, cut: Cut, num_actors: int, num_envs: int, devices: int, max_rows: int, least: int = 0
    ):
        """
        Args:
          table: has its kind, its sizes in items, and the exponent of priorities.
          num_envs: environments of each actor, which are split over the devices.
          max_rows: rows that all environments together can ever write; no ring is longer than these can fill.
          least: the fewest rows that a ring may have: as many as it had when it was saved.

        Raises:
          ValueError: an actor's environments do not divide over the devices.
        """
        if num_envs % devices:
            raise ValueError(
                "--carrier=local shares each actor's environments equally among the learner's devices: "
                f"--envs_per_actor={num_envs} must be a multiple of {devices}"
            )
        self.cut, self.num_actors, self.num_envs, self.devices = cut, num_actors, num_envs, devices
        self.share = num_envs // devices  # environments of an actor on a device
        self.prioritized, self._exponent = table.kind == "prioritized", table.priority_exponent
        self.ranked = self.prioritized and table.priority == "rank"
        self._uniform = table.uniform_fraction if self.prioritized else 0.0
        self.chunk = max(1, CHUNK_ITEMS // num_envs)  # C
        # P, the items for which there is room in a chunk, on each device. A chunk seldom completes more.
        self.at_once = self.share * (self.chunk // getattr(table.items, "period", 1) + 1)
        wanted = -(-min(rows_of(table), max_rows) // (num_actors * num_envs)) + cut.back + cut.ahead + 1
        multiple = math.lcm(self.chunk, sums.FAN_OUT)
        self.length = max(least, -(-(wanted + self.chunk) // multiple) * multiple)  # T
        self.memory_slots = self.length // cut.memory_gap + 2 if cut.memory_gap else 0  # M
        self.memories_at_once = self.chunk // cut.memory_gap + 1 if cut.memory_gap else 0  # K
        self.anchors = num_actors * self.length * self.share  # on one device

    @property
    def nbytes(self) -> int:
        """The bytes of one device's rows and masses."""
        contents = jax.eval_shape(lambda: (self.init(), self.init_masses()))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(contents))

    def init(self) -> Rows:
        """Returns one device's empty rings."""

        def zeros(x, rows):
            return jnp.zeros((self.num_actors * rows, self.share, *x.shape), x.dtype)

        integers = jax.ShapeDtypeStruct((), np.int32)
        return Rows(
            jax.tree.map(lambda x: zeros(x, self.length), self.cut.kept_structs),
            zeros(integers, self.length),
            [zeros(x, self.memory_slots) for x in self.cut.memory_structs],
            zeros(integers, self.length) if self.cut.memory_gap else (),
        )

    def init_masses(self, numbers: chex.Array | None = None) -> Masses:
        """Returns the masses of one device's rings: empty, or as they were when `numbers` returned these `numbers`."""
        if numbers is None:
            numbers = jnp.zeros((self.num_actors * self.length, self.share))
        of_rows, ranks = self._rank(numbers) if self.ranked else (numbers, ())
        flat = of_rows.reshape(-1)
        counts = sums.build(sums.presence(flat)) if self._uniform else ()
        return Masses(of_rows, sums.build(flat), jnp.sum(of_rows > 0, dtype=jnp.int32)[None], counts, ranks)

    def numbers(self, masses: Masses) -> chex.Array:
        """Returns what `init_masses` needs to restore `masses`, float32 [A T, E]: each item's p where priorities are
        rank-based, else its p^alpha."""
        return masses.ranks.priorities if self.ranked else masses.of_rows

    def rank(self, masses: Masses) -> Masses:
        """Returns masses by each item's rank among all items of its device, as their priorities are now.

        This is for rank-based priorities alone. Items of equal priority get different ranks, in the order in which they
        lie in the rings.
        """
        return self.init_masses(masses.ranks.priorities)

    def _rank(self, priorities: chex.Array) -> tuple[chex.Array, Ranks]:
        flat = priorities.reshape(-1)
        ascending, order = jax.lax.sort((flat, jnp.arange(self.anchors)), num_keys=1)
        masses = jnp.zeros(self.anchors).at[order].set(self._mass_of_rank(self.anchors - jnp.arange(self.anchors)))
        return jnp.where(flat > 0, masses, 0.0).reshape(priorities.shape), Ranks(priorities, ascending)

    def _mass_of_rank(self, rank: chex.Array) -> chex.Array:
        return jnp.maximum(rank.astype(jnp.float32) ** -self._exponent, LEAST_MASS)

    def write(self, rows: Rows, chunk: Chunk) -> Rows:
        """Returns the rows with those of a chunk in their places."""

        def put(ring, new):
            # A scatter, for XLA's CPU backend takes ten times as long over a dynamic_update_slice of a large ring.
            return ring.at[chunk.actor * self.length + chunk.slot + jnp.arange(self.chunk)].set(new)

        memories, memory_of = rows.memories, rows.memory_of
        if memories:
            slots = jnp.where(
                chunk.memory_slots < self.memory_slots,
                chunk.actor * self.memory_slots + chunk.memory_slots,
                len(memories[0]),
            )
            place = slots, jnp.arange(self.share)
            memories = [
                ring.at[place].set(new, mode="drop") for ring, new in zip(memories, chunk.memories, strict=True)
            ]
            memory_of = put(memory_of, chunk.memory_of)
        return Rows(jax.tree.map(put, rows.kept, chunk.kept), put(rows.position, chunk.position), memories, memory_of)

    def exchange(
        self, masses: Masses, items: chex.Array, priorities: chex.Array, gone: chex.Array, change: chex.Array
    ) -> Masses:
        """Returns masses with new `items` of these `priorities`, and with no items at the anchors `gone`.

        No anchor may be in both; one that is `self.anchors` or more stands for none. `change` is the change in the
        number of items.
        """
        index = jnp.concatenate([items, gone])
        values = jnp.concatenate([self._number(priorities, jnp.ones(len(items))), jnp.zeros(len(gone))])
        # A single scatter that does not read the old masses: else XLA's CPU backend copies all of them.
        return self._set(masses._replace(count=masses.count + change), index, values)

    def look(self, rows: Rows, items: chex.Array) -> Sample:
        """Returns the items at these anchors, int [B]."""
        row, environment = items // self.share, items % self.share
        first, place = row - row % self.length, row % self.length

        def index(offsets):
            offsets = jnp.broadcast_to(offsets, (len(items), jnp.shape(offsets)[-1]))
            return (first[:, None] + (place[:, None] + offsets) % self.length) * self.share + environment[:, None]

        def take(ring, offsets):
            return ring.reshape(-1, *ring.shape[2:])[index(offsets)]

        def memory(offsets):
            slot = row // self.length * self.memory_slots + take(rows.memory_of, offsets[:, None])[:, 0]
            return [ring[slot, environment] for ring in rows.memories]

        return self.cut.cut(
            rows.kept,
            Look(
                lambda offsets: take(rows.position, offsets),
                lambda some, offsets: jax.tree.map(lambda ring: take(ring, offsets), some),
                memory,
            ),
        )

    def insert(
        self, priority: Priority | None, rows: Rows, masses: Masses, chunk: Chunk, params: Params
    ) -> tuple[Rows, Masses]:
        """Returns rows and masses with a chunk's rows and items.

        `priority`, an Agent's, gives new items their priorities by `params`, the parameters that acted.
        """
        rows = self.write(rows, chunk)
        new = self._priorities(priority, rows, chunk.items, params)
        return rows, self.exchange(masses, chunk.items, new, chunk.gone, chunk.change)

    def add(self, priority: Priority | None, rows: Rows, masses: Masses, items: chex.Array, params: Params) -> Masses:
        """Returns masses with further items of a chunk, which the chunk's `change` has counted already."""
        new = self._priorities(priority, rows, items, params)
        return self.exchange(masses, items, new, items[:0], jnp.zeros(1, jnp.int32))

    def _priorities(self, priority: Priority | None, rows: Rows, items: chex.Array, params: Params) -> Any:
        """Returns the priorities of new items: 1 for all where there is no `priority`."""
        if priority is None:
            return jnp.ones(len(items))
        sample = self.look(rows, jnp.minimum(items, self.anchors - 1))
        return priority(params, sample if isinstance(sample.steps, Step) else sample.steps)

    def draw(self, rows: Rows, masses: Masses, key: chex.PRNGKey, size: int) -> tuple[Sample, chex.Array]:
        """Draws this device's `size` items of a batch; returns them and their anchors.

        An item i of device d is drawn with probability P_d(i) / devices. Its likelihood is this probability times the
        number of items on all devices, so that importance weights are right for the mixture. With a `uniform_fraction`
        u, P_d(i) is (1 - u) times the probability by priorities, plus u over the device's number of items.
        """
        flat, u = masses.of_rows.reshape(-1), self._uniform
        items = sums.sample(flat, masses.sums, key, size)
        probability = flat[items] / sums.total(masses.sums)
        if u:
            which, any_key = jax.random.split(jax.random.fold_in(key, 1))
            of_all = sums.sample(flat, masses.counts, any_key, size, sums.presence)
            items = jnp.where(jax.random.bernoulli(which, u, (size,)), of_all, items)
            probability = (1.0 - u) * flat[items] / sums.total(masses.sums) + u / masses.count[0]
        count = jax.lax.psum(masses.count[0], AXIS).astype(jnp.float32)
        likelihood = probability * count / jax.lax.psum(1, AXIS)
        return self.look(rows, items)._replace(likelihood=likelihood), items

    def reprioritize(self, masses: Masses, items: chex.Array, priorities: chex.Array) -> Masses:
        """Gives drawn items [B] new priorities; where one is not finite, the item keeps its old priority."""
        return self._set(masses, items, self._number(priorities, self.numbers(masses).reshape(-1)[items]))

    def _number(self, priorities: chex.Array, otherwise: chex.Array) -> chex.Array:
        """Returns the values that `numbers` holds for these priorities; `otherwise` where a value is not finite."""
        exponent = 1.0 if self.ranked else self._exponent
        numbers = jnp.maximum(jnp.maximum(priorities, 0.0) ** exponent, LEAST_MASS)
        return jnp.where(jnp.isfinite(priorities) & jnp.isfinite(numbers), numbers, otherwise)

    def _set(self, masses: Masses, index: chex.Array, values: chex.Array) -> Masses:
        """Returns masses for which `numbers` would hold `values` at the anchors `index`."""

        def put(rows, values):
            return rows.reshape(-1).at[index].set(values, mode="drop")

        ranks, shape = masses.ranks, masses.of_rows.shape
        if self.ranked:
            greater = self.anchors - jnp.searchsorted(ranks.ascending, values, side="right")
            ranks = ranks._replace(priorities=put(ranks.priorities, values).reshape(shape))
            values = jnp.where(values > 0, self._mass_of_rank(1 + greater), 0.0)
        flat = put(masses.of_rows, values)
        counts = sums.update(flat, masses.counts, index, sums.presence) if self._uniform else ()
        return masses._replace(
            of_rows=flat.reshape(shape), sums=sums.update(flat, masses.sums, index), counts=counts, ranks=ranks
        )


def rows_of(table: TableSpec) -> int:
    """Returns the fewest rows that the table's `max_size` items take."""
    return table.max_size * getattr(table.items, "period", 1)
