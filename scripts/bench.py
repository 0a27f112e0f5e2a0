"""Times each stage of a run alone, and then the whole run, on this machine.

  scripts/python scripts/bench.py --env=Pong-v5

It prints a line of JSON for each stage. A figure is the median over `--repeats` rounds, each of which times every stage
once. Absolute figures vary, because machines are noisy: compare the ratios, which are of stages in the same rounds.

  environment   only the environments: those of all actors take steps with random actions
  inference     only the actors' choice of actions, in as many threads as there are actors
  learner       only updates, on one batch that is already on the device
  write         CPU time (of all threads) for cutting items and writing them to a real replay server
  sample        CPU time (of all threads) for sampling batches of items, per row of a queue or per item of a replay
  plain         the same agent and sizes in one thread without Reverb, which acts, steps and updates by turns; only
                for agents with a queue
  end_to_end    the whole run, as with `scripts/train --placement=threads`, without evaluations
  limit         1 / (1/environment + 1/inference + 1/learner): the most that these stages allow on the same cores

An agent with a replay makes --config.samples_per_insert / --config.batch_size updates for each environment step. The
speed of its learner is printed in updates, and in the environment steps to which these updates correspond.

For agents that learn from gradients of workers (--travels=gradients, as a3c, async_q and gorila do) only whole runs are
timed, with 1, 2 and 4 workers. Their figures are how many gradients, and how many bytes of gradients, the learner
applies in a second.

With --population=N --tune=... only the members' updates a second are timed, on a batch that is already on the device:
for one learner in which all members are stacked (--population_mode=vmap), for N learners in N threads, and for one of
these N learners alone.
"""

import concurrent.futures
import contextlib
import copy
import dataclasses
import functools
import json
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from agents.agent import BoundedActions, FactoredActions, Sample, Step, TimeStep, Version
from launchers import flags, program, roles, threads
from launchers import population as populations
from launchers import run as runs
from launchers.run import Run
from launchers.settings import Settings, UsageError, setting
from launchers.threads import RoleThread
from replay.rows import Row
from runtime import devices, leave_out_tensorflow


@dataclasses.dataclass
class Timing:
    seconds: float = setting(
        5.0,
        "seconds for which each stage is timed in each round; the whole run is timed for four times as long",
        least=0.1,
    )
    repeats: int = setting(3, "number of rounds, whose median is reported")


LONGEST = 256  # rows; no item is longer
LEAST_ITEMS = 1_000  # for end_to_end, a replay's min_size is reduced to this


def timed(seconds: float, work: Callable[[], float]) -> tuple[float, float]:
    """Calls `work` for `seconds`; returns the seconds and the CPU seconds (all threads) that an environment step takes.

    `work` does some environment steps and returns how many.
    """
    for _ in range(3):  # compiles it, also for arguments that are results of earlier calls
        work()
    steps, start, used = 0.0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        steps += work()
    return elapsed / steps, (time.process_time() - used) / steps


def rate(seconds: float, work: Callable[[], float]) -> float:
    """Returns the environment steps a second of `work`, as `timed` takes it."""
    return 1 / timed(seconds, work)[0]


class Bench:
    """The stages of one run."""

    def __init__(self, run: Run, member: int | None = None):
        self.run = run
        self._folder = tempfile.TemporaryDirectory(prefix="shoal-bench-")  # it is removed with this object
        self.parts = roles.Parts(run, pathlib.Path(self._folder.name), member)
        self.agent, self.envs = self.parts.agent, self.parts.num_envs
        if run.travels == "gradients":
            self.steps_per_update = 1.0  # only updates are counted
        elif self.parts.replays:
            if not self.parts.table.samples_per_insert:
                raise UsageError("bench.py needs --config.samples_per_insert above 0")
            self.steps_per_update = self.agent.batch_size / self.parts.table.samples_per_insert
        elif not hasattr(run.config, "unroll_length"):
            raise UsageError(f"--agent={run.agent} learns from whole episodes, which cannot be timed here")
        else:
            self.steps_per_update = self.agent.batch_size * run.config.unroll_length
        self.state = self.parts.init()
        self.params = jax.device_put(self.agent.policy(self.state), self.parts.device)
        self.key = jax.random.key(0)

    def actions(self, num_envs: int) -> np.ndarray:
        """Returns random actions."""
        rng, actions = np.random.default_rng(0), self.parts.spec.actions
        if isinstance(actions, FactoredActions):
            return rng.integers(actions.sizes, size=(num_envs, *actions.shape)).astype(np.int32)
        if isinstance(actions, BoundedActions):
            return rng.uniform(actions.low, actions.high, (num_envs, *actions.shape)).astype(np.float32)
        return rng.integers(actions.num_actions, size=num_envs).astype(np.int32)

    @contextlib.contextmanager
    def stepping(self) -> Iterator[Callable[[], int]]:
        """Gives a function that steps the environments of all actors once and returns how many steps that is."""
        num_envs = self.run.num_actors * self.envs
        environment, action = self.run.make_environment(self.run.seed_of("bench"), num_envs), self.actions(num_envs)
        environment.reset()

        def work():
            environment.step(action)
            return num_envs

        yield work
        environment.close()

    def environment(self, seconds: float) -> float:
        with self.stepping() as work:
            return rate(seconds, work)

    def timestep(self) -> TimeStep:
        environment = self.run.make_environment(self.run.seed_of("bench"), self.envs)
        timestep = environment.reset()
        environment.close()
        return timestep

    def inference(self, seconds: float) -> float:
        timestep, results = self.timestep(), []

        def actor():
            results.append(rate(seconds, self.acting(timestep)))

        threads = [threading.Thread(target=actor) for _ in range(self.run.num_actors)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(results)

    def acting(self, timestep: TimeStep) -> Callable[[], int]:
        """Returns a function that chooses one actor's actions once and returns how many they are."""
        memory = self.agent.memory(self.envs, None)

        def work():
            nonlocal memory
            action, _, memory = self.parts.act(self.params, self.key, np.uint32(0), timestep, memory)
            np.asarray(action)
            return self.envs

        return work

    def rollout(self, rows: int) -> list[Row]:
        """Acts for `rows` steps; returns the rows, each with the memory before it."""
        environment = self.run.make_environment(self.run.seed_of("bench"), self.envs)
        timestep, memory = environment.reset(), self.agent.memory(self.envs, None)
        made = []
        for count in range(rows):
            action, extras, following = self.parts.act(self.params, self.key, np.uint32(count), timestep, memory)
            action = np.asarray(action)
            successor = environment.step(action)
            step = Step(timestep.observation, action, successor.reward, successor.discount, timestep.first, extras)
            made.append(Row(step, memory, Version(0, 0), self.params, successor))
            timestep, memory = successor, following
        environment.close()
        return made

    def written(self, rows: int) -> tuple[Any, float]:
        """Writes `rows` rows to a channel of the run's carrier; returns the channel and the CPU seconds of writing.

        The channel's table has limits that make nobody wait. The first quarter of the rows, during which functions are
        compiled, is not timed; the seconds are scaled up for it.
        """
        parts = copy.copy(self.parts)
        parts.table = dataclasses.replace(
            parts.table, max_size=2 * rows * self.envs, min_size=1, samples_per_insert=0.0
        )
        self.carrier = roles.connect([parts], parts.logdir, 0)  # kept because its servers end with it
        channel = parts.channel(self.carrier)
        writer, made, start = channel.writer(0, parts.priority, lambda: False), self.rollout(rows), 0.0
        for number, row in enumerate(made):
            if number == rows // 4:
                start = time.process_time()
            writer.append(row)
            if channel.source:
                channel.drain()
        seconds = time.process_time() - start
        writer.close()
        return channel, seconds * rows / (rows - rows // 4)

    def write_and_sample(self, batches: int = 32) -> tuple[float, float]:
        """Returns the CPU microseconds of writing an environment step, and of sampling a queue's row or a replay's
        item."""
        parts, batch = self.parts, self.agent.batch_size
        length = 1 if parts.replays else self.run.config.unroll_length
        rows = batches * max(batch, self.envs) // self.envs * length + 64
        channel, wrote = self.written(rows)
        draw = self.drawing(channel) if channel.source else None
        sampled = iter(()) if draw else parts.batches(channel)
        take = draw or (lambda: next(sampled))
        for _ in range(3 if draw else 1 if parts.replays else 0):
            take()  # compiles functions and starts threads
        start = time.process_time()
        for _ in range(batches):
            take()
        seconds = time.process_time() - start
        size = batch * (self.run.updates_per_dispatch if parts.replays and not draw else 1)
        return wrote / (rows * self.envs) * 1e6, seconds / (batches * size * length) * 1e6

    def drawing(self, channel: Any) -> Callable[[], Any]:
        """Returns a function that draws a batch on the devices, and gives its items new priorities if they have any."""
        mesh, share = self.parts.mesh, self.agent.batch_size // self.parts.mesh.size

        def draw(rows, masses, key):
            sample, items = channel.draw(rows, masses, jax.random.wrap_key_data(key), share)
            return sample, channel.reprioritize(masses, items, sample.likelihood)

        ring, anchors = channel.ring, np.zeros(share, np.int32)
        specs = devices.sample_specs(jax.eval_shape(lambda: ring.look(ring.init(), anchors)))
        compiled = mesh.compile(draw, (*channel.specs, mesh.REPLICATED), (specs, channel.specs[1]), donate_argnums=(1,))
        key = mesh.put(jax.random.key_data(self.key))

        def take():
            sample, channel.masses = compiled(channel.rows, channel.masses, key)
            return jax.block_until_ready(sample)

        return take

    def sample_on_devices(self) -> Any:
        """Returns the sample of one dispatch, on the devices."""
        parts, size = self.parts, self.agent.batch_size * self.run.updates_per_dispatch
        if parts.replays:
            channel, _ = self.written(2 * size // self.envs + 2 * LONGEST)
            if not channel.source:
                return parts.send(next(parts.batches(channel)).sample)
            host = jax.tree.map(np.asarray, self.drawing(channel)())
            axis = 1 if isinstance(host.steps, Step) else 0
            steps = jax.tree.map(lambda x: np.concatenate([x] * self.run.updates_per_dispatch, axis), host.steps)
            rest = jax.tree.map(lambda x: np.concatenate([x] * self.run.updates_per_dispatch), host[1:])
            return parts.send(Sample(steps, *rest))
        rows = self.rollout(self.run.config.unroll_length + 1)
        steps = jax.tree.map(lambda *x: np.stack([np.asarray(a) for a in x]), *(row.step for row in rows))
        copies = -(-size // self.envs)
        return parts.send(
            Sample(
                jax.tree.map(lambda x: np.concatenate([x] * copies, axis=1)[:, :size], steps),
                jax.tree.map(lambda x: np.concatenate([np.asarray(x)] * copies)[:size], rows[0].memory),
            )
        )

    def learner(self, seconds: float) -> float:
        return rate(seconds, self.updating())

    def updating(self) -> Callable[[], float]:
        """Returns a function that dispatches updates on one batch and returns the environment steps they stand for."""
        mesh, at_once = self.parts.mesh, self.run.updates_per_dispatch
        update, sample = devices.compile_update(mesh, self.agent, 0, at_once), self.sample_on_devices()
        state, step = mesh.put(self.state), mesh.put(np.uint32(0))

        def work():
            nonlocal state, step
            state, step, feedback = update(state, step, sample)
            jax.block_until_ready(feedback)
            return at_once * self.steps_per_update

        return work

    def plain(self, seconds: float) -> float:
        """Times the plain program that one would write without Shoal: no queue, no threads, only newest parameters."""
        config, update = self.run.config, jax.jit(self.agent.update, donate_argnums=0)
        environment = self.run.make_environment(self.run.seed_of("bench"), self.agent.batch_size)
        timestep, memory = environment.reset(), self.agent.memory(self.agent.batch_size, None)
        state, params, count = self.parts.init(), self.params, 0
        last: list[Any] = []

        def work():
            nonlocal timestep, memory, state, params, count, last
            rows = last
            while len(rows) < config.unroll_length + 1:
                action, extras, following = self.parts.act(params, self.key, np.uint32(count), timestep, memory)
                action = np.asarray(action)
                successor = environment.step(action)
                step = Step(timestep.observation, action, successor.reward, successor.discount, timestep.first, extras)
                rows.append((step, memory))
                timestep, memory, count = successor, following, count + 1
            steps = jax.tree.map(lambda *x: np.stack([np.asarray(a) for a in x]), *(step for step, _ in rows))
            state, _ = update(state, self.key, Sample(steps, rows[0][1]))
            params, last = self.agent.policy(state), rows[-1:]
            jax.block_until_ready(params)
            params = jax.tree.map(np.asarray, params)  # the state is donated to the next update
            return self.steps_per_update

        result = rate(seconds, work)
        environment.close()
        return result

    def end_to_end(self, seconds: float) -> float:
        parts, stop = copy.copy(self.parts), threading.Event()
        if parts.replays:
            # Actors may be further ahead of the learner if the replay's minimum is larger. With the minimum of Atari's
            # presets they would stay ahead during all the time that is measured, and take as much of the processor as
            # the learner.
            parts.table = dataclasses.replace(parts.table, min_size=min(parts.table.min_size, LEAST_ITEMS))
        carrier = threads.connect([parts], parts.logdir, 0)

        learning, batches, publisher = roles.open_learning(parts, carrier, stop.is_set)
        actors = [
            RoleThread(role, functools.partial(roles.play, role, parts, carrier))
            for role in program.roles_of(parts.run)
            if role.kind == "actor"
        ]
        updates = learning.run(batches)
        for _ in range(20):  # until functions are compiled, and actors and learner keep pace
            next(updates)
        first = learning.version.learner_steps
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            next(updates)
        steps = (learning.version.learner_steps - first) * self.steps_per_update
        stop.set()
        for thread in actors:
            thread.ask()
        for thread in actors:
            thread.wait()
        if publisher:
            publisher.close()
        learning.close()
        return steps / elapsed


def bench_gradients(run: Run) -> None:
    rates: dict[int, list[float]] = {}
    benches = {workers: Bench(runs.replace(run, num_actors=workers)) for workers in (1, 2, 4)}
    for _ in range(flags.FLAGS.repeats):
        for workers, bench in benches.items():
            rates.setdefault(workers, []).append(bench.end_to_end(4 * flags.FLAGS.seconds))
    parts = benches[1].parts
    size, pull = (sum(x.size * x.dtype.itemsize for x in s.leaves) for s in (parts.items, parts.params))
    for workers, values in rates.items():
        median = statistics.median(values)
        row = {"agent": run.agent, "env": run.env, "workers": workers, "gradients_per_second": round(median, 1)}
        row |= {"min_max": [round(min(values), 1), round(max(values), 1)], "bytes_per_second": round(median * size)}
        print(json.dumps(row | {"bytes_per_gradient": size, "bytes_per_pull": pull}), flush=True)


def bench_population(run: Run) -> None:
    populations.check(runs.replace(run, population_mode="vmap"))
    stacked = Bench(runs.replace(run, population_mode="vmap"))
    separate = [Bench(runs.replace(run, population_mode="separate"), member) for member in range(run.population)]
    seconds = flags.FLAGS.seconds

    def updates(benches: list[Bench]) -> float:
        """Returns the updates a second of all the learners together, each in a thread of its own."""
        with concurrent.futures.ThreadPoolExecutor(len(benches)) as executor:
            rates = list(executor.map(lambda bench: bench.learner(seconds) / bench.steps_per_update, benches))
        return sum(rates)

    rounds: dict[str, list[float]] = {}
    for _ in range(flags.FLAGS.repeats):
        rounds.setdefault("stacked", []).append(run.population * updates([stacked]))
        rounds.setdefault("separate", []).append(updates(separate))
        rounds.setdefault("one_alone", []).append(updates(separate[:1]))
    median = {name: statistics.median(values) for name, values in rounds.items()}
    for name, value in median.items():
        spread = [round(min(rounds[name]), 1), round(max(rounds[name]), 1)]
        print(json.dumps({"learners": name, "members_updates_per_second": round(value, 1), "min_max": spread}))
    ratio = round(median["stacked"] / median["separate"], 2)
    print(json.dumps({"agent": run.agent, "env": run.env, "members": run.population, "stacked_over_separate": ratio}))


@flags.command(Settings, Timing)
def bench() -> int:
    run = runs.replace(flags.run_from_flags(), max_env_steps=10**12)  # the time ends it
    if run.carrier == "local":
        leave_out_tensorflow()
    if run.population:
        bench_population(run)
        return 0
    if run.travels == "gradients":
        bench_gradients(run)
        return 0
    bench, seconds = Bench(run), flags.FLAGS.seconds
    rounds: dict[str, list[float]] = {}
    for _ in range(flags.FLAGS.repeats):
        for stage in ("environment", "inference", "learner", *(() if bench.parts.replays else ("plain",))):
            rounds.setdefault(stage, []).append(getattr(bench, stage)(seconds))
        rounds.setdefault("end_to_end", []).append(bench.end_to_end(4 * seconds))
        for name, value in zip(("write", "sample"), bench.write_and_sample(), strict=True):
            rounds.setdefault(name, []).append(value)
    median = {name: statistics.median(values) for name, values in rounds.items()}
    for name, value in median.items():
        unit = "cpu_microseconds_per_env_step" if name in ("write", "sample") else "env_steps_per_second"
        spread = [round(min(rounds[name]), 2), round(max(rounds[name]), 2)]
        print(json.dumps({"stage": name, unit: round(value, 2), "min_max": spread}), flush=True)
    limit = 1 / sum(1 / median[stage] for stage in ("environment", "inference", "learner"))
    print(json.dumps({"stage": "limit", "env_steps_per_second": round(limit, 2)}))
    over = {"limit": limit} | {stage: median[stage] for stage in ("environment", "learner", "plain") if stage in median}
    ratios = {f"end_to_end_over_{name}": round(median["end_to_end"] / value, 3) for name, value in over.items()}
    updates = {
        f"{stage}_updates_per_second": round(median[stage] / bench.steps_per_update, 1)
        for stage in ("learner", "end_to_end")
    }
    print(json.dumps({"env": run.env, "agent": run.agent} | updates | ratios))
    return 0


if __name__ == "__main__":
    flags.main(bench)
