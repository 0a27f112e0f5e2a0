"""A trained policy for use outside its run: loads it from a LOGDIR, and maps observations to actions."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from agents.agent import Agent, BoundedActions, EnvironmentSpec, Params, TimeStep, Version
from environments.environment import REWARD_CLIPS
from environments.interface import interface
from launchers import mirror, recorded, settings
from launchers import population as populations
from launchers import run as runs
from launchers.settings import UsageError
from runtime import actor, best, evaluator
from runtime.files import replacing
from shoal import exporting


class Policy:
    """A trained policy: a function from observations to actions, both as NumPy arrays.

    Call it with one observation, or with a batch of them as Gymnasium's vector environments give it; it tells the two
    apart by the shape. An observation is an element of the environment's own observation space; the policy itself
    converts it to what agents see (docs/environments.md). For Atari and ViZDoom, whose frames EnvPool makes, an
    observation is one such frame, uint8 [84, 84]. An action is an element of the environment's own action space; for
    ViZDoom, a choice for each factor.

    The agent's memory (frames, an LSTM's state, its last action) is kept from one call to the next, separately for each
    observation of a batch. Call `reset` where an episode begins.
    """

    spec: EnvironmentSpec
    version: Version  # how far the run had come when it saved the parameters: learner_steps and env_steps
    needs_reward: bool  # whether the agent is fed the last reward
    _first: Any  # bool [B], whether each next observation is an episode's first; None: all are, for a batch of any size
    _memory: Any

    def __init__(
        self,
        name: str,
        spec: EnvironmentSpec,
        agent: Agent,
        act: Callable[..., Any],
        params: Params,
        version: Version,
        reward_clip: str,
        seed: int,
        device: jax.Device,
    ):
        """Is called by `load`.

        Args:
          name: the environment's.
          act: the agent's way of acting, as runtime.evaluator.policy returns it.
          reward_clip: one of environments.environment.REWARD_CLIPS.
        """
        self.spec, self.version = spec, version
        self._agent, self._device = agent, device
        self._interface, self._clip = interface(name, spec), REWARD_CLIPS[reward_clip]
        self._params, self._key, self._count = jax.device_put(params, device), jax.random.key(seed), 0
        self._act = actor.compile_act(act, device)
        self._flat = exporting.Flat(agent, act, params, spec)
        self.needs_reward = self._flat.needed[exporting.REWARD]
        self._remembers = any(self._flat.needed[exporting.MEMORY])
        self.reset()

    def __call__(self, observation: Any, reward: Any = None) -> Any:
        """Returns the action, or for a batch one action for each observation.

        Args:
          reward: the environment's own reward, which came with the observation: a number, or for a batch one number
            each. Agents that are fed the last reward (`needs_reward`: R2D2, and others if config.lstm_previous is set)
            need it, except where an episode begins.

        Raises:
          ValueError: this is no observation of the environment, a reward is missing, or the agent has a memory and the
            batch has another size than the one before it.
        """
        batch, alone = self._interface.show(observation)
        size, first, memory = len(batch), self._first, self._memory
        if first is not None and len(first) != size and self._remembers:
            raise ValueError(
                f"{size} observations after a batch of {len(first)}: this agent has a memory for each, so call "
                "policy.reset(), which forgets all, before a batch of another size"
            )
        if first is None or len(first) != size:
            first, memory = np.ones(size, bool), jax.device_put(self._agent.memory(size, None), self._device)
        timestep = TimeStep(batch, self._rewards(reward, first), np.ones(size, np.float32), first, np.zeros(size, bool))
        action, _, self._memory = self._act(self._params, self._key, np.uint32(self._count), timestep, memory)
        self._count, self._first = self._count + 1, np.zeros(size, bool)
        taken = self._interface.take(np.asarray(action))
        return taken[0] if alone else taken

    def _rewards(self, reward: Any, first: np.ndarray) -> np.ndarray:
        """Returns rewards as the agent sees them, float32 [B]: clipped as in training, 0 where an episode begins."""
        if reward is None:
            if self.needs_reward and not first.all():
                raise ValueError(
                    "this agent needs the last reward: call policy(observation, reward=...), and policy.reset() "
                    "before an episode"
                )
            reward = 0.0
        rewards = np.asarray(reward, np.float32)
        if rewards.shape not in ((), first.shape) or not np.isfinite(rewards).all():
            raise ValueError(f"reward must be finite, and one number for each of {first.size}, not {reward!r}")
        rewards = np.where(first, np.float32(0.0), rewards)
        return self._clip(rewards) if self._clip else rewards

    def reset(self, done: Any = None) -> None:
        """Clears the memory. Call it before each episode's first observation, except before the very first episode.

        Args:
          done: bool [B], which environments of a batch begin an episode with their next observation. None means all of
            them; the next batch may then have another size.

        Raises:
          ValueError: `done` does not have the batch's size.
        """
        if done is None:
            self._first = self._memory = None
        elif self._first is not None:
            opens = np.asarray(done, bool).reshape(-1)
            if len(opens) != len(self._first):
                raise ValueError(f"policy.reset(done) has {len(opens)} values, and the batch has {len(self._first)}")
            self._first = self._first | opens

    def export(self, path: str | os.PathLike[str], batch_size: int | None = None) -> None:
        """Writes the policy as StableHLO with its parameters inside. JAX alone can run it; docs/policy.md says how.

        Args:
          path: the file to write.
          batch_size: the number of observations in a call; None for any.

        Raises:
          ValueError: the policy cannot be exported.
          OSError: the file cannot be written.
        """
        program = exporting.export(self._flat, self._key, batch_size)
        with replacing(pathlib.Path(path)) as new:
            new.write_bytes(program)


def load(
    logdir: str | os.PathLike[str],
    *,
    checkpoint: str = "newest",
    member: int | None = None,
    sampled: bool | None = None,
    epsilon: float | None = None,
    seed: int = 0,
) -> Policy:
    """Loads the policy of a run's newest checkpoint, or of the parameters that did best in the run's own evaluations.

    It needs neither the environment nor Reverb or TensorFlow. Only if the run is of an old version, which wrote no
    LOGDIR/spec.json, is its environment made once, to find its spec.

    Args:
      logdir: the run's folder, or its URL.
      checkpoint: "newest" or "best". "best" takes the parameters in LOGDIR/best.npz, as scripts/evaluate
        --checkpoint=best does. In a stacked population these are the ones that did best on average over all members.
      member: whose policy to load from a population; the first member is 0. None for any other run.
      sampled: whether actions are sampled, as in training, instead of greedy; None: as the run's --eval_policy says.
      epsilon: the probability of a uniformly random action instead, if actions are discrete or factored; None: the
        run's --eval_epsilon.
      seed: seeds what is random in acting.

    Raises:
      UsageError: a ValueError of one line: there is no run, no checkpoint yet or no such member, the epsilon does not
        fit, or the best parameters cannot be read.
      OSError: none of the checkpoints can be read.
    """
    if checkpoint not in ("newest", "best"):
        raise UsageError(f'checkpoint is "newest" or "best", not {checkpoint!r}')
    folder = _folder(logdir, ())
    run = runs.load(folder, check=False)
    if run.population and (isinstance(member, bool) or member not in range(run.population)):
        raise UsageError(
            f"{logdir} is the folder of a population: choose one of member=0 to member={run.population - 1}, "
            f"not member={member!r}"
        )
    if not run.population and member is not None:
        raise UsageError(f"{logdir} is not the folder of a population: leave member={member!r} out")
    if populations.learners(run) != [None]:
        of_member = f"{os.fspath(logdir).rstrip('/')}/member_{member}"
        return load(of_member, checkpoint=checkpoint, sampled=sampled, epsilon=epsilon, seed=seed)
    folder = _folder(logdir, {"checkpoints"}) if checkpoint == "newest" else _folder(logdir, (), best.FILE)
    spec, reward_clip = recorded.spec_of(run, folder)
    trained = run.make_agent(spec, check=False)
    if checkpoint == "newest":
        state, version = recorded.restored(trained, folder)
        params = trained.policy(state)
    else:
        version, params, _ = recorded.best_of(trained, folder, 'checkpoint="NAME"')
    agent = trained
    if run.stacked > 1:  # its members' parameters are side by side
        params = jax.tree.map(lambda x: x[member], params)
        agent = dataclasses.replace(run, population=0).make_agent(spec, check=False)
    epsilon = run.eval_epsilon if epsilon is None else epsilon
    settings.check_value("eval_epsilon", epsilon, settings.DECLARED["eval_epsilon"])
    if epsilon and isinstance(spec.actions, BoundedActions):
        raise UsageError(f"epsilon={epsilon} is for discrete actions; those of {run.env} are continuous")
    sampled = run.eval_policy == "sampled" if sampled is None else sampled
    act = evaluator.policy(agent, spec.actions, sampled, epsilon)
    device = jax.local_devices(backend="cpu" if run.actor_backend == "cpu" else None)[0]
    return Policy(run.env, spec, agent, act, params, version, reward_clip, seed, device)


def _folder(logdir: str | os.PathLike[str], saves: Collection[str], *names: str) -> pathlib.Path:
    """Returns the run's folder on this machine.

    If `logdir` is a URL, it first fetches config.json, spec.json, the files of these `names`, and checkpoints in the
    folders that `saves` names.

    Raises:
      UsageError: the URL cannot be read, or has no run.
    """
    text = os.fspath(logdir)
    try:
        place = mirror.place(text)
    except UsageError as error:
        raise UsageError(f"no run in {text!r}: {error}") from error
    return mirror.fetched(place, saves, recorded.SPEC, *names)
