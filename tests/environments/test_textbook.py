"""The textbooks' environments against the dynamics and the answers that are printed there."""

import numpy as np
import pytest

import environments
from environments.textbook import BAIRD_FEATURES, DASHED, SOLID, ContinuousBandit, ShortCorridor

MODULE = "gymnasium:environments.textbook"


def test_the_corridors_second_state_is_switched():
    """Example 13.1: right, left, right leads to the goal, and the observation does not show the state."""
    corridor = ShortCorridor()
    moves = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 0, (2, 0): 1, (2, 1): 3}
    for (state, action), then in moves.items():
        corridor.reset(seed=0)
        corridor.state = state
        observation, reward, terminated, truncated, _ = corridor.step(action)
        assert (corridor.state, reward, terminated, truncated) == (then, -1.0, then == 3, False)
        np.testing.assert_array_equal(observation, [1.0])


@pytest.mark.parametrize(("right", "value"), [(0.05, -82.1), (0.59, -11.66), (0.95, -44.2)])
def test_the_corridors_returns_are_the_books(right, value):
    """The book has about -82 and -44 for the two epsilon-greedy policies, and -11.6 for the best policy."""
    rng, environment = np.random.default_rng(0), environments.make(f"{MODULE}:ShortCorridor-v0", 50, seed=0)
    environment.reset()
    returns: list[float] = []
    while len(returns) < 3000:
        environment.step((rng.random(50) < right).astype(np.int32))
        returns += environment.finished().returns
    environment.close()
    # The first episodes to end are short ones. With 50 environments this bias is less than the tolerance.
    assert np.mean(returns) == pytest.approx(value, rel=0.1)


def test_the_lakes_reward_is_where_a_walk_of_38_steps_leads_and_no_random_one():
    environment, down, right = environments.make(f"{MODULE}:OpenLake-v0", 200, seed=0), 1, 2
    environment.reset()
    for step in range(38):
        steps = environment.step(np.full(200, down if step % 2 else right, np.int32))
        np.testing.assert_array_equal(steps.reward, float(step == 37))
    assert steps.last.all() and not steps.discount.any()
    rng = np.random.default_rng(0)
    for _ in range(500):
        environment.step(rng.integers(4, size=200).astype(np.int32))
    environment.close()
    assert np.mean(environment.finished().returns[200:]) < 0.01


def test_bairds_actions_lead_to_the_seventh_state_and_to_the_six():
    environment = environments.make(f"{MODULE}:Baird-v0", 600, seed=0)
    environment.reset()
    upper = np.concatenate([2 * np.eye(6), np.zeros((6, 1)), np.ones((6, 1))], axis=1)
    np.testing.assert_array_equal(BAIRD_FEATURES, [*upper, [0, 0, 0, 0, 0, 0, 1, 2]])
    solid = environment.step(np.full(600, SOLID, np.int32))
    np.testing.assert_array_equal(solid.observation, np.tile(BAIRD_FEATURES[6], (600, 1)))
    dashed = environment.step(np.full(600, DASHED, np.int32))
    counts = [(dashed.observation == features).all(axis=1).sum() for features in BAIRD_FEATURES]
    assert counts[6] == 0 and sum(counts) == 600 and min(counts[:6]) > 60
    assert not dashed.reward.any() and not dashed.last.any()
    environment.close()


@pytest.mark.parametrize("dimensions", [10, 25])
def test_the_bandits_cost_is_the_papers(dimensions):
    """Section 5.1: a quadratic with eigenvalues 0.1 and 1 and its minimum at (4, .., 4); it is always the same one."""
    bandit = ContinuousBandit(dimensions)
    np.testing.assert_array_equal(bandit.C, ContinuousBandit(dimensions).C)
    np.testing.assert_allclose(bandit.C, bandit.C.T, atol=1e-12)
    eigenvalues = np.linalg.eigvalsh(bandit.C)
    np.testing.assert_allclose(eigenvalues, np.repeat([0.1, 1.0], [dimensions // 2, dimensions - dimensions // 2]))
    environment = environments.make(f"{MODULE}:ContinuousBandit-v0", 2, seed=0, keywords={"dimensions": dimensions})
    environment.reset()
    action = np.stack([np.full(dimensions, 4.0), np.zeros(dimensions)]).astype(np.float32)
    timestep = environment.step(action)
    assert timestep.last.all() and not timestep.discount.any()
    np.testing.assert_allclose(timestep.reward, [0.0, -16 * bandit.C.sum()], rtol=1e-6)
    environment.close()


def test_a_bandit_without_dimensions_is_refused():
    with pytest.raises(ValueError, match="dimensions=0 must be from 1 to 1000"):
        environments.make(f"{MODULE}:ContinuousBandit-v0", 1, seed=0, keywords={"dimensions": 0})
