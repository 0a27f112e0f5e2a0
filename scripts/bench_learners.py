"""Times learners' updates alone against what the device allows: `scripts/python scripts/bench_learners.py`.

It prints JSON lines, one for each update and one for each way of acting. First the device's ceilings are measured, by
products of large matrices in both precisions and by a copy of a large array. An update's floor is the larger of two
times. One is that of the operations in its matrix products and convolutions, at the measured rate; they are counted in
the program, with each loop's body as often as it runs. The other is that of reading its state and sample once and
writing its state once, at the copy's bandwidth. `over_floor` is the median time divided by the floor.

  --only=impala       rows whose name has this in it
  --seconds=2         how long each is timed (default 5)

The experience comes from the environment that a row names, and is on the device already. Compiling is timed apart.
`scripts/bench.py` says how much of this speed a whole run has.
"""

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launchers import flags
from launchers import run as runs
from launchers.run import Run
from launchers.settings import UsageError, nearest, setting
from runtime import devices, leave_out_tensorflow
from scripts.bench import Bench


@dataclasses.dataclass
class Choice:
    only: str = setting("", "time only the rows whose name contains this text; empty: all rows")
    seconds: float = setting(5.0, "seconds for which each row is timed", least=0.1)


ROWS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {  # name: agent, environment, settings, config
    **{
        f"impala {torso} {dtype} batch {size}": (
            "impala", "Pong-v5", {}, {"torso": torso, "dtype": dtype, "batch_size": size},
        )
        for torso in ("shallow", "nature", "residual")
        for dtype in ("float32", "bfloat16")
        for size in (32, 256)
    },
    **{
        f"d4pg {count} updates a dispatch": ("d4pg", "HalfCheetah-v4", {"updates_per_dispatch": count}, {})
        for count in (1, 8, 64)
    },
    "dqn": ("dqn", "Pong-v5", {}, {}),
    "r2d2": ("r2d2", "Pong-v5", {}, {}),
    "ppo": ("ppo", "Pong-v5", {}, {}),
    "vmpo": ("vmpo", "Pong-v5", {}, {}),
    "mpo": ("mpo", "HalfCheetah-v4", {}, {}),
    "ppo_rnd": ("ppo_rnd", "Pong-v5", {}, {"batch_size": 8}),
    "pqn": ("pqn", "Pong-v5", {}, {"minibatches": 4, "batch_size": 16}),
}  # fmt: skip
BACKENDS = ("accelerator", "cpu")  # where actors act


def seconds_of(call: Callable[[], Any], duration: float) -> float:
    """Returns the median seconds of a call; calls for `duration` seconds, waiting for each result."""
    for _ in range(3):
        jax.block_until_ready(call())
    times: list[float] = []
    end = time.perf_counter() + duration
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ceilings(duration: float) -> dict[str, float]:
    """Returns, by dtype, the operations a second of matrix products and, as "bytes", the bytes a second of a copy."""
    size = 8192 if jax.default_backend() != "cpu" else 1024
    found = {}
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    for dtype in (jnp.float32, jnp.bfloat16):
        matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
        seconds = seconds_of(functools.partial(product, matrix, matrix), duration)
        found[jnp.dtype(dtype).name] = 2 * size**3 / seconds
    array = jnp.ones(2**28 // 4 if jax.default_backend() != "cpu" else 2**26 // 4, jnp.float32)
    found["bytes"] = 2 * array.nbytes / seconds_of(functools.partial(copy, array), duration)
    return found


def operations(jaxpr: Any) -> Iterator[tuple[str, float]]:
    """Yields (dtype, number of multiplications and additions) of each matrix product and convolution in a program."""
    for eqn in jaxpr.eqns:
        shape = eqn.outvars[0].aval.shape
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted])
            yield eqn.invars[0].aval.dtype.name, 2.0 * np.prod(shape) * inner
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
            of_each = np.prod([kernel[axis] for axis in numbers.rhs_spec[1:]])  # products in an output
            yield eqn.invars[0].aval.dtype.name, 2.0 * np.prod(shape) * of_each
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner_jaxpr in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner_jaxpr, "eqns"):
                for dtype, count in operations(inner_jaxpr):
                    yield dtype, times * count


def nbytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def run_of(name: str) -> Run:
    agent, env, settings, config = ROWS[name]
    return runs.make(agent, env, {"carrier": "local", "max_env_steps": 10**6} | settings, config)


def acting_run(backend: str) -> Run:
    return runs.make("impala", "Pong-v5", {"carrier": "local", "actor_backend": backend}, {"torso": "nature"})


def bench_update(name: str, ceiling: dict[str, float]) -> dict[str, Any]:
    run = run_of(name)
    bench = Bench(run)
    mesh, count = bench.parts.mesh, run.updates_per_dispatch
    sample = bench.sample_on_devices()
    update = devices.compile_update(mesh, bench.agent, 0, count)
    state, step = mesh.put(bench.state), mesh.put(np.uint32(0))
    program = jax.make_jaxpr(update)(state, step, sample)
    of_products = sum(done / ceiling[dtype] for dtype, done in operations(program)) / count
    of_bytes = (2 * nbytes(state) + nbytes(sample) / count) / ceiling["bytes"]
    start = time.perf_counter()
    state, step, _ = jax.block_until_ready(update(state, step, sample))
    compiling = time.perf_counter() - start

    def call() -> Any:
        nonlocal state, step
        state, step, feedback = update(state, step, sample)
        return feedback

    seconds = seconds_of(call, flags.FLAGS.seconds) / count
    rows = bench.agent.batch_size * getattr(bench.run.config, "unroll_length", 1)
    return {
        "ms": round(1e3 * seconds, 3),
        "rows_per_second": round(rows / seconds),
        "floor_ms": {"products": round(1e3 * of_products, 3), "bytes": round(1e3 * of_bytes, 3)},
        "over_floor": round(seconds / max(of_products, of_bytes), 2),
        "compiling_seconds": round(compiling, 1),
    }


def bench_acting(backend: str) -> dict[str, Any]:
    """Times one actor's act in Pong, until its actions are on the host."""
    bench = Bench(acting_run(backend))
    timestep, memory = bench.timestep(), bench.agent.memory(bench.envs, None)
    params = jax.device_put(bench.params, bench.parts.device)

    def call() -> Any:
        return np.asarray(bench.parts.act(params, bench.key, np.uint32(0), timestep, memory)[0])

    seconds = seconds_of(call, flags.FLAGS.seconds)
    return {"ms": round(1e3 * seconds, 3), "env_steps_per_second": round(bench.envs / seconds)}


@flags.command(Choice)
def bench() -> int:
    only = flags.FLAGS.only
    rows, backends = [name for name in ROWS if only in name], [each for each in BACKENDS if only in f"acting {each}"]
    if not rows and not backends:
        names = [*ROWS, *(f"acting {each}" for each in BACKENDS)]
        raise UsageError(f"--only={only}: no row has this in its name{nearest(only, names)}")
    leave_out_tensorflow()
    device = jax.devices()[0]
    ceiling = ceilings(flags.FLAGS.seconds)
    rounded = {name: float(f"{value:.3g}") for name, value in ceiling.items()}
    print(json.dumps({"device": device.device_kind, "ceilings_per_second": rounded}), flush=True)
    for name in rows:
        print(json.dumps({"update": name} | bench_update(name, ceiling)), flush=True)
    for backend in backends:
        print(json.dumps({"acting": backend} | bench_acting(backend)), flush=True)
    return 0


if __name__ == "__main__":
    flags.main(bench)
