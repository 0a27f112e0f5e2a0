"""An exported policy acts the same without Shoal, by the lines in docs/policy.md."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

import shoal
from shoal import exporting
from tests.launchers import command_line

NAMES = ["dqn", "dqn of frames", "impala", "impala, recurrent", "ddpg", "ppo of parts", "r2d2", "q_learning", "ppo"]
FIVE = re.search(
    r"## Without Shoal.*?```python\n(.*?)```", (command_line.ROOT / "docs" / "policy.md").read_text(), re.DOTALL
)
# What the document leaves to its reader, around its lines: a program that reads a folder's inputs.npz, and prints the
# actions.
PROGRAM = """
import json, os, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"shoal", "agents", "environments", "launchers", "replay", "runtime"}:
            raise ModuleNotFoundError(f"{name} is Shoal's")

sys.meta_path.insert(0, Block())
import numpy as np
os.chdir(sys.argv[1])
given = np.load("inputs.npz")
actions, memory = [], None
for step in range(len(given["observation"])):
    observation, reward, first = (given[name][step] for name in ("observation", "reward", "first"))
    step = np.uint32(step)
    if memory is None:
        BEGINNING
    else:
        REST
    actions.append(np.asarray(action).tolist())
print(json.dumps([actions, len(memory)]))
"""


def program(size: int) -> str:
    """Returns PROGRAM with the document's lines: all of them for the first step, and the last one for the others."""
    assert FIVE
    lines = [line for line in FIVE[1].splitlines() if line]
    assert len(lines) == 5
    lines[3] = lines[3].replace("(1, ", f"({size}, ")
    return PROGRAM.replace("BEGINNING", "\n        ".join(lines)).replace("REST", lines[-1])


def run_alone(folder: pathlib.Path, size: int):
    """Runs the exported policy without Shoal. Returns its actions, and how many arrays its memory has."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program(size), str(folder)],
        env={"JAX_PLATFORMS": "cpu", "HOME": str(folder)}, cwd=folder, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_it_acts_alike_without_shoal(name, made, tmp_path):
    logdir, evaluation = made(name)
    policy = shoal.load(logdir)
    policy.export(tmp_path / "policy.stablehlo", *([4] if name == "ppo" else []))
    given = {
        "observation": np.stack([timestep.observation for timestep in evaluation.timesteps]),
        "reward": np.stack([timestep.reward for timestep in evaluation.timesteps]),
        "first": np.stack([timestep.first for timestep in evaluation.timesteps]),
    }
    np.savez(tmp_path / "inputs.npz", **given)
    actions, remembered = run_alone(tmp_path, 4)
    np.testing.assert_allclose(actions, np.stack(evaluation.actions), rtol=1e-4, atol=1e-4)
    assert (remembered > 0) == (name in ("dqn of frames", "impala, recurrent", "r2d2"))


def test_what_is_random_is_by_the_step_and_apart_for_each_observation(made, tmp_path):
    policy = shoal.load(made("sampled, with errors")[0])
    policy.export(tmp_path / "policy")
    call = jax.export.deserialize(bytearray((tmp_path / "policy").read_bytes())).call
    many = np.zeros((100, 6), np.float32), np.zeros(100, np.float32), np.ones(100, bool)
    zero, again, one = (np.asarray(call(*many, np.uint32(step))[0]) for step in (0, 0, 1))
    np.testing.assert_array_equal(zero, again)
    assert not np.array_equal(zero, one) and len({*zero.tolist()}) > 1


def test_what_cannot_be_exported_is_one_line(made, tmp_path, monkeypatch):
    policy = shoal.load(made("q_learning")[0])
    for size, words in ((None, "batches of any size: try batch_size=1, or another"), (3, "batch_size=3")):

        def fail(*_, **__):
            raise NotImplementedError("no rule\nfor this")

        monkeypatch.setattr(exporting.jax_export, "export", fail)
        match = rf"^this policy cannot be exported for {words} \(NotImplementedError: no rule for this\)$"
        with pytest.raises(ValueError, match=match):
            policy.export(tmp_path / "policy", size)
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize("size", [0, -1, 1.5, "many", True, np.int64(0)])
def test_a_batch_size_that_is_none_is_one_line(size, made, tmp_path):
    with pytest.raises(ValueError, match=r"^batch_size must be a whole number from 1, or None, not [^\n]*$"):
        shoal.load(made("q_learning")[0]).export(tmp_path / "policy", size)
