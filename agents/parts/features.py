"""Fixed features of an observation: the Fourier basis and tile coding, for agents that are linear in them, and plain
vectors, for agents that need not be.

B is any batch shape, d the observation's size, n the number of features.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import EnvironmentSpec

MAX_FEATURES = 20_000  # (order + 1)^d grows fast; with more features than this a run would only be slow


class Features(NamedTuple):
    """A feature map phi, and a factor for the step size of each coefficient."""

    size: int  # n
    # [B, d] -> float32 [B, n]. The bases (`fourier`, `tiles`) take x in [0, 1], [B, d]; `of_observations` and `vector`
    # give maps that take observations.
    phi: Callable[[Any], chex.Array]
    step_sizes: np.ndarray  # float32 [n], which multiply the step size


def scale(observation: chex.Array, low: np.ndarray, high: np.ndarray) -> chex.Array:
    """Scales observations [B, d] so that low becomes 0 and high 1, float32 [B, d]; numbers outside are clipped."""
    return jnp.clip((jnp.asarray(observation, jnp.float32) - low) / (high - low), 0.0, 1.0)


def fourier(size: int, order: int) -> Features:
    """Makes the Fourier basis: cos(pi c^T x) for every c in {0 .. order}^d (Konidaris et al. 2011,
    10.1609/aaai.v25i1.7903).

    The step size of coefficient c is divided by ||c||, except for c = 0 (the paper's scaled step sizes).
    """
    _check_number(f"a Fourier basis of order {order} over {size} observations", (order + 1) ** size)
    c = np.array(list(itertools.product(range(order + 1), repeat=size)), np.float32)  # [n, d]
    norms = np.linalg.norm(c, axis=1)

    def phi(x: chex.Array) -> chex.Array:
        return jnp.cos(jnp.pi * jnp.einsum("...d,nd->...n", x, c, precision=jax.lax.Precision.HIGHEST))

    return Features(len(c), phi, 1.0 / np.where(norms > 0, norms, 1.0))


def tiles(size: int, tilings: int, width: int) -> Features:
    """Makes tile coding: each tiling cuts every dimension into `width` tiles, and one more at the edge, since tilings
    are offset.

    Tiling k is offset by k (1, 3, 5, ..) / tilings of a tile (Sutton and Barto 2018, section 9.5.4), modulo one tile.
    One feature in each tiling is 1 and the others are 0; the step size is divided by the number of tilings.
    """
    _check_number(f"{tilings} tilings of {width} tiles over {size} observations", tilings * (width + 1) ** size)
    offsets = np.arange(tilings)[:, None] * (2 * np.arange(size) + 1) % tilings / tilings  # [tilings, d], in tiles
    places = (width + 1) ** np.arange(size)  # a tile's number is its coordinates in base width + 1
    cells = (width + 1) ** size

    def phi(x: chex.Array) -> chex.Array:
        coordinates = jnp.floor(x[..., None, :] * width + offsets.astype(np.float32)).astype(jnp.int32)
        chosen = jax.nn.one_hot((coordinates * places).sum(-1), cells)  # [B, tilings, cells]
        return chosen.reshape(*x.shape[:-1], tilings * cells)

    return Features(tilings * cells, phi, np.full(tilings * cells, 1.0 / tilings, np.float32))


def check_bounds(config: Any) -> None:
    """Raises ValueError unless `config.observation_low` and `config.observation_high` have the same length and each low
    is finite and below its high, which is finite too."""
    if len(config.observation_low) != len(config.observation_high) or not all(
        low < high and np.isfinite(high - low) for low, high in zip(config.observation_low, config.observation_high)
    ):
        raise ValueError(
            f"config.observation_low={config.observation_low} must have as many numbers as config.observation_high="
            f"{config.observation_high}, each finite and below its partner there"
        )


def of_observations(config: Any, spec: EnvironmentSpec) -> Features:
    """Makes the features that `config.features` names: 'fourier' of `order`, else `tilings` tilings of width `tiles`.

    `phi` takes observations [B, d] and scales them: `config.observation_low` becomes 0, `config.observation_high` 1.

    Raises:
      ValueError: there is not one bound for each number of the observation, or there would be too many features.
    """
    low, high = (np.asarray(x, np.float32) for x in (config.observation_low, config.observation_high))
    if spec.observation_shape != low.shape:
        raise ValueError(
            f"config.observation_low and config.observation_high hold {len(low)} bounds each, and must hold one for "
            f"each number of this environment's observations, {spec.observation_shape}"
        )
    basis = (
        fourier(len(low), config.order)
        if config.features == "fourier"
        else tiles(len(low), config.tilings, config.tiles)
    )
    return basis._replace(phi=lambda observation: basis.phi(scale(observation, low, high)))


def refuse_frames(agent: str, spec: EnvironmentSpec) -> None:
    """Raises ValueError, naming the `agent`, if observations are frames."""
    if spec.frame_sides:
        raise ValueError(f"{agent} has no convolutions and this environment's observations are frames; use impala")


def vector(agent: str, spec: EnvironmentSpec) -> Features:
    """Makes features that are the observation itself, [B, *shape] flattened.

    Where a state is a number, the environment shows it one-hot: a linear function of these features is then a table.

    Raises:
      ValueError: observations are frames (`refuse_frames`).
    """
    refuse_frames(agent, spec)
    shape = spec.observation_shape
    size = math.prod(shape)

    def phi(observation: Any) -> chex.Array:
        batch = observation.shape[: observation.ndim - len(shape)]
        return jnp.asarray(observation, jnp.float32).reshape(*batch, size)

    return Features(size, phi, np.ones(size, np.float32))


def _check_number(what: str, number: int) -> None:
    if number > MAX_FEATURES:
        raise ValueError(f"{what} would be {number} features, and {MAX_FEATURES} is the most")
