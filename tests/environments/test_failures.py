"""Whatever breaks in an environment, or cannot be learnt from in what it returns, is reported in one line."""

import signal
import sys
import textwrap
import warnings

import gymnasium
import numpy as np
import pytest

import environments
from environments import spaces
from environments.environment import Interruption
from tests.environments import shaky


def expect_failure(name: str, where: str, steps: int = 0, num_envs: int = 3, **options) -> str:
    """Makes and resets an environment and takes `steps` steps; returns the line of the failure that ends this, which
    must say `where` it was."""
    with pytest.raises(environments.EnvironmentFailure) as failure:
        environment = environments.make(name, num_envs, seed=0, **options)
        timesteps = [environment.reset()]
        for _ in range(steps):
            timesteps.append(environment.step(np.zeros(num_envs, np.int32)))
    line = str(failure.value)
    assert "\n" not in line and line.startswith(f"environment {name} {where}: "), line
    return line


BREAKS = [(place, way) for place in shaky.PLACES for way in shaky.ways(place)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # from Gymnasium, about an environment's first step
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from NumPy: 1e300 is no float32
@pytest.mark.parametrize(("place", "way"), BREAKS, ids=["-".join(each) for each in BREAKS])
def test_an_environment_that_breaks_is_one_line(place, way):
    steps = shaky.PLACES[place]
    where = (
        "cannot be made"
        if place == "constructor"
        else f"failed at its step {steps}"
        if steps
        else "failed at its reset"
    )
    line = expect_failure(f"gymnasium:tests.environments.shaky:{place}-{way}-v0", where, steps)
    if way in shaky.ERRORS:
        assert f": {way}" in line or f"shaky.{way}" in line, line
        assert "(shaky.py, line " in line, line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("place", [place for place in shaky.PLACES if "Elsewhere" not in place])
def test_a_signal_meanwhile_is_no_failure(place, number, monkeypatch):
    """A command that hears signals ends by them, wherever in the environment's code one arrives."""
    monkeypatch.setitem(shaky.ERRORS, "RuntimeError", Interruption(number))
    with pytest.raises(Interruption) as ended:
        environment = environments.make(f"gymnasium:tests.environments.shaky:{place}-RuntimeError-v0", 3, seed=0)
        environment.reset()
        for _ in range(shaky.PLACES[place]):
            environment.step(np.zeros(3, np.int32))
    assert ended.value.args == (number,)


@pytest.mark.parametrize("name", ["CartPole-v1", "MaskedCartPole-v1", "CartPole-v1,gymnasium:CartPole-v1"])
@pytest.mark.parametrize(("part", "what", "value"), [(0, "observation", np.nan), (1, "reward", np.inf)])
def test_the_door_looks_at_whatever_stands_behind_it(name, part, what, value):
    """Not only Gymnasium's environments are checked: EnvPool's C++ can also return a NaN."""
    environment = environments.make(name, 4, seed=0)
    raw = environment._step

    def broken(action, resets):
        result = [np.array(each) for each in raw(action, resets)]
        result[part][2] = value
        return tuple(result)

    environment.reset()
    environment.step(np.zeros(4, np.int32))
    environment._step = broken
    line = f"^environment {name} failed at its step 2: the {what} of environment 2 .* has {value} in it$"
    with pytest.raises(environments.EnvironmentFailure, match=line):
        environment.step(np.zeros(4, np.int32))
    environment.close()


def test_the_largest_numbers_are_finite():
    """They are accepted although their squares are infinite."""
    environment = environments.make("CartPole-v1", 2, seed=0)
    raw = environment._step
    environment._step = lambda action, resets: (np.full((2, 4), 3e38, np.float32), *raw(action, resets)[1:])
    environment.reset()
    assert (environment.step(np.zeros(2, np.int32)).observation == np.float32(3e38)).all()
    environment.close()


def test_a_reward_for_the_action_that_is_thrown_away_is_nobodys():
    """EnvPool returns one for the step after an episode's end; whatever it is, it is ignored."""
    environment = environments.make("Catch-v0", 1, seed=0)
    raw = environment._step

    def step(action, resets):
        observation, reward, *rest = raw(action, resets)
        return observation, np.where(resets, np.float32(np.nan), reward), *rest

    environment._step = step
    environment.reset()
    for _ in range(25):
        assert np.isfinite(environment.step(np.zeros(1, np.int32)).reward).all()
    environment.close()


@pytest.mark.parametrize(
    ("space", "batch"),
    [
        (gymnasium.spaces.Box(0.0, 1.0, (16, 16), np.float32), np.full((2, 16, 16), np.nan, np.float32)),
        (gymnasium.spaces.Box(0.0, 1.0, (16, 16, 3), np.float32), np.full((2, 16, 16, 3), np.inf, np.float32)),
        (gymnasium.spaces.Discrete(4, start=2), np.array([2, 6])),
        (gymnasium.spaces.Discrete(4, start=2), np.array([5, 1])),
        (gymnasium.spaces.MultiDiscrete([2, 3]), np.array([[1, 2], [2, 2]])),
    ],
)
def test_what_no_number_would_show_any_more_is_refused_before(space, batch):
    """A NaN would vanish among bytes, and a choice that does not exist would become all zeros."""
    with pytest.raises(ValueError):
        spaces.observations(space).show(batch)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sys.exit(0)", "SystemExit: 0"),
        ("sys.exit('no licence')", "SystemExit: no licence"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import no_such_simulator", "no_such_simulator"),
        ("1 +", "SyntaxError"),
    ],
)
def test_a_module_that_ends_the_interpreter_is_one_line(line, words, tmp_path, monkeypatch):
    (tmp_path / "shoal_module.py").write_text(f"import sys\n{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shoal_module", raising=False)
    assert words in expect_failure("gymnasium:shoal_module:Anything-v0", "cannot be made")


def test_a_module_that_turns_warnings_and_roundings_into_errors_does_so_for_itself_alone(tmp_path, monkeypatch):
    strict = """
        import warnings
        import gymnasium
        import numpy as np
        from tests.environments.shaky import Shaky

        warnings.simplefilter("error")
        np.seterr(all="raise")

        class Strict(Shaky):
            def reset(self, **kwargs):
                warnings.simplefilter("error")
                np.seterr(all="raise")
                return super().reset(**kwargs)

        gymnasium.register("ShoalStrict-v0", lambda: Strict("nowhere", "never"))
    """
    (tmp_path / "shoal_strict.py").write_text(textwrap.dedent(strict))
    monkeypatch.syspath_prepend(tmp_path)
    before, errors = list(warnings.filters), np.geterr()
    environment = environments.make("gymnasium:shoal_strict:ShoalStrict-v0", 2, seed=0)
    environment.reset()
    assert warnings.filters == before and np.geterr() == errors
    environment.step(np.zeros(2, np.int32))
    environment.close()
