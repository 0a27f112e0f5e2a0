"""The environment that keeps its actor waiting is CartPole in all else."""

import threading
import time

import gymnasium
import numpy as np
import pytest

import environments
from environments.slow import SlowCartPole


@pytest.mark.parametrize("seconds", [0.0, 0.003, 0.5])
def test_every_step_waits_as_long_and_is_cartpoles(seconds, monkeypatch):
    waited: list[float] = []
    me = threading.get_ident()  # other threads may sleep, too
    monkeypatch.setattr(time, "sleep", lambda each: waited.append(each) if threading.get_ident() == me else None)
    slow, plain = SlowCartPole(seconds), gymnasium.make("CartPole-v1").unwrapped
    np.testing.assert_array_equal(slow.reset(seed=3)[0], plain.reset(seed=3)[0])
    for step in range(8):
        ours, theirs = slow.step(step % 2), plain.step(step % 2)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]
    assert waited == [seconds] * 8


def test_it_is_an_environment_of_gymnasiums_with_a_limit():
    environment = environments.make("gymnasium:environments.slow:SlowCartPole-v0", 2, 0, keywords={"seconds": 0})
    assert environment.spec.max_episode_steps == 500 and environment.spec.observation_shape == (4,)
    environment.close()


@pytest.mark.parametrize("seconds", [-0.1, 1.5])
def test_a_wait_without_sense_is_refused(seconds):
    with pytest.raises(ValueError, match="from 0 to 1"):
        SlowCartPole(seconds)
