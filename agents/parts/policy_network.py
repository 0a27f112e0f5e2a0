"""A network for policy and value, and its memory, for actor-critics that learn from blocks of rows.

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
    """The agent's memory from one step to the next. A field that the config does not need is () or None."""

    frames: chex.Array | None  # uint8 [B, frame_stack - 1, H, W], the last frames; None where none are stacked
    lstm: LSTMState | tuple[()]
    discounted_return: Any = ()  # float32 [B], the episode's discounted return so far, for `reward_scale`
    previous_action: Any = ()  # [B, ...], the last action, for the LSTM


class Seen(NamedTuple):
    """The network's inputs from rows of experience, [T, B, ...]."""

    observation: Any
    previous: Any  # float32 [T, B, F], the last action and reward, for the LSTM; () without them


class Functions(NamedTuple):
    """The functions that an agent's acting and learning are made of."""

    policy: Policy
    init: Any  # key -> params
    memory: Any  # (num_envs, ranks) -> Memory
    unroll: Any  # (params, Step [T, B, ...], Memory) -> outputs [T, B, P], values [T, B]
    # The two halves of `unroll`:
    see: Any  # (Step, Memory) -> Seen
    heads: Any  # (params, Seen, first [T, B], LSTM's state) -> outputs, values
    # The two halves of acting: from the policy's outputs [B, P] the agent chooses raw actions in between.
    outputs: Any  # (params, TimeStep, Memory) -> outputs, the next Memory but for its previous_action
    play: Any  # (raw actions, TimeStep, that Memory) -> the environment's actions, Extras for learning, the next Memory
    acted: Any  # as `Agent.acted`; None where the memory holds no action


def functions(
    agent: str, config: Any, spec: EnvironmentSpec, separate_value: bool = False, num_values: int = 1
) -> Functions:
    """Makes the network and the functions around it.

    Args:
      agent: the agent's name, for error messages.
      config: has the fields torso, frame_stack, hidden_sizes, activation, lstm_size, lstm_previous and dtype of the
        network, sigma, sigma_initial and squash of the policy, and normalize_rewards and discount of `reward_scale`.
      spec: the environment's.
      separate_value: whether the value has a torso of its own.
      num_values: the number of values for each observation. If it is above 1, values are [T, B, num_values] instead of
        [T, B].

    Raises:
      ValueError: the network does not fit the observation, an action has no finite bounds, the value has a torso of its
        own although there is an LSTM, or `lstm_previous` is set without an LSTM.
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
        """Returns what the network sees of rows [T, B, ...], and the frames to keep for the next call.

        `action` and `reward` are, for each row, the action before it and the reward that came with its observation.
        """
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
