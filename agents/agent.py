"""The types that all parts of the project share: a row of experience, an environment's spec, an agent, its table.

B is the number of parallel environments (or sequences), T a length in time. Arrays are time-major, [T, B, ...].

This module loads without JAX, so that code that only names these types does not wait for JAX to be imported.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import jax

# The name of the mapped axis over which a learner averages its devices' results.
AXIS = "devices"

Params = Any  # a pytree of arrays that actors pull from the learner
# The learner's state, a NamedTuple of each agent's own: parameters, optimiser state, hyperparameters, update count. If
# it has a field `env_steps`, the learner sets it before each update to the environment steps that the run has made so
# far, for quantities that change during a run, such as a decaying learning rate.
State = Any
Memory = Any  # a pytree of [B, ...] arrays that acting carries from one action to the next
Extras = dict[str, Any]  # name -> [B, ...]: results of acting that the update needs


class TimeStep(NamedTuple):
    """The observations, rewards and episode ends of a batch of environments at time t, before the action a_t."""

    observation: Any  # [B, ...] o_t
    reward: Any  # float32 [B] r_t, which arrived with o_t; 0 where `first`
    discount: Any  # float32 [B] 0 iff o_t is terminal; 1 on truncation
    first: Any  # bool [B] o_t opens an episode
    last: Any  # bool [B] o_t closes an episode: the next action is thrown away, and the next row is a `first`


class Step(NamedTuple):
    """One row of experience, [B, ...]; a trajectory is rows stacked to [T+1, B, ...]."""

    observation: Any  # o_t
    action: Any  # a_t
    reward: Any  # r_{t+1}
    discount: Any  # discount_{t+1}: 0 iff o_{t+1} is terminal, else 1; the learner multiplies it by gamma
    first: Any  # o_t opens an episode
    extras: Extras

    @property
    def live(self) -> Any:
        """Returns float32 [T, B] for a trajectory [T+1, B, ...]: 1 where row t is a transition, else 0.

        The row before a `first` is not a transition: it is either padding, or an episode's last observation, whose
        action was thrown away.
        """
        return 1.0 - self.first[1:]


class Transition(NamedTuple):
    """An n-step transition, [B, ...]: n steps of one episode, or fewer where the episode ends before."""

    observation: Any  # o_t
    action: Any  # a_t
    reward: Any  # r_{t+1} + gamma r_{t+2} + ... + gamma^{n-1} r_{t+n}
    discount: Any  # gamma^n, 0 iff o_{t+n} is terminal
    next_observation: Any  # o_{t+n}


class Sample(NamedTuple):
    """The batch of experience that one update learns from."""

    steps: Any  # Step [T+1, B, ...]; where the table's items are transitions, Transition [B, ...]
    memory: Memory = ()  # [B, ...] the memory before row 0; with Sequences, before the first row that is not padding
    likelihood: Any = ()  # float32 [B], from a replay: N P(i), how many times likelier than by uniform sampling


class Gradient(NamedTuple):
    """A gradient that a worker computes from one sample, and that a learner applies."""

    gradient: Any  # the gradient that `Agent.gradient` returned
    metrics: dict[str, Any]  # float32 scalars of the same sample
    learner_steps: Any  # int64, the version of the parameters at which the gradient was computed
    env_steps: Any  # int64, transitions that the worker made since its last gradient


class Feedback(NamedTuple):
    """The report of an update."""

    metrics: dict[str, Any]  # scalars
    priorities: Any = ()  # float32 [B]: the new priorities of the sampled items, before the priority exponent


@dataclasses.dataclass(frozen=True)
class DiscreteActions:
    """Discrete actions 0 .. num_actions - 1, int32 [B]."""

    num_actions: int


@dataclasses.dataclass(frozen=True)
class BoundedActions:
    """Continuous actions in [low, high], float32 [B, *shape]."""

    low: np.ndarray
    high: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.low.shape


@dataclasses.dataclass(frozen=True)
class FactoredActions:
    """Actions that make a choice for each of F factors, int32 [B, F]: for factor f, one of 0 .. sizes[f] - 1."""

    sizes: tuple[int, ...]
    small: tuple[tuple[int, ...], ...] = ()  # a few actions, F numbers each, with which much can already be done

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)


@dataclasses.dataclass(frozen=True)
class EnvironmentSpec:
    """The observations (without the batch axis) and actions of one environment."""

    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype
    actions: DiscreteActions | BoundedActions | FactoredActions
    max_episode_steps: int | None = None  # actions after which an episode is truncated; None: not known
    num_tasks: int = 1  # N, the tasks in one batch of environments; environment i has task i mod N
    # Gymnasium's (observation space, action space), if the observations and actions above were made from the kinds of
    # these two spaces alone; else None.
    spaces: Any = dataclasses.field(default=None, compare=False)

    @property
    def frame_sides(self) -> tuple[int, ...]:
        """Returns the height and width of observations that are frames, and () where they are not."""
        frames = self.observation_dtype == np.uint8 and len(self.observation_shape) in (2, 3)
        return self.observation_shape[:2] if frames else ()


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Items of `length` rows of a batch of environments, across episode ends, and of the observation o_T after them.

    Row T holds only o_T, from which values are bootstrapped, and its `first`; its other fields are 0. An item is
    complete when o_T arrives, and the actor acts on o_T with the parameters of the next item. With `next_action` row T
    is a whole row, because Sarsa needs a_T: the parameters that acted in the rows before act in row T too, and the next
    item opens with row T.
    """

    length: int  # T: an item's arrays are [T+1, B, ...]
    next_action: bool = False
    one_version: bool = False  # all blocks of a batch are by the same version of the parameters; older ones are dropped


@dataclasses.dataclass(frozen=True)
class WholeEpisodes:
    """Items that each hold one environment's whole episode: all its rows, with the one of its last observation, and
    then padding, which is rows of zeros whose `first` is true."""

    max_steps: int  # actions in the longest episode; an item has one row more


@dataclasses.dataclass(frozen=True)
class Transitions:
    """Items that each are one environment's n-step Transition. A new item begins at every step; it is cut at the
    episode's end and never crosses a reset."""

    n: int
    discount: float  # gamma, by which the n rewards are discounted


@dataclasses.dataclass(frozen=True)
class Stacks:
    """Transitions whose observations are stacks of the newest frames at that time, [stack, ...], the newest last.

    Where an episode has fewer frames so far, its first frame is repeated. A replay keeps each frame once.
    """

    n: int
    discount: float
    stack: int  # frames in a stack, 2 or more


def transitions(n: int, discount: float, stack: int) -> Transitions | Stacks:
    """Returns the items for stacks of `stack` frames, or for single observations where `stack` is 1."""
    return Transitions(n, discount) if stack == 1 else Stacks(n, discount, stack)


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Items of burn_in + length rows of one environment's episode; a new item begins every `period` rows.

    Row `burn_in` of an episode's first sequence is the episode's first row, so that every row lies after the burn-in of
    some sequence. Rows before the episode's first and after its last observation are padding, which is zeros and a true
    `first`. At the episode's end the oldest sequence that is still open is padded and written, unless the sequence
    before it ended with the episode; younger sequences are dropped, because they hold no row that the oldest does not
    hold. `period` is less than `length`, because a sequence's last row only serves to bootstrap.
    """

    burn_in: int
    length: int
    period: int


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Items that each are one Gradient of a worker; a worker keeps the experience that `table` describes to itself."""

    table: TableSpec
    batch_size: int  # sequences in a worker's sample


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """The description of a table of experience, which replay/ builds.

    Sizes count sequences (or transitions, or gradients); a block holds one sequence for each of its environments.
    """

    name: str
    items: Blocks | WholeEpisodes | Transitions | Stacks | Sequences | Gradients  # what one item is
    kind: Literal["queue", "uniform", "prioritized"]  # a queue, whose items are learnt from once each, or a replay
    max_size: int  # a full queue lets its writers wait, a full replay evicts items
    min_size: int = 1  # items that a replay must hold before the first sample is drawn
    samples_per_insert: float = 0.0  # how often each item is sampled on average; 0: no such ratio is enforced
    priority_exponent: float = 1.0  # alpha: item i is sampled with probability p_i^alpha / sum_k p_k^alpha
    priority: Literal["proportional", "rank"] = "proportional"  # rank: 1 / (rank of item i by priority) replaces p_i
    uniform_fraction: float = 0.0  # the share of a prioritized table's samples that is drawn uniformly from all items
    # A full table evicts item i with probability p_i^this / sum_k p_k^this; 0: it evicts the oldest item.
    eviction_exponent: float = 0.0


def queue_table(config: Any, items: Blocks | WholeEpisodes) -> TableSpec:
    """Returns a table whose items are learnt from once each, with room for `config.queue_batches` batches of
    `config.batch_size` sequences."""
    return TableSpec("queue", items, "queue", max_size=config.queue_batches * config.batch_size)


def replay_table(
    config: Any, items: Transitions | Stacks | Sequences, kind: Literal["uniform", "prioritized"]
) -> TableSpec:
    """Returns a table that keeps up to `config.replay_size` items, which are sampled again and again."""
    return TableSpec(
        "replay",
        items,
        kind,
        max_size=config.replay_size,
        min_size=config.min_replay_size,
        samples_per_insert=config.samples_per_insert,
        priority_exponent=config.priority_exponent,
        priority=config.priority,
        uniform_fraction=config.uniform_fraction,
    )


class Version(NamedTuple):
    """The progress of a learner when it published its parameters."""

    learner_steps: Any  # int, updates made
    env_steps: Any  # int, environment steps of the run


class Agent(NamedTuple):
    """An algorithm: a record of pure functions, as in optax."""

    init: Callable[[jax.Array], State]  # key -> State
    policy: Callable[[State], Params]  # returns the parameters that actors pull
    # (num_envs, ranks) -> Memory before the first step. ranks, float32 [num_envs] from 0 to 1, are the environments'
    # places among all environments of the run, for agents whose environments explore to different degrees; or None.
    memory: Callable[[int, Any], Memory]
    act: Callable[..., tuple[Any, Extras, Memory]]  # (params, key, timestep, memory); explores
    act_greedily: Callable[..., tuple[Any, Extras, Memory]]  # likewise, for evaluations; does not explore
    update: Callable[[State, jax.Array, Any], tuple[State, Feedback]]  # (state, key, Sample)
    table: TableSpec  # how its experience travels
    batch_size: int  # sequences in one update's sample, of all hosts together; with --num_learners, of one learner
    # (params, items) -> float32 [B], the priorities of the items that an actor writes. The items are a Transition
    # [B, ...] or, in a table of Sequences, a Sample of sequences. None: every new item has priority 1.
    priority: Callable[[Params, Any], Any] | None = None
    # A device's share of the batch must be a multiple of this number of sequences, because an update cuts the share
    # into equal parts.
    share_multiple: int = 1
    # The two halves of `update`, for workers that compute gradients and a learner that applies them; None if `update`
    # has no such halves. `gradient` reads nothing of `state.opt_state`, which workers do not have.
    gradient: Callable[[State, jax.Array, Sample], tuple[Any, Feedback]] | None = None
    apply: Callable[[State, Any], State] | None = None  # (state, gradient) -> the next state
    # (memory, action) -> the memory as it would be if `act` had chosen this action, for whoever plays another action
    # than `act` returned; None if the memory holds no actions.
    acted: Callable[[Memory, Any], Memory] | None = None
    # True if updates carry something for each environment, such as an eligibility trace, from one sample to the next. A
    # run then has one actor, and its environments are the batch.
    in_order: bool = False


LARGEST = 2**31 - 1  # the largest whole number that a Config may hold: devices count with int32
LEAST, MOST = 1.2e-38, 3.4e38  # the range of a Config's other numbers, 0 apart: devices calculate with float32
MOST_ENV_STEPS = 10**15  # the largest value of a Config's fields named *_env_steps, which the host counts


def check_ranges(
    config: Any,
    *,
    counts: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    not_negative: tuple[str, ...] = (),
    fractions: tuple[str, ...] = (),
    not_above: dict[str, str] | None = None,
) -> None:
    """Raises ValueError, naming the field, unless each field of `config` fits its type, and the `counts` are 1 or more,
    the `positive` above 0, the `not_negative` 0 or more and the `fractions` within [0, 1]. Each field that is a key of
    `not_above` must not exceed the field that is its value.

    A number fits its type if it is not a bool, is finite, and is in the range that a device can hold or, for a whole
    number, count to. The elements of tuple[int, ...] are sizes of 1 or more, and a Literal is one of its choices.
    """
    for name, kind in typing.get_type_hints(type(config)).items():
        _check_type(name, kind, getattr(config, name))
    rules = [(name, "at least 1", lambda x: x >= 1) for name in counts]
    rules += [(name, "0 or more and finite", lambda x: x >= 0) for name in not_negative]
    rules += [(name, "above 0 and finite", lambda x: x > 0) for name in positive]
    rules += [(name, "within [0, 1]", lambda x: 0 <= x <= 1) for name in fractions]
    for name, wanted, holds in rules:
        if not holds(getattr(config, name)):
            raise ValueError(f"config.{name} must be {wanted}, not {getattr(config, name)}")
    for name, limit in (not_above or {}).items():
        value, most = getattr(config, name), getattr(config, limit)
        if value > most:
            raise ValueError(f"config.{name}={value} must not exceed config.{limit}={most}")


def _check_type(name: str, kind: Any, value: Any) -> None:
    arguments = typing.get_args(kind)
    most = MOST_ENV_STEPS if name.endswith("_env_steps") else LARGEST
    if typing.get_origin(kind) is Literal:
        wanted, holds = f"one of {', '.join(map(str, arguments))}", value in arguments
    elif typing.get_origin(kind) is tuple:
        whole = arguments[0] is int
        wanted = f"a tuple of {'whole numbers from 1' if whole else f'finite numbers up to {MOST:.0e}'}"
        holds = isinstance(value, tuple) and all(
            _is_number(arguments[0], item) and (not whole or 1 <= item <= most) for item in value
        )
    elif kind is int:
        wanted, holds = f"a whole number up to {most}", _is_number(int, value) and abs(value) <= most
    elif kind is float:
        wanted, holds = f"a finite number, 0 or from {LEAST:.0e} to {MOST:.0e}", _is_number(float, value)
    else:
        wanted, holds = f"a {kind.__name__}", isinstance(value, kind)
    if not holds:
        raise ValueError(f"config.{name} must be {wanted}, not {value}")


def _is_number(kind: type, value: Any) -> bool:
    if isinstance(value, int | np.integer):
        return not isinstance(value, bool) and (kind is int or abs(int(value)) <= MOST)
    if kind is int or not isinstance(value, float | np.floating):
        return False
    return math.isfinite(value) and (value == 0 or LEAST <= abs(float(value)) <= MOST)


def pmean(tree: Any) -> Any:
    """Averages over the learner's devices; where AXIS is not bound, returns `tree` as it is.

    So the same update runs on a mesh with either mapper, under vmap(axis_name=AXIS) and under a plain jit.
    """
    return _across_devices("pmean", tree)


def pmax(tree: Any) -> Any:
    """Takes the largest over the learner's devices; where AXIS is not bound, returns `tree` as it is."""
    return _across_devices("pmax", tree)


def psum(tree: Any) -> Any:
    """Sums over the learner's devices; where AXIS is not bound, returns `tree` as it is."""
    return _across_devices("psum", tree)


def all_rows(tree: Any) -> Any:
    """Gathers arrays [B, ...] of the learner's D devices to [D B, ...]; where AXIS is not bound, returns them as they
    are."""
    import jax

    try:
        return jax.lax.all_gather(tree, AXIS, tiled=True)
    except NameError:
        return tree


def _across_devices(reduce: str, tree: Any) -> Any:
    import jax  # imported here, so that a mistake on the command line is found before JAX is loaded

    def of(x: Any) -> Any:
        return getattr(jax.lax, reduce)(x, AXIS)

    try:
        return _in_one(of, tree) if jax.process_count() > 1 else of(tree)
    except NameError:  # AXIS is not bound: the update is not mapped over devices
        return tree


def _in_one(reduce: Callable[[Any], Any], tree: Any) -> Any:
    """Applies `reduce` to all float32 arrays joined into one, and to each of the other arrays by itself.

    Between hosts every call takes time, however small the array is, and XLA's CPU backend makes a call for each array.
    """
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    leaves, structure = jax.tree.flatten(tree)
    alike = [jnp.asarray(x).dtype == jnp.float32 for x in leaves]
    joined, apart = ravel_pytree([x for x, is_alike in zip(leaves, alike, strict=True) if is_alike])
    reduced = iter(apart(reduce(joined)) if any(alike) else [])
    leaves = [next(reduced) if is_alike else reduce(x) for x, is_alike in zip(leaves, alike, strict=True)]
    return jax.tree.unflatten(structure, leaves)
