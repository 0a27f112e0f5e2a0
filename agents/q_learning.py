"""Q-learning and Sarsa: online temporal-difference control with an epsilon-greedy policy.

Watkins 1989, *Learning from Delayed Rewards*, https://www.cs.rhul.ac.uk/~chrisw/thesis.html; Sutton and Barto 2018,
http://incompleteideas.net/book/the-book-2nd.html, sections 6.4 to 6.6 and 10.1, whose notation this file uses. There is
no replay and no target network: the agent learns from each transition once, in order.

Other settings of the same code give asynchronous one-step Q-learning, one-step Sarsa and n-step Q-learning (Mnih et al.
2016, https://arxiv.org/abs/1602.01783, algorithms 1 to 3). They add target parameters, a final epsilon for each
environment, and workers that send gradients to the learner in place of experience.

Deviations: an update is one semi-gradient step on the mean over the newest transitions of several environments. The
policy that acted may be a few updates old.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from agents.agent import Agent, Blocks, EnvironmentSpec, Feedback, Sample, TimeStep, check_ranges, pmean, queue_table
from agents.parts import stacking
from agents.parts.exploration import (
    discrete_actions,
    epsilon_greedy,
    epsilon_greedy_probabilities,
    greedy,
    linear_epsilon,
    ranks_or_zeros,
)
from agents.parts.networks import QNetwork
from agents.parts.optimization import check_decay, descend, initial_hypers, learning_rate_of, make_optimizer, new_every
from agents.parts.torsos import check_frames


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings; by default the book's plain form: linear values, a constant epsilon, one transition at a time."""

    form: Literal["q_learning", "sarsa", "expected_sarsa", "n_step_q"] = "q_learning"

    torso: Literal["mlp", "shallow", "nature", "residual"] = "mlp"
    frame_stack: int = 1  # newest frames of the episode that the network sees at once; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = ()  # units of each mlp layer; (): linear values, a table if inputs are one-hot
    activation: Literal["tanh", "relu"] = "relu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the network's arithmetic; parameters stay float32

    discount: float = 0.99  # gamma
    unroll_length: int = 1  # T, steps of each environment in one update
    batch_size: int = 1  # B, environments in one update
    target_period: int = 0  # updates between copies of the parameters to the target parameters; 0: there are none
    optimizer: Literal["sgd", "adam", "rmsprop"] = "sgd"
    learning_rate: float = 0.1  # alpha
    optimizer_epsilon: float = 1e-8  # outside Adam's square root, inside RMSProp's
    rmsprop_decay: float = 0.99
    max_gradient_norm: float = 0.0  # the gradient is clipped to this norm; 0: it is not clipped
    warmup_env_steps: int = 0  # environment steps in which alpha first rises linearly from 0
    decay_env_steps: int = 0  # environment steps after which alpha is 0; 0: no decay
    decay: Literal["linear", "cosine"] = "linear"  # how alpha falls to 0
    epsilon_initial: float = 0.1
    epsilon_final: float = 0.1
    epsilon_steps: int = 0  # updates from epsilon_initial to epsilon_final; 0: epsilon is always epsilon_final
    # If not empty, its K values replace epsilon_final: the run's environments form K equal groups, one for each value.
    epsilon_finals: tuple[float, ...] = ()

    queue_batches: int = 1  # batches that may wait in the queue; with more, experience is older

    def __post_init__(self):
        check_ranges(
            self,
            counts=("frame_stack", "unroll_length", "batch_size", "queue_batches"),
            positive=("learning_rate", "optimizer_epsilon"),
            not_negative=("epsilon_steps", "target_period", "max_gradient_norm", "decay_env_steps", "warmup_env_steps"),
            fractions=("discount", "epsilon_initial", "epsilon_final", "rmsprop_decay"),
        )
        check_decay(self)
        if self.dtype != "float32" and self.torso == "mlp" and not self.hidden_sizes:
            raise ValueError(
                f"config.dtype={self.dtype} is for networks, not for a linear function: give config.hidden_sizes=64 or "
                "config.dtype=float32"
            )
        if not all(0 <= epsilon <= 1 for epsilon in self.epsilon_finals):
            raise ValueError(f"config.epsilon_finals must be within [0, 1], not {self.epsilon_finals}")
        if self.epsilon_finals and self.form == "expected_sarsa":
            raise ValueError(
                f"config.epsilon_finals={self.epsilon_finals}: expected_sarsa learns the values of a single policy: "
                "give config.epsilon_final instead"
            )


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    learning_rate: Any
    discount: Any
    epsilon_initial: Any
    epsilon_final: Any  # a scalar, or [K] if the config has K epsilon_finals


class State(NamedTuple):
    params: Any  # w
    target_params: Any  # w^-; () without target parameters
    opt_state: optax.OptState
    hypers: Hypers
    step: chex.Array  # updates so far, int32
    env_steps: chex.Array  # float32, the run's environment steps so far; the learner sets it before each update


class Policy(NamedTuple):
    """The values that actors pull from the learner."""

    params: Any
    epsilon: chex.Array  # float32 scalar, or [K] if the config has K epsilon_finals


class Memory(NamedTuple):
    """The values that acting carries from one step to the next."""

    rank: Any  # float32 [B], each environment's place among all of the run's, from 0 to 1
    frames: chex.Array | None  # uint8 [B, frame_stack - 1, H, W]; None if frames are not stacked


def td_errors(
    form: str,
    q: chex.Array,
    actions: chex.Array,
    rewards: chex.Array,
    discounts: chex.Array,
    epsilon: Any,
    q_target: chex.Array,
):
    """Computes the errors R_{t+1} + gamma (the value of S_{t+1}) - Q(S_t, A_t). Only Q(S_t, A_t) has a gradient.

    The value of S_{t+1} is max_a Q(S_{t+1}, a) in Q-learning (eq. 6.8), Q(S_{t+1}, A_{t+1}) in Sarsa (eq. 6.7), and the
    mean of Q(S_{t+1}, .) under the epsilon-greedy policy in expected Sarsa (eq. 6.9).

    Args:
      form: 'q_learning', 'sarsa' or 'expected_sarsa'.
      q: Q(S_0, .) .. Q(S_T, .), [T+1, B, A].
      actions: A_0 .. A_T, int [T+1, B].
      rewards: R_{t+1}, [T, B].
      discounts: gamma, or 0 where S_{t+1} is terminal, [T, B].
      epsilon: scalar, of the policy in expected Sarsa.
      q_target: the values that S_{t+1} is valued by, shaped as q; q itself without target parameters.

    Returns:
      [T, B].
    """
    import rlax  # here, not above: where TensorFlow is installed it takes seconds

    rows = [x.reshape(-1, *x.shape[2:]) for x in (q[:-1], actions[:-1], rewards, discounts, q_target[1:])]
    if form == "sarsa":
        errors = jax.vmap(rlax.sarsa)(*rows, actions[1:].reshape(-1))
    elif form == "expected_sarsa":
        errors = jax.vmap(rlax.expected_sarsa)(*rows, epsilon_greedy_probabilities(rows[-1], epsilon))
    else:
        errors = jax.vmap(rlax.q_learning)(*rows)
    return errors.reshape(rewards.shape)


def n_step_errors(
    q: chex.Array,
    actions: chex.Array,
    rewards: chex.Array,
    discounts: chex.Array,
    live: chex.Array,
    q_target: chex.Array,
):
    """Computes the errors R - Q(s_i, a_i) of each row, [T, B] (Mnih et al. 2016, algorithm 3).

    R sums rewards to the end of the block or of the episode, and there bootstraps from max_a Q(s, a; w^-).

    Args:
      q, actions, rewards, discounts, q_target: as in `td_errors`.
      live: 1 where a row is a transition, 0 where its action was thrown away, [T, B].
    """
    import rlax

    values = q_target.max(axis=-1)
    goes_on = jnp.concatenate([live[1:], jnp.ones_like(live[:1])])  # 0 just before an episode's last observation
    returns = jax.vmap(rlax.lambda_returns, in_axes=1, out_axes=1)(rewards, discounts, values[1:], goes_on)
    chosen = jnp.take_along_axis(q[:-1], actions[:-1, :, None], axis=-1)[..., 0]
    return jax.lax.stop_gradient(returns) - chosen


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete, or the torso cannot take the observations.
    """
    num_actions, shape, dtype = discrete_actions("q_learning", spec), spec.observation_shape, spec.observation_dtype
    check_frames(config.torso, config.frame_stack, shape)
    network = QNetwork(config.torso, num_actions, config.hidden_sizes, config.activation, dtype=jnp.dtype(config.dtype))
    linear = config.torso == "mlp" and not config.hidden_sizes
    optimizer = make_optimizer(
        config.optimizer, config.optimizer_epsilon, config.rmsprop_decay, config.max_gradient_norm
    )
    finals, target_period = config.epsilon_finals, config.target_period

    def see(observation, first, memory: Memory) -> tuple[chex.Array, Memory]:
        """Converts rows [T, B, ...] to the input of `q`; returns it and the memory after these rows."""
        if config.frame_stack == 1:
            return stacking.see(config.torso, observation, first, None)[0], memory
        seen, frames = stacking.see(config.torso, observation, first, memory.frames)
        return seen, memory._replace(frames=frames)

    def q(params, seen) -> chex.Array:
        """Returns Q(s, .), [T, B, A]."""
        if linear:  # no bias, which all states would share: with one-hot inputs it is a table
            return seen.reshape(*seen.shape[:2], -1) / jnp.float32(255 if spec.frame_sides else 1) @ params
        values: Any = network.apply(params, seen, jnp.zeros(seen.shape[:2], bool), ())
        return values[0]

    def init(key: jax.Array) -> State:
        first = jnp.ones((1, 1), bool)
        seen, _ = see(jnp.zeros((1, 1, *shape), dtype), first, memory(1))
        params: Any = jnp.zeros((math.prod(seen.shape[2:]), num_actions))
        if not linear:
            params = network.init(key, seen, first, ())
        hypers = initial_hypers(Hypers, config)
        if finals:
            hypers = hypers._replace(epsilon_final=jnp.asarray(finals, jnp.float32))
        targets = jax.tree.map(jnp.copy, params) if target_period else ()
        return State(params, targets, optimizer.init(params), hypers, jnp.int32(0), jnp.float32(0))

    def epsilon(state: State) -> chex.Array:
        return linear_epsilon(
            state.hypers.epsilon_initial, state.hypers.epsilon_final, config.epsilon_steps, state.step
        )

    def memory(num_envs: int, ranks: Any = None) -> Memory:
        frames = stacking.no_frames(num_envs, config.frame_stack, shape, dtype)
        return Memory(ranks_or_zeros(num_envs, ranks), frames)

    def values_of(params: Policy, timestep: TimeStep, memory: Memory) -> tuple[chex.Array, Memory]:
        seen, memory = see(timestep.observation[None], timestep.first[None], memory)
        return q(params.params, seen)[0], memory

    def act(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        epsilon = params.epsilon
        if finals:
            epsilon = epsilon[jnp.minimum(memory.rank * len(finals), len(finals) - 1).astype(jnp.int32)]
        values, memory = values_of(params, timestep, memory)
        return epsilon_greedy(key, values, epsilon), {}, memory

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        del key
        values, memory = values_of(params, timestep, memory)
        return greedy(values), {}, memory

    def gradient(state: State, key: jax.Array, sample: Sample) -> tuple[Any, Feedback]:
        del key
        steps, hypers, live = sample.steps, state.hypers, sample.steps.live
        number = jnp.maximum(pmean(live.sum()), 1e-6)
        rewards, discounts = steps.reward[:-1], hypers.discount * steps.discount[:-1]
        seen, _ = see(steps.observation, steps.first, sample.memory)

        def loss(params):
            """Sums half the squared error over this device's live rows, over their mean number on a device."""
            values = q(params, seen)
            targets = q(state.target_params, seen) if target_period else values
            if config.form == "n_step_q":
                errors = n_step_errors(values, steps.action, rewards, discounts, live, targets)
            else:
                errors = td_errors(config.form, values, steps.action, rewards, discounts, epsilon(state), targets)
            errors = live * errors
            return 0.5 * jnp.sum(jnp.square(errors)) / number, (errors, values)

        (total, (errors, values)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        metrics = {"loss": total, "value": values.max(-1).mean(), "td_error": jnp.abs(errors).sum() / number}
        metrics |= {"gradient_norm": optax.tree.norm(gradient), "epsilon": epsilon(state).mean()}
        return gradient, Feedback(metrics)

    def apply(state: State, gradient: Any) -> State:
        alpha = learning_rate_of(config, state)
        params, opt_state = descend(optimizer, gradient, state.opt_state, state.params, alpha)
        step, targets = state.step + 1, state.target_params
        if target_period:
            targets = new_every(target_period, step, params, targets)
        return state._replace(params=params, target_params=targets, opt_state=opt_state, step=step)

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        value, feedback = gradient(state, key, sample)
        value, metrics = pmean((value, feedback.metrics))
        return apply(state, value), Feedback(metrics | {"gradient_norm": optax.tree.norm(value)})

    return Agent(
        init=init,
        policy=lambda state: Policy(state.params, epsilon(state)),
        memory=memory,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=queue_table(config, Blocks(config.unroll_length, next_action=config.form == "sarsa")),
        batch_size=config.batch_size,
        gradient=gradient,
        apply=apply,
    )
