"""Compares the estimates by which a run that would not fit into memory is refused with a server's real memory."""

import json
import subprocess
import sys

import pytest

from replay.reverb_import import reverb  # noqa: F401  without it there is nothing to measure
from tests.launchers.command_line import ENVIRONMENT, ROOT


@pytest.mark.parametrize("agent", ["ddpg", "dqn", "r2d2"])
def test_an_item_takes_what_is_estimated(agent):
    """They agree within a quarter: the measured growth includes what malloc and the streams' ends take."""
    command = [sys.executable, "-m", "tests.replay.memory", agent]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    takes, estimated = json.loads(done.stdout.splitlines()[-1])
    assert 0.8 < takes / estimated < 1.25, f"{takes:,.0f} bytes, not {estimated:,}"
