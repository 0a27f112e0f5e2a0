"""Which process plays a role: only one at a time, and each sitting has a number of its own."""

import subprocess
import sys

import pytest

from launchers import flags, sittings, train
from launchers import run as runs
from launchers.settings import UsageError
from tests.launchers.command_line import ENVIRONMENT

HOLDING = """
import pathlib, sys
from launchers import flags, sittings, train
from launchers import run as runs
with sittings.hold(pathlib.Path(sys.argv[1]), sys.argv[2]) as sitting:
    print(sitting, flush=True)
    input()
"""


def start(logdir, role: str) -> subprocess.Popen:
    """Starts a process that holds a role and prints the number of its sitting."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(logdir), role],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_role_is_played_by_one_process_until_it_ends_however_that_does(tmp_path):
    for sitting, end in enumerate(("kill", "terminate", "kill")):
        playing = start(tmp_path, "actor_0")
        assert playing.stdout.readline() == f"{sitting}\n"
        with (
            pytest.raises(UsageError, match=rf"actor_0 of .* is running already \(process {playing.pid} on "),
            sittings.hold(tmp_path, "actor_0"),
        ):
            pass
        with sittings.hold(tmp_path, f"actor_{sitting + 1}") as first:
            assert first == 0, "others are free"
        getattr(playing, end)()
        playing.wait()
    with sittings.hold(tmp_path, "actor_0") as sitting:
        assert sitting == 3


@pytest.mark.parametrize("left", [b"", b"\xff\xfe\x00", b"many sittings", b"7 process 1 on somewhere\n", b"7"])
def test_a_file_that_was_cut_or_damaged_gives_a_number_that_was_not_there_before(left, tmp_path):
    (tmp_path / "sittings").mkdir()
    (tmp_path / "sittings" / "actor_0").write_bytes(left)
    seen = []
    for _ in range(3):
        with sittings.hold(tmp_path, "actor_0") as sitting:
            seen.append(sitting)
    first = {b"": 0, b"7": 7, b"7 process 1 on somewhere\n": 7}.get(left)
    assert seen[0] == first if first is not None else seen[0] > 10**9
    assert seen == [seen[0], seen[0] + 1, seen[0] + 2]


def test_a_command_that_is_refused_for_that_leaves_the_runs_settings_alone(tmp_path, capsys):
    """`--max_env_steps` may change when a run is resumed, but not while it is running."""
    words = ["--carrier=local", "--placement=serial", f"--logdir={tmp_path}"]
    run = runs.make("a2c", "CartPole-v1", {"carrier": "local", "placement": "serial", "max_env_steps": 5000}, {})
    runs.save(run, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    playing = start(tmp_path, "train")
    assert playing.stdout.readline() == "0\n"
    assert flags.attempt(train.train, ["train", "--agent=a2c", *words, "--max_env_steps=9000"]) == 2
    said = capsys.readouterr()
    assert "is running already" in said.err and said.err.count("\n") == 1 and not said.out
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    playing.kill()
    playing.communicate()
