"""Checkpoints: what comes back is what was saved, bit for bit, the newest of it."""

import contextlib
import shutil
import subprocess

import jax
import numpy as np
import pytest

from agents import impala
from agents.agent import DiscreteActions, EnvironmentSpec, Sample, Step, Version
from replay.sampler import Batch
from runtime import devices
from runtime.checkpoint import Checkpointer, Damaged
from runtime.learner import Learner
from tests.launchers.command_line import wait_for

SPEC = EnvironmentSpec((3,), np.dtype(np.float32), DiscreteActions(2))
CONFIG = impala.Config(torso="mlp", hidden_sizes=(4,), frame_stack=1, unroll_length=4, batch_size=2, optimizer="adam")


@pytest.fixture(scope="module")
def agent():
    return impala.make(CONFIG, SPEC)


@pytest.fixture(scope="module")
def fresh(agent):
    """Returns a function, compiled once: seed -> initial state on the host."""
    init = jax.jit(agent.init)
    return lambda seed: jax.tree.map(np.asarray, init(jax.random.key(seed)))


def batch(agent, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    rows = (CONFIG.unroll_length + 1, CONFIG.batch_size)
    steps = Step(
        observation=rng.normal(size=(*rows, 3)).astype(np.float32),
        action=rng.integers(2, size=rows).astype(np.int32),
        reward=rng.normal(size=rows).astype(np.float32),
        discount=np.ones(rows, np.float32),
        first=rng.random(rows) < 0.2,
        extras={"outputs": rng.normal(size=(*rows, 2)).astype(np.float32)},
    )
    sample = Sample(steps, jax.tree.map(np.asarray, agent.memory(CONFIG.batch_size, None)))
    return Batch(devices.send(devices.make_mesh(), sample), np.array([0]), env_steps=8)


def assert_same_bits(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()


def learner_of(agent, state, version) -> Learner:
    return Learner(agent, state, version, seed=5, publish=lambda version, params: None)


def test_nothing_saved_is_nothing_restored(agent, tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints", agent)
    assert checkpointer.restore() is None
    checkpointer.close()


def test_a_restart_goes_on_bit_for_bit(agent, fresh, tmp_path):
    """A learner saves after its second update; a restarted one ends where it does, to the bit."""
    batches = [batch(agent, seed) for seed in range(4)]
    learner = learner_of(agent, fresh(0), Version(0, 0))
    list(learner.run(iter(batches[:2])))
    saving, saved = Checkpointer(tmp_path, agent), learner.host_state()
    saving.save(saved, learner.version)
    saving.close()
    list(learner.run(iter(batches[2:])))

    restoring = Checkpointer(tmp_path, agent)
    state, version = restoring.restore()
    restoring.close()
    assert version == Version(2, 16) and [type(count) for count in version] == [int, int]
    assert isinstance(state, impala.State)
    assert_same_bits(state, saved)

    restarted = learner_of(agent, state, version)
    list(restarted.run(iter(batches[2:])))
    assert restarted.version == learner.version == Version(4, 32)
    assert_same_bits(restarted.host_state(), learner.host_state())
    with pytest.raises(AssertionError):
        assert_same_bits(restarted.host_state(), saved)  # the comparison can fail


def test_the_newest_is_restored_and_the_newest_few_are_kept(agent, fresh, tmp_path):
    states = {steps: fresh(steps) for steps in (1, 2, 10, 9)}
    for steps, state in states.items():  # each is saved as by a process of its own
        saving = Checkpointer(tmp_path, agent, keep=3)
        saving.save(state, Version(steps, 100 * steps))
        saving.close()
    restoring = Checkpointer(tmp_path, agent)
    state, version = restoring.restore()
    restoring.close()
    assert version == Version(10, 1000)
    assert_same_bits(state, states[10])
    # 9 was saved after 10 and is not kept: no run is to go on from it.
    assert {path.name for path in tmp_path.iterdir()} == {f"learner_steps_{steps}" for steps in (1, 2, 10)}


def test_what_is_saved_already_is_left_as_it_is(agent, fresh, tmp_path):
    checkpointer = Checkpointer(tmp_path, agent)
    checkpointer.save(fresh(0), Version(3, 30))
    checkpointer.save(fresh(1), Version(3, 30))
    state, _ = checkpointer.restore()
    assert_same_bits(state, fresh(0))
    checkpointer.save(fresh(1), Version(4, 30))  # gradients that bring no experience are further updates
    state, version = checkpointer.restore()
    checkpointer.close()
    assert version == Version(4, 30)
    assert_same_bits(state, fresh(1))


def test_a_half_written_checkpoint_is_not_found(agent, fresh, tmp_path):
    """A process that is killed while it saves leaves a directory that does not have its final name yet."""
    saving = Checkpointer(tmp_path, agent)
    saving.save(fresh(0), Version(1, 10))
    saving.close()
    (done,) = [path for path in tmp_path.iterdir() if path.name.startswith("learner_steps")]
    killed = tmp_path / f"{done.name[:-1]}2.orbax-checkpoint-tmp-0"
    killed.mkdir()
    (killed / "garbage").write_text("half")
    restoring = Checkpointer(tmp_path, agent)
    state, version = restoring.restore()
    assert version == Version(1, 10)
    assert_same_bits(state, fresh(0))
    restoring.save(fresh(1), Version(2, 20))  # the same step again, whole this time
    state, version = restoring.restore()
    restoring.close()
    assert version == Version(2, 20)
    assert_same_bits(state, fresh(1))


def test_a_full_disk_is_said_and_the_checkpoint_before_is_kept(agent, fresh, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        checkpointer = Checkpointer(disk / "checkpoints", agent)
        checkpointer.save(fresh(0), Version(1, 10))
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1024))
        with pytest.raises(OSError, match="no space left; earlier ones are kept"):
            checkpointer.save(fresh(1), Version(2, 20))
        (disk / "filler").unlink()
        state, version = Checkpointer(disk / "checkpoints", agent).restore()
        assert version == Version(1, 10)
        assert_same_bits(state, fresh(0))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def damages(content: bytes):
    """Yields (name, what is left of a file) for each way in which it can be damaged; None means that it is gone."""
    flipped = bytearray(content)
    for place in (0, len(content) // 2):
        if content:
            flipped[place] ^= 255
    yield "cut", content[: len(content) // 2]
    yield "flipped", bytes(flipped)
    yield "emptied", b""
    yield "overwritten", np.random.default_rng(0).bytes(max(1, len(content)))
    yield "gone", None


@pytest.fixture(scope="module")
def two_saved(agent, fresh, tmp_path_factory):
    """Returns a directory of two checkpoints, at 10 and 20 updates, and their states."""
    directory, states = tmp_path_factory.mktemp("saved"), {10: fresh(1), 20: fresh(2)}
    saving = Checkpointer(directory, agent, owner=True)
    for steps, state in states.items():
        saving.save(state, Version(steps, 8 * steps), {"replay": 100 * steps})
    saving.close()
    return directory, states


def test_whichever_file_is_damaged_a_whole_checkpoint_is_restored(two_saved, agent, tmp_path, capfd):
    directory, states = two_saved
    newest = directory / "learner_steps_20"
    files = [path.relative_to(directory) for path in sorted(newest.rglob("*")) if path.is_file()]
    assert len(files) > 5
    came_back = []
    for file in files:
        content = (directory / file).read_bytes()
        for how, left in damages(content):
            copy = tmp_path / "copy"
            shutil.copytree(directory, copy)
            (copy / file).unlink()
            if left is not None:
                (copy / file).write_bytes(left)
            for owner in (False, True, False):
                restoring = Checkpointer(copy, agent, owner=owner)
                state, version = restoring.restore()
                assert_same_bits(state, states[version.learner_steps])
                assert restoring.counts.get("replay", 100 * version.learner_steps) == 100 * version.learner_steps
                # Whatever was restored, the directory's owner can save what comes after it.
                if owner:
                    came_back.append(version.learner_steps)
                    restoring.save(states[10], Version(version.learner_steps + 5, 0))
                    assert restoring.restore()[1].learner_steps == version.learner_steps + 5, (file, how)
                    shutil.rmtree(copy / f"learner_steps_{version.learner_steps + 5}")
                restoring.close()
            shutil.rmtree(copy)
    assert came_back.count(10) > 20, "damage went unseen"
    assert "Traceback" not in capfd.readouterr().err


def test_where_every_checkpoint_is_damaged_it_is_said_in_one_line(two_saved, agent, tmp_path):
    directory, _ = two_saved
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    for file in copy.rglob("*.ocdbt"):
        file.write_bytes(b"")
    for owner in (False, True):
        restoring = Checkpointer(copy, agent, owner=owner)
        with pytest.raises(Damaged, match=r"no checkpoint in .* can be read") as error:
            restoring.restore()
        assert "\n" not in str(error.value)
        restoring.close()
    assert {path.name for path in copy.iterdir()} == {"learner_steps_10", "learner_steps_20"}, "nothing is thrown away"


def test_a_directory_that_was_removed_is_not_made_again(agent, fresh, tmp_path):
    saving = Checkpointer(tmp_path / "checkpoints", agent, owner=True)
    saving.save(fresh(1), Version(1, 1))
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(OSError, match="was removed while the run went on"):
        saving.save(fresh(1), Version(2, 2))
    assert not (tmp_path / "checkpoints").exists()


def test_what_a_killed_save_left_is_removed_by_the_owner_alone(agent, fresh, tmp_path):
    saving = Checkpointer(tmp_path, agent, owner=True)
    saving.save(fresh(1), Version(1, 1))
    saving.close()
    left = tmp_path / "learner_steps_2.orbax-checkpoint-tmp-7"
    left.mkdir()
    (left / "half").write_text("")
    Checkpointer(tmp_path, agent).close()
    assert left.exists(), "another process's save may be under way"
    owner = Checkpointer(tmp_path, agent, owner=True)
    wait_for("it to be removed", lambda: not left.exists(), 30)
    assert owner.restore()[1] == Version(1, 1)
    owner.close()
