"""Ape-X DQN: DQN's learner with many actors, which explore to different degrees and give new items their priorities.

Horgan et al. 2018, https://arxiv.org/abs/1803.00933; section numbers below are that paper's.

Deviations: samples and inserts are held to a fixed ratio; the replay's size is a hard limit, and its oldest items are
evicted first. Actors also hold the target parameters, so that they compute exactly the priorities that the learner
would.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import chex
import jax

from agents import dqn
from agents.agent import Agent, EnvironmentSpec, TimeStep, Transition, check_ranges
from agents.parts import action_values, prioritized
from agents.parts.exploration import ranks_or_zeros


@dataclasses.dataclass(frozen=True)
class Config:
    """The fields of dqn.Config, with `epsilon` and `epsilon_spread` in place of its schedule of epsilon.

    The replay is always prioritised. The defaults are the paper's Atari settings (section 4.1, appendix C).
    """

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4
    hidden_sizes: tuple[int, ...] = (128, 128)
    activation: Literal["tanh", "relu"] = "relu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    dueling: bool = True
    head_size: int = 512

    double: bool = True
    loss: Literal["huber", "squared"] = "squared"
    n_step: int = 3
    discount: float = 0.99
    batch_size: int = 512
    target_period: int = 2_500

    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    learning_rate: float = 2.5e-4 / 4
    optimizer_epsilon: float = 1.5e-7  # the paper's, which does not say whether it sums or averages gradients
    rmsprop_decay: float = 0.95
    max_gradient_norm: float = 40.0

    epsilon: float = 0.4  # at rank 0; at other ranks it is epsilon^(1 + epsilon_spread rank)
    epsilon_spread: float = 7.0  # alpha in epsilon_i = epsilon^(1 + alpha i / (N - 1))

    replay_size: int = 2_000_000
    min_replay_size: int = 50_000
    samples_per_insert: float = 0.8  # the paper's learner sampled 9,700 a second, its 360 actors wrote 12,500
    priority: Literal["proportional", "rank"] = "proportional"
    priority_exponent: float = 0.6
    uniform_fraction: float = 0.0
    importance_exponent: float = 0.4
    importance_steps: int = 0
    normalize_weights: bool = True

    def __post_init__(self):
        check_ranges(self, not_negative=("epsilon_spread",))
        if not 0 < self.epsilon < 1:
            raise ValueError(f"config.epsilon must be above 0 and below 1, not {self.epsilon}")
        learner(self)  # making DQN's Config checks the other fields


def learner(config: Config) -> dqn.Config:
    """Returns the settings of DQN's learner."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    epsilon = fields.pop("epsilon")
    del fields["epsilon_spread"]
    return dqn.Config(**fields, replay="prioritized", epsilon_initial=epsilon, epsilon_final=epsilon, epsilon_steps=0)


class Memory(NamedTuple):
    """The memory that acting carries from one step to the next."""

    rank: chex.Array  # float32 [B], 0 to 1: each environment's place among all environments of the run
    dqn: action_values.Memory


class Policy(NamedTuple):
    """The parameters that actors pull, to act and to compute priorities of what they saw."""

    dqn: action_values.Policy
    target_params: Any


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if actions are not discrete, or if the network does not fit the observation.
    """
    f = dqn.functions("apex_dqn", learner(config), spec)
    agent = dqn.make(learner(config), spec)

    def memory(num_envs: int, ranks: Any = None) -> Memory:
        """Returns the first Memory. A run's only environment has rank 0, and so explores with `epsilon` itself."""
        return Memory(ranks_or_zeros(num_envs, ranks), agent.memory(num_envs, None))

    def act(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        epsilons = params.dqn.epsilon ** (1.0 + config.epsilon_spread * memory.rank)
        action, extras, carried = agent.act(params.dqn._replace(epsilon=epsilons), key, timestep, memory.dqn)
        return action, extras, Memory(memory.rank, carried)

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        action, extras, carried = agent.act_greedily(params.dqn, key, timestep, memory.dqn)
        return action, extras, Memory(memory.rank, carried)

    def priority(params: Policy, transition: Transition) -> chex.Array:
        """Computes the priorities that the learner would give new items at these parameters (section 3)."""
        found = f.losses(params.dqn.params, params.target_params, None, transition)
        return prioritized.priorities(found.errors)

    return agent._replace(
        policy=lambda state: Policy(agent.policy(state), state.target_params),
        memory=memory,
        act=act,
        act_greedily=act_greedily,
        priority=priority,
    )
