"""Runs of a few hundred steps, with several kinds of agents and environments, and the steps of their evaluations."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from agents.agent import TimeStep
from launchers import flags, recorded, roles, train
from launchers import run as runs
from runtime import evaluator

ALL = (
    *("--carrier=local", "--placement=serial", "--num_actors=1", "--envs_per_actor=4"),
    *("--max_env_steps=400", "--eval_period=1000000", "--eval_episodes=4", "--eval_max_steps=40"),
)
BLOCKS = ("--config.batch_size=4", "--config.unroll_length=5")
REPLAY = ("--config.batch_size=4", "--config.min_replay_size=64", "--config.replay_size=500")
SMALL = ("--config.hidden_sizes=8",)
LSTM = ("--config.lstm_size=8",)

# The runs to train: name -> flags of scripts/train.
COMMANDS: dict[str, tuple[str, ...]] = {
    "dqn": ("--agent=dqn", "--env=CartPole-v1", *REPLAY, *SMALL),
    "dqn of frames": (
        *("--agent=dqn", "--env=Pong-v5", *REPLAY, "--config.torso=shallow", "--max_env_steps=200"),
        "--eval_epsilon=0",
    ),
    "double_dqn of choices": ("--agent=double_dqn", "--env=gymnasium:FrozenLake-v1", *REPLAY, *SMALL),
    "impala": ("--agent=impala", "--env=gymnasium:CartPole-v1", *BLOCKS, *SMALL),
    "impala, recurrent": (
        *("--agent=impala", "--env=Pendulum-v1", *BLOCKS, *SMALL, *LSTM, "--config.lstm_previous=true"),
    ),
    "impala of factors": ("--agent=impala", "--env=binned:5:Pendulum-v1", *BLOCKS, *SMALL),
    "ppo": (
        *("--agent=ppo", "--env=Pendulum-v1", "--config.batch_size=4", "--config.unroll_length=16", *SMALL),
        "--config.minibatches=2",
    ),
    "ppo of parts": (
        *("--agent=ppo", "--env=CheetahRun-v1", "--config.batch_size=4", "--config.unroll_length=16", *SMALL),
        "--config.minibatches=2",
    ),
    "ddpg": ("--agent=ddpg", "--env=Pendulum-v1", *REPLAY, *SMALL, "--config.samples_per_insert=4"),
    "sac": ("--agent=sac", "--env=Pendulum-v1", *REPLAY, *SMALL, "--config.samples_per_insert=4"),
    "mpo": ("--agent=mpo", "--env=Pendulum-v1", *REPLAY, *SMALL, "--config.samples_per_insert=4"),
    "vmpo": ("--agent=vmpo", "--env=Pendulum-v1", *BLOCKS, *SMALL),
    "r2d2": (
        *("--agent=r2d2", "--env=Catch-v0", *LSTM, "--config.batch_size=4", "--config.replay_size=100"),
        *("--config.min_replay_size=8", "--config.samples_per_insert=2", "--max_env_steps=900"),
    ),
    "q_learning": ("--agent=q_learning", "--env=gymnasium:FrozenLake-v1", "--config.batch_size=4"),
    "off_pac": ("--agent=off_pac", "--env=MountainCar-v0", "--config.batch_size=4"),
    "sampled, with errors": (
        *("--agent=impala", "--env=Acrobot-v1", *BLOCKS, *SMALL),
        *("--eval_policy=sampled", "--eval_epsilon=0.2"),
    ),
    "stacked members": (
        *("--agent=impala", "--env=Pendulum-v1", *BLOCKS, *SMALL),
        *("--population=2", "--population_mode=vmap", "--tune=learning_rate:log:1e-4:1e-2"),
    ),
}  # fmt: skip
SEED = 3  # the seed of evaluations
LONGEST = 40  # how many steps of an evaluation are kept


class Evaluated(NamedTuple):
    """The steps of an evaluation."""

    timesteps: list[TimeStep]  # as the agent sees them, [B, ...]
    raw: list[Any]  # the observations as the environment gives them, batched
    rewards: list[np.ndarray]  # as the environment gives them, [B]
    actions: list[np.ndarray]  # as the agent chooses them, [B, ...]


def trained(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Trains a run; returns its LOGDIR."""
    logdir = folder / name
    assert flags.attempt(train.train, ["train", *ALL, *COMMANDS[name], f"--logdir={logdir}"]) == 0
    return logdir


def evaluated(logdir: pathlib.Path, seed: int) -> Evaluated:
    """Returns what runtime.evaluator plays with a run's newest checkpoint, by the key of a seed."""
    run = runs.load(logdir)
    parts = roles.Parts(run, logdir)
    state, _ = recorded.restored(parts.agent, logdir)
    params = jax.device_put(parts.agent.policy(state), parts.device)
    environment = run.make_environment(seed, run.stacked * run.eval_envs, evaluation=True)
    found = Evaluated([], [], [], [])

    def act(params, key, count, timestep, memory):
        action, extras, memory = parts.act_in_evaluations(params, key, count, timestep, memory)
        found.timesteps.append(jax.tree.map(np.copy, timestep))
        found.actions.append(np.asarray(action))
        return action, extras, memory

    watch(environment, found)
    episodes = environment.num_envs * run.eval_episodes
    playing = evaluator.play(
        parts.agent, act, environment, params, jax.random.key(seed), episodes, lambda: len(found.actions) >= LONGEST
    )
    for _ in playing:
        pass
    environment.close()
    if parts.spec.spaces is None:  # EnvPool gives no other observations than those that agents see
        found.raw[:] = [timestep.observation for timestep in found.timesteps]
    del found.raw[len(found.actions) :], found.rewards[len(found.actions) :]
    return found


def watch(environment: Any, found: Evaluated) -> None:
    """Has the observations and rewards noted in `found` as the environment gives them, before they are converted."""
    reset, step = environment._reset, environment._step
    inner = environment
    while not hasattr(inner, "_show"):
        inner = inner._continuous
    if hasattr(inner, "_observations"):  # an environment of Gymnasium
        show = inner._observations.show
        inner._observations = inner._observations._replace(show=lambda raw: show(note(raw)))
    else:
        show = inner._show
        inner._show = lambda raw: show(note(raw))

    def note(raw):
        found.raw.append(jax.tree.map(np.copy, raw))
        return raw

    def noted_reset():
        found.rewards.append(np.zeros(environment.num_envs, np.float32))
        return reset()

    def noted_step(action, resets):
        outcome = step(action, resets)
        found.rewards.append(np.asarray(outcome[1], np.float32))
        return outcome

    environment._reset, environment._step = noted_reset, noted_step
