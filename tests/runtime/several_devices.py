"""Runs programs that print JSON on several CPU devices. JAX must be told their number before it starts, so each program
has a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import compiling

ROOT = Path(__file__).resolve().parent.parent.parent


def run(module: str, devices: int) -> Any:
    """Runs a module as a program on `devices` devices and returns the JSON value that it prints last."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{compiling.UNOPTIMISED} --xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-m", module]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])
