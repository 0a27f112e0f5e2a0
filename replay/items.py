"""What travels through tables: pytrees of arrays, flattened to Reverb's columns and back."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorflow as tf

from agents.agent import (
    Agent,
    BoundedActions,
    EnvironmentSpec,
    Gradient,
    Gradients,
    Memory,
    Sample,
    Sequences,
    Step,
    TimeStep,
    Transition,
    Transitions,
    Window,
)


class Version(NamedTuple):
    """How far a learner had come when it published its parameters."""

    learner_steps: Any  # int
    env_steps: Any  # int


class Block(NamedTuple):
    """An on-policy item: one window of a batch of environments."""

    steps: Step  # [T+1, B, ...]
    memory: Memory  # [B, ...] before row 0
    learner_steps: Any  # int64, of the parameters that acted in row 0


class Structure:
    """The shapes, dtypes and nesting of one kind of item, so that only flat lists of arrays travel."""

    def __init__(self, example: Any):
        """`example`: the pytree, of arrays or jax.ShapeDtypeStruct."""
        leaves, treedef = jax.tree.flatten(example)
        self.treedef: Any = treedef
        self.leaves = [jax.ShapeDtypeStruct(leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves]

    def flatten(self, item: Any) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in self.treedef.flatten_up_to(item)]

    def unflatten(self, columns: Sequence[Any]) -> Any:
        return self.treedef.unflatten(columns)

    @property
    def signature(self) -> list[tf.TensorSpec]:
        """Reverb's description of a table's columns."""
        return [tf.TensorSpec(leaf.shape, tf.as_dtype(leaf.dtype)) for leaf in self.leaves]


def params_structs(agent: Agent) -> Any:
    """The shapes of the parameters that an agent's actors pull."""
    return jax.eval_shape(lambda key: agent.policy(agent.init(key)), jax.eval_shape(jax.random.key, 0))


def step_structs(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> tuple[Step, Memory]:
    """The shapes of a Step and a Memory of an agent that acts in `num_envs` environments."""

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((num_envs, *shape), dtype)

    observation = array(spec.observation_dtype, *spec.observation_shape)
    timestep = TimeStep(observation, array(np.float32), array(np.float32), array(np.bool_), array(np.bool_))
    key = jax.eval_shape(jax.random.key, 0)
    memory = jax.eval_shape(lambda: agent.memory(num_envs, None))
    action, extras, _ = jax.eval_shape(agent.act, params_structs(agent), key, timestep, memory)
    expected = np.dtype(np.float32 if isinstance(spec.actions, BoundedActions) else np.int32)
    if action.dtype != expected:
        raise TypeError(f"the agent's actions are {action.dtype}; this environment's are {expected}")
    step = Step(observation, action, array(np.float32), array(np.float32), array(np.bool_), extras)
    return step, memory


def block_structure(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> Structure:
    """The structure of the Blocks that one actor of `num_envs` environments writes for the agent's queue."""
    (table,) = agent.tables
    assert isinstance(table.window, Window)
    length = table.window.length
    step, memory = step_structs(agent, spec, num_envs)
    steps = jax.tree.map(lambda x: jax.ShapeDtypeStruct((length, *x.shape), x.dtype), step)
    return Structure(Block(steps, memory, np.int64(0)))


def transition_structure(agent: Agent, spec: EnvironmentSpec) -> Structure:
    """The structure of one Transition, without a batch axis; its observations stacked if the window says so."""
    (table,) = agent.tables
    assert isinstance(table.window, Transitions)
    step, _ = step_structs(agent, spec, 1)
    number = jax.ShapeDtypeStruct((), np.float32)
    observation, action = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), step[:2])
    if table.window.stack > 1:
        observation = jax.ShapeDtypeStruct((table.window.stack, *observation.shape), observation.dtype)
    return Structure(Transition(observation, action, number, number, observation))


def sequence_structure(agent: Agent, spec: EnvironmentSpec) -> Structure:
    """The structure of one sequence, without a batch axis: a Sample of steps [burn_in + length, ...] and memory."""
    (table,) = agent.tables
    assert isinstance(table.window, Sequences)
    rows = table.window.burn_in + table.window.length
    step, memory = step_structs(agent, spec, 1)
    steps = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), step)
    return Structure(Sample(steps, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), memory)))


def gradient_structure(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> Structure:
    """The structure of one Gradient of a worker that acts in `num_envs` environments; `agent` as of `by_gradients`."""
    (table,) = agent.tables
    assert isinstance(table.window, Gradients) and agent.gradient is not None
    own, batch = agent._replace(tables=(table.window.table,)), table.window.batch_size
    item = item_structure(own, spec, num_envs)
    example = item.unflatten(item.leaves)
    if isinstance(example, Block):
        sample = Sample(example.steps, example.memory)
    else:
        steps = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype), example)
        sample = Sample(steps, likelihood=jax.ShapeDtypeStruct((batch,), np.float32))
    state = params_structs(agent)
    gradient, feedback = jax.eval_shape(agent.gradient, state, jax.eval_shape(jax.random.key, 0), sample)
    return Structure(Gradient(gradient, feedback.metrics, np.int64(0), np.int64(0)))


def item_structure(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> Structure:
    """The structure of the items in the agent's table, where an actor has `num_envs` environments."""
    (table,) = agent.tables
    if isinstance(table.window, Window):
        return block_structure(agent, spec, num_envs)
    if isinstance(table.window, Gradients):
        return gradient_structure(agent, spec, num_envs)
    if isinstance(table.window, Sequences):
        return sequence_structure(agent, spec)
    return transition_structure(agent, spec)


class Packing:
    """Many small arrays as few: a structure's leaves side by side, one column per dtype, for Reverb's price is one per
    column and item. A transition of five arrays takes a quarter of the CPU to write and to sample."""

    def __init__(self, structure: Structure):
        """`structure`: of one item, without a batch axis."""
        self._structure = structure
        self._columns: dict[np.dtype, list[int]] = {}  # dtype -> indices of leaves
        for index, leaf in enumerate(structure.leaves):
            self._columns.setdefault(leaf.dtype, []).append(index)

    @property
    def structure(self) -> Structure:
        """Of what `pack` returns, without the batch axis: a list of vectors."""
        leaves = self._structure.leaves
        return Structure(
            [
                jax.ShapeDtypeStruct((sum(math.prod(leaves[i].shape) for i in indices),), dtype)
                for dtype, indices in self._columns.items()
            ]
        )

    def pack(self, items: Any) -> list[np.ndarray]:
        """Leaves [B, ...] -> one [B, size] per dtype."""
        leaves = self._structure.flatten(items)
        return [
            np.concatenate([leaves[i].reshape(len(leaves[i]), -1) for i in indices], axis=1)
            for indices in self._columns.values()
        ]

    def unpack(self, columns: Sequence[Any]) -> Any:
        """What `pack` was given; of columns [T, B, size], leaves [T, B, ...]."""
        leaves: list[Any] = [None] * len(self._structure.leaves)
        for column, indices in zip(columns, self._columns.values(), strict=True):
            start = 0
            for i in indices:
                shape = self._structure.leaves[i].shape
                size = math.prod(shape)
                leaves[i] = column[..., start : start + size].reshape(*column.shape[:-1], *shape)
                start += size
        return self._structure.unflatten(leaves)

    def sample(self, columns: Sequence[np.ndarray]) -> Sample:
        """A batch of packed transitions."""
        return Sample(self.unpack(columns))


class StackedTransition(NamedTuple):
    """What a stacked transition keeps besides its frames."""

    action: Any
    reward: Any
    discount: Any
    steps: Any  # int32, n or fewer: how much later than the observation the next observation is


class StackedPacking:
    """Transitions of stacked frames: n + stack consecutive frames of a stream, which its items share, the last those of
    the next observation; and the small rest, packed."""

    def __init__(self, window: Transitions, structure: Structure):
        """`structure`: of one Transition, without a batch axis."""
        item: Transition = structure.unflatten(structure.leaves)
        self._stack, frame = window.stack, item.observation
        self.frames = window.n + window.stack
        self.rest = Packing(
            Structure(StackedTransition(item.action, item.reward, item.discount, jax.ShapeDtypeStruct((), np.int32)))
        )
        frames = jax.ShapeDtypeStruct((self.frames, *frame.shape[1:]), frame.dtype)
        self.structure = Structure([frames, *self.rest.structure.leaves])

    def sample(self, columns: Sequence[np.ndarray]) -> Sample:
        """A batch of Transitions whose observations are [B, stack, ...]."""
        frames, rest = columns[0], self.rest.unpack(columns[1:])
        next_start = self.frames - self._stack
        rows = (next_start - rest.steps)[:, None] + np.arange(self._stack)
        observation = frames[np.arange(len(frames))[:, None], rows]
        return Sample(Transition(observation, rest.action, rest.reward, rest.discount, frames[:, next_start:]))


class SequencePacking:
    """Sequences: rows, each packed, which items share, and the memory before the first, packed."""

    def __init__(self, structure: Structure):
        """`structure`: of one sequence, as `sequence_structure` gives it."""
        item: Sample = structure.unflatten(structure.leaves)
        rows = item.steps.reward.shape[0]
        self.rows = Packing(Structure(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), item.steps)))
        self.memory = Packing(Structure(item.memory))
        columns = [jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for x in self.rows.structure.leaves]
        self.num_row_columns, self.num_memory_columns = len(columns), len(self.memory.structure.leaves)
        nothing: Step = jax.tree.map(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), item.steps)
        # A row's columns where there is no row.
        self.padding = [column[0] for column in self.rows.pack(nothing._replace(first=np.ones(1, bool)))]
        self.structure = Structure([*columns, *self.memory.structure.leaves])

    def sample(self, columns: Sequence[np.ndarray]) -> Sample:
        """A batch of sequences, steps [T, B, ...] and memory [B, ...]."""
        rows = [column.swapaxes(0, 1) for column in columns[: self.num_row_columns]]
        return Sample(self.rows.unpack(rows), self.memory.unpack(columns[self.num_row_columns :]))


def packing(
    window: Transitions | Sequences | Gradients, structure: Structure
) -> Packing | StackedPacking | SequencePacking:
    """How items of `structure` lie in Reverb's columns, and how to read them."""
    if isinstance(window, Sequences):
        return SequencePacking(structure)
    if isinstance(window, Transitions) and window.stack > 1:
        return StackedPacking(window, structure)
    return Packing(structure)


def params_structure(agent: Agent) -> Structure:
    """The structure of what actors pull."""
    version = Version(np.int64(0), np.int64(0))
    return Structure((version, params_structs(agent)))
