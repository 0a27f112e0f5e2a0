"""Trains an agent: `scripts/train --agent=impala --env=Pong-v5`."""

import importlib

from launchers import flags, ports
from launchers import run as runs
from runtime import plot


def train() -> int:
    run, logdir = flags.run_from_flags(), flags.logdir_from_flags()
    ports.check_port(flags.FLAGS.port)
    run.check_fit(run.num_replay_servers)  # before anything is written
    runs.save(run, logdir)
    print(f"{run.agent} learns {run.env} for {run.max_env_steps:,} env steps; {run.placement}; in {logdir}", flush=True)
    placement = importlib.import_module(f"launchers.{run.placement}")  # only the one: each brings much with it
    placement.train(run, logdir, flags.FLAGS.port)
    if plot.draw([logdir], logdir / "curve.png"):
        print(f"the learning curve is {logdir / 'curve.png'}")
    return 0


def run() -> None:
    flags.main(train)


if __name__ == "__main__":
    run()
