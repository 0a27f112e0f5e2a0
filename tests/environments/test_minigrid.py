"""MiniGrid's observations as bits."""

import envpool
import numpy as np
import pytest

import environments
from environments import minigrid


def decode(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image [B, 7, 7, 3] and the direction [B] in `bits` [B, 984]; asserts that each has just one bit."""
    cells, direction = bits[:, :980].reshape(-1, 7, 7, 20), bits[:, 980:984]
    parts = np.split(cells, [11, 17], axis=-1)
    for part in (*parts, direction):
        assert (part.sum(axis=-1) == 1).all()
    return np.stack([part.argmax(axis=-1) for part in parts], axis=-1), direction.argmax(axis=-1)


def actions(rng, batch: int) -> np.ndarray:
    return rng.integers(7, size=batch).astype(np.int32)


@pytest.mark.parametrize("name", ["MiniGrid-MemoryS7-v0", "MiniGrid-DoorKey-5x5-v0"])
def test_observations_say_what_the_pool_said(name):
    environment = environments.make(name, 4, seed=3)
    assert environment.spec.observation_shape == (984,) and environment.spec.observation_dtype == np.uint8
    pool = envpool.make(name, env_type="gymnasium", num_envs=4, seed=3)
    rng, raw, seen = np.random.default_rng(0), pool.reset()[0], set()
    observation = environment.reset().observation
    for _ in range(300):
        assert observation.shape == (4, 984) and observation.dtype == np.uint8 and observation.max() == 1
        image, direction = decode(observation)
        np.testing.assert_array_equal(image, raw["image"])
        np.testing.assert_array_equal(direction, raw["direction"])
        seen |= set(image[..., 0].ravel().tolist())
        action = actions(rng, 4)
        raw, observation = pool.step(action)[0], environment.step(action).observation
    environment.close()
    pool.close()
    key, ball, door = 5, 6, 4
    assert seen >= ({key, ball} if "Memory" in name else {key, door}), "the objects that matter"
    assert environment.spec.max_episode_steps == {"MiniGrid-MemoryS7-v0": 245, "MiniGrid-DoorKey-5x5-v0": 250}[name]


def test_every_cell_object_colour_and_state_has_its_own_bit():
    rng = np.random.default_rng(0)
    image = rng.integers(0, [11, 6, 3], size=(50, 7, 7, 3)).astype(np.uint8)
    direction = rng.integers(4, size=50)
    decoded_image, decoded_direction = decode(minigrid.encode(image, direction))
    np.testing.assert_array_equal(decoded_image, image)
    np.testing.assert_array_equal(decoded_direction, direction)


def test_a_mission_is_shown_where_it_says_what_to_do():
    name = "MiniGrid-Fetch-5x5-N2-v0"
    environment = environments.make(name, 8, seed=3)
    pool = envpool.make(name, env_type="gymnasium", num_envs=8, seed=3)
    observation, mission = environment.reset().observation, pool.reset()[0]["mission"]
    assert observation.shape == (8, 984 + 96 * 27) == (8, *environment.spec.observation_shape)
    letters = observation[:, 984:].reshape(8, 96, 27)
    assert (letters.sum(axis=-1) == 1).all()
    alphabet = " abcdefghijklmnopqrstuvwxyz"
    read = ["".join(alphabet[i] for i in row.argmax(axis=-1)).strip() for row in letters]
    assert read == [bytes(row[row > 0]).decode() for row in mission]
    assert len(set(read)) > 1
    environment.close()
    pool.close()


@pytest.mark.parametrize("name", sorted(n for n in envpool.list_all_envs() if n.startswith("MiniGrid-Memory")))
def test_the_memory_tasks_mission_never_changes(name):
    """Agents are not shown this mission; since it never changes, they lose nothing."""
    assert not minigrid.is_instructed(name)
    pool = envpool.make(name, env_type="gymnasium", num_envs=32, seed=0)
    mission = pool.reset()[0]["mission"]
    pool.close()
    assert (mission == mission[0]).all()
