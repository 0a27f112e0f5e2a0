"""The code that agents share if they learn action values from a replay: epsilon-greedy acting, updates, priorities and
target parameters.

It is algorithm 1 of Mnih et al. 2015, https://doi.org/10.1038/nature14236. An agent brings only its network and its
loss, as a `Values`.

Sizes: B environments or transitions, A actions, S stacked frames.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from agents.agent import (
    Agent,
    EnvironmentSpec,
    Feedback,
    Sample,
    TimeStep,
    Transition,
    check_ranges,
    pmax,
    pmean,
    replay_table,
    transitions,
)
from agents.parts import prioritized
from agents.parts.exploration import epsilon_greedy, greedy, linear_epsilon
from agents.parts.networks import QNetwork
from agents.parts.optimization import descend, initial_hypers, make_optimizer, new_every
from agents.parts.stacking import channels_last, no_frames, stack_channels, stack_frames
from agents.parts.torsos import check_frames


class Memory(NamedTuple):
    """The agent's memory from one step to the next: the last frames, if frames are stacked."""

    frames: chex.Array | None  # uint8 [B, frame_stack - 1, H, W]; None where nothing is stacked


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune in a running learner; float32 scalars."""

    learning_rate: Any
    epsilon_initial: Any
    epsilon_final: Any


class State(NamedTuple):
    params: Any  # theta
    target_params: Any  # theta^-
    opt_state: optax.OptState
    max_priority: chex.Array  # float32 scalar, the largest priority so far
    hypers: Hypers
    step: chex.Array  # updates so far, int32


class Policy(NamedTuple):
    """The parameters that actors pull."""

    params: Any
    epsilon: chex.Array  # float32, a scalar or [B]
    max_priority: chex.Array


class Losses(NamedTuple):
    """The loss and what goes with it, for each transition of a batch; float32 [B]."""

    losses: chex.Array  # the update descends on their mean, weighted by importance
    errors: chex.Array  # their absolute values become priorities; smallest where nothing is left to learn
    values: chex.Array  # Q(s_t, a_t)
    metrics: dict[str, Any]  # more scalars for the learner's metrics


class Values(NamedTuple):
    """The functions that an agent brings. They take observations as its network sees them: frames have channels,
    [B, H, W, S].

    Keys are for networks that draw random numbers. In evaluations `values` gets None as its key, and draws none.
    """

    init: Any  # (key, observation) -> params
    values: Any  # (params, key, observation) -> Q(s, .), [B, A]
    losses: Any  # (params, target_params, key, Transition) -> Losses


class Functions(NamedTuple):
    """The functions of a `Values`, but over observations as environments and replays give them."""

    init: Any  # key -> params
    memory: Any  # num_envs -> Memory
    values: Any  # (params, key, TimeStep, Memory) -> Q(s_t, .), [B, A], and the next Memory
    losses: Any  # (params, target_params, key, Transition) -> Losses


def check(
    config: Any,
    counts: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    not_negative: tuple[str, ...] = (),
    fractions: tuple[str, ...] = (),
) -> None:
    """Raises ValueError, naming the field, if a field of `config` is out of range.

    It checks the fields that the Configs of all these agents have, and the agent's own fields that the other arguments
    name, which are as in `check_ranges`.
    """
    check_ranges(
        config,
        counts=("frame_stack", "n_step", "batch_size", "replay_size", "min_replay_size", "target_period", *counts),
        positive=("learning_rate", "optimizer_epsilon", *positive),
        not_negative=(
            *("head_size", "max_gradient_norm", "epsilon_steps", "samples_per_insert"),
            *("priority_exponent", "importance_steps", *not_negative),
        ),
        fractions=(
            *("discount", "rmsprop_decay", "epsilon_initial", "epsilon_final"),
            *("uniform_fraction", "importance_exponent", *fractions),
        ),
        not_above={"min_replay_size": "replay_size"},
    )


class Network(NamedTuple):
    """A Q-network as two functions of observations as it sees them (`Values`)."""

    init: Any  # (key, observation) -> params
    outputs: Any  # (params, key, observation) -> [B, A]; with several atoms an action, [B, A, num_atoms]


def make_network(config: Any, num_actions: int, num_atoms: int = 0, noisy: float = 0.0) -> Network:
    """Returns the QNetwork that a config describes.

    Args:
      config: has the fields torso, hidden_sizes, activation, dueling, head_size and dtype.
      num_actions: A.
      num_atoms: the number of outputs for each action; 0 means one output, without an axis of its own.
      noisy: sigma_0 of the noisy layers; 0 means plain layers. With a key of None there is no noise.
    """
    network = QNetwork(
        torso=config.torso,
        num_actions=num_actions,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        dueling=config.dueling,
        head_size=config.head_size,
        num_atoms=num_atoms,
        noisy=noisy,
        dtype=jnp.dtype(config.dtype),
    )

    def init(key: jax.Array, observation: Any) -> Any:
        return network.init(key, observation[None], jnp.zeros((1, 1), bool), ())

    def outputs(params: Any, key: jax.Array | None, observation: Any) -> chex.Array:
        noise = {"noise": key} if noisy and key is not None else {}
        values: Any = network.apply(params, observation[None], jnp.zeros((1, len(observation)), bool), (), rngs=noise)
        return values[0][0]

    return Network(init, outputs)


def at(outputs: chex.Array, action: chex.Array) -> chex.Array:
    """Selects the outputs of one action in each row: [B, A, ...] and int32 [B] -> [B, ...]."""
    return jax.vmap(lambda row, a: row[a])(outputs, action)


def functions(config: Any, spec: EnvironmentSpec, of: Values) -> Functions:
    """Puts frame stacking around an agent's own functions `of`.

    Raises:
      ValueError: the network does not fit the observation.
    """
    shape, stack = spec.observation_shape, config.frame_stack
    check_frames(config.torso, stack, shape)

    def single(observation) -> chex.Array:
        """Returns single observations as the network sees them."""
        return observation if config.torso == "mlp" else channels_last(observation, 1)

    def stacked(observation) -> chex.Array:
        """Returns a Transition's observations as the network sees them. Stacked frames come as [B, S, H, W] or
        [B, S, H, W, C]."""
        return stack_channels(observation, 1) if stack > 1 else single(observation)

    def init(key: jax.Array) -> Any:
        observation = jnp.zeros((1, stack, *shape) if stack > 1 else (1, *shape), spec.observation_dtype)
        return of.init(key, stacked(observation))

    def memory(num_envs: int) -> Memory:
        return Memory(no_frames(num_envs, stack, shape, spec.observation_dtype))

    def values(params, key, timestep: TimeStep, memory: Memory) -> tuple[chex.Array, Memory]:
        if memory.frames is None:
            return of.values(params, key, single(jnp.asarray(timestep.observation))), memory
        observation, frames = stack_frames(memory.frames, timestep.observation[None], timestep.first[None])
        return of.values(params, key, observation[0]), Memory(frames)

    def losses(params, target_params, key, transition: Transition) -> Losses:
        seen = transition._replace(
            observation=stacked(jnp.asarray(transition.observation)),
            next_observation=stacked(jnp.asarray(transition.next_observation)),
        )
        return of.losses(params, target_params, key, seen)

    return Functions(init, memory, values, losses)


def make_agent(config: Any, f: Functions) -> Agent:
    """Makes the agent of these functions.

    `config` has the fields of dqn.Config, except the few that are DQN's alone.
    """
    optimizer = make_optimizer(
        config.optimizer, config.optimizer_epsilon, config.rmsprop_decay, config.max_gradient_norm, centred=True
    )

    def init(key: jax.Array) -> State:
        params = f.init(key)
        return State(
            params=params,
            target_params=jax.tree.map(jnp.copy, params),  # a copy: an update may overwrite its buffers
            opt_state=optimizer.init(params),
            max_priority=jnp.float32(1),
            hypers=initial_hypers(Hypers, config),
            step=jnp.int32(0),
        )

    def epsilon(state: State) -> chex.Array:
        return linear_epsilon(
            state.hypers.epsilon_initial, state.hypers.epsilon_final, config.epsilon_steps, state.step
        )

    def memory(num_envs: int, ranks: Any = None) -> Memory:
        del ranks
        return f.memory(num_envs)

    def act(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        network_key = jax.random.fold_in(key, 2)  # not one of the two that `epsilon_greedy` splits off
        values, memory = f.values(params.params, network_key, timestep, memory)
        return epsilon_greedy(key, values, params.epsilon), {}, memory

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        values, memory = f.values(params.params, None, timestep, memory)
        return greedy(values), {}, memory

    def loss(params, target_params, key: jax.Array, transition: Transition, weights):
        found = f.losses(params, target_params, key, transition)
        return jnp.mean(weights * found.losses), found

    def gradient(state: State, key: jax.Array, sample: Sample) -> tuple[Any, Feedback]:
        weights = prioritized.weights(config, sample, state.step, config.normalize_weights)
        (total, found), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.target_params, key, sample.steps, weights
        )
        priorities = prioritized.priorities(found.errors) if config.replay == "prioritized" else ()
        metrics = {
            "loss": total,
            "value": found.values.mean(),
            "td_error": jnp.abs(found.errors).mean(),
            "importance_weight": weights.mean(),
            "gradient_norm": optax.tree.norm(gradient),
            "epsilon": epsilon(state),
            **found.metrics,
        }
        return gradient, Feedback(metrics, priorities)

    def apply(state: State, gradient: Any) -> State:
        learning_rate, step = state.hypers.learning_rate, state.step + 1
        params, opt_state = descend(optimizer, gradient, state.opt_state, state.params, learning_rate)
        targets = new_every(config.target_period, step, params, state.target_params)
        return State(params, targets, opt_state, state.max_priority, state.hypers, step)

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        value, feedback = gradient(state, key, sample)
        value, metrics = pmean((value, feedback.metrics))
        state = apply(state, value)
        if config.replay == "prioritized":
            max_priority = jnp.maximum(state.max_priority, pmax(feedback.priorities.max()))
            state = state._replace(max_priority=max_priority)
        metrics |= {"gradient_norm": optax.tree.norm(value)}
        return state, Feedback(metrics, feedback.priorities)

    items = transitions(config.n_step, config.discount, config.frame_stack)
    return Agent(
        init=init,
        policy=lambda state: Policy(state.params, epsilon(state), state.max_priority),
        memory=memory,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=replay_table(config, items, config.replay),
        batch_size=config.batch_size,
        priority=prioritized.largest_priority if config.replay == "prioritized" else None,
        gradient=gradient,
        apply=apply,
    )
