"""What a model of many machines says follows from what was measured."""

import json
import random
import subprocess
import sys

import pytest

from scripts import scale
from tests.launchers import command_line


def costs(draw: random.Random) -> scale.Costs:
    values = {name: draw.uniform(1e-6, 1e-3) for name in scale.Costs._fields}
    values["half_update_wall"] = values["update_wall"] * draw.uniform(0.5, 1.0)  # half: an update has no fixed cost
    return scale.Costs(
        **values
        | {"steps_per_update": draw.randint(1, 5000), "params_bytes": draw.randint(100, 10**7)}
        | {"row_bytes": draw.uniform(10, 1e5), "batch_bytes": draw.uniform(10, 1e6), "pulls": draw.uniform(1e-4, 0.1)}
    )


@pytest.mark.parametrize("seed", range(30))
def test_more_never_makes_a_part_slower(seed):
    draw = random.Random(seed)
    of = costs(draw)
    layout = scale.Layout(
        actors=draw.randint(1, 64), cores=draw.randint(1, 64), network=draw.uniform(1e6, 1e9), latency=1e-4
    )
    first = scale.limits(of, layout)
    for name, value in (("actors", 2 * layout.actors), ("cores", 2 * layout.cores), ("network", 2 * layout.network)):
        more = scale.limits(of, layout._replace(**{name: value}))
        assert more.keys() == first.keys() and all(more[part] >= first[part] for part in first)
    assert scale.slowest(first)[1] == min(first.values())


@pytest.mark.parametrize("seed", range(10))
def test_limits_are_the_naive_ones(seed):
    draw = random.Random(seed)
    of, cores = costs(draw), draw.randint(1, 8)
    found = scale.limits(of, scale.Layout(actors=3, cores=cores, together=True))
    assert found["actors"] == pytest.approx(3 / of.actor_thread)
    assert found["learner"] == pytest.approx(1 / of.update_wall)
    assert found["cores"] == pytest.approx(cores / (of.actor + of.serve + of.update))

    # Two hosts: each updates on half a batch. They exchange halves of the gradients, add them, and exchange the sums.
    layout = scale.Layout(hosts=2, actors=2, cores=cores, network=1e8, latency=1e-3)
    update = of.half_update_wall * of.steps_per_update + 2 * 1e-3 + of.params_bytes / 1e8
    assert scale.limits(of, layout)["learner"] == pytest.approx(of.steps_per_update / update)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/scale.py", *arguments]
    return subprocess.run(
        command, cwd=command_line.ROOT, env=command_line.ENVIRONMENT, capture_output=True, text=True, timeout=280
    )


def test_what_travels_is_what_arrays_take():
    pytest.importorskip("reverb")
    done = run("--agent=impala", "--env=CartPole-v1", "--seconds=0.1", "--json", "--actors=2", "--hosts=1,2")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["limits"].keys() == {"2 actors", "1 hosts", "2 hosts"}
    # A row has at least an observation of 4 numbers, 2 logits, an action, a reward, a discount and a flag.
    assert 4 * 4 + 2 * 4 + 3 * 4 + 1 <= said["costs"]["row_bytes"] <= 50
    assert said["costs"]["batch_bytes"] == said["costs"]["row_bytes"]
    assert all(value > 0 for value in said["costs"].values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--actors=0",), "--actors=0 must be whole numbers"),
        (("--hosts=1,,2",), "--hosts=1,,2 must be whole numbers"),
        (("--carrier=local",), "only for runs with --carrier=reverb"),
        (("--agent=a3c",), "--travels=experience"),
        (("--network_gigabits=0",), "--network_gigabits must be 0.001 or more"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, words):
    pytest.importorskip("reverb")
    done = run(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and words in line
