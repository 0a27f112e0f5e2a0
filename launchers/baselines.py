"""The baselines: the runs that stand for Shoal's results, the published figures to compare them with, and the returns
from which they count as reproduced.

This module is data alone. `scripts/baseline` makes the runs and records them in docs/results/NAME; the pages of docs/
are written from both.
"""

import dataclasses
import fnmatch
from collections.abc import Sequence

from launchers.settings import UsageError, nearest


@dataclasses.dataclass(frozen=True)
class Published:
    """A published figure."""

    value: float | None  # None: the paper gives no number
    where: str  # what was measured, and the paper and table or figure that has it


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Runs of one command line, which differ in their seeds alone."""

    flags: str  # of scripts/train, without --seed and --logdir
    variant: str = ""  # a word that tells it from other baselines of the same agent and environment
    reproduced: float | None = None  # the mean return from which it counts as reproduced; None: none is set
    published: Published | None = None
    seeds: int = 5  # how many the record is to have
    minutes: float = 1.0  # how long a run takes, on one core of the machines that made the records
    task: str = ""  # the environment's name in file names, where its own does not suit; "": its own
    page: str = ""  # the page of docs/ that shows it, without ".md"; "": its agent's
    remark: str = ""  # what a reader must know besides, such as a claim that the runs do not show

    @property
    def agent(self) -> str:
        return self.flag("agent")

    @property
    def env(self) -> str:
        return self.flag("env")

    def flag(self, name: str) -> str:
        (value,) = (word.split("=", 1)[1] for word in self.flags.split() if word.startswith(f"--{name}="))
        return value

    @property
    def name(self) -> str:
        """The name of the baseline's folder under docs/results."""
        task = self.task or self.env.replace(":", "-")
        return "-".join(filter(None, (self.agent, task, self.variant)))


def select(patterns: Sequence[str]) -> list[Baseline]:
    """Returns the baselines that match any of the `patterns`, which are names or patterns such as `ppo-*`. Each comes
    once, in the order of BASELINES.

    Raises:
      UsageError: a pattern matches none.
    """
    for pattern in patterns:
        if not fnmatch.filter(NAMED, pattern):
            raise UsageError(f"no baseline {pattern!r}{nearest(pattern, NAMED, listing=False)}; --list lists them")
    return [found for name, found in NAMED.items() if any(fnmatch.fnmatchcase(name, each) for each in patterns)]


def _on(env: str, agents: str, **kwargs) -> list[Baseline]:
    """Returns a baseline for each of the `agents`, names with spaces between, which gives no flags but these two."""
    return [Baseline(f"--agent={agent} --env={env}", **kwargs) for agent in agents.split()]


IMPALA_ATARI = "after 200 million frames, not 10: Espeholt et al. 2018, table C.1"
PPO_ATARI = "after 40 million frames, not 10: Schulman et al. 2017, table 6"
TD3 = "Fujimoto et al. 2018, table 1: the best evaluation of 1,000,000 steps, v1 tasks, 10 seeds"
# The returns of (PPO, TRPO) in that table.
MUJOCO: dict[str, tuple[float, float]] = {
    "HalfCheetah-v4": (1795.4, -15.6),
    "Hopper-v4": (2164.7, 2471.3),
    "Walker2d-v4": (3317.7, 2321.5),
    "Reacher-v4": (-6.2, -111.4),
    "InvertedPendulum-v4": (1000.0, 985.4),
    "InvertedDoublePendulum-v4": (8977.9, 205.9),
}
POPULATION = "--population=8 --population_mode=vmap --tune=learning_rate:log:1e-5:1e-2,entropy_cost:log:1e-3:1e-1"
OF_PPO = "--population=4 --population_mode=vmap --tune=learning_rate:log:1e-5:1e-2,clip_epsilon:log:0.05:0.5"
MIXED = "--population=4 --population_mode=vmap --tune=alpha:step=0.1:0:1 --ready_env_steps=4000 --exploit=tournament"
EXPERTS = (
    "--population=4 --population_mode=vmap --tune=alpha:step=0.2:0:1 --ready_env_steps=10000 --exploit=tournament"
    " --fitness=evaluation --config.evaluate=target"
)
EASY = "MiniGrid-Empty-Random-5x5-v0,MiniGrid-Empty-Random-6x6-v0,MiniGrid-LavaGapS5-v0,MiniGrid-LavaGapS6-v0"
SHIFT = "MiniGrid-Empty-Random-6x6-v0,MiniGrid-LavaGapS5-v0,MiniGrid-LavaGapS6-v0,MiniGrid-DistShift1-v0"
SIMPLE, TARGET = "--config.alpha=0 --config.kl_cost=0", "--config.alpha=1"


def _curricula() -> list[Baseline]:
    """Returns the baselines of Mix & Match, and of what it is compared with: its simple agent, its target agent, and a
    population of target agents."""
    found = []
    for env, task, flags, mixed, rates, extra in (
        ("binned:41:Pendulum-v1", "binned41-Pendulum-v1", "--eval_period=10000", MIXED, "1e-3:4e-3", ""),
        ("MaskedCartPole-v1", "", "--max_env_steps=500000 --eval_period=25000", MIXED, "5e-4:8e-3", ""),
        (EASY, "MiniGrid-tasks", "--eval_period=10000", EXPERTS, "3e-4:3e-3", " --config.evaluate=target"),
        (SHIFT, "MiniGrid-shift", "--eval_period=10000", EXPERTS, "3e-4:3e-3", " --config.evaluate=target"),
    ):
        start = f"--agent=mix_match --env={env} {flags}"
        ready = 25_000 if env.startswith("Masked") else 20_000
        tuned = f"--population=4 --population_mode=vmap --tune=learning_rate:log:{rates} --ready_env_steps={ready}"
        found += [
            Baseline(f"{start} {mixed}", task=task, seeds=3, minutes=10),
            Baseline(f"{start} {SIMPLE}", "simple", task=task, seeds=3, minutes=3),
            Baseline(f"{start} {TARGET}{extra}", "target", task=task, seeds=3, minutes=3),
            Baseline(f"{start} {tuned} {TARGET}{extra}", "population-of-target", task=task, seeds=3, minutes=10),
        ]
    start = "--agent=mix_match --env=DeadlyCorridor-v1 --max_env_steps=100000 --eval_period=10000"
    mixed = MIXED.replace(" --population_mode=vmap", "")
    tuned = "--population=4 --tune=learning_rate:log:1e-4:2e-3 --ready_env_steps=10000"
    return [
        *found,
        Baseline(f"{start} {mixed}", seeds=1, minutes=60),
        Baseline(f"{start} {SIMPLE}", "simple", seeds=1, minutes=20),
        Baseline(f"{start} {TARGET}", "target", seeds=1, minutes=20),
        Baseline(f"{start} {tuned} {TARGET}", "population-of-target", seeds=1, minutes=60),
    ]


# The flags of DQN on Pong on a CPU, for the other agents of action values. EPSILON completes them, but not for Rainbow,
# which explores by its noise.
PONG = (
    "--env=Pong-v5 --max_env_steps=1000000 --eval_period=50000 --publish_period=16 --config.torso=shallow"
    " --config.n_step=4 --config.batch_size=16 --config.optimizer_epsilon=1.5e-4 --config.learning_rate=2.5e-4"
    " --config.samples_per_insert=4 --config.target_period=1000 --config.replay_size=200000"
    " --config.min_replay_size=10000"
)
EPSILON = " --config.epsilon_final=0.02 --config.epsilon_steps=25000"
FEW_FRACTIONS = (
    " --config.head_size=256 --config.num_fractions=8 --config.num_target_fractions=8 --config.num_acting_fractions=8"
)

# The first level of each of the Behaviour Suite's experiments: the steps of an episode, and how many episodes bsuite
# asks for. The steps are 0 where episodes differ in length, with up to 1,000 steps.
BSUITE = {
    **{f"bandit{kind}": (1, 10_000) for kind in ("", "_noise", "_scale")},
    **{f"mnist{kind}": (1, 10_000) for kind in ("", "_noise", "_scale")},
    **{f"catch{kind}": (9, 10_000) for kind in ("", "_noise", "_scale")},
    **{f"mountain_car{kind}": (0, 1_000) for kind in ("", "_noise", "_scale")},
    **{f"cartpole{kind}": (0, 1_000) for kind in ("", "_noise", "_scale", "_swingup")},
    "deep_sea": (10, 10_000),
    "deep_sea_stochastic": (10, 10_000),
    "umbrella_length": (1, 10_000),
    "umbrella_distract": (20, 10_000),
    "discounting_chain": (100, 1_000),
    "memory_len": (2, 10_000),
    "memory_size": (3, 10_000),
}
# Scores of single runs of the same levels, by bsuite's analysis of the logs that Anderson and Bittner 2023 published,
# https://github.com/LorenJAnderson/bsuite-applications at 88db47f. It has no logs of the other levels.
BSUITE_PUBLISHED = {
    "bsuite's own DQN": {
        "bandit": 0.920,
        "bandit_noise": 0.919,
        "bandit_scale": 0.628,
        "mnist": 0.205,
        "mnist_noise": 0.179,
        "mnist_scale": 0.045,
        "deep_sea": 0.0,
        "deep_sea_stochastic": 0.0,
        "umbrella_length": 1.0,
        "umbrella_distract": 1.0,
        "discounting_chain": 0.475,
        "memory_len": 1.0,
        "memory_size": 0.0,
    },
    "A2C of Stable-Baselines3": {
        "bandit": 0.991,
        "bandit_noise": 0.987,
        "bandit_scale": 0.055,
        "mnist": 0.074,
        "mnist_noise": 0.082,
        "mnist_scale": 0.057,
        "deep_sea": 0.0,
        "deep_sea_stochastic": 0.0,
        "umbrella_length": 1.0,
        "umbrella_distract": 0.0,
        "discounting_chain": 0.954,
        "memory_len": 1.0,
        "memory_size": 0.0,
    },
}
# Environment steps, about two minutes, of the levels where all of bsuite's episodes might come to a million.
BSUITE_CUT = {"dqn": 100_000, "a2c": 200_000}


def bsuite_of(agent: str) -> list[Baseline]:
    """Returns an agent's baselines in the Behaviour Suite. A run has the steps of all episodes and 500 more, because
    the learner's count of steps is not quite the actor's."""
    found = []
    for experiment, (length, episodes) in BSUITE.items():
        steps = length * episodes + 500 if length else BSUITE_CUT[agent]
        env = f"gymnasium:environments.bsuite:bsuite/{experiment}-0-v0"
        flags = f"--agent={agent} --env={env} --placement=serial --carrier=local --max_env_steps={steps}"
        flags += f" --eval_period={steps}"
        minutes = 0.5 + steps / (80_000 if agent == "dqn" else 200_000)
        found.append(Baseline(flags, task=f"bsuite-{experiment}-0", page="bsuite", seeds=1, minutes=minutes))
    return found


# The flags that switch off each of Rainbow's parts, as in its figure 3. Without noise, DQN's epsilon on the same task
# explores.
RAINBOW_LESS = {
    "double": "--config.double=false",
    "priorities": "--config.replay=uniform",
    "dueling": "--config.dueling=false",
    "n-step": "--config.n_step=1",
    "distribution": "--config.categorical=false",
    "noise": "--config.noisy=false --config.epsilon_initial=1 --config.epsilon_final=0.05 --config.epsilon_steps=2500",
}

FEW_STEPS = "--env=Pendulum-v1 --carrier=local --max_env_steps=2500 --eval_period=250"
LAKE = "--env=gymnasium:environments.textbook:OpenLake-v0 --carrier=local"

BASELINES: list[Baseline] = [
    # Classic control and Catch -------------------------------------------------------------------------------------
    *_on("CartPole-v1", "impala a2c a3c ppo vmpo", reproduced=475),
    Baseline("--agent=trpo --env=CartPole-v1 --max_env_steps=200000", reproduced=475),
    *_on("CartPole-v1", "reinforce reinforce_baseline actor_critic actor_critic_lambda all_actions", reproduced=475),
    *_on("CartPole-v1", "dqn double_dqn dueling_dqn prioritized_dqn apex_dqn", reproduced=475, minutes=4),
    *_on("CartPole-v1", "c51 qr_dqn munchausen_dqn", reproduced=475, minutes=5),
    *_on("CartPole-v1", "rainbow iqn", reproduced=475, minutes=10),
    *_on("CartPole-v1", "async_q async_n_step_q async_sarsa", reproduced=475, minutes=2),
    *_on("CartPole-v1", "gorila", reproduced=475, minutes=8),
    *_on("CartPole-v1", "sac", reproduced=475, minutes=3),
    *_on("CartPole-v1", "pqn", reproduced=475),
    *_on("Catch-v0", "sac pqn", reproduced=0.95),
    *_on("Catch-v0", "impala a2c vmpo q_learning sarsa", reproduced=0.95),
    *_on("Catch-v0", "dqn double_dqn dueling_dqn prioritized_dqn apex_dqn", reproduced=0.95, minutes=2),
    *_on("Catch-v0", "c51 rainbow qr_dqn iqn munchausen_dqn", reproduced=0.95, minutes=2),
    *[
        Baseline(
            f"--agent=rainbow --env=Catch-v0 {without}",
            f"no-{part}",
            seeds=3,
            minutes=2,
            remark="Hessel et al. 2018, figure 3: Rainbow is worse without most of its parts; not shown on Catch, "
            "which is too easy",
        )
        for part, without in RAINBOW_LESS.items()
    ],
    Baseline("--agent=r2d2 --env=Catch-v0 --max_env_steps=100000", reproduced=0.95, minutes=4),
    Baseline("--agent=impala --env=MaskedCartPole-v1", reproduced=475, minutes=2),
    Baseline("--agent=impala --env=MaskedCartPole-v1 --config.lstm_size=0", "feed-forward"),
    Baseline("--agent=a2c --env=MaskedCartPole-v1", reproduced=475, minutes=3),
    Baseline(
        "--agent=a2c --env=MaskedCartPole-v1 --max_env_steps=300000 --config.lstm_size=0 --config.unroll_length=16",
        "feed-forward",
        seeds=1,
    ),
    Baseline("--agent=a3c --env=MaskedCartPole-v1", reproduced=475, seeds=3, minutes=5),
    # The deep network of the paper with its LSTM, where a CPU can still train it.
    Baseline(
        "--agent=impala --env=Catch-v0 --config.torso=residual --config.lstm_size=256",
        "residual-lstm",
        reproduced=0.95,
        seeds=3,
        minutes=6,
    ),
    *_on("Acrobot-v1", "impala a2c a3c ppo trpo mix_match reinforce reinforce_baseline", reproduced=-100),
    *_on("Acrobot-v1", "actor_critic actor_critic_lambda q_learning sarsa", reproduced=-100, minutes=2),
    *_on("Acrobot-v1", "dqn double_dqn dueling_dqn prioritized_dqn apex_dqn", reproduced=-100, minutes=4),
    *_on("Acrobot-v1", "async_q async_n_step_q async_sarsa", reproduced=-100, minutes=2),
    *_on("Acrobot-v1", "r2d2 gorila", reproduced=-100, minutes=10),
    *_on("Acrobot-v1", "pqn", reproduced=-100),
    Baseline("--agent=all_actions --env=Acrobot-v1 --max_env_steps=500000", reproduced=-100),
    Baseline("--agent=off_pac --env=MountainCar-v0", reproduced=-130, minutes=2),
    # With and without the intrinsic reward, which is to find the task's own.
    Baseline(f"--agent=ppo_rnd {LAKE}", task="OpenLake-v0", reproduced=0.95, seeds=3),
    Baseline(f"--agent=ppo_rnd {LAKE} --config.intrinsic_coefficient=0", "extrinsic", task="OpenLake-v0", seeds=3),
    *_on("Pendulum-v1", "impala a2c", reproduced=-250, minutes=2),
    *_on("Pendulum-v1", "vmpo", minutes=2),
    *_on("Pendulum-v1", "ppo trpo", reproduced=-200, minutes=2),
    *_on("Pendulum-v1", "ddpg d4pg td3 sac mpo dmpo", reproduced=-200, minutes=2),
    # What SAC, and REDQ with twenty updates for each step, know after 2,500 steps.
    Baseline(f"--agent=sac {FEW_STEPS}", "2500", seeds=3, minutes=0.5),
    Baseline(
        f"--agent=sac {FEW_STEPS} --config.num_critics=10 --config.target_critics=2 --config.samples_per_insert=2560"
        " --config.policy_period=20",
        "2500-redq",
        seeds=3,
        minutes=4,
    ),
    *_on("Pendulum-v1", "dpg", minutes=2),
    Baseline("--agent=dpg --env=Pendulum-v1 --carrier=local --config.alpha_u=0.2", "gradient-q"),
    Baseline(
        "--agent=dpg --env=Pendulum-v1 --config.form=sarsa --config.batch_size=16 --envs_per_actor=16"
        " --max_env_steps=200000",
        "sarsa",
    ),
    *_on("MountainCarContinuous-v0", "dpg", reproduced=90),
    Baseline("--agent=dpg --env=MountainCarContinuous-v0 --carrier=local --config.alpha_u=0.2", "gradient-q"),
    *[
        Baseline(f"--agent={agent} --env=Pendulum-v1 --carrier=local --eval_period={period}", minutes=4)
        for agent, period in (("actor_critic_lambda", 100_000), ("actor_critic", 100_000), ("off_pac", 50_000))
    ],
    Baseline("--agent=ppo --env=LunarLander-v3 --carrier=local", reproduced=200, minutes=4),
    Baseline("--agent=impala --env=LunarLander-v3 --carrier=local", reproduced=200, minutes=2),
    Baseline("--agent=double_dqn --env=LunarLander-v3 --carrier=local", reproduced=200, seeds=3, minutes=8),
    # MuJoCo and dm_control -----------------------------------------------------------------------------------------
    *[
        Baseline(
            f"--agent={agent} --env={env} --carrier=local --max_env_steps=1000000 --eval_period=50000",
            reproduced=printed[of] - 0.1 * abs(printed[of]),
            published=Published(printed[of], TD3),
            minutes=2,
        )
        for of, agent in enumerate(("ppo", "trpo"))
        for env, printed in MUJOCO.items()
    ],
    *[
        Baseline(
            f"--agent={agent} --env=Swimmer-v4 --carrier=local --max_env_steps=1000000 --eval_period=50000", minutes=2
        )
        for agent in ("ppo", "trpo")
    ],
    *[
        Baseline(f"--agent={agent} --env=InvertedPendulum-v4 --carrier=local --eval_period=20000", reproduced=950)
        for agent in ("reinforce", "reinforce_baseline")
    ],
    *[
        Baseline(
            f"--agent={agent} --env=InvertedPendulum-v4 --carrier=local --max_env_steps=300000 --eval_period=25000",
            reproduced=950,
        )
        for agent in ("actor_critic", "actor_critic_lambda")
    ],
    Baseline(
        "--agent=ddpg --env=HalfCheetah-v4 --carrier=local --eval_period=25000",
        reproduced=8000,
        published=Published(8577.3, f"{TD3}; its own DDPG"),
        seeds=1,
        minutes=120,
    ),
    *[
        Baseline(
            f"--agent=td3 --env={env} --carrier=local --max_env_steps={steps} --eval_period=25000",
            variant,
            reproduced=0.9 * value if steps == 1_000_000 else None,
            published=Published(value, TD3 if steps == 1_000_000 else f"after 1,000,000 steps: {TD3}"),
            seeds=3,
            minutes=steps / 6_000,
        )
        for env, value in (("HalfCheetah-v4", 9636.95), ("Hopper-v4", 3564.07))
        for steps, variant in ((300_000, "300k"), (1_000_000, ""))
    ],
    *[
        Baseline(
            f"--agent=sac --env={env} --carrier=local --max_env_steps={steps} --eval_period=25000",
            variant,
            published=Published(None, "curves alone: Haarnoja et al. 2018, 1812.05905, figure 1"),
            seeds=3,
            minutes=steps / 5_000,
        )
        for env in ("HalfCheetah-v4", "Hopper-v4")
        for steps, variant in ((300_000, "300k"), (1_000_000, ""))
    ],
    Baseline("--agent=ddpg --env=CheetahRun-v1 --carrier=local --eval_period=25000", seeds=3, minutes=90),
    Baseline(
        "--agent=ddpg --env=CheetahRun-v1 --max_env_steps=300000 --eval_period=25000 --updates_per_dispatch=1"
        " --config.layer_norm=false --config.n_step=1 --config.critic_learning_rate=1e-3",
        "not-normalised",
        seeds=1,
        minutes=40,
    ),
    Baseline(
        "--agent=d4pg --env=CartpoleSwingup-v1 --max_env_steps=150000",
        reproduced=800,
        seeds=3,
        minutes=10,
    ),
    Baseline("--agent=d4pg --env=CheetahRun-v1 --carrier=local --max_env_steps=300000", seeds=3, minutes=25),
    *[
        Baseline(f"--agent={agent} --env={env} --carrier=local --max_env_steps=300000", seeds=3, minutes=60)
        for agent in ("mpo", "dmpo")
        for env in ("CartpoleSwingup-v1", "CheetahRun-v1")
    ],
    *[
        Baseline(
            f"--agent=d4pg --env=CartpoleSwingupSparse-v1 --config.replay={replay} --max_env_steps=150000"
            " --eval_period=10000",
            replay,
            seeds=3,
            minutes=15,
        )
        for replay in ("uniform", "prioritized")
    ],
    Baseline("--agent=apex_dpg --env=CartpoleSwingup-v1 --max_env_steps=150000", reproduced=800, seeds=3, minutes=10),
    # Memory --------------------------------------------------------------------------------------------------------
    Baseline("--agent=r2d2 --env=MiniGrid-MemoryS7-v0 --max_env_steps=400000", seeds=3, minutes=20),
    Baseline(
        "--agent=r2d2 --env=MiniGrid-MemoryS7-v0 --max_env_steps=400000 --config.burn_in=0",
        "no-burn-in",
        seeds=1,
        minutes=20,
    ),
    Baseline(
        "--agent=r2d2 --env=MiniGrid-MemoryS7-v0 --max_env_steps=400000 --config.stored_state=false",
        "zero-state",
        seeds=1,
        minutes=20,
    ),
    Baseline(
        "--agent=dqn --env=MiniGrid-MemoryS7-v0 --max_env_steps=400000 --envs_per_actor=32"
        " --config.samples_per_insert=8 --config.discount=0.97 --config.double=true",
        seeds=1,
        minutes=20,
    ),
    # The Behaviour Suite -------------------------------------------------------------------------------------------
    *bsuite_of("dqn"),
    *bsuite_of("a2c"),
    # Atari ---------------------------------------------------------------------------------------------------------
    Baseline(
        "--agent=impala --env=Pong-v5",
        seeds=3,
        minutes=60,
        published=Published(None, IMPALA_ATARI),
    ),
    *[
        Baseline(
            f"--agent=impala --env={env} --carrier=local --max_env_steps=2500000 --eval_period=125000",
            reproduced=reproduced,
            published=Published(None, IMPALA_ATARI),
            seeds=1,
            minutes=55,
            remark=remark,
        )
        for env, reproduced, remark in (
            ("Breakout-v5", 100, "its likeliest actions alone came to 189 (20 games): the policy stays too random"),
            ("SpaceInvaders-v5", None, ""),
        )
    ],
    Baseline(
        "--agent=ppo --env=Pong-v5 --max_env_steps=2500000 --eval_period=125000 --config.torso=shallow"
        " --config.learning_rate=7e-4 --config.clip_epsilon=0.2 --config.baseline_cost=0.5 --eval_policy=sampled",
        reproduced=19,
        published=Published(20.7, PPO_ATARI),
        seeds=1,
        minutes=60,
    ),
    Baseline(
        "--agent=ppo --env=Breakout-v5 --carrier=local --max_env_steps=2500000 --eval_period=125000"
        " --config.torso=shallow --config.learning_rate=7e-4 --config.clip_epsilon=0.2 --config.baseline_cost=0.5"
        " --config.epochs=4 --eval_policy=sampled",
        reproduced=100,
        published=Published(274.8, PPO_ATARI),
        seeds=1,
        minutes=130,
    ),
    Baseline(
        "--agent=ppo --env=Pong-v5 --max_env_steps=1300000 --eval_period=65000 --config.torso=shallow",
        "preset",
        seeds=1,
        minutes=30,
    ),
    Baseline(
        "--agent=dqn --env=Pong-v5 --max_env_steps=1000000 --eval_period=50000 --publish_period=16"
        " --config.torso=shallow --config.double=true --config.n_step=4 --config.batch_size=16 --config.optimizer=adam"
        " --config.optimizer_epsilon=1.5e-4 --config.learning_rate=2.5e-4 --config.samples_per_insert=4"
        " --config.target_period=1000 --config.replay_size=200000 --config.min_replay_size=10000"
        " --config.epsilon_final=0.02 --config.epsilon_steps=25000",
        published=Published(18.9, "after 200 million frames, not 4: Mnih et al. 2015, extended data table 2"),
        seeds=1,
        minutes=90,
    ),
    Baseline(
        "--agent=pqn --env=Pong-v5 --max_env_steps=2000000 --eval_period=100000 --envs_per_actor=32"
        " --config.torso=shallow --config.batch_size=32 --config.minibatches=8 --config.epsilon_final=0.01"
        " --config.epsilon_env_steps=200000",
        seeds=1,
        minutes=60,
    ),
    *[
        Baseline(f"--agent={agent} {PONG}{more}", seeds=1, minutes=minutes)
        for agent, more, minutes in (
            ("c51", EPSILON, 100),
            ("rainbow", " --config.head_size=256", 150),
            ("qr_dqn", EPSILON, 110),
            ("iqn", EPSILON + FEW_FRACTIONS, 180),
            ("munchausen_dqn", EPSILON, 100),
        )
    ],
    # More workers --------------------------------------------------------------------------------------------------
    *[
        Baseline(f"--agent={agent} --env=CartPole-v1 --num_actors={count}", f"workers{count}", seeds=1, minutes=3)
        for agents, counts in (("async_q async_n_step_q async_sarsa", (1, 2)), ("gorila", (1, 4)))
        for agent in agents.split()
        for count in counts  # other than their presets'
    ],
    *[
        Baseline(
            "--agent=apex_dqn --env=CartPole-v1 --placement=processes --actors_per_process=1"
            f" --num_actors={count} --max_env_steps=100000 --eval_period=10000",
            f"actors{count}",
            seeds=1,
            minutes=2,
        )
        for count in (1, 2, 4)
    ],
    # The local carrier, where the others have Reverb's ------------------------------------------------------------
    *[
        Baseline(f"--agent={agent} --env={env} --carrier=local", "local", reproduced=least, seeds=1, minutes=2)
        for agent, env, least in (
            ("dqn", "Catch-v0", 0.95),
            ("prioritized_dqn", "CartPole-v1", 475),
            ("ddpg", "Pendulum-v1", -200),
            ("d4pg", "Pendulum-v1", -200),
            ("dpg", "Pendulum-v1", None),
        )
    ],
    Baseline(
        "--agent=r2d2 --env=Catch-v0 --max_env_steps=100000 --carrier=local",
        "local",
        reproduced=0.95,
        seeds=1,
        minutes=4,
    ),
    Baseline(
        "--agent=d4pg --env=CartpoleSwingup-v1 --carrier=local --max_env_steps=150000",
        "local",
        reproduced=800,
        seeds=4,
        minutes=10,
    ),
    # Populations ---------------------------------------------------------------------------------------------------
    *[
        Baseline(
            f"--agent=impala --env=Catch-v0 {POPULATION} --config.decay_env_steps=0 --max_env_steps=100000"
            f" --eval_period=10000{exploit}",
            variant,
            seeds=3,
            minutes=3,
        )
        for variant, exploit in (("population", ""), ("random-search", " --exploit=none"))
    ],
    *[
        Baseline(
            f"--agent=ppo --env=Pendulum-v1 {OF_PPO} --max_env_steps=100000 --eval_period=20000 --score_episodes=10"
            f" --config.decay_env_steps=0{exploit}",
            variant,
            seeds=1,
            minutes=5,
        )
        for variant, exploit in (("population", ""), ("random-search", " --exploit=none"))
    ],
    *_curricula(),
]
NAMED = {each.name: each for each in BASELINES}
