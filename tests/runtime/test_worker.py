"""The worker's loop: the order of its calls, at which parameters it takes gradients, and what it sends with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import Agent, Blocks, Feedback, Gradients, Sample, TableSpec, Version
from environments.counting import CountingEnvironment
from runtime import actor, worker
from tests.counting_rows import first_rows


class Versions:
    """A variable container whose every pull brings newer parameters: 10, 20, ..."""

    def __init__(self, calls):
        self.calls, self.pulled = calls, 0

    def pull(self):
        self.pulled += 1
        self.calls.append(f"pull {self.pulled}")
        return Version(self.pulled, 0), np.float32(10 * self.pulled)


class Rows:
    """Experience in pieces of three rows, each learnt from `times` times."""

    def __init__(self, calls, on_policy, times):
        self.calls, self.on_policy, self.times, self.rows = calls, on_policy, times, []

    def append(self, row):
        self.calls.append("append")
        self.rows.append(row.step)
        return len(self.rows) % 3 == 0

    def samples(self):
        steps = jax.tree.map(lambda *x: np.stack(x), *self.rows[-3:])
        yield from [Sample(steps)] * self.times


class Sent:
    def __init__(self, calls):
        self.calls, self.gradients = calls, []

    def append(self, gradient):
        self.calls.append("send")
        self.gradients.append(jax.tree.map(np.asarray, gradient))


def played(on_policy: bool, times: int, turns: int):
    """Lets a worker take some turns; returns its calls and the gradients that it sent."""
    calls: list[str] = []

    def act(params, key, timestep, memory):
        return jnp.zeros(timestep.first.shape, jnp.int32) + params.astype(jnp.int32), {}, memory

    def gradient(state, key, sample):
        metrics = {"loss": sample.steps.action.sum().astype(jnp.float32), "random": jax.random.uniform(key)}
        return {"w": state}, Feedback(metrics | {"key": jax.random.key_data(key)})

    table = TableSpec("queue", Blocks(2), "queue", 1)
    agent = Agent(
        init=None,
        policy=lambda state: state,
        memory=lambda num_envs, ranks: (),
        act=act,
        act_greedily=act,
        update=None,
        table=TableSpec("gradients", Gradients(table, 2), "queue", 1),
        batch_size=1,
        gradient=gradient,
    )
    sent, device = Sent(calls), jax.devices()[0]
    turn = worker.run(
        agent,
        actor.compile_act(agent.act, device),
        worker.compile_gradient(agent, device),
        CountingEnvironment(2),
        Versions(calls),
        Rows(calls, on_policy, times),
        sent,
        jax.random.key(0),
        device,
    )
    counts = [next(turn)[0]["gradients"] for _ in range(turns)]
    assert counts == [times * (k + 1) for k in range(turns)]
    return calls, sent.gradients


def transitions(rows: range) -> int:
    """Counts both environments' rows whose action was executed: the next row does not open an episode."""
    return sum(not first_rows(e, rows.stop + 1)[row + 1].first for e in range(2) for row in rows)


def test_on_policy_a_gradient_is_at_the_parameters_that_acted():
    calls, gradients = played(on_policy=True, times=1, turns=3)
    assert calls == [word for k in (1, 2, 3) for word in (f"pull {k}", "append", "append", "append", "send")]
    assert [g.gradient["w"] for g in gradients] == [10, 20, 30]
    assert [g.learner_steps for g in gradients] == [1, 2, 3]
    assert [g.metrics["loss"] for g in gradients] == [10 * 6, 20 * 6, 30 * 6], "of the actions that they chose"
    assert [int(g.env_steps) for g in gradients] == [transitions(range(3 * k, 3 * k + 2)) for k in (0, 1, 2)]
    assert len({float(g.metrics["random"]) for g in gradients}) == 3, "each has a key of its own"


def test_from_a_replay_each_gradient_is_at_parameters_of_its_own():
    calls, gradients = played(on_policy=False, times=2, turns=2)
    turn = ["append", "append", "append"]
    assert calls == [
        *("pull 1", *turn, "pull 2", "send", "pull 3", "send"),
        *("pull 4", *turn, "pull 5", "send", "pull 6", "send"),
    ]
    assert [g.gradient["w"] for g in gradients] == [20, 30, 50, 60]
    assert [g.learner_steps for g in gradients] == [2, 3, 5, 6]
    steps = [int(g.env_steps) for g in gradients]
    assert steps == [transitions(range(3)), 0, transitions(range(3, 6)), 0], "experience is counted once"


@pytest.mark.parametrize("on_policy", [False, True])
def test_no_gradient_has_the_key_of_an_action(on_policy):
    _, gradients = played(on_policy, times=1, turns=4)
    actions = [jax.random.fold_in(jax.random.key(0), np.uint32(count)) for count in range(4 * 3 + 1)]
    keys = [jax.random.key_data(key).tolist() for key in actions]
    assert not [key for gradient in gradients if (key := gradient.metrics["key"].tolist()) in keys]


@pytest.mark.parametrize("times", [0, 1])
def test_nothing_due_is_nothing_sent(times):
    calls, gradients = played(on_policy=False, times=times, turns=2)
    assert len(gradients) == calls.count("send") == 2 * times
