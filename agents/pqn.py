"""PQN: Q-learning from parallel environments without replay or target network, thanks to layer normalisation.

Gallici et al. 2024, https://arxiv.org/abs/2407.04811: Q(lambda) targets are learnt in several epochs of minibatches;
the optimiser is RAdam (Liu et al. 2020, https://arxiv.org/abs/1908.03265). Exploratory actions do not cut the traces,
as in Peng and Williams 1996, https://doi.org/10.1007/BF00114731.

Deviations: layers start orthogonal, with values near 0, and pixels are centred around their background. Without
`--synchronous`, actors may be a batch or two behind, but targets always use the newest parameters. A row that closes an
episode, whose action the environment threw away, is not a transition and the agent does not learn from it; if a time
limit ended the episode, the target bootstraps from the episode's last observation.
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
from agents.parts.exploration import discrete_actions, epsilon_greedy, greedy, linear_epsilon
from agents.parts.minibatches import check_minibatches, learn_in_minibatches
from agents.parts.networks import QNetwork
from agents.parts.optimization import check_decay, descend, initial_hypers, learning_rate_of, make_optimizer
from agents.parts.torsos import check_frames


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings; by default those of the published code for Atari."""

    torso: Literal["mlp", "shallow", "nature"] = "nature"
    frame_stack: int = 4  # newest frames of the episode that the network sees at once; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = (128, 128)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "relu"  # the mlp torso's
    layer_norm: bool = True  # whether each layer's outputs are normalised before its activation
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the network's arithmetic; parameters stay float32

    unroll_length: int = 32  # T, steps of each environment in one update
    batch_size: int = 128  # I, environments in one update
    epochs: int = 2  # passes over a batch in one update
    minibatches: int = 32  # parts of the batch's rows in each pass
    discount: float = 0.99  # gamma
    lambda_: float = 0.65  # 0: one-step targets; 1: n-step targets to the end of the block or the episode
    reward_scale: float = 1.0  # multiplies rewards

    learning_rate: float = 2.5e-4  # alpha
    max_gradient_norm: float = 10.0  # the gradient is clipped to this norm; 0: it is not clipped
    warmup_env_steps: int = 0  # environment steps in which the learning rate first rises linearly from 0; 0: none
    decay_env_steps: int = 0  # environment steps after which the learning rate has fallen to 0; 0: it stays constant
    decay: Literal["linear", "cosine"] = "linear"  # the shape of that fall
    epsilon_initial: float = 1.0
    epsilon_final: float = 0.001
    epsilon_env_steps: int = 1_000_000  # environment steps from epsilon_initial to epsilon_final; 0: always the latter

    queue_batches: int = 1  # batches that may wait in the queue; with more, experience is older

    def __post_init__(self):
        check_ranges(
            self,
            counts=("frame_stack", "unroll_length", "batch_size", "epochs", "minibatches", "queue_batches"),
            positive=("reward_scale", "learning_rate"),
            not_negative=("max_gradient_norm", "decay_env_steps", "warmup_env_steps", "epsilon_env_steps"),
            fractions=("discount", "lambda_", "epsilon_initial", "epsilon_final"),
        )
        check_decay(self)
        check_minibatches(self, self.batch_size * self.unroll_length, "rows")


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    learning_rate: Any
    discount: Any
    lambda_: Any
    epsilon_initial: Any
    epsilon_final: Any


class State(NamedTuple):
    params: Any  # phi
    opt_state: optax.OptState
    hypers: Hypers
    step: chex.Array  # updates so far, int32
    env_steps: chex.Array  # float32, the run's environment steps so far; the learner sets it before each update


class Policy(NamedTuple):
    """The values that actors pull from the learner."""

    params: Any
    epsilon: chex.Array  # float32 scalar


class Memory(NamedTuple):
    """The values that acting carries from one step to the next."""

    frames: chex.Array | None  # uint8 [B, frame_stack - 1, H, W]; None if frames are not stacked


class Rows(NamedTuple):
    """The n rows of a minibatch, [n, ...]."""

    seen: Any  # the network's inputs at time t
    action: chex.Array
    target: chex.Array
    live: chex.Array  # 1 for transitions, 0 for rows whose action was thrown away


def q_lambda_targets(
    q: chex.Array, rewards: chex.Array, discounts: chex.Array, live: chex.Array, lambda_: Any
) -> chex.Array:
    """Computes R_t = r_t + gamma_t (lambda R_{t+1} + (1 - lambda) max_a Q(s_{t+1}, a)).

    The recursion starts at the end of the block or of the episode, where R_t is r_t + gamma_t max_a Q(s_{t+1}, a).

    Args:
      q: Q(s_0, .) .. Q(s_T, .), [T+1, B, A].
      rewards: r_t, which arrived with s_{t+1}, [T, B].
      discounts: gamma, or 0 where s_{t+1} is terminal, [T, B].
      live: 1 where row t is a transition, 0 where its action was thrown away, [T, B].
      lambda_: scalar.

    Returns:
      [T, B]; rows that are not live hold meaningless numbers.
    """
    import rlax  # here, not above: where TensorFlow is installed it takes seconds

    goes_on = jnp.concatenate([live[1:], jnp.ones_like(live[:1])])  # 0 just before an episode's last observation
    returns = jax.vmap(rlax.lambda_returns, in_axes=1, out_axes=1)
    return returns(rewards, discounts, q.max(axis=-1)[1:], lambda_ * goes_on)


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete, or the torso cannot take the observations.
    """
    num_actions, shape, dtype = discrete_actions("pqn", spec), spec.observation_shape, spec.observation_dtype
    check_frames(config.torso, config.frame_stack, shape)
    network = QNetwork(
        config.torso,
        num_actions,
        config.hidden_sizes,
        config.activation,
        normalized=config.layer_norm,
        dtype=jnp.dtype(config.dtype),
    )
    optimizer = make_optimizer("radam", max_gradient_norm=config.max_gradient_norm)

    def memory(num_envs: int, ranks: Any = None) -> Memory:
        del ranks
        return Memory(stacking.no_frames(num_envs, config.frame_stack, shape, dtype))

    def see(observation, first, memory: Memory) -> tuple[chex.Array, Memory]:
        """Converts rows [T, B, ...] to the input of `q`; returns it and the memory after these rows."""
        seen, frames = stacking.see(config.torso, observation, first, memory.frames)
        return seen, Memory(frames)

    def q(params, seen) -> chex.Array:
        """Returns Q(s, .), [T, B, A]."""
        values: Any = network.apply(params, seen, jnp.zeros(seen.shape[:2], bool), ())
        return values[0]

    def init(key: jax.Array) -> State:
        first = jnp.ones((1, 1), bool)
        params: Any = network.init(key, see(jnp.zeros((1, 1, *shape), dtype), first, memory(1))[0], first, ())
        hypers = initial_hypers(Hypers, config)
        return State(params, optimizer.init(params), hypers, jnp.int32(0), jnp.float32(0))

    def epsilon(state: State) -> chex.Array:
        hypers, steps = state.hypers, float(config.epsilon_env_steps)
        return linear_epsilon(hypers.epsilon_initial, hypers.epsilon_final, steps, state.env_steps)

    def act(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        seen, memory = see(timestep.observation[None], timestep.first[None], memory)
        return epsilon_greedy(key, q(params.params, seen)[0], params.epsilon), {}, memory

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        del key
        seen, memory = see(timestep.observation[None], timestep.first[None], memory)
        return greedy(q(params.params, seen)[0]), {}, memory

    def loss(params, rows: Rows):
        """Returns half the mean squared error over the transitions of a minibatch, and metrics."""
        values = q(params, rows.seen[None])[0]
        errors = rows.target - jnp.take_along_axis(values, rows.action[:, None], axis=-1)[:, 0]
        weights = rows.live / jnp.maximum(pmean(rows.live.mean()), 1e-6)
        total = 0.5 * jnp.mean(weights * jnp.square(errors))
        return total, {"loss": total, "td_error": jnp.mean(weights * jnp.abs(errors))}

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        steps, hypers, live = sample.steps, state.hypers, sample.steps.live
        rewards, discounts = config.reward_scale * steps.reward[:-1], hypers.discount * steps.discount[:-1]
        seen, _ = see(steps.observation, steps.first, sample.memory)
        values = q(state.params, seen)
        targets = q_lambda_targets(values, rewards, discounts, live, hypers.lambda_)
        rows = Rows(seen[:-1], steps.action[:-1], targets, live)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        eta = learning_rate_of(config, state)

        def learn(carry, minibatch):
            """Takes one step, on the minibatch of the rows `index`."""
            (params, opt_state), (index, _) = carry, minibatch
            of_rows = jax.tree.map(lambda x: x[index], rows)
            gradient, metrics = pmean(jax.grad(loss, has_aux=True)(params, of_rows))
            after = descend(optimizer, gradient, opt_state, params, eta)
            return after, metrics | {"gradient_norm": optax.tree.norm(gradient)}

        carry = state.params, state.opt_state
        (params, opt_state), learning = learn_in_minibatches(config, key, live.size, learn, carry)
        metrics = jax.tree.map(jnp.mean, learning) | {"value": pmean(values.max(-1).mean())}
        metrics |= {"epsilon": epsilon(state), "learning_rate": eta}
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1), Feedback(metrics)

    return Agent(
        init=init,
        policy=lambda state: Policy(state.params, epsilon(state)),
        memory=memory,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=queue_table(config, Blocks(config.unroll_length)),
        batch_size=config.batch_size,
        share_multiple=config.minibatches // math.gcd(config.minibatches, config.unroll_length),
    )
