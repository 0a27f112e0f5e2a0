"""Actor-critic, one-step and with eligibility traces: policy and value learn online from each temporal difference.

Sutton and Barto 2018, http://incompleteideas.net/book/the-book-2nd.html, section 13.5, whose names are used here:
theta parametrises the policy, w the value, z are their traces, I is gamma^t. With both lambdas 0, the boxed algorithm
with traces becomes the one-step algorithm. Continuous actions have a Gaussian policy (section 13.7), as in Degris,
Pilarski and Sutton 2012, https://doi.org/10.1109/ACC.2012.6315022; this is the discounted form of theirs.

Deviations: a step is the mean of the steps of several environments at the same time, each of which has traces of its
own; the policy that acted may be some updates old; Adam may take its steps from the direction delta z; I may stay at 1.
Where an episode is truncated, the value of its last observation stands for the rest of the return.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from agents.agent import Agent, Blocks, EnvironmentSpec, Feedback, Sample, TimeStep, check_ranges, pmean, queue_table
from agents.parts import features
from agents.parts.networks import MLP
from agents.parts.optimization import initial_hypers
from agents.parts.policies import make_policy


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are the book's plain form: one step, linear functions, stochastic gradient ascent."""

    lambda_theta: float = 0.0  # lambda of the policy's trace
    lambda_w: float = 0.0  # lambda of the value's trace
    discount_weighting: bool = True  # True: I = gamma^t; False: I = 1

    hidden_sizes: tuple[int, ...] = ()  # of the policy's and the value's separate networks; (): linear functions
    activation: Literal["tanh", "relu"] = "tanh"
    sigma: Literal["state", "free"] = "state"  # continuous actions: sigma is a parameter (free) or a network output
    sigma_initial: float = 1.0  # the first sigma, on the scale where an action's bounds are -1 and 1

    discount: float = 0.99  # gamma
    unroll_length: int = 1  # T, steps of each environment in one sample, which the update takes one after another
    batch_size: int = 1  # B, environments
    optimizer: Literal["sgd", "adam"] = "sgd"
    alpha_theta: float = 2**-9
    alpha_w: float = 2**-6
    optimizer_epsilon: float = 1e-8  # outside Adam's square root

    queue_batches: int = 1  # batches that may wait in the queue; with more, experience is older

    def __post_init__(self):
        check_ranges(
            self,
            counts=("unroll_length", "batch_size", "queue_batches"),
            positive=("alpha_theta", "alpha_w", "optimizer_epsilon", "sigma_initial"),
            fractions=("discount", "lambda_theta", "lambda_w"),
        )


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    alpha_theta: Any
    alpha_w: Any
    discount: Any
    lambda_theta: Any
    lambda_w: Any


class Params(NamedTuple):
    theta: Any  # parameters of the policy
    w: Any  # parameters of the value


class Traces(NamedTuple):
    """The eligibility traces of each environment's episode so far."""

    z: Params  # a trace [B, ...] for each parameter array [...]
    I: chex.Array  # float32 [B], gamma^t, or 1 without `discount_weighting`


class State(NamedTuple):
    params: Params
    opt_state: optax.OptState
    # Rows for all B environments. With several devices, each device keeps its own environments' traces in the first
    # rows, as many as its share of the batch has.
    traces: Traces
    hypers: Hypers
    step: chex.Array  # updates so far, int32


def decay_and_add(
    traces: Traces, gradients: Params, first: chex.Array, hypers: Hypers, discount_weighting: bool
) -> Traces:
    """Decays the traces and adds this row's gradients to them; returns them with I of the next row.

    Args:
      traces: the traces after the row before.
      gradients: the gradients of ln pi(A_t | S_t, theta) and of v(S_t, w), [B, ...].
      first: bool [B], the row opens an episode: the traces before it are forgotten, and I starts at 1.
    """
    I = jnp.where(first, 1.0, traces.I)

    def add(z, gradient, decay, weight):
        each = (-1, *(1 for _ in z.shape[1:]))
        return decay * jnp.where(first.reshape(each), 0.0, z) + jnp.reshape(weight, each) * gradient

    gamma = hypers.discount
    theta = jax.tree.map(lambda z, g: add(z, g, gamma * hypers.lambda_theta, I), traces.z.theta, gradients.theta)
    w = jax.tree.map(lambda z, g: add(z, g, gamma * hypers.lambda_w, jnp.float32(1.0)), traces.z.w, gradients.w)
    return Traces(Params(theta, w), gamma * I if discount_weighting else I)


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if actions have no bounds, or if observations are frames.
    """
    policy = make_policy("actor_critic", spec, config.sigma, config.sigma_initial)
    seen = features.vector("actor_critic", spec)
    network = MLP(policy.num_outputs, config.hidden_sizes, config.activation, policy.num_free)
    value = MLP(1, config.hidden_sizes, config.activation)
    direction = optax.scale_by_adam(eps=config.optimizer_epsilon) if config.optimizer == "adam" else optax.identity()

    def outputs(theta, x) -> Any:
        """Returns the policy's outputs: h(s, ., theta) of discrete actions, mu and log sigma of continuous ones."""
        return network.apply(theta, x)

    def v(w, x) -> chex.Array:
        values: Any = value.apply(w, x)
        return values[..., 0]

    def log_pi(theta, x, action):
        return policy.log_prob(outputs(theta, x), action)

    def init(key: jax.Array) -> State:
        theta_key, w_key = jax.random.split(key)
        x = jnp.zeros(seen.size)
        params = Params(network.init(theta_key, x), value.init(w_key, x))
        z = jax.tree.map(lambda p: jnp.zeros((config.batch_size, *p.shape)), params)
        traces = Traces(z, jnp.ones(config.batch_size))
        return State(params, direction.init(params), traces, initial_hypers(Hypers, config), jnp.int32(0))

    def memory(num_envs: int, ranks: Any = None) -> tuple[()]:
        del num_envs, ranks
        return ()

    def act(theta, key: jax.Array, timestep: TimeStep, memory: tuple[()]):
        raw = policy.sample(key, outputs(theta, seen.phi(timestep.observation)))
        return policy.to_environment(raw), policy.keep(raw), memory

    def act_greedily(theta, key: jax.Array, timestep: TimeStep, memory: tuple[()]):
        del key
        raw = policy.mode(outputs(theta, seen.phi(timestep.observation)))
        return policy.to_environment(raw), {}, memory

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        del key
        steps, hypers = sample.steps, state.hypers
        streams = steps.first.shape[1]
        x, live = seen.phi(steps.observation), steps.live

        def step(carry, row):
            """Learns from one time step of all environments."""
            params, opt_state, traces = carry
            x, action, reward, discount, next_x, first, live = row
            values, grad_v = jax.vmap(jax.value_and_grad(v), (None, 0))(params.w, x)
            grad_log_pi = jax.vmap(jax.grad(log_pi), (None, 0, 0))(params.theta, x, action)
            delta = live * (reward + discount * v(params.w, next_x) - values)
            traces = decay_and_add(traces, Params(grad_log_pi, grad_v), first, hypers, config.discount_weighting)
            # The mean over the live rows of all devices: `pmean` averages both the sum and the number over devices.
            sums = jax.tree.map(lambda z: jnp.tensordot(delta, z, axes=1), traces.z)
            sums, number = pmean((sums, live.sum()))
            ascent, opt_state = direction.update(
                jax.tree.map(lambda s: s / jnp.maximum(number, 1e-6), sums), opt_state, params
            )
            params = Params(
                jax.tree.map(lambda p, a: p + hypers.alpha_theta * a, params.theta, ascent.theta),
                jax.tree.map(lambda p, a: p + hypers.alpha_w * a, params.w, ascent.w),
            )
            return (params, opt_state, traces), (delta, optax.tree.norm(ascent))

        mine = jax.tree.map(lambda z: z[:streams], state.traces)
        rows = (x[:-1], policy.kept(steps)[:-1], steps.reward[:-1], hypers.discount * steps.discount[:-1], x[1:])
        (params, opt_state, mine), (delta, norm) = jax.lax.scan(
            step, (state.params, state.opt_state, mine), (*rows, steps.first[:-1], live)
        )
        traces = jax.tree.map(lambda all, z: all.at[:streams].set(z), state.traces, mine)
        number = jnp.maximum(pmean(live.sum()), 1e-6)
        entropy = policy.entropy(outputs(params.theta, x)).mean()
        absolute, entropy, values, trace = pmean(
            (jnp.abs(delta).sum(), entropy, v(params.w, x).mean(), optax.tree.norm(mine.z))
        )
        metrics = {"td_error": absolute / number, "value": values, "entropy": entropy}
        metrics |= {"step_norm": norm[-1], "trace_norm": trace}
        return State(params, opt_state, traces, hypers, state.step + 1), Feedback(metrics)

    return Agent(
        init=init,
        policy=lambda state: state.params.theta,
        memory=memory,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=queue_table(config, Blocks(config.unroll_length)),
        batch_size=config.batch_size,
        in_order=True,
    )
