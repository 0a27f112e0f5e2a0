"""ViZDoom: buttons as factors, and the tasks' rewards."""

import contextlib
import pathlib
import time

import numpy as np
import pytest

import environments
from agents.agent import FactoredActions
from environments import vizdoom

DEATHMATCH = (
    *("ATTACK", "SPEED", "STRAFE", "MOVE_RIGHT", "MOVE_LEFT", "MOVE_BACKWARD", "MOVE_FORWARD", "TURN_RIGHT"),
    *("TURN_LEFT", "SELECT_WEAPON1", "SELECT_WEAPON2", "SELECT_NEXT_WEAPON", "SELECT_PREV_WEAPON"),
    "TURN_LEFT_RIGHT_DELTA",
)


def test_buttons_that_oppose_one_another_are_one_factor():
    turn, forward, move = vizdoom.factors(["TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD", "MOVE_LEFT", "MOVE_RIGHT"])
    np.testing.assert_array_equal(turn.buttons, [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(forward.buttons, [[0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(move.buttons, [[0, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])


def test_every_button_has_its_factor_and_few_actions_press_one():
    factors = vizdoom.factors(list(DEATHMATCH))
    assert [len(f.buttons) for f in factors] == [2, 2, 2, 3, 3, 3, 3, 3, 5]
    pressed = np.concatenate([f.buttons for f in factors])
    assert (np.abs(pressed).max(axis=0) > 0).all()
    np.testing.assert_array_equal(factors[-1].buttons[:, -1], [-10, -5, 0, 5, 10])
    small = vizdoom.small(factors)
    assert small[0] == (0,) * 8 + (2,)
    assert len(set(small)) == len(small) == 1 + 3 * 1 + 3 * 2 + 4, "no weapon is selected"
    effects = np.array([sum(f.buttons[c] for f, c in zip(factors, action, strict=True)) for action in small])
    assert not effects[0].any() and (np.count_nonzero(effects[1:], axis=1) == 1).all()


@pytest.mark.vizdoom
@pytest.mark.parametrize(
    ("name", "sizes", "steps"),
    [
        ("Basic-v1", (3, 2), 75),
        ("MyWayHome-v1", (3, 2, 3), 525),
        ("Deathmatch-v1", (2, 2, 2, 3, 3, 3, 7, 3, 5, 5, 5), 1050),
    ],
)
def test_spec(name, sizes, steps):
    environment = environments.make(name, 1, seed=0)
    environment.close()
    spec = environment.spec
    assert isinstance(spec.actions, FactoredActions) and spec.actions.sizes == sizes
    assert spec.observation_shape == (84, 84) and spec.observation_dtype == np.uint8
    assert spec.max_episode_steps == steps


def views(name: str, action: tuple[int, ...], steps: int) -> np.ndarray:
    """Returns the frames, int32 [steps, 84, 84], that are seen while one action is repeated from the same start."""
    environment = environments.make(name, 1, seed=0)
    environment.reset()
    seen = [environment.step(np.array([action])).observation[0].astype(np.int32) for _ in range(steps)]
    environment.close()
    return np.stack(seen)


@pytest.mark.vizdoom
def test_factors_act_and_act_at_once():
    """Standing, turning either way, walking, and turning while walking: five views, each unlike the others."""
    ends = [views("MyWayHome-v1", action, 10)[-1] for action in ((0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0), (1, 1, 0))]
    for i, one in enumerate(ends):
        for other in ends[:i]:
            assert np.abs(one - other).mean() > 1
    np.testing.assert_array_equal(ends[0], views("MyWayHome-v1", (0, 0, 0), 10)[-1])


@pytest.mark.vizdoom
def test_basic_pays_for_time_shots_and_the_kill():
    """A tic pays -1, a shot -5, and the kill 106. The kill ends the episode, which is otherwise truncated."""
    environment = environments.make("Basic-v1", 4, seed=0)
    environment.reset()
    rng, lasts = np.random.default_rng(0), {0.0: 0, 1.0: 0}
    for row in range(150):
        # Environments 0 and 1 shoot and move, 2 only shoots, 3 does nothing.
        action = rng.integers((3, 2), size=(4, 2)) * np.array([[1, 1], [1, 1], [0, 1], [0, 0]])
        timestep = environment.step(action)
        killed = timestep.last & (timestep.discount == 0)
        assert (timestep.reward[killed] == 101 - 4).all()
        assert np.isin(timestep.reward[~timestep.first & ~killed], (-4, -9)).all()
        assert timestep.reward[3] == (0 if timestep.first[3] else -4)
        assert timestep.last[3] == (row % 76 == 74) and (timestep.discount[3] == 1)
        for discount in timestep.discount[timestep.last]:
            lasts[float(discount)] += 1
    episodes = environment.finished()
    environment.close()
    assert lasts[0.0] > 0 and lasts[1.0] > 0
    assert episodes.returns[episodes.environments.index(3)] == -300


@pytest.mark.vizdoom
def test_health_gathering_pays_for_life_and_takes_for_death():
    """The floor is acid: a player that stands still dies within 525 steps."""
    environment = environments.make("HealthGathering-v1", 1, seed=0)
    timestep = environment.reset()
    while not timestep.last[0]:
        timestep = environment.step(np.zeros((1, 2), np.int32))
    (episode_return,), (length,) = environment.finished()[1:]
    environment.close()
    assert length < 525 and timestep.discount[0] == 0 and timestep.reward[0] == 4 - 100
    assert episode_return == 4 * length - 100


@pytest.mark.vizdoom
def test_a_corridor_is_paid_by_the_way():
    environment = environments.make("DeadlyCorridor-v1", 1, seed=0)
    environment.reset()
    forward = [environment.step(np.array([[0, 0, 1, 0]])).reward[0] for _ in range(4)]
    backward = [environment.step(np.array([[0, 0, 2, 0]])).reward[0] for _ in range(4)]
    environment.close()
    actions = environment.spec.actions
    assert isinstance(actions, FactoredActions) and actions.sizes == (3, 2, 3, 3)
    assert sum(forward) > 10 and min(backward) < 0


def test_how_an_episode_ended_is_told_from_the_steps_before():
    corridor, rocket = vizdoom.SCENARIOS["DeadlyCorridor-v1"], vizdoom.SCENARIOS["PredictPosition-v1"]
    way = np.array([900.0, 1200.0])
    np.testing.assert_array_equal(corridor.succeeded(corridor.measure(way, {}, np.array([35.0, 60.0]))), [False, True])
    steps = np.zeros(2)
    for row in range(12):  # environment 0 fires at once, environment 1 four steps later
        steps = rocket.measure(steps, {"info:AMMO5": np.array([0.0, float(row < 4)])}, np.zeros(2))
    np.testing.assert_array_equal(rocket.succeeded(steps), [False, True])


@pytest.mark.vizdoom
def test_a_task_whose_rewards_are_not_known_is_refused():
    with pytest.raises(ValueError, match=r"^the rewards of Cig-v1 are not known to Shoal: of ViZDoom it has Basic-v1,"):
        environments.make("Cig-v1", 1, seed=0)


def games() -> int:
    """Counts the children of this process that are games of ViZDoom."""
    count = 0
    for thread in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread, or the game, has just ended
            children = (thread / "children").read_text().split()
            count += sum("vizdoom" in pathlib.Path(f"/proc/{child}/comm").read_text() for child in children)
    return count


@pytest.mark.vizdoom
def test_no_game_outlives_its_environment():
    before = games()
    environment = environments.make("Basic-v1", 2, 0)
    environment.reset()
    assert games() == before + 2
    environment.close()
    for _ in range(100):
        if games() == before:
            return
        time.sleep(0.1)
    pytest.fail(f"waited 10 s in vain for {games() - before} games to end after close()")
