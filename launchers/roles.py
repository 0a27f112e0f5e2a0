"""The roles of a run, as generators: each ends when its work is done or `stop` is set, and a placement iterates it in
whatever thread or process it likes."""

import pathlib
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import numpy as np

from agents.agent import Feedback
from launchers.run import Run, UsageError
from replay import Client, Server, items, sampler, server
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
        self.spec = run.spec()
        self.agent = run.make_agent(self.spec)
        (self.table,) = self.agent.tables
        self.blocks = items.block_structure(self.agent, self.spec, run.envs_per_actor)
        self.params = items.params_structure(self.agent, self.spec)
        self.device = jax.local_devices(backend="cpu" if run.actor_backend == "cpu" else None)[0]
        self.act = actor.compile_act(self.agent.act, self.device)
        self.act_greedily = actor.compile_act(self.agent.act_greedily, self.device)

    def init(self) -> Any:
        """A new state."""
        # Compiled: outside jit, each operation of an initialiser is compiled on its own.
        return jax.jit(self.agent.init)(jax.random.key(self.run.seed_of("init")))

    def serve(self, port: int = 0) -> Server:
        tables = [
            server.build_table(self.table, self.blocks, self.run.envs_per_actor),
            server.build_variables_table(self.params),
        ]
        return server.serve(tables, port, None)

    def variables(self, client: Client) -> VariableContainer:
        """The run's variable container.

        Raises:
          UsageError: the server serves another run.
        """
        try:
            return VariableContainer(client, self.params)
        except ValueError as error:
            raise UsageError(str(error)) from error


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


def act(parts: Parts, client: Client, task: int, stop: threading.Event) -> Generator[None, None, None]:
    """One actor, until `stop`; yields after each item it has written."""
    run = parts.run
    environment = run.make_environment("actor", task, run.envs_per_actor)
    variables = parts.variables(client)
    variables.wait()
    writer = BlockWriter(client, parts.table, parts.blocks)
    recorder, due = Recorder(parts.logdir, f"actor_{task}"), Throttle()
    key = jax.random.key(run.seed_of("actor", task))
    start, start_steps = time.perf_counter(), 0
    returns: list[float] = []
    for metrics, episodes in actor.run(
        parts.agent, parts.act, environment, variables, writer, key, parts.device, stop.is_set
    ):
        returns += episodes.returns
        if due():
            now = time.perf_counter()
            metrics["env_steps_per_second"] = (metrics["actor_steps"] - start_steps) / (now - start)
            metrics["episodes"] = len(returns)
            metrics["return_mean"] = float(np.mean(returns)) if returns else float("nan")
            recorder.write(metrics)
            start, start_steps, returns = now, metrics["actor_steps"], []
        yield
    environment.close()
    recorder.close()


class Learning:
    """The learner's role: from the newest checkpoint to `max_env_steps`, recording and saving on the way."""

    def __init__(self, parts: Parts, publish: Callable[[items.Version, Any], None]):
        """`publish` takes (version, params on the devices). Of several learner hosts the first publishes, records and
        saves for all."""
        self._run, devices = parts.run, jax.local_device_count()
        if parts.agent.batch_size % devices:
            raise UsageError(f"config.batch_size={parts.agent.batch_size} does not divide over {devices} devices")
        self._first_host = jax.process_index() == 0
        if not self._first_host:
            publish = _keep
        self._checkpointer = Checkpointer(parts.logdir / "checkpoints", parts.agent)
        state, version = self._checkpointer.restore() or (parts.init(), items.Version(0, 0))
        self._learner = learner.Learner(
            parts.agent, state, version, parts.run.seed_of("learner"), publish, parts.run.publish_period
        )
        self._recorder = Recorder(parts.logdir, "learner") if self._first_host else None

    @property
    def version(self) -> items.Version:
        return self._learner.version

    def publish(self) -> None:
        """Publishes the parameters as they are now, whatever publish_period says."""
        self._learner.publish()

    def run(self, batches: Iterator[sampler.Batch]) -> Iterator[items.Version]:
        """Learns until `max_env_steps` or the end of the batches; yields the version after each update.

        Raises:
          NotFinite: a metric is; nothing is saved then.
        """
        if self.version.env_steps >= self._run.max_env_steps:
            return
        due = Throttle()
        start, start_version, waited = time.perf_counter(), self.version, 0.0
        saved = time.monotonic()
        feedback = None
        for feedback, host in self._learner.run(batches):
            waited += host["wait_seconds"]
            done = self.version.env_steps >= self._run.max_env_steps
            if due() or done:
                now, version = time.perf_counter(), self.version
                self._record(
                    {
                        **version._asdict(),
                        "env_steps_per_second": (version.env_steps - start_version.env_steps) / (now - start),
                        "learner_steps_per_second": (version.learner_steps - start_version.learner_steps)
                        / (now - start),
                        "lag": host["lag"],
                        "wait_fraction": waited / (now - start),
                        **learner.read_metrics(feedback),
                    }
                )
                start, start_version, waited = now, version, 0.0
            if time.monotonic() - saved > self._run.checkpoint_seconds:
                self._save(feedback)
                saved = time.monotonic()
            yield self.version
            if done:
                break
        if feedback is not None:
            self._save(feedback)

    def _save(self, feedback: Feedback) -> None:
        learner.read_metrics(feedback)  # raises rather than save what is not finite
        if self._first_host:
            self._checkpointer.save(self._learner.host_state(), self.version)

    def _record(self, row: dict[str, Any]) -> None:
        if self._recorder:
            self._recorder.write(row)

    def close(self) -> None:
        if self._recorder:
            self._recorder.close()
        self._checkpointer.close()


def _keep(version: items.Version, params: Any) -> None:
    """Publishes nothing."""


def learn(parts: Parts, client: Client, stop: threading.Event) -> Generator[items.Version, None, None]:
    """The learner with threads of its own for samples and parameters, until `max_env_steps` or `stop`."""
    publisher = learner.Publisher(parts.variables(client))
    learning = Learning(parts, publisher)
    blocks = sampler.sample_blocks(client, parts.table, parts.blocks, parts.agent.batch_size)
    yield from learning.run(learner.prefetch(blocks, stop.is_set))
    learning.publish()  # the evaluator waits for the last ones
    publisher.close()
    learning.close()


def evaluate(parts: Parts, client: Client, stop: threading.Event) -> Generator[dict[str, Any], None, None]:
    """The evaluator, until it has evaluated the last parameters or `stop`; yields each evaluation's metrics."""
    run = parts.run
    recorder = Recorder(parts.logdir, "evaluator")
    done = int(recorder.last["env_steps"]) if recorder.last else 0
    if done >= run.max_env_steps:
        return
    variables = parts.variables(client)
    variables.wait()
    for metrics in evaluator.run(
        parts.agent,
        parts.act_greedily,
        lambda n: run.make_environment("evaluator", n, run.eval_envs, evaluation=True),
        variables,
        jax.random.key(run.seed_of("evaluator")),
        run.eval_episodes,
        run.eval_period,
        run.max_env_steps,
        evaluator.next_due(done, run.eval_period),
        stopped=stop.is_set,
    ):
        recorder.write(metrics)
        yield metrics
    recorder.close()
