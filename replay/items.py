"""What travels through tables: pytrees of arrays, flattened to Reverb's columns and back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorflow as tf

from agents.agent import Agent, DiscreteActions, EnvironmentSpec, Memory, Step, TimeStep


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
    memory = jax.eval_shape(lambda: agent.memory(num_envs))
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
    step, memory, _ = step_structs(agent, spec, num_envs)
    steps = jax.tree.map(lambda x: jax.ShapeDtypeStruct((table.window.length, *x.shape), x.dtype), step)
    return Structure(Block(steps, memory, np.int64(0)))


def params_structure(agent: Agent, spec: EnvironmentSpec) -> Structure:
    """The structure of what actors pull."""
    version = Version(np.int64(0), np.int64(0))
    return Structure((version, step_structs(agent, spec, 1)[2]))
