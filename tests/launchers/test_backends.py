"""Which processes look for accelerators. On a GPU, a process that does so takes most of its memory."""

import subprocess
import sys

import pytest

from launchers import configs
from tests.launchers import command_line

# Gives JAX an accelerator that prints a line when JAX looks for it, and that cannot be used.
ACCELERATOR = """
import os, sys
from jax._src import xla_bridge
def look():
    print("looked for", flush=True)
    raise RuntimeError("none here")
xla_bridge.register_backend_factory("accelerator", look, priority=1000, fail_quietly=True)
from launchers import flags, processes, role, train
"""
# Runs scripts/train up to where its roles would start. With the logdir "forked", one is forked, and prints which
# platforms it may look for.
TRAIN = """
def begin(run, logdir, port):
    print("handed over, backends:", *sorted(xla_bridge._backends), flush=True)
    import jax
    jax.random.key(0)
    print("computes on", jax.default_backend(), flush=True)
    if logdir.name == "forked":
        processes._start_forkserver()
        child = processes._forks.Process(target=platforms)
        child.start()
        child.join()
processes.train = begin
from tests.launchers.test_backends import platforms
print("exit code", flags.attempt(train.train, ["train", "--placement=processes", *sys.argv[1:]]))
"""
# Runs scripts/role up to where it would connect to the servers.
ROLE = """
def connect(*_):
    raise OSError("nobody serves here")
role._carrier = connect
print("exit code", flags.attempt(role.role, ["role", "--replay=localhost:1", *sys.argv[1:]]))
"""
FIT = """
from launchers import run as runs
for agent in sys.argv[1:]:
    env = "Pendulum-v1" if agent in ("ddpg", "td3", "d4pg", "dpg", "apex_dpg", "mpo", "dmpo") else "CartPole-v1"
    env = {"off_pac": "MountainCar-v0", "mix_match": "MaskedCartPole-v1"}.get(agent, env)
    run = runs.make(agent, env, {}, {})
    run.check_fit(run.num_replay_servers)
    if xla_bridge.backends_are_initialized():
        sys.exit(f"{agent} looks for devices before it acts or learns")
"""


def platforms() -> None:
    import jax

    print("a role may look for", jax.config.jax_platforms or "all", flush=True)


def said(program: str, *arguments: str) -> list[str]:
    environment = {name: value for name, value in command_line.ENVIRONMENT.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", ACCELERATOR + program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_accelerator_is_looked_for_where_nothing_forbids_it():
    """Otherwise the tests below would prove nothing."""
    assert said("import jax; jax.devices()")[0] == "looked for"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("forked", []),
        ("members", ["--population=2", "--tune=learning_rate:log:1e-4:1e-2"]),  # their hyperparameters are drawn
        ("replay", ["--agent=apex_dqn", "--num_replay_servers=2"]),
        ("workers", ["--agent=a3c"]),
    ],
)
def test_who_starts_processes_leaves_accelerators_to_them(name, arguments, tmp_path):
    pytest.importorskip("reverb")
    lines = said(TRAIN, f"--logdir={tmp_path / name}", *arguments)
    assert "looked for" not in lines and "computes on cpu" in lines and lines[-1] == "exit code 0"
    (handed,) = [line for line in lines if line.startswith("handed over")]
    assert handed in ("handed over, backends:", "handed over, backends: cpu")
    assert name != "forked" or "a role may look for all" in lines


@pytest.mark.parametrize("kind", ["learner", "actor", "evaluator"])
def test_of_the_roles_the_learner_alone_looks_for_accelerators(kind, tmp_path):
    pytest.importorskip("reverb")
    arguments = ["--agent=d4pg", "--env=Pendulum-v1", "--population=2", "--tune=tau:log:1e-3:1e-2", "--member=1"]
    lines = said(ROLE, f"--role={kind}", f"--logdir={tmp_path}", *arguments)
    assert lines[-1] == "exit code 2" and ("looked for" in lines) == (kind == "learner")


def test_no_agent_looks_for_devices_while_its_run_is_checked():
    """This holds where Reverb carries, so that other processes may learn. With the local carrier this process learns,
    and looks whether its replay fits on the devices."""
    pytest.importorskip("reverb")
    said(FIT, *sorted(configs.AGENTS))
