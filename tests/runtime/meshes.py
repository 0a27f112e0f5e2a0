"""Compares updates on meshes of this process's devices, with each mapper, with plain updates without a mesh. Run as a
program, it prints what it found as JSON."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents import actor_critic, ddpg, impala, vmpo
from agents.agent import (
    Agent,
    Blocks,
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    Feedback,
    Gradient,
    Sample,
    Step,
    TableSpec,
    Transition,
    pmax,
    pmean,
)
from agents.parts.gradients import by_gradients
from runtime import devices
from runtime.devices import COLUMNS, REPLICATED, ROWS

T, B = 3, 16
VECTORS = EnvironmentSpec((3,), np.dtype(np.float32), DiscreteActions(3))
ON_POLICY = {"unroll_length": T, "batch_size": B}


def on_policy() -> dict[str, Agent]:
    """Returns agents that learn from blocks; `blocks` below makes the steps that each of them needs."""
    frames = EnvironmentSpec((2, 3), np.dtype(np.uint8), DiscreteActions(3))
    small = {"torso": "mlp", "hidden_sizes": (4,), **ON_POLICY}
    return {
        "impala": impala.make(impala.Config(frame_stack=2, max_gradient_norm=0.5, learning_rate=0.1, **small), frames),
        # V-MPO learns from the better half of all devices' rows together.
        "vmpo": vmpo.make(vmpo.Config(frame_stack=2, learning_rate=1e-3, lambda_=0.9, **small), frames),
        # The state has eligibility traces, each device those of its own environments.
        "actor_critic": actor_critic.make(
            actor_critic.Config(alpha_theta=0.1, alpha_w=0.1, lambda_theta=0.7, lambda_w=0.9, **ON_POLICY), VECTORS
        ),
    }


def replayed() -> Agent:
    bound = np.ones(2, np.float32)
    config = ddpg.Config(
        hidden_sizes=(4,), batch_size=B, replay="prioritized", normalize_observations=True, max_gradient_norm=1.0
    )
    return ddpg.make(config, EnvironmentSpec((3,), np.dtype(np.float32), BoundedActions(-bound, bound)))


def blocks(name: str, agent: Agent, seed: int) -> Sample:
    rng, rows = np.random.default_rng(seed), (T + 1, B)
    first = rng.random(rows) < 0.2
    if seed == 2:  # `updates` resumes after sample 1, and a resumed run's environments are new
        first[0] = True
    frames = rng.integers(0, 3, (*rows, 2, 3), np.uint8)
    steps = Step(
        frames if name in ("impala", "vmpo") else rng.normal(size=(*rows, 3)).astype(np.float32),
        rng.integers(3, size=rows).astype(np.int32),
        (rng.normal(size=rows) * np.arange(1, B + 1)).astype(np.float32),
        (rng.random(rows) < 0.9).astype(np.float32),
        first,
        {"outputs": rng.normal(size=(*rows, 3)).astype(np.float32)} if name in ("impala", "vmpo") else {},
    )
    memory = jax.tree.map(lambda x: rng.integers(0, 3, x.shape).astype(x.dtype), agent.memory(B, None))
    return Sample(steps, memory)


def transitions(seed: int) -> Sample:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(B, *shape)).astype(np.float32)

    steps = Transition(normal(3), np.tanh(normal(2)), normal(), np.full(B, 0.9, np.float32), normal(3))
    return Sample(steps, (), rng.uniform(0.5, 2.0, B).astype(np.float32))


def difference(a: Any, b: Any) -> float:
    """Returns the largest absolute difference between two trees' numbers."""
    both = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max()) for x, y in both)


class Plain:
    """An agent's updates without a mesh, on one sample after another."""

    def __init__(self, agent: Agent, samples: list[Sample]):
        self.agent, self.samples = agent, samples
        self.fresh, self._update = jax.jit(agent.init)(jax.random.key(0)), jax.jit(agent.update)
        self.results = self.go_on(self.fresh, samples)

    def go_on(self, state: Any, samples: list[Sample]) -> list[tuple[Any, Feedback]]:
        """Returns the state and the feedback after each sample."""
        results = []
        for sample in samples:
            state, feedback = self._update(state, jax.random.key(0), sample)
            results.append((state, feedback))
        return results


def shown(state: Any) -> Any:
    """Returns the state without its traces, which differ between devices: each has those of its own environments."""
    return state._replace(traces=()) if hasattr(state, "traces") else state


def updates(mesh: devices.Mesh, plain: Plain) -> dict[str, Any]:
    """Reports all updates made on the mesh; and half on it, half plain, as in a run that is resumed elsewhere."""
    agent, traces = plain.agent, []

    def counted(state, key, sample):
        traces.append(1)
        return agent.update(state, key, sample)

    update = devices.compile_update(mesh, agent._replace(update=counted), 1)
    policy = devices.compile_policy(mesh, agent)
    state, step = mesh.put(plain.fresh), mesh.put(np.uint32(0))
    report: dict[str, Any] = {"states": [], "priorities": [], "metrics": []}
    states = []
    for sample, (expected, feedback) in zip(plain.samples, plain.results, strict=True):
        published = policy(state)
        kept = jax.tree.map(np.array, mesh.host(published))
        state, step, found = update(state, step, devices.send(mesh, sample))
        report["outlives"] = difference(mesh.host(published), kept)
        states.append(mesh.host(state))
        report["states"].append(difference(shown(states[-1]), shown(expected)))
        if agent.priority is not None:
            report["priorities"].append(difference(mesh.local(found.priorities), feedback.priorities))
        metrics = mesh.host(found.metrics)
        report["metrics"] += [(name, float(metrics[name]), float(x)) for name, x in feedback.metrics.items()]
    half = len(states) // 2
    resumed = plain.go_on(states[half - 1], plain.samples[half:])[-1][0]
    report["resumed"] = difference(shown(resumed), shown(expected))
    report["moved"] = difference(shown(expected).params, shown(plain.fresh).params)
    report["leaves"] = [np.asarray(x).tolist() for x in jax.tree.leaves(shown(states[-1]))]
    # The host shares the memory of a state that it has read, so that is not donated. These states are not read.
    donated = []
    state = mesh.put(plain.fresh)
    for sample in plain.samples[:2]:
        before = state
        state, step, _ = update(state, step, devices.send(mesh, sample))
        donated += [x.is_deleted() for x in jax.tree.leaves(before)]
    return report | {"donated": all(donated), "step": int(mesh.host(step)), "traces": len(traces)}


class Weights(NamedTuple):
    params: Any
    opt_state: Any = ()


def gradients(mesh: devices.Mesh) -> float:
    """Returns the difference between one step with a gradient on each device and a step with their mean."""

    def apply(state, gradient):
        return state._replace(params=jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradient))

    table = TableSpec("queue", Blocks(T), "queue", max_size=1)
    agent = Agent(None, None, None, None, None, None, table, B, gradient=lambda *_: None, apply=apply)
    rng, n = np.random.default_rng(0), mesh.size
    state = Weights({"w": rng.normal(size=(2, 3)).astype(np.float32), "b": np.float32(0.5)})
    gradient = jax.tree.map(lambda x: rng.normal(size=(n, *x.shape)).astype(np.float32), state.params)
    losses, numbers = rng.normal(size=n).astype(np.float32), np.arange(n, dtype=np.int64)
    sent = devices.send(mesh, Gradient(gradient, {"loss": losses}, numbers, numbers))
    update = devices.compile_update(mesh, by_gradients(agent), 0)
    new, _, feedback = update(mesh.put(state), mesh.put(np.uint32(0)), sent)
    expected = apply(state, jax.tree.map(lambda x: x.mean(axis=0), gradient))
    return difference((mesh.host(new), mesh.host(feedback.metrics)["loss"]), (expected, losses.mean()))


def keys(mesh: devices.Mesh) -> dict[str, Any]:
    """Reports the random numbers that each device draws after different numbers of updates and with different seeds,
    and those that it should draw."""

    def random(state, key, sample):
        del sample
        number = jax.random.uniform(key, (1,))
        return state, Feedback({"first": number[0], "mean": pmean(number[0])}, number)

    agent = Agent(None, None, None, None, None, random, (), 1)
    found, expected, firsts = [], [], []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        draw = devices.compile_update(mesh, agent, seed)
        state, count = mesh.put(np.float32(0)), mesh.put(np.uint32(step))
        _, _, feedback = draw(state, count, devices.send(mesh, transitions(0)))
        found.append(mesh.local(feedback.priorities).tolist())
        key = jax.random.fold_in(jax.random.key(seed), step)
        expected.append([float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(mesh.size)])
        metrics = mesh.host(feedback.metrics)
        firsts.append(float(metrics["first"]) == found[-1][0] and abs(metrics["mean"] - np.mean(found[-1])) < 1e-6)
    return {"found": found, "expected": expected, "host sees the first device's": all(firsts)}


def round_trips(mesh: devices.Mesh) -> dict[str, Any]:
    """Reports whether small and large arrays that are put on the devices come back, and which part each device sees."""
    report: dict[str, Any] = {}
    for size, width in {"small": 3, "large": 4000}.items():
        rng = np.random.default_rng(width)
        x, y = (rng.normal(size=(B, B, width)).astype(np.float32) for _ in range(2))
        tree, specs = {"whole": x, "parts": [x, {"b": y}], "columns": (y,)}, [REPLICATED, ROWS, COLUMNS]
        specs = dict(zip(tree, specs, strict=True))  # one for each subtree
        on_devices = mesh.put(tree, specs)
        function = lambda tree: (tree["whole"] * 2, tree["parts"], jnp.swapaxes(tree["columns"][0], 0, 1))
        whole, parts, columns = mesh.compile(function, (specs,), (REPLICATED, ROWS, ROWS))(on_devices)
        report[size] = [
            np.array_equal(mesh.host(on_devices["whole"]), x),
            np.array_equal(mesh.host({"a": whole})["a"], 2 * x),
            np.array_equal(mesh.local(on_devices["parts"][0]), x),
            np.array_equal(mesh.local(parts[1]["b"]), y),
            np.array_equal(mesh.local(columns), np.swapaxes(y, 0, 1)),
        ]
    shapes = []

    def noted(whole, rows, columns):
        shapes.append([list(x.shape) for x in (whole, rows, columns)])
        return rows

    x = np.zeros((B, 2 * B), np.float32)
    mesh.compile(noted, (REPLICATED, ROWS, COLUMNS), ROWS)(mesh.put(x), mesh.put(x, ROWS), mesh.put(x, COLUMNS))
    report["parts"] = shapes[0]
    report["numbers"] = [mesh.host(mesh.put(value)).item() for value in (np.uint32(7), 2, 0.5, True)]

    # Donation must take only the devices' copy.
    for size in (B, 1 << 20):
        host = np.zeros(size, np.float32)
        device = jnp.zeros(size)
        for source in (host, device):
            for _ in range(2):
                mesh.compile(lambda x: x + 1, (REPLICATED,), REPLICATED, donate_argnums=(0,))(mesh.put(source))
        report[f"kept {size}"] = bool((host == 0).all() and (device == 0).all())

    report["refused"] = []
    for specs, shape in ((ROWS, (B + 1, B)), (COLUMNS, (B, B + 1)), (REPLICATED, (B + 1, B + 1))):
        try:
            mesh.put({"x": np.zeros(shape)}, specs)
            report["refused"].append(None)
        except ValueError as error:
            report["refused"].append(str(error))
    return report


def minibatches(mesh: devices.Mesh) -> dict[str, Any]:
    """Learns from sequences of a replay, two updates in a dispatch; reports which each sees, and their priorities."""

    def noted(state, key, sample):
        steps, memory, likelihood = sample
        del key
        assert steps.observation.shape == (2, B // 2 // mesh.size, 3) and memory["m"].shape[1:] == (4,)
        names = steps.reward[0]
        agree = (steps.observation[1, :, 2] == 100 + names).all() & (memory["m"][:, 3] == 500 + names).all()
        metrics = {"agree": pmean(agree.astype(jnp.float32)), "smallest": -pmax(-names.min())}
        return state + 1, Feedback(metrics, 1000 * state + names + likelihood)

    names = np.arange(B, dtype=np.float32)
    rows = np.stack([np.tile(names[:, None] + 100 * row, 3) for row in range(2)])
    steps = Step(rows, *[np.stack([names, names])] * 4, {})
    many = Sample(steps, {"m": np.tile(names[:, None] + 500, 4)}, names / B)
    dispatch = devices.compile_update(mesh, Agent(None, None, None, None, None, noted, (), 1), 0, 2)
    state, step, feedback = dispatch(mesh.put(np.float32(0)), mesh.put(np.uint32(0)), devices.send(mesh, many))
    found = {"state": float(mesh.host(state)), "step": int(mesh.host(step))}
    return found | {
        "priorities": mesh.local(feedback.priorities).tolist(),
        **{name: float(x) for name, x in mesh.host(feedback.metrics).items()},
    }


def report(mapper: str, plain: dict[str, Plain]) -> dict[str, Any]:
    mesh = devices.make_mesh(mapper)
    return {
        "size": mesh.size,
        "updates": {name: updates(mesh, each) for name, each in plain.items()},
        "gradients": gradients(mesh),
        "keys": keys(mesh),
        "round trips": round_trips(mesh),
        "minibatches": minibatches(mesh),
    }


def main() -> dict[str, Any]:
    plain = {name: Plain(agent, [blocks(name, agent, i) for i in range(4)]) for name, agent in on_policy().items()}
    plain["ddpg"] = Plain(replayed(), [transitions(i) for i in range(4)])
    return {mapper: report(mapper, plain) for mapper in devices.MAPPERS}


if __name__ == "__main__":
    print(json.dumps(main()))
