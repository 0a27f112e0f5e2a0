"""Environments that are JAX functions are the same, row for row, inside a compiled program and behind the interface of
every other environment."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import DiscreteActions, EnvironmentSpec
from environments import EnvironmentFailure, functional, make
from environments.functional import Functional, FunctionalEnvironment

ROWS = 60
SPEC = EnvironmentSpec((2,), np.dtype(np.float32), DiscreteActions(3), None)


def reset(key):
    start = jax.random.uniform(key)
    return {"at": start, "steps": 0}, jnp.stack([start, 0.0])


def step(key, state, action):
    """Steps a random walk. It terminates off the right end and is truncated after seven steps; sometimes it is both."""
    at = state["at"] + 0.2 * (action - 1) + 0.1 * jax.random.normal(key)
    steps = state["steps"] + 1
    return {"at": at, "steps": steps}, jnp.stack([at, steps]), at * 2.0, at > 1.3, steps >= 7


WALK = Functional(SPEC, reset, step)


def acted(num_envs, seed=3):
    return np.random.default_rng(seed).integers(0, 3, (ROWS, num_envs)).astype(np.int32)


@pytest.mark.parametrize("clip", [None, "unit", "soft_asymmetric"])
@pytest.mark.parametrize("num_envs", [1, 6])
def test_a_program_says_what_the_interface_does(num_envs, clip):
    environment = FunctionalEnvironment(WALK, num_envs, 7)
    environment.reward_clip = clip or "none"
    clips = functional.clip_of(environment.reward_clip)
    ids = jnp.arange(num_envs, dtype=jnp.uint32)
    running = jax.jit(lambda: functional.start(WALK, 7, ids))()
    advance = jax.jit(lambda running, action: functional.advance(WALK, running, action, 7, ids, clips))
    expected = environment.reset()
    told = [[], [], []]
    for row, action in enumerate(acted(num_envs)):
        for name, one, other in zip(expected._fields, expected, running.timestep, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=f"{name} of row {row}")
            assert np.asarray(one).dtype == other.dtype
        expected = environment.step(action)
        running, ended = advance(running, action)
        for index in np.flatnonzero(ended.ended):
            told[0].append(index)
            told[1].append(float(ended.scores.returns[index]))
            told[2].append(int(ended.scores.lengths[index]))
    episodes = environment.finished()
    assert len(told[0]) > 5 and told[0] == episodes.environments and told[2] == episodes.lengths
    np.testing.assert_allclose(told[1], episodes.returns, rtol=1e-4)


def test_an_environment_is_the_same_however_many_there_are():
    few, many = (FunctionalEnvironment(WALK, num_envs, 7) for num_envs in (2, 5))
    actions = acted(5)
    rows = few.reset(), many.reset()
    for action in actions:
        np.testing.assert_array_equal(rows[0].observation, rows[1].observation[:2])
        rows = few.step(action[:2]), many.step(action)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_an_episode_is_cut_and_no_terminal_is_made_of_it(limit):
    environment = FunctionalEnvironment(functional.cut(WALK, limit), 4, 0)
    environment.reset()
    for _ in range(ROWS):
        timestep = environment.step(np.zeros(4, np.int32))
        assert not (timestep.last & (timestep.discount == 0)).any(), "to the left nothing ends"
    assert set(environment.finished().lengths) == {min(limit, 7)}


# gymnax ---------------------------------------------------------------------------------------------------------------

OFFLINE = "MNISTBandit-bsuite"  # it would download its pictures


def registered():
    gymnax = pytest.importorskip("gymnax")
    return [name for name in gymnax.registered_envs if name != OFFLINE]


def test_every_environment_of_gymnax_keeps_the_contract():
    for name in registered():
        environment = make(f"gymnax:{name}", 2, 0)
        spec, ended = environment.spec, 0
        timestep = environment.reset()
        for row in range(20):
            assert timestep.observation.shape == (2, *spec.observation_shape), name
            assert timestep.observation.dtype == spec.observation_dtype and timestep.reward.dtype == np.float32, name
            if isinstance(spec.actions, DiscreteActions):
                action = np.full(2, row % spec.actions.num_actions, np.int32)
            else:
                action = np.stack([spec.actions.low, spec.actions.high]).astype(np.float32)
            timestep = environment.step(action)
            ended += timestep.last.sum()
        assert len(environment.finished().returns) == ended, name


@pytest.mark.parametrize("limit", [1, 5])
@pytest.mark.parametrize("name", ["MountainCar-v0", "Pendulum-v1", "Acrobot-v1", "SpaceInvaders-MinAtar"])
def test_gymnaxs_time_limit_truncates(name, limit):
    registered()
    environment = make(f"gymnax:{name}", 3, 0, keywords={"max_steps_in_episode": limit})
    action = environment.spec.actions
    still = np.zeros(3, np.int32) if isinstance(action, DiscreteActions) else np.zeros((3, *action.shape), np.float32)
    timestep = environment.reset()
    for row in range(1, 2 * limit + 2):
        timestep = environment.step(still)
        assert (timestep.last == (row == limit or row == 2 * limit + 1)).all()
        assert (timestep.discount == 1).all(), "a time limit is no terminal"


@pytest.mark.parametrize(
    ("space", "given", "shown"),
    [
        (lambda spaces: spaces.Discrete(4), 2, [0, 0, 1, 0]),
        (lambda spaces: spaces.Box(0, 1, (2, 2), jnp.int32), [[0, 1], [1, 0]], [[-1, 1], [1, -1]]),
        (lambda spaces: spaces.Box(-3, 7, (), jnp.int32), 2, [0]),
        (lambda spaces: spaces.Box(5, 5, (1,), jnp.int32), [5], [-1]),
        (lambda spaces: spaces.Box(np.array([0, 0]), np.array([4, 8]), (2,), jnp.int32), [1, 8], [-0.5, 1]),
        (lambda spaces: spaces.Box(-(2**31), 2**31 - 1, (1,), jnp.int32), [9], [9]),
        (lambda spaces: spaces.Box(0, 255, (2,), jnp.uint8), [0, 200], [0, 200]),
        (lambda spaces: spaces.Box(0.0, 1.0, (2,), jnp.float32), [0.25, 1], [0.25, 1]),
        (lambda spaces: spaces.Box(0, 1, (2,), jnp.bool_), [False, True], [0, 1]),
    ],
)
def test_gymnaxs_spaces_are_shown_as_gymnasiums(space, given, shown):
    """The expected values follow the rule of environments/spaces.py, with pictures as they are."""
    registered()
    from gymnax.environments import spaces

    from environments import gymnax

    made = space(spaces)
    shape, dtype, show = gymnax._observations(made)
    seen = jax.jit(show)(jnp.asarray(given, made.dtype))
    assert seen.shape == shape and seen.dtype == dtype
    np.testing.assert_allclose(seen, shown, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "keyword"),
    [
        ("CartPole-v1", "max_episode_steps"),
        ("Catch-v0", "max_episode_steps"),
        ("gymnasium:CartPole-v1", "max_episode_steps"),
        ("gymnax:CartPole-v1", "max_steps_in_episode"),
        ("gymnax:MountainCar-v0", "max_steps_in_episode"),
        ("brax:fast", "episode_length"),
    ],
)
@pytest.mark.parametrize("steps", [0, -3, 2.9, True, "5", None])
def test_a_nonsensical_length_of_episodes_is_one_line(name, keyword, steps):
    backend = name.partition(":")[0]
    if backend in ("gymnax", "brax"):
        pytest.importorskip(backend)
    if backend == "gymnasium" and steps in (True, None):
        pytest.skip("Gymnasium takes these for 1, and for the task's own limit")
    with pytest.raises(ValueError) as error:  # EnvironmentFailure is one
        make(name, 1, 0, keywords={keyword: steps})
    assert "\n" not in str(error.value) and keyword in str(error.value)


@pytest.mark.parametrize("name", ["inverted_pendulum", "reacher"])
def test_bodies_of_brax_keep_the_contract(name):
    pytest.importorskip("brax")
    environment = make(f"brax:{name}", 2, 0, keywords={"backend": "spring", "episode_length": 5})
    timestep, spec = environment.reset(), environment.spec
    assert spec.max_episode_steps == 5
    for _ in range(20):
        assert timestep.observation.shape == (2, *spec.observation_shape)
        timestep = environment.step(np.stack([spec.actions.low, spec.actions.high]))
    lengths = environment.finished().lengths
    assert lengths and max(lengths) <= 5


def test_what_there_is_not_of_brax_is_one_line():
    pytest.importorskip("brax")
    with pytest.raises(EnvironmentFailure, match="Brax has no 'nobody'; it has ant, ") as error:
        make("brax:nobody", 2, 0)
    assert "\n" not in str(error.value)


def test_what_it_is_made_of_can_be_said():
    registered()
    environment = make("gymnax:CartPole-v1", 2, 0, keywords={"max_steps_in_episode": 4})
    assert environment.spec.max_episode_steps == 4
    environment.reset()
    for _ in range(20):
        timestep = environment.step(np.array([0, 1], np.int32))
        assert (timestep.discount == 1).all()
    assert set(environment.finished().lengths) == {4}


@pytest.mark.parametrize(
    ("name", "keywords", "words"),
    [("Nothing-v0", {}, "it has CartPole-v1"), ("CartPole-v1", {"weight": 1}, "has no 'weight'; it has force_mag")],
)
def test_what_there_is_not_is_one_line(name, keywords, words):
    registered()
    with pytest.raises(EnvironmentFailure, match=words) as error:
        make(f"gymnax:{name}", 2, 0, keywords=keywords)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "package"), [("gymnax:CartPole-v1", "gymnax"), ("brax:ant", "brax")])
def test_what_is_not_installed_is_named(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentFailure, match=f"pip install {package}"):
        make(name, 2, 0)
