"""The settings that `--preset=paper` gives a run: those of each agent's paper, on the paper's kinds of environments.

A field of the agent's Config that is not set here has the paper's value by default. The tables in docs/, under "The
paper's settings", say where the paper gives each value, and what cannot be as in the paper. A test compares the tables
with this module.
"""

import fnmatch
from collections.abc import Callable
from typing import Any, NamedTuple

from environments import tasks
from launchers import kinds
from launchers.kinds import Kind
from launchers.presets import atari, dm_control


class Paper(NamedTuple):
    of: str | Callable[[Kind], bool]  # a task by name, or several by a pattern (shell style); or a kind
    example: str  # an environment that `of` fits
    run: dict[str, Any]  # fields of Run
    config: dict[str, Any]  # fields of the agent's Config


def gym_mujoco(kind: Kind) -> bool:
    """Returns whether a kind is one of Gymnasium's MuJoCo tasks, as EnvPool has them. Binned actions are excluded."""
    return kind.suite == "mujoco.gym" and kind.actions == "continuous"


def simulated_control(kind: Kind) -> bool:
    return gym_mujoco(kind) or dm_control(kind)


ONE = {"num_actors": 1, "envs_per_actor": 1}
SAMPLED = {"eval_policy": "sampled"}
FEW_ACTORS = {"num_actors": 4}  # each has an equal part of the environments of a paper's many actors
ATARI_STEPS = {"max_env_steps": 50_000_000}  # 200 million frames
FIVE_MINUTES = {"eval_max_steps": 4_500}  # the steps of five minutes of Atari, 18,000 frames

DQN_RUN = ONE | ATARI_STEPS | FIVE_MINUTES | {"eval_episodes": 30, "eval_period": 250_000, "eval_epsilon": 0.05}
# Double DQN's settings as tuned in its paper, from which the papers on dueling networks and prioritised replay start.
TUNED_RUN = ONE | ATARI_STEPS | {"eval_episodes": 30, "eval_period": 250_000, "eval_epsilon": 0.001}
TUNED = {"double": True, "target_period": 7_500, "epsilon_final": 0.01}

# C51 is in Rainbow's file, whose defaults switch all of Rainbow's parts on. C51 has the value distribution alone.
C51 = {
    "double": False,
    "dueling": False,
    "noisy": False,
    "replay": "uniform",
    "head_size": 0,
    "n_step": 1,
    "target_period": 2_500,
    "learning_rate": 2.5e-4,
    "optimizer_epsilon": 0.01 / 32,
    "epsilon_initial": 1.0,
    "epsilon_final": 0.01,
    "epsilon_steps": 250_000,
    "min_replay_size": 50_000,
}

ASYNC_RUN = {
    "travels": "gradients",
    "max_env_steps": 80_000_000,
    "num_actors": 16,
    "envs_per_actor": 1,
    "eval_episodes": 30,
}
# The gradient is a mean over T = 5 steps and in the paper it is a sum, so epsilon is scaled to the mean.
ASYNC_Q = {
    "torso": "shallow",
    "frame_stack": 4,
    "unroll_length": 5,
    "target_period": 2_000,
    "optimizer": "rmsprop",
    "optimizer_epsilon": 0.1 / 5**2,
    "learning_rate": 7e-4,
    "epsilon_initial": 1.0,
    "epsilon_finals": (0.1,) * 4 + (0.01,) * 3 + (0.5,) * 3,
    "epsilon_steps": 200_000,
}

CONTROL_RUN = ONE | {"eval_episodes": 10}
LOCOMOTION_RUN = {"num_actors": 1, "eval_episodes": 10, "synchronous": True}
LOCOMOTION = {"unroll_length": 1_000, "lambda_": 1.0, "fisher_fraction": 0.1}
BIG_LOCOMOTION_RUN = LOCOMOTION_RUN | {"max_env_steps": 200_000_000, "envs_per_actor": 1_000}
BIG_LOCOMOTION = LOCOMOTION | {"batch_size": 1_000, "hidden_sizes": (50,)}

CLIFF = "gymnasium:CliffWalking-v*"  # not EnvPool's, whose episodes go on beyond --eval_max_steps
CLIFF_RUN = ONE | {"max_env_steps": 20_000, "eval_episodes": 10, "eval_max_steps": 100, "synchronous": True}
CLIFF_TABLE = {"learning_rate": 0.5, "decay_env_steps": 0, "discount": 1.0}

SHORT_CORRIDOR = "gymnasium:environments.textbook:ShortCorridor-v0"

# Below, `env_kwargs` make episodes longer than the suite's 200 steps.
LINEAR_RUN = ONE | {"max_env_steps": 500_000, "eval_episodes": 10}
MOUNTAIN_CAR = {"observation_low": (-1.2, -0.07), "observation_high": (0.6, 0.07)}
DPG_RUN = LINEAR_RUN | {"env_kwargs": '{"max_episode_steps": 1000}'}
DPG = {"features": "tiles", "squash": False}

TD3_RUN = CONTROL_RUN | {"max_env_steps": 1_000_000, "eval_period": 5_000}
TD3 = {
    "hidden_sizes": (400, 300),
    "batch_size": 100,
    "samples_per_insert": 100.0,
    "policy_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
}
# The start in tasks whose episodes all have the same length; in the others it is 1,000 steps.
LONG_START = {"min_replay_size": 10_000}


def async_q(**config: Any) -> list[Paper]:
    return [Paper(atari, "Pong-v5", ASYNC_RUN, ASYNC_Q | config)]


def corridor(**config: Any) -> list[Paper]:
    run = ONE | SAMPLED | {"max_env_steps": 20_000, "eval_episodes": 20, "eval_period": 1_000}
    # The first policy goes left with probability 0.95.
    config = {"hidden_sizes": (), "discount": 1.0, "initial_preferences": (1.472, -1.472)} | config
    return [Paper("environments.textbook:ShortCorridor-v0", SHORT_CORRIDOR, run, config)]


PAPERS: dict[str, list[Paper]] = {
    "dqn": [Paper(atari, "Pong-v5", DQN_RUN, {})],
    "double_dqn": [
        Paper(atari, "Pong-v5", DQN_RUN | {"eval_episodes": 100, "eval_period": 1_000_000}, {"double": True})
    ],
    "dueling_dqn": [
        Paper(
            atari,
            "Pong-v5",
            TUNED_RUN,
            # The norm is of the mean over the batch of 32; the paper's code clips the norm of the sum, at 10.
            TUNED | {"dueling": True, "head_size": 512, "learning_rate": 6.25e-5, "max_gradient_norm": 10 / 32},
        )
    ],
    "prioritized_dqn": [
        Paper(
            atari,
            "Pong-v5",
            TUNED_RUN,
            # A quarter of DQN's step size; the paper's code scales every term of a step.
            TUNED | {"replay": "prioritized", "learning_rate": 2.5e-4 / 4, "optimizer_epsilon": 0.01 / 32**2 / 4**2},
        )
    ],
    "c51": [Paper(atari, "Pong-v5", TUNED_RUN, C51)],
    "rainbow": [Paper(atari, "Pong-v5", TUNED_RUN | {"eval_epsilon": 0.0}, {})],
    "qr_dqn": [Paper(atari, "Pong-v5", TUNED_RUN, {})],
    "iqn": [Paper(atari, "Pong-v5", TUNED_RUN, {})],
    "munchausen_dqn": [
        Paper(
            atari,
            "Pong-v5",
            TUNED_RUN | {"atari_protocol": "machado", "env_kwargs": '{"full_action_space": false}'},
            {},
        )
    ],
    "apex_dqn": [
        Paper(
            atari,
            "Pong-v5",
            FEW_ACTORS | {"max_env_steps": 5_700_000_000, "envs_per_actor": 90, "eval_episodes": 10},
            {},
        )
    ],
    "r2d2": [
        Paper(
            atari,
            "Pong-v5",
            FEW_ACTORS
            | {
                "max_env_steps": 2_500_000_000,
                "envs_per_actor": 64,
                "eval_episodes": 10,
                "reward_clip": "none",
                "env_kwargs": '{"episodic_life": false}',
            },
            {},
        )
    ],
    "gorila": [
        Paper(
            atari,
            "Pong-v5",
            DQN_RUN | {"travels": "gradients", "num_actors": 4, "max_staleness": 100},
            {"target_period": 60_000, "epsilon_steps": 1_000_000},
        )
    ],
    "async_q": async_q(),
    "async_n_step_q": async_q(form="n_step_q"),
    "async_sarsa": async_q(form="sarsa"),
    "a3c": [Paper(atari, "Pong-v5", ASYNC_RUN | SAMPLED, {"batch_size": 1})],
    "a2c": [
        Paper(
            atari,
            "Pong-v5",
            SAMPLED
            | {
                "max_env_steps": 80_000_000,
                "num_actors": 1,
                "envs_per_actor": 16,
                "eval_episodes": 30,
                "synchronous": True,
            },
            {},
        )
    ],
    "impala": [
        Paper(
            atari,
            "Pong-v5",
            FEW_ACTORS | ATARI_STEPS | SAMPLED | {"envs_per_actor": 8, "eval_episodes": 10},
            {"torso": "residual", "rmsprop_initial": 1.0},
        )
    ],
    "ppo": [
        Paper(
            atari,
            "Pong-v5",
            SAMPLED
            | {
                "max_env_steps": 10_000_000,
                "num_actors": 1,
                "envs_per_actor": 8,
                "eval_episodes": 10,
                "synchronous": True,
            },
            {},
        ),
        Paper(
            gym_mujoco,
            "HalfCheetah-v4",
            CONTROL_RUN | {"max_env_steps": 1_000_000, "synchronous": True},
            {
                "torso": "mlp",
                "frame_stack": 1,
                "separate_value": True,
                "unroll_length": 2_048,
                "batch_size": 1,
                "epochs": 10,
                "minibatches": 32,
                "clip_epsilon": 0.2,
                "decay_clip": False,
                "entropy_cost": 0.0,
                "learning_rate": 3e-4,
                "decay_env_steps": 0,
                "normalize_observations": True,
                "normalize_rewards": True,
            },
        ),
    ],
    "ppo_rnd": [
        Paper(
            atari,
            "MontezumaRevenge-v5",
            SAMPLED
            | FIVE_MINUTES
            | {
                "max_env_steps": 491_520_000,
                "num_actors": 1,
                "envs_per_actor": 128,
                "eval_episodes": 10,
                "synchronous": True,
                "atari_protocol": "machado",
                "env_kwargs": '{"full_action_space": false, "max_episode_steps": 4500}',
            },
            {"decay_env_steps": 0},
        )
    ],
    "pqn": [
        Paper(
            atari,
            "Pong-v5",
            {
                "max_env_steps": 10_000_000,
                "num_actors": 1,
                "envs_per_actor": 128,
                "eval_episodes": 8,
                "synchronous": True,
            },
            {"decay_env_steps": 0},
        )
    ],
    "trpo": [
        Paper(
            atari,
            "Pong-v5",
            SAMPLED
            | {
                "max_env_steps": 50_000_000,
                "num_actors": 1,
                "envs_per_actor": 32,
                "eval_episodes": 10,
                "synchronous": True,
            },
            # The paper's batch of 100,000 stacks of frames would be 11 GB before the first layer.
            {"torso": "shallow", "frame_stack": 4, "batch_size": 32, "lambda_": 1.0, "fisher_fraction": 0.1},
        ),
        Paper(
            "Swimmer-v*",
            "Swimmer-v4",
            LOCOMOTION_RUN | {"max_env_steps": 10_000_000, "envs_per_actor": 50},
            LOCOMOTION | {"batch_size": 50, "hidden_sizes": (30,)},
        ),
        Paper("Hopper-v*", "Hopper-v4", BIG_LOCOMOTION_RUN, BIG_LOCOMOTION),
        Paper("Walker2d-v*", "Walker2d-v4", BIG_LOCOMOTION_RUN, BIG_LOCOMOTION),
    ],
    "vmpo": [
        Paper(
            atari,
            "Pong-v5",
            FEW_ACTORS | ATARI_STEPS | SAMPLED | {"envs_per_actor": 8, "eval_episodes": 10, "reward_clip": "none"},
            {
                "torso": "residual",
                "lstm_size": 256,
                "lstm_previous": True,
                "normalize_rewards": True,
                "decay_env_steps": 0,
            },
        )
    ],
    "ddpg": [
        Paper(
            simulated_control,
            "CheetahRun-v1",
            CONTROL_RUN | {"max_env_steps": 2_500_000},
            {
                "hidden_sizes": (400, 300),
                "action_layer": 2,
                "critic_weight_decay": 1e-2,
                "normalize_observations": True,
                "batch_size": 64,
                "samples_per_insert": 64.0,
                "policy_learning_rate": 1e-4,
                "tau": 0.001,
                "noise": "ou",
                "noise_scale": 0.2,
            },
        )
    ],
    "td3": [
        Paper("HalfCheetah-v*", "HalfCheetah-v4", TD3_RUN, TD3 | LONG_START),
        Paper("Ant-v*", "Ant-v4", TD3_RUN, TD3 | LONG_START),
        Paper(gym_mujoco, "Hopper-v4", TD3_RUN, TD3 | {"min_replay_size": 1_000}),
    ],
    "sac": [
        Paper(
            gym_mujoco,
            "HalfCheetah-v4",
            CONTROL_RUN | {"max_env_steps": 3_000_000, "eval_period": 1_000, "eval_episodes": 1},
            {},
        )
    ],
    "mpo": [
        Paper(
            dm_control,
            "CheetahRun-v1",
            FEW_ACTORS | {"max_env_steps": 10_000_000, "envs_per_actor": 1, "eval_episodes": 10},
            {
                "hidden_sizes": (256, 256, 256),
                "epsilon_mu": 5e-4,
                "epsilon_sigma": 1e-5,
                "target_period": 250,
                "replay_size": 2_000_000,
                "samples_per_insert": 32.0,
            },
        )
    ],
    "d4pg": [
        Paper(
            dm_control,
            "CheetahRun-v1",
            FEW_ACTORS | {"max_env_steps": 10_000_000, "envs_per_actor": 8, "eval_episodes": 10},
            {"hidden_sizes": (400, 300)},
        )
    ],
    "apex_dpg": [
        Paper(
            dm_control,
            "ManipulatorBringBall-v1",
            FEW_ACTORS | {"max_env_steps": 10_000_000, "envs_per_actor": 16, "eval_episodes": 10},
            {"hidden_sizes": (400, 300), "eviction_exponent": -0.4},
        )
    ],
    "dpg": [
        Paper("MountainCarContinuous-v0", "MountainCarContinuous-v0", DPG_RUN, DPG | MOUNTAIN_CAR),
        Paper(
            "Pendulum-v1",
            "Pendulum-v1",
            DPG_RUN,
            DPG | {"observation_low": (-1.0, -1.0, -8.0), "observation_high": (1.0, 1.0, 8.0)},
        ),
    ],
    "off_pac": [
        Paper(
            "MountainCar-v0",
            "MountainCar-v0",
            LINEAR_RUN | SAMPLED | {"env_kwargs": '{"max_episode_steps": 5000}'},
            MOUNTAIN_CAR,
        )
    ],
    "reinforce": corridor(alpha_theta=2**-13),
    "reinforce_baseline": corridor(baseline=True, alpha_theta=2**-9, alpha_w=2**-6),
    "q_learning": [Paper(CLIFF, "gymnasium:CliffWalking-v1", CLIFF_RUN, CLIFF_TABLE)],
    "sarsa": [Paper(CLIFF, "gymnasium:CliffWalking-v1", CLIFF_RUN, CLIFF_TABLE | {"form": "sarsa"})],
}

UNWRITTEN = "the book describes the algorithm but has no experiment with it"
# The agents whose source has no settings for any environment that Shoal has, and why.
SILENT = {
    "all_actions": UNWRITTEN,
    "actor_critic": UNWRITTEN,
    "actor_critic_lambda": UNWRITTEN,
    "dmpo": "it is MPO with D4PG's critic, which neither paper describes",
    "mix_match": "the paper's environments are DeepMind Lab's, which Shoal does not have",
}


def of(agent: str) -> list[Paper]:
    """Returns the settings of an agent's paper, an entry for each of its kinds of environments.

    Raises:
      ValueError: the paper has no settings for any environment that Shoal has.
    """
    if agent in SILENT:
        raise ValueError(f"--preset=paper has no settings for {agent}: {SILENT[agent]}; leave --preset out")
    return PAPERS[agent]


def find(agent: str, env: str, env_kwargs: str = "") -> Paper:
    """Returns the first settings of an agent's paper that fit an environment, by its name or by its kind. Several tasks
    at once have no kind.

    Raises:
      ValueError: there is no such environment, or the paper has no settings for it.
    """
    papers, alone = of(agent), len(tasks.names(env)) == 1
    for paper in papers:
        if isinstance(paper.of, str):
            found = any(fnmatch.fnmatchcase(name, paper.of) for name in (env, env.removeprefix("gymnasium:")))
        else:
            found = alone and paper.of(kinds.kind_of(env, env_kwargs))
        if found:
            return paper
    examples = " or ".join(f"--env={paper.example}" for paper in papers)
    raise ValueError(
        f"--preset=paper has no settings for {agent} in {env}: give an environment of the paper, such as {examples}, "
        "or leave --preset out"
    )
