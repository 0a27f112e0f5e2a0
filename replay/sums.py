"""A tree of sums over masses, for sampling items in proportion to them: on a device, inside a compiled function.

Each sum is over FAN_OUT of the level below. Sampling goes down the tree, setting goes up it; both look at FAN_OUT
numbers a level. Sums are computed from what they are of, never by adding differences, so that nothing drifts.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

FAN_OUT = 16  # measured on a CPU, of 2 to 1,024: the fewest microseconds to sample and to set 32 to 2,048 of a million

Sums = tuple[chex.Array, ...]  # the lowest level first, each padded to a multiple of FAN_OUT; the last has FAN_OUT


def presence(masses: chex.Array) -> chex.Array:
    """1 of what has any mass, else 0."""
    return (masses > 0).astype(masses.dtype)


def build(masses: chex.Array) -> Sums:
    """The sums over `masses`, float32 [N], N a multiple of FAN_OUT."""
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
    """The sums once the `masses` at `index`, int32 [n], have changed; an index of N or more is passed over. `of`: of
    each mass, what was summed (say, its presence), computed of those alone that are looked at; None: the mass."""
    below, updated = masses, []
    for level in sums:
        index = jnp.where(index < len(below), index // FAN_OUT, len(level))  # beyond the padding: passed over
        inside = jnp.minimum(index, len(below) // FAN_OUT - 1)
        children = below.reshape(-1, FAN_OUT)[inside]
        children = of(children) if of and below is masses else children
        level = level.at[index].set(children.sum(axis=1), mode="drop")
        updated.append(level)
        below = level
    return tuple(updated)


def total(sums: Sums) -> chex.Array:
    """Of all masses."""
    return sums[-1].sum()


def sample(
    masses: chex.Array,
    sums: Sums,
    key: chex.PRNGKey,
    size: int,
    of: Callable[[chex.Array], chex.Array] | None = None,
) -> chex.Array:
    """`size` independent draws, int32 [size]: index i with probability masses[i] / total, or of what `of` makes of the
    masses, as of `update`. Never one of 0, however sums are rounded, while there is any other."""
    rest = jax.random.uniform(key, (size,)) * total(sums)
    node = jnp.zeros(size, jnp.int32)
    levels: Sequence[chex.Array] = (masses, *sums)
    for level in reversed(levels):
        children = level.reshape(-1, FAN_OUT)[node]
        node, rest = _descend(of(children) if of and level is masses else children, node, rest)
        # XLA would compute a level anew for each use of what is below it: inside a loop it then takes 40 s to compile.
        node, rest = jax.lax.optimization_barrier((node, rest))
    return node


def _descend(children: chex.Array, node: chex.Array, rest: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Of each node [n] and its `children` [n, FAN_OUT]: the first whose running sum exceeds `rest`, and what `rest` is
    beyond those before it. Where rounding leaves none, the last that is not 0."""
    pick, before = jnp.zeros_like(node), jnp.zeros_like(rest)
    running, found = jnp.zeros_like(rest), jnp.zeros(node.shape, bool)
    for child in range(FAN_OUT):
        candidate = (children[:, child] > 0) & ~found
        pick, before = jnp.where(candidate, child, pick), jnp.where(candidate, running, before)
        running = running + children[:, child]
        found |= candidate & (running > rest)
    return node * FAN_OUT + pick, rest - before
