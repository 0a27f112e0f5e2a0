"""The contract of Environment, held by every backend: firsts, lasts, discounts, rewards and finished episodes."""

import itertools
import textwrap
from collections.abc import Callable

import envpool
import numpy as np
import pytest

import environments
from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec, FactoredActions, TimeStep

BASIC = pytest.param("Basic-v1", marks=pytest.mark.vizdoom)

Policy = Callable[[np.ndarray], np.ndarray]  # observations [B, ...] -> actions [B, ...]


def random_policy(spec: EnvironmentSpec, seed: int = 0) -> Policy:
    rng = np.random.default_rng(seed)
    if isinstance(spec.actions, DiscreteActions):
        return lambda o: rng.integers(spec.actions.num_actions, size=len(o)).astype(np.int32)
    if isinstance(spec.actions, FactoredActions):
        sizes = spec.actions.sizes
        return lambda o: rng.integers(sizes, size=(len(o), len(sizes))).astype(np.int32)
    low, high = spec.actions.low, spec.actions.high
    return lambda o: rng.uniform(low, high, (len(o), *low.shape)).astype(np.float32)


def balance(observation: np.ndarray) -> np.ndarray:
    """Keeps CartPole's pole up for its 500 steps: push towards where it falls."""
    return (observation[:, 2] + observation[:, 3] > 0).astype(np.int32)


def play(environment, policy: Policy, rows: int) -> tuple[TimeStep, list[tuple[int, float, int]]]:
    """Returns TimeSteps stacked to [rows, B, ...], and the (environment, return, length) that `finished` returned."""
    timesteps, episodes = [environment.reset()], []
    for _ in range(rows - 1):
        timesteps.append(environment.step(policy(timesteps[-1].observation)))
        episodes += list(zip(*environment.finished(), strict=True))
    stacked = TimeStep(*(np.stack(column) for column in zip(*timesteps, strict=True)))
    return stacked, episodes


def make_and_play(name: str, rows: int, num_envs: int = 3, seed: int = 1, policy: Policy | None = None, **options):
    environment = environments.make(name, num_envs, seed, **options)
    timesteps, episodes = play(environment, policy or random_policy(environment.spec), rows)
    environment.close()
    return environment.spec, timesteps, episodes


def naive_episodes(reward: np.ndarray, first: np.ndarray, last: np.ndarray) -> list[tuple[int, float, int]]:
    """Returns (environment, return, length) of each complete episode of [rows, B], in the order of their ends."""
    episodes = []
    for row, environment in itertools.product(range(len(last)), range(last.shape[1])):
        if last[row, environment]:
            start = max(t for t in range(row) if first[t, environment])
            episode_return = sum(float(r) for r in reward[start + 1 : row + 1, environment])
            episodes.append((environment, episode_return, row - start))
    return episodes


def check_contract(spec: EnvironmentSpec, timesteps: TimeStep, episodes, rows: int, num_envs: int) -> None:
    observation, reward, discount, first, last = timesteps
    assert observation.shape == (rows, num_envs, *spec.observation_shape)
    assert observation.dtype == spec.observation_dtype
    assert (reward.dtype, discount.dtype, first.dtype, last.dtype) == (np.float32, np.float32, bool, bool)
    assert reward.shape == discount.shape == first.shape == last.shape == (rows, num_envs)

    assert first[0].all() and not last[0].any(), "reset opens every episode"
    np.testing.assert_array_equal(first[1:], last[:-1], "an episode opens exactly where the row before closed one")
    assert (reward[first] == 0).all(), "no reward belongs to the action that was thrown away"
    assert set(np.unique(discount)) <= {0.0, 1.0}
    assert (discount[~last] == 1).all(), "only a last row can be terminal"
    expected = naive_episodes(reward, first, last)
    assert [e[::2] for e in episodes] == [e[::2] for e in expected]
    np.testing.assert_allclose([e[1] for e in episodes], [e[1] for e in expected], rtol=1e-4)


# Name, rows to play, and the discounts with which episodes end in that time.
CASES = [
    ("CartPole-v1", 200, {0.0}),
    ("MaskedCartPole-v1", 200, {0.0}),
    ("Catch-v0", 60, {0.0}),
    ("Pendulum-v1", 450, {1.0}),
    ("CheetahRun-v1", 1010, {1.0}),
    ("Pong-v5", 100, set()),
    ("MiniGrid-MemoryS7-v0", 400, {0.0, 1.0}),
    ("gymnasium:CartPole-v1", 200, {0.0}),
    ("gymnasium:Pendulum-v1", 450, {1.0}),
    ("binned:5:Pendulum-v1", 450, {1.0}),
    pytest.param("Basic-v1", 90, {0.0}, marks=pytest.mark.vizdoom),
    pytest.param("D1Basic-v1,HealthGathering-v1", 30, set(), marks=pytest.mark.vizdoom),
    ("CartPole-v1,gymnasium:CartPole-v1", 200, {0.0}),
    ("binned:5:Pendulum-v1,binned:5:gymnasium:Pendulum-v1", 450, {1.0}),
]


@pytest.mark.parametrize(("name", "rows", "ends"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_random_play_keeps_the_contract(name, rows, ends):
    num_envs = 4 if "," in name else 3
    spec, timesteps, episodes = make_and_play(name, rows, num_envs, evaluation=True)
    check_contract(spec, timesteps, episodes, rows, num_envs)
    assert set(np.unique(timesteps.discount[timesteps.last])) == ends
    assert bool(episodes) == bool(ends)


@pytest.mark.parametrize("name", ["CartPole-v1", "gymnasium:CartPole-v1"])
def test_cartpole_balanced_is_truncated_after_500_steps(name):
    spec, timesteps, episodes = make_and_play(name, 1010, num_envs=2, policy=balance)
    check_contract(spec, timesteps, episodes, 1010, 2)
    assert sorted(episodes) == [(0, 500.0, 500), (0, 500.0, 500), (1, 500.0, 500), (1, 500.0, 500)]
    assert (timesteps.discount == 1).all(), "a time limit is no terminal state"
    assert np.flatnonzero(timesteps.last[:, 0]).tolist() == [500, 1001]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("CartPole-v1", 500),
        ("MaskedCartPole-v1", 500),
        ("gymnasium:CartPole-v1", 500),
        ("gymnasium:CliffWalking-v1", None),
        ("binned:3:Pendulum-v1", 200),
        ("CartPole-v1,gymnasium:CartPole-v1", 500),
        ("Pong-v5", 27_000),
        pytest.param("HealthGathering-v1", 525, marks=pytest.mark.vizdoom),
        pytest.param("D1Basic-v1", 525, marks=pytest.mark.vizdoom),
    ],
)
def test_an_episode_that_goes_on_is_truncated_after_max_steps(name, own):
    """None of these environments ends an episode within 6 steps; a limit beyond its own changes nothing."""

    def still(observation):
        actions = spec.actions
        return np.zeros((len(observation), *getattr(actions, "shape", ())), np.int32)

    for max_steps in (None, 10**6, 6):
        environment = environments.make(name, 2, seed=1, max_steps=max_steps)
        spec = environment.spec
        limits = {each for each in (own, max_steps) if each is not None}
        assert spec.max_episode_steps == min(limits, default=None)
        if max_steps == 6:
            timesteps, episodes = play(environment, still, 15)
            check_contract(spec, timesteps, episodes, 15, 2)
            assert [length for _, _, length in episodes] == [6] * 4
            assert (timesteps.discount == 1).all(), "nothing has ended: whoever learns from it looks on"
        environment.close()


@pytest.mark.parametrize("name", ["CartPole-v1", "gymnasium:CartPole-v1", "Pong-v5", "CheetahRun-v1", BASIC])
def test_observations_are_not_overwritten_later(name):
    environment = environments.make(name, 2, seed=0)
    policy, kept, copies = random_policy(environment.spec), [], []
    timestep = environment.reset()
    for _ in range(20):
        kept.append(timestep)
        copies.append([np.copy(field) for field in timestep])
        timestep = environment.step(policy(timestep.observation))
    environment.close()
    for timestep, copy in zip(kept, copies, strict=True):
        for field, expected in zip(timestep, copy, strict=True):
            np.testing.assert_array_equal(field, expected)


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "Catch-v0", "CheetahRun-v1", "Pong-v5", BASIC, "gymnasium:CartPole-v1"]
)
def test_the_seed_decides_the_trajectory(name):
    rows = 60  # Catch: a few episodes; Pong: past the up to 30 no-ops that make its start random

    def trajectory(seed):
        return make_and_play(name, rows, num_envs=2, seed=seed)[1]

    for field, again in zip(trajectory(7), trajectory(7), strict=True):
        np.testing.assert_array_equal(field, again)
    assert not np.array_equal(trajectory(7).observation, trajectory(8).observation)


@pytest.mark.parametrize("name", ["CartPole-v1", "CheetahRun-v1", "Catch-v0", "gymnasium:CartPole-v1"])
def test_environments_of_one_batch_differ(name):
    observation = make_and_play(name, 40, num_envs=4)[1].observation
    for a, b in itertools.combinations(range(4), 2):
        assert not np.array_equal(observation[:, a], observation[:, b])


def test_catch_rewards_only_the_end():
    spec, timesteps, episodes = make_and_play("Catch-v0", 200)
    assert spec.observation_shape == (10, 5) and spec.actions == DiscreteActions(3)
    assert {length for _, _, length in episodes} == {9}
    assert {episode_return for _, episode_return, _ in episodes} == {-1.0, 1.0}
    assert (timesteps.reward[~timesteps.last] == 0).all()


def test_masked_cartpole_shows_positions_only():
    spec, masked, masked_episodes = make_and_play("MaskedCartPole-v1", 100)
    _, whole, episodes = make_and_play("CartPole-v1", 100)
    assert spec.observation_shape == (2,)
    np.testing.assert_array_equal(masked.observation, whole.observation[..., [0, 2]])
    for a, b in zip(masked[1:], whole[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert masked_episodes == episodes != []


def test_binned_actions_are_evenly_spaced_values_of_each_number():
    environment = environments.make("binned:5:CheetahRun-v1", 2, seed=3)
    continuous = environments.make("CheetahRun-v1", 2, seed=3)
    actions = environment.spec.actions
    assert isinstance(actions, FactoredActions) and actions.sizes == (5,) * 6
    centre = (2,) * 6
    assert actions.small[:3] == (centre, (0, *centre[1:]), (4, *centre[1:])) and actions.small[-1] == (*centre[1:], 4)
    assert len(set(actions.small)) == len(actions.small) == 13

    timestep, expected, policy = environment.reset(), continuous.reset(), random_policy(environment.spec)
    for _ in range(20):
        np.testing.assert_array_equal(timestep.observation, expected.observation)
        np.testing.assert_array_equal(timestep.reward, expected.reward)
        action = policy(timestep.observation)
        timestep = environment.step(action)
        expected = continuous.step(np.array([-1.0, -0.5, 0.0, 0.5, 1.0], np.float32)[action])
    environment.close()
    continuous.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("binned:4:Pendulum-v1", r"^'binned:4:Pendulum-v1' is not binned:N:NAME with an odd N"),
        ("binned:1:Pendulum-v1", "odd N from 3 to 4096"),
        ("binned:many:Pendulum-v1", "odd N from 3 to 4096"),
        ("binned:5", "odd N from 3 to 4096"),
        ("binned:5:CartPole-v1", r"^binned:N:NAME needs an environment with continuous actions; use NAME alone$"),
        ("binned:5:Pendulun-v1", "did you mean Pendulum-v1"),
    ],
)
def test_what_cannot_be_binned_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        environments.make(name, 1, seed=0)


def test_a_dict_is_flattened_in_its_keys_order_and_actions_are_bounded():
    spec, timesteps, _ = make_and_play("CheetahRun-v1", 20, num_envs=2, seed=3)
    assert spec.observation_shape == (17,) and spec.observation_dtype == np.float32
    assert isinstance(spec.actions, BoundedActions) and spec.actions.shape == (6,)
    np.testing.assert_array_equal(spec.actions.low, np.full(6, -1, np.float32))
    np.testing.assert_array_equal(spec.actions.high, np.full(6, 1, np.float32))
    pool = envpool.make("CheetahRun-v1", env_type="gymnasium", num_envs=2, seed=3)
    policy, raw = random_policy(spec), pool.reset()[0]
    for observation in timesteps.observation:
        expected = np.concatenate([raw["position"], raw["velocity"]], axis=1).astype(np.float32)
        np.testing.assert_array_equal(observation, expected)
        raw = pool.step(policy(observation).astype(np.float64))[0]
    pool.close()


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_envpool_and_gymnasium_agree_on_the_spec(task):
    pool, gym = (environments.make(prefix + task, 2, seed=0).spec for prefix in ("", "gymnasium:"))
    assert pool.observation_shape == gym.observation_shape
    assert pool.observation_dtype == gym.observation_dtype
    assert type(pool.actions) is type(gym.actions)
    if isinstance(pool.actions, DiscreteActions):
        assert pool.actions == gym.actions
    else:
        np.testing.assert_array_equal(pool.actions.low, gym.actions.low)
        np.testing.assert_array_equal(pool.actions.high, gym.actions.high)


CORRIDOR = """
    import gymnasium
    import numpy as np

    class Corridor(gymnasium.Env):
        \"\"\"Walk right past 3 to the end; the time limit is 5.\"\"\"

        observation_space = gymnasium.spaces.Dict(
            {"z": gymnasium.spaces.Discrete(9), "a": gymnasium.spaces.Box(-9.0, 9.0, (1, 2), np.float64)}
        )
        action_space = gymnasium.spaces.Discrete(2)

        def observe(self):
            return {"z": self.place, "a": np.array([[-self.place, 0.5]])}

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.place = 0
            return self.observe(), {}

        def step(self, action):
            self.place += int(action)
            return self.observe(), 0.25, self.place > 3, False, {}

    gymnasium.register("ShoalCorridor-v0", entry_point=f"{__name__}:Corridor", max_episode_steps=5)
"""


def test_gymnasium_finds_an_environment_in_a_module_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "shoal_corridor.py").write_text(textwrap.dedent(CORRIDOR))
    monkeypatch.syspath_prepend(tmp_path)

    def walk_or_stay(observation):  # environment 0 always walks, environment 1 never
        return np.array([1, 0], np.int32)

    spec, timesteps, episodes = make_and_play("gymnasium:shoal_corridor:ShoalCorridor-v0", 12, 2, policy=walk_or_stay)
    assert (spec.observation_shape, spec.observation_dtype) == ((11,), np.float32)
    check_contract(spec, timesteps, episodes, 12, 2)
    # Keys in sorted order: "a" is (-place, 0.5), "z" is place, one-hot.
    told = [[-p, 0.5, *np.eye(9)[p]] for p in (0, 1, 2, 3, 4, 0)]
    np.testing.assert_array_equal(timesteps.observation[:6, 0], told)
    np.testing.assert_array_equal(timesteps.observation[:, 1], [told[0]] * 12)
    assert episodes == [(0, 1.0, 4), (1, 1.25, 5), (0, 1.0, 4), (1, 1.25, 5)]
    assert timesteps.discount[:, 0].tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1], "terminated"
    assert timesteps.discount[:, 1].tolist() == [1] * 12, "truncated"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Pongg-v5", "Pong-v5"),
        ("cartpole-v1", "CartPole-v1"),
        ("NoSuchThing", "gymnasium:ID"),
        ("gymnasium:CartPol-v1", "CartPole"),
        ("gymnasium:no_such_module:CartPole-v1", "no_such_module"),
    ],
)
def test_an_unknown_environment_is_answered_in_one_line_with_a_hint(name, hint):
    with pytest.raises(ValueError, match=hint) as error:
        environments.make(name, 1, seed=0)
    assert "\n" not in str(error.value)
    assert name.removeprefix("gymnasium:") in str(error.value)
