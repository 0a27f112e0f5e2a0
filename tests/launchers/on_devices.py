"""Trains agents by placement `device` on all of JAX's devices. Prints as JSON how many environment steps each run made,
and whether its parameters are finite."""

import json
import pathlib
import tempfile

import jax
import numpy as np

from launchers import device
from launchers import run as runs
from runtime.checkpoint import Checkpointer

CASES = {
    "a2c": {"hidden_sizes": (8,), "unroll_length": 5, "batch_size": 8},
    "prioritized_dqn": {"hidden_sizes": (8,), "batch_size": 8, "samples_per_insert": 2.0, "min_replay_size": 64},
}


def main() -> None:
    made = {}
    for agent, config in CASES.items():
        for mapper in ("shard_map", "pmap"):
            settings = {"num_actors": 1, "envs_per_actor": 8, "max_env_steps": 2000, "eval_episodes": 1}
            settings |= {"placement": "device", "mapper": mapper, "eval_period": 10**6}
            run = runs.make(agent, "gymnax:CartPole-v1", settings, config)
            run.check_fit()
            with tempfile.TemporaryDirectory() as folder:
                logdir = pathlib.Path(folder)
                runs.save(run, logdir)
                device.train(run, logdir, 0)
                state, version = Checkpointer(logdir / "checkpoints", run.make_agent(run.spec())).restore()
            finite = all(bool(np.isfinite(x).all()) for x in jax.tree.leaves(state.params))
            made[f"{agent} {mapper}"] = {"env_steps": int(version.env_steps), "finite": finite}
    print(json.dumps(made))


if __name__ == "__main__":
    main()
