"""The hosts of a pod: processes that run the same command, each with its own actors and experience, and whose devices
learn as one mesh.

Hosts connect to each other by TCP before JAX connects them. So if a host is missing, or was given other settings, each
host says so in one line instead of hanging. The connections stay open: by them the others hear that a host has ended,
where JAX would wait for it.
"""

import collections
import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import AXIS, Version

BEAT_SECONDS = 2.0  # from one sign of life to the next
LOST_SECONDS = 15.0  # a host without a sign of life for this long is lost
LATE = 2  # updates until what hosts told each other is read, for a learner has as many under way


@dataclasses.dataclass(frozen=True)
class Hosts:
    """This host's place in its pod: number `index`, from 0, of `count` hosts."""

    index: int
    count: int


ALONE = Hosts(0, 1)


class HostsDiffer(ValueError):
    """Not all hosts of a pod came, or they were not given the same settings."""


class HostLost(ConnectionError):
    """A host of the pod ended before the run did, or is silent."""


class Meeting:
    """This host's connections to the others: host 0 has one to each other host, and these have one to host 0 alone."""

    def __init__(self, hosts: Hosts, address: tuple[str, int], told: Mapping[str, Any], seconds: float):
        """Connects to the others; returns once all hosts have come and were `told` the same.

        Args:
          address: the host and port where host 0 listens.
          told: what must be the same on all hosts, of JSON's types.
          seconds: how long to wait for the others.

        Raises:
          HostsDiffer: on every host that came, with the same message.
        """
        self.hosts, self._lost, self._closing, self._over = hosts, "", False, False
        self._changed = threading.Condition()
        self._left: dict[int, socket.socket] = {}  # connections to the hosts that have not ended yet, by index
        self._deadline = time.monotonic() + seconds
        self._seconds = seconds
        (self._listen if hosts.index == 0 else self._connect)(address, {"count": hosts.count, **told})
        for index, connection in self._left.items():
            connection.settimeout(LOST_SECONDS)
            threading.Thread(target=self._hear, args=(index, connection), name=f"host_{index}", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def _listen(self, address: tuple[str, int], told: dict[str, Any]) -> None:
        try:
            listener = socket.create_server(("", address[1]))
        except OSError as error:
            raise HostsDiffer(f"the first host cannot listen on port {address[1]}: {error.strerror}") from error
        trouble, came = "", list[socket.socket]()
        with listener:
            while len(came) < self.hosts.count - 1:  # after trouble, too: all hosts are told of it
                listener.settimeout(max(0.01, self._deadline - time.monotonic()))
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    missing = sorted(set(range(1, self.hosts.count)) - self._left.keys())
                    trouble = trouble or (
                        f"of {self.hosts.count} hosts {', '.join(map(str, missing))} did not join within "
                        f"{self._seconds:.0f} s"
                    )
                    break
                connection.settimeout(10.0)
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # no host of ours
                    theirs = _receive(connection)
                    index = int(theirs.pop("host"))
                    trouble = trouble or self._difference(index, told, theirs)
                    came.append(connection)
                    self._left.setdefault(index, connection)
        for connection in came:
            with contextlib.suppress(OSError):
                _send(connection, {"trouble": trouble})
        if trouble:
            raise HostsDiffer(trouble)

    def _difference(self, index: int, told: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
        """Returns why a host cannot be one of these, or "" if it can."""
        if not 0 < index < self.hosts.count or index in self._left:
            return f"two processes say that they are host {index}: give each another --host below {self.hosts.count}"
        for name in sorted(told.keys() | theirs.keys()):
            if told.get(name) != theirs.get(name):
                return f"hosts differ: {name} is {told.get(name)} on host 0 and {theirs.get(name)} on host {index}"
        return ""

    def _connect(self, address: tuple[str, int], told: dict[str, Any]) -> None:
        while True:
            try:
                connection = socket.create_connection(address, timeout=5.0)
                break
            except OSError as error:
                if time.monotonic() > self._deadline:
                    raise HostsDiffer(
                        f"host 0 does not answer at {address[0]}:{address[1]} ({error}): is its command running?"
                    ) from error
                time.sleep(0.2)
        connection.settimeout(max(1.0, self._seconds))
        try:
            _send(connection, {"host": self.hosts.index, **told})
            trouble = _receive(connection)["trouble"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HostsDiffer(f"host 0 at {address[0]}:{address[1]} ended before all hosts had joined") from error
        if trouble:
            raise HostsDiffer(trouble)
        self._left[0] = connection

    def _beat(self) -> None:
        while not self._over:
            for connection in list(self._left.values()):
                with contextlib.suppress(OSError):  # `_hear` finds out that the connection is broken
                    _send(connection, {})
            time.sleep(BEAT_SECONDS)

    def _hear(self, index: int, connection: socket.socket) -> None:
        lost, ended = "", False
        try:
            with connection.makefile("r") as lines:
                for line in lines:
                    said = json.loads(line)
                    ended = ended or "ended" in said
                    if lost := said.get("lost", ""):
                        break
                else:
                    lost = "" if ended or self._over else f"host {index} of {self.hosts.count} ended"
        except (OSError, ValueError):
            lost = "" if ended or self._over else f"host {index} of {self.hosts.count} is silent"
        with self._changed:
            self._left.pop(index, None)
            self._lost = self._lost or lost
            self._changed.notify_all()
            others = list(self._left.values())
        if lost:
            for other in others:
                with contextlib.suppress(OSError):
                    _send(other, {"lost": lost})

    def fail(self) -> None:
        """Tells the others that this host ended before the run did, and waits as `close` does."""
        for connection in list(self._left.values()):
            with contextlib.suppress(OSError):
                _send(connection, {"lost": f"host {self.hosts.index} of {self.hosts.count} ended"})
        self.close(2 * LOST_SECONDS)

    def check(self, wait: float | None = 0.0) -> None:
        """Raises HostLost if a host is lost or gets lost within `wait` seconds; None waits until one is lost."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost, wait)
            if self._lost:
                raise HostLost(f"{self._lost}, so the others cannot go on: give every host the same command again")

    def watch(self, leave: Callable[[HostLost], None]) -> None:
        """Starts a thread that calls `leave` once a host is lost, unless `close` was called before.

        It needs its own thread because this process's others may be waiting for that host anywhere inside JAX.
        """

        def wait() -> None:
            try:
                self.check(None)
            except HostLost as error:
                if not self._closing:
                    leave(error)

        threading.Thread(target=wait, name="watch", daemon=True).start()

    def close(self, seconds: float) -> None:
        """Tells the others that this host is at its end.

        Host 0 then waits for the other processes to end, for at most `seconds`: JAX's service, on which they depend, is
        in its process.
        """
        self._closing = True
        for connection in list(self._left.values()):
            with contextlib.suppress(OSError):
                _send(connection, {"ended": True})
        with self._changed:
            if self.hosts.index == 0:
                self._changed.wait_for(lambda: not self._left, seconds)
        self._over = True


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any]:
    """Reads one message, byte by byte, so as to leave what follows to the next reader.

    Raises:
      ConnectionError: the connection ended first.
    """
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("it ended")
        line += byte
    message: dict[str, Any] = json.loads(line)
    return message


def start_jax(hosts: Hosts | None = None, address: tuple[str, int] | None = None) -> None:
    """Joins the hosts' devices; must be called before any computation.

    `address` is where JAX's own service is to listen, on host 0. If neither argument is given JAX finds the hosts
    itself, on a TPU pod or under SLURM or Open MPI.

    Raises:
      ValueError, RuntimeError: JAX finds none.
    """
    # So that JAX does not end this process when another host's ends: Meeting hears of that too, and says why.
    jax.config.update("jax_enable_recoverability", True)
    with _native_lines_nowhere():  # it warns, in C++, that this is new
        if hosts and address:
            place = f"{address[0]}:{address[1]}"
            jax.distributed.initialize(place, hosts.count, hosts.index, cluster_detection_method="deactivate")
        else:
            jax.distributed.initialize()


@contextlib.contextmanager
def _native_lines_nowhere() -> Iterator[None]:
    """Drops what C++ code writes to the standard error, but not what Python writes there, such as `leave`'s message."""
    seen = os.dup(2)
    with open(os.devnull, "wb") as nowhere, open(seen, "w", closefd=False) as words:
        os.dup2(nowhere.fileno(), 2)
        try:
            with contextlib.redirect_stderr(words):
                yield
        finally:
            os.dup2(seen, 2)
            os.close(seen)


class Agreement:
    """Lets the learners of several hosts agree on what all of them must see alike.

    These are the environment steps that were new in an update, summed over all hosts, whether any host was asked to
    end, and whether any host sees that the run is done. They travel by the mesh, and are read LATE updates later, when
    reading costs no waiting.
    """

    def __init__(self, mesh: Any):
        """`mesh`: a runtime.devices.Mesh over all hosts."""
        self._mesh = mesh
        self._sum = mesh.compile(lambda x: jax.lax.psum(jnp.sum(x, axis=0), AXIS), (mesh.ROWS,), mesh.REPLICATED)
        self._under_way: collections.deque[Any] = collections.deque()

    def __call__(self, env_steps: int, asked: bool, done: bool) -> tuple[int, bool, bool]:
        """Tells the others of this host's update; every host must call it at each update.

        Returns (env_steps, asked, done) of the update LATE before this one: the sum of all hosts' environment steps,
        whether any host was asked to end, and whether any host saw that the run is done. At first they are 0, False and
        False.
        """
        told = np.zeros((self._mesh.size, 3), np.int32)
        told[0] = env_steps, asked, done
        self._under_way.append(self._sum(self._mesh.put(told, self._mesh.ROWS)))
        if len(self._under_way) <= LATE:
            return 0, False, False
        steps, asked, done = self._mesh.host(self._under_way.popleft())
        return int(steps), bool(asked), bool(done)


def share_state(state: Any, version: Version) -> tuple[Any, Version]:
    """Returns host 0's `state` and `version` on every host. All hosts must call it together."""
    from jax.experimental import multihost_utils

    counts = np.array([divmod(count, 2**30) for count in version], np.int32)  # JAX has no int64
    state, counts = jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all((state, counts)))
    return state, Version(*(int(high) * 2**30 + int(low) for high, low in counts))


def first_says(fact: bool) -> bool:
    """Returns host 0's `fact` on every host. All hosts must call it together; a host that is alone gets its own."""
    if jax.process_count() == 1:
        return fact
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.int32(fact)))


def asked_for(stop: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """Returns a function that says whether `stop` has been true for `seconds`, counted from the first time it saw so.

    Hosts end together, at an update. Where no update comes any more, this says when to stop waiting for one.
    """
    since: list[float] = []

    def patience() -> bool:
        if not stop():
            return False
        since[:] = since or [time.monotonic()]
        return time.monotonic() - since[0] > seconds

    return patience


def tell_before_an_abort(meeting: Meeting, leave: Callable[[HostLost], None]) -> None:
    """Has this process call `leave` when JAX's client aborts it, as the client does when host 0 is gone.

    The client tells the reason only from C++, where nobody reads it, and cannot be told to do anything else.
    """

    def handle(number: int) -> None:  # called in a thread of C++, for which ctypes takes Python's lock
        try:
            meeting.check(LOST_SECONDS)
        except HostLost as error:
            leave(error)
        leave(HostLost("JAX gave this host of the pod up: the newest file in the logs of its --logdir says more"))

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    _kept.append(handler)
    # Set by the C library: a handler set by Python's `signal` would be called too late, after the process is gone.
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


_kept: list[Any] = []  # the handlers, kept for ever because C++ may call them as long as the process lives
_leaving = threading.Lock()


def leave(error: HostLost, code: int) -> None:
    """Prints the error and ends this process at once with an exit code, from any thread, or from several.

    It does not wait for the learner, which may be waiting in JAX for a host that never comes back.
    """
    _leaving.acquire()  # never released, so that only the first caller's error is printed
    with contextlib.suppress(OSError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(code)
