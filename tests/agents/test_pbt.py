"""Population-based training: its rules, its toy, and stacked members."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from agents import pbt
from agents.pbt import Range

RANGES = {
    "learning_rate": Range("log", 1e-5, 1e-2),
    "discount": Range("linear", 0.9, 0.99),
    "alpha": Range("step", 0.0, 1.0, 0.05),
}


# The rules are compiled: otherwise each of their operations would be dispatched on its own.
EXPLOIT = {name: jax.jit(rule) for name, rule in pbt.EXPLOIT.items()}


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def test_draws_lie_in_their_ranges_and_are_uniform_on_their_scales():
    drawn = pbt.draw(jax.random.key(1), RANGES, 20_000)
    assert set(drawn) == {"learning_rate", "discount"}, "a step has no prior: it starts where the agent has it"
    rates = np.asarray(drawn["learning_rate"])
    assert rates.min() >= 1e-5 and rates.max() <= 1e-2
    assert scipy.stats.kstest((np.log10(rates) + 5) / 3, "uniform").pvalue > 1e-3
    assert scipy.stats.kstest((np.asarray(drawn["discount"]) - 0.9) / 0.09, "uniform").pvalue > 1e-3


def test_each_hyper_is_drawn_and_varied_on_its_own():
    """Two hyperparameters with the same range do not follow each other."""
    ranges = {name: Range("linear", 1.0, 2.0) for name in ("one", "other")}
    drawn = pbt.draw(jax.random.key(1), ranges, 500)
    assert abs(np.corrcoef(drawn["one"], drawn["other"])[0, 1]) < 0.2
    values = {name: np.full(500, 1.5, np.float32) for name in ranges}
    for rule in ("perturb", "resample"):
        varied = pbt.explore(jax.random.key(2), rule, values, ranges)
        assert np.std(varied["one"]) > 0.05 and abs(np.corrcoef(varied["one"], varied["other"])[0, 1]) < 0.2, rule


@pytest.mark.parametrize("rule", ["perturb", "resample"])
def test_hypers_stay_in_range_however_often_they_are_varied(rule):
    values = {"learning_rate": jnp.full(64, 9e-3), "discount": jnp.full(64, 0.9), "alpha": jnp.zeros(64)}
    vary = jax.jit(lambda key, values: pbt.explore(key, rule, values, RANGES))
    for key in keys(100):
        values = vary(key, values)
        for name, range_ in RANGES.items():
            assert np.all((values[name] >= np.float32(range_.low)) & (values[name] <= np.float32(range_.high))), name
    assert len(np.unique(np.round(values["alpha"] / 0.05, 3))) > 1
    np.testing.assert_allclose(np.asarray(values["alpha"]) / 0.05 % 1 % 0.999, 0.0, atol=2e-3)


def test_perturbing_multiplies_by_four_or_six_fifths_each_as_often():
    value = jnp.full(10_000, 1e-3)
    ratios = np.asarray(pbt.perturb(jax.random.key(2), value, RANGES["learning_rate"])) / 1e-3
    up = np.isclose(ratios, 1.2)
    assert np.all(up | np.isclose(ratios, 0.8))
    assert scipy.stats.binomtest(int(up.sum()), up.size).pvalue > 1e-3


def test_resampling_draws_a_quarter_anew():
    value = jnp.full(10_000, 1e-3)
    same = np.asarray(pbt.resample(jax.random.key(2), value, RANGES["learning_rate"])) == np.float32(1e-3)
    assert scipy.stats.binomtest(int(same.sum()), same.size, 0.75).pvalue > 1e-3


def returns_of(scores, episodes=5, spread=0.0):
    noise = np.random.default_rng(0).normal(size=(len(scores), episodes)) * spread
    return jnp.asarray(np.array(scores)[:, None] + noise, jnp.float32)


def test_truncation_replaces_the_worst_fifth_by_the_best_fifth():
    scores = np.random.default_rng(1).permutation(10).astype(float)
    order = np.argsort(scores)
    taken = set()
    for key in keys(50):
        donors = np.asarray(EXPLOIT["truncation"](key, returns_of(scores)))
        assert set(np.flatnonzero(donors != np.arange(10))) == set(order[:2])
        taken |= set(donors[order[:2]])
    assert taken == set(order[-2:])


def test_a_population_of_two_has_one_loser():
    np.testing.assert_array_equal(EXPLOIT["truncation"](jax.random.key(0), returns_of([1.0, 2.0])), [1, 1])


def test_equals_copy_nobody():
    for rule in EXPLOIT.values():
        np.testing.assert_array_equal(rule(jax.random.key(0), returns_of([3.0] * 6)), np.arange(6))


@pytest.mark.parametrize("rule", ["truncation", "tournament", "t_test"])
def test_who_has_no_episode_neither_copies_nor_is_copied(rule):
    returns = returns_of([5.0, 1.0, 2.0, 3.0, 4.0], spread=0.01).at[0].set(jnp.nan)
    for key in keys(30):
        donors = np.asarray(EXPLOIT[rule](key, returns))
        assert donors[0] == 0 and 0 not in donors[1:]


@pytest.mark.parametrize("rule", ["truncation", "tournament", "t_test"])
def test_who_has_diverged_copies_and_is_never_copied(rule):
    returns = returns_of([5.0, 1.0, 2.0, 3.0, 4.0], spread=0.01).at[0].set(-jnp.inf)
    for key in keys(30):
        donors = np.asarray(EXPLOIT[rule](key, returns))
        assert donors[0] != 0 and 0 not in donors[1:]


def test_a_tournament_is_lost_to_a_better_opponent_alone():
    scores = np.arange(6.0)
    met = np.zeros((6, 6), int)
    for key in keys(400):
        donors = np.asarray(EXPLOIT["tournament"](key, returns_of(scores)))
        assert np.all(scores[donors] >= scores)
        met[np.arange(6), donors] += 1
    assert np.all(met[np.triu_indices(6, 1)] > 0) and met[0, 0] == 0, "each meets any other, and never itself"


def test_the_t_test_agrees_with_scipys():
    generator = np.random.default_rng(3)
    found = set()
    for trial, key in enumerate(keys(120)):
        gap, size = generator.uniform(0, 2), 10
        returns = generator.normal(size=(2, size)) * [[1.0], [1.5]] + [[0.0], [gap]]
        for member in range(2):  # members have ended different numbers of episodes
            returns[member, generator.integers(2, size + 1) :] = np.nan
        first, second = (row[~np.isnan(row)] for row in returns)
        p = scipy.stats.ttest_ind(second, first, equal_var=False, alternative="greater").pvalue
        if abs(p - pbt.SIGNIFICANCE) < 1e-4:
            continue
        donors = np.asarray(EXPLOIT["t_test"](key, jnp.asarray(returns, jnp.float32)))
        assert (donors[0] == 1) == (p < pbt.SIGNIFICANCE), (trial, p)
        found.add(bool(donors[0] == 1))
    assert found == {True, False}


# The paper's toy (section 4, figure 2): Q = 1.2 - theta_0^2 - theta_1^2 is to be maximised, but only by gradients of a
# surrogate, 1.2 - h_0 theta_0^2 - h_1 theta_1^2. Q is measured with a little noise; without it, equal members would
# stay equal.
TOY = {"h_0": Range("step", 0.0, 1.0, 0.1), "h_1": Range("step", 0.0, 1.0, 0.1)}


@functools.partial(jax.jit, static_argnums=(0, 1, 3, 4))
def toy(exploit, explore, key, turns=26, steps=4, rate=0.02):
    """Returns the best Q of a population of two, whose members start with the hyperparameters [1, 0] and [0, 1], a
    grid."""

    def turn(carry, key):
        theta, h = carry
        for _ in range(steps):
            theta = theta - rate * 2 * h * theta
        noise_key, exploit_key, explore_key = jax.random.split(key, 3)
        q = 1.2 - jnp.sum(theta**2, axis=1) + 1e-3 * jax.random.normal(noise_key, (2,))
        donors = pbt.EXPLOIT[exploit](exploit_key, q[:, None])
        varied = pbt.explore(explore_key, explore, {"h_0": h[donors, 0], "h_1": h[donors, 1]}, TOY)
        ready = donors != jnp.arange(2) if exploit != "none" else jnp.ones(2, bool)
        h = jnp.where(ready[:, None], jnp.stack([varied["h_0"], varied["h_1"]], axis=1), h)
        return (theta[donors], h), None

    (theta, _), _ = jax.lax.scan(turn, (jnp.full((2, 2), 0.9), jnp.eye(2)), jax.random.split(key, turns))
    return jnp.max(1.2 - jnp.sum(theta**2, axis=1))


def test_the_papers_toy():
    def mean(exploit, explore):
        return np.mean([toy(exploit, explore, key) for key in keys(10)])

    grid, exploit_only = mean("none", "none"), mean("truncation", "none")
    explore_only, both = mean("none", "perturb"), mean("truncation", "perturb")
    assert grid == pytest.approx(0.4, abs=0.03)
    assert both > 1.1
    # Exploiting alone copies the better member of the grid, hyperparameters included, and finds nothing beyond it.
    assert grid == pytest.approx(exploit_only, abs=0.01)
    assert grid < explore_only < both, (grid, explore_only, both)
