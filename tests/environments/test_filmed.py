"""Pictures of the first environment's first episode: of all its steps, or in a long one at even distances. Drawing does
not change how the environment is played."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

import environments
from environments import filmed
from environments.counting import CountingEnvironment, episode_length
from environments.environment import EnvironmentFailure
from environments.filmed import Filmed
from tests.environments.drawn import WAYS, grey
from tests.environments.test_contract import play, random_policy
from tests.launchers import command_line

MODULE = "gymnasium:tests.environments.drawn:"


class Counted(CountingEnvironment):
    """A counting environment whose pictures are as bright as the number of steps made."""

    steps = 0
    steps_per_second = 8.0

    def _step(self, action, resets):
        self.steps += 1
        return super()._step(action, resets)

    def draw(self):
        return np.full((2, 5, 3), self.steps, np.uint8)


def zeros(environment) -> np.ndarray:
    return np.zeros((environment.num_envs, *getattr(environment.spec.actions, "shape", ())), np.int32)


def film(environment, rows: int) -> list[int]:
    """Takes `rows` steps and returns the number that each picture is filled with."""
    environment.reset()
    for _ in range(rows):
        environment.step(zeros(environment))
    assert all((picture == picture.flat[0]).all() for picture in environment.pictures)
    return [int(picture.flat[0]) for picture in environment.pictures]


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("rows", [0, 1, 2, 20])
def test_the_first_episode_is_drawn_from_its_first_observation_to_its_last(num_envs, rows):
    length = episode_length(0, 0)
    assert film(Filmed(Counted(num_envs)), rows) == list(range(min(rows, length) + 1))


class Long(Counted):
    """A counting environment whose episodes have `length` steps."""

    length = 1

    def _step(self, action, resets):
        observation, reward, *_ = super()._step(action, resets)
        over = np.full(self.num_envs, self.steps == self.length)
        return observation, reward, over, ~over & False, over


@pytest.mark.parametrize("most", [1, 2, 3, 10, 64])
@pytest.mark.parametrize("length", [1, 2, 7, 63, 64, 65, 200])
def test_of_a_long_episode_pictures_are_kept_at_even_distances(most, length, monkeypatch):
    environment = Filmed(Long(2))
    monkeypatch.setattr(filmed, "MOST_BYTES", most * 2 * 5 * 3)
    monkeypatch.setattr(Long, "length", length)
    kept = film(environment, length)
    assert kept[0] == 0 and kept[-1] == length and len(kept) <= max(2, most) + 1
    every = {after - before for before, after in itertools.pairwise(kept[:-1])}
    assert len(every) <= 1 and kept[-1] - kept[-2] <= max(every, default=length)
    step = next(iter(every), environment._every)
    assert environment.per_second == 8.0 / step and step & (step - 1) == 0
    assert len(kept) > min(most, length) / 2 - 1, "no more is left out than must be"


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_gymnasiums_are_drawn_as_they_draw_themselves(vectorization):
    for seed in range(4):
        environment = Filmed(environments.make(f"{MODULE}Sound-v0", 3, seed, vectorization=vectorization, drawn=True))
        length = 3 + seed % 4
        assert film(environment, 12) == [10 * time for time in range(length + 1)]
        assert environment.pictures[0].shape == grey(0).shape and environment.per_second == 12.0
        environment.close()


ALL = (
    "CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MaskedCartPole-v1", "binned:5:Pendulum-v1",
    "LunarLander-v3", "Pong-v5", "MiniGrid-MemoryS7-v0", f"CartPole-v1,{MODULE}Sound-v0", f"{MODULE}Sound-v0",
    pytest.param("Basic-v1", marks=pytest.mark.vizdoom),
)  # fmt: skip
ALL_ALONE = [name for name in ALL if not (isinstance(name, str) and "," in name)]  # names of one task each


@pytest.mark.parametrize("name", ALL_ALONE)
def test_what_is_drawn_is_played_as_what_is_not(name):
    rows = []
    for drawn in (False, True):
        environment = environments.make(name, 3, 1, evaluation=True, max_steps=30, drawn=drawn)
        environment = Filmed(environment) if drawn else environment
        rows.append(play(environment, random_policy(environment.spec), 40))
        if drawn:
            pictures = environment.pictures
            shapes = {(picture.shape, picture.dtype.name) for picture in pictures}
            ((shape, dtype),) = shapes
            assert dtype == "uint8" and len(shape) == 3 and shape[2] == 3 and min(shape[:2]) >= 20
            first_ends = np.flatnonzero(rows[-1][0].last[:, 0])[0]
            assert len(pictures) == first_ends + 1
            assert (pictures[0] != pictures[-1]).any(), "it moves"
            assert 1.0 < environment.per_second <= 60.0
        environment.close()
    (plain, plain_episodes), (drawn_steps, drawn_episodes) = rows
    for one, other in zip(plain, drawn_steps, strict=True):
        np.testing.assert_array_equal(one, other)
    assert plain_episodes == drawn_episodes


def test_of_several_tasks_the_first_is_drawn():
    names = f"{MODULE}Sound-v0,{MODULE}Growing-v0"
    environment = Filmed(environments.make(names, 4, 0, drawn=True))
    kept = film(environment, 10)
    assert kept == [10 * time for time in range(len(kept))] and 4 <= len(kept) <= 7
    environment.close()


@pytest.mark.parametrize("name", ["Counting-v0", "Catch-v0", *(f"{MODULE}{way}-v0" for way in WAYS if way != "Sound")])
def test_what_cannot_be_drawn_is_one_line(name):
    environment = Filmed(environments.make(name, 2, 0, drawn=True))
    with pytest.raises(EnvironmentFailure, match=r"cannot be drawn|is drawn as") as error:
        film(environment, 5)
    assert "\n" not in str(error.value) and name in str(error.value)
    assert "no paint is left" in str(error.value) or "Raises" not in name
    environment.close()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "Sound"])
def test_if_that_is_no_failure_it_is_played_on_as_ever(way):
    plain = environments.make(f"{MODULE}{way}-v0", 2, 0)
    environment = Filmed(environments.make(f"{MODULE}{way}-v0", 2, 0, drawn=True), strict=False)
    rows = [play(each, random_policy(each.spec), 20) for each in (plain, environment)]
    for one, other in zip(rows[0][0], rows[1][0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert rows[0][1] == rows[1][1] and "drawn" in str(environment.failure)
    environment.close()


def test_who_takes_no_render_mode_is_one_line():
    with pytest.raises(EnvironmentFailure, match=r"Undrawn-v0, to be drawn, cannot be made: .*render_mode"):
        environments.make(f"{MODULE}Undrawn-v0", 2, 0, drawn=True)
    environments.make(f"{MODULE}Undrawn-v0", 2, 0).close()


PROGRAM = """
import os, sys
import numpy as np
import environments
from environments import filmed
for name in sys.argv[1:]:
    environment = filmed.Filmed(environments.make(name, 2, 0, max_steps=2, drawn=True))
    environment.reset()
    for _ in range(3):
        environment.step(np.ones((2, *environment.spec.actions.shape), np.float32))
    assert len(environment.pictures) == 3 and (environment.pictures[0] != environment.pictures[-1]).any()
    print(name, len(np.unique(environment.pictures[0])), flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not filmed.load_opengl(), reason="this machine has no OpenGL")
def test_mujocos_tasks_are_drawn():
    names = ("HalfCheetah-v4", "CheetahRun-v1")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names], env=command_line.ENVIRONMENT, cwd=command_line.ROOT,
        capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [*names]
    assert all(int(line.split()[1]) > 50 for line in done.stdout.splitlines()), "more than a sky"
