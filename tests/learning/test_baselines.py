"""The recorded results of two baselines can be reproduced with fresh seeds."""

import subprocess
import sys

import pytest

from tests.launchers import command_line


@pytest.mark.learn
@pytest.mark.timeout(900)
def test_fresh_seeds_come_to_what_was_recorded(tmp_path):
    done = subprocess.run(
        [sys.executable, "scripts/baseline.py", "--check", f"--logdir={tmp_path}", "ppo-CartPole-v1", "sarsa-Catch-v0"],
        cwd=command_line.ROOT,
        env=command_line.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("a fresh seed came to") == 2
