"""The loops that docs/policy.md shows do what they say."""

import re

import gymnasium
import numpy as np
import pytest

from tests.launchers import command_line

CODE = re.findall(r"```python\n(.*?)```", (command_line.ROOT / "docs" / "policy.md").read_text(), re.DOTALL)


class Enough(Exception):
    """Ends a loop that has run long enough."""


def test_vector_environments_are_told_apart_where_their_episodes_begin():
    (loop,) = (code for code in CODE if "environments.step" in code)
    environments = gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    begun = []

    class Policy:
        def reset(self, begins):
            begun.append(begins.tolist())

        def __call__(self, observation, reward):
            assert observation.shape == (3, 4) and reward.shape == (3,)
            assert begun[-1] == [each.get_wrapper_attr("_elapsed_steps") == 0 for each in environments.envs]
            if len(begun) == 100:
                raise Enough
            return np.array([0, 1, len(begun) % 2])

    with pytest.raises(Enough):
        exec(loop, {"np": np, "environments": environments, "policy": Policy()})
    assert np.sum(begun, axis=0).min() > 1


def test_one_environment_is_played_to_the_end_of_its_episode():
    (loop,) = (code for code in CODE if "gymnasium.make" in code)
    played = {"policy": lambda observation: int(observation[2] > 0)}
    exec(loop, played)
    assert played["done"] and played["environment"].observation_space.contains(played["observation"])
