"""The types that every room shares: a step of experience, an environment's spec, an agent, the data it asks for.

B is the number of parallel environments (or sequences), T a length in time. Arrays are time-major, [T, B, ...].

The types need no JAX, so that whoever only names them need not wait for it.
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

# The mapped axis over which a learner's devices average.
AXIS = "devices"

Params = Any  # a pytree of arrays: what actors pull
# An agent's own NamedTuple: params, optimiser state, hypers, step count. The learner sets its `env_steps`, if it has
# them, before each update, for what changes as a run goes on.
State = Any
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

    @property
    def live(self) -> Any:
        """Of a trajectory [T+1, B, ...], float32 [T, B]: 1 where row t is a transition, else 0.

        The row before a `first` is none. It is an episode's last observation, and its action was thrown away; or it is
        padding.
        """
        return 1.0 - self.first[1:]


class Transition(NamedTuple):
    """n steps of one episode as one, [B, ...]; fewer where the episode ends before n."""

    observation: Any  # o_t
    action: Any  # a_t
    reward: Any  # r_{t+1} + gamma r_{t+2} + ... + gamma^{n-1} r_{t+n}
    discount: Any  # gamma^n, 0 iff o_{t+n} is terminal
    next_observation: Any  # o_{t+n}


class Sample(NamedTuple):
    """What an update consumes."""

    steps: Any  # Step [T+1, B, ...], or where the table's items are transitions, Transition [B, ...]
    memory: Memory = ()  # [B, ...] the memory before row 0; of Sequences, before the first row that is no padding
    likelihood: Any = ()  # float32 [B], from a replay: N P(i), how many times likelier than by uniform sampling


class Gradient(NamedTuple):
    """What a worker computes of one sample, and a learner applies."""

    gradient: Any  # as `Agent.gradient` gives it
    metrics: dict[str, Any]  # float32 scalars, those of the sample
    learner_steps: Any  # int64, of the parameters that it is the gradient at
    env_steps: Any  # int64, transitions that the worker made since its last


class Feedback(NamedTuple):
    """What an update reports."""

    metrics: dict[str, Any]  # scalars
    priorities: Any = ()  # float32 [B]: the sampled items' new ones, not yet to the power of the exponent


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
class FactoredActions:
    """An action is a choice for each of F factors, int32 [B, F]: of factor f, one of 0 .. sizes[f] - 1."""

    sizes: tuple[int, ...]
    small: tuple[tuple[int, ...], ...] = ()  # a few of them, each F numbers, with which much can be done already

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)


@dataclasses.dataclass(frozen=True)
class EnvironmentSpec:
    """One environment's observation (without the batch axis) and action."""

    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype
    actions: DiscreteActions | BoundedActions | FactoredActions
    max_episode_steps: int | None = None  # actions after which an episode is truncated; None: not known
    num_tasks: int = 1  # of N tasks in one batch of environments, environment i has task i mod N
    # Gymnasium's (observation space, action space), from which the above was made by their kind alone; else None.
    spaces: Any = dataclasses.field(default=None, compare=False)

    @property
    def frame_sides(self) -> tuple[int, ...]:
        """Height and width of an observation that is a frame; () of one that is none."""
        frames = self.observation_dtype == np.uint8 and len(self.observation_shape) in (2, 3)
        return self.observation_shape[:2] if frames else ()


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Items of `length` rows of a batch of environments, across episodes, and the observation after them, which only
    bootstraps: an item is complete when o_T arrives, and o_T is acted on with the parameters of the next item.

    Row T is o_T and its `first`; its other fields are 0. With `next_action` it is a whole row, for Sarsa's a_T: the
    same parameters act on it that acted before, and the next item opens with it.
    """

    length: int  # T: an item's arrays are [T+1, B, ...]
    next_action: bool = False
    one_version: bool = False  # a batch is of one version's blocks: what is left of older ones is dropped


@dataclasses.dataclass(frozen=True)
class WholeEpisodes:
    """Items that are one environment's episodes: all rows, the last observation's too, then padding: zeros, and
    `first`."""

    max_steps: int  # actions in the longest; an item has one row more


@dataclasses.dataclass(frozen=True)
class Transitions:
    """Items of one environment's n steps: a new one every step, cut at the episode's end, never across a reset."""

    n: int
    discount: float  # gamma, of the n rewards' sum


@dataclasses.dataclass(frozen=True)
class Stacks:
    """Transitions whose observations are the episode's newest frames at that time, [stack, ...], the newest last, its
    first repeated where there are not so many yet. Each frame is kept once."""

    n: int
    discount: float
    stack: int  # 2 or more


def transitions(n: int, discount: float, stack: int) -> Transitions | Stacks:
    """Of single observations where `stack` is 1."""
    return Transitions(n, discount) if stack == 1 else Stacks(n, discount, stack)


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Items of one environment's burn_in + length rows of one episode, a new one every `period` rows.

    The first sequence's row `burn_in` is the episode's first row, so that each row stands beyond the burn-in of one.
    Rows before the episode's first and after its last observation are padding: zeros, and `first`. At the episode's end
    the oldest sequence still open is padded and written, unless the one before it ended with the episode; younger ones
    hold nothing that it does not. `period` is below `length`: a sequence's last row only bootstraps.
    """

    burn_in: int
    length: int
    period: int


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Items that are a worker's Gradients; each worker keeps the experience that `table` describes to itself."""

    table: TableSpec
    batch_size: int  # sequences in a worker's sample


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """A table as data; replay/ builds it. Sizes count sequences, of which a block holds one per environment."""

    name: str
    items: Blocks | WholeEpisodes | Transitions | Stacks | Sequences | Gradients  # what travels
    kind: Literal["queue", "uniform", "prioritized"]
    max_size: int
    min_size: int = 1  # before the first sample
    samples_per_insert: float = 0.0  # how often each item is sampled on average; 0: as it comes
    priority_exponent: float = 1.0  # alpha: item i is sampled with probability p_i^alpha / sum_k p_k^alpha
    priority: Literal["proportional", "rank"] = "proportional"  # rank: 1 / rank of i by its priority is in p_i's place
    uniform_fraction: float = 0.0  # of samples that are drawn from all items alike, of a prioritized table
    eviction_exponent: float = (
        0.0  # a full table loses item i with probability p_i^this / sum_k p_k^this; 0: the oldest
    )


def queue_table(config: Any, items: Blocks | WholeEpisodes) -> TableSpec:
    """A table whose items are each learnt from once. It holds `config.queue_batches` batches of `config.batch_size`
    sequences each."""
    return TableSpec("queue", items, "queue", max_size=config.queue_batches * config.batch_size)


def replay_table(
    config: Any, items: Transitions | Stacks | Sequences, kind: Literal["uniform", "prioritized"]
) -> TableSpec:
    """A table whose items are kept, up to `config.replay_size` of them, and sampled again and again."""
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
    """How far a learner had come when it published its parameters."""

    learner_steps: Any  # int
    env_steps: Any  # int


class Agent(NamedTuple):
    """An algorithm: a record of pure functions, as in optax."""

    init: Callable[[jax.Array], State]  # key -> State
    policy: Callable[[State], Params]  # what actors pull
    # (num_envs, ranks) -> Memory before the first step; ranks, float32 [num_envs] from 0 to 1, say where each stands
    # among all of the run's, for agents whose environments explore unalike.
    memory: Callable[[int, Any], Memory]
    act: Callable[..., tuple[Any, Extras, Memory]]  # (params, key, timestep, memory) explores
    act_greedily: Callable[..., tuple[Any, Extras, Memory]]  # likewise, for evaluation
    update: Callable[[State, jax.Array, Any], tuple[State, Feedback]]  # (state, key, Sample)
    table: TableSpec  # how its experience travels
    batch_size: int  # sequences in one update's sample, over all devices of a host
    # (params, item) -> float32 [B]: the priorities of items that an actor writes: Transition [B, ...] or, of Sequences,
    # a Sample of them. None: 1 for all.
    priority: Callable[[Params, Any], Any] | None = None
    # An update cuts each device's share of the batch into equal parts: the share is a multiple of so many sequences.
    share_multiple: int = 1
    # The two halves of `update`, for workers that compute gradients and a learner that applies them; None: not halved.
    # (state, key, sample) -> (gradient, Feedback); reads no `state.opt_state`, which workers do not have.
    gradient: Callable[[State, jax.Array, Sample], tuple[Any, Feedback]] | None = None
    apply: Callable[[State, Any], State] | None = None  # (state, gradient) -> the next state
    # (memory, action) -> the memory after an act whose action was replaced by this one; None: it holds no actions.
    acted: Callable[[Memory, Any], Memory] | None = None
    # Updates carry something of each environment (an eligibility trace) from one sample to the next: a run has one
    # actor, whose environments are the batch.
    in_order: bool = False


LARGEST = 2**31 - 1  # of a Config's whole numbers: what devices count with
LEAST, MOST = 1.2e-38, 3.4e38  # of its numbers, but for 0: devices have float32
MOST_ENV_STEPS = 10**15  # but environment steps are counted on the host, as far as a run may go


def check_ranges(
    config: Any,
    *,
    counts: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    not_negative: tuple[str, ...] = (),
    fractions: tuple[str, ...] = (),
) -> None:
    """Raises ValueError, naming the field, unless each field of `config` holds what its type says, and the `counts` are
    1 or more, the `positive` above 0, the `not_negative` 0 or more and the `fractions` within [0, 1].

    By its type a number is finite, as a device can hold it, and no bool, a whole number is not beyond what can be
    counted, the elements of tuple[int, ...] are sizes, 1 or more, and a Literal is one of its choices.
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


def check_replay_sizes(config: Any) -> None:
    """Raises ValueError unless `config.min_replay_size` fits in `config.replay_size`."""
    if config.min_replay_size > config.replay_size:
        raise ValueError(
            f"config.min_replay_size={config.min_replay_size} must not exceed config.replay_size={config.replay_size}"
        )


def pmean(tree: Any) -> Any:
    """Averages over the learner's devices where an update runs on several; elsewhere the identity.

    So the same update runs on a mesh by either mapper, under vmap(axis_name=AXIS) and under a plain jit.
    """
    return _across_devices("pmean", tree)


def pmax(tree: Any) -> Any:
    """The largest over the learner's devices, likewise."""
    return _across_devices("pmax", tree)


def psum(tree: Any) -> Any:
    """The sum over the learner's devices, likewise."""
    return _across_devices("psum", tree)


def all_rows(tree: Any) -> Any:
    """Of arrays [B, ...] on each of the learner's D devices those of all, [D B, ...]; likewise."""
    import jax

    try:
        return jax.lax.all_gather(tree, AXIS, tiled=True)
    except NameError:
        return tree


def _across_devices(reduce: str, tree: Any) -> Any:
    import jax  # here: a mistake at the command line is found before JAX is imported

    def of(x: Any) -> Any:
        return getattr(jax.lax, reduce)(x, AXIS)

    try:
        return _in_one(of, tree) if jax.process_count() > 1 else of(tree)
    except NameError:  # the axis is not bound: one device, no mapping
        return tree


def _in_one(reduce: Callable[[Any], Any], tree: Any) -> Any:
    """`reduce` of all float32 arrays side by side, and of each of the others. From one host to another every call takes
    its time, however small the array, and XLA's CPU backend makes one of each."""
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    leaves, structure = jax.tree.flatten(tree)
    alike = [jnp.asarray(x).dtype == jnp.float32 for x in leaves]
    joined, apart = ravel_pytree([x for x, is_alike in zip(leaves, alike, strict=True) if is_alike])
    reduced = iter(apart(reduce(joined)) if any(alike) else [])
    leaves = [next(reduced) if is_alike else reduce(x) for x, is_alike in zip(leaves, alike, strict=True)]
    return jax.tree.unflatten(structure, leaves)
