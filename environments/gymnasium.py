"""Any Gymnasium environment, batched by gymnasium.vector."""

import contextlib
import functools
import json
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np

from agents.agent import EnvironmentSpec
from environments import spaces
from environments.environment import Environment, EnvironmentFailure, describe, making

FAILURE = "shoal_failure"  # key in an environment's info: a description of what it raised
LOG = "shoal_log"  # key in an environment's info: a row of numbers, by name, that it asks to log
OURS = {"id", "num_envs", "vectorization_mode", "vector_kwargs", "wrappers"}  # arguments of make_vec that are set here
_loading = threading.Lock()


class GymnasiumEnvironment(Environment):
    """Any Gymnasium environment, vectorised by Gymnasium.

    The environments are stepped one after another in this process, or each in a process of its own. Gymnasium's
    next-step autoreset is what the contract of Environment asks for.
    """

    def __init__(
        self,
        name: str,
        num_envs: int,
        seed: int,
        *,
        max_steps: int | None = None,
        keywords: Mapping[str, Any] | None = None,
        vectorization: str = "sync",
        drawn: bool = False,
    ):
        """Makes the environments.

        Args:
          name: Gymnasium's name: `ID`, or `module:ID` to first import a module that registers it.
          keywords: keyword arguments for gymnasium.make.
          vectorization: "sync" for this process, "async" for a process each.
          drawn: whether pictures will be asked for; the environments are then in this process.

        Raises:
          ValueError: a space is not supported, or a keyword is not the user's to give.
          EnvironmentFailure: the environment cannot be made.
        """
        self.num_envs = num_envs
        keywords = dict(keywords or {})
        for key in OURS & keywords.keys():
            raise ValueError(f"--env_kwargs: {key!r} cannot be given, because Shoal chooses it: leave it out")
        limit = [functools.partial(gymnasium.wrappers.TimeLimit, max_episode_steps=max_steps)] if max_steps else []
        what = f"gymnasium:{name}"
        if drawn:  # in this process, where the first environment alone can be asked for its picture
            keywords, vectorization, what = keywords | {"render_mode": "rgb_array"}, "sync", f"{what}, to be drawn,"
        options: dict[str, Any] = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
        with making(what), _contained(), contextlib.ExitStack() as starting:
            if vectorization == "async":
                from environments import workers

                starting.enter_context(workers.starting())
                options |= workers.OPTIONS
            self._vector: Any = gymnasium.make_vec(
                name,
                num_envs=num_envs,
                vectorization_mode=vectorization,
                vector_kwargs=options,
                wrappers=[*limit, Told],
                **keywords,
            )
        # Closes the environments when the interpreter ends, if nobody has before.
        end: Any = workers.end if vectorization == "async" else gymnasium.vector.VectorEnv.close
        self._close = weakref.finalize(self, end, self._vector)
        self._seed = seed
        self._rows: list[dict[str, float]] = []
        self._observations = spaces.observations(self._vector.single_observation_space)
        self._actions = spaces.actions(self._vector.single_action_space)
        own = keywords.get("max_episode_steps") or (self._vector.spec and self._vector.spec.max_episode_steps)
        own = None if own == -1 else own  # -1 tells gymnasium.make that there is no limit
        longest = min(filter(None, (own, max_steps)), default=None)
        self.steps_per_second = float(self._vector.metadata.get("render_fps", self.steps_per_second))
        self.spec = EnvironmentSpec(
            self._observations.shape,
            self._observations.dtype,
            self._actions.spec,
            longest,
            spaces=(self._vector.single_observation_space, self._vector.single_action_space),
        )

    def _reset(self) -> np.ndarray:
        with _contained():
            observation, infos = self._vector.reset(seed=self._seed)
        return self._show(observation, infos)

    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, ...]:
        try:
            observation, reward, terminated, truncated, infos = self._vector.step(self._actions.take(action))
        except (EOFError, ConnectionError) as error:
            raise EnvironmentFailure("the process of one of its environments was killed") from error
        reward = np.asarray(reward, np.float32)
        return self._show(observation, infos), reward, terminated, truncated, terminated | truncated

    def _show(self, observation: Any, infos: dict[str, Any]) -> np.ndarray:
        if FAILURE in infos:
            raise EnvironmentFailure(next(filter(None, infos[FAILURE])))
        if LOG in infos:
            rows = enumerate(infos[LOG])
            self._rows += [{"environment": index, **json.loads(row)} for index, row in rows if row]
        return self._observations.show(observation)

    def logged(self) -> list[dict[str, float]]:
        rows, self._rows = self._rows, []
        return rows

    def draw(self) -> np.ndarray:
        picture: np.ndarray = self._vector.envs[0].render()
        return picture

    def close(self) -> None:
        self._close()


class Told(gymnasium.Wrapper):
    """A wrapper that never raises. If its environment raises, the info has FAILURE; otherwise it has at most LOG.

    So a failure is reported in the same way in whatever process the environment runs, even a SystemExit of a user's.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        try:
            observation, _ = self.env.reset(seed=seed, options=options)
        except BaseException as error:
            return self.observation_space.sample(), {FAILURE: describe(error)}
        return observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            reward = float(reward)
            # The row is text, since Gymnasium's vector environments would turn numbers into an array over environments.
            told = {LOG: json.dumps(info[LOG])} if LOG in info else {}
        except BaseException as error:
            return self.observation_space.sample(), 0.0, False, False, {FAILURE: describe(error)}
        return observation, reward, terminated, truncated, told


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Undoes what a user's module does in the block to the filters of warnings and to NumPy's error settings.

    Otherwise a warning anywhere in Shoal could end a run. Only one thread is inside at a time, since the filters are
    shared by the whole process.
    """
    with _loading, warnings.catch_warnings(), np.errstate():
        yield
