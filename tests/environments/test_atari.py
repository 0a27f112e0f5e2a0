"""Atari through EnvPool: each step shows one frame, agents stack frames as EnvPool would, rewards are clipped."""

import envpool
import jax
import numpy as np
import pytest

import environments
from agents.agent import DiscreteActions
from agents.parts.stacking import stack_frames

# Mnih et al. 2015 (10.1038/nature14236), extended data table 1: 84 x 84 grey levels, each action is repeated for 4
# frames of the game, after up to 30 no-ops; a lost life ends an episode in training; no action is sticky; the longest
# game is half an hour, 27,000 actions.
NATURE = {
    "img_height": 84,
    "img_width": 84,
    "gray_scale": True,
    "frame_skip": 4,
    "noop_max": 30,
    "use_fire_reset": False,
    "episodic_life": True,
    "zero_discount_on_life_loss": False,
    "full_action_space": False,
    "repeat_action_probability": 0.0,
    "max_episode_steps": 27_000,
}
# Machado et al. 2018 (10.1613/jair.5699), section 4: sticky actions, the full action set, and no end but the game's.
MACHADO = NATURE | {
    "noop_max": 1,
    "episodic_life": False,
    "full_action_space": True,
    "repeat_action_probability": 0.25,
}


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize(("protocol", "published"), [("nature", NATURE), ("machado", MACHADO)])
def test_the_protocols_are_the_published_ones(protocol, published, evaluation):
    environment = environments.make("Breakout-v5", 1, seed=0, evaluation=evaluation, atari_protocol=protocol)
    config = environment._pool.spec.config._asdict()
    environment.close()
    expected = published | ({"episodic_life": False} if evaluation else {})
    assert {name: config[name] for name in expected} == expected
    assert not config["reward_clip"] and config["stack_num"] == 1
    assert environment.spec.max_episode_steps == 27_000
    assert environment.spec.actions == DiscreteActions(18 if protocol == "machado" else 4)


def frames(steps: int, **options) -> np.ndarray:
    """Returns frames of Pong, [steps, 84, 84], while the paddle is told to go up and down in turns of ten steps."""
    environment = environments.make("Pong-v5", 1, seed=4, **options)
    environment.reset()
    actions = [2 if step // 10 % 2 else 3 for step in range(steps)]
    seen = np.concatenate([environment.step(np.full(1, action, np.int32)).observation for action in actions])
    environment.close()
    return seen


def test_sticky_actions_are_late_sometimes_and_differ_by_the_seed_alone():
    sure, sticky = frames(120), [frames(120, atari_protocol="machado") for _ in range(2)]
    np.testing.assert_array_equal(sticky[0], sticky[1])
    np.testing.assert_array_equal(sure, frames(120, keywords={"repeat_action_probability": 0.0}))
    assert (sure != frames(120, keywords={"repeat_action_probability": 0.25})).any()
    always = frames(120, keywords={"repeat_action_probability": 1.0})  # the no-op at the start, for ever
    environment = environments.make("Pong-v5", 1, seed=4)
    environment.reset()
    nothing = np.concatenate([environment.step(np.zeros(1, np.int32)).observation for _ in range(120)])
    environment.close()
    np.testing.assert_array_equal(always, nothing)


@pytest.mark.parametrize("most", [1, 30])
def test_no_ops_are_counted(most):
    """Each no-op is a frame of the emulator, whose memory differs after each frame."""
    memories = set()
    for seed in range(6):
        environment = environments.make("Pong-v5", 1, seed=seed, keywords={"noop_max": most})
        environment._pool._reset(environment._indices)
        memories.add(environment._receive()[1]["info:ram"].tobytes())
        environment.close()
    assert len(memories) == 1 if most == 1 else 1 < len(memories) <= most


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


def test_agents_see_rewards_as_they_are_to_and_returns_are_raw():
    """The game is Ms. Pac-Man, whose points are multiples of ten and whose lives are short. Evaluations clip, too."""
    made = {
        (clip, evaluation): environments.make("MsPacman-v5", 2, seed=1, evaluation=evaluation, reward_clip=clip)
        for clip, evaluation in (
            ("auto", True),
            ("auto", False),
            ("none", True),
            ("none", False),
            ("unit", True),
            ("soft_asymmetric", True),
        )
    }
    rewards = {which: [environment.reset().reward] for which, environment in made.items()}
    rng, returns = np.random.default_rng(0), np.zeros(2)
    for _ in range(900):
        action = rng.integers(9, size=2)
        timesteps = {which: environment.step(action) for which, environment in made.items()}
        for which, timestep in timesteps.items():
            np.testing.assert_array_equal(timestep.observation, timesteps["auto", True].observation)
            rewards[which].append(timestep.reward)
        raw = timesteps["none", True]
        returns = np.where(raw.first, 0, returns + raw.reward)
        # In training the first lost life ends an episode, but not the game.
        if timesteps["none", False].last.any():
            assert (timesteps["none", False].discount[timesteps["none", False].last] == 0).all()
            break
    else:
        pytest.fail("no life was lost in 900 random steps")
    for environment in made.values():
        assert environment.finished() == ([], [], [])
        np.testing.assert_array_equal(environment._returns, returns)
        environment.close()
    raw = np.stack(rewards["none", True])
    assert raw.max() >= 10 and raw.dtype == np.float32
    expected = {
        "none": raw,
        "unit": np.clip(raw, -1, 1),
        "auto": np.clip(raw, -1, 1),
        "soft_asymmetric": 0.3 * np.minimum(np.tanh(raw), 0) + 5.0 * np.maximum(np.tanh(raw), 0),
    }
    for (clip, _), seen in rewards.items():
        np.testing.assert_allclose(np.stack(seen), expected[clip], rtol=1e-6)
        assert np.stack(seen).dtype == np.float32


def test_a_lost_life_ends_an_episode_in_training_and_the_games_score_goes_on():
    """The game is Breakout, with five lives, compared with EnvPool's own counts of lives and of the game's points."""
    ours = environments.make("Breakout-v5", 1, seed=0)
    theirs = envpool.make("Breakout-v5", env_type="gymnasium", num_envs=1, seed=0, **NATURE, stack_num=1)
    ours.reset()
    theirs.reset()
    rng, lives, points, actions, ends, games = np.random.default_rng(0), 5, 0.0, 0, 0, []
    first = False
    for step in range(2000):
        action = np.array([1 if step % 8 == 0 else rng.integers(4)], np.int32)  # 1, fire, brings the ball back
        timestep, (_, reward, _, _, info) = ours.step(action), theirs.step(action)
        assert timestep.first[0] == first
        points, actions = points + reward[0], actions + (not first)
        lost = not first and info["lives"][0] < lives
        assert timestep.last[0] == lost and timestep.discount[0] == 1 - lost
        ends += lost
        first, lives = bool(lost), int(info["lives"][0]) or 5
        if lost and info["lives"][0] == 0:
            games.append((points, actions))
            points, actions = 0.0, 0
            if len(games) == 2:
                break
    episodes = ours.finished()
    ours.close()
    assert ends == 10 and list(zip(episodes.returns, episodes.lengths, strict=True)) == games
    assert max(points for points, _ in games) > 0


def test_a_game_that_is_over_at_the_time_limit_is_over():
    """Terminated and truncated at once, it is not bootstrapped from. A limit one step shorter only truncates."""

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
    """On Pong: at the first reset, within episodes and across their starts, in chunks of rows like a learner's."""
    num_envs, chunk = 2, 50
    single = environments.make("Pong-v5", num_envs, seed=5)
    options = NATURE | {"stack_num": 4, "reward_clip": True}
    stacked = envpool.make("Pong-v5", env_type="gymnasium", num_envs=num_envs, seed=5, **options)
    stack = jax.jit(stack_frames)
    rng, opened = np.random.default_rng(0), np.zeros(num_envs, int)
    timestep, expected = single.reset(), stacked.reset()[0]
    previous = rng.integers(0, 256, (num_envs, 3, 84, 84), dtype=np.uint8)  # not of an episode: must not show
    for _ in range(30):  # at most 30 chunks: random play loses in some 800 steps
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
