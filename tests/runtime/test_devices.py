"""One update on two devices is the update on one. JAX is told of two CPU devices before it starts: a process apart."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

TWO_DEVICES = """
import json
import jax, jax.numpy as jnp, numpy as np
from agents import impala
from agents.agent import Agent, DiscreteActions, EnvironmentSpec, Feedback, Sample, Step
from runtime import devices

assert jax.local_device_count() == 2
T, B, report = 5, 4, {}
spec = EnvironmentSpec((2, 3), np.dtype(np.uint8), DiscreteActions(3))
config = impala.Config(torso="mlp", hidden_sizes=(4,), frame_stack=2, unroll_length=T, batch_size=B,
                       max_gradient_norm=0.5, learning_rate=0.1, decay_env_steps=10 * T * B)
agent = impala.make(config, spec)

def sample(seed):
    rng, rows = np.random.default_rng(seed), (T + 1, B)
    steps = Step(rng.integers(0, 3, (*rows, 2, 3), np.uint8), rng.integers(3, size=rows).astype(np.int32),
                 (rng.normal(size=rows) * np.arange(1, B + 1)).astype(np.float32),
                 (rng.random(rows) < 0.9).astype(np.float32), rng.random(rows) < 0.2,
                 {"outputs": rng.normal(size=(*rows, 3)).astype(np.float32)})
    memory = jax.tree.map(lambda x: rng.integers(0, 3, x.shape).astype(x.dtype), agent.memory(B, None))
    return Sample(steps, memory)

traces = []
def counted(state, key, sample):
    traces.append(sample.steps.reward.shape)
    return agent.update(state, key, sample)

update, policy = devices.pmap_update(agent._replace(update=counted), 1), devices.pmap_policy(agent)
single = jax.jit(agent.update)
state = jax.jit(agent.init)(jax.random.key(0))
start = state.params
replicas, key = devices.replicate(state), jax.random.key(1)
count = devices.replicate(np.uint32(0))
report["replicated"] = all(x.shape[0] == 2 for x in jax.tree.leaves(replicas))
differences, metric_differences, donated, equal, shard_means, outlives, compared = [], [], [], [], [], [], 0
for step in range(4):
    before, published = replicas, policy(replicas)
    kept = jax.tree.map(np.array, before.params)
    replicas, count, feedback = update(replicas, count, devices.shard(sample(step)))
    state, expected = single(state, key, sample(step))
    donated.append(all(x.is_deleted() for x in jax.tree.leaves(before)))
    outlives += [(a == b).all() for a, b in zip(jax.tree.leaves(published), jax.tree.leaves(kept))]
    equal += [(x[0] == x[1]).all() for x in jax.tree.leaves(jax.tree.map(np.array, (replicas, feedback.metrics)))]
    both = zip(jax.tree.leaves(devices.unreplicate(replicas)), jax.tree.leaves(state), strict=True)
    differences.append(max(np.abs(a - b).max() for a, b in both))
    for name, value in expected.metrics.items():
        metric_differences.append((name, float(feedback.metrics[name][0]), float(value)))
    compared += 1
report |= {"donated": all(donated), "equal": bool(all(equal)), "outlives": bool(all(outlives)),
           "difference": float(max(differences)), "metrics": metric_differences, "compared": compared}
report["moved"] = float(max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(start))))
report["traces"] = traces

# The control: a device's own half, here twice to keep the shape, gives another update.
twice = jax.tree.map(lambda x: np.concatenate([x[:, :2]] * 2, 1), sample(9).steps)
half = Sample(twice, jax.tree.map(lambda x: np.concatenate([x[:2]] * 2), sample(9).memory))
a, b = single(state, key, half)[0], single(state, key, sample(9))[0]
report["half"] = float(max(np.abs(x - y).max() for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params))))

def random(state, key, sample):
    return state, Feedback({"number": jax.random.uniform(key)})
fake = Agent(None, None, None, None, None, random, (), 1)
numbers = []
for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
    draw, count = devices.pmap_update(fake, seed), devices.replicate(np.uint32(step))
    feedback = draw(devices.replicate(jnp.float32(0)), count, devices.shard(sample(0)))[-1]
    numbers.append(feedback.metrics["number"].tolist())
report["numbers"] = numbers

# Sequences from a replay, three minibatches in a dispatch: which each update sees, and whose priorities are whose.
def noted(state, key, sample):
    steps, memory, likelihood = sample
    assert steps.observation.shape == (2, 2, 3) and memory["m"].shape == (2, 4) and likelihood.shape == (2,)
    metrics = {"names": steps.reward[0], "ends": steps.observation[1, :, 2], "memory": memory["m"][:, 3]}
    return state + 1, Feedback(metrics, 1000 * state + steps.reward[0] + likelihood)

names = np.arange(12, dtype=np.float32)
rows = np.stack([np.tile(names[:, None] + 100 * row, 3) for row in range(2)])
steps = Step(rows, *[np.stack([names, names])] * 4, {})
many = Sample(steps, {"m": np.tile(names[:, None] + 500, 4)}, names / 16)
dispatch = devices.pmap_update(fake._replace(update=noted), 0, 3)
state, count = devices.replicate(jnp.float32(0)), devices.replicate(np.uint32(0))
state, count, feedback = dispatch(state, count, devices.shard(many))
report["minibatches"] = {
    "priorities": np.asarray(feedback.priorities).tolist(), "count": np.asarray(count).tolist(),
    **{name: np.asarray(x).tolist() for name, x in feedback.metrics.items()}}

sharded = devices.shard(sample(0))
report["shards"] = {"reward": np.array_equal(sharded.steps.reward, np.stack(np.split(sample(0).steps.reward, 2, 1))),
                    "frames": np.array_equal(sharded.memory.frames, np.stack(np.split(sample(0).memory.frames, 2, 0)))}
try:
    odd = sample(0)
    devices.shard(Sample(jax.tree.map(lambda x: x[:, :3], odd.steps), odd.memory))
except ValueError as error:
    report["odd"] = str(error)
print(json.dumps(report, default=bool))
"""


@pytest.fixture(scope="module")
def report():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", TWO_DEVICES]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_two_shards_give_the_update_of_one(report):
    assert report["compared"] == 4
    assert report["moved"] > 0.1, "else there would be nothing to compare"
    assert report["half"] > 1e-3, "each device's own half would give something else"
    assert report["difference"] < 1e-5
    for name, on_two, on_one in report["metrics"]:
        # Means over live rows: a device's own, of which there may be more than on the other.
        tolerance = 0.05 if name in ("entropy", "rho") else 1e-4
        assert on_two == pytest.approx(on_one, rel=tolerance, abs=1e-5), name


def test_replicas_stay_equal(report):
    assert report["replicated"] and report["equal"]


def test_the_state_is_donated_and_published_parameters_outlive_it(report):
    assert report["donated"] and report["outlives"]


def test_the_update_is_traced_once(report):
    assert report["traces"] == [[6, 2]]


def test_each_device_update_and_seed_has_a_key_of_its_own(report):
    *different, again = report["numbers"]
    assert len({number for numbers in different for number in numbers}) == 6
    assert again == different[0]


def test_shard_splits_the_batch_axis(report):
    assert report["shards"] == {"reward": True, "frames": True}
    assert report["odd"] == "a batch of 3 sequences does not divide over 2 devices"


def test_sequences_from_a_replay_are_split_into_minibatches(report):
    """Twelve sequences: six on each device, two to each of three updates, with their memory and likelihood."""
    expected = [[1000.0 * (i // 2) + name + name / 16 for i, name in enumerate(half)]
                for half in (range(6), range(6, 12))]  # fmt: skip
    found = report["minibatches"]
    assert found["priorities"] == expected and found["count"] == [3, 3]
    assert found["names"] == [[4, 5], [10, 11]], "metrics are the last update's"
    assert found["ends"] == [[104, 105], [110, 111]] and found["memory"] == [[504, 505], [510, 511]]
