"""Compiled programs are kept for the next start, and nothing depends on their being there."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import runtime, jax, jax.numpy as jnp
print(jax.config.jax_compilation_cache_dir, jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(8.0)))
"""


def start(**variables: str) -> subprocess.Popen:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = kept | {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | variables
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


def outcome(process: subprocess.Popen) -> tuple[str, str]:
    """Returns (the cache's folder, the result) of a process, and asserts that it ends well."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    folder, result = output.split()
    return folder, result


def test_processes_share_it_and_a_broken_entry_is_compiled_anew(tmp_path):
    at_once = [start(XDG_CACHE_HOME=str(tmp_path)) for _ in range(3)]
    first = {outcome(process) for process in at_once}
    folder = tmp_path / "shoal" / "jax"
    assert len(first) == 1 and {each[0] for each in first} == {str(folder)}
    entries = list(folder.glob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:20])  # as if its writer had been killed
    assert {outcome(start(XDG_CACHE_HOME=str(tmp_path)))} == first


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"XDG_CACHE_HOME": "/dev/null"}, "None"),
        ({"XDG_CACHE_HOME": "", "HOME": "/proc"}, "None"),
        ({"JAX_COMPILATION_CACHE_DIR": "{tmp}/own"}, "{tmp}/own"),
    ],
)
def test_a_folder_that_cannot_be_written_is_done_without_and_another_may_be_named(tmp_path, variables, folder):
    variables = {name: value.format(tmp=tmp_path) for name, value in variables.items()}
    assert outcome(start(**variables))[0] == folder.format(tmp=tmp_path)
