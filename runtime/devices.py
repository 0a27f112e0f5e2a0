"""The learner's devices as one mesh: data to them, one function on all of them at once, results back.

The same code runs on one device, on the eight of a host and, after `jax.distributed.initialize`, on several hosts:
each process feeds its own devices and the average over AXIS spans them all. Two mappers do it, jit with shard_map and
pmap, to the same numbers. How either lays an array out over the devices is known to this file alone: whoever reads one
asks `host` or `local`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from agents.agent import AXIS, Agent, Feedback, Params, Sample, State, Step

REPLICATED = P()  # whole on every device
ROWS = P(AXIS)  # the first axis is split over the devices
COLUMNS = P(None, AXIS)  # the second is

SMALL = 2 << 20  # bytes of a tree that one device gets faster through a compiled identity than by jax.device_put


class Mesh(Protocol):
    """The devices that learn together. Specs are tree prefixes, as in jax: one may stand for a whole subtree."""

    size: int  # devices of this process
    total: int  # of all processes
    REPLICATED, ROWS, COLUMNS = REPLICATED, ROWS, COLUMNS  # for those who cannot import them

    def put(self, tree: Any, specs: Any = REPLICATED) -> Any:
        """From this host to the devices: each array whole or in equal parts, as `specs` says. Of several hosts each
        puts its own part, in its own time. Starts the transfer and does not wait for it.

        On a CPU the result may share the memory of a NumPy array: leave it as it is from now on, as what comes from a
        sampler is left.

        Raises:
          ValueError: an axis does not divide over the devices.
        """
        ...

    def feed(self, tree: Any, specs: Any = REPLICATED) -> Any:
        """Arrays of this host as arguments of a compiled function. Where that takes them as they are, and sends them on
        its way, nothing is done here."""
        ...

    def compile(
        self, function: Callable[..., Any], in_specs: Any, out_specs: Any, donate_argnums: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """`function` on every device at once, each on its part of the arguments, with AXIS bound. The arguments are on
        the devices by `in_specs`, one for each, and what comes back is by `out_specs`.

        What is REPLICATED is not compared: each device goes on with its own, and the host sees the first one's.
        """
        ...

    def host(self, tree: Any) -> Any:
        """REPLICATED arrays, on the host. Waits for them to be computed."""
        ...

    def local(self, x: Any) -> np.ndarray:
        """This host's part of an array by ROWS, on the host. Waits for it to be computed."""
        ...

    def fetch(self, tree: Any, specs: Any) -> Any:
        """On the host what `put` sent by these specs, as it was then. Of one host's devices; waits."""
        ...

    def one(self, tree: Any) -> Any:
        """REPLICATED arrays, as this host's first device has them, and still there. Waits for nothing."""
        ...

    def alone(self) -> "Mesh":
        """This host's devices: what is compiled for them hosts need not call together."""
        ...

    def span(self, tree: Any, specs: Any) -> Any:
        """Arrays of `alone` as each host's part of arrays of this mesh, where ROWS and COLUMNS are longer by as many
        hosts as there are. Nothing moves: memory that one is donated is gone for the other."""
        ...

    def own(self, tree: Any, specs: Any) -> Any:
        """The way back: this host's part of arrays, as arrays of `alone`."""
        ...


class ShardMap(Mesh):
    """By jit and shard_map: arrays have their whole shape, and a sharding."""

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        devices = devices or jax.devices()
        mine = [device for device in devices if device.process_index == jax.process_index()]
        self.size, self.total = len(mine), len(devices)
        self._all, self._mine = (jax.sharding.Mesh(np.array(each), (AXIS,)) for each in (devices, mine))
        self._identities: dict[Any, Callable[[Any], Any]] = {}

    def put(self, tree: Any, specs: Any = REPLICATED) -> Any:
        tree = jax.tree.map(np.asarray, tree)
        _check(tree, specs, self.size)
        # First to this host's own devices, so that hosts need not agree who sends when.
        if self.size == 1 and sum(x.nbytes for x in jax.tree.leaves(tree)) < SMALL:
            mine = self._identity(specs)(tree)
        else:
            mine = jax.device_put(tree, _map(lambda spec: NamedSharding(self._mine, spec), specs))
        return self.span(mine, specs)

    def feed(self, tree: Any, specs: Any = REPLICATED) -> Any:
        return tree if self.total == self.size else self.put(tree, specs)

    def _identity(self, specs: Any) -> Callable[[Any], Any]:
        """A tenth of jax.device_put's time for a few small arrays."""
        key = _flatten(specs)
        if key not in self._identities:
            shardings = _map(lambda spec: NamedSharding(self._mine, spec), specs)
            self._identities[key] = jax.jit(lambda tree: tree, in_shardings=(shardings,), out_shardings=shardings)
        return self._identities[key]

    def alone(self) -> Mesh:
        return self if self.total == self.size else ShardMap(list(self._mine.devices.flat))

    def span(self, tree: Any, specs: Any) -> Any:
        return self._recount(tree, specs, self._all, lambda n: n * self.total // self.size)

    def own(self, tree: Any, specs: Any) -> Any:
        return self._recount(tree, specs, self._mine, lambda n: n * self.size // self.total)

    def _recount(self, tree: Any, specs: Any, mesh: jax.sharding.Mesh, count: Callable[[int], int]) -> Any:
        """The same memory on this host's devices, as arrays of `mesh`: `count` is of what is split."""
        if self.total == self.size:
            return tree

        def recount(spec: P, x: jax.Array) -> jax.Array:
            shape = tuple(count(n) if i == _split_axis(spec) else n for i, n in enumerate(x.shape))
            parts = [part.data for part in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, spec), parts)

        return _map(lambda spec, part: jax.tree.map(functools.partial(recount, spec), part), specs, tree)

    def compile(
        self, function: Callable[..., Any], in_specs: Any, out_specs: Any, donate_argnums: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        # Without the check of what is replicated: not all of it is the same on every device.
        mapped = jax.shard_map(function, mesh=self._all, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        return jax.jit(mapped, donate_argnums=donate_argnums)

    def host(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)

    def local(self, x: Any) -> np.ndarray:
        # In the order of the devices, which is that of the rows.
        return np.concatenate([np.asarray(part.data) for part in x.addressable_shards])

    def fetch(self, tree: Any, specs: Any) -> Any:
        del specs
        return jax.tree.map(np.asarray, tree)

    def one(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x.addressable_data(0), tree)


class Pmap(Mesh):
    """By pmap: every array has a leading axis of the devices, [devices, ...]."""

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        mine = list(devices or jax.local_devices())
        self.size, self.total, self._devices = len(mine), len(devices or jax.devices()), devices
        # On the devices of this process alone, so that hosts need not agree who sends when.
        self._identity = jax.pmap(lambda tree: tree, devices=mine)

    def put(self, tree: Any, specs: Any = REPLICATED) -> Any:
        tree = jax.tree.map(np.asarray, tree)
        if not jax.tree.leaves(tree):
            return tree
        _check(tree, specs, self.size)
        return self._identity(
            _map(lambda spec, part: jax.tree.map(functools.partial(self._split, spec), part), specs, tree)
        )

    def feed(self, tree: Any, specs: Any = REPLICATED) -> Any:
        return self.put(tree, specs)

    def _split(self, spec: P, x: np.ndarray) -> np.ndarray:
        axis = _split_axis(spec)
        if axis is None:
            return np.broadcast_to(x, (self.size, *x.shape))
        return x[None] if self.size == 1 else np.stack(np.split(x, self.size, axis))

    def compile(
        self, function: Callable[..., Any], in_specs: Any, out_specs: Any, donate_argnums: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        # An argument that is not on the devices, or a typed key, would send every call through pmap's slow path.
        return jax.pmap(function, axis_name=AXIS, donate_argnums=donate_argnums, devices=self._devices)

    def host(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x.addressable_data(0))[0], tree)

    def local(self, x: Any) -> np.ndarray:
        return np.concatenate([np.asarray(part.data)[0] for part in x.addressable_shards])

    def fetch(self, tree: Any, specs: Any) -> Any:
        return _map(lambda spec, part: jax.tree.map(functools.partial(self._join, spec), part), specs, tree)

    def _join(self, spec: P, x: Any) -> np.ndarray:
        axis, parts = _split_axis(spec), list(np.asarray(x))
        return parts[0] if axis is None else np.concatenate(parts, axis)

    def one(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)

    def alone(self) -> Mesh:
        return self if self.total == self.size else Pmap(jax.local_devices())

    def span(self, tree: Any, specs: Any) -> Any:
        return tree  # a process gives pmap its own part

    def own(self, tree: Any, specs: Any) -> Any:
        return tree


MAPPERS: dict[str, Callable[..., Mesh]] = {"shard_map": ShardMap, "pmap": Pmap}


def make_mesh(mapper: str = "shard_map", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Of these `devices` of this process, or all of JAX's default backend and all hosts: after
    `jax.distributed.initialize`."""
    return MAPPERS[mapper](devices)


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)


def _flatten(specs: Any) -> Any:
    """As a key of a dictionary."""
    leaves, structure = jax.tree.flatten(specs, is_leaf=_is_spec)
    return tuple(leaves), structure


def _map(function: Callable[..., Any], specs: Any, *trees: Any) -> Any:
    """`function` of each spec and of the subtrees that it is for."""
    return jax.tree.map(function, specs, *trees, is_leaf=_is_spec)


def _split_axis(spec: P) -> int | None:
    return next((axis for axis, name in enumerate(spec) if name == AXIS), None)


def _check(tree: Any, specs: Any, devices: int) -> None:
    if devices == 1:
        return

    def check(spec: P, subtree: Any) -> None:
        axis = _split_axis(spec)
        for x in jax.tree.leaves(subtree) if axis is not None else ():
            if x.shape[axis] % devices:
                raise ValueError(f"a batch of {x.shape[axis]} does not divide over {devices} devices")

    _map(check, specs, tree)


def sample_specs(sample: Any) -> Any:
    """Of a Sample, or a Gradient: where its batch axis is. Of rows of experience the second, of all else the first."""
    if not isinstance(sample, Sample):
        return ROWS
    return Sample(COLUMNS if isinstance(sample.steps, Step) else ROWS, ROWS, ROWS)


def send(mesh: Mesh, sample: Any) -> Any:
    """A host's Sample, or Gradient, to the devices, each its share of the batch; does not wait for it."""
    return mesh.put(sample, sample_specs(sample))


class Source(Protocol):
    """Where an update draws its sample from, on the devices: a replay that lives there."""

    specs: tuple[Any, Any]  # of its rows and of its masses

    def draw(self, rows: Any, masses: Any, key: jax.Array, size: int) -> tuple[Sample, Any]:
        """A device's `size` items of a batch, and which they are."""
        ...

    def reprioritize(self, masses: Any, items: Any, priorities: Any) -> Any:
        """The masses once `items` have new priorities, or () where there are none."""
        ...


def update_key(seed: int, step: jax.Array) -> jax.Array:
    """Of one update on one device."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), jax.lax.axis_index(AXIS))


def drawing_update(
    mesh: Mesh, agent: Agent, seed: int, source: Source
) -> Callable[[Any, Any], tuple[tuple[State, jax.Array, Any], Any]]:
    """((state, step, masses), rows) -> ((state, step + 1, masses), metrics): an update on a sample that it draws, for
    each device to call inside a compiled function."""
    share = agent.batch_size // mesh.total

    def update(carry: Any, rows: Any) -> tuple[Any, Any]:
        state, step, masses = carry
        key = update_key(seed, step)
        sample, items = source.draw(rows, masses, jax.random.fold_in(key, 1), share)
        state, feedback = agent.update(state, key, sample)
        return (state, step + 1, source.reprioritize(masses, items, feedback.priorities)), feedback.metrics

    return update


def compile_drawing_update(
    mesh: Mesh, agent: Agent, seed: int, updates_per_dispatch: int, source: Source
) -> Callable[..., tuple[State, jax.Array, Any, Feedback]]:
    """update(state, step, rows, masses) -> (state, step + updates_per_dispatch, masses, feedback) on all devices: each
    update draws its own sample and sets its priorities, before the next and without Python between. State, step and
    masses are donated; the rest is as of `compile_update`."""
    update = drawing_update(mesh, agent, seed, source)

    def updates(state: State, step: jax.Array, rows: Any, masses: Any) -> tuple[State, jax.Array, Any, Feedback]:
        carry, metrics = (state, step, masses), None
        if updates_per_dispatch == 1:
            carry, metrics = update(carry, rows)
        else:
            carry, all_metrics = jax.lax.scan(lambda carry, _: update(carry, rows), carry, length=updates_per_dispatch)
            metrics = jax.tree.map(lambda x: x[-1], all_metrics)
        return *carry, Feedback(metrics)

    rows, masses = source.specs
    return mesh.compile(
        updates,
        (REPLICATED, REPLICATED, rows, masses),
        (REPLICATED, REPLICATED, masses, REPLICATED),
        donate_argnums=(0, 1, 3),
    )


def compile_update(
    mesh: Mesh, agent: Agent, seed: int, updates_per_dispatch: int = 1
) -> Callable[..., tuple[State, jax.Array, Feedback]]:
    """update(state, step, sample) -> (state, step + updates_per_dispatch, feedback) on all devices.

    State and `step`, a uint32, are REPLICATED and donated. `step` is the update's number, which with `seed` and the
    device gives each update's key. The sample is as `send` gives it. All live on the devices, so that a call moves
    nothing. Of the feedback metrics are REPLICATED and priorities by ROWS, in the order of the sample.

    With `updates_per_dispatch` K > 1 the sample is K minibatches, side by side on each device, and the updates on them
    run one after another without Python between; metrics are the last one's, priorities are all.
    """

    def update(state: State, step: jax.Array, sample: Any) -> tuple[State, jax.Array, Feedback]:
        state, feedback = agent.update(state, update_key(seed, step), sample)
        return state, step + 1, feedback

    def updates(state: State, step: jax.Array, sample: Any) -> tuple[State, jax.Array, Feedback]:
        def body(carry, minibatch):
            state, step, feedback = update(carry[0], carry[1], minibatch)
            return (state, step), feedback

        def split(axis, x):
            parts = x.reshape(*x.shape[:axis], updates_per_dispatch, -1, *x.shape[axis + 1 :])
            return jnp.moveaxis(parts, axis, 0)

        minibatches = _map(
            lambda spec, part: jax.tree.map(functools.partial(split, _split_axis(spec)), part),
            sample_specs(sample),
            sample,
        )
        (state, step), feedback = jax.lax.scan(body, (state, step), minibatches)
        metrics, priorities = jax.tree.map(lambda x: x[-1], feedback.metrics), feedback.priorities
        return state, step, Feedback(metrics, jax.tree.map(lambda x: x.reshape(-1), priorities))

    @functools.cache
    def compiled(specs: Any) -> Callable[..., Any]:
        reported: Any = Feedback(REPLICATED, ROWS)  # type: ignore[arg-type]  # a prefix
        # The sample is not donated: no output has its shape, so that nothing could reuse its memory.
        return mesh.compile(
            update if updates_per_dispatch == 1 else updates,
            (REPLICATED, REPLICATED, specs),
            (REPLICATED, REPLICATED, reported),
            donate_argnums=(0, 1),
        )

    return lambda state, step, sample: compiled(sample_specs(sample))(state, step, sample)


def compile_policy(mesh: Mesh, agent: Agent) -> Callable[[State], Params]:
    """The parameters that actors pull, as buffers of their own that outlive the donation of `state`."""
    return mesh.compile(lambda state: jax.tree.map(jnp.copy, agent.policy(state)), (REPLICATED,), REPLICATED)
