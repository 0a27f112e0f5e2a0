"""The types that every room shares: a step of experience, an environment's spec, an agent, the data it asks for.

B is the number of parallel environments (or sequences), T a length in time. Arrays are time-major, [T, B, ...].
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

# The mapped axis over which a learner's devices average; `pmean` below is the only user inside agents/.
AXIS = "devices"

Params = Any  # a pytree of arrays: what actors pull
State = Any  # an agent's own NamedTuple: params, optimiser state, hypers, step count
Memory = Any  # a pytree of [B, ...] arrays carried from one action to the next
Extras = dict[str, Any]  # name -> [B, ...]: what the update needs from acting


class TimeStep(NamedTuple):
    """What the environments say at time t, before the action a_t."""

    observation: Any  # [B, ...] o_t
    reward: Any  # float32 [B] r_t, which arrived with o_t; 0 where first
    discount: Any  # float32 [B] 0 iff o_t is terminal; 1 on truncation
    first: Any  # bool [B] o_t opens an episode
    last: Any  # bool [B] o_t closes one: the next action is thrown away and the next row is a first


class Step(NamedTuple):
    """One row of experience; a trajectory is Steps stacked to [T+1, B, ...]."""

    observation: Any  # o_t
    action: Any  # a_t
    reward: Any  # r_{t+1}
    discount: Any  # discount_{t+1}: 0 iff o_{t+1} is terminal. Gamma is the learner's
    first: Any  # o_t opens an episode
    extras: Extras


class Sample(NamedTuple):
    """What an update consumes."""

    steps: Step  # [T+1, B, ...]
    memory: Memory  # [B, ...] the memory before row 0


class Feedback(NamedTuple):
    """What an update reports."""

    metrics: dict[str, Any]  # scalars


@dataclasses.dataclass(frozen=True)
class DiscreteActions:
    """Actions 0 .. num_actions - 1, int32 [B]."""

    num_actions: int


@dataclasses.dataclass(frozen=True)
class BoundedActions:
    """Actions in [low, high], float32 [B, *shape]."""

    low: np.ndarray
    high: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.low.shape


@dataclasses.dataclass(frozen=True)
class EnvironmentSpec:
    """One environment's observation (without the batch axis) and action."""

    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype
    actions: DiscreteActions | BoundedActions


@dataclasses.dataclass(frozen=True)
class Window:
    """How a stream of Steps becomes items: `length` rows, a new item every `period` rows, across episodes."""

    length: int
    period: int


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """A Reverb table as data; replay/ builds it. `max_size` counts sequences."""

    name: str
    window: Window
    kind: Literal["queue"]
    max_size: int


class Agent(NamedTuple):
    """An algorithm: a record of pure functions, as in optax."""

    init: Callable[[jax.Array], State]  # key -> State
    policy: Callable[[State], Params]  # what actors pull
    memory: Callable[[int], Memory]  # num_envs -> Memory before the first step
    act: Callable[..., tuple[Any, Extras, Memory]]  # (params, key, timestep, memory) explores
    act_greedily: Callable[..., tuple[Any, Extras, Memory]]  # likewise, for evaluation
    update: Callable[[State, jax.Array, Sample], tuple[State, Feedback]]
    tables: tuple[TableSpec, ...]
    batch_size: int  # sequences in one update's sample, over all devices of a host


def check_ranges(
    config: Any,
    *,
    counts: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    not_negative: tuple[str, ...] = (),
    fractions: tuple[str, ...] = (),
) -> None:
    """Raises ValueError, naming the field, unless the `counts` are 1 or more, the `positive` above 0 and finite, the
    `not_negative` 0 or more and finite, and the `fractions` within [0, 1]."""
    rules = [(name, "at least 1", lambda x: x >= 1) for name in counts]
    rules += [(name, "0 or more and finite", lambda x: 0 <= x < float("inf")) for name in not_negative]
    rules += [(name, "above 0 and finite", lambda x: 0 < x < float("inf")) for name in positive]
    rules += [(name, "within [0, 1]", lambda x: 0 <= x <= 1) for name in fractions]
    for name, wanted, holds in rules:
        if not holds(getattr(config, name)):
            raise ValueError(f"config.{name} must be {wanted}, not {getattr(config, name)}")


def pmean(tree: Any) -> Any:
    """Averages over the learner's devices where an update runs on several; elsewhere the identity.

    So the same update runs under pmap, under vmap(axis_name=AXIS) and under a plain jit.
    """
    try:
        return jax.lax.pmean(tree, AXIS)
    except NameError:  # the axis is not bound: one device, no mapping
        return tree
