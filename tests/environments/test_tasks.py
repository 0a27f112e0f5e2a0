"""Several tasks in one batch: which environment has which task, and which tasks cannot be put together."""

import numpy as np
import pytest

import environments
from agents.agent import DiscreteActions, EnvironmentSpec
from environments.counting import CountingEnvironment
from environments.tasks import Tasks
from runtime.metrics import return_means


def counting(limits: dict[str, int | None] | None = None):
    """Returns a maker of CountingEnvironments. Task t's environments observe the numbers 100 t, 100 t + 1, ...;
    `limits` maps a task to its max_episode_steps, which is 5 by default."""

    def make(task: str, count: int, seed: int) -> CountingEnvironment:
        environment = CountingEnvironment(count, first_environment=100 * int(task))
        limit = (limits or {}).get(task, 5)
        environment.spec = EnvironmentSpec((3,), np.dtype(np.float32), DiscreteActions(2), max_episode_steps=limit)
        return environment

    return make


def test_environment_i_has_task_i_mod_n():
    """Each environment gives the same stream as in a batch of its task alone."""
    together = Tasks(["1", "2", "3"], 6, 0, counting())
    apart = [CountingEnvironment(2, first_environment=100 * task) for task in (1, 2, 3)]
    assert together.spec.num_tasks == 3
    timestep, parts = together.reset(), [environment.reset() for environment in apart]
    for _ in range(12):
        for i in range(6):
            for whole, part in zip(timestep, parts[i % 3], strict=True):
                np.testing.assert_array_equal(whole[i], part[i // 3])
        action = np.zeros(6, np.int32)
        timestep, parts = together.step(action), [environment.step(action[:2]) for environment in apart]
    finished = together.finished()
    for task, environment in enumerate(apart):
        expected = environment.finished()
        mine = [i for i, index in enumerate(finished.environments) if index % 3 == task]
        assert [finished.environments[i] // 3 for i in mine] == expected.environments
        assert [finished.returns[i] for i in mine] == expected.returns


def test_actions_go_to_their_task():
    """Environments 0 and 3 are pushed left and 1 and 2 right, whatever their tasks."""
    environment = environments.make("CartPole-v1,gymnasium:CartPole-v1", 4, seed=0)
    before = environment.reset().observation
    after = environment.step(np.array([0, 1, 1, 0])).observation
    environment.close()
    np.testing.assert_array_equal(np.sign(after - before)[:, 1], [-1, 1, 1, -1])


def test_tasks_have_seeds_of_their_own():
    environment = environments.make("gymnasium:CartPole-v1,gymnasium:gymnasium:CartPole-v1", 4, seed=0)
    observation = environment.reset().observation
    environment.close()
    assert len(np.unique(observation, axis=0)) == 4


@pytest.mark.parametrize(("limits", "expected"), [((5, 9), 9), ((5, None), None)])
def test_the_longest_episode_bounds_all(limits, expected):
    tasks = Tasks(["1", "2"], 2, 0, counting(dict(zip(("1", "2"), limits, strict=True))))
    assert tasks.spec.max_episode_steps == expected


@pytest.mark.parametrize(
    ("name", "num_envs", "message"),
    [
        ("CartPole-v1,Catch-v0", 2, "same observations: CartPole-v1 has float32 \\(4,\\), Catch-v0 has"),
        ("CartPole-v1,Acrobot-v1", 2, "same observations"),
        ("binned:5:Pendulum-v1,binned:3:gymnasium:Pendulum-v1", 2, "same actions: binned:5:Pendulum-v1 has Factored"),
        ("CartPole-v1,gymnasium:CartPole-v1", 3, "3 environments are not a multiple of the 2 tasks.*--envs_per_actor"),
        ("CartPole-v1,CartPole-v1", 2, "each task once"),
        ("CartPole-v1,", 2, "each task once"),
        ("CartPole-v1,CartPole-v9", 2, "unknown environment 'CartPole-v9'"),
    ],
)
def test_what_does_not_go_together_is_refused(name, num_envs, message):
    with pytest.raises(ValueError, match=message) as error:
        environments.make(name, num_envs, seed=0)
    assert "\n" not in str(error.value)


def test_returns_by_task():
    means = return_means(["A", "B", "C"], np.array([0, 1, 3, 4]) % 3, [1.0, 2.0, 3.0, 6.0])
    assert means["return_mean_A"] == 2.0 and means["return_mean_B"] == 4.0 and np.isnan(means["return_mean_C"])
    assert return_means(["A"], [0, 1], [1.0, 2.0]) == {}
