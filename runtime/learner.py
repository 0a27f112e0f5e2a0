"""The learner: it updates on batches of samples and publishes parameters."""

import collections
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

from agents.agent import Agent, Feedback, State, Version
from replay.rows import Batch, Variables
from runtime import devices
from runtime.hosts import Agreement
from runtime.scheduling import give_way

STALL_SECONDS = 60  # seconds of waiting, after which a warning says who waits for whom


class NotFinite(FloatingPointError):
    """A metric is NaN or infinite."""


def prefetch(batches: Iterator[Batch], stopped: Callable[[], bool], send: Callable[[Any], Any]) -> Iterator[Batch]:
    """Yields the same batches, which a thread fetches and sends to the devices one ahead.

    So the transfer of the next batch overlaps with the update on this one. Ends when the batches end, or once `stopped`
    is true, even while no batch comes. What the thread raises is raised here.

    `send` takes a sample to the devices, as `runtime.devices.send` does.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue()
    wanted = threading.Semaphore(1)  # else there would be one batch in the queue and another in the thread's hands

    def fetch():
        give_way()  # holds for Reverb's sampler too, which this thread starts
        try:
            while wanted.acquire():
                batch = next(batches, None)
                ready.put(batch and batch._replace(sample=send(batch.sample)))
        except BaseException as error:  # to be raised in the learner's thread, where it can be handled
            ready.put(error)

    # A daemon: Reverb's samplers cannot be interrupted while they wait.
    threading.Thread(target=fetch, name="prefetch", daemon=True).start()
    waiting_since = time.monotonic()
    while not stopped():
        try:
            batch = ready.get(timeout=0.2)
        except queue.Empty:
            if time.monotonic() - waiting_since > STALL_SECONDS:
                logging.warning("the learner has waited %d s for a batch: do actors run and write?", STALL_SECONDS)
                waiting_since = time.monotonic()
            continue
        if isinstance(batch, BaseException):
            raise batch
        if batch is None:
            return
        wanted.release()
        yield batch
        waiting_since = time.monotonic()


class Publisher:
    """Pushes the newest parameters from a thread of its own, so that no update waits for the copy to the host.

    Parameters that come faster than they can be pushed replace each other. After `refresh` seconds without new ones the
    last ones are pushed again, because a replay server that was restarted has none.
    """

    def __init__(self, variables: Variables, host: Callable[[Any], Any], refresh: float = 10.0):
        """`host` takes parameters from the devices to the host, as `Mesh.host` does."""
        self._variables, self._host, self._refresh = variables, host, refresh
        self._newest: queue.Queue[tuple[Version, Any] | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def __call__(self, version: Version, params: Any) -> None:
        with contextlib.suppress(queue.Empty):
            self._newest.get_nowait()
        self._newest.put((version, params))

    def _run(self) -> None:
        last = None
        while True:
            try:
                newest = self._newest.get(timeout=self._refresh)
                if newest is None:
                    return
                last = newest[0], self._host(newest[1])
            except queue.Empty:
                pass
            if last is not None:
                self._variables.push(*last)

    def close(self, timeout: float = 10.0) -> None:
        """Pushes what is left and ends the thread; warns if the server has not taken it within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(queue.Full):
            self._newest.put(None, timeout=timeout)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            logging.warning("the last parameters were not published: the replay server did not take them")


class PriorityUpdater:
    """Sends items' new priorities to the replay servers that the items came from, in a thread of its own."""

    def __init__(
        self,
        send: Callable[[tuple[np.ndarray, ...], np.ndarray], None],
        local: Callable[[Any], np.ndarray],
        patience: float = STALL_SECONDS,
    ):
        """
        Args:
          send: sends (keys, priorities [B]) to the servers, as a channel's `feedback` does; waits for servers that are
            down.
          local: takes this host's priorities from the devices to the host, as `Mesh.local` does.
          patience: seconds that the learner waits for servers that are far behind, before it drops an update's
            priorities and goes on.
        """
        self._send, self._local, self._patience = send, local, patience
        # An update's priorities wait here while the update is computed, and while a server is down.
        self._pending: queue.Queue[tuple[tuple[np.ndarray, ...], Any] | None] = queue.Queue(maxsize=16)
        self._thread = threading.Thread(target=self._run, name="priorities", daemon=True)
        self._thread.start()

    def __call__(self, keys: tuple[np.ndarray, ...], priorities: Any) -> None:
        """Takes the `keys` from each server, in the order of the batch, and `priorities` [B], on the devices."""
        self._put((keys, priorities), self._patience)

    def _put(self, pending: tuple[tuple[np.ndarray, ...], Any] | None, timeout: float) -> None:
        try:
            self._pending.put(pending, timeout=timeout)
        except queue.Full:
            logging.warning("priorities were lost: no replay server took any for %g s", timeout)

    def _run(self) -> None:
        while (pending := self._pending.get()) is not None:
            keys, priorities = pending
            self._send(keys, self._local(priorities))

    def close(self, timeout: float = 10.0) -> None:
        """Sends what is left and ends the thread; warns if a server has not taken it within `timeout` seconds."""
        self._put(None, timeout)
        self._thread.join(timeout)
        if self._thread.is_alive():
            logging.warning("the last priorities were lost: a replay server did not take them within %g s", timeout)


class Admission:
    """Decides which gradients a learner applies (Nair et al. 2015, https://arxiv.org/abs/1507.04296, on stability).

    The running mean and deviation of the losses are over all gradients, the dropped ones too, so that a lasting change
    of the losses' scale is followed and not rejected for ever.
    """

    DECAY, WARM_UP = 0.99, 100  # decay of the averages; number of gradients before any can be an outlier

    def __init__(self, max_staleness: int, max_loss_deviations: float):
        """
        Args:
          max_staleness: updates since the parameters of a gradient; an older gradient is dropped. 0: none is.
          max_loss_deviations: a gradient whose loss is more standard deviations above the mean is dropped. 0: none is.
        """
        self._max_staleness, self._max_deviations = max_staleness, max_loss_deviations
        self._mean = self._square = 0.0
        self.seen = self.stale = self.outliers = 0

    def __call__(self, batch: Batch, learner_steps: int) -> bool:
        """Returns whether to apply the batch's gradients to the parameters after `learner_steps` updates."""
        assert batch.learner_steps is not None and batch.losses is not None
        loss = float(np.abs(batch.losses).max())
        deviation = max(self._square - self._mean**2, 0.0) ** 0.5
        outlier = self.seen >= self.WARM_UP and loss > self._mean + self._max_deviations * deviation
        decay = min(self.DECAY, self.seen / (self.seen + 1))  # at first, each average is the plain mean of all so far
        self._mean += (1 - decay) * (loss - self._mean)
        self._square += (1 - decay) * (loss**2 - self._square)
        self.seen += 1
        if self._max_staleness and learner_steps - batch.learner_steps.min() > self._max_staleness:
            self.stale += 1
            return False
        if self._max_deviations and outlier:
            self.outliers += 1
            return False
        return True


class Learner:
    """The state of learning and the loop that advances it."""

    def __init__(
        self,
        agent: Agent,
        state: State,
        version: Version,
        seed: int,
        publish: Callable[[Version, Any], None],
        publish_period: int = 1,
        update_priorities: Callable[[tuple[np.ndarray, ...], Any], None] | None = None,
        updates_per_dispatch: int = 1,
        admission: Admission | None = None,
        mesh: devices.Mesh | None = None,
        source: Any = None,
        asked: Callable[[], bool] = lambda: False,
        done: Callable[[], bool] = lambda: False,
    ):
        """Puts `state` on the mesh's devices and publishes its parameters.

        Args:
          agent: its `update` is compiled and its `policy` gives the parameters to publish.
          state: on the host, new or from a checkpoint.
          version: how far `state` has come.
          seed: every update's key comes from it, the update's number and the device alone, so that nothing random has
            to be saved.
          publish: takes (version, params on the devices).
          publish_period: updates from one publication to the next.
          update_priorities: takes (keys, priorities on the devices), if the agent gives priorities.
          updates_per_dispatch: updates on each batch, one after another, on a minibatch of it each; they are dispatched
            to the devices together.
          admission: says which batches of gradients are applied; None: all.
          mesh: the devices that learn; all devices, if it is not given.
          source: a replay on the devices, from which updates draw their samples; None: samples come with the batches.
          asked: with several hosts, whether this one was asked to end; then all end, at the same update.
          done: with several hosts, whether this one sees that the run is done; then all end, and `self.done` is true.
        """
        self._mesh = mesh = mesh or devices.make_mesh()
        self.state, self.version = mesh.put(state), version
        self._step = mesh.put(np.uint32(version.learner_steps))
        # () or, for stacked members of a population, [members]; agents without schedules have no env_steps.
        self._env_steps_shape = np.shape(state.env_steps) if hasattr(state, "env_steps") else None
        self._updates_per_dispatch, self._admission = updates_per_dispatch, admission
        self._update = self._compile(agent, seed, source)
        self._policy, self._update_priorities = devices.compile_policy(mesh, agent), update_priorities
        self._publish, self._publish_period = publish, publish_period
        self._agreement = Agreement(mesh) if jax.process_count() > 1 else None
        self._asked, self._sees_done, self.done = asked, done, False
        publish(version, self._policy(self.state))

    def _compile(self, agent: Agent, seed: int, source: Any) -> Callable[..., Any]:
        """Compiles the update, a function (state, step, sample) -> (state, step, feedback)."""
        mesh, at_once = self._mesh, self._updates_per_dispatch
        if source is None:
            return devices.compile_update(mesh, agent, seed, at_once)
        update: Callable[..., Any] = source.bind(devices.compile_drawing_update(mesh, agent, seed, at_once, source))
        return update

    def host_state(self) -> State:
        """Returns one device's copy of the state, on the host, as a checkpoint holds it."""
        return self._mesh.host(self.state)

    def publish(self) -> None:
        self._publish(self.version, self._policy(self.state))

    def replace(self, state: State) -> None:
        """Goes on with another `state` (on the host), and publishes its parameters."""
        self.state = self._mesh.put(state)
        self.publish()

    def run(self, batches: Iterator[Batch]) -> Iterator[tuple[Feedback, dict[str, Any]]]:
        """Updates on each batch, whose sample is on the devices already; yields (feedback, host metrics).

        The feedback may not be computed yet when it is yielded; whoever reads it one update later need not wait.
        """
        in_flight: collections.deque[Any] = collections.deque([None, None], maxlen=2)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            waited = time.perf_counter() - start
            host: dict[str, float] = {"wait_seconds": waited}
            if self._admission is not None:
                if not self._admission(batch, self.version.learner_steps):
                    # The experience of a dropped gradient counts all the same.
                    self.version = self.version._replace(env_steps=self.version.env_steps + batch.env_steps)
                    continue
                host |= {"stale": self._admission.stale, "outliers": self._admission.outliers}
            # Two updates under way keep an accelerator busy; with more, batches would only wait longer and grow older.
            jax.block_until_ready(in_flight[0])
            if self._env_steps_shape is not None:
                made = np.full(self._env_steps_shape, self.version.env_steps, np.float32)
                self.state = self.state._replace(env_steps=self._mesh.put(made))
            self.state, self._step, feedback = self._update(self.state, self._step, batch.sample)
            in_flight.append(feedback.metrics)
            if self._update_priorities is not None:
                self._update_priorities(batch.keys, feedback.priorities)
            if batch.learner_steps is not None:
                host["lag"] = float((self.version.learner_steps - batch.learner_steps).mean())
            before = self.version.learner_steps
            env_steps, ended = batch.env_steps, False
            if self._agreement is not None:
                env_steps, asked, self.done = self._agreement(env_steps, self._asked(), self._sees_done())
                ended = asked or self.done
            self.version = Version(before + self._updates_per_dispatch, self.version.env_steps + env_steps)
            if before // self._publish_period != self.version.learner_steps // self._publish_period:
                self.publish()
            yield feedback, host
            if ended:
                return


def read_metrics(feedback: Feedback, host: Callable[[Any], Any]) -> dict[str, float]:
    """Returns an update's metrics, taken to the host by `host`, as `Mesh.host` does; waits for the update.

    Raises:
      NotFinite: some metrics are NaN or infinite; the error names them.
    """
    metrics = {name: float(value) for name, value in host(feedback.metrics).items()}
    bad = sorted(name for name, value in metrics.items() if not np.isfinite(value))
    if bad:
        raise NotFinite(
            f"{', '.join(bad)} became {metrics[bad[0]]}; the last good checkpoint is kept: "
            "try a smaller learning rate (a field of --config)"
        )
    return metrics
