"""How observations and actions of any space are converted: tested on random spaces and on environments."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.vector.utils import create_empty_array, iterate

import environments
from agents.agent import BoundedActions, DiscreteActions, FactoredActions
from agents.parts.torsos import MLPTorso
from environments import spaces


def random_observations(rng: np.random.Generator, depth: int = 0) -> gymnasium.Space:
    """Returns a random space whose observations can be shown to agents."""
    kind = rng.integers(7 if depth < 2 else 5)
    sizes = [int(x) for x in rng.integers(1, 6, rng.integers(1, 4))]
    if kind == 0:
        return Discrete(sizes[0], start=int(rng.integers(-3, 4)))
    if kind == 1:
        return MultiDiscrete(sizes, start=rng.integers(-3, 4, len(sizes)))
    if kind == 2:
        return MultiBinary(sizes)
    if kind == 3:
        low = rng.integers(-50, 50, sizes)
        return Box(low, low + rng.integers(0, 100, sizes), dtype=np.int64)
    if kind == 4:
        dtype = [np.float32, np.float64, np.uint8, np.bool_][rng.integers(4)]
        return Box(0, 255 if dtype == np.uint8 else 1, sizes, dtype)
    parts = [random_observations(rng, depth + 1) for _ in sizes]
    return Tuple(parts) if kind == 5 else Dict({f"part {i}": part for i, part in enumerate(parts)})


def batch_of(space: gymnasium.Space, samples: list) -> object:
    """Batches samples as a vector environment does."""
    return gymnasium.vector.utils.concatenate(space, samples, create_empty_array(space, len(samples)))


@pytest.mark.parametrize("seed", range(120))
def test_any_observation_is_numbers_about_as_large_as_one_and_no_two_are_alike(seed):
    space = random_observations(np.random.default_rng(seed))
    space.seed(seed)
    shown, samples = spaces.observations(space), [space.sample() for _ in range(9)]
    batch = shown.show(batch_of(space, samples))
    assert batch.shape == (9, *shown.shape) and batch.dtype == shown.dtype and batch.dtype in (np.float32, np.uint8)
    if batch.dtype == np.float32:
        assert np.abs(batch).max() <= 1
    seen = {}
    for sample, row in zip(samples, batch, strict=True):
        told = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(sample))
        assert seen.setdefault(told, row.tobytes()) == row.tobytes()
    assert len(set(seen.values())) == len(seen), "what differs is shown as different"


def random_actions(rng: np.random.Generator) -> gymnasium.Space:
    sizes = rng.integers(1, 6, rng.integers(1, 4))
    kinds = [
        lambda: Discrete(int(sizes[0]), start=int(rng.integers(-3, 4))),
        lambda: MultiDiscrete(sizes, start=rng.integers(-3, 4, len(sizes))),
        lambda: MultiBinary([int(x) for x in sizes[:2] % 3 + 1]),
        lambda: Box(-sizes, sizes + 1, dtype=np.int32),
        lambda: Box(np.zeros((2, 3), np.uint8), np.arange(6, dtype=np.uint8).reshape(2, 3)),
        lambda: Box(-sizes.astype(np.float64), sizes.astype(np.float64)),
    ]
    return kinds[rng.integers(len(kinds))]()


@pytest.mark.parametrize("seed", range(60))
def test_any_action_of_an_agent_is_one_of_the_environment_and_every_one_can_be_taken(seed):
    rng = np.random.default_rng(seed)
    space = random_actions(rng)
    chosen = spaces.actions(space)
    if isinstance(chosen.spec, DiscreteActions):
        given = np.arange(chosen.spec.num_actions, dtype=np.int32)
        count = chosen.spec.num_actions
    elif isinstance(chosen.spec, FactoredActions):
        count = int(np.prod(chosen.spec.sizes))
        assert count < 5000
        given = np.stack(np.unravel_index(np.arange(count), chosen.spec.sizes), axis=1).astype(np.int32)
    else:
        assert isinstance(chosen.spec, BoundedActions)
        given = rng.uniform(chosen.spec.low, chosen.spec.high, (20, *chosen.spec.shape)).astype(np.float32)
        count = 20
    taken = list(iterate(gymnasium.vector.utils.batch_space(space, count), chosen.take(given)))
    assert all(space.contains(np.asarray(action, space.dtype)) for action in taken), taken
    assert len({np.asarray(action).tobytes() for action in taken}) == count


class Paying(gymnasium.Env):
    """Pays 1 for the action -1 of -1, 0, 1; shows the number of the state."""

    action_space, observation_space = Discrete(3, start=-1), Discrete(4, start=2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._count = 0
        return 2, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self._count += 1
        return 2 + self._count % 4, float(action == -1), self._count == 7, False, {}


def test_an_environment_gets_its_own_actions_and_shows_its_states_one_hot():
    gymnasium.register("ShoalPaying-v0", entry_point=f"{__name__}:Paying")
    environment = environments.make("gymnasium:ShoalPaying-v0", 3, seed=0)
    assert environment.spec.actions == DiscreteActions(3) and environment.spec.observation_shape == (4,)
    np.testing.assert_array_equal(environment.reset().observation, np.eye(4)[[0, 0, 0]])
    timestep = environment.step(np.array([0, 1, 2], np.int32))
    np.testing.assert_array_equal(timestep.reward, [1, 0, 0])
    np.testing.assert_array_equal(timestep.observation, np.eye(4)[[1, 1, 1]])
    environment.close()


def test_envpools_states_are_shown_one_hot_too():
    environment = environments.make("FrozenLake-v1", 2, seed=0)
    assert environment.spec.observation_shape == (16,)
    np.testing.assert_array_equal(environment.reset().observation, np.eye(16)[[0, 0]])
    environment.close()


@pytest.mark.parametrize("high", [1, 255])
@pytest.mark.parametrize("shape", [(20, 16), (20, 16, 1), (20, 16, 3)])
def test_pictures_of_floats_are_bytes(shape, high):
    shown = spaces.observations(Box(0, high, shape, np.float64))
    levels = np.linspace(0, 255, int(np.prod(shape))).round()
    frames = np.stack([levels.reshape(shape), np.zeros(shape)]) * (high / 255)
    assert shown.dtype == np.uint8 and shown.shape == (shape if shape[-1] == 3 else (20, 16))
    np.testing.assert_array_equal(shown.show(frames)[0].reshape(-1), levels)


def test_a_vector_of_bytes_a_board_and_numbers_without_bounds():
    ram = spaces.observations(Box(0, 255, (3,), np.uint8))
    np.testing.assert_allclose(ram.show(np.array([[0, 51, 255]], np.uint8)), [[-1, -0.6, 1]], atol=1e-6)
    board = spaces.observations(Box(0.0, 1.0, (10, 5)))
    assert board.shape == (10, 5) and board.dtype == np.float32
    free = spaces.observations(Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64))
    np.testing.assert_array_equal(free.show(np.array([[3, -7]])), [[3, -7]])


def test_parts_that_nothing_can_be_made_of_are_left_out_and_named(caplog):
    shown = spaces.observations(Dict(mission=Text(9), direction=Discrete(4), image=Box(0, 255, (2, 2, 3), np.uint8)))
    assert "mission (Text)" in caplog.text
    image = np.array([[[[0, 0, 0], [255, 0, 0]], [[0, 0, 0], [0, 0, 51]]]], np.uint8)
    (row,) = shown.show({"mission": ("go",), "direction": np.array([2]), "image": image})
    expected = [0, 0, 1, 0, *(image.reshape(-1) / 255)]
    np.testing.assert_allclose(row, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("of", "space", "told"),
    [
        (spaces.observations, Text(5), "kind Text"),
        (spaces.observations, Graph(Box(0, 1, (2,)), None), "kind Graph"),
        (spaces.observations, Tuple([Text(5)]), "0 (Text)"),
        (spaces.observations, Dict(), "empty"),
        (spaces.observations, Box(0, 1, (0,)), "no numbers"),
        (spaces.observations, Discrete(10**6), "4096"),
        (spaces.observations, None, "NoneType"),
        (spaces.actions, Dict(a=Discrete(2)), "kind Dict"),
        (spaces.actions, Tuple([Discrete(2)]), "kind Tuple"),
        (spaces.actions, Box(0, 1, (0,)), "no numbers"),
        (spaces.actions, Box(-(2**40), 2**40, (1,), np.int64), "4096"),
        (spaces.actions, None, "NoneType"),
    ],
)
def test_what_there_is_no_network_or_agent_for_is_refused_in_one_line(of, space, told):
    with pytest.raises(ValueError) as error:
        of(space)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_dense_layers_see_pixels_in_0_to_1_and_a_vectors_bytes_as_they_are():
    torso = MLPTorso((3,), "relu")
    pixels = jax.random.randint(jax.random.key(0), (5, 4, 2), 0, 256).astype(np.uint8)
    params = torso.init(jax.random.key(1), pixels)
    same = torso.apply(params, pixels.reshape(5, 8).astype(np.float32) / 255)
    np.testing.assert_allclose(torso.apply(params, pixels), same, rtol=1e-6)
    bits = (pixels.reshape(5, 8) > 99).astype(np.uint8)
    np.testing.assert_array_equal(torso.apply(params, bits), torso.apply(params, bits.astype(np.float32)))


@pytest.mark.parametrize("make", [lambda n: Discrete(n), lambda n: MultiDiscrete([2, n])])
def test_an_action_of_more_choices_than_a_network_can_have_is_refused(make):
    spaces.actions(make(spaces.WIDEST))
    with pytest.raises(ValueError, match="one of 65,537 choices is too much") as error:
        spaces.actions(make(spaces.WIDEST + 1))
    assert "\n" not in str(error.value)


def test_what_is_left_out_is_said_once(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(spaces.logging, "warning", lambda words, *values: told.append(words % values))
    spaces._warn_of_left_out.cache_clear()
    for key in ("a", "b", "a", "b"):
        spaces.observations(Dict({key: Text(3), "x": Box(0, 1, (2,))}))
    assert [text.split(": ")[1] for text in told] == ["a (Text)", "b (Text)"]
