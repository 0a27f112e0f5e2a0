"""scripts/evaluate --video: a video of the first evaluated episode of any run, or a line where there is none to see."""

import pathlib
import re

import pytest
from PIL import Image

from launchers import evaluate, flags
from runtime import files
from tests.environments.drawn import grey
from tests.launchers.test_best_checkpoint import LSTM, STACKED, learn
from tests.launchers.test_stop_at_return import QUEUE, REPLAY, SERIAL

DRAWN = "gymnasium:tests.environments.drawn:"


def in_place_of_the_environment(env: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"--env={env}" if argument.startswith("--env=") else argument for argument in arguments)


def play(logdir: pathlib.Path, video: pathlib.Path | None, *arguments: str) -> int:
    given = [f"--logdir={logdir}", "--episodes=6", *arguments, *([f"--video={video}"] if video else [])]
    return flags.attempt(evaluate.evaluate, ["evaluate", *given])


def seconds(video: pathlib.Path) -> float:
    with Image.open(video) as gif:
        durations = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
    return sum(durations) / 1000


@pytest.mark.parametrize(
    ("arguments", "per_second"),
    [
        (QUEUE, 30),
        (LSTM, 30),
        (REPLAY, 30),
        ((*STACKED, "--population_mode=vmap"), 30),
        (in_place_of_the_environment("CartPole-v1,gymnasium:CartPole-v1", QUEUE), 30),
        (in_place_of_the_environment(f"{DRAWN}Sound-v0", QUEUE), 12),
        ((*in_place_of_the_environment(f"{DRAWN}Sound-v0", QUEUE), "--gymnasium_vectorization=async"), 12),
    ],
)
def test_the_video_is_of_the_evaluations_first_episode(arguments, per_second, tmp_path, capsys):
    logdir, video = tmp_path / "run", tmp_path / "video.gif"
    learn(logdir, *arguments, *SERIAL, steps=300)
    capsys.readouterr()
    for checkpoint in ("newest", "best"):
        assert play(logdir, None, f"--checkpoint={checkpoint}") == 0
        plain = capsys.readouterr().out
        assert play(logdir, video, f"--checkpoint={checkpoint}") == 0
        *others, last = capsys.readouterr().out.splitlines()
        assert others == plain.splitlines(), "it is the same evaluation"
        said = re.fullmatch(rf"{re.escape(str(video))} shows the first episode: length=(\d+) return=(\S+)", last)
        assert said, last
        length = int(said[1])
        # A GIF's frames last whole hundredths of a second.
        assert seconds(video) == pytest.approx((length + 1) * (100 // per_second) / 100)
        if "--env=CartPole-v1" in arguments:
            assert float(said[2]) == length
        if any("Sound" in argument for argument in arguments):
            with Image.open(video) as gif:
                assert gif.size == grey(0).shape[1::-1] and gif.n_frames == length + 1 in (4, 5, 6, 7)


def test_one_episode_is_the_one_that_is_evaluated(tmp_path, capsys):
    learn(tmp_path, *QUEUE, *SERIAL, steps=300)
    capsys.readouterr()
    assert play(tmp_path, tmp_path / "video.gif", "--episodes=1") == 0
    result, shown = capsys.readouterr().out.splitlines()
    assert re.search(r"return_mean=(\S+)", result)[1] == re.search(r"return=(\S+)", shown)[1]


@pytest.mark.parametrize(
    ("env", "name", "words"),
    [
        ("CartPole-v1", "video.avi", "must end as a video does"),
        ("CartPole-v1", "nowhere/video.gif", "there is no folder"),
        ("Catch-v0", "video.gif", "it cannot be drawn (RuntimeError: render not implemented"),
        (f"{DRAWN}Raises-v0", "video.gif", "it cannot be drawn (RuntimeError: no paint is left"),
        (f"{DRAWN}Undrawn-v0", "video.gif", "render_mode"),
        ("gymnasium:CartPole-v1", "video.gif", "pygame is not installed"),
    ],
)
def test_what_cannot_be_shown_is_one_line(env, name, words, tmp_path, capsys):
    logdir, video = tmp_path / "run", tmp_path / name
    learn(logdir, *in_place_of_the_environment(env, QUEUE), *SERIAL, steps=300)
    capsys.readouterr()
    assert play(logdir, video) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ") and words in line and printed.out == "" and not video.exists()
    assert play(logdir, None) == 0


def test_a_video_that_cannot_be_written_loses_no_evaluation(tmp_path, capsys, monkeypatch):
    """A folder in its place is found before anything is played. What comes in its way later costs the video alone."""
    learn(tmp_path / "run", *QUEUE, *SERIAL, steps=300)
    (tmp_path / "video.gif").mkdir()
    capsys.readouterr()
    assert play(tmp_path / "run", tmp_path / "video.gif") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "cannot be written: it is a folder" in printed.err
    monkeypatch.setattr(files, "check", lambda path: None)
    assert play(tmp_path / "run", tmp_path / "video.gif") == 2
    printed = capsys.readouterr()
    assert "return_mean=" in printed.out and "cannot be written" in printed.err
