"""Placement `serial`: every role by turns in one thread. Nothing depends on timing, so that the same command gives the
same parameters to the bit."""

import itertools
import pathlib

from launchers import roles
from launchers.run import Run
from launchers.shutdown import stop_on_signals
from launchers.terminal import Display
from replay import sampler
from runtime import devices


def train(run: Run, logdir: pathlib.Path, port: int) -> None:
    """Trains until `max_env_steps` or a signal: each actor writes a block in its turn, each batch is learnt at once."""
    stop = stop_on_signals()
    parts = roles.Parts(run, logdir)
    server = parts.serve(port)
    client = server.localhost_client()
    variables = parts.variables(client)
    learning = roles.Learning(parts, lambda version, params: variables.push(version, devices.unreplicate(params)))
    actors = [roles.act(parts, client, task, stop) for task in range(run.num_actors)]
    evaluations = roles.evaluate(parts, client, stop)
    blocks = sampler.sample_blocks(client, parts.table, parts.blocks, run.config.batch_size)

    def batches():
        turns = itertools.cycle(actors)
        while not stop.is_set():
            for _ in range(max(1, run.config.batch_size // run.envs_per_actor)):
                next(next(turns))
            for _ in range(max(1, run.envs_per_actor // run.config.batch_size)):
                batch = next(blocks)
                yield batch._replace(sample=devices.shard(batch.sample))

    with Display(run, logdir) as display:
        due = run.eval_period
        for version in learning.run(batches()):
            display.refresh()
            if version.env_steps >= min(due, run.max_env_steps):
                learning.publish()
                next(evaluations)
                due += run.eval_period
    learning.close()
    for generator in (*actors, evaluations):
        generator.close()
    server.stop()
