"""The learner's devices as one mesh: data to them, one function on all of them at once, results back.

The same code runs on one device, on the eight of a host and, after `jax.distributed.initialize`, on several hosts:
each process feeds its own devices and the average over AXIS spans them all. There are two mappers, jit with shard_map
and pmap, which give the same numbers. Only this file knows how either lays an array out over the devices; other code
reads an array through `host` or `local`.
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
COLUMNS = P(None, AXIS)  # the second axis is split over the devices

SMALL = 2 << 20  # bytes; a smaller tree reaches one device faster through a compiled identity than by jax.device_put


class Mesh(Protocol):
    """The devices that learn together. Specs are tree prefixes, as in jax: one may stand for a whole subtree."""

    size: int  # devices of this process
    total: int  # devices of all processes
    REPLICATED, ROWS, COLUMNS = REPLICATED, ROWS, COLUMNS  # for modules that may not import this one

    def put(self, tree: Any, specs: Any = REPLICATED) -> Any:
        """Sends arrays from this host to the devices, each array whole or in equal parts, as `specs` says.

        Starts the transfer and does not wait for it. Each of several hosts puts its own part, whenever it likes. On a
        CPU the result may share the memory of a NumPy array, so nobody may write to that array afterwards; samplers
        never write to the arrays that they gave.

        Raises:
          ValueError: an axis does not divide over the devices.
        """
        ...

    def feed(self, tree: Any, specs: Any = REPLICATED) -> Any:
        """Turns this host's arrays into arguments of a compiled function. Returns them as they are if the compiled
        function takes host arrays and sends them to the devices itself."""
        ...

    def compile(
        self, function: Callable[..., Any], in_specs: Any, out_specs: Any, donate_argnums: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """Compiles `function` to run on every device at once, each on its part of the arguments, with AXIS bound.

        The arguments must be on the devices as `in_specs` says, one spec for each argument; the results are laid out
        as `out_specs` says. REPLICATED results are not compared: each device goes on with its own, and the host sees
        the first device's.
        """
        ...

    def host(self, tree: Any) -> Any:
        """Returns REPLICATED arrays on the host. Waits for them to be computed."""
        ...

    def local(self, x: Any) -> np.ndarray:
        """Returns this host's part of an array by ROWS, on the host. Waits for it to be computed."""
        ...

    def fetch(self, tree: Any, specs: Any) -> Any:
        """Undoes `put`: brings arrays with these specs to the host, in the shapes that `put` was given. Waits for them
        to be computed. All devices of the mesh must be this host's."""
        ...

    def one(self, tree: Any) -> Any:
        """Returns REPLICATED arrays as this host's first device has them, still on that device. Waits for nothing."""
        ...

    def alone(self) -> "Mesh":
        """Returns the mesh of this host's devices alone. Hosts need not call together what is compiled for it."""
        ...

    def span(self, tree: Any, specs: Any) -> Any:
        """Joins the hosts' arrays of their meshes `alone` into arrays of this mesh, of which each host has its part.

        An axis split by ROWS or COLUMNS grows by a factor of the number of hosts. Nothing is copied: the argument and
        the result share their memory, and if one is donated the other is gone too.
        """
        ...

    def own(self, tree: Any, specs: Any) -> Any:
        """Undoes `span`: returns this host's part of arrays of this mesh, as arrays of the mesh `alone`."""
        ...


class ShardMap(Mesh):
    """A Mesh by jit and shard_map: arrays have their whole shape, and a sharding."""

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        devices = devices or jax.devices()
        mine = [device for device in devices if device.process_index == jax.process_index()]
        self.size, self.total = len(mine), len(devices)
        self._all, self._mine = (jax.sharding.Mesh(np.array(each), (AXIS,)) for each in (devices, mine))
        self._identities: dict[Any, Callable[[Any], Any]] = {}

    def put(self, tree: Any, specs: Any = REPLICATED) -> Any:
        tree = jax.tree.map(np.asarray, tree)
        _check(tree, specs, self.size)
        # Arrays are first sent to this host's own devices alone, so that hosts need not agree who sends when.
        if self.size == 1 and sum(x.nbytes for x in jax.tree.leaves(tree)) < SMALL:
            mine = self._identity(specs)(tree)
        else:
            mine = jax.device_put(tree, _map(lambda spec: NamedSharding(self._mine, spec), specs))
        return self.span(mine, specs)

    def feed(self, tree: Any, specs: Any = REPLICATED) -> Any:
        return tree if self.total == self.size else self.put(tree, specs)

    def _identity(self, specs: Any) -> Callable[[Any], Any]:
        """Returns a compiled identity, which sends a few small arrays in a tenth of jax.device_put's time."""
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
        """Returns arrays of `mesh` with the same memory on this host's devices; `count` maps a split axis' length to
        its length in them."""
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
        # With check_vma, JAX would check that REPLICATED results are the same on all devices, and some are not.
        mapped = jax.shard_map(function, mesh=self._all, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        return jax.jit(mapped, donate_argnums=donate_argnums)

    def host(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)

    def local(self, x: Any) -> np.ndarray:
        # The parts are in the order of the devices, which is also the order of the rows.
        return np.concatenate([np.asarray(part.data) for part in x.addressable_shards])

    def fetch(self, tree: Any, specs: Any) -> Any:
        del specs
        return jax.tree.map(np.asarray, tree)

    def one(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x.addressable_data(0), tree)


class Pmap(Mesh):
    """A Mesh by pmap: every array has a leading axis of the devices, [devices, ...]."""

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        mine = list(devices or jax.local_devices())
        self.size, self.total, self._devices = len(mine), len(devices or jax.devices()), devices
        # It runs on the devices of this process alone, so that hosts need not agree who sends when.
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
        # Arguments must be on the devices, and keys untyped: any other would send every call through pmap's slow path.
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
    """Returns the Mesh of these `devices` of this process, by a mapper of MAPPERS.

    Without `devices`, it is the mesh of all devices of JAX's default backend, on all hosts; if there are several hosts,
    `jax.distributed.initialize` must have been called.
    """
    return MAPPERS[mapper](devices)


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)


def _flatten(specs: Any) -> Any:
    """Returns specs in a form that can be a dictionary's key."""
    leaves, structure = jax.tree.flatten(specs, is_leaf=_is_spec)
    return tuple(leaves), structure


def _map(function: Callable[..., Any], specs: Any, *trees: Any) -> Any:
    """Applies `function` to each spec and the subtrees that it stands for."""
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
                raise ValueError(f"a batch of {x.shape[axis]} is not a multiple of {devices}, the number of devices")

    _map(check, specs, tree)


def sample_specs(sample: Any) -> Any:
    """Returns the specs that split a Sample or a Gradient along its batch axis.

    The batch axis is the second axis in rows of experience, [T+1, B, ...], and the first in everything else.
    """
    if not isinstance(sample, Sample):
        return ROWS
    return Sample(COLUMNS if isinstance(sample.steps, Step) else ROWS, ROWS, ROWS)


def send(mesh: Mesh, sample: Any) -> Any:
    """Sends a host's Sample or Gradient to the devices, to each its share of the batch; does not wait for it."""
    return mesh.put(sample, sample_specs(sample))


class Source(Protocol):
    """A replay on the devices, from which an update draws its sample."""

    specs: tuple[Any, Any]  # how the replay's rows (its experience) and masses (how likely each is drawn) are laid out

    def draw(self, rows: Any, masses: Any, key: jax.Array, size: int) -> tuple[Sample, Any]:
        """Draws one device's `size` items of a batch; returns their sample, and which items they are."""
        ...

    def reprioritize(self, masses: Any, items: Any, priorities: Any) -> Any:
        """Returns the masses after `items` were given new `priorities`, which are () if the agent gives none."""
        ...


def update_key(seed: int, step: jax.Array) -> jax.Array:
    """Returns the key of the update number `step` on one device; called inside a compiled function of a Mesh."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), jax.lax.axis_index(AXIS))


def drawing_update(
    mesh: Mesh, agent: Agent, seed: int, source: Source
) -> Callable[[Any, Any], tuple[tuple[State, jax.Array, Any], Any]]:
    """Returns an update that draws its own sample, for each device to call inside a compiled function.

    It maps ((state, step, masses), rows) to ((state, step + 1, masses), metrics).
    """
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
    """Compiles updates that draw their own samples, for all devices.

    The result is update(state, step, rows, masses) -> (state, step + updates_per_dispatch, masses, feedback). Each
    update draws its sample and sets the new priorities before the next one does, without Python between. State, step
    and masses are donated. `step` and the metrics are as `compile_update` has them.
    """
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
    """Compiles update(state, step, sample) -> (state, step + updates_per_dispatch, feedback) for all devices.

    State and `step`, a uint32, are REPLICATED and donated. `step` is the update's number, which with `seed` and the
    device gives each update's key. The sample is as `send` gives it. All live on the devices, so that a call moves
    nothing. In the feedback, metrics are REPLICATED; priorities are by ROWS, in the order of the sample.

    With `updates_per_dispatch` K > 1 the sample is K minibatches, side by side on each device, and the updates on them
    run one after another without Python between. The metrics are then those of the last update, the priorities those
    of all.
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
    """Compiles a function from the state to the parameters that actors pull.

    The parameters are copies in buffers of their own, which outlive the donation of the state.
    """
    return mesh.compile(lambda state: jax.tree.map(jnp.copy, agent.policy(state)), (REPLICATED,), REPLICATED)
