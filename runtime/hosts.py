"""The hosts of a pod: processes that run the same command, each with its own actors and experience, and whose devices
learn as one mesh.

They meet by TCP before JAX does. So a host that is missing, or that was given something else, is a line and not a hang;
and the connections stay, by which a host's end is heard wherever JAX would wait for it.
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
LOST_SECONDS = 15.0  # without any, after which a host is lost
LATE = 2  # updates: a learner has so many under way


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Which of a pod's hosts this one is."""

    index: int
    count: int


ALONE = Hosts(0, 1)


class HostsDiffer(ValueError):
    """Hosts did not all come, or do not run the same."""


class HostLost(ConnectionError):
    """A host of the pod ended before its time, or is silent."""


class Meeting:
    """This host's connections to the others: of the first to each, of each other to the first."""

    def __init__(self, hosts: Hosts, address: tuple[str, int], told: Mapping[str, Any], seconds: float):
        """Returns once all hosts are here and were told the same.

        Args:
          address: where the first one listens.
          told: what must be the same on all hosts; of JSON's types.
          seconds: how long to wait for the others.

        Raises:
          HostsDiffer: on every host that came, with the same words.
        """
        self.hosts, self._lost, self._closing, self._over = hosts, "", False, False
        self._changed = threading.Condition()
        self._left: dict[int, socket.socket] = {}  # hosts that are not at their end yet
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
            while len(came) < self.hosts.count - 1:  # also when there is trouble: it is told to all
                listener.settimeout(max(0.01, self._deadline - time.monotonic()))
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    missing = sorted(set(range(1, self.hosts.count)) - self._left.keys())
                    trouble = trouble or (
                        f"of {self.hosts.count} hosts {', '.join(map(str, missing))} did not come within "
                        f"{self._seconds:.0f} s"
                    )
                    break
                connection.settimeout(10.0)
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # a stranger's
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
        """Why a host cannot be one of these; "" if it can."""
        if not 0 < index < self.hosts.count or index in self._left:
            return f"two processes say that they are host {index}: each has another number below {self.hosts.count}"
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
            raise HostsDiffer(f"host 0 at {address[0]}:{address[1]} went away before all hosts had come") from error
        if trouble:
            raise HostsDiffer(trouble)
        self._left[0] = connection

    def _beat(self) -> None:
        while not self._over:
            for connection in list(self._left.values()):
                with contextlib.suppress(OSError):  # `_hear` says so
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
        """Says that this host goes on no more, and waits as `close` does."""
        for connection in list(self._left.values()):
            with contextlib.suppress(OSError):
                _send(connection, {"lost": f"host {self.hosts.index} of {self.hosts.count} ended"})
        self.close(2 * LOST_SECONDS)

    def check(self, wait: float | None = 0.0) -> None:
        """Raises HostLost if a host is lost, or becomes so within `wait` seconds; None: waits until one is."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost, wait)
            if self._lost:
                raise HostLost(f"{self._lost}, so the others cannot go on: give every host the same command again")

    def watch(self, leave: Callable[[HostLost], None]) -> None:
        """From now on until `close`, a thread of its own calls `leave` once a host is lost: this process's others may
        wait for that host, wherever in JAX."""

        def wait() -> None:
            try:
                self.check(None)
            except HostLost as error:
                if not self._closing:
                    leave(error)

        threading.Thread(target=wait, name="watch", daemon=True).start()

    def close(self, seconds: float) -> None:
        """Says that this host is at its end. The first then waits for the others' processes to be gone: they are bound
        to what JAX joined them by, which is the first one's."""
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
    """One message; bytes are read one by one, for what follows is another reader's."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("it ended")
        line += byte
    message: dict[str, Any] = json.loads(line)
    return message


def start_jax(hosts: Hosts | None = None, address: tuple[str, int] | None = None) -> None:
    """Joins the hosts' devices, before any computation; `address` is of JAX's own service, on the first host. Where
    neither is given JAX looks for them: on a TPU pod, under SLURM or Open MPI.

    Raises:
      ValueError, RuntimeError: it finds none.
    """
    # Of the others' ends Meeting hears, with a word.
    jax.config.update("jax_enable_recoverability", True)
    with _native_lines_nowhere():  # it warns, in C++, that this is new
        if hosts and address:
            place = f"{address[0]}:{address[1]}"
            jax.distributed.initialize(place, hosts.count, hosts.index, cluster_detection_method="deactivate")
        else:
            jax.distributed.initialize()


@contextlib.contextmanager
def _native_lines_nowhere() -> Iterator[None]:
    """Drops what C++ writes to the standard error; Python's words, such as those of `leave`, are seen."""
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
    """What learners on several hosts must see alike: how much experience was new in an update, of all together, whether
    one of them was asked to end, and whether one of them sees that the run is done. It goes by the mesh, and is known
    two updates late, when it costs no waiting.
    """

    def __init__(self, mesh: Any):
        """`mesh`: runtime.devices.Mesh, over all hosts."""
        self._mesh = mesh
        self._sum = mesh.compile(lambda x: jax.lax.psum(jnp.sum(x, axis=0), AXIS), (mesh.ROWS,), mesh.REPLICATED)
        self._under_way: collections.deque[Any] = collections.deque()

    def __call__(self, env_steps: int, asked: bool, done: bool) -> tuple[int, bool, bool]:
        """Tells the others of this host's update. Gives the sum of all hosts' `env_steps` in the update LATE before it,
        0 at first, and whether one of them was `asked` to end then, or saw that the run is `done`. Every host calls it
        at each update."""
        told = np.zeros((self._mesh.size, 3), np.int32)
        told[0] = env_steps, asked, done
        self._under_way.append(self._sum(self._mesh.put(told, self._mesh.ROWS)))
        if len(self._under_way) <= LATE:
            return 0, False, False
        steps, asked, done = self._mesh.host(self._under_way.popleft())
        return int(steps), bool(asked), bool(done)


def share_state(state: Any, version: Version) -> tuple[Any, Version]:
    """The first host's `state` and `version`, on every host. All call it together."""
    from jax.experimental import multihost_utils

    counts = np.array([divmod(count, 2**30) for count in version], np.int32)  # JAX has no int64
    state, counts = jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all((state, counts)))
    return state, Version(*(int(high) * 2**30 + int(low) for high, low in counts))


def first_says(fact: bool) -> bool:
    """The first host's word, on every host. All call it together; a host that is alone has its own."""
    if jax.process_count() == 1:
        return fact
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.int32(fact)))


def asked_for(stop: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """Whether `stop` has been true for so many seconds: hosts end together, but not where no update comes any more."""
    since: list[float] = []

    def patience() -> bool:
        if not stop():
            return False
        since[:] = since or [time.monotonic()]
        return time.monotonic() - since[0] > seconds

    return patience


def tell_before_an_abort(meeting: Meeting, leave: Callable[[HostLost], None]) -> None:
    """Has this process `leave` with a line where JAX's client aborts it, as it does when the first host is gone: it
    says so in C++, to nobody, and takes no other order."""

    def handle(number: int) -> None:  # in a thread of C++, which ctypes gives Python's lock
        try:
            meeting.check(LOST_SECONDS)
        except HostLost as error:
            leave(error)
        leave(HostLost("JAX gave this host of the pod up: the newest file in the logs of its --logdir says more"))

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    _kept.append(handler)
    # By the C library: what Python's `signal` takes would be called when the process is gone.
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


_kept: list[Any] = []  # what C++ may call must live as long as the process
_leaving = threading.Lock()


def leave(error: HostLost, code: int) -> None:
    """Ends this process with the error's words and an exit code: its learner waits in JAX for a host that does not come
    again. Any thread may call it, and more than one."""
    _leaving.acquire()  # for good: the first one's words are said
    with contextlib.suppress(OSError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(code)
