"""DQN: Q-learning with a deep network, a replay and target parameters; and its three best known improvements.

Mnih et al. 2013, https://arxiv.org/abs/1312.5602, and 2015, https://doi.org/10.1038/nature14236, whose names these are.
`double`: van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461. `dueling`: Wang et al. 2016,
https://arxiv.org/abs/1511.06581. `replay="prioritized"`: Schaul et al. 2016, https://arxiv.org/abs/1511.05952.

Deviations: many environments are played at once, by parameters that may be some updates old; epsilon falls with
updates, not with frames; n-step targets may take the place of one-step ones.
"""

import dataclasses
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
    TimeStep,
    Transition,
    check_ranges,
    check_replay_sizes,
    pmax,
    pmean,
    replay_table,
    transitions,
)
from agents.parts import prioritized
from agents.parts.exploration import discrete_actions, epsilon_greedy, greedy, linear_epsilon
from agents.parts.networks import QNetwork
from agents.parts.optimization import descend, initial_hypers, make_optimizer, new_every
from agents.parts.stacking import channels_last, no_frames, stack_channels, stack_frames
from agents.parts.torsos import check_frames


@dataclasses.dataclass(frozen=True)
class Config:
    """The 2015 paper's Atari settings (extended data table 1) by default; the prioritised paper's for its replay.

    The paper's code sums the gradient over the minibatch; here it is averaged. RMSProp's step is the same for both
    where the epsilon of the mean is that of the sum over batch_size squared. A clipped error needs no such change.
    """

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # frames of its episode that the network sees at once; 1 where observations are no frames
    hidden_sizes: tuple[int, ...] = (128, 128)  # the mlp's
    activation: Literal["tanh", "relu"] = "relu"  # the mlp's
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the network's arithmetic; parameters stay float32
    dueling: bool = False  # values and advantages apart
    head_size: int = 0  # a layer of each stream's own, in the place of a convolutional torso's dense one; 0: none

    double: bool = False  # the target's action is the online network's
    loss: Literal["huber", "squared"] = "huber"  # huber: the error is clipped to [-1, 1]
    n_step: int = 1
    discount: float = 0.99  # gamma
    batch_size: int = 32
    target_period: int = 2_500  # updates from one copy of the parameters to the next: C, 10,000 actions in the code

    optimizer: Literal["rmsprop", "adam"] = "rmsprop"  # rmsprop: centred
    learning_rate: float = 2.5e-4
    optimizer_epsilon: float = 0.01 / 32**2  # inside RMSProp's root, outside Adam's
    rmsprop_decay: float = 0.95  # of the gradient's and of its square's average
    max_gradient_norm: float = 0.0  # 0: not clipped

    epsilon_initial: float = 1.0
    epsilon_final: float = 0.1
    epsilon_steps: int = 250_000  # updates from one to the other: the paper's million actions, an update for each four

    replay: Literal["uniform", "prioritized"] = "uniform"
    replay_size: int = 1_000_000
    min_replay_size: int = 50_000  # before the first update; played with epsilon_initial
    samples_per_insert: float = 8.0  # a quarter of batch_size: an update for each four actions
    priority: Literal["proportional", "rank"] = "proportional"  # to the error, or to 1 / its rank among all
    priority_exponent: float = 0.6  # alpha
    uniform_fraction: float = 0.0  # of samples, drawn from all items alike
    importance_exponent: float = 0.4  # beta, at first
    importance_steps: int = 12_500_000  # updates until beta has risen to 1: 200 million frames; 0: it stays
    normalize_weights: bool = True  # divides them by the batch's largest

    def __post_init__(self):
        check_ranges(
            self,
            counts=("frame_stack", "n_step", "batch_size", "replay_size", "min_replay_size", "target_period"),
            positive=("learning_rate", "optimizer_epsilon"),
            not_negative=(
                *("head_size", "max_gradient_norm", "epsilon_steps", "samples_per_insert"),
                *("priority_exponent", "importance_steps"),
            ),
            fractions=(
                *("discount", "rmsprop_decay", "epsilon_initial", "epsilon_final"),
                *("uniform_fraction", "importance_exponent"),
            ),
        )
        check_replay_sizes(self)


class Memory(NamedTuple):
    """What acting carries from step to step; None where nothing is stacked."""

    frames: chex.Array | None  # uint8 [B, frame_stack - 1, H, W]


class Hypers(NamedTuple):
    """What a population may tune in a running learner; float32 scalars."""

    learning_rate: Any
    epsilon_initial: Any
    epsilon_final: Any


class State(NamedTuple):
    params: Any  # theta
    target_params: Any  # theta^-
    opt_state: optax.OptState
    max_priority: chex.Array  # float32, the largest so far
    hypers: Hypers
    step: chex.Array  # updates so far, int32


class Policy(NamedTuple):
    """What actors pull."""

    params: Any
    epsilon: chex.Array  # float32, a scalar or [B]
    max_priority: chex.Array


class Functions(NamedTuple):
    """What learning, acting and priorities are made of."""

    init: Any  # key -> params
    memory: Any  # num_envs -> Memory
    values: Any  # (params, TimeStep, Memory) -> Q(s_t, .), [B, A], and the next Memory
    td_errors: Any  # (params, target_params, Transition) -> [B], and Q(s_t, a_t), [B]


def functions(agent: str, config: Config, spec: EnvironmentSpec) -> Functions:
    """Those of the `agent` by that name.

    Raises:
      ValueError: continuous actions, or a network that does not fit the observation.
    """
    num_actions = discrete_actions(agent, spec)
    shape, stack = spec.observation_shape, config.frame_stack
    check_frames(config.torso, stack, shape)
    network = QNetwork(
        torso=config.torso,
        num_actions=num_actions,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        dueling=config.dueling,
        head_size=config.head_size,
        dtype=jnp.dtype(config.dtype),
    )

    def q(params, observation) -> chex.Array:
        """Q(s, .; params), [B, A], of what the network sees: [B, H, W, S] with a convolutional torso."""
        values: Any = network.apply(params, observation[None], jnp.zeros((1, len(observation)), bool), ())
        return values[0][0]

    def single(observation) -> chex.Array:
        """What the network sees of observations that are not stacked."""
        return observation if config.torso == "mlp" else channels_last(observation, 1)

    def stacked(observation) -> chex.Array:
        """What it sees of a Transition's, whose frames, if stacked, are [B, S, H, W] or [B, S, H, W, C]."""
        return stack_channels(observation, 1) if stack > 1 else single(observation)

    def init(key: jax.Array) -> Any:
        observation = jnp.zeros((1, stack, *shape) if stack > 1 else (1, *shape), spec.observation_dtype)
        return network.init(key, stacked(observation)[None], jnp.zeros((1, 1), bool), ())

    def memory(num_envs: int) -> Memory:
        return Memory(no_frames(num_envs, stack, shape, spec.observation_dtype))

    def values(params, timestep: TimeStep, memory: Memory) -> tuple[chex.Array, Memory]:
        if memory.frames is None:
            return q(params, single(jnp.asarray(timestep.observation))), memory
        observation, frames = stack_frames(memory.frames, timestep.observation[None], timestep.first[None])
        return q(params, observation[0]), Memory(frames)

    def td_errors(params, target_params, transition: Transition) -> tuple[chex.Array, chex.Array]:
        """y_t - Q(s_t, a_t), where no gradient passes through y_t."""
        import rlax  # here, not above: where TensorFlow is installed it takes seconds

        s, a, reward, discount, s_next = transition
        s, s_next = stacked(jnp.asarray(s)), stacked(jnp.asarray(s_next))
        q_tm1, q_t = q(params, s), q(target_params, s_next)
        chosen = jnp.take_along_axis(q_tm1, a[:, None], axis=-1)[:, 0]
        if config.double:
            return jax.vmap(rlax.double_q_learning)(q_tm1, a, reward, discount, q_t, q(params, s_next)), chosen
        return jax.vmap(rlax.q_learning)(q_tm1, a, reward, discount, q_t), chosen

    return Functions(init, memory, values, td_errors)


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      ValueError: continuous actions, or a network that does not fit the observation.
    """
    f = functions("dqn", config, spec)
    optimizer = make_optimizer(
        config.optimizer, config.optimizer_epsilon, config.rmsprop_decay, config.max_gradient_norm, centred=True
    )

    def init(key: jax.Array) -> State:
        params = f.init(key)
        return State(
            params=params,
            target_params=jax.tree.map(jnp.copy, params),  # no shared buffers: an update may be given them to overwrite
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
        values, memory = f.values(params.params, timestep, memory)
        return epsilon_greedy(key, values, params.epsilon), {}, memory

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        values, memory = f.values(params.params, timestep, memory)
        return greedy(values), {}, memory

    def loss(params, target_params, transition: Transition, weights):
        import rlax

        errors, values = f.td_errors(params, target_params, transition)
        losses = rlax.huber_loss(errors) if config.loss == "huber" else rlax.l2_loss(errors)
        return jnp.mean(weights * losses), (errors, values)

    def gradient(state: State, key: jax.Array, sample: Sample) -> tuple[Any, Feedback]:
        del key
        weights = prioritized.weights(config, sample, state.step, config.normalize_weights)
        (total, (errors, values)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.target_params, sample.steps, weights
        )
        priorities = prioritized.priorities(errors) if config.replay == "prioritized" else ()
        metrics = {
            "loss": total,
            "value": values.mean(),
            "td_error": jnp.abs(errors).mean(),
            "importance_weight": weights.mean(),
            "gradient_norm": optax.tree.norm(gradient),
            "epsilon": epsilon(state),
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
