"""A policy and a value from one network, and the memory that acting and learning share, for agents of blocks of rows.

Sizes: T rows of time, B environments, P outputs of the policy.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from agents.agent import EnvironmentSpec, TimeStep
from agents.parts import reward_scale, stacking
from agents.parts.networks import ActorCritic, LSTMState
from agents.parts.policies import Policy, make_policy
from agents.parts.torsos import check_frames


class Memory(NamedTuple):
    """What acting carries from step to step; empty where the config has no use for it."""

    frames: chex.Array | None  # uint8 [B, frame_stack - 1, H, W]
    lstm: LSTMState | tuple[()]
    discounted_return: Any = ()  # float32 [B], of the episode so far, by which rewards are brought to scale


class Functions(NamedTuple):
    """What acting and learning are made of."""

    policy: Policy
    init: Any  # key -> params
    memory: Any  # (num_envs, ranks) -> Memory
    # (params, observation [T, B, ...], first [T, B], Memory) -> outputs [T, B, P], values [T, B], Memory after them
    unroll: Any
    # `unroll` in two: (observation [T, B, ...], first [T, B], Memory) -> what the network sees [T, B, ...], the frames
    # after the last row; and (params, seen, first, LSTM's state) -> outputs, values, LSTM's state
    see: Any
    heads: Any
    outputs: Any  # (params, TimeStep, Memory) -> the policy's outputs [B, P], the next Memory
    keep: Any  # (raw actions, the next Memory) -> Extras: what learning needs of acting, whatever the algorithm


def functions(agent: str, config: Any, spec: EnvironmentSpec, separate_value: bool = False) -> Functions:
    """Those of the `agent` by that name.

    Args:
      agent: whose name an error gives.
      config: has the fields torso, frame_stack, hidden_sizes, activation, lstm_size and dtype of the network, and
        sigma, sigma_initial and squash of the policy, and normalize_rewards and discount of `reward_scale`.
      spec: the environment's.
      separate_value: the value has a torso of its own.

    Raises:
      ValueError: a network that does not fit the observation, an action without bounds, or an LSTM where the value has
        a torso of its own.
    """
    shape, stack = spec.observation_shape, config.frame_stack
    check_frames(config.torso, stack, shape)
    if separate_value and config.lstm_size:
        raise ValueError("config.separate_value=True is for networks without an LSTM: give config.lstm_size=0")
    policy = make_policy(agent, spec, config.sigma, config.sigma_initial, config.squash)
    network = ActorCritic(
        torso=config.torso,
        num_outputs=policy.num_outputs,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        lstm_size=config.lstm_size,
        dtype=jnp.dtype(config.dtype),
        num_free=policy.num_free,
        separate_value=separate_value,
    )

    def memory(num_envs: int, ranks: Any) -> Memory:
        del ranks
        frames = stacking.no_frames(num_envs, stack, shape, spec.observation_dtype)
        return Memory(frames, network.initial_state(num_envs), reward_scale.start(config, num_envs))

    def see(observation, first, memory: Memory):
        return stacking.see(config.torso, observation, first, memory.frames)

    def init(key: jax.Array) -> Any:
        first, batch = jnp.ones((1, 1), bool), memory(1, None)
        seen, _ = see(jnp.zeros((1, 1, *shape), spec.observation_dtype), first, batch)
        return network.init(key, seen, first, batch.lstm)

    def heads(params, seen, first, lstm):
        return network.apply(params, seen, first, lstm)

    def unroll(params, observation, first, memory: Memory):
        seen, frames = see(observation, first, memory)
        outputs, values, lstm = heads(params, seen, first, memory.lstm)
        return outputs, values, memory._replace(frames=frames, lstm=lstm)

    def outputs(params, timestep: TimeStep, memory: Memory):
        outputs, _, memory = unroll(params, timestep.observation[None], timestep.first[None], memory)
        discounted_return = reward_scale.follow(config, memory.discounted_return, timestep)
        return outputs[0], memory._replace(discounted_return=discounted_return)

    def keep(raw, memory: Memory):
        return policy.keep(raw) | reward_scale.keep(memory.discounted_return)

    return Functions(policy, init, memory, unroll, see, heads, outputs, keep)
