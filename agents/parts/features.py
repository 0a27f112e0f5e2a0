"""Fixed features of an observation: the Fourier basis and tile coding for agents that are linear in them, and plain
vectors for those that need not be.

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

MAX_FEATURES = 20_000  # (order + 1)^d grows fast; beyond this a run would only be slow


class Features(NamedTuple):
    """phi and the factor of the step size of each of its coefficients."""

    size: int  # n
    phi: Callable[[Any], chex.Array]  # x in [0, 1], [B, d] -> float32 [B, n]; of those below the bases, observations
    step_sizes: np.ndarray  # float32 [n]


def scale(observation: chex.Array, low: np.ndarray, high: np.ndarray) -> chex.Array:
    """[B, d] -> float32 [B, d]: low is 0, high is 1, and what is outside is clipped."""
    return jnp.clip((jnp.asarray(observation, jnp.float32) - low) / (high - low), 0.0, 1.0)


def fourier(size: int, order: int) -> Features:
    """cos(pi c^T x) for every c in {0 .. order}^d (Konidaris et al. 2011, 10.1609/aaai.v25i1.7903).

    The step size of coefficient c is divided by ||c||, but for c = 0 (the paper's scaled step sizes).
    """
    _check_number(f"a Fourier basis of order {order} over {size} observations", (order + 1) ** size)
    c = np.array(list(itertools.product(range(order + 1), repeat=size)), np.float32)  # [n, d]
    norms = np.linalg.norm(c, axis=1)

    def phi(x: chex.Array) -> chex.Array:
        return jnp.cos(jnp.pi * jnp.einsum("...d,nd->...n", x, c, precision=jax.lax.Precision.HIGHEST))

    return Features(len(c), phi, 1.0 / np.where(norms > 0, norms, 1.0))


def tiles(size: int, tilings: int, width: int) -> Features:
    """Tile coding: each tiling cuts every dimension into `width` tiles, and one more at the edge for its offset.

    Tiling k is moved by k (1, 3, 5, ..) / tilings of a tile (Sutton and Barto 2018, section 9.5.4). One feature in each
    tiling is 1 and the others are 0; the step size is divided by the number of tilings.
    """
    _check_number(f"{tilings} tilings of {width} tiles over {size} observations", tilings * (width + 1) ** size)
    offsets = np.arange(tilings)[:, None] * (2 * np.arange(size) + 1) % tilings / tilings  # [tilings, d], of a tile
    places = (width + 1) ** np.arange(size)  # a tile's number is its coordinates in base width + 1
    cells = (width + 1) ** size

    def phi(x: chex.Array) -> chex.Array:
        coordinates = jnp.floor(x[..., None, :] * width + offsets.astype(np.float32)).astype(jnp.int32)
        chosen = jax.nn.one_hot((coordinates * places).sum(-1), cells)  # [B, tilings, cells]
        return chosen.reshape(*x.shape[:-1], tilings * cells)

    return Features(tilings * cells, phi, np.full(tilings * cells, 1.0 / tilings, np.float32))


def check_bounds(config: Any) -> None:
    """Raises ValueError unless `config.observation_low` and `config.observation_high` fit one another."""
    if len(config.observation_low) != len(config.observation_high) or not all(
        low < high and np.isfinite(high - low) for low, high in zip(config.observation_low, config.observation_high)
    ):
        raise ValueError(
            f"config.observation_low={config.observation_low} must be finite and below, one for one, "
            f"config.observation_high={config.observation_high}"
        )


def of_observations(config: Any, spec: EnvironmentSpec) -> Features:
    """What a config asks for by `features`, with `order`, or `tilings` and `tiles`, within its bounds.

    `phi` takes observations [B, d]: `config.observation_low` is 0, `config.observation_high` is 1.

    Raises:
      ValueError: the bounds are not one for each of the observation's numbers, or there would be too many features.
    """
    low, high = (np.asarray(x, np.float32) for x in (config.observation_low, config.observation_high))
    if spec.observation_shape != low.shape:
        raise ValueError(
            f"config.observation_low and config.observation_high hold {len(low)} bounds each; "
            f"this environment's observations are {spec.observation_shape}"
        )
    basis = (
        fourier(len(low), config.order)
        if config.features == "fourier"
        else tiles(len(low), config.tilings, config.tiles)
    )
    return basis._replace(phi=lambda observation: basis.phi(scale(observation, low, high)))


def refuse_frames(agent: str, spec: EnvironmentSpec) -> None:
    """Raises ValueError, which names the `agent`, if observations are frames."""
    if spec.frame_sides:
        raise ValueError(f"{agent} has no convolutions and this environment's observations are frames; use impala")


def vector(agent: str, spec: EnvironmentSpec) -> Features:
    """The observation itself, [B, *shape] flattened; the number of a state comes one-hot from the environment, so that
    what is linear in it is a table.

    Raises:
      ValueError: frames, as `refuse_frames` does.
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
        raise ValueError(f"{what} would be {number} features, of {MAX_FEATURES} at most")
