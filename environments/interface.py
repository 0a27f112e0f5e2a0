"""The parts of an environment that a trained policy needs where the environment itself is not there.

They are its spec, which is written to JSON and read back, and the conversions between its own observations and actions
and those of agents.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces as kinds

from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec, FactoredActions
from environments import binned, minigrid, spaces, tasks


def to_json(spec: EnvironmentSpec) -> dict[str, Any]:
    """Returns the spec as a JSON object; infinite bounds are `Infinity`, as Python's json writes and reads it."""
    return {
        "observation": {"shape": list(spec.observation_shape), "dtype": str(np.dtype(spec.observation_dtype))},
        "actions": _actions_to_json(spec.actions),
        "max_episode_steps": spec.max_episode_steps,
        "num_tasks": spec.num_tasks,
        "spaces": spec.spaces and [_space_to_json(space) for space in spec.spaces],
    }


def from_json(values: Mapping[str, Any]) -> EnvironmentSpec:
    """Returns the spec from what `to_json` returned.

    Raises:
      KeyError, TypeError or ValueError: `values` are not such a spec.
    """
    observation = values["observation"]
    return EnvironmentSpec(
        tuple(observation["shape"]),
        np.dtype(observation["dtype"]),
        _actions_from_json(values["actions"]),
        values["max_episode_steps"],
        values["num_tasks"],
        values["spaces"] and tuple(_space_from_json(space) for space in values["spaces"]),
    )


def _actions_to_json(actions: DiscreteActions | BoundedActions | FactoredActions) -> dict[str, Any]:
    if isinstance(actions, DiscreteActions):
        return {"num_actions": actions.num_actions}
    if isinstance(actions, FactoredActions):
        return {"sizes": actions.sizes, "small": actions.small}
    return {"low": np.asarray(actions.low).tolist(), "high": np.asarray(actions.high).tolist()}


def _actions_from_json(values: Mapping[str, Any]) -> DiscreteActions | BoundedActions | FactoredActions:
    if "num_actions" in values:
        return DiscreteActions(values["num_actions"])
    if "sizes" in values:
        return FactoredActions(tuple(values["sizes"]), tuple(tuple(action) for action in values["small"]))
    return BoundedActions(np.array(values["low"], np.float32), np.array(values["high"], np.float32))


def _space_to_json(space: gymnasium.Space) -> dict[str, Any]:
    """Returns a space's kind and the arguments of its constructor; for an unsupported kind only its name."""
    said: dict[str, Any] = {"kind": type(space).__name__}
    match space:
        case kinds.Dict():
            return said | {"parts": {key: _space_to_json(part) for key, part in space.items()}}
        case kinds.Tuple():
            return said | {"parts": [_space_to_json(part) for part in space.spaces]}
        case kinds.Discrete():
            return said | {"n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
        case kinds.MultiDiscrete():
            start, dtype = np.asarray(space.start).tolist(), str(space.dtype)
            return said | {"nvec": space.nvec.tolist(), "start": start, "dtype": dtype}
        case kinds.MultiBinary():
            return said | {"n": list(space.shape)}
        case kinds.Box():
            bounds = {"low": _bound(space.low), "high": _bound(space.high)}
            return said | bounds | {"shape": list(space.shape), "dtype": str(space.dtype)}
    return said


def _bound(values: np.ndarray) -> Any:
    """Returns bounds as a list, or as one number if all are the same, as for a picture."""
    return (values.flat[0] if values.size and (values == values.flat[0]).all() else values).tolist()


def _space_from_json(values: Mapping[str, Any]) -> gymnasium.Space:
    kind, said = values["kind"], {key: value for key, value in values.items() if key != "kind"}
    if "dtype" in said:
        said["dtype"] = np.dtype(said["dtype"])
    if kind == "Dict":
        return kinds.Dict({key: _space_from_json(part) for key, part in said["parts"].items()})
    if kind == "Tuple":
        return kinds.Tuple([_space_from_json(part) for part in said["parts"]])
    if kind == "Box":
        low, high = (np.broadcast_to(np.array(said[bound], said["dtype"]), said["shape"]) for bound in ("low", "high"))
        return kinds.Box(low, high, dtype=said["dtype"])
    if kind == "MultiDiscrete":
        return kinds.MultiDiscrete(np.array(said["nvec"]), said["dtype"].type, start=np.array(said["start"]))
    if kind == "Discrete":
        return kinds.Discrete(said["n"], start=said["start"], dtype=said["dtype"].type)
    return kinds.MultiBinary(said["n"]) if kind == "MultiBinary" else gymnasium.Space()


class Interface(NamedTuple):
    """The conversions between an environment's observations and actions and an agent's."""

    # An observation, or a batch of them -> what agents see, [B, ...], and whether it was a single one; then B is 1.
    show: Callable[[Any], tuple[np.ndarray, bool]]
    take: Callable[[np.ndarray], np.ndarray]  # an agent's actions, [B, ...] -> the environment's actions


def interface(name: str, spec: EnvironmentSpec) -> Interface:
    """Returns the interface of the environment called `name`.

    Observations are as the environment returns them, and actions as it takes them. If there are no `spec.spaces`, as
    for Atari, whose frames EnvPool makes, both are already as agents have them. `show` raises ValueError if it is given
    something that is no observation of the environment.
    """
    first = tasks.names(name)[0]
    space, observations, actions = kinds.Box(-np.inf, np.inf, spec.observation_shape), _as_is(spec), _taken_as_is(spec)
    if spec.spaces:
        space, action_space = spec.spaces
        of_grid = first.startswith("MiniGrid-")
        observations = minigrid.observations(first, space) if of_grid else spaces.observations(space)
        actions = spaces.actions(action_space)
    take = actions.take
    if first.startswith("binned:") and isinstance(actions.spec, BoundedActions):
        choose = binned.chooser(actions.spec, binned.parse(first)[0])
        take = lambda action: actions.take(choose(action))

    def show(observation: Any) -> tuple[np.ndarray, bool]:
        try:
            size = spaces.count(space, observation)
            shown = observations.show(observation if size is not None else _batched(observation))
        except KeyError as error:
            raise ValueError(f"an observation of {name} lacks its part {error}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"an observation of {name} {error}") from error
        if shown.dtype.kind == "f" and not np.isfinite(shown).all():
            raise ValueError(f"an observation of {name} holds numbers that are not finite")
        return shown, size is None

    return Interface(show, take)


def _batched(observation: Any) -> Any:
    """Adds the axis of a batch of one to every part of an observation."""
    if isinstance(observation, Mapping):
        return {key: _batched(part) for key, part in observation.items()}
    return tuple(map(_batched, observation)) if isinstance(observation, tuple) else np.asarray(observation)[None]


def _as_is(spec: EnvironmentSpec) -> spaces.Observations:
    def show(batch: Any) -> np.ndarray:
        if spec.observation_dtype != np.uint8:
            return np.asarray(batch, spec.observation_dtype)
        numbers = np.asarray(batch)
        if numbers.dtype != np.uint8:
            raise ValueError(f"is of {numbers.dtype}, and not of bytes, uint8")
        return numbers

    return spaces.Observations(spec.observation_shape, spec.observation_dtype, show)


def _taken_as_is(spec: EnvironmentSpec) -> spaces.Actions:
    return spaces.Actions(spec.actions, lambda action: action)
