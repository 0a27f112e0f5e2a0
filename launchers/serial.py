"""Placement `serial`: every role by turns in one thread. Nothing depends on timing, so that the same command gives the
same parameters to the bit."""

import itertools
import pathlib

from launchers import roles
from launchers.run import Run
from launchers.shutdown import stop_on_signals
from launchers.terminal import Display
from runtime import metrics
from runtime.evaluator import next_due


def train(run: Run, logdir: pathlib.Path, port: int) -> None:
    """Trains until `max_env_steps` or a signal: each actor writes a block in its turn, each batch is learnt at once."""
    stop = stop_on_signals()
    (parts,) = roles.make_parts(run, logdir)
    server = roles.serve([parts], logdir, 0, port)
    clients = [server.localhost_client()]
    variables = parts.variables(clients[0])
    learning = roles.Learning(parts, lambda version, params: variables.push(version, parts.mesh.host(params)), clients)
    actors = [roles.act(parts, clients, task, stop) for task in range(run.num_actors)]
    evaluations = roles.evaluate(parts, clients, stop)
    blocks = parts.batches(clients)

    sequences = 1 if run.travels == "gradients" else parts.num_envs  # in an item

    def batches():
        turns = itertools.cycle(actors)
        while not stop.is_set():
            for _ in range(max(1, parts.agent.batch_size // sequences)):
                next(next(turns), None)
            for _ in range(max(1, sequences // parts.agent.batch_size)):
                if stop.is_set():  # the last block may be missing
                    return
                batch = next(blocks)
                yield batch._replace(sample=parts.send(batch.sample))

    with Display(run, logdir) as display:
        done = metrics.latest(logdir, "evaluator")
        due = next_due(int(done["env_steps"]) if done else 0, run.eval_period)
        for version in learning.run(batches()):
            display.refresh()
            if version.env_steps >= min(due, run.max_env_steps):
                learning.publish()
                next(evaluations, None)
                due = next_due(version.env_steps, run.eval_period)
    learning.close()
    for generator in (*actors, evaluations):
        generator.close()
