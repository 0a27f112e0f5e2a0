"""A replay on the learner's devices: rows in rings, items cut from them inside the compiled update.

Each actor has a ring of T rows [E, ...], each row's arrays once. An item is named by its anchor, one row of one
environment: the row where a transition starts, or a sequence is learnt from first. How far it reaches before and after
the anchor, and where an episode cuts it short, is the way's own: its `Cut`. Which items are complete is decided on the
host, from where episodes begin; everything that touches data happens here, on each device for its share of every
actor's environments.
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

# Rows of environments that an actor keeps until it hands them over, one of each at least: writing costs Python and XLA
# as much for a few as for one.
CHUNK_ITEMS = 64
LEAST_MASS = 1e-30  # of an item that is there: 0 is for none
NEVER = np.iinfo(np.int32).max // 2  # of a row that is no anchor: the row that completes it


class Look(NamedTuple):
    """How a Cut sees the rows around B anchors."""

    position: Callable[[Any], chex.Array]  # (offsets, int [W] or [B, W]) -> each row's place in its episode, [B, W]
    rows: Callable[[Any, Any], Any]  # (some of the kept arrays, offsets) -> the same of those rows, [B, W, ...]
    memory: Callable[[Any], Any]  # offsets [B] of rows that opened -> the memories kept of them, a list of [B, size]


class Cut(Protocol):
    """A way's items in a ring. Rows come from an actor on the host, or on the devices: `xp` is numpy or jax.numpy."""

    back: int  # rows before an anchor that an item may need
    ahead: int  # rows after it
    memory_gap: int  # the fewest rows of an episode from one whose memory is kept to the next; 0: none is kept
    pull_period: int  # transitions from one pull of an actor's to the next
    kept_structs: Any  # shapes of what `kept` gives of one environment
    memory_structs: list[Any]  # likewise `kept_memory`

    def kept(self, step: Step, xp: Any = np) -> Any:
        """What a ring keeps of a row, [B, ...]: a tree of few arrays."""

    def kept_memory(self, memory: Any, xp: Any = np) -> list[Any]:
        """Likewise, of a memory."""

    def opens(self, position: Any) -> Any:
        """Whether the memory before rows at these places in their episodes is kept."""

    def completed_by(self, position: Any, over: Any, xp: Any = np) -> Any:
        """Of the anchors in consecutive rows, int [rows, E], the row that completes each item, counted as they are;
        NEVER where no item is anchored. `over`: the first row of the next episode, NEVER if it is not known."""

    def cut(self, kept: Any, look: Look) -> Sample:
        """The items at the anchors, as the agent's update takes them."""


class Rows(NamedTuple):
    """What was experienced; nothing of it changes while an update runs. A is the number of actors."""

    kept: Any  # of each array [A T, E, ...]
    position: chex.Array  # int32 [A T, E], the row's place in its episode
    memories: list[chex.Array]  # [A M, E, size], of rows that opened
    memory_of: Any  # int32 [A T, E], where the row's is, if it opened; () where none is kept


class Ranks(NamedTuple):
    """Of rank-based priorities: what items are ranked by, and among."""

    priorities: chex.Array  # float32 [A T, E], p of an item, 0 of none
    ascending: chex.Array  # float32 [devices * anchors], each device's priorities in order, as they last were ranked


class Masses(NamedTuple):
    """How likely each anchor is to be drawn: p^alpha of an item, or rank^-alpha; 0 of none."""

    of_rows: chex.Array  # float32 [A T, E]
    sums: sums.Sums  # of each device's own
    count: chex.Array  # int32 [devices], items
    counts: Any = ()  # sums likewise, of 1 for each item; () where none are drawn uniformly
    ranks: Any = ()  # Ranks; () where priorities are proportional


class Chunk(NamedTuple):
    """C rows of one actor, and what they change."""

    kept: Any  # of each array [C, E, ...]
    position: Any  # int32 [C, E]
    memories: list[Any]  # [K, E, size]
    memory_slots: Any  # int32 [K, E], where they go; M where there is none; ()
    memory_of: Any  # int32 [C, E]; ()
    items: Any  # int32 [devices * P], anchors that are complete now, counted on their device; too large: none
    gone: Any  # int32 [devices * (C + back) * E / devices], likewise, anchors of items that lose a row
    change: Any  # int32 [devices], in the number of items
    actor: Any  # int32
    slot: Any  # int32, of the first row, in the actor's ring


class Ring:
    """The sizes of a replay's rings, and pure functions of their contents; all are run on each device by `Mesh`."""

    def __init__(
        self, table: TableSpec, cut: Cut, num_actors: int, num_envs: int, devices: int, max_rows: int, least: int = 0
    ):
        """
        Args:
          table: kind, sizes in items, and the exponent of priorities.
          num_envs: of each actor, split over the devices.
          max_rows: of all environments together that can ever be written; no ring is longer than they fill.
          least: rows that a ring has at least: those that it had when it was saved.

        Raises:
          ValueError: an actor's environments do not divide over the devices.
        """
        if num_envs % devices:
            raise ValueError(
                f"--carrier=local shares each actor's environments over the learner's devices: --envs_per_actor="
                f"{num_envs} does not divide over {devices}"
            )
        self.cut, self.num_actors, self.num_envs, self.devices = cut, num_actors, num_envs, devices
        self.share = num_envs // devices  # environments of an actor on a device
        self.prioritized, self._exponent = table.kind == "prioritized", table.priority_exponent
        self.ranked = self.prioritized and table.priority == "rank"
        self._uniform = table.uniform_fraction if self.prioritized else 0.0
        self.chunk = max(1, CHUNK_ITEMS // num_envs)  # C
        # P, the most items that a chunk completes, most often.
        self.at_once = self.share * (self.chunk // getattr(table.items, "period", 1) + 1)
        wanted = -(-min(rows_of(table), max_rows) // (num_actors * num_envs)) + cut.back + cut.ahead + 1
        multiple = math.lcm(self.chunk, sums.FAN_OUT)
        self.length = max(least, -(-(wanted + self.chunk) // multiple) * multiple)  # T
        self.memory_slots = self.length // cut.memory_gap + 2 if cut.memory_gap else 0  # M
        self.memories_at_once = self.chunk // cut.memory_gap + 1 if cut.memory_gap else 0  # K
        self.anchors = num_actors * self.length * self.share  # of one device

    @property
    def nbytes(self) -> int:
        """Of a device's rows and masses."""
        contents = jax.eval_shape(lambda: (self.init(), self.init_masses()))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(contents))

    def init(self) -> Rows:
        """Empty rings, of one device."""

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
        """Of one device's rings: empty, or with what `numbers` gave of their rows."""
        if numbers is None:
            numbers = jnp.zeros((self.num_actors * self.length, self.share))
        of_rows, ranks = self._rank(numbers) if self.ranked else (numbers, ())
        flat = of_rows.reshape(-1)
        counts = sums.build(sums.presence(flat)) if self._uniform else ()
        return Masses(of_rows, sums.build(flat), jnp.sum(of_rows > 0, dtype=jnp.int32)[None], counts, ranks)

    def numbers(self, masses: Masses) -> chex.Array:
        """All that has to be known of `masses`, [A T, E]: p of each item where they go by ranks, else p^alpha."""
        return masses.ranks.priorities if self.ranked else masses.of_rows

    def rank(self, masses: Masses) -> Masses:
        """Of rank-based priorities: every item's mass by its rank among all of its device's, as priorities are now.
        Those of one priority share no rank: they follow each other as they lie in the rings."""
        return self.init_masses(masses.ranks.priorities)

    def _rank(self, priorities: chex.Array) -> tuple[chex.Array, Ranks]:
        flat = priorities.reshape(-1)
        ascending, order = jax.lax.sort((flat, jnp.arange(self.anchors)), num_keys=1)
        masses = jnp.zeros(self.anchors).at[order].set(self._mass_of_rank(self.anchors - jnp.arange(self.anchors)))
        return jnp.where(flat > 0, masses, 0.0).reshape(priorities.shape), Ranks(priorities, ascending)

    def _mass_of_rank(self, rank: chex.Array) -> chex.Array:
        return jnp.maximum(rank.astype(jnp.float32) ** -self._exponent, LEAST_MASS)

    def write(self, rows: Rows, chunk: Chunk) -> Rows:
        """Puts a chunk's rows in their place."""

        def put(ring, new):
            # By a scatter: XLA's CPU backend takes ten times as long over a dynamic_update_slice of a large ring.
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
        """Has new `items` of these `priorities`, and none at the anchors `gone`; no anchor is in both. What is as large
        as `anchors` stands for none. `change`: in the number of items."""
        index = jnp.concatenate([items, gone])
        values = jnp.concatenate([self._number(priorities, jnp.ones(len(items))), jnp.zeros(len(gone))])
        # One scatter, and no look at what was there: else XLA's CPU backend copies all masses.
        return self._set(masses._replace(count=masses.count + change), index, values)

    def look(self, rows: Rows, items: chex.Array) -> Sample:
        """The items at these anchors."""
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
        """With a chunk's rows and items. `priority`: of an Agent; `params`: that acted."""
        rows = self.write(rows, chunk)
        new = self._priorities(priority, rows, chunk.items, params)
        return rows, self.exchange(masses, chunk.items, new, chunk.gone, chunk.change)

    def add(self, priority: Priority | None, rows: Rows, masses: Masses, items: chex.Array, params: Params) -> Masses:
        """With further items of a chunk, in whose change they are counted already."""
        new = self._priorities(priority, rows, items, params)
        return self.exchange(masses, items, new, items[:0], jnp.zeros(1, jnp.int32))

    def _priorities(self, priority: Priority | None, rows: Rows, items: chex.Array, params: Params) -> Any:
        """Those of new items; 1 for all where there is no `priority`."""
        if priority is None:
            return jnp.ones(len(items))
        sample = self.look(rows, jnp.minimum(items, self.anchors - 1))
        return priority(params, sample if isinstance(sample.steps, Step) else sample.steps)

    def draw(self, rows: Rows, masses: Masses, key: chex.PRNGKey, size: int) -> tuple[Sample, chex.Array]:
        """This device's `size` items of a batch, and their anchors.

        An item of device d is drawn with probability P_d(i) / devices; the likelihood is that times the number of all
        devices' items, so that importance weights are right for the mixture. Of a table with a `uniform_fraction` u,
        P_d(i) is (1 - u) of what its priority gives it and u of one in the device's number of items.
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
        """Gives items [B] that were drawn new priorities; one that is not finite leaves its item the old one."""
        return self._set(masses, items, self._number(priorities, self.numbers(masses).reshape(-1)[items]))

    def _number(self, priorities: chex.Array, otherwise: chex.Array) -> chex.Array:
        """What `numbers` is to hold of items; `otherwise` of those whose priority is not finite."""
        exponent = 1.0 if self.ranked else self._exponent
        numbers = jnp.maximum(jnp.maximum(priorities, 0.0) ** exponent, LEAST_MASS)
        return jnp.where(jnp.isfinite(numbers), numbers, otherwise)

    def _set(self, masses: Masses, index: chex.Array, values: chex.Array) -> Masses:
        """`values`: of `numbers`, of the anchors `index`."""

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
    """Rows that the table's items take, at least."""
    return table.max_size * getattr(table.items, "period", 1)
