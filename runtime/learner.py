"""The learner: samples in, parameters out."""

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

STALL_SECONDS = 60  # of waiting before a warning says who waits for whom


class NotFinite(FloatingPointError):
    """A metric is NaN or infinite."""


def prefetch(batches: Iterator[Batch], stopped: Callable[[], bool], send: Callable[[Any], Any]) -> Iterator[Batch]:
    """The same batches, fetched and sent to the devices by a thread, one ahead: the transfer of the next overlaps with
    the update on this one. Ends with them, or when `stopped` is true even while no batch comes.

    `send` takes a sample to the devices, as `runtime.devices.send` does.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue()
    wanted = threading.Semaphore(1)  # one ahead, not one in the queue and another in the thread's hand

    def fetch():
        give_way()  # and Reverb's sampler, which this thread starts
        try:
            while wanted.acquire():
                batch = next(batches, None)
                ready.put(batch and batch._replace(sample=send(batch.sample)))
        except BaseException as error:  # raised where it can be handled: in the learner's thread
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

    Parameters that come faster than they can be pushed replace each other. Every `refresh` seconds without new ones
    the last are pushed again: a replay server that was restarted has none.
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
        """Pushes what is left and ends the thread; gives up, with a warning, on a server that is down."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(queue.Full):
            self._newest.put(None, timeout=timeout)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            logging.warning("the last parameters were not published: the replay server did not take them")


class PriorityUpdater:
    """Sends items' new priorities to the servers they came from, in a thread of its own."""

    def __init__(
        self,
        send: Callable[[tuple[np.ndarray, ...], np.ndarray], None],
        local: Callable[[Any], np.ndarray],
        patience: float = STALL_SECONDS,
    ):
        """
        Args:
          send: (keys, priorities [B]) to the servers, as a channel's `feedback`; waits for servers that are down.
          local: takes this host's priorities from the devices to the host, as `Mesh.local` does.
          patience: seconds that the learner waits for servers that fall far behind, before it goes on without.
        """
        self._send, self._local, self._patience = send, local, patience
        # An update's priorities wait here while it is computed, and while a server is down.
        self._pending: queue.Queue[tuple[tuple[np.ndarray, ...], Any] | None] = queue.Queue(maxsize=16)
        self._thread = threading.Thread(target=self._run, name="priorities", daemon=True)
        self._thread.start()

    def __call__(self, keys: tuple[np.ndarray, ...], priorities: Any) -> None:
        """`keys` of each server, in the order of the batch; `priorities` [B], on the devices."""
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
        """Sends what is left and ends the thread; gives up, with a warning, on a server that is down."""
        self._put(None, timeout)
        self._thread.join(timeout)
        if self._thread.is_alive():
            logging.warning("the last priorities were lost: a replay server did not take them within %g s", timeout)


class Admission:
    """Which gradients a learner applies (Nair et al. 2015, https://arxiv.org/abs/1507.04296, on stability).

    The mean and the deviation of losses are running ones, of all gradients, the dropped ones too: so that a change of
    scale is followed, and not shut out for good.
    """

    DECAY, WARM_UP = 0.99, 100  # of the averages; gradients before any is an outlier

    def __init__(self, max_staleness: int, max_loss_deviations: float):
        """Either 0: no gradient is dropped for it."""
        self._max_staleness, self._max_deviations = max_staleness, max_loss_deviations
        self._mean = self._square = 0.0
        self.seen = self.stale = self.outliers = 0

    def __call__(self, batch: Batch, learner_steps: int) -> bool:
        """Whether to apply the batch's gradients to the parameters of `learner_steps`."""
        assert batch.learner_steps is not None and batch.losses is not None
        loss = float(np.abs(batch.losses).max())
        deviation = max(self._square - self._mean**2, 0.0) ** 0.5
        outlier = self.seen >= self.WARM_UP and loss > self._mean + self._max_deviations * deviation
        decay = min(self.DECAY, self.seen / (self.seen + 1))  # at first the mean of all so far
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
          agent: whose update it is.
          state: on the host, new or from a checkpoint.
          version: how far `state` has come.
          seed: every update's key comes from it and from the update's number alone, so that nothing random is saved.
          publish: takes (version, params on the devices).
          publish_period: updates from one publication to the next.
          update_priorities: takes (keys, priorities on the devices), where the agent gives priorities.
          updates_per_dispatch: updates on one batch, a minibatch each; one after another, but asked for at once.
          admission: of gradients: what it does not admit is passed over.
          mesh: the devices that learn; all of them, if it is not given.
          source: a replay on them, of which updates draw their own samples; None: samples come with the batches.
          asked: of several hosts whether this one is to end; then all do, at the same update.
          done: of several hosts whether this one sees that the run is done; then all end, and all are `done`.
        """
        self._mesh = mesh = mesh or devices.make_mesh()
        self.state, self.version = mesh.put(state), version
        self._step = mesh.put(np.uint32(version.learner_steps))
        # Of an agent whose settings change as a run goes on, one for each member of a population.
        self._env_steps_shape = np.shape(state.env_steps) if hasattr(state, "env_steps") else None
        self._updates_per_dispatch, self._admission = updates_per_dispatch, admission
        self._update = self._compile(agent, seed, source)
        self._policy, self._update_priorities = devices.compile_policy(mesh, agent), update_priorities
        self._publish, self._publish_period = publish, publish_period
        self._agreement = Agreement(mesh) if jax.process_count() > 1 else None
        self._asked, self._sees_done, self.done = asked, done, False
        publish(version, self._policy(self.state))

    def _compile(self, agent: Agent, seed: int, source: Any) -> Callable[..., Any]:
        """An update of (state, step, sample)."""
        mesh, at_once = self._mesh, self._updates_per_dispatch
        if source is None:
            return devices.compile_update(mesh, agent, seed, at_once)
        update: Callable[..., Any] = source.bind(devices.compile_drawing_update(mesh, agent, seed, at_once, source))
        return update

    def host_state(self) -> State:
        """One device's copy of the state, on the host: what a checkpoint holds."""
        return self._mesh.host(self.state)

    def publish(self) -> None:
        self._publish(self.version, self._policy(self.state))

    def replace(self, state: State) -> None:
        """Goes on with another `state` (on the host), and publishes its parameters."""
        self.state = self._mesh.put(state)
        self.publish()

    def run(self, batches: Iterator[Batch]) -> Iterator[tuple[Feedback, dict[str, Any]]]:
        """Updates on each batch (its sample already on the devices); yields (feedback, host metrics).

        The feedback is still on its way when it is yielded: read it one step later, and nothing waits.
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
                    # Its experience was made all the same.
                    self.version = self.version._replace(env_steps=self.version.env_steps + batch.env_steps)
                    continue
                host |= {"stale": self._admission.stale, "outliers": self._admission.outliers}
            # Two updates under way keep an accelerator busy; more would only make the next batches older.
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
    """An update's metrics, taken to the host by `host`, as `Mesh.host` does; waits for the update.

    Raises:
      NotFinite: names those that are NaN or infinite.
    """
    metrics = {name: float(value) for name, value in host(feedback.metrics).items()}
    bad = sorted(name for name, value in metrics.items() if not np.isfinite(value))
    if bad:
        raise NotFinite(
            f"{', '.join(bad)} became {metrics[bad[0]]}; the last good checkpoint is kept: "
            "try a smaller learning rate (a field of --config)"
        )
    return metrics
