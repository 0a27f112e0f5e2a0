"""R2D2: distributed Q-learning with an LSTM, from a prioritised replay of sequences and their first LSTM states.

Kapturowski et al. 2019, https://openreview.net/forum?id=r1lyTjAqYX; section numbers below refer to this paper.

Deviations: initial priorities use the values that the actor computed as it acted, for both networks. The loss is the
sum over a sequence's transitions and the mean over the batch, which the paper leaves open; importance weights are
divided by the batch's largest; the gradient's norm is clipped as in Ape-X (Horgan et al. 2018,
https://arxiv.org/abs/1803.00933). Atari rewards are clipped unless `--reward_clip=none`. A full replay evicts its
oldest sequences first.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from agents.agent import (
    Agent,
    EnvironmentSpec,
    Feedback,
    Sample,
    Sequences,
    Step,
    TimeStep,
    check_ranges,
    pmean,
    replay_table,
)
from agents.parts import prioritized, stacking
from agents.parts.exploration import discrete_actions, epsilon_greedy, greedy, ranks_or_zeros
from agents.parts.networks import QNetwork, last_inputs
from agents.parts.optimization import descend, initial_hypers, make_optimizer, new_every
from agents.parts.torsos import check_frames


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings; by default the paper's for Atari."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # newest frames of the episode that the network sees at once; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = (64, 64)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "relu"  # the mlp torso's
    lstm_size: int = 512  # units of the LSTM
    dueling: bool = True  # separate streams for the value and the advantages
    head_size: int = 512  # units of each stream's hidden layer after the LSTM; 0: none
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the network's arithmetic; parameters stay float32

    burn_in: int = 40  # l, rows at the start of a sequence that only bring the LSTM's state up to date
    sequence_length: int = 80  # m, rows after the burn-in, which are learnt from; the last only bootstraps
    overlap: int = 40  # how many of the m rows a sequence shares with the next one
    stored_state: bool = True  # whether the LSTM starts in the state that the actor stored; else in zeros (section 3)

    n_step: int = 5  # n, steps of a target
    discount: float = 0.997  # gamma
    rescaling_epsilon: float = 1e-3  # eps of the value rescaling h
    batch_size: int = 64  # sequences in one update
    learning_rate: float = 1e-4
    adam_epsilon: float = 1e-3
    max_gradient_norm: float = 40.0
    target_period: int = 2500  # updates between copies to the target network

    epsilon: float = 0.4  # of the environment with rank 0; others have epsilon^(1 + epsilon_spread * rank)
    epsilon_spread: float = 7.0  # alpha in epsilon_i = epsilon^(1 + alpha i / (N - 1))

    replay_size: int = 100_000  # sequences
    min_replay_size: int = 1_000  # sequences in the replay before the first update
    samples_per_insert: float = 0.8  # times each sequence is sampled, on average
    priority: Literal["proportional", "rank"] = "proportional"  # priorities follow errors, or 1 / the errors' ranks
    priority_exponent: float = 0.9  # sampling is proportional to priority^priority_exponent
    uniform_fraction: float = 0.0  # fraction of samples that are drawn uniformly from all sequences
    importance_exponent: float = 0.6  # beta, the exponent of importance weights
    priority_eta: float = 0.9  # eta: a priority is eta max |error| + (1 - eta) mean |error| of its sequence

    def __post_init__(self):
        check_ranges(
            self,
            counts=(
                *("frame_stack", "lstm_size", "overlap", "n_step", "batch_size", "target_period"),
                *("replay_size", "min_replay_size"),
            ),
            positive=("learning_rate", "adam_epsilon", "max_gradient_norm"),
            not_negative=(
                *("head_size", "burn_in", "rescaling_epsilon", "epsilon_spread", "samples_per_insert"),
                "priority_exponent",
            ),
            fractions=("discount", "epsilon", "uniform_fraction", "importance_exponent", "priority_eta"),
            not_above={"min_replay_size": "replay_size"},
        )
        for name in ("overlap", "n_step"):
            if getattr(self, name) >= self.sequence_length:
                raise ValueError(
                    f"config.{name}={getattr(self, name)} must be below config.sequence_length={self.sequence_length}"
                )


class Memory(NamedTuple):
    """The values that acting carries from one step to the next."""

    rank: Any  # float32 [B], each environment's place among all of the run's, from 0 to 1
    previous_action: Any  # int32 [B], the last action, an input of the LSTM
    frames: Any  # uint8 [B, frame_stack - 1, H, W]; None if frames are not stacked
    lstm: Any  # LSTMState


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    learning_rate: Any
    discount: Any
    epsilon: Any


class State(NamedTuple):
    params: Any  # theta
    target_params: Any  # theta^-
    opt_state: optax.OptState
    hypers: Hypers
    step: chex.Array  # updates so far, int32


class Policy(NamedTuple):
    """The values that actors pull from the learner, for acting and for initial priorities."""

    params: Any
    epsilon: chex.Array
    discount: chex.Array


def rescale(x: chex.Array, eps: float) -> chex.Array:
    """Computes h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x (section 2.3)."""
    import rlax  # here, not above: where TensorFlow is installed it takes seconds

    return rlax.signed_hyperbolic(x, eps)


def unscale(x: chex.Array, eps: float) -> chex.Array:
    """Computes the inverse of h; eps may be 0.

    rlax.signed_parabolic computes it as a difference of large numbers, with errors of 1e-4 in float32.
    """
    c = eps + 1.0 + jnp.abs(x)
    return jnp.sign(x) * (jnp.square(2.0 * c / (1.0 + jnp.sqrt(1.0 + 4.0 * eps * c))) - 1.0)


def td_errors(
    q: chex.Array, q_target: chex.Array, steps: Step, discount: Any, n: int, eps: float
) -> tuple[chex.Array, chex.Array]:
    """Computes the errors of n-step double Q-learning with rescaled values (section 2.3).

    y_t = h(r_{t+1} + gamma r_{t+2} + ... + gamma^n h^-1(Q(x_{t+n}, a*; theta^-))), a* = argmax_a Q(x_{t+n}, a; theta)

    If the episode's last observation or the last row comes earlier, at x_{t+k} with k < n, the sum ends and bootstraps
    there.

    Args:
      q, q_target: Q(x_t, a; theta) and Q(x_t, a; theta^-), [T, B, A].
      steps: the same rows, [T, B].
      discount: gamma.
      n: the number of steps.
      eps: the eps of h.

    Returns:
      The errors y_t - Q(x_t, a_t; theta), 0 where row t is not a transition, and `live`, 1 where it is one, else 0;
      both float32 [T-1, B]. No gradient passes through y_t.
    """
    live = steps.live
    bootstrap = unscale(jnp.take_along_axis(q_target, greedy(q)[..., None], axis=-1)[..., 0], eps)
    returns = bootstrap  # the 0-step returns
    for _ in range(n):
        one_more = steps.reward[:-1] + discount * steps.discount[:-1] * returns[1:]
        returns = jnp.concatenate([jnp.where(live > 0, one_more, bootstrap[:-1]), bootstrap[-1:]])
    targets = jax.lax.stop_gradient(rescale(returns[:-1], eps))
    q_taken = jnp.take_along_axis(q[:-1], steps.action[:-1, :, None], axis=-1)[..., 0]
    return live * (targets - q_taken), live


def sequence_priorities(errors: chex.Array, live: chex.Array, eta: float) -> chex.Array:
    """Computes eta max_t |delta_t| + (1 - eta) mean_t |delta_t| over a sequence's transitions (section 2.3), [B].

    `errors` delta_t and `live` are [T, B], as `td_errors` returns them.
    """
    sizes = live * jnp.abs(errors)
    mean = sizes.sum(axis=0) / jnp.maximum(live.sum(axis=0), 1.0)
    return prioritized.priorities(eta * sizes.max(axis=0) + (1.0 - eta) * mean)


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete, or the network does not fit the observation.
    """
    num_actions = discrete_actions("r2d2", spec)
    shape, stack = spec.observation_shape, config.frame_stack
    check_frames(config.torso, stack, shape)

    network = QNetwork(
        torso=config.torso,
        num_actions=num_actions,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        lstm_size=config.lstm_size,
        dueling=config.dueling,
        head_size=config.head_size,
        dtype=jnp.dtype(config.dtype),
    )
    optimizer = make_optimizer("adam", config.adam_epsilon, max_gradient_norm=config.max_gradient_norm)

    def memory(num_envs: int, ranks: Any = None) -> Memory:
        return Memory(
            rank=ranks_or_zeros(num_envs, ranks),
            previous_action=jnp.zeros(num_envs, jnp.int32),
            frames=stacking.no_frames(num_envs, stack, shape, spec.observation_dtype),
            lstm=network.initial_state(num_envs),
        )

    see = functools.partial(stacking.see, config.torso)

    inputs = functools.partial(last_inputs, spec.actions)

    def init(key: jax.Array) -> State:
        batch, first = memory(1), jnp.ones((1, 1), bool)
        observation, _ = see(jnp.zeros((1, 1, *shape), spec.observation_dtype), first, batch.frames)
        last = inputs(first, batch.previous_action[None], jnp.zeros((1, 1)))
        params = network.init(key, observation, first, batch.lstm, last)
        return State(
            params=params,
            target_params=jax.tree.map(jnp.copy, params),  # copies, for an update may overwrite its input's buffers
            opt_state=optimizer.init(params),
            hypers=initial_hypers(Hypers, config),
            step=jnp.int32(0),
        )

    def values(params, timestep: TimeStep, memory: Memory):
        """Returns Q(x_t, .) [B, A], the extras for the update, and the next memory without its new action."""
        first, action, reward = timestep.first[None], memory.previous_action, timestep.reward
        observation, frames = see(timestep.observation[None], first, memory.frames)
        last = inputs(first, action[None], reward[None])
        heads: Any = network.apply(params, observation, first, memory.lstm, last)
        q, lstm = heads
        extras = {"previous_action": action, "previous_reward": reward, "q": q[0]}
        return q[0], extras, memory._replace(frames=frames, lstm=lstm)

    def act(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        q, extras, carried = values(params.params, timestep, memory)
        action = epsilon_greedy(key, q, params.epsilon ** (1.0 + config.epsilon_spread * memory.rank))
        return action, extras, carried._replace(previous_action=action)

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        q, _, carried = values(params.params, timestep, memory)
        return greedy(q), {}, carried._replace(previous_action=greedy(q))

    def unroll(params, steps: Step, memory: Memory):
        """Computes Q of the rows after the burn-in, [T, B, A]. No gradient passes through the burn-in."""
        lstm: Any = memory.lstm if config.stored_state else jax.tree.map(jnp.zeros_like, memory.lstm)
        observation, _ = see(steps.observation, steps.first, memory.frames)
        last = inputs(steps.first, steps.extras["previous_action"], steps.extras["previous_reward"])

        def apply(rows: slice, lstm) -> Any:
            return network.apply(params, observation[rows], steps.first[rows], lstm, last[rows])

        if config.burn_in:
            lstm = jax.lax.stop_gradient(apply(slice(None, config.burn_in), lstm)[1])
        return apply(slice(config.burn_in, None), lstm)[0]

    def after_burn_in(steps: Step) -> Step:
        return jax.tree.map(lambda x: x[config.burn_in :], steps)

    def loss(params, target_params, hypers: Hypers, sample: Sample, weights):
        q, q_target = (unroll(p, sample.steps, sample.memory) for p in (params, target_params))
        steps = after_burn_in(sample.steps)
        errors, live = td_errors(q, q_target, steps, hypers.discount, config.n_step, config.rescaling_epsilon)
        total = jnp.mean(weights * jnp.sum(0.5 * jnp.square(errors), axis=0))
        transitions = jnp.maximum(live.sum(), 1.0)  # td_error and value are means over transitions
        metrics = {
            "loss": total,
            "td_error": jnp.abs(errors).sum() / transitions,
            "value": (live * unscale(q[:-1].max(axis=-1), config.rescaling_epsilon)).sum() / transitions,
            "live_fraction": live.mean(),
        }
        return total, (metrics, sequence_priorities(errors, live, config.priority_eta))

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        del key
        weights = prioritized.importance_weights(sample.likelihood, jnp.float32(config.importance_exponent))
        gradient, (metrics, priorities) = jax.grad(loss, has_aux=True)(
            state.params, state.target_params, state.hypers, sample, weights
        )
        metrics["importance_weight"] = weights.mean()
        gradient, metrics = pmean((gradient, metrics))
        learning_rate, step = state.hypers.learning_rate, state.step + 1
        params, opt_state = descend(optimizer, gradient, state.opt_state, state.params, learning_rate)
        target_params = new_every(config.target_period, step, params, state.target_params)
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        return State(params, target_params, opt_state, state.hypers, step), Feedback(metrics, priorities)

    def priority(params: Policy, sample: Sample) -> chex.Array:
        """Computes an item's priority as the learner does, with the values from acting for both networks' values."""
        steps = after_burn_in(sample.steps)
        q = steps.extras["q"]
        errors, live = td_errors(q, q, steps, params.discount, config.n_step, config.rescaling_epsilon)
        return sequence_priorities(errors, live, config.priority_eta)

    period = config.sequence_length - config.overlap
    items = Sequences(config.burn_in, config.sequence_length, period)
    return Agent(
        init=init,
        policy=lambda state: Policy(state.params, state.hypers.epsilon, state.hypers.discount),
        memory=memory,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=replay_table(config, items, "prioritized"),
        batch_size=config.batch_size,
        priority=priority,
        acted=lambda memory, action: memory._replace(previous_action=action),
    )
