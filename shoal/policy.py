"""A trained policy without its run: from a LOGDIR to actions."""

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
from shoal import exporting


class Policy:
    """What a run has learnt: observations in, actions out, as NumPy has them.

    Call it with one observation, or with a batch of them as Gymnasium's vector environments give it; which of the two
    it is, is told by its shape. An observation is what the environment itself gives, of its own observation space; what
    agents are shown of it (docs/environments.md) is made of it here. Where EnvPool makes the frames, of Atari and
    ViZDoom, an observation is one such frame, uint8 [84, 84]. An action is what the environment takes, of its own
    action space; of ViZDoom, a choice for each factor.

    What the agent remembers (frames, an LSTM's state, its last action) is kept from one call to the next, for each
    observation of a batch. `reset` says where an episode begins.
    """

    spec: EnvironmentSpec
    version: Version  # how far the run had come when it saved the parameters: learner_steps and env_steps
    needs_reward: bool  # whether the agent is fed the last reward
    _first: Any  # bool [B]: whose next observation opens an episode; None: everybody's, whoever they are
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
        """`load` makes one.

        Args:
          name: the environment's.
          act: of the agent, as runtime.evaluator.policy gives it.
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
        """The action, or of a batch one for each.

        Args:
          reward: the environment's own, as it came with the observation: a number, or one for each of the batch. Agents
            that are fed the last reward (`needs_reward`: R2D2, and others where config.lstm_previous is set) need it,
            but not where an episode begins.

        Raises:
          ValueError: this is no observation of the environment's, a reward is lacking, or the batch is of another size
            than the one before it, of which something is remembered.
        """
        batch, alone = self._interface.show(observation)
        size, first, memory = len(batch), self._first, self._memory
        if first is not None and len(first) != size and self._remembers:
            raise ValueError(
                f"{size} observations after a batch of {len(first)}: each has a memory of its own; policy.reset() "
                "forgets all, and then a batch may be of another size"
            )
        if first is None or len(first) != size:
            first, memory = np.ones(size, bool), jax.device_put(self._agent.memory(size, None), self._device)
        timestep = TimeStep(batch, self._rewards(reward, first), np.ones(size, np.float32), first, np.zeros(size, bool))
        action, _, self._memory = self._act(self._params, self._key, np.uint32(self._count), timestep, memory)
        self._count, self._first = self._count + 1, np.zeros(size, bool)
        taken = self._interface.take(np.asarray(action))
        return taken[0] if alone else taken

    def _rewards(self, reward: Any, first: np.ndarray) -> np.ndarray:
        """What the agent sees of the rewards, float32 [B]: clipped as in training, and 0 where an episode begins."""
        if reward is None:
            if self.needs_reward and not first.all():
                raise ValueError(
                    "this agent is fed the last reward: call policy(observation, reward=...), and policy.reset() "
                    "before an episode"
                )
            reward = 0.0
        rewards = np.asarray(reward, np.float32)
        if rewards.shape not in ((), first.shape) or not np.isfinite(rewards).all():
            raise ValueError(f"reward must be finite, and one number for each of {first.size}, not {reward!r}")
        rewards = np.where(first, np.float32(0.0), rewards)
        return self._clip(rewards) if self._clip else rewards

    def reset(self, done: Any = None) -> None:
        """Forgets what was remembered: call it before the first observation of an episode, but for the very first.

        Args:
          done: bool [B], which of a batch begin an episode with their next observation; None: all, and the next batch
            may be of another size.

        Raises:
          ValueError: `done` is not of the batch's size.
        """
        if done is None:
            self._first = self._memory = None
        elif self._first is not None:
            opens = np.asarray(done, bool).reshape(-1)
            if len(opens) != len(self._first):
                raise ValueError(f"policy.reset(done) of {len(opens)}, and the batch is of {len(self._first)}")
            self._first = self._first | opens

    def export(self, path: str | os.PathLike[str], batch_size: int | None = None) -> None:
        """Writes the policy as StableHLO, its parameters inside, which JAX alone can run; docs/policy.md says how.

        Args:
          batch_size: of the observations in a call; None: any.

        Raises:
          ValueError: what the agent does cannot be exported.
          OSError: the file cannot be written.
        """
        pathlib.Path(path).write_bytes(exporting.export(self._flat, self._key, batch_size))


def load(
    logdir: str | os.PathLike[str],
    *,
    checkpoint: str = "newest",
    member: int | None = None,
    sampled: bool | None = None,
    epsilon: float | None = None,
    seed: int = 0,
) -> Policy:
    """The policy of a run's newest checkpoint, or of the parameters that did best in its own evaluations.

    It takes neither the environment nor Reverb or TensorFlow; a run of a version that wrote no LOGDIR/spec.json has its
    environment made once, to be looked at.

    Args:
      logdir: the run's folder, or its URL.
      checkpoint: "newest" or "best". The best are those of LOGDIR/best.npz, as scripts/evaluate --checkpoint=best has
        them; of a stacked population, those that did best on the average of all members.
      member: of a population, whose policy; the first is 0.
      sampled: whether actions are drawn, as in training, and not greedy; None: as the run's --eval_policy says.
      epsilon: how likely it is that an action is any of the discrete ones instead; None: the run's --eval_epsilon.
      seed: of what is random in acting.

    Raises:
      UsageError: a ValueError, one line: there is no run, no checkpoint yet, no such member, or an epsilon that does
        not fit; or the best parameters cannot be read.
      OSError: none of the checkpoints can be read.
    """
    if checkpoint not in ("newest", "best"):
        raise UsageError(f'checkpoint is "newest" or "best", not {checkpoint!r}')
    folder = _folder(logdir, ())
    run = runs.load(folder, check=False)
    if run.population and member not in range(run.population):
        raise UsageError(
            f"{logdir} is of a population: whose policy is it to be, of member=0 to member={run.population - 1}? "
            f"Not member={member}"
        )
    if not run.population and member is not None:
        raise UsageError(f"{logdir} is of no population: leave member={member} out")
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
    """The run's folder on this machine, where its checkpoints are those of the URL if `saves` names them, and so are
    files of these `names`."""
    text = os.fspath(logdir)
    try:
        place = mirror.place(text)
    except UsageError as error:
        raise UsageError(f"no run in {text!r}: {error}") from error
    return mirror.fetched(place, saves, recorded.SPEC, *names)
