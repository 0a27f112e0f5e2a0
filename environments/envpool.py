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
from environments.environment import Environment, making

OPENGL = filmed.load_opengl()  # before EnvPool

import envpool  # noqa: E402
import envpool.registration  # noqa: E402

# At every make, about bounds that float32 rounds.
warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")

# How Atari is played, by --atari_protocol, in EnvPool's words. Of both: 84x84 grey levels, of the last two of four
# frames the brighter pixels, half an hour at most, and nobody presses fire for the agent, as EnvPool by itself would.
# Frames come one by one: agents stack them, so that a stored step holds one.
NATURE = {  # Mnih et al. 2015: up to 30 no-ops are what is random; in training a lost life is an end
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
    # Machado et al. 2018, https://arxiv.org/abs/1709.06009: sticky actions are what is random (EnvPool makes one no-op
    # at least), all 18 actions, and only the game's end is one.
    "machado": NATURE
    | {"noop_max": 1, "episodic_life": False, "full_action_space": True, "repeat_action_probability": 0.25},
}
# EnvPool's settings that are no person's to give: they follow from the run, or agents count on them.
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
UNLIMITED = 2**31 - 1  # EnvPool's max_episode_steps where it has none


def is_atari(name: str) -> bool:
    return "full_action_space" in default_config(name)


def is_vizdoom(name: str) -> bool:
    return "wad_path" in default_config(name)


def suite(name: str) -> str:
    """EnvPool's own name of the suite that a task is of, as "atari", "mujoco.dmc" or "classic_control"."""
    return envpool.registration.registry.specs[name][0].removeprefix("envpool.")


def default_config(name: str) -> dict[str, Any]:
    """EnvPool's settings of a task.

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
    """A synchronous pool: every environment steps, in the order of its index.

    EnvPool resets on the next step by itself, which is the contract of Environment. Arrays go to the pool and come from
    it without EnvPool's Python layer, whose dictionaries take a fifth of a step of 128 CartPoles.
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
        """`options` are EnvPool's, of the task, or of Atari those of the `protocol`, with a person's `keywords` instead
        of some; with a `stack_num` of 1 among them, observations are single frames. In an `evaluation` a lost life is
        no end.

        Raises:
          ValueError: a keyword that the task does not have, or that is decided here; or it is `drawn` by what is not
            here.
        """
        if drawn and not OPENGL and suite(name).startswith("mujoco"):
            raise ValueError(f"{name} is drawn by OpenGL, whose libEGL.so.1 is not here: install it")
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
            spaces=None if self._squeeze else (observation_space, action_space),  # a single frame is of neither
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
        """What `_step` returns, of the pool's own actions, and the pool's whole state."""
        action = np.array(action, self._action_dtype, order="C")  # a copy: JAX's arrays are read-only
        self._pool._send([self._indices, self._indices, action])  # environment, its player, action
        observation, state = self._receive()
        over, truncated = state["done"], state["trunc"]
        terminated = over & ~truncated
        if self._game_over:  # at the time limit too, which the other tasks do not tell; but not at a lost life
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
        self._pool = None  # its own close leaves threads, and ViZDoom's games, to its destructor


def _checked(name: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """`keywords`; raises ValueError if a task does not take one, or not of such a type."""
    defaults = default_config(name)
    for key, value in keywords.items():
        if key not in defaults or key in OURS:
            taken = ", ".join(sorted(defaults.keys() - OURS))
            raise ValueError(f"--env_kwargs cannot say {key!r} of EnvPool's {name}, but {taken}")
        kind, default = type(value), defaults[key]
        if kind is not type(default) and (kind, type(default)) != (int, float):
            raise ValueError(f"--env_kwargs: {key!r} of EnvPool's {name} is as {default!r} is, not {value!r}")
    return dict(keywords)


def _parts(space: gymnasium.Space, state: dict[str, np.ndarray], name: str) -> Any:
    """The pool's arrays as its space has them: "obs" alone, or of a Dict "obs:a", "obs:b.c"."""
    if not isinstance(space, gymnasium.spaces.Dict):
        return state[name]
    separator = "." if ":" in name else ":"
    return {key: _parts(part, state, f"{name}{separator}{key}") for key, part in space.items()}
