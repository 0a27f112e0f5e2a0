"""The best parameters: whatever was seen, and whatever ended the process, the file holds the best ones or those that
were the best before."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import Version
from launchers import configs
from launchers import run as runs
from replay.structures import Structure, params_structure
from runtime import best

VERSION = Version(np.int64(0), np.int64(0))
SMALL = Structure((VERSION, {"w": np.zeros((3, 4), np.float32), "n": np.int32(0)}))
ENVS = dict.fromkeys(("ddpg", "td3", "d4pg", "dpg", "apex_dpg", "mpo", "dmpo"), "Pendulum-v1") | {
    "off_pac": "MountainCar-v0"
}


def params(value: float) -> Any:
    return {"w": np.full((3, 4), value, np.float32), "n": np.int32(value)}


def found(logdir: pathlib.Path) -> best.Best:
    back = best.restore(logdir, SMALL)
    assert back is not None
    return back


def holds(logdir: pathlib.Path, version: int, return_mean: float) -> None:
    back = found(logdir)
    assert back.version == Version(version, 10 * version) and back.return_mean == return_mean
    jax.tree.map(np.testing.assert_array_equal, back.params, params(version))
    assert back.params["w"].dtype == np.float32 and back.params["n"].dtype == np.int32


@pytest.mark.parametrize("seed", range(30))
def test_the_best_of_all_sittings_is_there(seed, tmp_path):
    """Versions may go back: after a kill a learner goes on from an older one."""
    draw = np.random.default_rng(seed)
    seen: list[tuple[float, int]] = []
    for _ in range(4):
        keeper = best.Keeper(tmp_path, SMALL)
        for _ in range(draw.integers(0, 6)):
            value = float(draw.choice([draw.normal(), round(draw.normal()), np.nan, -np.inf]))
            version = int(draw.integers(1, 100))
            keeper.show(Version(version, 10 * version), params(version), value)
            if np.isfinite(value):
                seen.append((value, version))
        highest = max((value for value, _ in seen), default=None)
        if highest is None:
            assert best.restore(tmp_path, SMALL) is None
        else:
            holds(tmp_path, next(version for value, version in seen if value == highest), highest)
    assert {path.name for path in tmp_path.iterdir()} <= {best.FILE}


@pytest.mark.parametrize("agent", sorted(configs.AGENTS))
def test_every_agents_parameters_come_back_to_the_bit(agent, tmp_path):
    run = runs.make(agent, ENVS.get(agent, "CartPole-v1"), {"carrier": "local"}, {})
    structure = params_structure(run.make_agent(run.spec()))
    draw = np.random.default_rng(0)
    leaves = [np.asarray(draw.normal(size=leaf.shape) * 9).astype(leaf.dtype) for leaf in structure.leaves]
    version, given = structure.unflatten(leaves)
    best.Keeper(tmp_path, structure).show(version, jax.tree.map(jnp.asarray, given), 3.5)
    back = best.restore(tmp_path, structure)
    assert back and back.version == version and back.return_mean == 3.5
    assert jax.tree.structure(back.params) == jax.tree.structure(given)
    for one, other in zip(jax.tree.leaves(back.params), jax.tree.leaves(given), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.uint8, jnp.bool_, jnp.uint32])
def test_every_dtype_comes_back(dtype, tmp_path):
    value = jnp.arange(-3, 3).astype(dtype)
    structure = Structure((VERSION, {"x": value, "scalar": value[0]}))
    best.Keeper(tmp_path, structure).show(Version(1, 2), {"x": value, "scalar": value[0]}, 0.0)
    back = best.restore(tmp_path, structure)
    assert back and back.params["x"].dtype == back.params["scalar"].dtype == dtype
    np.testing.assert_array_equal(back.params["x"], value)


def test_what_is_not_finite_is_not_saved(tmp_path):
    keeper = best.Keeper(tmp_path, SMALL)
    keeper.show(Version(1, 10), params(1), 5.0)
    for bad in (np.nan, np.inf):
        keeper.show(Version(2, 20), params(2) | {"w": np.full((3, 4), bad, np.float32)}, 9.0)
    holds(tmp_path, 1, 5.0)
    keeper.show(Version(3, 30), params(3), 6.0)
    holds(tmp_path, 3, 6.0)


class Killed(BaseException):
    """Ends a process in the middle of a call."""


@pytest.mark.parametrize("written", range(0, 1600, 97))
def test_a_save_that_ends_anywhere_leaves_the_best_before(written, tmp_path, monkeypatch):
    """The save ends after `written` bytes; or once all are written, but before the file has its final name."""
    best.Keeper(tmp_path, SMALL).show(Version(1, 10), params(1), 5.0)
    whole = (tmp_path / best.FILE).read_bytes()

    def savez(file, *arrays, **named):
        file.write(whole[:written])
        raise Killed

    def replace(self, target):
        raise Killed

    with monkeypatch.context() as patch:
        if written < len(whole):
            patch.setattr(np, "savez", savez)
        else:
            patch.setattr(pathlib.Path, "replace", replace)
        with pytest.raises(Killed):
            best.Keeper(tmp_path, SMALL).show(Version(2, 20), params(2), 6.0)
    holds(tmp_path, 1, 5.0)
    again = best.Keeper(tmp_path, SMALL)
    again.show(Version(3, 30), params(3), 4.0)
    holds(tmp_path, 1, 5.0)
    again.show(Version(4, 40), params(4), 5.5)
    holds(tmp_path, 4, 5.5)


PROGRAM = """
import pathlib, sys, time
from tests.runtime.test_best import *
keeper = best.Keeper(pathlib.Path(sys.argv[1]), SMALL)
start = int(keeper._best) if np.isfinite(keeper._best) else 0
for n in range(start + 1, start + 100_000):
    keeper.show(Version(n, 10 * n), params(n), float(n))
"""


def test_a_process_that_is_killed_leaves_a_whole_file(tmp_path):
    newest = 0
    for wait in (0.0, 0.01, 0.05):
        environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment)
        try:
            deadline = time.monotonic() + 120
            while (found(tmp_path).version.learner_steps if (tmp_path / best.FILE).exists() else 0) <= newest:
                assert time.monotonic() < deadline and process.poll() is None, "waited 120 s for a save"
            time.sleep(wait)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        now = int(found(tmp_path).version.learner_steps)
        holds(tmp_path, now, float(now))
        assert now > newest
        newest = now


@pytest.mark.parametrize("seed", range(60))
def test_damage_is_seen_or_does_none(seed, tmp_path, caplog):
    draw = np.random.default_rng(seed)
    path = tmp_path / best.FILE
    best.Keeper(tmp_path, SMALL).show(Version(1, 10), params(1), 5.0)
    content = bytearray(path.read_bytes())
    if seed % 3 == 0:
        content = content[: draw.integers(len(content))]
    else:
        for _ in range(draw.integers(1, 4)):
            content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    path.write_bytes(content)
    try:
        holds(tmp_path, 1, 5.0)
        return
    except OSError as error:
        assert "is damaged" in str(error) and "\n" not in str(error)
    best.Keeper(tmp_path, SMALL).show(Version(2, 20), params(2), -3.0)
    assert "it is renamed to damaged_" in caplog.text and (tmp_path / f"damaged_{best.FILE}").read_bytes() == content
    holds(tmp_path, 2, -3.0)


def test_damage_is_often_done(tmp_path):
    """Otherwise the test above would test nothing."""
    best.Keeper(tmp_path, SMALL).show(Version(1, 10), params(1), 5.0)
    content, seen = (tmp_path / best.FILE).read_bytes(), 0
    for at in range(0, len(content), 7):
        (tmp_path / best.FILE).write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        try:
            holds(tmp_path, 1, 5.0)
        except OSError:
            seen += 1
    assert seen > len(content) // 7 / 2


def test_another_agents_parameters_are_none(tmp_path):
    best.Keeper(tmp_path, SMALL).show(Version(1, 10), params(1), 5.0)
    for other in ({"w": np.zeros((4, 3), np.float32), "n": np.int32(0)}, {"w": np.zeros((3, 4), np.float64)}):
        with pytest.raises(OSError, match="is damaged"):
            best.restore(tmp_path, Structure((VERSION, other)))


def test_a_full_disk_is_one_line_and_the_best_before_is_kept(tmp_path, monkeypatch):
    keeper = best.Keeper(tmp_path, SMALL)
    keeper.show(Version(1, 10), params(1), 5.0)

    def savez(file, *arrays, **named):
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", savez)
        with pytest.raises(OSError, match=r"No space left on device; those before are kept") as error:
            keeper.show(Version(2, 20), params(2), 6.0)
    assert "\n" not in str(error.value)
    holds(tmp_path, 1, 5.0)
    keeper.show(Version(2, 20), params(2), 6.0)
    holds(tmp_path, 2, 6.0)
