"""What a run records of its environment can stand in for the environment: its spec comes back as it was, and
observations and actions are converted as the environment itself converts them."""

import dataclasses
import json

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as kinds

import environments
from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec, FactoredActions
from environments import interface, spaces, tasks
from environments.counting import CountingEnvironment

FLOAT = np.dtype(np.float32)
ACTIONS = kinds.Discrete(2)
SPACES = {
    "vector": kinds.Box(-1.0, 1.0, (3,), np.float32),
    "unbounded": kinds.Box(np.array([-np.inf, 0.1]), np.array([1.5, np.inf]), dtype=np.float64),
    "number": kinds.Box(0.0, 1.0, (), np.float32),
    "integers": kinds.Box(np.array([0, -5]), np.array([9, 5]), dtype=np.int64),
    "picture": kinds.Box(0, 255, (20, 24, 3), np.uint8),
    "grey picture": kinds.Box(0, 255, (20, 24, 1), np.uint8),
    "picture of floats": kinds.Box(0.0, 1.0, (20, 24), np.float32),
    "choice": kinds.Discrete(4, start=-1),
    "choices": kinds.MultiDiscrete([3, 2], start=[1, 0]),
    "table of choices": kinds.MultiDiscrete([[3, 2], [2, 4]]),
    "bits": kinds.MultiBinary(4),
    "table of bits": kinds.MultiBinary((2, 3)),
    "parts": kinds.Dict({"b": kinds.Box(-1.0, 1.0, (2,), np.float32), "a": kinds.Discrete(3)}),
    "nested": kinds.Dict(
        {
            "x": kinds.Dict({"y": kinds.MultiBinary(2), "z": kinds.Box(0, 255, (16, 16), np.uint8)}),
            "t": kinds.Tuple([kinds.Discrete(2), kinds.Box(-1.0, 1.0, (2,), np.float32)]),
            "said": kinds.Text(9),
        }
    ),
    "tuple": kinds.Tuple([kinds.Box(-1.0, 1.0, (2,), np.float32), kinds.Text(5), kinds.Discrete(3)]),
}
ACTION_SPACES = {
    "choice": kinds.Discrete(3, start=2),
    "short choice": kinds.Discrete(3, dtype=np.int32),
    "choices": kinds.MultiDiscrete([3, 2], start=[1, 0]),
    "bits": kinds.MultiBinary((2, 2)),
    "whole numbers": kinds.Box(np.array([-1, 0]), np.array([1, 4]), dtype=np.int8),
    "numbers": kinds.Box(-2.0, 0.5, (2,), np.float32),
    "doubles": kinds.Box(np.array([-2.0, 0.1]), np.array([1.0, 3.0]), dtype=np.float64),
}


def again(spec: EnvironmentSpec) -> EnvironmentSpec:
    return interface.from_json(json.loads(json.dumps(interface.to_json(spec))))


def spec_of(observation: gymnasium.Space, action: gymnasium.Space) -> EnvironmentSpec:
    shown, chosen = spaces.observations(observation), spaces.actions(action)
    return EnvironmentSpec(shown.shape, shown.dtype, chosen.spec, 7, spaces=(observation, action))


def same(one: EnvironmentSpec, other: EnvironmentSpec) -> None:
    for name in ("observation_shape", "observation_dtype", "max_episode_steps", "num_tasks"):
        assert getattr(one, name) == getattr(other, name), name
    assert type(one.actions) is type(other.actions)
    if isinstance(one.actions, BoundedActions):
        for bound in ("low", "high"):
            a, b = getattr(one.actions, bound), getattr(other.actions, bound)
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
    else:
        assert one.actions == other.actions


def samples(space: gymnasium.Space, count: int) -> list:
    space.seed(3)
    return [space.sample() for _ in range(count)]


@pytest.mark.parametrize("name", SPACES)
def test_observations_become_what_they_are_for_agents(name):
    space = SPACES[name]
    spec = again(spec_of(space, ACTIONS))
    same(spec, spec_of(space, ACTIONS))
    both, show = interface.interface("gymnasium:Any-v0", spec), spaces.observations(space).show
    given = samples(space, 3)
    batch = gymnasium.vector.utils.concatenate(space, given, gymnasium.vector.utils.create_empty_array(space, 3))
    expected = show(batch)
    shown, alone = both.show(batch)
    assert not alone and shown.dtype == expected.dtype
    np.testing.assert_array_equal(shown, expected)
    for observation, each in zip(given, expected, strict=True):
        shown, alone = both.show(observation)
        assert alone
        np.testing.assert_array_equal(shown, each[None])


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_actions_become_what_the_environment_takes(name):
    space = ACTION_SPACES[name]
    spec, chosen = again(spec_of(SPACES["vector"], space)), spaces.actions(space)
    same(spec, spec_of(SPACES["vector"], space))
    match chosen.spec:
        case DiscreteActions(number):
            action = np.arange(number, dtype=np.int32)
        case FactoredActions(sizes):
            action = np.array([[0] * len(sizes), [size - 1 for size in sizes]], np.int32)
        case bounded:
            action = np.stack([bounded.low, bounded.high])
    taken = interface.interface("gymnasium:Any-v0", spec).take(action)
    np.testing.assert_array_equal(taken, chosen.take(action))
    assert taken.dtype == chosen.take(action).dtype and all(space.contains(each) for each in taken)


WITH_SPACES = [
    *("CartPole-v1", "Pendulum-v1", "CheetahRun-v1", "FrozenLake-v1", "Catch-v0", "gymnasium:Blackjack-v1"),
    *("MiniGrid-MemoryS7-v0", "MiniGrid-GoToDoor-5x5-v0", "binned:5:Pendulum-v1", "binned:3:CheetahRun-v1"),
]
AS_SHOWN = ["Pong-v5", "MaskedCartPole-v1", "Counting-v0"]


@pytest.mark.parametrize("name", WITH_SPACES + AS_SHOWN)
def test_of_real_environments_it_is_what_they_do_themselves(name):
    """Over two steps, the interface must make the observations that agents are shown and the actions that are taken
    like the environment itself. Where the spec has no spaces, both stay as they are."""
    environment = environments.make(name, 2, 0)
    spec, raws, takens = again(environment.spec), [], []
    same(spec, environment.spec)
    assert (spec.spaces is None) == (name in AS_SHOWN)
    both, inner = interface.interface(name, spec), getattr(environment, "_continuous", environment)
    if spec.spaces:
        holder = inner._observations if hasattr(inner, "_observations") else inner
        show, take = (holder.show, inner._actions.take) if holder is not inner else (inner._show, inner._take)

        def noted(raw):
            raws.append(raw)
            return show(raw)

        def chosen(action):
            takens.append(take(action))
            return takens[-1]

        if holder is inner:
            inner._show, inner._take = noted, chosen
        else:
            inner._observations = holder._replace(show=noted)
            inner._actions = inner._actions._replace(take=chosen)
    observation = environment.reset().observation
    match spec.actions:
        case DiscreteActions():
            action = np.array([1, 0], np.int32)
        case FactoredActions(sizes):
            action = np.array([[0] * len(sizes), [size - 1 for size in sizes]], np.int32)
        case bounded:
            action = np.stack([bounded.low, bounded.high])
    for _ in range(2):
        shown, alone = both.show(raws[-1] if spec.spaces else observation)
        assert not alone and shown.dtype == observation.dtype
        np.testing.assert_array_equal(shown, observation)
        observation = environment.step(action).observation
        np.testing.assert_array_equal(both.take(action), takens[-1] if spec.spaces else action)
    environment.close()


@pytest.mark.parametrize("alike", [True, False])
def test_spaces_of_several_tasks_are_those_that_they_share(alike):
    def make(name: str, num_envs: int, seed: int) -> CountingEnvironment:
        environment = CountingEnvironment(num_envs)
        start = 1 if name == "B" and not alike else 0
        both = (SPACES["vector"], kinds.Discrete(2, start=start))
        environment.spec = dataclasses.replace(environment.spec, spaces=both)
        return environment

    spec = tasks.Tasks(["A", "B"], 2, 0, make).spec
    assert spec.num_tasks == 2 and (spec.spaces is not None) == alike


@pytest.mark.parametrize("change", [{"actions": {}}, {"observation": {}}, {"spaces": [{"kind": "Box"}]}, {"spaces": 3}])
def test_what_is_no_spec_is_an_error(change):
    values = interface.to_json(spec_of(SPACES["vector"], ACTIONS)) | change
    with pytest.raises((KeyError, TypeError, ValueError)):
        interface.from_json(values)


@pytest.mark.parametrize(("name", "clip"), [("Pong-v5", "unit"), ("CartPole-v1", "none"), ("gymnasium:X-v0", "none")])
def test_what_auto_is_of_rewards_follows_from_the_name(name, clip):
    assert environments.settled_clip(name, "auto") == clip
    assert environments.settled_clip(name, "soft_asymmetric") == "soft_asymmetric"
