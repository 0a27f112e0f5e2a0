"""The roles of a run. Each is a function that ends when its work is done or `stop` is set, in whatever thread or
process a placement runs it."""

import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import reverb

from launchers.run import Run
from replay import items, sampler, server
from replay.variables import VariableContainer
from replay.writer import BlockWriter
from runtime import actor, evaluator, learner
from runtime.checkpoint import Checkpointer
from runtime.metrics import Recorder

LOG_SECONDS = 1.0  # between two rows of a role's CSV


class Parts:
    """What the roles of one process share: the agent, its structures and its compiled functions."""

    def __init__(self, run: Run, logdir: pathlib.Path):
        self.run, self.logdir = run, logdir
        probe = run.make_environment("probe", 0, 1)
        self.spec = probe.spec
        probe.close()
        self.agent = run.make_agent(self.spec)
        (self.table,) = self.agent.tables
        self.blocks = items.block_structure(self.agent, self.spec, run.envs_per_actor)
        self.params = items.params_structure(self.agent, self.spec)
        self.device = jax.local_devices(backend="cpu" if run.actor_backend == "cpu" else None)[0]
        self.act = actor.compile_act(self.agent.act, self.device)
        self.act_greedily = actor.compile_act(self.agent.act_greedily, self.device)

    def serve(self, port: int = 0) -> reverb.Server:
        tables = [
            server.build_table(self.table, self.blocks, self.run.envs_per_actor),
            server.build_variables_table(self.params),
        ]
        return server.serve(tables, port, None)

    def variables(self, client: reverb.Client) -> VariableContainer:
        return VariableContainer(client, self.params)


class Throttle:
    """True at most once in LOG_SECONDS."""

    def __init__(self):
        self._next = 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LOG_SECONDS
        return True


def act(parts: Parts, client: reverb.Client, task: int, stop: threading.Event) -> None:
    """One actor, until `stop`."""
    run = parts.run
    environment = run.make_environment("actor", task, run.envs_per_actor)
    variables = parts.variables(client)
    variables.wait()
    writer = BlockWriter(client, parts.table, parts.blocks)
    recorder, due = Recorder(parts.logdir, f"actor_{task}"), Throttle()
    key = jax.random.key(run.seed_of("actor", task))
    start, start_steps, returns = time.perf_counter(), 0, []
    loop = actor.run(parts.agent, parts.act, environment, variables, writer, key, parts.device, stop.is_set)
    for metrics in loop:
        returns += [(metrics["return_mean"], metrics["episodes"])] if metrics["episodes"] else []
        if due():
            now, episodes = time.perf_counter(), sum(n for _, n in returns)
            metrics["env_steps_per_second"] = (metrics["env_steps"] - start_steps) / (now - start)
            metrics["episodes"] = episodes
            metrics["return_mean"] = sum(r * n for r, n in returns) / episodes if episodes else float("nan")
            recorder.write(metrics)
            start, start_steps, returns = now, metrics["env_steps"], []
    environment.close()
    recorder.close()


def learn(parts: Parts, client: reverb.Client, stop: threading.Event) -> None:
    """The learner, from its newest checkpoint to `max_env_steps` or `stop`; then it saves another."""
    run = parts.run
    checkpointer = Checkpointer(parts.logdir / "checkpoints", parts.agent)
    state, version = restore_or_init(parts, checkpointer)
    publisher = learner.Publisher(parts.variables(client))
    recorder = Recorder(parts.logdir, "learner")
    the_learner = learner.Learner(parts.agent, state, version, run.seed_of("learner"), publisher, run.publish_period)
    blocks = sampler.sample_blocks(client, parts.table, parts.blocks, run.config.batch_size // run.envs_per_actor)
    try:
        for _ in learn_steps(the_learner, learner.prefetch(blocks, stop.is_set), run, recorder, checkpointer):
            pass
    finally:
        # The last parameters are published whatever publish_period is: the evaluator waits for them.
        the_learner.publish()
        publisher.close()
        recorder.close()
        checkpointer.close()


def restore_or_init(parts: Parts, checkpointer: Checkpointer) -> tuple[Any, items.Version]:
    restored = checkpointer.restore()
    if restored:
        return restored
    # Compiled: outside jit, an initialiser's every operation is compiled on its own.
    return jax.jit(parts.agent.init)(jax.random.key(parts.run.seed_of("init"))), items.Version(0, 0)


def learn_steps(the_learner: learner.Learner, batches: Any, run: Run, recorder: Recorder, checkpointer: Checkpointer):
    """Updates until `max_env_steps` or until the batches end, recording and saving; yields after each."""
    due = Throttle()
    start, start_version, waited = time.perf_counter(), the_learner.version, 0.0
    saved = time.monotonic()
    if the_learner.version.env_steps >= run.max_env_steps:
        return
    for feedback, host in the_learner.run(batches):
        waited += host["wait_seconds"]
        done = the_learner.version.env_steps >= run.max_env_steps
        if due() or done:
            metrics = {name: float(value[0]) for name, value in feedback.metrics.items()}
            learner.check_finite(metrics)
            now, version = time.perf_counter(), the_learner.version
            recorder.write(
                {
                    **version._asdict(),
                    "env_steps_per_second": (version.env_steps - start_version.env_steps) / (now - start),
                    "learner_steps_per_second": (version.learner_steps - start_version.learner_steps) / (now - start),
                    "lag": host["lag"],
                    "wait_fraction": waited / (now - start),
                    **metrics,
                }
            )
            start, start_version, waited = now, version, 0.0
        if time.monotonic() - saved > run.checkpoint_seconds:
            checkpointer.save(the_learner.host_state(), the_learner.version)
            saved = time.monotonic()
        yield
        if done:
            break
    checkpointer.save(the_learner.host_state(), the_learner.version)


def evaluate(parts: Parts, client: reverb.Client, stop: threading.Event, report: Callable[[dict], None] = print) -> None:
    """The evaluator, until it has evaluated the last parameters or `stop`."""
    run = parts.run
    variables = parts.variables(client)
    variables.wait()
    recorder = Recorder(parts.logdir, "evaluator")
    loop = evaluator.run(
        parts.agent,
        parts.act_greedily,
        lambda n: run.make_environment("evaluator", n, min(run.eval_episodes, 100), evaluation=True),
        variables,
        jax.random.key(run.seed_of("evaluator")),
        run.eval_episodes,
        run.eval_period,
        run.max_env_steps,
        start=run.eval_period,
        stopped=stop.is_set,
    )
    for metrics in loop:
        recorder.write(metrics)
        report(metrics)
    recorder.close()
