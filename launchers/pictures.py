"""The pictures in docs/results and in the README that show several baselines; `scripts/baseline --pages` draws them."""

import dataclasses

from launchers.baselines import MUJOCO


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with the curves of several baselines."""

    curves: dict[str, str]  # a baseline's name -> its curve's label
    x: str = "env_steps"  # the x axis, a column of the CSVs


def _by_agent(env: str, agents: str) -> Picture:
    return Picture({f"{agent}-{env}": agent for agent in agents.split()})


def _by_count(agent: str, counts: dict[str, str], x: str) -> Picture:
    return Picture({f"{agent}-CartPole-v1{suffix}": label for suffix, label in counts.items()}, x)


WORKERS = {"-workers1": "1 worker", "-workers2": "2 workers", "": "4 workers"}
ROLES = {"": "Mix & Match", "-simple": "the simple agent", "-target": "the target agent"}
ROLES |= {"-population-of-target": "a population of the target agent"}
# The pictures of docs/results besides each baseline's own curve, by file name.
PICTURES = {
    "policy-gradients-CartPole-v1": _by_agent(
        "CartPole-v1",
        "impala a2c a3c ppo trpo reinforce reinforce_baseline actor_critic actor_critic_lambda all_actions",
    ),
    "value-based-CartPole-v1": _by_agent("CartPole-v1", "dqn double_dqn dueling_dqn prioritized_dqn apex_dqn pqn"),
    "value-based-Catch-v0": _by_agent(
        "Catch-v0", "q_learning sarsa dqn double_dqn dueling_dqn prioritized_dqn apex_dqn r2d2 pqn"
    ),
    **{
        f"distributional-{env}": _by_agent(env, "dqn c51 qr_dqn iqn munchausen_dqn rainbow")
        for env in ("CartPole-v1", "Catch-v0", "Pong-v5")
    },
    "gradients-CartPole-v1": _by_agent("CartPole-v1", "a3c async_q async_n_step_q async_sarsa gorila"),
    **{
        f"{agent}-workers-{axis}CartPole-v1": _by_count(agent, WORKERS, x)
        for agent in ("async_q", "async_n_step_q", "async_sarsa")
        for axis, x in (("", "env_steps"), ("wall-", "wall_seconds"))
    },
    **{
        f"gorila-workers-{axis}CartPole-v1": _by_count(
            "gorila", {"-workers1": "1 worker", "": "2 workers", "-workers4": "4 workers"}, x
        )
        for axis, x in (("", "env_steps"), ("wall-", "wall_seconds"))
    },
    "apex_dqn-actors-CartPole-v1": _by_count(
        "apex_dqn", {"-actors1": "1 actor", "-actors2": "2 actors", "-actors4": "4 actors"}, "wall_seconds"
    ),
    **{f"{env}": _by_agent(env, "ppo trpo") for env in (*MUJOCO, "Swimmer-v4")},
    "Pendulum-v1": _by_agent("Pendulum-v1", "impala a2c ppo trpo vmpo dpg ddpg d4pg td3 sac mpo dmpo"),
    "sample-efficiency-Pendulum-v1": Picture(
        {"sac-Pendulum-v1-2500": "SAC", "sac-Pendulum-v1-2500-redq": "REDQ, 20 updates a step"}
    ),
    "LunarLander-v3": _by_agent("LunarLander-v3", "ppo impala double_dqn"),
    "CartpoleSwingup-v1": _by_agent("CartpoleSwingup-v1", "d4pg apex_dpg mpo dmpo"),
    "OpenLake-v0": Picture(
        {"ppo_rnd-OpenLake-v0": "PPO with RND", "ppo_rnd-OpenLake-v0-extrinsic": "without its intrinsic reward"}
    ),
    "CheetahRun-v1": _by_agent("CheetahRun-v1", "ddpg d4pg mpo dmpo"),
    "CartpoleSwingupSparse-v1": Picture(
        {
            "d4pg-CartpoleSwingupSparse-v1-uniform": "uniform replay",
            "d4pg-CartpoleSwingupSparse-v1-prioritized": "prioritised replay",
        }
    ),
    "MiniGrid-MemoryS7-v0": Picture(
        {
            "r2d2-MiniGrid-MemoryS7-v0": "R2D2",
            "r2d2-MiniGrid-MemoryS7-v0-no-burn-in": "R2D2 without burn-in",
            "r2d2-MiniGrid-MemoryS7-v0-zero-state": "R2D2 from a state of zeros",
            "dqn-MiniGrid-MemoryS7-v0": "double DQN, no memory",
        }
    ),
    "Pong-v5": _by_agent("Pong-v5", "impala ppo dqn"),
    **{
        f"mix_match-{task}": Picture({f"mix_match-{task}{suffix}": label for suffix, label in ROLES.items()})
        for task in (
            "MaskedCartPole-v1",
            "binned41-Pendulum-v1",
            "MiniGrid-tasks",
            "MiniGrid-shift",
            "DeadlyCorridor-v1",
        )
    },
    **{
        f"populations-{task}": Picture(
            {f"{task}-population": "population-based training", f"{task}-random-search": "random search"}
        )
        for task in ("impala-Catch-v0", "ppo-Pendulum-v1")
    },
}
# The panels of the README's picture, by title.
PANELS = {
    "CartPole-v1": _by_agent("CartPole-v1", "impala ppo dqn reinforce_baseline"),
    "MaskedCartPole-v1": Picture(
        {"impala-MaskedCartPole-v1": "IMPALA, LSTM", "impala-MaskedCartPole-v1-feed-forward": "feed-forward"}
    ),
    "Pong-v5": PICTURES["Pong-v5"],
    "Pendulum-v1": _by_agent("Pendulum-v1", "ppo ddpg d4pg"),
    "HalfCheetah-v4": PICTURES["HalfCheetah-v4"],
    "CartpoleSwingup-v1": PICTURES["CartpoleSwingup-v1"],
}
