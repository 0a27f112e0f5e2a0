"""The evaluator: which episodes count, and when it evaluates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import Agent, DiscreteActions, FactoredActions, TimeStep, Version
from environments.counting import CountingEnvironment, episode_length
from environments.environment import Episodes
from runtime import evaluator
from tests.waiting import within


def finish(playing) -> Episodes:
    """Runs evaluator.play to its end, ignoring the progress that it yields, and returns what it returns."""
    while True:
        try:
            next(playing)
        except StopIteration as end:
            return end.value


def play_agent() -> Agent:
    return Agent(None, None, lambda num_envs, ranks: np.zeros(num_envs, int), None, None, None, (), 1)


class Act:
    """A compiled policy's stand-in that notes its keys, counts and memories."""

    def __init__(self):
        self.calls, self.keys = [], []

    def __call__(self, params, key, count, timestep, memory):
        self.keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        self.calls.append((params, int(count), memory.tolist()))
        return np.zeros(len(memory), np.int32), {}, memory + 1


def return_of(environment: int, episode: int) -> float:
    length = episode_length(environment, episode)
    return 10.0 * episode * length + length * (length + 1) / 2


@pytest.mark.parametrize(("num_envs", "each"), [(1, 4), (5, 1), (5, 3)])
def test_play_counts_each_environments_first_episodes_only(num_envs, each):
    """Fast environments finish more episodes while the slowest still plays; counting them would favour short ones."""
    played = finish(
        evaluator.play(
            play_agent(), Act(), CountingEnvironment(num_envs), "params", jax.random.key(0), episodes=num_envs * each
        )
    )
    expected = [(i, return_of(i, n), episode_length(i, n)) for i in range(num_envs) for n in range(each)]
    assert list(zip(*played, strict=True)) == expected


def test_play_carries_the_memory_and_counts_steps_from_0():
    act = Act()
    playing = evaluator.play(play_agent(), act, CountingEnvironment(2), "params", jax.random.key(0), episodes=4)
    progress = list(playing)
    assert [each.steps for each in progress] == list(range(1, len(progress) + 1))
    # Environment 0 ends its two episodes at steps 1 and 5, environment 1 at 2 and 7; further episodes do not count.
    assert [each.episodes for each in progress] == [1, 2, 2, 2, 3, 3, 4]
    assert act.calls == [("params", t, [t, t]) for t in range(len(act.calls))]
    # Environment 0's first two episodes take 1 and 3 actions, environment 1's 2 and 4; one is thrown away between.
    assert len(act.calls) == 2 + 1 + 4


def test_play_stops_when_told():
    answers = iter([False] * 4 + [True])
    played = finish(
        evaluator.play(
            play_agent(), Act(), CountingEnvironment(2), "params", jax.random.key(0), 8, lambda: next(answers)
        )
    )
    assert played.returns == [return_of(0, 0), return_of(1, 0)], "those of the first four steps"


class Learner:
    """A variable container whose learner has gone on at every pull."""

    def __init__(self, env_steps: list[int]):
        self._env_steps, self.pulls = iter(env_steps), 0

    def pull(self):
        self.pulls += 1
        return Version(self.pulls, next(self._env_steps)), f"params {self.pulls}"


@pytest.mark.parametrize(
    ("env_steps", "start", "expected"),
    [
        ([0, 4, 9, 10, 13, 21, 22, 29, 30, 40], 0, [0, 10, 21, 30, 40]),  # once a period, at the first version in it
        ([0, 5, 10, 40], 10, [10, 40]),
        ([0, 41], 0, [0, 41]),
        ([43], 50, [43]),  # resumed at its end: only the last evaluation
    ],
)
def test_it_evaluates_once_a_period_and_at_the_end(env_steps, start, expected):
    act, made, closed = Act(), [], []

    class Closing(CountingEnvironment):
        def close(self):
            closed.append(self)

    def make_environment(version: Version):
        made.append((version, Closing(2)))
        return made[-1][1]

    learner = Learner(env_steps)
    loop = evaluator.run(
        play_agent(), act, make_environment, learner, jax.random.key(0), 4, period=10, max_env_steps=40, due=start
    )
    said = within(60, "the last evaluation", list, loop)
    rows, episodes, params = zip(*(each for each in said if isinstance(each, evaluator.Evaluation)), strict=True)
    assert params == tuple(f"params {row['learner_steps']}" for row in rows), "those that were played"
    assert [row["env_steps"] for row in rows] == expected
    assert [row["learner_steps"] for row in rows] == [env_steps.index(steps) + 1 for steps in expected]
    assert [version.env_steps for version, _ in made] == expected, "each has its own seed, in a resumed run too"
    assert closed == [environment for _, environment in made]
    returns = [return_of(i, n) for i in range(2) for n in range(2)]
    assert returns == [1.0, 36.0, 3.0, 50.0], "whose deviation is not their variance"
    for row, played in zip(rows, episodes, strict=True):
        assert row["episodes"] == 4 and played.returns == returns
        assert row["return_mean"] == 22.5 and row["return_std"] == pytest.approx(21.1009, abs=1e-3)
    each = len(act.keys) // len(expected)
    keys = [set(act.keys[n * each : (n + 1) * each]) for n in range(len(expected))]
    assert all(len(of_one) == 1 for of_one in keys) and len(set.union(*keys)) == len(expected), "each has its own key"


@pytest.mark.parametrize(("cuts_at", "cut"), [(None, 0), (6, 0), (5, 1), (4, 2), (1, 5)])
def test_what_was_cut_is_counted(cuts_at, cut):
    played = Episodes([0] * 5, [0.0] * 5, [1, 2, 3, 4, 5])
    assert evaluator.count_cut(played, cuts_at) == cut


class Exploring(NamedTuple):
    """An agent's memory that holds its last action, as R2D2's does."""

    action: jax.Array


def exploring_agent(shape: tuple[int, ...]) -> Agent:
    """Returns an agent whose greedy action is 0 and whose sampled action is 1; its memory holds its last action."""

    def acting(value):
        def act(params, key, timestep, memory):
            action = jnp.full((len(timestep.first), *shape), value, jnp.int32)
            return action, {}, Exploring(action)

        return act

    fields = dict.fromkeys(Agent._fields, None) | {"act": acting(1), "act_greedily": acting(0)}
    return Agent(**fields | {"acted": lambda memory, action: memory._replace(action=action)})


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("actions", [DiscreteActions(6), FactoredActions((6, 2))])
def test_evaluations_are_greedy_or_sampled_and_err_as_often_as_asked(actions, epsilon, sampled):
    shape = () if isinstance(actions, DiscreteActions) else actions.shape
    act = jax.jit(evaluator.policy(exploring_agent(shape), actions, sampled, epsilon))
    count = 40_000
    timestep = TimeStep(None, None, None, np.zeros(count, bool), None)
    action, _, memory = act(None, jax.random.key(0), timestep, Exploring(jnp.zeros((count, *shape), jnp.int32)))
    np.testing.assert_array_equal(memory.action, action)
    assert action.dtype == jnp.int32
    usual = int(sampled)
    sizes = [6] if shape == () else actions.sizes
    for factor, size in enumerate(sizes):
        chosen = np.asarray(action) if shape == () else np.asarray(action)[:, factor]
        often = np.bincount(chosen, minlength=size) / count
        expected = np.full(size, epsilon / size) + (1 - epsilon) * (np.arange(size) == usual)
        np.testing.assert_allclose(often, expected, atol=0.01)
    if shape:  # all factors of an action are random, or none
        erred = (np.asarray(action) != usual).mean(axis=0)
        both = (np.asarray(action) != usual).all(axis=1).mean()
        np.testing.assert_allclose(both, epsilon * 5 / 6 / 2, atol=0.01)
        np.testing.assert_allclose(erred, epsilon * np.array([5 / 6, 1 / 2]), atol=0.01)
