"""Records pictures of an environment while it is played."""

import ctypes
from typing import Any

import numpy as np

from environments.environment import Environment, EnvironmentFailure, describe

MOST_BYTES = 2**29  # of an episode's pictures; beyond it only every second one is kept, then every fourth, ...


def load_opengl() -> bool:
    """Loads this machine's OpenGL, by which EnvPool draws its MuJoCo tasks; returns False if there is none.

    environments.envpool calls it before it imports EnvPool. The OpenGL in EnvPool's wheel finds no driver, and would
    then end the process from C++.
    """
    try:
        ctypes.CDLL("libEGL.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


class Filmed(Environment):
    """An environment that records the first episode of the first environment in its batch.

    `pictures` has one for each observation, the first and the last too: one more than the episode has steps. If these
    take more than MOST_BYTES, evenly spaced ones are left out.
    """

    def __init__(self, environment: Environment, strict: bool = True):
        """Takes over `environment`, which must have been made with `drawn`, and closes it when it is closed itself.

        Args:
          strict: whether to raise EnvironmentFailure if the environment cannot be drawn. If not, `failure` keeps the
            error, and the episode goes on without pictures.
        """
        self._environment, self.num_envs, self.spec = environment, environment.num_envs, environment.spec
        self.name, self.reward_clip = environment.name, environment.reward_clip
        self.pictures: list[np.ndarray] = []
        self.failure: EnvironmentFailure | None = None
        self._strict = strict
        self._every, self._count, self._filming = 1, 0, True

    @property
    def per_second(self) -> float:
        """The pictures per second at which a video has the environment's intended speed."""
        return self._environment.steps_per_second / self._every

    def _reset(self) -> np.ndarray:
        observation = self._environment._reset()
        self._film(over=False)
        return observation

    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, ...]:
        step = self._environment._step(action, resets)
        if self._filming:
            self._film(over=bool(step[-1][0]))
        return step

    def _film(self, over: bool) -> None:
        try:
            self._draw(over)
        except EnvironmentFailure as error:
            if self._strict:
                raise
            self.failure, self._filming = error, False

    def _draw(self, over: bool) -> None:
        try:
            picture = np.array(self._environment.draw())
        except BaseException as error:
            raise EnvironmentFailure(f"it cannot be drawn ({describe(error)}): do not ask for a video of it") from error
        shape = self.pictures[0].shape if self.pictures else (*picture.shape[:2], 3)
        if picture.dtype != np.uint8 or picture.shape != shape:
            raise EnvironmentFailure(f"it is drawn as {picture.dtype} {picture.shape}, not uint8 {shape}")
        if self._count % self._every == 0 or over:
            self.pictures.append(picture)
        if len(self.pictures) * picture.nbytes > MOST_BYTES and len(self.pictures) > 2 and not over:
            del self.pictures[1::2]
            self._every *= 2
        self._count += 1
        self._filming = not over

    def close(self) -> None:
        self._environment.close()
