"""What a run is set to where its command line is silent: one entry per agent and kind of environment.

The first entry whose pattern (shell style) matches the environment's name is taken; `run` holds fields of Run,
`config` fields of the agent's Config.
"""

import fnmatch
from typing import Any, NamedTuple

from environments import tasks


class Preset(NamedTuple):
    pattern: str
    run: dict[str, Any]
    config: dict[str, Any]


ADAM = {"optimizer": "adam", "epsilon": 1e-5}
SMALL = {"torso": "mlp", "frame_stack": 1}
SMALL_RUN = {"max_env_steps": 300_000, "num_actors": 2, "envs_per_actor": 32, "eval_episodes": 20}

CONTROL_RUN = {"max_env_steps": 30_000, "num_actors": 1, "envs_per_actor": 1, "eval_episodes": 10}
# Several updates in one go: on their own these take less time than asking for them.
SMALL_CONTROL_RUN = CONTROL_RUN | {"updates_per_dispatch": 8}
SMALL_CONTROL = {
    "hidden_sizes": (128, 128),
    "batch_size": 128,
    "samples_per_insert": 128.0,  # an update for each step
    "policy_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
}
LARGE_CONTROL = {
    "samples_per_insert": 64.0,  # an update for each four steps
    "policy_learning_rate": 3e-4,
    "critic_learning_rate": 3e-4,
}
SOFT_TARGETS = {"tau": 0.005, "target_period": 1}
# To publish more often than actors pull is of no use.
DPG_RUN = CONTROL_RUN | {"max_env_steps": 100_000, "envs_per_actor": 8, "publish_period": 16}
LARGE_RUN = CONTROL_RUN | {
    "max_env_steps": 1_000_000,
    "envs_per_actor": 4,
    "publish_period": 16,
    "updates_per_dispatch": 8,
}
APEX_RUN = LARGE_RUN | {"num_actors": 4}

# Domains of dm_control, whose rewards are in [0, 1], so that returns are in [0, 1 / (1 - discount)].
DM_CONTROL = (
    *("Acrobot", "BallInCup", "Cartpole", "Cheetah", "Finger", "Fish", "Hopper", "Humanoid", "Manipulator"),
    *("Pendulum", "PointMass", "Reacher", "Swimmer", "Walker"),
)


def dm_control(run: dict[str, Any], config: dict[str, Any]) -> list[Preset]:
    """The presets of a distributional critic's agent, CartpoleSwingup's shorter than the others'."""
    config = config | {"v_min": 0.0, "v_max": 100.0}
    short = Preset("CartpoleSwingup*-v1", run | {"max_env_steps": 300_000}, config)
    return [short, *(Preset(f"{domain}?*-v1", run, config) for domain in DM_CONTROL)]


# ViZDoom's tasks, and what brings their returns to about 1 to 20.
VIZDOOM = {
    "Basic-v1": 0.01,
    "SimplerBasic-v1": 0.01,
    "D1Basic-v1": 0.01,
    "D2Navigation-v1": 0.01,
    "HealthGathering*-v1": 0.01,
    "TakeCover-v1": 0.01,
    "DeadlyCorridor-v1": 0.01,
    "MyWayHome-v1": 1.0,
    "PredictPosition-v1": 1.0,
    "DefendThe*-v1": 1.0,
    "Deathmatch-v1": 1.0,
}
VIZDOOM_RUN = {
    "max_env_steps": 2_500_000,
    "num_actors": 2,
    "envs_per_actor": 8,
    "eval_episodes": 10,
    "publish_period": 4,
}


def vizdoom(run: dict[str, Any], config: dict[str, Any]) -> list[Preset]:
    """A convolutional agent's presets, Basic's shorter than the others'."""
    return [
        Preset(
            pattern,
            run | ({"max_env_steps": 500_000} if pattern == "Basic-v1" else {}),
            config | {"reward_scale": scale},
        )
        for pattern, scale in VIZDOOM.items()
    ]


# Values of discrete actions from a replay; an update for each four steps.
DQN_RUN = {
    "max_env_steps": 250_000,
    "num_actors": 1,
    "envs_per_actor": 8,
    "eval_episodes": 20,
    "publish_period": 4,
    "updates_per_dispatch": 4,  # small updates: to fetch a batch takes as long
}
SMALL_DQN = SMALL | {
    "optimizer": "adam",
    "optimizer_epsilon": 1e-8,
    "batch_size": 64,
    "samples_per_insert": 16.0,
    "n_step": 5,
    "target_period": 500,
    "replay_size": 300_000,  # all of it: what led here is not forgotten
    "min_replay_size": 1_000,
}
SMALL_SCHEDULE = {"epsilon_final": 0.05, "epsilon_steps": 5_000}
CARTPOLE_DQN = {"learning_rate": 2.5e-4, "replay_size": 400_000}
CATCH_RUN = DQN_RUN | {"max_env_steps": 60_000}
CATCH_DQN = SMALL_DQN | {"n_step": 3, "samples_per_insert": 8.0, "target_period": 200, "learning_rate": 5e-4}
ATARI_DQN_RUN = DQN_RUN | {
    "max_env_steps": 50_000_000,
    "eval_episodes": 10,
    "eval_period": 250_000,
    "updates_per_dispatch": 1,  # on a CPU a convolution's gradient inside a scan takes 40 times as long
}
SMALL_R2D2 = SMALL | {
    "hidden_sizes": (128,),
    "lstm_size": 64,
    "head_size": 0,
    "burn_in": 0,
    "sequence_length": 12,  # about an episode's: what is longer is padding
    "overlap": 2,
    "discount": 0.99,
    "batch_size": 32,
    "samples_per_insert": 8.0,
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-5,
    "target_period": 200,
    "replay_size": 8_000,
    "min_replay_size": 100,
}
MEMORY_R2D2 = SMALL_R2D2 | {
    "lstm_size": 128,
    "head_size": 128,  # which object is where, and which it was: their product is more than the LSTM's output can say
    "burn_in": 4,
    "sequence_length": 16,
    "overlap": 4,
    "discount": 0.97,
    "learning_rate": 5e-4,
    "epsilon_spread": 3.0,
    "replay_size": 20_000,
    "min_replay_size": 500,
}
SMALL_Q = {
    "hidden_sizes": (128,),
    "optimizer": "adam",
    "batch_size": 32,
    "epsilon_initial": 1.0,
    "decay_env_steps": 0,
}


def dqn(atari: dict[str, Any] | None = None, cartpole_steps: int = 250_000, **config: Any) -> list[Preset]:
    """DQN's presets, with one of its improvements: ours on small tasks; on Atari the papers', `atari` on top."""
    small = SMALL_DQN | SMALL_SCHEDULE | {"importance_steps": 60_000}
    catch = CATCH_DQN | {"epsilon_final": 0.05, "epsilon_steps": 2_500, "importance_steps": 7_500}
    return [
        Preset(
            "CartPole-v1",
            DQN_RUN | {"max_env_steps": cartpole_steps},
            small | CARTPOLE_DQN | config,
        ),
        Preset("Catch-v0", CATCH_RUN, catch | config),
        Preset("*-v5", ATARI_DQN_RUN, config | (atari or {})),
        Preset("*", DQN_RUN, small | {"learning_rate": 5e-4} | config),
    ]


def q_learning(**config: Any) -> list[Preset]:
    """Online and without replay."""
    config = {"learning_rate": 1e-3, "epsilon_final": 0.05, "epsilon_steps": 5_000} | config
    return [Preset("*", SMALL_RUN, SMALL_Q | config)]


# Online: the environments of one actor are the batch.
ONLINE_RUN = {"max_env_steps": 500_000, "num_actors": 1, "envs_per_actor": 32, "eval_episodes": 20}
SMALL_POLICY = {"hidden_sizes": (64,), "optimizer": "adam", "discount_weighting": False}
SMALL_ACTOR_CRITIC = SMALL_POLICY | {"batch_size": 32, "unroll_length": 8, "alpha_theta": 3e-4, "alpha_w": 3e-3}
OFF_PAC_RUN = ONLINE_RUN | {"envs_per_actor": 16}
SMALL_OFF_PAC = {"batch_size": 16, "unroll_length": 16}
EPISODES_RUN = {"max_env_steps": 200_000, "num_actors": 1, "envs_per_actor": 8, "eval_episodes": 20}
SMALL_REINFORCE = SMALL_POLICY | {"batch_size": 8, "alpha_theta": 3e-3, "alpha_w": 1e-2}


def actor_critic(**config: Any) -> list[Preset]:
    return [Preset("*", ONLINE_RUN, SMALL_ACTOR_CRITIC | config)]


def reinforce(**config: Any) -> list[Preset]:
    return [Preset("*", EPISODES_RUN, SMALL_REINFORCE | config)]


SMALL_A2C = SMALL | ADAM | {"learning_rate": 2e-3, "unroll_length": 16, "batch_size": 32, "lambda_": 0.95}
# Many small updates.
PENDULUM_RUN = SMALL_RUN | {"max_env_steps": 500_000, "num_actors": 1, "envs_per_actor": 8}
PENDULUM = {
    "unroll_length": 8,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "discount": 0.9,
    "lambda_": 0.9,
    "reward_scale": 0.1,
    "entropy_cost": 1e-4,
    "sigma_initial": 0.6,
}
A2C_RUN = SMALL_RUN | {"max_env_steps": 500_000, "num_actors": 1}
CONTINUOUS_A2C = SMALL_A2C | {
    "separate_value": True,
    "learning_rate": 1e-3,
    "entropy_cost": 1e-4,
    "sigma_initial": 0.6,
    "reward_scale": 0.1,
    "normalize_advantages": True,  # before the value is learnt, advantages of one sign drive the mean out of bounds
}


def a2c() -> list[Preset]:
    """Discrete actions, Atari by the paper, continuous actions, and what is left."""
    masked = {"reward_scale": 0.1, "lstm_size": 64, "unroll_length": 10}
    continuous = ("*-v4", *(f"{domain}?*-v1" for domain in DM_CONTROL))
    return [
        Preset("CartPole-v1", A2C_RUN, SMALL_A2C | {"reward_scale": 0.1}),
        Preset("MaskedCartPole-v1", A2C_RUN, SMALL_A2C | masked),
        Preset("Catch-v0", A2C_RUN | {"max_env_steps": 300_000}, SMALL_A2C | {"entropy_cost": 0.02}),
        Preset(
            "*-v5",
            {"max_env_steps": 10_000_000, "num_actors": 2, "envs_per_actor": 8, "eval_episodes": 10},
            {},
        ),
        *vizdoom(VIZDOOM_RUN, {"unroll_length": 20, "lambda_": 0.95}),
        Preset("Pendulum-v1", PENDULUM_RUN, CONTINUOUS_A2C | PENDULUM | {"learning_rate": 1e-3}),
        *(Preset(pattern, A2C_RUN | {"max_env_steps": 1_000_000}, CONTINUOUS_A2C) for pattern in continuous),
        Preset("*", A2C_RUN, SMALL_A2C | {"learning_rate": 1e-3}),
    ]


# Gradients that travel: workers of one environment, as in the papers.
WORKERS_RUN = {
    "travels": "gradients",
    "max_env_steps": 300_000,
    "num_actors": 4,
    "envs_per_actor": 1,
    "eval_episodes": 20,
}
SMALL_ASYNC_Q = {
    "hidden_sizes": (128, 128),
    "activation": "tanh",
    "optimizer": "adam",
    "learning_rate": 2e-3,
    "batch_size": 4,
    "unroll_length": 8,
    "target_period": 30,
    "max_gradient_norm": 10.0,
    "epsilon_initial": 1.0,
    # Higher than the paper's: without a replay, states that a good policy never meets are forgotten.
    "epsilon_finals": (0.5, 0.2, 0.1, 0.3),
    "epsilon_steps": 1_000,
}


def async_q(**config: Any) -> list[Preset]:
    """Asynchronous Q-learning: a gradient of one environment alone is too noisy for Adam."""
    return [Preset("*", WORKERS_RUN | {"max_env_steps": 400_000, "envs_per_actor": 4}, SMALL_ASYNC_Q | config)]


def a3c() -> list[Preset]:
    """A2C's, a worker for each of a few environments."""
    alone = {"batch_size": 1, "learning_rate": 5e-4}
    return [Preset(preset.pattern, preset.run | WORKERS_RUN, preset.config | alone) for preset in a2c()]


PPO_RUN = {"num_actors": 1, "envs_per_actor": 8, "eval_episodes": 20}
SMALL_PPO = SMALL | {
    "unroll_length": 32,
    "batch_size": 8,
    "epochs": 20,
    "minibatches": 1,
    "clip_epsilon": 0.2,
    "lambda_": 0.8,
    "discount": 0.98,
    "baseline_cost": 0.5,
    "entropy_cost": 0.0,
    "learning_rate": 1e-3,
}
CONTINUOUS_PPO = SMALL | {
    "separate_value": True,
    "sigma_initial": 0.5,
    "unroll_length": 256,
    "batch_size": 8,
    "epochs": 10,
    "minibatches": 32,
    "clip_epsilon": 0.2,
    "lambda_": 0.92,
    "discount": 0.98,
    "baseline_cost": 0.5,
    "entropy_cost": 0.0,
    "learning_rate": 3e-4,
    "normalize_observations": True,
    "normalize_rewards": True,
}


def ppo() -> list[Preset]:
    """Small tasks with discrete actions, Atari by the paper, continuous actions."""
    continuous = ("*-v4", *(f"{domain}?*-v1" for domain in DM_CONTROL))
    pendulum = {"discount": 0.9, "learning_rate": 1e-3, "minibatches": 16}
    return [
        Preset(
            "CartPole-v1",
            PPO_RUN | {"max_env_steps": 100_000},
            SMALL_PPO | {"separate_value": True, "learning_rate": 2e-3},
        ),
        Preset("Pendulum-v1", PPO_RUN | {"max_env_steps": 200_000}, CONTINUOUS_PPO | pendulum),
        Preset("*-v5", PPO_RUN | {"max_env_steps": 10_000_000, "eval_episodes": 10}, {}),
        Preset(
            "Hopper-v4",
            PPO_RUN | {"max_env_steps": 1_000_000},
            CONTINUOUS_PPO | {"sigma_initial": 1.0, "discount": 0.99, "lambda_": 0.95},
        ),
        *(Preset(pattern, PPO_RUN | {"max_env_steps": 1_000_000}, CONTINUOUS_PPO) for pattern in continuous),
        Preset("*", PPO_RUN | {"max_env_steps": 300_000}, SMALL_PPO | {"entropy_cost": 0.01}),
    ]


# Large batches: an update's step is as large as its batch can vouch for.
TRPO_RUN = {"max_env_steps": 500_000, "num_actors": 1, "envs_per_actor": 16, "eval_episodes": 20}
CONTINUOUS_TRPO = {"reward_scale": 0.1, "sigma_initial": 0.6, "normalize_observations": True}


def trpo() -> list[Preset]:
    """CartPole, continuous actions, and what is left."""
    continuous = ("*-v4", *(f"{domain}?*-v1" for domain in DM_CONTROL))
    return [
        Preset("CartPole-v1", TRPO_RUN | {"max_env_steps": 200_000}, {"reward_scale": 0.1}),
        Preset("Pendulum-v1", TRPO_RUN | {"max_env_steps": 300_000}, CONTINUOUS_TRPO | {"discount": 0.95}),
        *(Preset(pattern, TRPO_RUN | {"max_env_steps": 1_000_000}, CONTINUOUS_TRPO) for pattern in continuous),
        Preset("*", TRPO_RUN, {}),
    ]


MIX_MATCH = SMALL | {"hidden_sizes": (128, 128), "activation": "relu", "learning_rate": 5e-4}


def mix_match() -> list[Preset]:
    """Curricula of tasks, of architectures and of actions, by the environments that have them."""
    # As IMPALA's of the same environments.
    small_architectures = SMALL | {
        "curriculum": "architectures",
        "lstm_size": 64,
        "learning_rate": 2e-3,
        "unroll_length": 10,
    }
    small_actions = SMALL | PENDULUM | {"curriculum": "actions", "entropy_cost": 1e-3}
    return [
        Preset(
            "MiniGrid-*,*",
            SMALL_RUN | {"max_env_steps": 500_000},
            MIX_MATCH | {"curriculum": "tasks", "batch_size": 8, "learning_rate": 1e-3},
        ),
        Preset("*,*", SMALL_RUN, MIX_MATCH | {"curriculum": "tasks"}),
        Preset(
            "MiniGrid-*",
            SMALL_RUN | {"max_env_steps": 1_000_000},
            MIX_MATCH | {"curriculum": "architectures", "lstm_size": 128},
        ),
        Preset("binned:*:Pendulum-v1", PENDULUM_RUN | {"max_env_steps": 200_000}, small_actions),
        Preset("binned:*", SMALL_RUN | {"max_env_steps": 1_000_000}, MIX_MATCH | {"reward_scale": 0.1}),
        *vizdoom(
            VIZDOOM_RUN,
            {"curriculum": "actions", "torso": "shallow", "batch_size": 8, "lambda_": 0.95, "epsilon": 1e-5},
        ),
        Preset("*CartPole-v1", SMALL_RUN, small_architectures | {"reward_scale": 0.1}),
        Preset("Catch-v0", SMALL_RUN, small_architectures | {"entropy_cost": 0.02}),
        Preset("*", SMALL_RUN, small_architectures),
    ]


PRESETS = {
    "mix_match": mix_match(),
    "ppo": ppo(),
    "a3c": a3c(),
    "a2c": a2c(),
    "actor_critic": actor_critic(),
    "actor_critic_lambda": actor_critic(lambda_theta=0.9, lambda_w=0.9, alpha_theta=1e-3, alpha_w=1e-2),
    "off_pac": [
        Preset(
            "MountainCar-v0",
            OFF_PAC_RUN,
            # Of episodes of 200 steps with single random actions, none reaches the goal.
            SMALL_OFF_PAC | {"observation_low": (-1.2, -0.07), "observation_high": (0.6, 0.07), "repeat": 0.9},
        ),
        Preset("*", OFF_PAC_RUN, SMALL_OFF_PAC),
    ],
    "reinforce": reinforce(),
    "reinforce_baseline": reinforce(baseline=True),
    "all_actions": [
        # The policy slower than what it follows: else it settles before the action values mean anything.
        Preset(
            "*",
            EPISODES_RUN | {"max_env_steps": 400_000},
            SMALL_REINFORCE | {"form": "all_actions", "alpha_theta": 5e-4, "alpha_w": 3e-2},
        ),
    ],
    "dqn": dqn(),
    "double_dqn": dqn(double=True),
    "dueling_dqn": dqn({"learning_rate": 6.25e-5}, 400_000, double=True, dueling=True, max_gradient_norm=10.0),
    "prioritized_dqn": dqn({"learning_rate": 6.25e-5}, 400_000, double=True, replay="prioritized"),
    "apex_dqn": [
        Preset("Catch-v0", CATCH_RUN | {"num_actors": 2}, CATCH_DQN | {"loss": "huber"}),
        Preset("*-v5", ATARI_DQN_RUN | {"num_actors": 4}, {}),
        Preset("*", DQN_RUN | {"num_actors": 2}, SMALL_DQN | {"loss": "huber", "learning_rate": 2.5e-4}),
    ],
    "r2d2": [
        Preset("*-v5", ATARI_DQN_RUN | {"num_actors": 4}, {}),
        Preset("MiniGrid-Memory*", DQN_RUN | {"max_env_steps": 640_000, "envs_per_actor": 32}, MEMORY_R2D2),
        Preset("*", DQN_RUN | {"envs_per_actor": 16}, SMALL_R2D2),
    ],
    "async_n_step_q": async_q(form="n_step_q"),
    "async_q": async_q(target_period=10),
    "async_sarsa": async_q(form="sarsa"),
    "gorila": [
        Preset(
            "*",
            WORKERS_RUN | {"max_env_steps": 250_000, "num_actors": 2, "envs_per_actor": 4, "max_staleness": 100},
            SMALL_DQN | SMALL_SCHEDULE | CARTPOLE_DQN,
        )
    ],
    "trpo": trpo(),
    "q_learning": q_learning(),
    "sarsa": q_learning(form="sarsa"),
    "ddpg": [
        Preset("Pendulum-v1", SMALL_CONTROL_RUN, SMALL_CONTROL),
        # The paper's learning rates: with equal ones CheetahRun's policy runs into the ends of tanh, and stays there.
        Preset(
            "*",
            LARGE_RUN,
            LARGE_CONTROL | {"policy_learning_rate": 1e-4, "critic_learning_rate": 1e-3, "noise_scale": 0.3},
        ),
    ],
    "d4pg": [
        Preset("Pendulum-v1", SMALL_CONTROL_RUN, SMALL_CONTROL | SOFT_TARGETS | {"v_min": -1000.0, "v_max": 0.0}),
        *dm_control(LARGE_RUN, LARGE_CONTROL | SOFT_TARGETS),
        Preset("*", LARGE_RUN, LARGE_CONTROL | SOFT_TARGETS),
    ],
    "dpg": [
        Preset(
            "Pendulum-v1",
            DPG_RUN,
            {"observation_low": (-1.0, -1.0, -8.0), "observation_high": (1.0, 1.0, 8.0)},
        ),
        Preset(
            "MountainCarContinuous-v0",
            DPG_RUN,
            # The goal is found only by noise that keeps its direction for a while.
            {
                "observation_low": (-1.2, -0.07),
                "observation_high": (0.6, 0.07),
                "sigma": 1.0,
                "noise_correlation": 0.95,
            },
        ),
        Preset("*", DPG_RUN, {}),
    ],
    "apex_dpg": [
        Preset(
            "Pendulum-v1",
            SMALL_CONTROL_RUN | {"num_actors": 4},
            SMALL_CONTROL | SOFT_TARGETS | {"v_min": -1000.0, "v_max": 0.0},
        ),
        *dm_control(APEX_RUN, LARGE_CONTROL | SOFT_TARGETS),
        Preset("*", APEX_RUN, LARGE_CONTROL | SOFT_TARGETS),
    ],
    "impala": [
        Preset(
            "CartPole-v1",
            # Many environments, one actor: where a step costs microseconds, Python's share of it decides, and a second
            # actor would fight the first for the interpreter.
            SMALL_RUN | {"max_env_steps": 500_000, "num_actors": 1, "envs_per_actor": 128, "publish_period": 4},
            SMALL | ADAM | {"learning_rate": 2e-3, "reward_scale": 0.1, "max_gradient_norm": 300.0},
        ),
        Preset(
            "MaskedCartPole-v1",
            SMALL_RUN | {"max_env_steps": 500_000},
            SMALL | ADAM | {"learning_rate": 2e-3, "reward_scale": 0.1, "unroll_length": 10, "lstm_size": 64},
        ),
        Preset(
            "Catch-v0", SMALL_RUN, SMALL | ADAM | {"learning_rate": 2e-3, "unroll_length": 10, "entropy_cost": 0.02}
        ),
        Preset("Pendulum-v1", PENDULUM_RUN, SMALL | ADAM | PENDULUM),
        Preset(
            "*-v5",  # Atari
            {
                "max_env_steps": 2_500_000,
                "num_actors": 2,
                "envs_per_actor": 8,
                "eval_episodes": 10,
                "publish_period": 4,
            },
            {"torso": "shallow", "batch_size": 4, "lambda_": 0.95, "learning_rate": 7e-4, "epsilon": 1e-5},
        ),
        *vizdoom(
            VIZDOOM_RUN, {"torso": "shallow", "batch_size": 8, "lambda_": 0.95, "learning_rate": 7e-4, "epsilon": 1e-5}
        ),
        Preset("*", SMALL_RUN, SMALL | ADAM | {"learning_rate": 1e-3}),
    ],
}


def find(agent: str, env: str) -> Preset:
    """The preset of an agent in an environment. Where that is several tasks it is the first task's, unless a pattern
    has a comma: that is for lists."""
    presets = [*PRESETS.get(agent, []), Preset("*", SMALL_RUN, {})]
    first = tasks.names(env)[0]
    return next(p for p in presets if fnmatch.fnmatchcase(env if "," in p.pattern else first, p.pattern))
