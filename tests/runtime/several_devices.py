"""Programs on so many CPU devices, of which JAX is told before it starts: processes apart, that print JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import compiling

ROOT = Path(__file__).resolve().parent.parent.parent


def run(module: str, devices: int) -> Any:
    """What the module prints last, run as a program on `devices` devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{compiling.UNOPTIMISED} --xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-m", module]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])
