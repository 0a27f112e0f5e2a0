"""What travels through tables: pytrees of arrays, flattened to Reverb's columns and back."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorflow as tf

from agents.agent import Agent, DiscreteActions, EnvironmentSpec, Memory, Step, TimeStep, Transition, Window


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


def step_structs(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> tuple[Step, Memory, Any]:
    """The shapes of a Step, a Memory and the parameters of an agent that acts in `num_envs` environments."""

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((num_envs, *shape), dtype)

    observation = array(spec.observation_dtype, *spec.observation_shape)
    timestep = TimeStep(observation, array(np.float32), array(np.float32), array(np.bool_), array(np.bool_))
    key = jax.eval_shape(jax.random.key, 0)
    memory = jax.eval_shape(lambda: agent.memory(num_envs, None))
    params = jax.eval_shape(lambda key: agent.policy(agent.init(key)), key)
    action, extras, _ = jax.eval_shape(agent.act, params, key, timestep, memory)
    expected = np.dtype(np.int32 if isinstance(spec.actions, DiscreteActions) else np.float32)
    if action.dtype != expected:
        raise TypeError(f"the agent's actions are {action.dtype}; this environment's are {expected}")
    step = Step(observation, action, array(np.float32), array(np.float32), array(np.bool_), extras)
    return step, memory, params


def block_structure(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> Structure:
    """The structure of the Blocks that one actor of `num_envs` environments writes for the agent's queue."""
    (table,) = agent.tables
    assert isinstance(table.window, Window)
    length = table.window.length
    step, memory, _ = step_structs(agent, spec, num_envs)
    steps = jax.tree.map(lambda x: jax.ShapeDtypeStruct((length, *x.shape), x.dtype), step)
    return Structure(Block(steps, memory, np.int64(0)))


def transition_structure(agent: Agent, spec: EnvironmentSpec) -> Structure:
    """The structure of one Transition, without a batch axis."""
    step, _, _ = step_structs(agent, spec, 1)
    number = jax.ShapeDtypeStruct((), np.float32)
    observation, action = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), step[:2])
    return Structure(Transition(observation, action, number, number, observation))


def item_structure(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> Structure:
    """The structure of the items in the agent's table, where an actor has `num_envs` environments."""
    (table,) = agent.tables
    if isinstance(table.window, Window):
        return block_structure(agent, spec, num_envs)
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
        batch = len(leaves[0])
        return [
            np.concatenate([leaves[i].reshape(batch, -1) for i in indices], axis=1)
            for indices in self._columns.values()
        ]

    def unpack(self, columns: Sequence[Any]) -> Any:
        """What `pack` was given."""
        leaves: list[Any] = [None] * len(self._structure.leaves)
        for column, indices in zip(columns, self._columns.values(), strict=True):
            start = 0
            for i in indices:
                shape = self._structure.leaves[i].shape
                size = math.prod(shape)
                leaves[i] = column[:, start : start + size].reshape(-1, *shape)
                start += size
        return self._structure.unflatten(leaves)


def params_structure(agent: Agent, spec: EnvironmentSpec) -> Structure:
    """The structure of what actors pull."""
    version = Version(np.int64(0), np.int64(0))
    return Structure((version, step_structs(agent, spec, 1)[2]))
