"""A policy and a value from one network, and the memory that acting and learning share, for agents of blocks of rows.

Sizes: T rows of time, B environments, P outputs of the policy.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec, Step, TimeStep
from agents.parts import reward_scale, stacking
from agents.parts.networks import ActorCritic, LSTMState, last_inputs
from agents.parts.policies import Policy, make_policy
from agents.parts.torsos import check_frames


class Memory(NamedTuple):
    """What acting carries from step to step; empty where the config has no use for it."""

    frames: chex.Array | None  # uint8 [B, frame_stack - 1, H, W]
    lstm: LSTMState | tuple[()]
    discounted_return: Any = ()  # float32 [B], of the episode so far, by which rewards are brought to scale
    previous_action: Any = ()  # [B, ...], the last one, for the LSTM


class Seen(NamedTuple):
    """What a network sees of rows, [T, B, ...]."""

    observation: Any
    previous: Any  # float32 [T, B, F], the last action and reward, for the LSTM; or ()


class Functions(NamedTuple):
    """What acting and learning are made of."""

    policy: Policy
    init: Any  # key -> params
    memory: Any  # (num_envs, ranks) -> Memory
    unroll: Any  # (params, Step [T, B, ...], Memory) -> outputs [T, B, P], values [T, B]
    # `unroll` in two: (Step, Memory) -> Seen; and (params, Seen, first [T, B], LSTM's state) -> outputs, values
    see: Any
    heads: Any
    outputs: Any  # (params, TimeStep, Memory) -> the policy's outputs [B, P], the next Memory but for the action
    play: Any  # (raw actions, TimeStep, the next Memory) -> actions, Extras that learning needs, the next Memory
    acted: Any  # `Agent.acted`


def functions(
    agent: str, config: Any, spec: EnvironmentSpec, separate_value: bool = False, num_values: int = 1
) -> Functions:
    """Those of the `agent` by that name.

    Args:
      agent: whose name an error gives.
      config: has the fields torso, frame_stack, hidden_sizes, activation, lstm_size, lstm_previous and dtype of the
        network, sigma, sigma_initial and squash of the policy, and normalize_rewards and discount of `reward_scale`.
      spec: the environment's.
      separate_value: the value has a torso of its own.
      num_values: of several, values are [T, B, num_values] where they are else [T, B].

    Raises:
      ValueError: a network that does not fit the observation, an action without bounds, an LSTM where the value has a
        torso of its own, or something for an LSTM where there is none.
    """
    shape, stack = spec.observation_shape, config.frame_stack
    check_frames(config.torso, stack, shape)
    if separate_value and config.lstm_size:
        raise ValueError("config.separate_value=True is for networks without an LSTM: give config.lstm_size=0")
    if config.lstm_previous and not config.lstm_size:
        raise ValueError("config.lstm_previous=True is for networks with an LSTM: give config.lstm_size=256")
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
        num_values=num_values,
    )

    def no_action(num_envs: int) -> chex.Array:
        discrete = not isinstance(spec.actions, BoundedActions)
        action_shape = () if isinstance(spec.actions, DiscreteActions) else spec.actions.shape
        return jnp.zeros((num_envs, *action_shape), jnp.int32 if discrete else jnp.float32)

    def memory(num_envs: int, ranks: Any) -> Memory:
        del ranks
        frames = stacking.no_frames(num_envs, stack, shape, spec.observation_dtype)
        discounted_return = reward_scale.start(config, num_envs)
        previous_action = no_action(num_envs) if config.lstm_previous else ()
        return Memory(frames, network.initial_state(num_envs), discounted_return, previous_action)

    def look(observation, first, action, reward, frames) -> tuple[Seen, Any]:
        """Rows [T, B, ...], of which `action` and `reward` are the last ones before them; and the frames after them."""
        observation, frames = stacking.see(config.torso, observation, first, frames)
        if not config.lstm_previous:
            return Seen(observation, ()), frames
        return Seen(observation, last_inputs(spec.actions, first, action, reward)), frames

    def see(steps: Step, memory: Memory) -> Seen:
        action: Any = ()
        reward: Any = ()
        if config.lstm_previous:
            action = jnp.concatenate([memory.previous_action[None], steps.action[:-1]])
            reward = jnp.concatenate([steps.extras["previous_reward"][:1], steps.reward[:-1]])
        return look(steps.observation, steps.first, action, reward, memory.frames)[0]

    def init(key: jax.Array) -> Any:
        first, batch = jnp.ones((1, 1), bool), memory(1, None)
        observation = jnp.zeros((1, 1, *shape), spec.observation_dtype)
        action = batch.previous_action[None] if config.lstm_previous else ()
        seen, _ = look(observation, first, action, jnp.zeros((1, 1)), batch.frames)
        return network.init(key, seen.observation, first, batch.lstm, seen.previous)

    def forward(params, seen: Seen, first, lstm):
        return network.apply(params, seen.observation, first, lstm, seen.previous)

    def heads(params, seen: Seen, first, lstm):
        outputs, values, _ = forward(params, seen, first, lstm)
        return outputs, values

    def unroll(params, steps: Step, memory: Memory):
        return heads(params, see(steps, memory), steps.first, memory.lstm)

    def outputs(params, timestep: TimeStep, memory: Memory):
        first, action = timestep.first[None], memory.previous_action
        action = action[None] if config.lstm_previous else ()
        seen, frames = look(timestep.observation[None], first, action, timestep.reward[None], memory.frames)
        outputs, _, lstm = forward(params, seen, first, memory.lstm)
        discounted_return = reward_scale.follow(config, memory.discounted_return, timestep)
        return outputs[0], memory._replace(frames=frames, lstm=lstm, discounted_return=discounted_return)

    def acted(memory: Memory, action) -> Memory:
        return memory._replace(previous_action=action)

    def play(raw, timestep: TimeStep, memory: Memory):
        action, extras = policy.to_environment(raw), policy.keep(raw) | reward_scale.keep(memory.discounted_return)
        if config.lstm_previous:
            extras, memory = extras | {"previous_reward": timestep.reward}, acted(memory, action)
        return action, extras, memory

    return Functions(policy, init, memory, unroll, see, heads, outputs, play, acted if config.lstm_previous else None)
