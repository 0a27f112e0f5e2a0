"""Ape-X DPG: D4PG's learner with many actors, which explore to different degrees and give new items their priorities.

Horgan et al. 2018, https://arxiv.org/abs/1803.00933; section numbers below are that paper's.

Deviations: the learner is D4PG's (Barth-Maron et al. 2018, https://arxiv.org/abs/1804.08617), so the critic is
distributional. Exploration differs between environments as the paper's epsilon_i does for Ape-X DQN (section 4.1). The
norm of the gradient is clipped as in Ape-X DQN (appendix C); the policy's gradient is not clipped element by element.
The oldest items are evicted first unless eviction is by priority, and the replay's size is a hard limit. Actors also
hold the target networks, so that they compute exactly the priorities that the learner would.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax

from agents import d4pg
from agents.agent import Agent, EnvironmentSpec, TimeStep, Transition, check_ranges
from agents.parts import prioritized
from agents.parts.exploration import bounded_actions, ranks_or_zeros
from agents.parts.features import refuse_frames
from agents.parts.networks import PolicyAndCritic


@dataclasses.dataclass(frozen=True)
class Config:
    """The fields of d4pg.Config, `noise_spread` and `eviction_exponent`. The replay is always prioritised."""

    hidden_sizes: tuple[int, ...] = (256, 256)
    layer_norm: bool = False
    action_layer: int = 1
    normalize_observations: bool = False

    critic: Literal["categorical", "gaussians"] = "categorical"
    v_min: float = -150.0
    v_max: float = 150.0
    num_atoms: int = 51
    num_components: int = 5
    num_samples: int = 32

    n_step: int = 5
    discount: float = 0.99
    batch_size: int = 256
    policy_learning_rate: float = 1e-4
    critic_learning_rate: float = 1e-4
    policy_period: int = 1
    target_period: int = 100
    tau: float = 1.0
    critic_weight_decay: float = 0.0
    max_gradient_norm: float = 40.0

    noise: Literal["gaussian", "ou"] = "gaussian"
    noise_scale: float = 0.4  # at rank 0; at other ranks it is noise_scale^(1 + noise_spread rank)
    noise_spread: float = 7.0  # alpha in epsilon_i = epsilon^(1 + alpha i / (N - 1))
    ou_theta: float = 0.15
    ou_dt: float = 1.0

    replay_size: int = 1_000_000
    min_replay_size: int = 1_000
    random_start: bool = False
    samples_per_insert: float = 256.0
    priority: Literal["proportional", "rank"] = "proportional"
    priority_exponent: float = 0.6
    uniform_fraction: float = 0.0
    eviction_exponent: float = 0.0  # a full replay evicts item i in proportion to p_i^this; 0: the oldest item
    importance_exponent: float = 0.4
    importance_steps: int = 0
    normalize_weights: bool = True

    def __post_init__(self):
        check_ranges(self, not_negative=("noise_spread",), fractions=("noise_scale",))
        if self.eviction_exponent > 0:
            raise ValueError(
                f"config.eviction_exponent={self.eviction_exponent} would evict what is worth most: give 0 or less"
            )
        learner(self)  # making D4PG's Config checks the other fields


def learner(config: Config) -> d4pg.Config:
    """Returns the settings of D4PG's learner."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    del fields["noise_spread"], fields["eviction_exponent"]
    return d4pg.Config(**fields, replay="prioritized")


class Memory(NamedTuple):
    """The memory that acting carries from one step to the next."""

    rank: Any  # float32 [B], 0 to 1: each environment's place among all environments of the run
    d4pg: d4pg.Memory


class Policy(NamedTuple):
    """The parameters that actors pull, to act and to compute priorities of what they saw."""

    d4pg: d4pg.Policy
    critic: Any
    targets: PolicyAndCritic


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if actions are not continuous and bounded, or if observations are frames.
    """
    refuse_frames("apex_dpg", spec)
    bounded_actions("apex_dpg", spec)
    agent = d4pg.make(learner(config), spec)
    f = d4pg.functions(learner(config), spec)

    def policy(state: d4pg.State) -> Policy:
        return Policy(agent.policy(state), state.params.critic, state.target_params)

    def memory(num_envs: int, ranks: Any = None) -> Memory:
        return Memory(ranks_or_zeros(num_envs, ranks), agent.memory(num_envs, None))

    def act(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        scales = params.d4pg.noise_scale ** (1.0 + config.noise_spread * memory.rank)
        action, extras, carried = agent.act(params.d4pg._replace(noise_scale=scales), key, timestep, memory.d4pg)
        return action, extras, Memory(memory.rank, carried)

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        action, extras, carried = agent.act_greedily(params.d4pg, key, timestep, memory.d4pg)
        return action, extras, Memory(memory.rank, carried)

    def priority(params: Policy, transition: Transition) -> Any:
        """Computes the priorities that the learner would give new items at these parameters (section 3)."""
        transition = f.prepare(params.d4pg.normalizer, transition)
        # Any key will do: it draws samples for the loss of a mixture of Gaussians, and only the errors are used here.
        distance = f.distance(params.critic, params.targets, jax.random.key(0), transition)
        return prioritized.priorities(distance.errors)

    table = dataclasses.replace(agent.table, eviction_exponent=config.eviction_exponent)
    return agent._replace(
        policy=policy, memory=memory, act=act, act_greedily=act_greedily, priority=priority, table=table
    )
