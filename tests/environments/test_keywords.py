"""Keywords that a person gives to an environment, and the example module in docs/environments.md."""

import pathlib
import re

import numpy as np
import pytest

import environments
from environments.filmed import Filmed

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "environments.md"


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "my_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)


def walk(name: str, steps: int, **keywords) -> list[float]:
    """Returns the observations of a walk to the right, at most `steps` steps long."""
    environment = environments.make(name, 1, seed=0, keywords=keywords)
    timestep = environment.reset()
    places = [timestep.observation[0, 0].item()]
    for _ in range(steps):
        timestep = environment.step(np.ones(1, np.int32))
        places.append(timestep.observation[0, 0].item())
        if timestep.last[0]:
            break
    environment.close()
    return places


def test_the_documents_module_is_drawn(my_module):
    environment = Filmed(environments.make("gymnasium:my_module:Walk-v0", 2, 0, keywords={"length": 4}, drawn=True))
    environment.reset()
    for _ in range(6):
        environment.step(np.ones(2, np.int32))
    assert [picture.shape for picture in environment.pictures] == [(20, 100, 3)] * 5 and environment.per_second == 10
    places = [np.flatnonzero((picture == 0).all(axis=(0, 2)))[0] // 20 for picture in environment.pictures]
    assert places == [0, 1, 2, 3, 4]
    environment.close()


def test_the_documents_module_takes_keywords_and_wrappers(my_module):
    assert walk("gymnasium:my_module:Walk-v0", 99) == pytest.approx([n / 10 for n in range(11)])
    assert walk("gymnasium:my_module:Walk-v0", 99, length=4) == [0, 0.25, 0.5, 0.75, 1]
    assert walk("gymnasium:my_module:Walk-v0", 99, max_episode_steps=2) == pytest.approx([0, 0.1, 0.2])
    assert walk("gymnasium:my_module:WalkSquared-v0", 99, length=2) == [0, 0.25, 1]


@pytest.mark.parametrize(
    ("name", "keywords", "limit"),
    [
        ("gymnasium:CliffWalking-v1", {"max_episode_steps": 9}, 9),
        ("gymnasium:CartPole-v1", {"max_episode_steps": -1}, None),
        ("CartPole-v1", {"max_episode_steps": 9}, 9),
        ("MaskedCartPole-v1", {"max_episode_steps": 9}, 9),
        ("binned:3:Pendulum-v1", {"max_episode_steps": 9}, 9),
        ("CartPole-v1,gymnasium:CartPole-v1", {"max_episode_steps": 9}, 9),
    ],
)
def test_keywords_reach_whatever_stands_behind_the_door(name, keywords, limit):
    environment = environments.make(name, 2, seed=0, keywords=keywords)
    environment.close()
    assert environment.spec.max_episode_steps == limit


def test_a_keyword_replaces_what_shoal_says_of_atari():
    environment = environments.make("Breakout-v5", 1, seed=0, keywords={"full_action_space": True, "noop_max": 1})
    settings = environment._pool.spec.config
    environment.close()
    assert environment.spec.actions.num_actions == 18
    assert settings.noop_max == 1 and not settings.use_fire_reset


@pytest.mark.parametrize(
    ("name", "keywords", "words"),
    [
        ("CartPole-v1", {"k": 1}, "EnvPool's CartPole-v1 cannot be given 'k'; it takes max_episode_steps"),
        ("Pong-v5", {"stack_num": 4}, "cannot be given 'stack_num'"),
        ("Pong-v5", {"noop_max": "many"}, "'noop_max' of EnvPool's Pong-v5 must be of the type of 30, not 'many'"),
        ("Pong-v5", {"episodic_life": 1}, "must be of the type of False, not 1"),
        ("gymnasium:CartPole-v1", {"k": 1}, "cannot be made: .* unexpected keyword argument 'k'"),
        ("gymnasium:CartPole-v1", {"num_envs": 1}, "'num_envs' cannot be given"),
        ("gymnasium:CartPole-v1", {"max_episode_steps": "many"}, "cannot be made"),
        ("gymnasium:CartPole-v1", {"max_episode_steps": 0}, "cannot be made"),
    ],
)
def test_a_keyword_that_does_not_fit_is_one_line(name, keywords, words):
    with pytest.raises(ValueError, match=words) as error:
        environments.make(name, 1, seed=0, keywords=keywords)
    assert "\n" not in str(error.value)
