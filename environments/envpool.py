"""EnvPool: C++ environments vectorised over CPU cores (https://arxiv.org/abs/2206.10558)."""

import difflib
import functools
import os
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from agents.agent import EnvironmentSpec
from environments import filmed, minigrid, spaces
from environments.environment import Environment, check_limit, making

OPENGL = filmed.load_opengl()  # must come before EnvPool is imported

import envpool  # noqa: E402
import envpool.registration  # noqa: E402

# Gymnasium's spaces warn at every make that float32 rounds their bounds.
warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")

# How Atari is played, by --atari_protocol, as EnvPool's settings. Common to both protocols: frames are 84x84 grey
# levels; an action lasts four frames, of whose last two each pixel is the brighter one; an episode lasts at most half
# an hour; nobody presses fire for the agent, as EnvPool would by default. Frames come singly and agents stack them, so
# that a stored step holds only one.
NATURE = {  # Mnih et al. 2015: only up to 30 no-ops at the start are random; in training a lost life ends an episode
    "img_height": 84,
    "img_width": 84,
    "gray_scale": True,
    "frame_skip": 4,
    "noop_max": 30,
    "use_fire_reset": False,
    "stack_num": 1,
    "episodic_life": True,
    "full_action_space": False,
    "repeat_action_probability": 0.0,
}
PROTOCOLS = {
    "nature": NATURE,
    # Machado et al. 2018, https://arxiv.org/abs/1709.06009: only sticky actions are random (EnvPool makes at least one
    # no-op), there are all 18 actions, and only the end of the game ends an episode.
    "machado": NATURE
    | {"noop_max": 1, "episodic_life": False, "full_action_space": True, "repeat_action_probability": 0.25},
}
# EnvPool's settings that a user may not give: they follow from the run, or agents rely on them.
OURS = {
    "gray_scale",
    "base_path",
    "batch_size",
    "env_seed",
    "gym_reset_return_info",
    "max_num_players",
    "num_envs",
    "num_threads",
    "reward_clip",
    "seed",
    "stack_num",
    "task",
    "task_name",
    "thread_affinity_offset",
}
UNLIMITED = 2**31 - 1  # EnvPool's max_episode_steps for a task without a limit


def is_atari(name: str) -> bool:
    return "full_action_space" in default_config(name)


def is_vizdoom(name: str) -> bool:
    return "wad_path" in default_config(name)


def suite(name: str) -> str:
    """Returns EnvPool's name for the suite of a task, such as "atari", "mujoco.dmc" or "classic_control"."""
    return envpool.registration.registry.specs[name][0].removeprefix("envpool.")


def default_config(name: str) -> dict[str, Any]:
    """Returns EnvPool's default settings of a task.

    Raises:
      ValueError: there is no such task, or EnvPool cannot load it here.
    """
    if name not in envpool.list_all_envs():
        near = difflib.get_close_matches(name, envpool.list_all_envs(), n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"unknown environment {name!r}{hint} (gymnasium:ID names one of Gymnasium's)")
    with making(name):
        return envpool.make_spec(name).config._asdict()


class EnvPoolEnvironment(Environment):
    """EnvPool's environments as a synchronous pool: at each step all environments step, in the order of their index.

    EnvPool itself resets an environment at the step after its episode's end, as the contract of Environment asks.
    Arrays bypass EnvPool's Python layer, whose dictionaries take a fifth of a step of 128 CartPoles.
    """

    def __init__(
        self,
        name: str,
        num_envs: int,
        seed: int,
        *,
        evaluation: bool = False,
        protocol: str = "nature",
        num_threads: int = 0,
        max_steps: int | None = None,
        options: dict[str, Any] | None = None,
        keywords: Mapping[str, Any] | None = None,
        drawn: bool = False,
    ):
        """Makes the pool.

        Args:
          evaluation: whether a lost life is not to end an episode of Atari.
          protocol: one of PROTOCOLS, whose settings Atari gets in place of `options`.
          options: EnvPool's settings of the task. With a `stack_num` of 1, observations are single frames.
          keywords: the user's settings, which take precedence.

        Raises:
          ValueError: a keyword is not one of the task's settings, or is not the user's to give; or the task is to be
            `drawn` and the library that draws it is missing.
        """
        if drawn and not OPENGL and suite(name).startswith("mujoco"):
            raise ValueError(f"to draw {name} needs OpenGL, and its libEGL.so.1 is not on this machine: install it")
        self.num_envs = num_envs
        atari = is_atari(name)
        options = (PROTOCOLS[protocol] if atari else options or {}) | _checked(name, keywords or {})
        if atari and evaluation:
            options["episodic_life"] = False
        if max_steps is not None:
            own = options.get("max_episode_steps", default_config(name)["max_episode_steps"])
            options["max_episode_steps"] = min(own, max_steps)
        threads = num_threads or min(num_envs, os.cpu_count() or 1)
        if drawn:
            options = options | {"render_mode": "rgb_array"}
        with making(name):
            self._pool: Any = envpool.make(
                name, env_type="gymnasium", num_envs=num_envs, seed=seed, num_threads=threads, **options
            )
            observation_space, action_space = self._pool.observation_space, self._pool.action_space
        self._game_over = "info:terminated" if atari else ""
        if atari:
            self.steps_per_second = 60.0 / options["frame_skip"]
        self._squeeze = options.get("stack_num") == 1
        of_grid = functools.partial(minigrid.observations, name) if name.startswith("MiniGrid-") else None
        shown, chosen = (of_grid or spaces.observations)(observation_space), self._actions(action_space)
        self._show, self._take = shown.show, chosen.take
        self._space = observation_space
        longest = self._pool.spec.config.max_episode_steps
        self.spec = EnvironmentSpec(
            shown.shape[1:] if self._squeeze else shown.shape,
            shown.dtype,
            chosen.spec,
            longest if longest < UNLIMITED else None,
            spaces=None if self._squeeze else (observation_space, action_space),  # a single frame is in neither
        )
        self._action_dtype = action_space.dtype
        self._indices = np.arange(num_envs, dtype=np.int32)

    def _actions(self, space: gymnasium.Space) -> spaces.Actions:
        return spaces.actions(space)

    def _receive(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        state = dict(zip(self._pool._state_keys, self._pool._recv(), strict=True))
        observation = self._show(_parts(self._space, state, "obs"))
        return observation[:, 0] if self._squeeze else observation, state

    def _reset(self) -> np.ndarray:
        self._pool._reset(self._indices)
        return self._receive()[0]

    def _exchange(self, action: np.ndarray) -> tuple[Any, ...]:
        """Steps the pool with its own actions; returns the results of `_step`, and last the pool's whole state."""
        action = np.array(action, self._action_dtype, order="C")  # a copy: JAX's arrays are read-only
        self._pool._send([self._indices, self._indices, action])  # environment, its player, action
        observation, state = self._receive()
        over, truncated = state["done"], state["trunc"]
        terminated = over & ~truncated
        if self._game_over:  # also told where the time limit is reached, unlike other tasks; false at a lost life
            game_over = over & (state[self._game_over] != 0)
            terminated, over = terminated | game_over, truncated | game_over
        reward = state["reward"].astype(np.float32, copy=False)
        return observation, reward, terminated, truncated, over, state

    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, ...]:
        return self._exchange(self._take(action))[:-1]

    def draw(self) -> np.ndarray:
        picture: np.ndarray = self._pool.render(0)[0]
        return picture

    def close(self) -> None:
        self._pool = None  # the pool's destructor ends its threads and ViZDoom's games; its `close` does not


def _checked(name: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `keywords`; raises ValueError if the task does not take one of them, or not a value of its type."""
    defaults = default_config(name)
    for key, value in keywords.items():
        if key not in defaults or key in OURS:
            taken = ", ".join(sorted(defaults.keys() - OURS))
            raise ValueError(f"--env_kwargs: EnvPool's {name} cannot be given {key!r}; it takes {taken}")
        kind, default = type(value), defaults[key]
        if kind is not type(default) and (kind, type(default)) != (int, float):
            raise ValueError(
                f"--env_kwargs: {key!r} of EnvPool's {name} must be of the type of {default!r}, not {value!r}"
            )
        if key == "max_episode_steps":
            check_limit(key, value)
    return dict(keywords)


def _parts(space: gymnasium.Space, state: dict[str, np.ndarray], name: str) -> Any:
    """Arranges the pool's arrays as its space is: `name` alone ("obs"), or for a Dict "obs:a", "obs:b.c"."""
    if not isinstance(space, gymnasium.spaces.Dict):
        return state[name]
    separator = "." if ":" in name else ":"
    return {key: _parts(part, state, f"{name}{separator}{key}") for key, part in space.items()}
