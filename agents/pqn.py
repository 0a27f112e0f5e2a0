"""PQN: Q-learning from parallel environments without a replay and without a target network, by layer normalisation.

Gallici et al. 2024, https://arxiv.org/abs/2407.04811: targets are Q(lambda), learnt from in several epochs of
minibatches; the optimiser is RAdam (Liu et al. 2020, https://arxiv.org/abs/1908.03265). Traces are not cut where an
action explored, as in Peng and Williams 1996, https://doi.org/10.1007/BF00114731.

Deviations: layers are orthogonal at first, the last one's values near 0, and pixels are centred. Actors that are not in
step may be a batch or two behind; values of what they saw are always the newest. Rows whose action the environment
threw away (they close an episode) are no transitions and teach nothing; where a time limit ended the episode the target
bootstraps from its last observation.
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
    """The published code's Atari settings by default."""

    torso: Literal["mlp", "shallow", "nature"] = "nature"
    frame_stack: int = 4  # frames of its episode that the network sees at once; 1 where observations are no frames
    hidden_sizes: tuple[int, ...] = (128, 128)  # the mlp's
    activation: Literal["tanh", "relu"] = "relu"  # the mlp's
    layer_norm: bool = True  # each layer's outputs are normalised before its activation
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the network's arithmetic; parameters stay float32

    unroll_length: int = 32  # T
    batch_size: int = 128  # I, environments
    epochs: int = 2  # passes over a batch in one update
    minibatches: int = 32  # parts of the batch's rows in each pass
    discount: float = 0.99  # gamma
    lambda_: float = 0.65  # 0: one-step targets; 1: n-step ones, to the end of the block or the episode
    reward_scale: float = 1.0  # multiplies rewards

    learning_rate: float = 2.5e-4  # alpha
    max_gradient_norm: float = 10.0  # 0: not clipped
    warmup_env_steps: int = 0  # the learning rate first rises linearly from 0 over so many environment steps
    decay_env_steps: int = 0  # it has fallen to 0 after so many environment steps; 0: constant
    decay: Literal["linear", "cosine"] = "linear"  # how it falls
    epsilon_initial: float = 1.0
    epsilon_final: float = 0.001
    epsilon_env_steps: int = 1_000_000  # environment steps from one to the other; 0: it is the final one

    queue_batches: int = 1  # batches that may wait in the queue: more of them, more lag

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
    """What a population may tune in a running learner; float32 scalars."""

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
    env_steps: chex.Array  # float32, made so far, as the learner counts them: it says so before each update


class Policy(NamedTuple):
    """What actors pull."""

    params: Any
    epsilon: chex.Array  # float32 scalar


class Memory(NamedTuple):
    """What acting carries from step to step."""

    frames: chex.Array | None  # uint8 [B, frame_stack - 1, H, W]; None where frames are not stacked


class Rows(NamedTuple):
    """What a minibatch is of, [n, ...]."""

    seen: Any
    action: chex.Array
    target: chex.Array
    live: chex.Array  # 1 of transitions, 0 of rows whose action was thrown away


def q_lambda_targets(
    q: chex.Array, rewards: chex.Array, discounts: chex.Array, live: chex.Array, lambda_: Any
) -> chex.Array:
    """R_t = r_t + gamma_t (lambda R_{t+1} + (1 - lambda) max_a Q(s_{t+1}, a)), backwards from the block's end or the
    episode's, where it is r_t + gamma_t max_a Q(s_{t+1}, a).

    Args:
      q: Q(s_0, .) .. Q(s_T, .), [T+1, B, A].
      rewards: r_t, which arrived with s_{t+1}, [T, B].
      discounts: gamma, 0 where s_{t+1} is terminal, [T, B].
      live: 1 where row t is a transition, 0 where its action was thrown away, [T, B].
      lambda_: scalar.

    Returns:
      [T, B]; of rows that are not live it means nothing.
    """
    import rlax  # here, not above: where TensorFlow is installed it takes seconds

    goes_on = jnp.concatenate([live[1:], jnp.ones_like(live[:1])])  # else the next row is the episode's last
    returns = jax.vmap(rlax.lambda_returns, in_axes=1, out_axes=1)
    return returns(rewards, discounts, q.max(axis=-1)[1:], lambda_ * goes_on)


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      ValueError: actions that are not discrete, or observations that the torso cannot see.
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
        """Rows [T, B, ...] as `q` takes them, and the memory after them."""
        seen, frames = stacking.see(config.torso, observation, first, memory.frames)
        return seen, Memory(frames)

    def q(params, seen) -> chex.Array:
        """Q(s, .), [T, B, A]."""
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
        """Half the squared error of one minibatch, a mean over its transitions."""
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
            """One minibatch: the rows `index`."""
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
