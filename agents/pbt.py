"""Population-based training: who copies whom (exploit), and how copied hyperparameters are varied (explore).

Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846, sections 3 and 4.1. N members learn side by side. From time to
time a member compares the returns of its last K episodes with those of its peers. If it falls behind, it copies the
state of a better member and varies the hyperparameters in that state.

Deviations: a member that has not finished an episode neither copies nor is copied. A member whose parameters are no
longer finite always copies. A hyperparameter on the scale 'step' is moved by addition, which is Mix & Match's rule
(Czarnecki et al. 2018, https://arxiv.org/abs/1806.01780, section 4).

The exploit rules map returns to donors. Returns, float32 [N, K], are NaN where a member has fewer episodes, and minus
infinity for a member that has diverged. Donors, int32 [N], name the member whose state each member continues with; its
own number means that it keeps its own state.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

FRACTION = 0.2  # truncation selection: share of members that copy, and that are copied (section 4.1.1)
SIGNIFICANCE = 0.05  # level of the one-sided t-test
FACTORS = (0.8, 1.2)  # by which `perturb` multiplies
RESAMPLED = 0.25  # probability that `resample` draws a hyperparameter anew


class Range(NamedTuple):
    """The range of a hyperparameter, and the scale on which it is drawn and moved."""

    scale: Literal["log", "linear", "step"]
    low: float
    high: float
    step: float = 0.0  # with scale 'step': the amount that is added or subtracted


Ranges = Mapping[str, Range]


def draw(key: jax.Array, ranges: Ranges, size: int) -> dict[str, chex.Array]:
    """Draws initial values, float32 [size], uniform on their scales, for every hyperparameter that is not on the scale
    'step'. Those on that scale start at the value in the agent's config."""
    return {
        name: _draw(jax.random.fold_in(key, index), range_, size)
        for index, (name, range_) in enumerate(ranges.items())
        if range_.scale != "step"
    }


def _draw(key: jax.Array, range_: Range, size: int) -> chex.Array:
    low, high = (jnp.log(x) if range_.scale == "log" else x for x in (range_.low, range_.high))
    x = jax.random.uniform(key, (size,), jnp.float32, low, high)
    return jnp.clip(jnp.exp(x) if range_.scale == "log" else x, range_.low, range_.high)


def scores(returns: chex.Array) -> chex.Array:
    """Returns each member's mean return, [N]; NaN for a member without episodes."""
    return jnp.nanmean(returns, axis=1)


def truncation(key: jax.Array, returns: chex.Array) -> chex.Array:
    """Has each of the worst fifth of members copy a random one of the best fifth; a fifth is at least one member.

    Only members with a score count. A member copies nobody whose score is not higher, and a lone member copies nobody.
    """
    score = scores(returns)
    size = len(score)
    known = ~jnp.isnan(score)
    cut = jnp.minimum(jnp.maximum(1, jnp.round(FRACTION * known.sum()).astype(int)), known.sum() // 2)
    order = jnp.lexsort((-score, ~known))  # the best first, the diverged after them, the unknown last
    place = jnp.argsort(order)
    worst = known & (place >= known.sum() - cut)
    best = order[jax.random.randint(key, (size,), 0, jnp.maximum(cut, 1))]
    return jnp.where(worst & (score[best] > score), best, jnp.arange(size))


def tournament(key: jax.Array, returns: chex.Array) -> chex.Array:
    """Has each member meet another one at random and copy it if its score is higher (section 4.2.1)."""
    score = scores(returns)
    other = _opponents(key, len(score))
    return jnp.where(score[other] > score, other, jnp.arange(len(score)))


def t_test(key: jax.Array, returns: chex.Array) -> chex.Array:
    """Selects as `tournament` does, but copies only if Welch's t-test also finds the other better (section 4.1.1)."""
    score = scores(returns)
    other = _opponents(key, len(score))
    count = jnp.sum(~jnp.isnan(returns), axis=1)
    free = jnp.maximum(count - 1, 1)
    variance = jnp.nanvar(returns, axis=1) / free  # of the mean return: the unbiased sample variance / count
    total, square = variance + variance[other], variance**2 / free
    degrees = total**2 / (square + square[other] + 1e-30)
    t = (score[other] - score) / jnp.sqrt(total + 1e-30)
    # P(T > t) of Student's distribution, t > 0, by the regularised incomplete beta function.
    p = 0.5 * jax.scipy.special.betainc(0.5 * degrees, 0.5, degrees / (degrees + t**2))
    better = (score[other] > score) & (p < SIGNIFICANCE) & (count > 1) & (count[other] > 1)
    diverged = jnp.isneginf(score) & (score[other] > score)
    return jnp.where(better | diverged, other, jnp.arange(len(score)))


def _opponents(key: jax.Array, size: int) -> chex.Array:
    """Draws another member for each member, uniformly."""
    return (jnp.arange(size) + jax.random.randint(key, (size,), 1, size)) % size


EXPLOIT: dict[str, Callable[[jax.Array, chex.Array], chex.Array]] = {
    "truncation": truncation,
    "tournament": tournament,
    "t_test": t_test,
    "none": lambda key, returns: jnp.arange(len(returns)),
}


def perturb(key: jax.Array, value: chex.Array, range_: Range) -> chex.Array:
    """Multiplies the value by 0.8 or 1.2, or on the scale 'step' adds or subtracts a step; clips it to the range."""
    up = jax.random.bernoulli(key, shape=value.shape)
    if range_.scale == "step":
        moved = value + jnp.where(up, range_.step, -range_.step)
    else:
        moved = value * jnp.where(up, FACTORS[1], FACTORS[0])
    return jnp.clip(moved, range_.low, range_.high)


def resample(key: jax.Array, value: chex.Array, range_: Range) -> chex.Array:
    """Draws the value anew with probability 1/4, else keeps it; on the scale 'step' it does what `perturb` does."""
    if range_.scale == "step":
        return perturb(key, value, range_)
    draw_key, choice_key = jax.random.split(key)
    anew = jax.random.bernoulli(choice_key, RESAMPLED, value.shape)
    return jnp.where(anew, _draw(draw_key, range_, value.size).reshape(value.shape), value)


EXPLORE: dict[str, Callable[[jax.Array, chex.Array, Range], chex.Array]] = {
    "perturb": perturb,
    "resample": resample,
    "none": lambda key, value, range_: value,
}


def explore(key: jax.Array, rule: str, values: Mapping[str, Any], ranges: Ranges) -> dict[str, chex.Array]:
    """Varies each value independently by the `rule`, a key of EXPLORE."""
    return {
        name: EXPLORE[rule](jax.random.fold_in(key, index), jnp.asarray(values[name], jnp.float32), range_)
        for index, (name, range_) in enumerate(ranges.items())
    }


def member_of(environment: Any, members: int, tasks: int = 1) -> Any:
    """Returns the member of a vectorised population that owns an environment; each owns whole rounds of the tasks."""
    return environment // tasks % members
