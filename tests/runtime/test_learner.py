"""The learner's loop: the order of its calls, its versions and keys; the threads that feed and publish."""

import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import Agent, Feedback, Sample, Step, Transition, Version
from replay.sampler import Batch
from runtime import devices, learner
from tests.waiting import until, within

WAIT = 60.0
MESH = devices.make_mesh()


class State(NamedTuple):
    updates: jax.Array
    rewards: jax.Array  # the sum of the rewards that were learned from


def counting_agent() -> Agent:
    """Returns an agent whose parameters are the number of updates and whose metrics are a random number and the
    sample's reward."""

    def update(state, key, sample):
        reward = sample.steps.reward.sum()
        metrics = {"random": jax.random.uniform(key), "reward": reward}
        return State(state.updates + 1, state.rewards + reward), Feedback(metrics)

    return Agent(None, lambda state: state.updates, None, None, None, update, (), 1)


def send(sample):
    return devices.send(MESH, sample)


def batch(reward: float, env_steps: int = 10, learner_steps=(0,), on_device: bool = True) -> Batch:
    rows = np.zeros((2, 1), np.float32)
    rows[0] = reward
    sample = Sample(Step(rows, rows, rows, rows, rows, {}), np.zeros(1, np.float32))
    sample = send(sample) if on_device else sample
    return Batch(sample, np.array(learner_steps), env_steps)


class Calls(list):
    """Notes what the learner does: the batches that it takes and the versions and parameters that it publishes."""

    def publish(self, version, params):
        self.append(("publish", version, int(MESH.host(params))))

    def batches(self, batches):
        for number, each in enumerate(batches):
            self.append(("batch", number))
            yield each

    def learner(self, start: int = 0, seed: int = 0, **options) -> learner.Learner:
        """Returns a learner that has made `start` updates on 10 environment steps each."""
        state, version = State(jnp.int32(start), jnp.float32(0)), Version(start, 10 * start)
        return learner.Learner(counting_agent(), state, version, seed, self.publish, **options)


@pytest.mark.parametrize("members", [(), (3,)])
def test_a_state_that_has_environment_steps_is_told_them_before_each_update(members):
    """They are those of the run's version, for each member of a population, so a resumed run goes on where it was."""

    class Counting(NamedTuple):
        env_steps: jax.Array

    def update(state, key, sample):
        del key, sample
        return state, Feedback({"seen": state.env_steps.min(), "most": state.env_steps.max()})

    agent = Agent(None, lambda state: state.env_steps, None, None, None, update, (), 1)
    start = Counting(np.zeros(members, np.float32))
    the_learner = learner.Learner(agent, start, Version(5, 1000), 0, lambda version, params: None)
    batches = [batch(0, env_steps=n) for n in (7, 9, 4)]
    seen = [(float(f.metrics["seen"]), float(f.metrics["most"])) for f, _ in the_learner.run(iter(batches))]
    assert seen == [(1000.0, 1000.0), (1007.0, 1007.0), (1016.0, 1016.0)]


def test_parameters_are_published_before_the_first_update_and_after_each():
    calls = Calls()
    the_learner = calls.learner()
    assert calls == [("publish", Version(0, 0), 0)]
    for _ in the_learner.run(calls.batches([batch(1, env_steps=7), batch(2, env_steps=9)])):
        calls.append(("yield", the_learner.version))
    assert calls == [
        ("publish", Version(0, 0), 0),
        ("batch", 0),
        ("publish", Version(1, 7), 1),
        ("yield", Version(1, 7)),
        ("batch", 1),
        ("publish", Version(2, 16), 2),
        ("yield", Version(2, 16)),
    ]
    assert the_learner.host_state() == (2, 3.0)


def test_publish_period_counts_updates():
    calls = Calls()
    the_learner = calls.learner(publish_period=3)
    list(the_learner.run(iter([batch(1)] * 7)))
    assert calls == [("publish", Version(n, 10 * n), n) for n in (0, 3, 6)]
    the_learner.publish()
    assert calls[-1] == ("publish", Version(7, 70), 7), "whatever the period, where asked"


def transitions(count: int) -> Batch:
    """Returns a batch of transitions whose rewards are 1, 2, ..."""
    rewards = 1 + np.arange(count, dtype=np.float32)
    sample = Sample(Transition(*[rewards] * 5), (), np.ones(count, np.float32))
    return Batch(send(sample), None, 10)


def test_several_updates_at_once_count_as_many_and_publish_where_the_period_was_passed():
    calls = Calls()
    the_learner = calls.learner(publish_period=4, updates_per_dispatch=3)
    versions = []
    for feedback, host in the_learner.run(iter([transitions(6)] * 6)):
        versions.append(the_learner.version)
        assert float(feedback.metrics["reward"]) == 5 + 6, "the last update's"
        assert "lag" not in host
    assert versions == [Version(3 * n, 10 * n) for n in range(1, 7)]
    # Multiples of 4 are passed on the way to 6, 9, 12 and 18; none between 12 and 15.
    assert calls == [("publish", Version(n, 10 * n // 3), n) for n in (0, 6, 9, 12, 18)]
    assert the_learner.host_state() == (18, 6 * 21.0), "each part was learned from once"


def test_several_updates_at_once_have_the_keys_of_as_many():
    singles = Calls().learner(start=5, seed=1)
    numbers = [float(f.metrics["random"]) for f, _ in singles.run(iter([transitions(2)] * 6))]
    at_once = Calls().learner(start=5, seed=1, updates_per_dispatch=3)
    assert [float(f.metrics["random"]) for f, _ in at_once.run(iter([transitions(6)] * 2))] == numbers[2::3]


def test_a_resumed_learner_publishes_and_counts_on():
    calls = Calls()
    list(calls.learner(start=4, publish_period=3).run(iter([batch(1)] * 3)))
    assert calls == [("publish", Version(4, 40), 4), ("publish", Version(6, 60), 6)]


@pytest.mark.parametrize("period", [1, 5])
def test_a_learner_goes_on_from_a_state_that_it_is_given_and_publishes_it_at_once(period):
    calls = Calls()
    the_learner = calls.learner(start=3, publish_period=period)
    list(the_learner.run(iter([batch(1.0)])))
    the_learner.replace(State(np.int32(100), np.float32(7)))
    assert calls[-1] == ("publish", Version(4, 40), 100)
    list(the_learner.run(iter([batch(2.0)])))
    assert the_learner.host_state() == (101, 9.0) and calls[-1] == ("publish", Version(5, 50), 101)


def test_published_parameters_outlive_the_updates_after_them():
    """The state's own buffers are donated to the next update."""
    published = []
    state = State(jnp.int32(0), jnp.float32(0))
    the_learner = learner.Learner(counting_agent(), state, Version(0, 0), 0, lambda v, p: published.append(p))
    list(the_learner.run(iter([batch(1)] * 3)))
    assert [int(MESH.host(params)) for params in published] == [0, 1, 2, 3]


def test_lag_is_the_updates_since_the_parameters_that_acted():
    the_learner = Calls().learner(start=9)
    lags = [
        host["lag"] for _, host in the_learner.run(iter([batch(1, learner_steps=(9,)), batch(1, learner_steps=(4, 7))]))
    ]
    assert lags == [0.0, 10 - 5.5]


def test_an_updates_key_comes_from_the_seed_and_the_updates_number_alone():
    def randoms(start, seed, updates):
        the_learner = Calls().learner(start=start, seed=seed)
        return [float(f.metrics["random"]) for f, _ in the_learner.run(iter([batch(1)] * updates))]

    numbers = randoms(0, seed=1, updates=5)
    assert len(set(numbers)) == 5
    assert randoms(3, seed=1, updates=2) == numbers[3:], "a resumed learner goes on with the same keys"
    assert not set(randoms(0, seed=2, updates=5)) & set(numbers)


def test_metrics_that_are_not_finite_are_named():
    assert learner.read_metrics(Feedback({"a": MESH.put(np.float32(1.5))}), MESH.host) == {"a": 1.5}
    bad = MESH.put({"value": np.float32(np.inf), "a": np.float32(1), "loss": np.float32(np.nan)})
    with pytest.raises(learner.NotFinite, match=r"^loss, value became") as error:
        learner.read_metrics(Feedback(bad), MESH.host)
    assert "\n" not in str(error.value)


# The threads ---------------------------------------------------------------------------------------------------------


def take(batches, count: int) -> list[float]:
    taken = [within(WAIT, f"batch {n}", next, batches) for n in range(count)]
    return [float(b.sample.steps.reward.sum()) for b in taken]


def test_prefetch_keeps_the_batches_and_puts_them_on_the_devices():
    batches = learner.prefetch(iter([batch(n, 10 + n, (n,), on_device=False) for n in range(5)]), lambda: False, send)
    for n, each in enumerate(within(WAIT, "all batches", list, batches)):
        assert isinstance(each.sample.steps.reward, jax.Array)
        assert each.sample.steps.reward.shape == (2, 1)
        assert (float(each.sample.steps.reward.sum()), each.env_steps, each.learner_steps.tolist()) == (n, 10 + n, [n])
    assert n == 4


def test_prefetch_fetches_one_batch_ahead_and_no_more():
    fetched, release = [], threading.Semaphore(0)

    def endless():
        while True:
            fetched.append(len(fetched))
            yield batch(fetched[-1], on_device=False)

    batches = learner.prefetch(endless(), lambda: False, send)
    for taken in range(1, 5):
        assert take(batches, 1) == [taken - 1]
        until(lambda taken=taken: len(fetched) == taken + 1, WAIT, "the next batch is fetched")
    # A thread that fetched more would do so about now.
    assert not release.acquire(timeout=0.3)
    assert len(fetched) == 5


def test_prefetch_raises_the_fetching_threads_error_in_the_learners():
    def failing():
        yield batch(1, on_device=False)
        raise ConnectionError("the replay server is gone")

    batches = learner.prefetch(failing(), lambda: False, send)
    assert take(batches, 1) == [1.0]
    with pytest.raises(ConnectionError, match="is gone"):
        take(batches, 1)


def test_prefetch_ends_when_stopped_though_no_batch_comes():
    never, stop = threading.Event(), threading.Event()

    def waiting():
        yield batch(1, on_device=False)
        never.wait()

    batches = learner.prefetch(waiting(), stop.is_set, send)
    assert take(batches, 1) == [1.0]
    stop.set()
    assert within(WAIT, "prefetch to end", list, batches) == []
    never.set()


class Variables:
    """A container whose pushes take as long as the test wants."""

    def __init__(self, slow: bool = False):
        self.pushed, self.entered, self.slow = [], threading.Semaphore(0), slow
        self.go_on = threading.Semaphore(0)

    def push(self, version, params):
        self.entered.release()
        if self.slow:
            assert self.go_on.acquire(timeout=WAIT)
        self.pushed.append((version.learner_steps, float(params)))


def on_devices(value: float):
    return MESH.put(np.float32(value))


def test_publisher_pushes_from_another_thread_the_newest_only():
    variables = Variables(slow=True)
    publisher = learner.Publisher(variables, MESH.host)
    publisher(Version(0, 0), on_devices(0.5))
    assert variables.entered.acquire(timeout=WAIT), "waited in vain for the first push"
    for version in (1, 2, 3):  # during that push: 1 and 2 are out of date before they can be pushed
        within(WAIT, "the learner to hand over parameters", publisher, Version(version, 0), on_devices(version + 0.5))
    variables.slow = False
    variables.go_on.release()
    within(WAIT, "the publisher to close", publisher.close)
    assert variables.pushed == [(0, 0.5), (3, 3.5)]


def test_publisher_pushes_what_is_left_when_closed():
    for _ in range(20):
        variables = Variables()
        publisher = learner.Publisher(variables, MESH.host)
        for version in range(3):
            publisher(Version(version, 0), on_devices(version))
        within(WAIT, "the publisher to close", publisher.close)
        assert variables.pushed[-1] == (2, 2.0)


def test_publisher_pushes_the_last_again_when_nothing_new_comes():
    variables = Variables()
    publisher = learner.Publisher(variables, MESH.host, refresh=0.02)
    publisher(Version(1, 0), on_devices(1))
    until(lambda: len(variables.pushed) >= 3, WAIT, "the same parameters are pushed three times")
    publisher(Version(2, 0), on_devices(2))
    until(lambda: variables.pushed[-1] == (2, 2.0), WAIT, "the newer ones are pushed")
    within(WAIT, "the publisher to close", publisher.close)
    assert set(variables.pushed) == {(1, 1.0), (2, 2.0)}


def gradients(losses: float, learner_steps: int, env_steps: int = 10) -> Batch:
    return batch(1.0, env_steps, (learner_steps,))._replace(losses=np.array([losses], np.float32))


@pytest.mark.parametrize("bound", [1, 3])
def test_gradients_are_dropped_one_beyond_the_bound_and_their_experience_counts(bound):
    """The learner stands at update 7, 8, ...; a gradient's age counts at the time when it would be applied."""
    calls = Calls()
    admission = learner.Admission(bound, 0.0)
    run = calls.learner(start=7, admission=admission)
    ages = [0, bound, bound + 1, bound + 2, bound, 0]
    standing, batches = 7, []
    for age in ages:
        batches.append(gradients(1.0, standing - age))
        standing += age <= bound
    hosts = [host for _, host in run.run(iter(batches))]
    assert [host["lag"] for host in hosts] == [0, bound, bound, 0]
    assert [host["stale"] for host in hosts] == [0, 0, 2, 2] and hosts[-1]["outliers"] == 0
    assert run.version == Version(7 + 4, 70 + 6 * 10)


def test_gradients_of_outlying_losses_are_dropped_until_the_scale_is_theirs():
    admission = learner.Admission(0, 3.0)
    rng = np.random.default_rng(0)
    for loss in rng.normal(10.0, 1.0, 300):
        admission(gradients(loss, 0), 0)
    dropped = admission.outliers
    assert dropped < 10, "of 300 within a normal's tails, and none of the first hundred"
    assert admission(gradients(11.0, 0), 0) and admission(gradients(2.0, 0), 0), "a small loss is none"
    assert not admission(gradients(50.0, 0), 0) and admission.outliers == dropped + 1
    taken = [admission(gradients(50.0, 0), 0) for _ in range(100)]
    assert taken[-1], "a change of scale is followed"
    everything = learner.Admission(0, 0.0)
    assert all(everything(gradients(loss, -(10**6)), 0) for loss in (1.0, 1e9) for _ in range(200))
