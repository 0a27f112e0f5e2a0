"""updates_per_dispatch=K is K updates one after another: the same state, keys and priorities; on one device and two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime import dispatching

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module", params=[1, 2])
def report(request):
    """JAX is told of two CPU devices before it starts: a process apart."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={request.param}",
    }
    command = [sys.executable, "-m", "tests.runtime.dispatching"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert [each["devices"] for each in report.values()] == [request.param] * 2
    return report


@pytest.mark.parametrize("agent", ["ordered", "ddpg"])
def test_one_dispatch_is_as_many_updates(report, agent):
    found = report[agent]
    devices, k = found["devices"], dispatching.K
    assert found["steps"] == [[[7 + k] * devices] * 2, [[7 + 2 * k] * devices] * 2], "as many keys"
    assert found["updates"] == 2 * k
    assert found["moved"] > 0.01, "else there would be nothing to compare"
    assert found["states"] < 1e-5


@pytest.mark.parametrize("agent", ["ordered", "ddpg"])
def test_each_transition_of_a_dispatch_gets_the_priority_of_its_own_update(report, agent):
    found = report[agent]
    assert found["largest priority"] > 0.1
    assert found["priorities"] < 1e-5
    devices = found["devices"]
    shape, *numbers = found["shapes"]
    assert shape == [devices, dispatching.K * dispatching.BATCH // devices]
    assert numbers[0] == numbers[1] and found["metrics"] < 1e-5, "metrics are the last update's"
