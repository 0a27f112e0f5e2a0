"""scripts/train --video_period: videos of some evaluations, whose results they do not change."""

import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from environments import filmed
from launchers import flags, role, train
from runtime import metrics
from tests.environments.drawn import grey
from tests.launchers import command_line
from tests.launchers.test_best_checkpoint import STACKED, THREADS, learn
from tests.launchers.test_evaluate_video import DRAWN, in_place_of_the_environment
from tests.launchers.test_stop_at_return import QUEUE, REPLAY, SERIAL


def check(logdir: pathlib.Path, period: int) -> list[pathlib.Path]:
    """Asserts that every `period`-th evaluation has a video, and no other. Returns the paths of the videos."""
    evaluations = [int(row["env_steps"]) for row in metrics.read(logdir / "evaluator.csv")]
    expected = [logdir / "videos" / f"env_steps_{steps}.gif" for steps in evaluations[period - 1 :: period]]
    assert sorted((logdir / "videos").glob("*")) == sorted(expected) and expected
    for path in expected:
        with Image.open(path) as video:
            assert video.format == "GIF" and video.n_frames >= 2 and min(video.size) >= 20
    return expected


def rows(logdir: pathlib.Path) -> list[dict[str, float]]:
    return [row | {"wall_seconds": 0.0} for row in metrics.read(logdir / "evaluator.csv")]


@pytest.mark.parametrize(
    ("arguments", "period"),
    [
        (QUEUE, 1),
        (QUEUE, 2),
        (REPLAY, 3),
        ((*STACKED, "--population_mode=vmap"), 2),
        (in_place_of_the_environment("CartPole-v1,gymnasium:CartPole-v1", QUEUE), 2),
    ],
)
def test_every_so_manyth_evaluation_has_one_and_all_are_as_without(arguments, period, tmp_path):
    learn(tmp_path / "without", *arguments, *SERIAL, steps=800)
    learn(tmp_path / "with", *arguments, *SERIAL, f"--video_period={period}", steps=800)
    check(tmp_path / "with", period)
    assert not (tmp_path / "without" / "videos").exists()
    assert rows(tmp_path / "with") == rows(tmp_path / "without")
    with np.load(tmp_path / "with" / "best.npz") as one, np.load(tmp_path / "without" / "best.npz") as other:
        assert all(np.array_equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_it_is_of_the_first_episode(vectorization, tmp_path):
    arguments = (*in_place_of_the_environment(f"{DRAWN}Sound-v0", QUEUE), f"--gymnasium_vectorization={vectorization}")
    learn(tmp_path, *arguments, *SERIAL, "--video_period=1", steps=600)
    lengths = set()
    for path in check(tmp_path, 1):
        with Image.open(path) as video:
            assert video.size == grey(0).shape[1::-1] and video.n_frames in (4, 5, 6, 7)
            lengths.add(video.n_frames)
    assert len(lengths) > 1, "no evaluation is like another"


def test_a_resumed_run_counts_on_by_the_period_that_it_is_given(tmp_path):
    learn(tmp_path, *QUEUE, *SERIAL, "--video_period=4", steps=600)
    assert len(rows(tmp_path)) == 3 and not (tmp_path / "videos").exists()
    learn(tmp_path, *QUEUE, *SERIAL, "--video_period=4", steps=1000)
    check(tmp_path, 4)
    learn(tmp_path, *QUEUE, *SERIAL, steps=2000)
    assert len([*(tmp_path / "videos").iterdir()]) == 1 and len(rows(tmp_path)) > 8


def test_each_member_of_a_population_has_its_own(tmp_path):
    # Every evaluation has a video here, because a busy machine may make only one evaluation in a short run.
    learn(tmp_path, *STACKED, *THREADS, "--video_period=1")
    for member in range(2):
        check(tmp_path / f"member_{member}", 1)


# MuJoCo's frames are drawn by this machine's OpenGL, which must be loaded before EnvPool, wherever that is imported.
HARDEST = "HalfCheetah-v4" if filmed.load_opengl() else "Pendulum-v1"


@pytest.mark.parametrize("where", [("--placement=processes", "--carrier=reverb"), THREADS])
def test_wherever_the_evaluator_runs(where, tmp_path):
    pytest.importorskip("reverb") if "--carrier=reverb" in where else None
    task = (*in_place_of_the_environment(HARDEST, REPLAY), "--max_env_steps=300", "--eval_max_steps=5")
    command = [sys.executable, "-m", "launchers.train", f"--logdir={tmp_path}", *task, *where, "--video_period=1"]
    code, output = command_line.end(command)
    assert code == 0, output
    check(tmp_path, 1)


CANNOT = [
    ("Catch-v0", "it cannot be drawn (RuntimeError: render not implemented"),
    (f"{DRAWN}Raises-v0", "it cannot be drawn (RuntimeError: no paint is left"),
    (f"{DRAWN}Flat-v0", "it is drawn as uint8 (20, 30)"),
    (f"{DRAWN}Undrawn-v0", "render_mode"),
    ("gymnasium:CartPole-v1", "pygame is not installed"),
    ("Counting-v0", "it has no pictures"),
]


@pytest.mark.parametrize(("env", "words"), CANNOT)
@pytest.mark.parametrize("where", [SERIAL, THREADS, ("--placement=processes", "--carrier=reverb")])
def test_what_cannot_be_drawn_is_one_line_before_anything_is_there(env, words, where, tmp_path, capsys):
    pytest.importorskip("reverb") if "--carrier=reverb" in where else None
    arguments = [*in_place_of_the_environment(env, QUEUE), *where, "--video_period=1"]
    assert flags.attempt(train.train, ["train", f"--logdir={tmp_path / 'run'}", *arguments]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: --video_period=1: ") and words in line and printed.out == ""
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(("env", "words"), CANNOT[:2])
def test_an_evaluator_of_its_own_says_so_too(env, words, tmp_path, capsys):
    pytest.importorskip("reverb")
    arguments = [*in_place_of_the_environment(env, QUEUE), "--carrier=reverb", "--video_period=1"]
    given = ["role", "--role=evaluator", f"--logdir={tmp_path / 'run'}", "--replay=localhost:1", *arguments]
    assert flags.attempt(role.role, given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --video_period=1: ") and words in line and [*tmp_path.iterdir()] == []


def test_the_mujoco_of_a_machine_without_opengl_is_one_line(tmp_path, capsys, monkeypatch):
    from environments import envpool

    monkeypatch.setattr(envpool, "OPENGL", False)
    arguments = [*in_place_of_the_environment("HalfCheetah-v4", REPLAY), *SERIAL, "--video_period=1"]
    assert flags.attempt(train.train, ["train", f"--logdir={tmp_path / 'run'}", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --video_period=1: ") and "libEGL" in line and [*tmp_path.iterdir()] == []


def test_a_run_outlives_what_cannot_be_drawn_later_on(tmp_path, caplog):
    arguments = in_place_of_the_environment(f"{DRAWN}Growing-v0", QUEUE)
    learn(tmp_path / "without", *arguments, *SERIAL, steps=600)
    learn(tmp_path / "with", *arguments, *SERIAL, "--video_period=1", steps=600)
    assert rows(tmp_path / "with") == rows(tmp_path / "without")
    assert caplog.text.count("it is drawn as") == len(rows(tmp_path / "with")) == 3
    assert not (tmp_path / "with" / "videos").exists()


def test_a_run_outlives_a_video_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "videos").write_text("in its way")
    learn(tmp_path, *QUEUE, *SERIAL, "--video_period=1", steps=600)
    assert len(rows(tmp_path)) == 3 and caplog.text.count(".gif: ") == 3
