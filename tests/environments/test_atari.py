"""Atari through EnvPool: one frame a step, which agents stack as EnvPool would; rewards clipped in training only."""

import envpool
import jax
import numpy as np
import pytest

import environments
from agents.agent import DiscreteActions
from agents.parts.stacking import stack_frames

# Mnih et al. 2015 (10.1038/nature14236), extended data table 1: 84 x 84 grey levels, each action for 4 of the game's
# frames, up to 30 no-ops first. As in the paper's evaluations, and unlike its training, a lost life ends nothing; no
# action is sticky; half an hour, 27,000 actions, is the longest.
PUBLISHED = {
    "img_height": 84,
    "img_width": 84,
    "gray_scale": True,
    "frame_skip": 4,
    "noop_max": 30,
    "use_fire_reset": False,
    "episodic_life": False,
    "zero_discount_on_life_loss": False,
    "full_action_space": False,
    "repeat_action_probability": 0.0,
    "max_episode_steps": 27_000,
}


@pytest.mark.parametrize("evaluation", [False, True])
def test_the_protocol_is_the_published_one(evaluation):
    environment = environments.make("Breakout-v5", 1, seed=0, evaluation=evaluation)
    config = environment._pool.spec.config._asdict()
    environment.close()
    assert {name: config[name] for name in PUBLISHED} == PUBLISHED
    assert config["reward_clip"] == (not evaluation) and config["stack_num"] == 1
    assert environment.spec.max_episode_steps == 27_000


@pytest.mark.parametrize("evaluation", [False, True])
def test_pong_shows_single_frames_of_bytes(evaluation):
    environment = environments.make("Pong-v5", 2, seed=0, evaluation=evaluation)
    assert environment.spec.observation_shape == (84, 84)
    assert environment.spec.observation_dtype == np.uint8
    assert environment.spec.actions == DiscreteActions(6), "the minimal action set"
    rng, timestep, rewards, seen = np.random.default_rng(0), environment.reset(), [], set()
    for _ in range(200):
        assert timestep.observation.shape == (2, 84, 84) and timestep.observation.dtype == np.uint8
        seen |= set(np.unique(timestep.observation))
        rewards.append(timestep.reward)
        timestep = environment.step(rng.integers(6, size=2))
    environment.close()
    assert min(seen) < 100 < max(seen), "grey levels, not 0 and 1"
    assert {-1.0, 0.0} <= set(np.unique(rewards)) <= {-1.0, 0.0, 1.0}, "a random player loses points, one at a time"


def test_rewards_are_clipped_in_training_and_raw_in_evaluation():
    """Ms. Pac-Man, for its points come by the ten and its random episodes end soon. Returns are always raw."""
    training, evaluation = (
        environments.make("MsPacman-v5", 2, seed=1, evaluation=evaluation) for evaluation in (False, True)
    )
    clipped, raw = [training.reset().reward], [evaluation.reset().reward]
    rng, returns = np.random.default_rng(0), np.zeros(2)
    for _ in range(900):
        action = rng.integers(training.spec.actions.num_actions, size=2)
        a, b = training.step(action), evaluation.step(action)
        np.testing.assert_array_equal(a.observation, b.observation)
        clipped.append(a.reward)
        raw.append(b.reward)
        returns = np.where(b.first, 0, returns + b.reward)
        if b.last.any():
            episodes = training.finished()
            assert episodes == evaluation.finished()
            assert episodes.returns == returns[b.last].tolist()
            assert (a.discount[a.last] == 0).all(), "game over is terminal"
            break
    else:
        pytest.fail("no episode of 900 random steps ended")
    training.close()
    evaluation.close()
    assert np.max(raw) >= 10
    np.testing.assert_array_equal(clipped, np.clip(raw, -1, 1))


def test_a_game_that_is_over_at_the_time_limit_is_over():
    """Both terminated and truncated: there is nothing to bootstrap from. One step sooner it is a truncation alone."""

    def end(**keywords):
        environment = environments.make("Pong-v5", 1, seed=3, keywords=keywords)
        environment.reset()
        for step in range(1, 2000):
            timestep = environment.step(np.zeros(1, np.int32))
            if timestep.last[0]:
                environment.close()
                return step, float(timestep.discount[0])
        pytest.fail("no game in which nothing is done has ended")

    length, discount = end()
    assert discount == 0
    assert end(max_episode_steps=length) == (length, 0)
    assert end(max_episode_steps=length - 1) == (length - 1, 1)


def test_stacked_single_frames_equal_envpools_own_stack():
    """At the initial reset, within episodes and across the starts of episodes, on Pong, in chunks as a learner has."""
    num_envs, chunk = 2, 50
    single = environments.make("Pong-v5", num_envs, seed=5)
    options = PUBLISHED | {"stack_num": 4, "reward_clip": True}
    stacked = envpool.make("Pong-v5", env_type="gymnasium", num_envs=num_envs, seed=5, **options)
    stack = jax.jit(stack_frames)
    rng, opened = np.random.default_rng(0), np.zeros(num_envs, int)
    timestep, expected = single.reset(), stacked.reset()[0]
    previous = rng.integers(0, 256, (num_envs, 3, 84, 84), dtype=np.uint8)  # no episode's: must not be seen
    for _ in range(30):  # chunks: random play loses in some 800 steps
        frames, firsts, stacks = [], [], []
        for _ in range(chunk):
            frames.append(timestep.observation)
            firsts.append(timestep.first)
            stacks.append(np.moveaxis(expected, 1, -1))
            action = rng.integers(6, size=num_envs)
            timestep, expected = single.step(action), stacked.step(action.astype(np.int32))[0]
        got, previous = stack(previous, np.stack(frames), np.stack(firsts))
        np.testing.assert_array_equal(got, np.stack(stacks))
        opened += np.sum(firsts, axis=0)
        if (opened >= 2).all():
            break
    single.close()
    stacked.close()
    assert (opened >= 2).all(), "each environment is to show its reset and the start of another episode"
