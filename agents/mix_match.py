"""Mix & Match: a curriculum over agents, from one that learns fast to the one that is wanted, with IMPALA's update.

Czarnecki et al. 2018, https://arxiv.org/abs/1806.01780. Agents pi_1 .. pi_K act together, by the mixture
pi_mm = sum_i w_i pi_i, whose value is V_mm = sum_i w_i V_i. The loss is IMPALA's loss of the mixture (Espeholt et al.
2018, https://arxiv.org/abs/1802.01561, section 4) plus lambda L_mm, which makes pi_K imitate the other agents. Here K
is 2. alpha, the weight of pi_K, is a hyperparameter that a population moves from 0 to 1. There are three curricula:

  actions         pi_1 chooses among a few of pi_2's actions, pi_2 chooses for each factor of an action
  architectures   pi_1 is feed-forward, pi_2 has an LSTM
  tasks           pi_1 is an expert for each task, pi_2 is one agent for all tasks and is not told the task

Deviations: the entropy is sum_i w_i H(pi_i), because the mixture's entropy has no closed form; the sum is a lower bound
of it, and exact where alpha is 0 or 1. In L_mm, pi_1 is a constant; taken as it stands, the formula would also draw the
teacher pi_1 to a pupil that knows nothing yet. L_mm moves a shared body by pi_2's side alone. The greedy action of a
mixture is its mode where actions are discrete. Elsewhere the mixture's mode is hard to find, and the mode of the agent
with the largest weight is taken. The optimiser is Adam; rho-bar and c-bar are 1. Costs are not the paper's, which a
population tunes. What agents/impala.py says of continuous actions and of rows that are not transitions is true here
too.
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
    Blocks,
    DiscreteActions,
    EnvironmentSpec,
    FactoredActions,
    Feedback,
    Sample,
    TimeStep,
    check_ranges,
    pmean,
    queue_table,
)
from agents.impala import vtrace
from agents.parts import normalizer, reward_scale, stacking
from agents.parts.advantages import explained_variance
from agents.parts.mixtures import Agents, few_actions, kl_from_few, log_prob_of_few, mixture_log_prob, weights
from agents.parts.networks import LSTMState
from agents.parts.optimization import check_decay, descend, initial_hypers, learning_rate_of, make_optimizer
from agents.parts.policies import make_policy
from agents.parts.torsos import check_frames


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are IMPALA's Atari settings, with Adam, and the alpha with which the curriculum begins."""

    curriculum: Literal["actions", "architectures", "tasks"] = "actions"
    # How pi_2 learns from pi_1. 'kl': by KL(pi_1 || pi_2). The other two are for the curriculum of actions alone, and
    # the paper found them worse. 'masked_kl': by the KL to pi_2 given that its action is one of the few. 'shared_head':
    # pi_1 is pi_2 given that its action is one of the few, and there is no KL.
    transfer: Literal["kl", "masked_kl", "shared_head"] = "kl"
    evaluate: Literal["control", "target"] = "control"  # who plays greedily: control, the mixture; target, pi_K alone
    alpha: float = 0.0  # w_K, the weight of pi_K, at first
    kl_cost: float = 1.0  # lambda, the factor of L_mm

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # newest frames of the episode that the network sees at once; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = (64, 64)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "tanh"  # the mlp torso's
    lstm_size: int = 0  # units of pi_2's LSTM in the curriculum of architectures, else of the body's; 0: there is none
    shared_body: bool = True  # True: all agents share a torso, and the body's LSTM if there is one; False: one each
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the network's arithmetic; parameters stay float32
    sigma: Literal["free", "state"] = "free"  # continuous actions: sigma is a parameter (free) or a network output
    sigma_initial: float = 1.0  # the first sigma, on the scale where an action's bounds are -1 and 1
    squash: bool = False  # tanh brings continuous actions into their bounds; False: they are clipped

    unroll_length: int = 20  # T
    batch_size: int = 32  # B, sequences in one update
    discount: float = 0.99  # gamma
    reward_scale: float = 1.0  # a factor of all rewards; values far from 1 are slow to learn
    normalize_rewards: bool = False  # divides rewards by the running std of discounted returns, before reward_scale
    lambda_: float = 1.0  # V-trace's lambda
    baseline_cost: float = 0.5
    entropy_cost: float = 0.01

    learning_rate: float = 5e-4  # Adam's
    epsilon: float = 1e-5  # Adam's, outside the square root
    max_gradient_norm: float = 40.0  # the gradient, summed over time and batch, is clipped to this norm
    warmup_env_steps: int = 0  # environment steps in which the learning rate first rises linearly from 0; 0: none
    decay_env_steps: int = 0  # environment steps after which the learning rate has fallen to 0; 0: it stays constant
    decay: Literal["linear", "cosine"] = "linear"  # the shape of that fall

    queue_batches: int = 1  # batches that may wait in the queue; with more, experience is older

    def __post_init__(self):
        check_ranges(
            self,
            counts=("frame_stack", "unroll_length", "batch_size", "queue_batches"),
            positive=("learning_rate", "epsilon", "max_gradient_norm", "reward_scale", "sigma_initial"),
            not_negative=(
                *("lstm_size", "kl_cost", "baseline_cost", "entropy_cost"),
                *("decay_env_steps", "warmup_env_steps"),
            ),
            fractions=("alpha", "discount", "lambda_"),
        )
        check_decay(self)
        if self.curriculum == "architectures" and not self.lstm_size:
            raise ValueError("config.curriculum=architectures ends in an agent with an LSTM: give config.lstm_size")
        if self.curriculum != "actions" and self.transfer != "kl":
            raise ValueError(
                f"config.transfer={self.transfer} is for config.curriculum=actions; use config.transfer=kl"
            )


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    learning_rate: Any
    discount: Any
    baseline_cost: Any
    entropy_cost: Any
    kl_cost: Any
    alpha: Any


class Params(NamedTuple):
    """The parameters that actors pull; with alpha, they mix the agents as the learner does."""

    network: Any
    alpha: Any  # float32 scalar


class State(NamedTuple):
    params: Any
    opt_state: optax.OptState
    returns: Any  # statistics of discounted returns, or () where rewards are not normalised
    hypers: Hypers
    step: chex.Array  # updates so far, int32
    env_steps: chex.Array  # float32, the run's environment steps so far; the learner sets it before each update


class Memory(NamedTuple):
    """The memory that acting carries from one step to the next."""

    frames: chex.Array | None  # uint8 [B, frame_stack - 1, H, W]; None if frames are not stacked
    lstm: tuple[LSTMState, ...]  # the state of each LSTM
    task: chex.Array | None  # int32 [B], each environment's task; None unless the curriculum is of tasks
    discounted_return: Any  # float32 [B], of the episode so far; () where rewards are not normalised


def check(config: Config, spec: EnvironmentSpec) -> None:
    """Raises ValueError if the curriculum does not fit the environment."""
    actions = spec.actions
    if config.curriculum == "tasks" and spec.num_tasks < 2:
        raise ValueError("config.curriculum=tasks needs several tasks: give their names to --env, with commas between")
    if config.curriculum == "actions":
        if not isinstance(actions, FactoredActions) or not actions.small:
            raise ValueError(
                "config.curriculum=actions needs actions of several factors, and a small set of them to begin with: "
                "use an environment that has both, or config.curriculum=architectures"
            )
        for action in actions.small:
            if len(action) != len(actions.sizes) or not all(0 <= a < n for a, n in zip(action, actions.sizes)):
                raise ValueError(f"the small action {action} is not one with {actions.sizes} choices: correct it")
        if len(set(actions.small)) < len(actions.small):
            raise ValueError(f"the small actions {actions.small} have one action twice: leave one out")


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if the curriculum or the network does not fit the environment, or if an action has no bounds.
    """
    check(config, spec)
    check_frames(config.torso, config.frame_stack, spec.observation_shape)
    # The family of distributions of pi_K.
    target = make_policy("mix_match", spec, config.sigma, config.sigma_initial, config.squash)
    policies, kl = (target, target), target.kl
    if config.curriculum == "actions":
        assert isinstance(spec.actions, FactoredActions)
        small = spec.actions.small
        policies = (few_actions(small, target), target)
        kl = functools.partial(kl_from_few, small, target, masked=config.transfer == "masked_kl")
    K = len(policies)
    network: Any = Agents(config, policies, spec.num_tasks if config.curriculum == "tasks" else 1)
    optimizer = make_optimizer("adam", config.epsilon, max_gradient_norm=config.max_gradient_norm)
    steps_per_update = config.unroll_length * config.batch_size

    def memory(num_envs: int, ranks: Any) -> Memory:
        task = jnp.arange(num_envs, dtype=jnp.int32) % spec.num_tasks if config.curriculum == "tasks" else None
        frames = stacking.no_frames(num_envs, config.frame_stack, spec.observation_shape, spec.observation_dtype)
        return Memory(frames, network.initial_states(num_envs), task, reward_scale.start(config, num_envs))

    def init(key: jax.Array) -> State:
        first, batch = jnp.ones((1, 1), bool), memory(1, None)
        observation = jnp.zeros((1, 1, *spec.observation_shape), spec.observation_dtype)
        seen, _ = stacking.see(config.torso, observation, first, batch.frames)
        params = network.init(key, seen, first, batch.lstm, batch.task)
        hypers = initial_hypers(Hypers, config)
        returns = reward_scale.init(config)
        return State(params, optimizer.init(params), returns, hypers, jnp.int32(0), jnp.float32(0))

    def unroll(params, observation, first, memory: Memory):
        """Returns each agent's outputs [T, B, P], the values [K, T, B] and the Memory after the rows."""
        seen, frames = stacking.see(config.torso, observation, first, memory.frames)
        outputs, values, lstm = network.apply(params, seen, first, memory.lstm, memory.task)
        if config.transfer == "shared_head":  # pi_1's own outputs are never used
            outputs = (log_prob_of_few(small, target, outputs[1]), outputs[1])
        return outputs, values, memory._replace(frames=frames, lstm=lstm)

    def log_prob(w: chex.Array, outputs: Any, raw: Any) -> chex.Array:
        return mixture_log_prob(w, jnp.stack([p.log_prob(o, raw) for p, o in zip(policies, outputs)]))

    def forward(params: Params, timestep: TimeStep, memory: Memory):
        """Returns w, each agent's outputs [B, P] and the next Memory."""
        outputs, _, memory = unroll(params.network, timestep.observation[None], timestep.first[None], memory)
        memory = memory._replace(discounted_return=reward_scale.follow(config, memory.discounted_return, timestep))
        return weights(params.alpha, K), [o[0] for o in outputs], memory

    def act(params: Params, key: jax.Array, timestep: TimeStep, memory: Memory):
        w, outputs, memory = forward(params, timestep, memory)
        # All agents choose with the same key, and one agent's choice is played. Where one agent has all the weight, all
        # actions are its own.
        who_key, key = jax.random.split(key)
        who = jax.random.categorical(who_key, jnp.log(w), shape=timestep.first.shape)
        choices = jnp.stack([p.sample(key, o) for p, o in zip(policies, outputs)])
        raw = choices[who, jnp.arange(len(who))]
        extras = target.keep(raw) | reward_scale.keep(memory.discounted_return)
        return target.to_environment(raw), extras | {"log_mu": log_prob(w, outputs, raw)}, memory

    def act_greedily(params: Params, key: jax.Array, timestep: TimeStep, memory: Memory):
        del key
        w, outputs, memory = forward(params, timestep, memory)
        if config.evaluate == "target":
            raw = target.mode(outputs[-1])
        elif isinstance(spec.actions, DiscreteActions):
            raw = target.mode(sum(w[i] * jax.nn.softmax(o) for i, o in enumerate(outputs)))
        else:
            raw = jnp.stack([p.mode(o) for p, o in zip(policies, outputs)])[jnp.argmax(w)]
        return target.to_environment(raw), {}, memory

    def loss(params, state: State, sample: Sample):
        steps, hypers = sample.steps, state.hypers
        w = weights(hypers.alpha, K)[:, None, None]
        outputs, values, _ = unroll(params, steps.observation, steps.first, sample.memory)
        values = jnp.sum(w * values, axis=0)  # V_mm
        pi = [o[:-1] for o in outputs]
        live, log_pi = steps.live, log_prob(w, pi, target.kept(steps)[:-1])

        v = vtrace(
            jax.lax.stop_gradient(values),
            config.reward_scale * reward_scale.scaled(state.returns, steps.reward[:-1]),
            hypers.discount * steps.discount[:-1],
            jax.lax.stop_gradient(log_pi) - steps.extras["log_mu"][:-1],
            live,
            lambda_=config.lambda_,
        )
        # An action that a change of alpha has made impossible since it was played has a ratio of 0, so its advantage is
        # 0, and its log pi is -inf: their product must be 0 and not NaN.
        policy_loss = -jnp.mean(v.advantages * jnp.where(log_pi > -jnp.inf, log_pi, 0.0))
        entropies = jnp.stack([p.entropy(o) for p, o in zip(policies, pi)])  # [K, T, B]
        entropy = jnp.mean(live * jnp.sum(w * entropies, axis=0))
        baseline_loss = 0.5 * jnp.mean(live * jnp.square(v.targets - values[:-1]))
        kls = jnp.zeros_like(entropies[:-1])  # KL(pi_i || pi_K), [K - 1, T, B]
        if config.transfer != "shared_head":
            kls = jnp.stack([kl(jax.lax.stop_gradient(p), pi[-1]) for p in pi[:-1]])
        transfer_loss = jnp.mean(live * jnp.sum(w[:-1] * kls, axis=0))  # L_mm; w_1 is 1 - alpha
        total = (
            policy_loss
            + hypers.baseline_cost * baseline_loss
            - hypers.entropy_cost * entropy
            + hypers.kl_cost * transfer_loss
        )
        live_fraction = jnp.maximum(live.mean(), 1e-6)  # metrics are means over transitions alone
        metrics = {
            "loss": total,
            "policy_loss": policy_loss,
            "baseline_loss": baseline_loss,
            "entropy": entropy / live_fraction,
            "kl": jnp.mean(live * jnp.sum(kls, axis=0)) / live_fraction,
            "alpha": hypers.alpha,
            "value": values.mean(),
            "explained_variance": explained_variance(v.targets - values[:-1], v.targets),
            "rho": v.rhos.mean() / live_fraction,
        }
        metrics |= {f"entropy_{i}": jnp.mean(live * e) / live_fraction for i, e in enumerate(entropies, start=1)}
        # The sum over time and batch, as in agents/impala.py.
        return total * steps_per_update, metrics

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        del key
        gradient, metrics = pmean(jax.grad(loss, has_aux=True)(state.params, state, sample))
        learning_rate = learning_rate_of(config, state)
        params, opt_state = descend(optimizer, gradient, state.opt_state, state.params, learning_rate)
        metrics |= {"gradient_norm": optax.tree.norm(gradient), "learning_rate": learning_rate}
        returns = normalizer.join(state.returns, reward_scale.seen(config, sample.steps))
        return state._replace(params=params, opt_state=opt_state, returns=returns, step=state.step + 1), Feedback(
            metrics
        )

    return Agent(
        init=init,
        policy=lambda state: Params(state.params, state.hypers.alpha),
        memory=memory,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=queue_table(config, Blocks(config.unroll_length)),
        batch_size=config.batch_size,
    )
