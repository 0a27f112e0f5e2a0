"""A tree of sums over masses, to sample items in proportion to their masses on a device, inside a compiled function.

Each sum is over FAN_OUT numbers of the level below. Sampling goes down the tree, and setting a mass goes up it; both
read FAN_OUT numbers on each level. A sum is always computed anew from these numbers, never by adding a difference, so
that rounding errors do not build up.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

FAN_OUT = 16  # the fastest of 2 to 1,024, on a CPU, to sample and to set 32 to 2,048 of a million masses

Sums = tuple[chex.Array, ...]  # the lowest level first, each padded to a multiple of FAN_OUT; the last has FAN_OUT sums


def presence(masses: chex.Array) -> chex.Array:
    """Returns 1 where a mass is above 0, else 0."""
    return (masses > 0).astype(masses.dtype)


def build(masses: chex.Array) -> Sums:
    """Returns the sums over `masses`, float32 [N], where N is a multiple of FAN_OUT."""
    levels: list[chex.Array] = []
    below = masses
    while not levels or len(below) > FAN_OUT:
        below = below.reshape(-1, FAN_OUT).sum(axis=1)
        below = jnp.pad(below, (0, -len(below) % FAN_OUT))
        levels.append(below)
    return tuple(levels)


def update(
    masses: chex.Array, sums: Sums, index: chex.Array, of: Callable[[chex.Array], chex.Array] | None = None
) -> Sums:
    """Returns the sums after the `masses` at `index`, int32 [n], have changed; skips indices of N or more.

    `of` gives the number that is summed for each mass, say its presence; None: the mass itself. It is called only on
    masses that are read.
    """
    below, updated = masses, []
    for level in sums:
        index = jnp.where(index < len(below), index // FAN_OUT, len(level))  # beyond the padding: to be skipped
        inside = jnp.minimum(index, len(below) // FAN_OUT - 1)
        children = below.reshape(-1, FAN_OUT)[inside]
        children = of(children) if of and below is masses else children
        level = level.at[index].set(children.sum(axis=1), mode="drop")
        updated.append(level)
        below = level
    return tuple(updated)


def total(sums: Sums) -> chex.Array:
    """Returns the sum of all masses."""
    return sums[-1].sum()


def sample(
    masses: chex.Array,
    sums: Sums,
    key: chex.PRNGKey,
    size: int,
    of: Callable[[chex.Array], chex.Array] | None = None,
) -> chex.Array:
    """Returns `size` independent draws, int32 [size], of index i with probability masses[i] / total.

    With `of`, as in `update`, the numbers that it gives for the masses are in their place. An index whose number is 0
    is never drawn, however sums are rounded, unless all are 0.
    """
    rest = jax.random.uniform(key, (size,)) * total(sums)
    node = jnp.zeros(size, jnp.int32)
    levels: Sequence[chex.Array] = (masses, *sums)
    for level in reversed(levels):
        children = level.reshape(-1, FAN_OUT)[node]
        node, rest = _descend(of(children) if of and level is masses else children, node, rest)
        # Without the barrier XLA computes a level anew for each use of the next one: a loop takes 40 s to compile.
        node, rest = jax.lax.optimization_barrier((node, rest))
    return node


def _descend(children: chex.Array, node: chex.Array, rest: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Returns for each node [n] the first of its `children` [n, FAN_OUT] whose running sum exceeds `rest`, and `rest`
    less the children before it. If rounding leaves no such child, takes the last that is not 0."""
    pick, before = jnp.zeros_like(node), jnp.zeros_like(rest)
    running, found = jnp.zeros_like(rest), jnp.zeros(node.shape, bool)
    for child in range(FAN_OUT):
        candidate = (children[:, child] > 0) & ~found
        pick, before = jnp.where(candidate, child, pick), jnp.where(candidate, running, before)
        running = running + children[:, child]
        found |= candidate & (running > rest)
    return node * FAN_OUT + pick, rest - before
