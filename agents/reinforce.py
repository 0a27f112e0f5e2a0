"""REINFORCE, with and without a learnt baseline, and the all-actions policy gradient, from whole episodes.

Williams 1992, https://doi.org/10.1007/BF00992696; Sutton and Barto 2018,
http://incompleteideas.net/book/the-book-2nd.html, sections 13.2 to 13.4, whose notation this file uses: theta are the
parameters of the policy, w those of the baseline v or of the action values q. `form` chooses REINFORCE or the update of
eq. 13.7, which sums over all actions and so needs discrete ones; its q is learnt from the returns of the actions that
were taken, as v is. For continuous actions the policy is a Gaussian (section 13.7; Williams's section 6).

Deviations: an update is one step by the mean over several episodes of the sum over an episode's steps, all computed
with the parameters before the update. The policy that acted may be a few updates older, Adam may transform the
gradient, and gamma^t may be left out. An episode that a time limit ends counts as complete: its return does not
bootstrap.
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
    WholeEpisodes,
    check_ranges,
    pmean,
    queue_table,
)
from agents.parts import features
from agents.parts.exploration import discrete_actions
from agents.parts.networks import MLP
from agents.parts.optimization import descend, initial_hypers
from agents.parts.policies import make_policy


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings; by default the book's plain form: no baseline, linear functions, a gradient step per episode."""

    form: Literal["reinforce", "all_actions"] = "reinforce"
    baseline: bool = False  # with form=reinforce: whether v(s, w) is subtracted from the return
    discount_weighting: bool = True  # whether the step at time t has the weight gamma^t; else 1
    max_episode_steps: int = 0  # actions in the longest episode; 0: the environment's own limit

    hidden_sizes: tuple[int, ...] = ()  # of the policy and of the critic, which share nothing; (): linear
    activation: Literal["tanh", "relu"] = "tanh"
    initial_preferences: tuple[float, ...] = ()  # initial policy outputs h(s, ., theta); (): about 0
    sigma: Literal["state", "free"] = "state"  # continuous actions: sigma is a parameter (free) or a network output
    sigma_initial: float = 1.0  # the first sigma, on the scale where an action's bounds are -1 and 1

    discount: float = 0.99  # gamma
    batch_size: int = 1  # episodes in one update
    optimizer: Literal["sgd", "adam"] = "sgd"
    alpha_theta: float = 2**-13  # step size of the policy
    alpha_w: float = 2**-6  # step size of v or q
    optimizer_epsilon: float = 1e-8  # added outside Adam's square root

    queue_batches: int = 1  # batches that may wait in the queue; with more, experience is older

    def __post_init__(self):
        check_ranges(
            self,
            counts=("batch_size", "queue_batches"),
            positive=("alpha_theta", "alpha_w", "optimizer_epsilon", "sigma_initial"),
            not_negative=("max_episode_steps",),
            fractions=("discount",),
        )
        if self.baseline and self.form == "all_actions":
            raise ValueError("config.baseline is for config.form=reinforce: in a sum over all actions it has no effect")


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    alpha_theta: Any
    alpha_w: Any
    discount: Any


class Params(NamedTuple):
    theta: Any  # parameters of the policy
    w: Any  # parameters of v or q; () without either


class State(NamedTuple):
    params: Params
    opt_state: optax.OptState
    hypers: Hypers
    step: chex.Array  # updates so far, int32


def returns(rewards: chex.Array, live: chex.Array, discount: Any) -> chex.Array:
    """Computes G_t = R_{t+1} + gamma R_{t+2} + ... to the episode's end (eq. 3.8); 0 where a row is not a transition.

    Args:
      rewards: R_{t+1}, [T, B].
      live: 1 where row t is a transition, else 0, [T, B].
      discount: gamma, a scalar.
    """
    import rlax  # here, not above: where TensorFlow is installed it takes seconds

    backwards = jax.vmap(rlax.discounted_returns, in_axes=(1, 1, None), out_axes=1)
    return backwards(live * rewards, discount * live, 0.0)


def longest_episode(config: Config, spec: EnvironmentSpec) -> int:
    """Returns the number of actions in the longest episode.

    Raises:
      ValueError: the number is not known, or the environment's is above config.max_episode_steps.
    """
    told, limit = config.max_episode_steps, spec.max_episode_steps
    if limit is None and not told:
        raise ValueError("this environment does not say how long an episode may be: give config.max_episode_steps")
    if limit is not None and 0 < told < limit:
        raise ValueError(
            f"config.max_episode_steps={told} must be {limit} or more, the most steps of this environment's episodes"
        )
    return limit or told


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: an action has no bounds, actions are not discrete with form=all_actions, observations are frames, the
        longest episode is not known, or config.initial_preferences does not fit the policy's outputs.
    """
    policy = make_policy("reinforce", spec, config.sigma, config.sigma_initial)
    seen = features.vector("reinforce", spec)
    longest = longest_episode(config, spec)
    all_actions = config.form == "all_actions"
    start = config.initial_preferences or (0.0,) * policy.num_outputs
    if len(start) != policy.num_outputs:
        raise ValueError(f"config.initial_preferences={start} needs {policy.num_outputs} numbers, one for each output")
    network = MLP(policy.num_outputs, config.hidden_sizes, config.activation, policy.num_free)
    num_values = discrete_actions("all_actions", spec) if all_actions else 1
    critic = MLP(num_values, config.hidden_sizes, config.activation)
    direction = optax.scale_by_adam(eps=config.optimizer_epsilon) if config.optimizer == "adam" else optax.identity()

    def outputs(theta, x) -> chex.Array:
        """Computes the policy's outputs: h(s, ., theta) for discrete actions, mu and log sigma for continuous ones."""
        moved: Any = network.apply(theta, x)
        return moved + jnp.array(start)

    def values(w, x) -> chex.Array:
        """Computes q(s, ., w), [..., A], or v(s, w), [..., 1], which is 0 without a baseline."""
        learnt: Any = critic.apply(w, x) if all_actions or config.baseline else jnp.zeros((*x.shape[:-1], 1))
        return learnt

    def init(key: jax.Array) -> State:
        theta_key, w_key = jax.random.split(key)
        x = jnp.zeros(seen.size)
        w = critic.init(w_key, x) if all_actions or config.baseline else ()
        params = Params(network.init(theta_key, x), w)
        return State(params, direction.init(params), initial_hypers(Hypers, config), jnp.int32(0))

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

    def loss(params: Params, hypers: Hypers, sample: Sample):
        """Computes a loss whose gradient is minus the update's direction: the mean over episodes of sums over steps."""
        steps, live = sample.steps, sample.steps.live
        x, action = seen.phi(steps.observation[:-1]), policy.kept(steps)[:-1]
        G = returns(steps.reward[:-1], live, hypers.discount)
        time = jnp.arange(longest)[:, None]  # row t of a sequence is time t of its episode
        weights = live * (hypers.discount**time if config.discount_weighting else 1.0)
        pi, of_critic = outputs(params.theta, x), values(params.w, x)
        if all_actions:  # sum_a q(S_t, a, w) grad pi(a | S_t, theta)
            learnt = jnp.take_along_axis(of_critic, action[..., None], axis=-1)[..., 0]
            policy_loss = -jnp.sum(weights * jnp.sum(jax.nn.softmax(pi) * jax.lax.stop_gradient(of_critic), axis=-1))
        else:  # (G_t - v(S_t, w)) grad ln pi(A_t | S_t, theta)
            learnt = of_critic[..., 0]
            policy_loss = -jnp.sum(weights * jax.lax.stop_gradient(G - learnt) * policy.log_prob(pi, action))
        episodes = live.shape[1]
        delta = live * (G - learnt)
        critic_loss = 0.5 * jnp.sum(jnp.square(delta))
        number = jnp.maximum(live.sum(), 1e-6)
        metrics = {
            "policy_loss": policy_loss / episodes,
            "critic_loss": critic_loss / number,
            "entropy": jnp.sum(live * policy.entropy(pi)) / number,
            "episode_return": G[0].mean(),
            "episode_length": live.sum() / episodes,
        }
        return (policy_loss + critic_loss) / episodes, metrics

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        del key
        gradient, metrics = pmean(jax.grad(loss, has_aux=True)(state.params, state.hypers, sample))
        alphas = Params(state.hypers.alpha_theta, state.hypers.alpha_w)
        params, opt_state = descend(direction, gradient, state.opt_state, state.params, alphas)
        metrics |= {"gradient_norm": optax.tree.norm(gradient.theta)}
        return State(params, opt_state, state.hypers, state.step + 1), Feedback(metrics)

    # An item is one episode: all its rows, with the row of its last observation, and padding.
    table = queue_table(config, WholeEpisodes(longest))
    return Agent(
        init=init,
        policy=lambda state: state.params.theta,
        memory=memory,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=table,
        batch_size=config.batch_size,
    )
