"""Gymnasium's environments in processes of their own: the same episodes, the same failures, and nothing left behind."""

import os
import pathlib
import signal
import subprocess

import numpy as np
import pytest

import environments
from runtime import metrics
from tests.environments.test_contract import check_contract, make_and_play
from tests.environments.test_failures import expect_failure
from tests.launchers import command_line


@pytest.mark.parametrize(("name", "rows"), [("CartPole-v1", 60), ("Pendulum-v1", 210), ("CliffWalking-v1", 30)])
def test_other_processes_play_the_same_episodes(name, rows):
    limit = {"max_steps": 8} if name == "CliffWalking-v1" else {}
    played = [make_and_play(f"gymnasium:{name}", rows, vectorization=each, **limit) for each in ("sync", "async")]
    (_, here, episodes), (spec, there, same) = played
    check_contract(spec, there, same, rows, 3)
    assert same == episodes != []
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)


BREAKS = [
    ("constructor", "RuntimeError"),
    ("constructorElsewhere", "SystemExit"),
    ("constructorElsewhere", "Several"),
    ("reset", "KeyboardInterrupt"),
    ("reset", "nothing"),
    ("step1", "shape"),
    ("step8", "Several"),
    ("step8", "Odd"),
    ("step8", "nan"),
    ("step8", "vectorReward"),
    ("step8", "noResult"),
    ("secondReset", "SystemExit"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("place", "way"), BREAKS, ids=["-".join(each) for each in BREAKS])
def test_what_breaks_in_another_process_is_told_alike(place, way, capfd):
    steps = {"step1": 1, "step8": 8, "secondReset": 11}.get(place, 0)
    where = f"failed at its step {steps}" if steps else "failed at its reset" if place == "reset" else "cannot be made"
    name = f"gymnasium:tests.environments.shaky:{place}-{way}-v0"
    line = expect_failure(name, where, steps, num_envs=2, vectorization="async")
    assert way not in ("SystemExit", "Several", "RuntimeError") or (way in line and "(shaky.py, line " in line), line
    assert "BrokenPipe" not in capfd.readouterr().err, "no worker complains that it is alone"


def test_a_process_that_was_killed_is_a_failure():
    environment = environments.make("gymnasium:CartPole-v1", 2, seed=0, vectorization="async")
    environment.reset()
    victim, other = (process.pid for process in environment._vector.processes)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(
        environments.EnvironmentFailure,
        match=r"^environment gymnasium:CartPole-v1 failed at its step .: the process of",
    ):
        for _ in range(2):
            environment.step(np.zeros(2, np.int32))
    environment.close()
    assert not pathlib.Path(f"/proc/{other}").exists(), "the other has ended"


def marked(mark: str) -> list[int]:
    """Returns the ids of the living processes whose environment variables contain the mark."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            alive = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
            if alive and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except (OSError, IndexError):
            continue
    return found


@pytest.mark.parametrize(
    ("placement", "number", "whom"),
    [
        ("threads", signal.SIGINT, "all"),  # Ctrl-C
        ("threads", signal.SIGTERM, "all"),  # what `timeout` sends
        ("threads", signal.SIGKILL, "the first"),
        ("processes", signal.SIGTERM, "the first"),
    ],
)
def test_the_processes_end_with_the_run(placement, number, whom, tmp_path):
    mark = f"SHOAL_TEST_MARK={tmp_path}"
    arguments = [*command_line.TINY[1:], "--env=gymnasium:CartPole-v1", "--gymnasium_vectorization=async"]
    arguments += [f"--placement={placement}", f"--logdir={tmp_path / 'run'}", "--max_env_steps=1000000000"]
    with open(tmp_path / "output", "wb") as output:
        training = subprocess.Popen(
            command_line.command("train", *arguments),
            env=command_line.ENVIRONMENT | {"SHOAL_TEST_MARK": str(tmp_path)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        command_line.wait_for("learning", lambda: metrics.latest(tmp_path / "run", "learner"), running=[training])
        assert len(marked(mark)) > 8, "eight environments, and whoever started them"
        (os.killpg if whom == "all" else os.kill)(training.pid, number)
        code = training.wait(120)
        printed = (tmp_path / "output").read_text()
        assert code == (0 if number != signal.SIGKILL else -number), printed
        assert "error" not in printed and "Traceback" not in printed, printed
        command_line.wait_for("every process to end", lambda: not marked(mark), timeout=30)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
