"""The presets: what each agent sets where the command line is silent, for tasks by name and for kinds of environment.

A task that an agent was tuned for has a preset under its name, which also applies with `gymnasium:` or `gymnax:` before
the name. Any other environment gets the agent's first preset for a kind that it belongs to. Kinds are told apart by an
environment's observations, actions and suite.
"""

import fnmatch
from collections.abc import Callable
from typing import Any, NamedTuple

from environments import tasks
from launchers import kinds
from launchers.kinds import Kind


class Preset(NamedTuple):
    of: str | Callable[[Kind], bool]  # a task by name, or several by a pattern (shell style); or a kind
    run: dict[str, Any]  # fields of Run
    config: dict[str, Any]  # fields of the agent's Config


def any_kind(kind: Kind) -> bool:
    return True


def atari(kind: Kind) -> bool:
    return kind.suite == "atari"


def frames(kind: Kind) -> bool:
    return kind.side > 0


def continuous(kind: Kind) -> bool:
    """Returns whether a kind is continuous control. MuJoCo tasks whose actions are binned count too."""
    return kind.actions == "continuous" or kind.suite.startswith("mujoco.")


def dm_control(kind: Kind) -> bool:
    """Returns whether a kind is dm_control's. Its rewards are in [0, 1], so returns are in [0, 1 / (1 - discount)]."""
    return kind.suite == "mujoco.dmc"


def minigrid(kind: Kind) -> bool:
    return kind.suite == "minigrid"


def few_to_many(kind: Kind) -> bool:
    """Returns whether a few of a kind's factored actions are enough to begin with, for a curriculum of actions."""
    return kind.small


def several(kind: Kind) -> bool:
    return kind.num_tasks > 1


FITTING = "the largest of nature, shallow and mlp that frames of this size fit"  # `find` puts a torso in its place
ADAM = {"optimizer": "adam", "epsilon": 1e-5}
SMALL = {"torso": "mlp", "frame_stack": 1}
SMALL_RUN = {"max_env_steps": 300_000, "num_actors": 2, "envs_per_actor": 32, "eval_episodes": 20}

SAMPLED = {"eval_policy": "sampled"}  # papers on policy gradients evaluate so on Atari

CONTROL_RUN = {"max_env_steps": 30_000, "num_actors": 1, "envs_per_actor": 1, "eval_episodes": 10}
# Several updates in one dispatch: one of these small updates takes less time than its dispatch from Python.
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
# It is no use to publish parameters more often than actors pull them.
DPG_RUN = CONTROL_RUN | {"max_env_steps": 100_000, "envs_per_actor": 8, "publish_period": 16}
LARGE_RUN = CONTROL_RUN | {
    "max_env_steps": 1_000_000,
    "envs_per_actor": 4,
    "publish_period": 16,
    "updates_per_dispatch": 8,
}
APEX_RUN = LARGE_RUN | {"num_actors": 4}


def of_frames(run: dict[str, Any], config: dict[str, Any], gaussian: dict[str, Any] | None = None) -> list[Preset]:
    """Returns the presets of an agent with convolutions for environments that show frames; a preset for Atari comes
    before them. If `gaussian` is given, there is one more for continuous actions, whose Config it changes."""
    config = config | {"torso": FITTING, "frame_stack": 4}
    either = [Preset(frames, run, config)]
    return (
        either if gaussian is None else [Preset(lambda k: frames(k) and continuous(k), run, config | gaussian), *either]
    )


def distributional(run: dict[str, Any], config: dict[str, Any]) -> list[Preset]:
    """Returns the presets of an agent with a distributional critic, but for Pendulum. Runs on CartpoleSwingup are
    shorter."""
    bounded = config | {"v_min": 0.0, "v_max": 100.0}
    short = Preset("CartpoleSwingup*-v1", run | {"max_env_steps": 300_000}, bounded)
    return [short, Preset(dm_control, run, bounded), Preset(any_kind, run, config)]


# ViZDoom's tasks, and the `reward_scale` that brings the returns of each to about 1 to 20.
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
    """Returns the ViZDoom presets of an agent with convolutions. Runs on Basic are shorter than the others."""
    return [
        Preset(
            pattern,
            run | ({"max_env_steps": 500_000} if pattern == "Basic-v1" else {}),
            config | {"reward_scale": scale},
        )
        for pattern, scale in VIZDOOM.items()
    ]


# Agents that learn the values of discrete actions from a replay. There is an update for every four steps.
DQN_RUN = {
    "max_env_steps": 250_000,
    "num_actors": 1,
    "envs_per_actor": 8,
    "eval_episodes": 20,
    "publish_period": 4,
    "updates_per_dispatch": 4,  # fetching a batch takes as long as such a small update
}
SMALL_DQN = SMALL | {
    "optimizer": "adam",
    "optimizer_epsilon": 1e-8,
    "batch_size": 64,
    "samples_per_insert": 16.0,
    "n_step": 5,
    "target_period": 500,
    "replay_size": 300_000,  # all of a run's experience, so that its beginning is kept
    "min_replay_size": 1_000,
}
SMALL_APEX = {"loss": "huber", "learning_rate": 2.5e-4, "head_size": 0}
SMALL_SCHEDULE = {"epsilon_final": 0.05, "epsilon_steps": 5_000}
CARTPOLE_DQN = {"learning_rate": 2.5e-4, "replay_size": 400_000}
# Larger batches, slower targets and more units than elsewhere. Rewards of a hundred are far beyond the errors at which
# the Huber loss becomes linear: with it, evaluations swing by a hundred to the end. With a discount of 0.99 the agent
# learns to hover.
LUNAR_LANDER_DQN = SMALL_DQN | {
    "hidden_sizes": (256, 256),
    "batch_size": 128,
    "samples_per_insert": 32.0,
    "n_step": 3,
    "discount": 0.995,
    "loss": "squared",
    "max_gradient_norm": 10.0,
    "target_period": 1_000,
    "learning_rate": 5e-4,
    "replay_size": 1_000_000,
    "epsilon_final": 0.02,
    "epsilon_steps": 25_000,
}
LUNAR_LANDER_RUN = DQN_RUN | {"max_env_steps": 1_000_000, "updates_per_dispatch": 16}
CATCH_RUN = DQN_RUN | {"max_env_steps": 60_000}
CATCH_DQN = SMALL_DQN | {"n_step": 3, "samples_per_insert": 8.0, "target_period": 200, "learning_rate": 5e-4}
# For discrete actions. With the slower targets or the higher entropy of the defaults, CartPole's return falls again.
SMALL_SAC = {
    "hidden_sizes": (128, 128),
    "batch_size": 64,
    "samples_per_insert": 16.0,
    "n_step": 5,
    "policy_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "alpha_learning_rate": 1e-3,
    "discrete_entropy": 0.7,
    "tau": 0.02,
    "min_replay_size": 1_000,
}
ATARI_DQN_RUN = DQN_RUN | {
    "max_env_steps": 50_000_000,
    "eval_episodes": 10,
    "eval_period": 250_000,
    "updates_per_dispatch": 1,  # on a CPU a convolution's gradient inside a scan takes 40 times as long
}
FRAMES_DQN_RUN = ATARI_DQN_RUN | {"max_env_steps": 10_000_000}
FRAMES_DQN = {"replay_size": 100_000, "min_replay_size": 5_000}  # frames may be large, and many channels
SMALL_R2D2 = SMALL | {
    "hidden_sizes": (128,),
    "lstm_size": 64,
    "head_size": 0,
    "burn_in": 0,
    "sequence_length": 12,  # about an episode's length: more would be padding
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
    "head_size": 128,  # for the product of where each object is and which was shown, beyond the LSTM's output
    "burn_in": 4,
    "sequence_length": 16,
    "overlap": 4,
    "discount": 0.97,
    "learning_rate": 5e-4,
    "epsilon_spread": 3.0,
    "replay_size": 20_000,
    "min_replay_size": 500,
}
# The norm here is of the mean over the batch of 32; the paper's code clips the norm of the sum, at 10.
DUELING = {"learning_rate": 6.25e-5, "max_gradient_norm": 10.0 / 32, "head_size": 512}
# A quarter of DQN's step size. The paper's code scales every term of a step, so that the epsilon inside the root is a
# sixteenth of DQN's.
PRIORITIZED = {"learning_rate": 2.5e-4 / 4, "optimizer_epsilon": 0.01 / 32**2 / 4**2}
SMALL_Q = {
    "hidden_sizes": (128,),
    "optimizer": "adam",
    "batch_size": 32,
    "epsilon_initial": 1.0,
    "decay_env_steps": 0,
}


def dqn(
    papers: dict[str, Any] | None = None, cartpole_steps: int = 250_000, eval_epsilon: float = 0.05, **config: Any
) -> list[Preset]:
    """Returns the presets of DQN with one of its improvements, which the Config's fields `config` switch on. Small
    tasks have Shoal's own settings. Frames have the papers', with `papers` added, and Atari `eval_epsilon` besides."""
    small = SMALL_DQN | SMALL_SCHEDULE | {"importance_steps": 60_000}
    catch = CATCH_DQN | {"epsilon_final": 0.05, "epsilon_steps": 2_500, "importance_steps": 7_500}
    return [
        Preset(
            "CartPole-v1",
            DQN_RUN | {"max_env_steps": cartpole_steps},
            small | CARTPOLE_DQN | config,
        ),
        Preset("Catch-v0", CATCH_RUN, catch | config),
        Preset(atari, ATARI_DQN_RUN | {"eval_epsilon": eval_epsilon}, config | (papers or {})),
        *of_frames(FRAMES_DQN_RUN, config | (papers or {}) | FRAMES_DQN),
        Preset(any_kind, DQN_RUN, small | {"learning_rate": 5e-4} | config),
    ]


# The Behaviour Suite, which scores one environment from its first step. The settings are about those of the DQN and the
# actor-critic that come with it.
BSUITE = "environments.bsuite:*"
BSUITE_RUN = {
    "max_env_steps": 200_000,
    "num_actors": 1,
    "envs_per_actor": 1,
    "eval_period": 200_000,
    "eval_episodes": 10,
}
BSUITE_DQN = SMALL | {
    "hidden_sizes": (50, 50),
    "loss": "squared",
    "optimizer": "adam",
    "optimizer_epsilon": 1e-8,
    "learning_rate": 1e-3,
    "batch_size": 32,
    "samples_per_insert": 32.0,  # an update for each step
    "target_period": 4,
    "replay_size": 10_000,
    "min_replay_size": 100,
    "epsilon_initial": 0.05,
    "epsilon_final": 0.05,
    "epsilon_steps": 0,
}
BSUITE_A2C = SMALL | {
    "hidden_sizes": (50, 50),
    "activation": "relu",
    "optimizer": "adam",
    "epsilon": 1e-8,
    "learning_rate": 3e-3,
    "unroll_length": 32,
    "batch_size": 1,
    "lambda_": 0.9,
    "entropy_cost": 0.0,
    "decay_env_steps": 0,
}

# C51 is in Rainbow's file, whose defaults switch all of Rainbow's parts on; here they are off.
C51 = {"double": False, "dueling": False, "noisy": False, "replay": "uniform", "head_size": 0, "epsilon_initial": 1.0}
C51_PAPER = {
    "n_step": 1,
    "target_period": 2_500,
    "learning_rate": 2.5e-4,
    "optimizer_epsilon": 0.01 / 32,
    "epsilon_final": 0.01,
    "epsilon_steps": 250_000,
    "min_replay_size": 50_000,
}
SMALL_HEAD = {"hidden_sizes": (128,), "head_size": 128}
# Bounds of discounted returns: CartPole pays 1 for each step, Catch 1 or -1 at the end; elsewhere they are unknown.
SUPPORTS: dict[Any, dict[str, float]] = {
    "CartPole-v1": {"v_min": 0.0, "v_max": 100.0},
    "Catch-v0": {"v_min": -1.0, "v_max": 1.0},
    any_kind: {"v_min": -100.0, "v_max": 100.0},
}


def categorical(presets: list[Preset]) -> list[Preset]:
    """Returns the presets with atoms over the returns of SUPPORTS. On frames the papers' atoms stay, which fit clipped
    rewards."""
    return [preset._replace(config=SUPPORTS.get(preset.of, {}) | preset.config) for preset in presets]


# On Acrobot one-step methods learnt the values of a policy that never ends an episode, until they had a target network
# and gradients of many steps. Other tasks have other settings: with such a target network CartPole was not learnt.
ACROBOT_Q = {"hidden_sizes": (128,), "activation": "tanh", "target_period": 20, "max_gradient_norm": 10.0}


def q_learning(**config: Any) -> list[Preset]:
    """Returns the presets of Q-learning and Sarsa, which learn online and without a replay."""
    config = {"learning_rate": 1e-3, "epsilon_final": 0.05, "epsilon_steps": 5_000} | config
    acrobot = SMALL_Q | config | ACROBOT_Q | {"unroll_length": 8, "epsilon_steps": 1_000}
    del acrobot["decay_env_steps"]
    return [
        Preset("Acrobot-v1", SMALL_RUN | {"max_env_steps": 500_000, "num_actors": 1}, acrobot),
        *of_frames(SMALL_RUN | {"max_env_steps": 10_000_000}, SMALL_Q | config),
        Preset(any_kind, SMALL_RUN, SMALL_Q | config),
    ]


# Online agents: the environments of the one actor are the batch.
ONLINE_RUN = {"max_env_steps": 500_000, "num_actors": 1, "envs_per_actor": 32, "eval_episodes": 20}
SMALL_POLICY = {"hidden_sizes": (64,), "optimizer": "adam", "discount_weighting": False}
SMALL_ACTOR_CRITIC = SMALL_POLICY | {"batch_size": 32, "unroll_length": 8, "alpha_theta": 3e-4, "alpha_w": 3e-3}
OFF_PAC_RUN = ONLINE_RUN | {"envs_per_actor": 16}
SMALL_OFF_PAC = {"batch_size": 16, "unroll_length": 16}
EPISODES_RUN = {"max_env_steps": 200_000, "num_actors": 1, "envs_per_actor": 8, "eval_episodes": 20}
SMALL_REINFORCE = SMALL_POLICY | {"batch_size": 8, "alpha_theta": 3e-3, "alpha_w": 1e-2}


FREE_SIGMA = {"sigma": "free", "sigma_initial": 0.6}  # for continuous actions


def actor_critic(**config: Any) -> list[Preset]:
    config = SMALL_ACTOR_CRITIC | config
    # The policy learns more slowly than the value, or its mean leaves the bounds before the value is learnt.
    pendulum = FREE_SIGMA | {"batch_size": 8, "alpha_theta": 3e-4, "alpha_w": 3e-2, "discount": 0.9}
    return [
        Preset("Pendulum-v1", ONLINE_RUN | {"max_env_steps": 1_500_000, "envs_per_actor": 8}, config | pendulum),
        Preset(continuous, ONLINE_RUN, config | FREE_SIGMA),
        Preset(any_kind, ONLINE_RUN, config),
    ]


def reinforce(**config: Any) -> list[Preset]:
    config = SMALL_REINFORCE | config
    return [Preset(continuous, EPISODES_RUN, config | FREE_SIGMA), Preset(any_kind, EPISODES_RUN, config)]


# For tasks whose scale of rewards is unknown.
ANY_REWARDS = {"normalize_rewards": True}

SMALL_A2C = SMALL | ADAM | {"learning_rate": 2e-3, "unroll_length": 16, "batch_size": 32, "lambda_": 0.95}
GAUSSIAN = {"entropy_cost": 1e-4, "sigma_initial": 0.6}  # for continuous actions
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
# Synchronous: the policy gradient needs it, and it costs little where one actor's environments are the batch.
A2C_RUN = SMALL_RUN | {"max_env_steps": 500_000, "num_actors": 1, "synchronous": True}
CONTINUOUS_A2C = SMALL_A2C | {
    "separate_value": True,
    "learning_rate": 1e-3,
    "entropy_cost": 1e-4,
    "sigma_initial": 0.6,
    "reward_scale": 0.1,
    "normalize_advantages": True,  # else all have one sign at first, and drive the mean out of bounds
}


def a2c() -> list[Preset]:
    """Returns A2C's presets. The one for Atari keeps the Config's defaults, which are the paper's."""
    masked = {"reward_scale": 0.1, "lstm_size": 64, "unroll_length": 10}
    sighted = {"max_env_steps": 10_000_000, "num_actors": 2, "envs_per_actor": 8, "eval_episodes": 10}
    return [
        Preset("CartPole-v1", A2C_RUN, SMALL_A2C | {"reward_scale": 0.1}),
        Preset(BSUITE, BSUITE_RUN, BSUITE_A2C),
        # Not synchronous: of two synchronous seeds one ended at a return of 190.
        Preset("MaskedCartPole-v1", A2C_RUN | {"synchronous": False}, SMALL_A2C | masked),
        Preset("Catch-v0", A2C_RUN | {"max_env_steps": 300_000}, SMALL_A2C | {"entropy_cost": 0.02}),
        *vizdoom(VIZDOOM_RUN, {"unroll_length": 20, "lambda_": 0.95}),
        Preset(
            "Pendulum-v1",
            # Synchronous: with experience two updates old the mean leaves the bounds before the value is learnt.
            PENDULUM_RUN | {"synchronous": True},
            SMALL_A2C | PENDULUM | ANY_REWARDS | {"reward_scale": 1.0},
        ),
        Preset(atari, sighted | SAMPLED, {}),
        *of_frames(sighted, ANY_REWARDS, GAUSSIAN),
        Preset(continuous, A2C_RUN | {"max_env_steps": 1_000_000}, CONTINUOUS_A2C),
        Preset(any_kind, A2C_RUN, SMALL_A2C | ANY_REWARDS | {"learning_rate": 1e-3}),
    ]


# Workers that send gradients to the learner. Each has one environment, as in the papers.
WORKERS_RUN = {
    "travels": "gradients",
    "max_env_steps": 300_000,
    "num_actors": 4,
    "envs_per_actor": 1,
    "eval_episodes": 20,
}
GORILA_RUN = {"max_staleness": 100}
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
    # Higher than the paper's: without a replay, the values of states that a good policy never meets are forgotten.
    "epsilon_finals": (0.5, 0.2, 0.1, 0.3),
    "epsilon_steps": 1_000,
}


# Mnih et al. 2016, section 5.1 and the supplement's section 8. Periods are in updates, each of a worker's T = 5 steps.
# The paper sums the gradient over these steps and here it is averaged, so epsilon and the clip are scaled to the mean.
ATARI_ASYNC_Q = {
    "torso": "shallow",
    "frame_stack": 4,
    "optimizer": "rmsprop",
    "optimizer_epsilon": 0.1 / 5**2,
    "learning_rate": 7e-4,
    "batch_size": 1,
    "unroll_length": 5,
    "target_period": 2_000,  # 40,000 frames
    "max_gradient_norm": 40.0 / 5,
    "epsilon_initial": 1.0,
    "epsilon_finals": (0.1, 0.01, 0.5),
    "epsilon_steps": 200_000,  # four million frames
}


def async_q(**config: Any) -> list[Preset]:
    """Returns the presets of asynchronous Q-learning. On small tasks a worker has several environments, because the
    gradient of one alone is too noisy for Adam."""
    sighted = WORKERS_RUN | {"max_env_steps": 10_000_000, "eval_episodes": 10}
    form = {"form": config["form"]} if "form" in config else {}
    acrobot = ACROBOT_Q | {"batch_size": 8, "unroll_length": 8, "epsilon_steps": 1_000}
    if config.get("form") == "n_step_q":  # longer returns need no target network
        acrobot = {"batch_size": 16, "unroll_length": 32, "epsilon_steps": 500, "target_period": 0}
        acrobot |= {"hidden_sizes": (128,), "activation": "relu"}
    return [
        Preset(
            "Acrobot-v1",
            WORKERS_RUN | {"max_env_steps": 500_000, "envs_per_actor": acrobot["batch_size"]},
            SMALL_ASYNC_Q | form | {"learning_rate": 1e-3, "epsilon_finals": (0.05,)} | acrobot,
        ),
        Preset(atari, sighted, ATARI_ASYNC_Q | form),
        *of_frames(sighted, ATARI_ASYNC_Q | form | {"hidden_sizes": (128, 128)}),
        Preset(any_kind, WORKERS_RUN | {"max_env_steps": 400_000, "envs_per_actor": 4}, SMALL_ASYNC_Q | config),
    ]


def a3c() -> list[Preset]:
    """Returns A2C's presets with the workers of WORKERS_RUN, each of one environment. Where the network is an mlp, runs
    have WORKERS_RUN's steps too."""
    alone = {"batch_size": 1, "learning_rate": 5e-4}

    def steps(preset: Preset) -> dict[str, Any]:
        return {} if preset.config.get("torso") == "mlp" else {"max_env_steps": preset.run["max_env_steps"]}

    free = {"synchronous": False}  # workers do not wait for each other
    return [
        Preset(preset.of, preset.run | WORKERS_RUN | free | steps(preset), preset.config | alone)
        for preset in a2c()
        if preset.of != BSUITE  # where a single environment counts from its first step
    ]


PPO_RUN = {"num_actors": 1, "envs_per_actor": 8, "eval_episodes": 20}
# Synchronous, unlike runs on small tasks, where waiting for the update would cost a third of the speed.
CONTINUOUS_PPO_RUN = PPO_RUN | {"synchronous": True}
SMALL_PPO = SMALL | {
    "unroll_length": 32,
    "batch_size": 8,
    "epochs": 20,
    "minibatches": 1,
    "clip_epsilon": 0.2,
    "decay_clip": False,
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
    "decay_clip": False,
    "lambda_": 0.92,
    "discount": 0.98,
    "baseline_cost": 0.5,
    "entropy_cost": 0.0,
    "learning_rate": 3e-4,
    "normalize_observations": True,
    "normalize_rewards": True,
}


def ppo() -> list[Preset]:
    """Returns PPO's presets. The one for Atari keeps the Config's defaults, which are the paper's."""
    pendulum = {"discount": 0.9, "lambda_": 0.95, "learning_rate": 1e-3, "minibatches": 16}
    sighted = PPO_RUN | {"max_env_steps": 10_000_000, "eval_episodes": 10}
    return [
        Preset(
            "CartPole-v1",
            PPO_RUN | {"max_env_steps": 100_000},
            SMALL_PPO | {"separate_value": True, "learning_rate": 2e-3},
        ),
        Preset("Pendulum-v1", CONTINUOUS_PPO_RUN | {"max_env_steps": 400_000}, CONTINUOUS_PPO | pendulum),
        Preset(
            "LunarLander-v3",
            PPO_RUN | {"max_env_steps": 1_000_000, "envs_per_actor": 16},
            SMALL_PPO
            | ANY_REWARDS
            | {"separate_value": True, "unroll_length": 256, "batch_size": 16, "epochs": 4, "minibatches": 32}
            | {"discount": 0.999, "lambda_": 0.98, "learning_rate": 5e-4, "entropy_cost": 0.01},
        ),
        Preset(
            "Hopper-v4",
            CONTINUOUS_PPO_RUN | {"max_env_steps": 1_000_000},
            CONTINUOUS_PPO | {"sigma_initial": 1.0, "discount": 0.99, "lambda_": 0.95},
        ),
        Preset(atari, sighted | SAMPLED, {}),
        *of_frames(sighted, ANY_REWARDS, GAUSSIAN),
        Preset(continuous, CONTINUOUS_PPO_RUN | {"max_env_steps": 1_000_000}, CONTINUOUS_PPO),
        Preset(any_kind, PPO_RUN | {"max_env_steps": 300_000}, SMALL_PPO | ANY_REWARDS | {"entropy_cost": 0.01}),
    ]


RND_RUN = PPO_RUN | SAMPLED | {"max_env_steps": 500_000, "envs_per_actor": 16}
SMALL_RND = SMALL_PPO | {
    "features": 64,
    "predictor_layers": 1,
    "unroll_length": 128,
    "batch_size": 16,
    "epochs": 4,
    "minibatches": 4,
    "discount": 0.99,
    "intrinsic_discount": 0.99,
    "lambda_": 0.95,
    "learning_rate": 5e-4,
    "adam_epsilon": 1e-5,
    "max_gradient_norm": 0.5,
    "entropy_cost": 0.005,
    "normalize_advantages": True,
}


def ppo_rnd() -> list[Preset]:
    """Returns the presets of PPO with RND. On Atari most of the Config's defaults stay, which are the paper's."""
    sighted = PPO_RUN | {"max_env_steps": 10_000_000, "envs_per_actor": 32, "eval_episodes": 10}
    frames_config = {"batch_size": 32, "predictor_fraction": 1.0}
    return [
        Preset(atari, sighted | SAMPLED, frames_config),
        *of_frames(sighted, frames_config, GAUSSIAN),
        Preset("environments.textbook:OpenLake-v0", RND_RUN | {"max_env_steps": 150_000}, SMALL_RND),
        Preset(continuous, RND_RUN | {"max_env_steps": 1_000_000}, SMALL_RND | GAUSSIAN),
        Preset(any_kind, RND_RUN, SMALL_RND),
    ]


# Synchronous: the targets do not correct for the actions of an older policy.
PQN_RUN = {"num_actors": 1, "envs_per_actor": 32, "eval_episodes": 20, "synchronous": True}
SMALL_PQN = SMALL | {
    "unroll_length": 32,
    "batch_size": 32,
    "epochs": 4,
    "minibatches": 8,
    "lambda_": 0.9,
    "learning_rate": 5e-4,
    "epsilon_final": 0.05,
    "epsilon_env_steps": 50_000,
}


def pqn() -> list[Preset]:
    """Returns PQN's presets. On Atari most of the Config's defaults stay, which are those of the paper's code."""
    sighted = PQN_RUN | {"max_env_steps": 10_000_000, "envs_per_actor": 128, "eval_episodes": 10}
    return [
        Preset("CartPole-v1", PQN_RUN | {"max_env_steps": 200_000}, SMALL_PQN | {"reward_scale": 0.1, "lambda_": 0.95}),
        Preset("Catch-v0", PQN_RUN | {"max_env_steps": 100_000}, SMALL_PQN | {"epsilon_env_steps": 20_000}),
        Preset("Acrobot-v1", PQN_RUN | {"max_env_steps": 500_000}, SMALL_PQN | {"reward_scale": 0.1}),
        Preset(atari, sighted, {"decay_env_steps": 0}),
        *of_frames(sighted, {"decay_env_steps": 0}),
        Preset(any_kind, PQN_RUN | {"max_env_steps": 500_000}, SMALL_PQN),
    ]


# TRPO takes large batches: the larger the batch, the larger the step that its estimates can be trusted for.
TRPO_RUN = {"max_env_steps": 500_000, "num_actors": 1, "envs_per_actor": 16, "eval_episodes": 20}
CONTINUOUS_TRPO = {"reward_scale": 0.1, "sigma_initial": 0.6, "normalize_observations": True}

# Synchronous: the divergence that V-MPO keeps small is then measured from the newest policy that acted.
VMPO_RUN = {"max_env_steps": 300_000, "num_actors": 1, "envs_per_actor": 8, "eval_episodes": 20, "synchronous": True}
SMALL_VMPO = SMALL | {
    "separate_value": True,
    "unroll_length": 16,
    "batch_size": 8,
    "lambda_": 0.95,
    "epsilon_eta": 0.1,
    "alpha": 0.1,
    "target_period": 4,
    "learning_rate": 2e-3,
    "max_gradient_norm": 1.0,
}


def trpo() -> list[Preset]:
    """Returns TRPO's presets: for CartPole and Pendulum, frames, continuous control, and all else."""
    sighted = TRPO_RUN | {"max_env_steps": 10_000_000, "eval_episodes": 10}
    return [
        Preset("CartPole-v1", TRPO_RUN | {"max_env_steps": 200_000}, {"reward_scale": 0.1}),
        Preset("Pendulum-v1", TRPO_RUN | {"max_env_steps": 300_000}, CONTINUOUS_TRPO | {"discount": 0.95}),
        Preset(atari, sighted | SAMPLED, {"torso": "shallow", "frame_stack": 4}),
        *of_frames(sighted, ANY_REWARDS, {"sigma_initial": 0.6}),
        Preset(continuous, TRPO_RUN | {"max_env_steps": 1_000_000}, CONTINUOUS_TRPO),
        Preset(any_kind, TRPO_RUN, ANY_REWARDS),
    ]


def vmpo() -> list[Preset]:
    """Returns V-MPO's presets: for small tasks, frames, continuous control, and all else."""
    # Squashed, or the mean may leave the bounds before the value is learnt.
    pendulum = {"unroll_length": 8, "discount": 0.9, "sigma": "free", "squash": True}
    sighted = VIZDOOM_RUN | {"max_env_steps": 10_000_000}
    seeing = {"torso": "shallow", "learning_rate": 5e-4, "lambda_": 0.95, "epsilon_eta": 0.1, "alpha": 0.1}
    return [
        # The learning rate does not decay: with a decay some seeds stay at returns of 400.
        Preset(
            "CartPole-v1",
            VMPO_RUN,
            SMALL_VMPO | {"reward_scale": 0.1, "decay_env_steps": 0, "dual_learning_rate": 0.03},
        ),
        Preset("Catch-v0", VMPO_RUN | {"max_env_steps": 100_000}, SMALL_VMPO),
        Preset("Pendulum-v1", VMPO_RUN | {"max_env_steps": 500_000}, SMALL_VMPO | ANY_REWARDS | pendulum),
        Preset(atari, sighted | SAMPLED, seeing),
        *of_frames(sighted, seeing | ANY_REWARDS, FREE_SIGMA),
        Preset(continuous, VMPO_RUN | {"max_env_steps": 1_000_000}, SMALL_VMPO | ANY_REWARDS | FREE_SIGMA),
        Preset(any_kind, VMPO_RUN, SMALL_VMPO | ANY_REWARDS),
    ]


MIX_MATCH = SMALL | {"hidden_sizes": (128, 128), "activation": "relu", "learning_rate": 5e-4}


def mix_match() -> list[Preset]:
    """Returns Mix & Match's presets. The environment decides whether the curriculum is over tasks, architectures or
    actions."""
    # IMPALA's settings in the same environments.
    small_architectures = SMALL | {
        "curriculum": "architectures",
        "lstm_size": 64,
        "learning_rate": 2e-3,
        "unroll_length": 10,
    }
    small_actions = SMALL | PENDULUM | {"curriculum": "actions", "entropy_cost": 1e-3}
    sighted = small_architectures | {"lstm_size": 256, "learning_rate": 5e-4, "unroll_length": 20, "batch_size": 8}
    return [
        Preset("binned:*:Pendulum-v1", PENDULUM_RUN | {"max_env_steps": 200_000}, small_actions),
        *vizdoom(
            VIZDOOM_RUN,
            {"curriculum": "actions", "torso": "shallow", "batch_size": 8, "lambda_": 0.95, "epsilon": 1e-5},
        ),
        Preset("*CartPole-v1", SMALL_RUN, small_architectures | {"reward_scale": 0.1}),
        Preset("Catch-v0", SMALL_RUN, small_architectures | {"entropy_cost": 0.02}),
        Preset(
            lambda k: several(k) and minigrid(k),
            SMALL_RUN | {"max_env_steps": 500_000},
            MIX_MATCH | {"curriculum": "tasks", "batch_size": 8, "learning_rate": 1e-3},
        ),
        *of_frames(VIZDOOM_RUN, sighted | ANY_REWARDS, GAUSSIAN),
        Preset(several, SMALL_RUN, MIX_MATCH | {"curriculum": "tasks"}),
        Preset(
            minigrid,
            SMALL_RUN | {"max_env_steps": 1_000_000},
            MIX_MATCH | {"curriculum": "architectures", "lstm_size": 128},
        ),
        Preset(few_to_many, SMALL_RUN | {"max_env_steps": 1_000_000}, MIX_MATCH | {"reward_scale": 0.1}),
        Preset(continuous, SMALL_RUN, small_architectures | GAUSSIAN),
        Preset(any_kind, SMALL_RUN, small_architectures | ANY_REWARDS),
    ]


SHALLOW_IMPALA = {"torso": "shallow", "lambda_": 0.95, "learning_rate": 7e-4, "epsilon": 1e-5}

PRESETS: dict[str, list[Preset]] = {
    "mix_match": mix_match(),
    "ppo": ppo(),
    "ppo_rnd": ppo_rnd(),
    "pqn": pqn(),
    "a3c": a3c(),
    "a2c": a2c(),
    "actor_critic": actor_critic(),
    "actor_critic_lambda": actor_critic(lambda_theta=0.9, lambda_w=0.9, alpha_theta=1e-3, alpha_w=1e-2),
    "off_pac": [
        Preset(
            "MountainCar-v0",
            OFF_PAC_RUN,
            # Actions are repeated: with independent random actions no episode of 200 steps reaches the goal.
            SMALL_OFF_PAC | {"observation_low": (-1.2, -0.07), "observation_high": (0.6, 0.07), "repeat": 0.9},
        ),
        Preset(
            "Pendulum-v1",
            OFF_PAC_RUN | {"max_env_steps": 1_000_000},
            SMALL_OFF_PAC
            | {"observation_low": (-1.0, -1.0, -8.0), "observation_high": (1.0, 1.0, 8.0), "tilings": 8, "tiles": 6}
            # No traces, and small steps: the importance ratio of a continuous action has no bound.
            | {"discount": 0.95, "lambda_": 0.0, "alpha_v": 0.1, "alpha_u": 0.01},
        ),
        Preset(any_kind, OFF_PAC_RUN, SMALL_OFF_PAC),
    ],
    "reinforce": reinforce(),
    "reinforce_baseline": reinforce(baseline=True),
    "all_actions": [
        # The policy learns more slowly than the action values, or it settles before they mean anything.
        Preset(
            any_kind,
            EPISODES_RUN | {"max_env_steps": 400_000},
            SMALL_REINFORCE | {"form": "all_actions", "alpha_theta": 5e-4, "alpha_w": 3e-2},
        ),
    ],
    "dqn": [Preset(BSUITE, BSUITE_RUN | {"updates_per_dispatch": 16}, BSUITE_DQN), *dqn()],
    "double_dqn": [
        Preset("LunarLander-v3", LUNAR_LANDER_RUN, LUNAR_LANDER_DQN | {"double": True}),
        *dqn(double=True),
    ],
    "dueling_dqn": dqn(DUELING, 400_000, 0.001, double=True, dueling=True, max_gradient_norm=10.0),
    "prioritized_dqn": dqn(PRIORITIZED, 400_000, 0.001, double=True, replay="prioritized"),
    "c51": categorical(dqn(C51_PAPER, 250_000, 0.001, **C51)),
    "rainbow": categorical(
        dqn({"n_step": 3, "head_size": 512}, 250_000, 0.0, **SMALL_HEAD, epsilon_final=0.0, epsilon_steps=0)
    ),
    "qr_dqn": dqn({"num_quantiles": 200}, 250_000, 0.001, num_quantiles=51),
    "iqn": dqn(
        {"head_size": 512, "num_fractions": 64, "num_target_fractions": 64},
        250_000,
        0.001,
        **SMALL_HEAD,
        num_fractions=16,
        num_target_fractions=16,
    ),
    "munchausen_dqn": dqn(None, 250_000, 0.001),
    "apex_dqn": [
        Preset("Catch-v0", CATCH_RUN | {"num_actors": 2}, CATCH_DQN | {"loss": "huber", "head_size": 0}),
        Preset(atari, ATARI_DQN_RUN | {"num_actors": 4}, {}),
        *of_frames(FRAMES_DQN_RUN | {"num_actors": 4}, FRAMES_DQN),
        Preset(any_kind, DQN_RUN | {"num_actors": 2}, SMALL_DQN | SMALL_APEX),
    ],
    "r2d2": [
        Preset("MiniGrid-Memory*", DQN_RUN | {"max_env_steps": 640_000, "envs_per_actor": 32}, MEMORY_R2D2),
        Preset(atari, ATARI_DQN_RUN | {"num_actors": 4}, {}),
        *of_frames(FRAMES_DQN_RUN | {"num_actors": 4}, {"replay_size": 2_000, "min_replay_size": 100}),
        Preset(any_kind, DQN_RUN | {"envs_per_actor": 16}, SMALL_R2D2),
    ],
    "async_n_step_q": async_q(form="n_step_q"),
    "async_q": async_q(target_period=10),
    "async_sarsa": async_q(form="sarsa"),
    "gorila": [
        # Each of the four workers has a replay of this size of its own.
        Preset(
            atari,
            WORKERS_RUN | GORILA_RUN | {"max_env_steps": 50_000_000, "eval_epsilon": 0.05},
            {"replay_size": 200_000},
        ),
        *of_frames(WORKERS_RUN | GORILA_RUN | {"max_env_steps": 10_000_000}, FRAMES_DQN | {"replay_size": 25_000}),
        Preset(
            any_kind,
            WORKERS_RUN | GORILA_RUN | {"max_env_steps": 250_000, "num_actors": 2, "envs_per_actor": 4},
            SMALL_DQN | SMALL_SCHEDULE | CARTPOLE_DQN,
        ),
    ],
    "trpo": trpo(),
    "vmpo": vmpo(),
    "q_learning": q_learning(),
    "sarsa": q_learning(form="sarsa"),
    "ddpg": [
        Preset("Pendulum-v1", SMALL_CONTROL_RUN, SMALL_CONTROL),
        # Acme's settings. Without `layer_norm` CheetahRun's policy runs into the ends of tanh and stays there: the
        # first rewards are small, and for long the slopes along the actions are of values that still rise everywhere.
        Preset(
            dm_control,
            LARGE_RUN,
            LARGE_CONTROL
            | {"layer_norm": True, "n_step": 5, "noise_scale": 0.3}
            | {"policy_learning_rate": 1e-4, "critic_learning_rate": 1e-4},
        ),
        # CleanRL's settings, with an update for each step, but with layer norm: HalfCheetah's return then rises sooner.
        Preset(
            any_kind,
            LARGE_RUN,
            {"policy_learning_rate": 3e-4, "critic_learning_rate": 3e-4, "policy_period": 2}
            | {"layer_norm": True, "min_replay_size": 25_000, "random_start": True},
        ),
    ],
    "td3": [
        Preset("Pendulum-v1", SMALL_CONTROL_RUN, SMALL_CONTROL | {"min_replay_size": 1_000}),
        # The same settings as DDPG's on dm_control, for the same reasons.
        Preset(
            dm_control,
            LARGE_RUN,
            LARGE_CONTROL
            | {"layer_norm": True, "n_step": 5, "noise_scale": 0.3, "min_replay_size": 1_000}
            | {"policy_learning_rate": 1e-4, "critic_learning_rate": 1e-4},
        ),
        # The Config's defaults are the later settings of TD3's authors.
        Preset(any_kind, LARGE_RUN, {}),
    ],
    "sac": [
        Preset(
            "Pendulum-v1", SMALL_CONTROL_RUN, SMALL_CONTROL | {"alpha_learning_rate": 1e-3, "min_replay_size": 1_000}
        ),
        Preset("CartPole-v1", DQN_RUN | {"max_env_steps": 150_000}, SMALL_SAC),
        Preset("Catch-v0", CATCH_RUN, SMALL_SAC),
        Preset(continuous, LARGE_RUN, {}),
        Preset(any_kind, DQN_RUN, SMALL_SAC),
    ],
    "mpo": [
        Preset("Pendulum-v1", SMALL_CONTROL_RUN, SMALL_CONTROL | {"n_step": 3}),
        Preset(any_kind, LARGE_RUN, LARGE_CONTROL),
    ],
    "dmpo": [
        Preset(
            "Pendulum-v1",
            SMALL_CONTROL_RUN,
            SMALL_CONTROL | {"n_step": 3, "distributional": True, "v_min": -1000.0, "v_max": 0.0},
        ),
        *distributional(LARGE_RUN, LARGE_CONTROL | {"distributional": True}),
    ],
    "d4pg": [
        Preset("Pendulum-v1", SMALL_CONTROL_RUN, SMALL_CONTROL | SOFT_TARGETS | {"v_min": -1000.0, "v_max": 0.0}),
        *distributional(LARGE_RUN, LARGE_CONTROL | SOFT_TARGETS),
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
        Preset(any_kind, DPG_RUN, {}),
    ],
    "apex_dpg": [
        Preset(
            "Pendulum-v1",
            SMALL_CONTROL_RUN | {"num_actors": 4},
            SMALL_CONTROL | SOFT_TARGETS | {"v_min": -1000.0, "v_max": 0.0},
        ),
        *distributional(APEX_RUN, LARGE_CONTROL | SOFT_TARGETS),
    ],
    "impala": [
        Preset(
            "CartPole-v1",
            # Many environments and one actor: a step takes microseconds here, so that Python's share of it decides the
            # speed, and a second actor would compete with the first for the interpreter.
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
            "LunarLander-v3",
            # One actor: with two, whose experience is up to four updates old, two runs of five learnt to hover and not
            # to land; with one, one of five. A greedy policy hovers too.
            SMALL_RUN | SAMPLED | {"max_env_steps": 1_000_000, "num_actors": 1, "envs_per_actor": 16},
            SMALL
            | ADAM
            | ANY_REWARDS
            | {"hidden_sizes": (256, 256), "activation": "relu", "unroll_length": 32, "batch_size": 8}
            | {"discount": 0.995, "lambda_": 0.98, "learning_rate": 1e-3, "entropy_cost": 1e-3},
        ),
        *vizdoom(VIZDOOM_RUN, SHALLOW_IMPALA | {"batch_size": 8}),
        Preset(atari, VIZDOOM_RUN | SAMPLED, SHALLOW_IMPALA | {"batch_size": 4}),
        *of_frames(VIZDOOM_RUN, SHALLOW_IMPALA | ANY_REWARDS | {"batch_size": 4}, GAUSSIAN),
        Preset(
            continuous,
            SMALL_RUN | {"max_env_steps": 1_000_000},
            SMALL | ADAM | ANY_REWARDS | GAUSSIAN | {"learning_rate": 1e-3},
        ),
        Preset(any_kind, SMALL_RUN, SMALL | ADAM | ANY_REWARDS | {"learning_rate": 1e-3}),
    ],
}


def of(agent: str) -> list[Preset]:
    """Returns an agent's presets, and after them one for any environment. An agent's own all agree on `travels`."""
    return [*PRESETS.get(agent, []), Preset(any_kind, SMALL_RUN, {})]


def _task(env: str) -> str:
    """Returns a task's name without the prefix of Gymnasium or gymnax."""
    return env.removeprefix("gymnasium:").removeprefix("gymnax:")  # Brax's tasks have names of their own


def find(agent: str, env: str, env_kwargs: str = "") -> Preset:
    """Returns the preset of an agent in an environment: the one under the task's name, else the first for its kind.

    Of several tasks the first one's name counts, unless the agent has a preset for `several`. An environment is made,
    to see its kind, only if no name fits.

    Raises:
      ValueError: there is no such environment.
    """
    presets, (first, *others) = of(agent), tasks.names(env)
    if not others or all(preset.of != several for preset in presets):
        for preset in presets:
            if isinstance(preset.of, str) and fnmatch.fnmatchcase(_task(first), preset.of):
                return preset
    kind = kinds.kind_of(env, env_kwargs)
    preset = next(each for each in presets if not isinstance(each.of, str) and each.of(kind))
    if preset.config.get("torso") != FITTING:
        return preset
    from agents.parts.torsos import LEAST_SIDES  # only now, because it imports JAX

    torso = next((name for name in ("nature", "shallow") if LEAST_SIDES[name] <= kind.side), "mlp")
    return preset._replace(config=preset.config | {"torso": torso})
