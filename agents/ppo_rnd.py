"""PPO with random network distillation: the error of a predictor network on an observation is an extra reward.

Burda et al. 2019, https://arxiv.org/abs/1810.12894, on PPO (agents/ppo.py). f is a fixed random network, and f^ learns
to predict f(o) on the observations o that were seen. Its error is the intrinsic reward. The intrinsic return continues
across the ends of episodes, and has its own value and discount.

Deviations: f and f^ have ReLUs, not leaky ones. Statistics of observations begin with the first batch, without a random
agent that plays beforehand, and include each batch before its own rewards are computed. A batch's rows do not say which
environment they continue, so the filter that sums intrinsic rewards starts each block at its running mean. Minibatches
consist of rows, not of environments, unless there is an LSTM. Everything else is as in PPO.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from agents import ppo
from agents.agent import Agent, EnvironmentSpec, Feedback, Sample, check_ranges, pmean
from agents.parts import normalizer, reward_scale
from agents.parts.advantages import explained_variance, gae
from agents.parts.normalizer import Normalizer
from agents.parts.optimization import initial_hypers, make_optimizer
from agents.parts.policy_network import functions
from agents.parts.stacking import channels_last
from agents.parts.torsos import ORTHOGONAL, make_torso

LIMIT = 5.0  # normalised observations are clipped to [-LIMIT, LIMIT]


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings; by default the paper's for 128 environments."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"  # of the policy, and of f and f^
    frame_stack: int = 4  # newest frames of the episode that the policy sees; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = (64, 64)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "tanh"  # of the policy's torso=mlp
    lstm_size: int = 0  # units of the LSTM; 0: there is none
    lstm_previous: bool = False  # the LSTM also sees the last action and reward
    separate_value: bool = False  # whether the values have their own torso
    dtype: Literal["float32", "bfloat16"] = "float32"  # for the policy's arithmetic; parameters stay float32
    sigma: Literal["free", "state"] = "free"  # continuous actions: sigma is a parameter (free) or a network output
    sigma_initial: float = 1.0  # the first sigma, on the scale where an action's bounds are -1 and 1
    squash: bool = False  # tanh brings continuous actions into their bounds; False: they are clipped

    features: int = 512  # size of f's output
    predictor_layers: int = 2  # additional dense layers of f^
    predictor_fraction: float = 0.25  # share of a minibatch's rows that the predictor learns from
    extrinsic_coefficient: float = 2.0  # weight of the extrinsic advantages
    intrinsic_coefficient: float = 1.0  # weight of the intrinsic advantages
    intrinsic_discount: float = 0.99  # gamma_I

    unroll_length: int = 128  # steps of each environment in one update
    batch_size: int = 128  # environments in one update
    epochs: int = 4  # passes over a batch in one update
    minibatches: int = 4  # parts of each pass; the batch's rows are split, or with an LSTM its environments
    clip_epsilon: float = 0.1  # the probability ratio is clipped to [1 - this, 1 + this]
    decay_clip: bool = False  # whether clip_epsilon decays with the learning rate
    discount: float = 0.999  # gamma_E
    lambda_: float = 0.95  # GAE's lambda, for both streams
    baseline_cost: float = 1.0  # weight of the losses of both values
    entropy_cost: float = 0.001  # weight of the entropy bonus
    clip_values: bool = False  # whether the extrinsic value's loss, too, is clipped at changes of clip_epsilon
    max_kl: float = 0.0  # a minibatch with a larger mean KL is skipped, as are all later ones of the update; 0: never
    normalize_advantages: bool = False  # in each minibatch, the sum of both streams' advantages
    normalize_rewards: bool = False  # divide extrinsic rewards by their discounted returns' deviation

    learning_rate: float = 1e-4
    adam_epsilon: float = 1e-8
    max_gradient_norm: float = 0.0  # the gradient is clipped to this norm; 0: it is not clipped
    warmup_env_steps: int = 0  # environment steps in which the learning rate first rises linearly from 0; 0: none
    decay_env_steps: int = 0  # environment steps after which the learning rate has fallen to 0; 0: it stays constant
    decay: Literal["linear", "cosine"] = "linear"  # the shape of that fall

    queue_batches: int = 1  # batches that may wait in the queue; with more, experience is older

    def __post_init__(self):
        ppo.check(self)
        check_ranges(
            self,
            counts=("features",),
            not_negative=("predictor_layers", "extrinsic_coefficient", "intrinsic_coefficient"),
            fractions=("intrinsic_discount", "predictor_fraction"),
        )


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    learning_rate: Any
    discount: Any
    intrinsic_discount: Any
    lambda_: Any
    clip_epsilon: Any
    baseline_cost: Any
    entropy_cost: Any
    extrinsic_coefficient: Any
    intrinsic_coefficient: Any


class Learnt(NamedTuple):
    policy: Any  # parameters of the policy and of both values
    predictor: Any  # parameters of f^


class State(NamedTuple):
    params: Learnt
    target: Any  # parameters of f, which never change
    opt_state: optax.OptState
    observations: Normalizer  # statistics of the observations, for f and f^
    returns: Any  # statistics of discounted extrinsic returns, or () where rewards are not normalised
    intrinsic_returns: Normalizer  # statistics of discounted intrinsic returns
    hypers: Hypers
    step: chex.Array  # updates so far, int32
    env_steps: chex.Array  # float32, the run's environment steps so far; the learner sets it before each update


class Rows(NamedTuple):
    """The rows of a batch or of a minibatch, [T, B, ...]."""

    ppo: ppo.Rows  # with the weighted sum of both streams' advantages, and extrinsic values
    next: chex.Array  # o_{t+1}
    features: chex.Array  # f(o_{t+1})
    intrinsic_target: chex.Array  # R_I, what the intrinsic value is to predict


class Features(nn.Module):
    """The network f, or with more layers f^: float32 [N, ...] -> [N, features]."""

    config: Config
    layers: int  # additional dense layers

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        c = self.config
        torso: Any = make_torso(c.torso, c.hidden_sizes, "relu", jnp.float32, convolutions_only=c.torso != "mlp")
        x = torso(x)
        for _ in range(self.layers):
            x = nn.relu(nn.Dense(c.features, kernel_init=ORTHOGONAL)(x))
        return nn.Dense(c.features, kernel_init=ORTHOGONAL)(x)


def forward_returns(rewards: chex.Array, discount: Any, start: Any) -> chex.Array:
    """Computes G_t = gamma G_{t-1} + r_t, [T, B], from G_{-1} = `start`: the discounted sum of past rewards."""

    def step(G, reward):
        G = discount * G + reward
        return G, G

    return jax.lax.scan(step, jnp.full(rewards.shape[1:], start), rewards)[1]


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: the network does not fit the observation, or an action has no bounds.
    """
    f = functions("ppo_rnd", config, spec, config.separate_value, num_values=2)
    target, predictor = Features(config, 0), Features(config, config.predictor_layers)
    optimizer = make_optimizer("adam", config.adam_epsilon, max_gradient_norm=config.max_gradient_norm)

    def shown(observations: Normalizer, x) -> chex.Array:
        """Normalises observations [N, ...] for f and f^, which see single frames, not stacks."""
        x = normalizer.apply(observations, x, LIMIT)
        return x if config.torso == "mlp" else channels_last(x, 1)

    def of(network: Features, params, observations: Normalizer, x) -> chex.Array:
        """Computes a network's features of observations [T, B, ...]: [T, B, features]."""
        found: Any = network.apply(params, shown(observations, x.reshape(-1, *x.shape[2:])))
        return found.reshape(*x.shape[:2], -1)

    def init(key: jax.Array) -> State:
        keys, observations = jax.random.split(key), normalizer.init(spec.observation_shape)
        x = shown(observations, jnp.zeros((1, *spec.observation_shape)))
        params = Learnt(f.init(key), predictor.init(keys[0], x))
        return State(
            params=params,
            target=target.init(keys[1], x),
            opt_state=optimizer.init(params),
            observations=observations,
            returns=reward_scale.init(config),
            intrinsic_returns=normalizer.init(()),
            hypers=initial_hypers(Hypers, config),
            step=jnp.int32(0),
            env_steps=jnp.float32(0),
        )

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        steps, hypers, live = sample.steps, state.hypers, sample.steps.live
        observation = steps.observation[1:]
        observations = normalizer.update(state.observations, observation.reshape(-1, *spec.observation_shape))
        features = of(target, state.target, observations, observation)
        guess = of(predictor, state.params.predictor, observations, observation)
        novelty = jnp.square(features - guess).mean(axis=-1)
        G = forward_returns(novelty, hypers.intrinsic_discount, state.intrinsic_returns.mean)
        intrinsic_returns = normalizer.update(state.intrinsic_returns, G.reshape(-1))
        intrinsic_rewards = novelty / jnp.sqrt(intrinsic_returns.variance + 1e-8)

        seen, lstm = f.see(steps, sample.memory), sample.memory.lstm
        _, values = f.heads(state.params.policy, seen, steps.first, lstm)
        V_E, V_I = values[..., 0], values[..., 1]
        rewards = reward_scale.scaled(state.returns, steps.reward[:-1])
        A_E = gae(V_E, rewards, hypers.discount * steps.discount[:-1], live, hypers.lambda_)
        # In the intrinsic stream, an episode's last observation leads on to the first of the next episode.
        every = jnp.ones_like(live)
        A_I = gae(V_I, intrinsic_rewards, hypers.intrinsic_discount * every, every, hypers.lambda_)
        R_E, R_I = A_E + V_E[:-1], A_I + V_I[:-1]
        advantages = live * (hypers.extrinsic_coefficient * A_E + hypers.intrinsic_coefficient * A_I)

        of_ppo = ppo.Rows(
            jax.tree.map(lambda x: x[:-1], seen),
            steps.first[:-1],
            f.policy.kept(steps)[:-1],
            steps.extras["log_prob"][:-1],
            V_E[:-1],
            advantages,
            R_E,
            live,
        )

        def loss(params: Learnt, hypers: Hypers, rows: Rows, lstm, key: jax.Array):
            outputs, values = f.heads(params.policy, rows.ppo.seen, rows.ppo.first, lstm)
            total, metrics = ppo.objective(config, f.policy, hypers, rows.ppo, outputs, values[..., 0])
            intrinsic_loss = 0.5 * jnp.mean(jnp.square(rows.intrinsic_target - values[..., 1]))
            guess = of(predictor, params.predictor, observations, rows.next)
            errors = jnp.square(rows.features - guess).mean(axis=-1)
            drawn = jax.random.uniform(key, errors.shape) < config.predictor_fraction
            predictor_loss = jnp.mean(drawn * errors) / jnp.maximum(pmean(drawn.mean()), 1e-6)
            total += hypers.baseline_cost * intrinsic_loss + predictor_loss
            metrics |= {"loss": total, "intrinsic_loss": intrinsic_loss, "predictor_loss": predictor_loss}
            return total, metrics

        metrics = {"value": V_E.mean(), "intrinsic_value": V_I.mean(), "intrinsic_reward": intrinsic_rewards.mean()}
        metrics |= {"explained_variance": explained_variance(A_E, R_E), "novelty": novelty.mean()}
        rows = Rows(of_ppo, observation, features, R_I)
        state, learning = ppo.learn(config, optimizer, loss, state, key, rows, lstm)
        returns = normalizer.join(state.returns, reward_scale.seen(config, steps))
        state = state._replace(observations=observations, returns=returns, intrinsic_returns=intrinsic_returns)
        return state, Feedback(pmean(metrics) | learning)

    return ppo.make_agent(config, f, init, lambda state: ppo.Params(state.params.policy, ()), update)
