"""Population-based training: who copies whom (exploit), and how what was copied is varied (explore).

Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846, sections 3 and 4.1. N members learn side by side. Now and then
a member compares what its last K episodes returned with what its peers' did; where it falls behind, it takes a better
one's state and varies the hyperparameters in it.

Deviations: a member that has not finished an episode neither copies nor is copied; one whose parameters are no longer
finite always copies. A hyperparameter on the scale 'step' is moved by addition, which is Mix & Match's rule
(Czarnecki et al. 2018, https://arxiv.org/abs/1806.01780, section 4).

Returns are float32 [N, K], NaN where a member has fewer episodes, minus infinity where it has diverged. Donors are
int32 [N]: whose state each member goes on with, its own number to keep its own.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

FRACTION = 0.2  # of the population at either end, for truncation selection (section 4.1.1)
SIGNIFICANCE = 0.05  # of a t-test
FACTORS = (0.8, 1.2)
RESAMPLED = 0.25  # probability that a hyperparameter is drawn anew, where `explore` resamples


class Range(NamedTuple):
    """Where a hyperparameter may lie, and how it is drawn and moved."""

    scale: Literal["log", "linear", "step"]
    low: float
    high: float
    step: float = 0.0  # of the scale 'step': what is added or subtracted


Ranges = Mapping[str, Range]


def draw(key: jax.Array, ranges: Ranges, size: int) -> dict[str, chex.Array]:
    """Values of each hyperparameter but those on the scale 'step', which start where their agent has them: float32
    [size], uniform on their scales."""
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
    """The mean of each member's episodes, [N]; NaN of none."""
    return jnp.nanmean(returns, axis=1)


def truncation(key: jax.Array, returns: chex.Array) -> chex.Array:
    """Who is among the worst fifth takes one of the best fifth, at random; a fifth is one member at least."""
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
    """Each meets another at random and takes its state if that one's score is higher (section 4.2.1)."""
    score = scores(returns)
    other = _opponents(key, len(score))
    return jnp.where(score[other] > score, other, jnp.arange(len(score)))


def t_test(key: jax.Array, returns: chex.Array) -> chex.Array:
    """As `tournament`, if Welch's t-test also finds the other better (section 4.1.1)."""
    score = scores(returns)
    other = _opponents(key, len(score))
    count = jnp.sum(~jnp.isnan(returns), axis=1)
    free = jnp.maximum(count - 1, 1)
    variance = jnp.nanvar(returns, axis=1) / free  # of the mean: the sample's over its size
    total, square = variance + variance[other], variance**2 / free
    degrees = total**2 / (square + square[other] + 1e-30)
    t = (score[other] - score) / jnp.sqrt(total + 1e-30)
    # P(T > t) of Student's distribution, t > 0, by the regularised incomplete beta function.
    p = 0.5 * jax.scipy.special.betainc(0.5 * degrees, 0.5, degrees / (degrees + t**2))
    better = (score[other] > score) & (p < SIGNIFICANCE) & (count > 1) & (count[other] > 1)
    diverged = jnp.isneginf(score) & (score[other] > score)
    return jnp.where(better | diverged, other, jnp.arange(len(score)))


def _opponents(key: jax.Array, size: int) -> chex.Array:
    """Another member for each, uniformly."""
    return (jnp.arange(size) + jax.random.randint(key, (size,), 1, size)) % size


EXPLOIT: dict[str, Callable[[jax.Array, chex.Array], chex.Array]] = {
    "truncation": truncation,
    "tournament": tournament,
    "t_test": t_test,
    "none": lambda key, returns: jnp.arange(len(returns)),
}


def perturb(key: jax.Array, value: chex.Array, range_: Range) -> chex.Array:
    """The value times 0.8 or 1.2; on the scale 'step' one step more or less. Within the range."""
    up = jax.random.bernoulli(key, shape=value.shape)
    if range_.scale == "step":
        moved = value + jnp.where(up, range_.step, -range_.step)
    else:
        moved = value * jnp.where(up, FACTORS[1], FACTORS[0])
    return jnp.clip(moved, range_.low, range_.high)


def resample(key: jax.Array, value: chex.Array, range_: Range) -> chex.Array:
    """With probability 1/4 a new draw, else the value; on the scale 'step' as `perturb`."""
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
    """Each value varied by the `rule` of EXPLORE, on its own."""
    return {
        name: EXPLORE[rule](jax.random.fold_in(key, index), jnp.asarray(values[name], jnp.float32), range_)
        for index, (name, range_) in enumerate(ranges.items())
    }


def member_of(environment: Any, members: int, tasks: int = 1) -> Any:
    """Whose an environment of a vectorised population is: whole rounds of the tasks go to one member after another."""
    return environment // tasks % members
