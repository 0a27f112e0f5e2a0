"""Kubernetes manifests: what is in them, and that their commands work. There is no cluster here, so `kubernetes.check`
says whether Kubernetes would accept them."""

import functools
import pathlib
import random
import re
import signal
import subprocess
import sys

import pytest
import yaml

from launchers import flags, manifests, program, role, train
from launchers.ports import free_port
from launchers.run import Run
from runtime import metrics
from tests.launchers import command_line, kubernetes

NEEDED = ("--image=registry.example/shoal:cpu", "--claim=runs")
AGENTS = {
    **dict.fromkeys(("impala", "ppo", "a3c", "dqn", "reinforce"), "CartPole-v1"),
    **dict.fromkeys(("ddpg", "apex_dpg"), "Pendulum-v1"),
}
WAIT = 240.0


def render(*arguments: str) -> tuple[int, dict]:
    """Runs scripts/manifests. Returns its exit code and the manifest, which is empty unless the code is 0."""
    path = pathlib.Path("manifest.yaml")
    code = flags.attempt(manifests.manifests, ["manifests", *arguments, f"--output={path}"])
    return code, yaml.safe_load(path.read_text()) if code == 0 else {}


def run_of(command: list[str]) -> Run:
    """Returns the run that a pod's command describes."""
    which = {"scripts/role": role.role, "scripts/train": train.train}[command[0]]
    flags.parse(which, command)
    return flags.run_from_flags(used=("actors_per_process",) if command[0] == "scripts/role" else ())


def pods(manifest: dict) -> dict[str, list[str]]:
    """Returns the command of each pod, with variables expanded as Kubernetes does: host name -> command."""
    name, found = manifest["metadata"]["name"], {}
    for jobs in manifest["spec"]["replicatedJobs"]:
        job = jobs["template"]["spec"]
        (container,) = job["template"]["spec"]["containers"]
        for replica in range(jobs["replicas"]):
            for index in range(job["completions"]):
                known = {"JOB_COMPLETION_INDEX": str(index)}
                for variable in container.get("env", ()):
                    assert variable["valueFrom"]["fieldRef"]["fieldPath"].endswith("jobset.sigs.k8s.io/job-index']")
                    known[variable["name"]] = str(replica)
                command = [_expanded(argument, known) for argument in container["command"] + container["args"]]
                host = f"{name}-{jobs['name']}-{replica}-{index}.{manifest['spec']['network']['subdomain']}"
                found[host] = command
    return found


def _expanded(argument: str, known: dict[str, str]) -> str:
    """Returns the argument with the values of known variables for $(NAME), and with a dollar for $$."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda found: known.get(found[1], found[0]) if found[1] else "$", argument)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    command_line.command("manifests")  # skips without Reverb: roles then have no machines of their own
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("seed", range(40))
def test_every_role_of_a_run_is_in_one_pod_and_told_the_same_run(seed):
    draw = random.Random(seed)
    agent = draw.choice(sorted(AGENTS))
    with_replay = agent in ("dqn", "ddpg", "apex_dpg")
    actors, share = draw.choice((1, 2, 5, 12, 300)), draw.choice((None, 1, 3, 7))
    arguments = [f"--agent={agent}", f"--env={AGENTS[agent]}", f"--num_actors={actors}", f"--seed={seed}"]
    arguments += [] if share is None else [f"--actors_per_process={share}"]
    arguments += ["--num_replay_servers=2"] if with_replay and actors % 2 == 0 and agent != "dqn" else []
    if agent == "impala" and draw.random() < 0.7:
        mode = draw.choice(("separate", "vmap"))
        arguments += ["--population=3", f"--population_mode={mode}", "--tune=learning_rate:log:1e-4:1e-2"]
    arguments += draw.choice(([], ["--gpus=2"], ["--tpu=tpu-v5-lite-podslice:2x2"], ["--actor_resources=cpu=2.5"]))
    arguments += draw.choice(([], ["--placement=processes"], ["--name=a"], ["--port=7000"], ["--config.discount=0.5"]))
    code, manifest = render(*NEEDED, *arguments)
    assert code == 0, arguments
    kubernetes.check(manifest)
    found = pods(manifest)
    played = []
    for command in found.values():
        run = run_of(command)
        values = flags.FLAGS
        process = program.Role(values.role, values.task, values.member)
        played += program.processes_of(run)[process]
        for address in (values.replay or "").split(",") if values.role != "replay" else ():
            host, _, port = address.rpartition(":")
            assert found[host][1] == "--role=replay" and f"--port={port}" in found[host]
    wanted = flags.run_from_flags(used=("actors_per_process",))
    assert sorted(played, key=str) == sorted(program.roles_of(wanted), key=str)
    assert wanted.num_actors == actors and wanted.seed == seed and wanted.carrier == "reverb"
    assert manifest["spec"]["successPolicy"]["targetReplicatedJobs"] == ["learner", "evaluator"]
    for jobs in manifest["spec"]["replicatedJobs"]:
        (container,) = jobs["template"]["spec"]["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert ("lifecycle" in container) == (jobs["name"] == "replay"), "servers outlive those who save"
        has_devices = any("gpus" in each or "tpu" in each for each in arguments)
        assert bool(limits) == (has_devices and jobs["name"] == "learner")


@pytest.mark.parametrize("seed", range(20))
def test_every_host_of_a_pod_is_told_the_same(seed):
    draw = random.Random(seed)
    agent = draw.choice(("impala", "dqn", "ddpg", "ppo"))
    count, slice_ = draw.choice((1, 2, 4)), draw.choice(({}, {4: "2x2x4", 2: "2x4", 1: "2x2"}))
    arguments = [f"--agent={agent}", f"--env={AGENTS[agent]}", "--config.batch_size=16", "--envs_per_actor=4"]
    arguments += [f"--tpu=tpu-v4:{slice_[count]}"] if slice_ else [f"--num_hosts={count}", "--gpus=8"]
    arguments += draw.choice(([], ["--carrier=local"], ["--namespace=research"], ["--host_resources=memory=100Gi"]))
    code, manifest = render(*NEEDED, "--placement=pod", *arguments)
    assert code == 0, arguments
    kubernetes.check(manifest)
    found = pods(manifest)
    for host, command in enumerate(found.values()):
        run = run_of(command)
        assert run.agent == agent and run.placement == "pod"
        values = flags.FLAGS
        assert values.unfinished_code == 75
        if slice_:
            assert (values.coordinator, values.num_hosts, values.host) == (None, None, None)
        else:
            assert values.coordinator == f"{next(iter(found))}:9000"
            assert (values.num_hosts, values.host) == (count, host)
    assert len(found) == count
    (jobs,) = manifest["spec"]["replicatedJobs"]
    (limits,) = jobs["template"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"].items()
    assert limits == (("google.com/tpu", 4) if slice_ else ("nvidia.com/gpu", 8))
    assert ("annotations" in manifest["metadata"]) == (bool(slice_) and count > 1)


def test_what_a_shell_or_kubernetes_would_replace_stays_as_it_is():
    env_kwargs = '--env_kwargs={"render_mode": "$(HOME) $$ $HOME $(JOB_COMPLETION_INDEX) \'"}'
    code, manifest = render(*NEEDED, "--env=gymnasium:CartPole-v1", env_kwargs)
    assert code == 0 and all(env_kwargs in command for command in pods(manifest).values())


def test_the_longest_name_is_short_enough():
    name = "a" * 40
    many = ("--actors_per_process=1", "--num_actors=100000", "--envs_per_actor=1", "--config.batch_size=8")
    code, manifest = render(*NEEDED, f"--name={name}", *many)
    assert code == 0
    kubernetes.check(manifest)
    assert render(*NEEDED, f"--name={name}a")[0] == 2
    assert render(*NEEDED, "--actors_per_process=1", "--num_actors=100001", "--envs_per_actor=1")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--claim=runs",), ["--image", "requirements/Dockerfile"]),
        (("--image=two words", "--claim=runs"), ["--image=two words"]),
        (("--image=shoal",), ["--claim", "outlive"]),
        ((*NEEDED, "--carrier=local"), ["--carrier=local", "--placement=pod"]),
        ((*NEEDED, "--placement=serial", "--carrier=local"), ["--carrier=local", "--placement=pod"]),
        ((*NEEDED, "--placement=serial"), ["--placement=serial"]),
        ((*NEEDED, "--name=Pong"), ["--name=Pong:", "small letters"]),
        ((*NEEDED, "--name=1pong"), ["--name=1pong:"]),
        ((*NEEDED, "--name="), ["--name"]),
        ((*NEEDED, "--namespace=a_b"), ["--namespace=a_b:"]),
        (("--image=shoal", "--claim=a b"), ["--claim=a b:"]),
        ((*NEEDED, "--actor_resources=cpu=two"), ["--actor_resources", "'cpu=two'", "cpu=500m,memory=8Gi"]),
        ((*NEEDED, "--actor_resources=memory=8GB"), ["'memory=8GB'"]),
        ((*NEEDED, "--learner_resources=cpu=1,cpu=2"), ["--learner_resources", "once"]),
        ((*NEEDED, "--host_resources=cpu=1"), ["--host_resources is for the hosts of a pod"]),
        ((*NEEDED, "--num_hosts=2"), ["--num_hosts is for the hosts of a pod"]),
        ((*NEEDED, "--placement=pod"), ["--num_hosts", "--tpu"]),
        ((*NEEDED, "--placement=pod", "--num_hosts=2", "--actor_resources=cpu=1"), ["--actor_resources is for roles"]),
        ((*NEEDED, "--placement=pod", "--num_hosts=3", "--config.batch_size=8"), ["--num_hosts=3 must divide"]),
        ((*NEEDED, "--placement=pod", "--num_hosts=2", "--agent=a3c"), ["--travels=gradients"]),
        ((*NEEDED, "--placement=pod", "--tpu=v6e"), ["--tpu=v6e", "TYPE:TOPOLOGY"]),
        ((*NEEDED, "--placement=pod", "--tpu=v6e:4x4", "--num_hosts=3"), ["--num_hosts=3", "16 chips"]),
        ((*NEEDED, "--tpu=v6e:4x4"), ["16 chips", "--placement=pod"]),
        ((*NEEDED, "--tpu=v6e:2x2", "--gpus=1"), ["--tpu and --gpus"]),
        ((*NEEDED, "--preemption_notice=/tmp/notice"), ["--preemption_notice", "signal"]),
        ((*NEEDED, "--logdir=runs/pong"), ["--logdir=runs/pong:", "/runs/pong"]),
        ((*NEEDED, "--logdir=/pong"), ["--logdir=/pong:"]),
        ((*NEEDED, "--agent=impalla"), ["impalla", "impala"]),
        ((*NEEDED, "--agent=ddpg"), ["ddpg", "continuous"]),
        ((*NEEDED, "--output=/nonexistent/a.yaml"), ["/nonexistent/a.yaml"]),
        ((*NEEDED, "--actors_per_proces=3"), ["--actors_per_process"]),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(arguments, words, capfd, tmp_path):
    output = () if any("output" in each for each in arguments) else (f"--output={tmp_path / 'manifest.yaml'}",)
    assert flags.attempt(manifests.manifests, ["manifests", *arguments, *output]) == 2
    printed, errors = capfd.readouterr()
    (line,) = errors.splitlines()
    assert not printed and line.startswith("error: ") and all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


def start(command: list[str], hosts: dict[str, str]) -> subprocess.Popen:
    """Starts a pod's command, unchanged except that `hosts` replaces names of pods by addresses on this machine."""
    for name, here in hosts.items():
        command = [argument.replace(name, here) for argument in command]
    return subprocess.Popen(
        [str(command_line.ROOT / command[0]), *command[1:]],
        env={**command_line.ENVIRONMENT, "SHOAL_PYTHON": "{}.{}".format(*sys.version_info)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def code_and_output(process: subprocess.Popen) -> tuple[int, str]:
    output = command_line.output_of(process, WAIT)
    return process.returncode, output


@pytest.mark.timeout(600)
def has_ended(process: subprocess.Popen) -> bool:
    return process.poll() is not None


def test_the_commands_of_roles_train_and_end_as_the_job_set_says(tmp_path):
    logdir = tmp_path / "runs" / "cartpole"
    few = ("--agent=impala", "--max_env_steps=4000", "--eval_episodes=4", f"--port={free_port()}")
    code, manifest = render(*NEEDED, *command_line.TINY, *few, f"--logdir={logdir}", "--name=cartpole")
    assert code == 0
    here = {"cartpole-replay-0-0.cartpole": "127.0.0.1"}
    running = {host.split(".")[0]: start(command, here) for host, command in pods(manifest).items()}
    try:
        for ending in manifest["spec"]["successPolicy"]["targetReplicatedJobs"]:
            process = running.pop(f"cartpole-{ending}-0-0")
            needed = [running[f"cartpole-{kind}-0-0"] for kind in ("replay", "actor")]
            command_line.wait_for(f"{ending} to end", functools.partial(has_ended, process), WAIT, needed)
            code, output = code_and_output(process)
            assert code == 0 and "Traceback" not in output, output
        assert set(running) == {"cartpole-replay-0-0", "cartpole-actor-0-0"}
        for process in running.values():
            assert process.poll() is None, "it ends when it is asked to"
            process.send_signal(signal.SIGTERM)
            code, output = code_and_output(process)
            assert code == 128 + signal.SIGTERM and "Traceback" not in output, output
    finally:
        for process in running.values():
            process.kill()
    assert list((logdir / "checkpoints").glob("learner_steps_*"))
    assert metrics.latest(logdir, "learner")["env_steps"] >= 4000 and metrics.latest(logdir, "evaluator")


@pytest.mark.timeout(900)
def test_hosts_that_are_drained_are_not_done_and_go_on_when_they_start_again(tmp_path):
    logdir = tmp_path / "runs" / "cartpole"
    arguments = (*NEEDED, *command_line.TINY, "--agent=impala", "--placement=pod", "--carrier=local", "--num_hosts=2")
    arguments += (f"--logdir={logdir}", "--name=cartpole", "--eval_episodes=4", "--eval_period=1000000000")

    def hosts(max_env_steps: int) -> list[subprocess.Popen]:
        code, manifest = render(*arguments, f"--max_env_steps={max_env_steps}")
        assert code == 0
        here = {"cartpole-host-0-0.cartpole:9000": f"127.0.0.1:{free_port()}"}
        return [start(command, here) for command in pods(manifest).values()]

    def env_steps() -> float:
        return (metrics.latest(logdir, "learner") or {"env_steps": 0.0})["env_steps"]

    running = hosts(1_000_000_000)
    try:
        command_line.wait_for("learning", lambda: env_steps() > 500, WAIT, running)
        running[1].send_signal(signal.SIGTERM)
        for process in running:
            code, output = code_and_output(process)
            assert code == 75 and "Traceback" not in output, output
        assert list((logdir / "checkpoints").glob("learner_steps_*"))
        done = env_steps()
        running = hosts(int(done) + 1000)
        for process in running:
            code, output = code_and_output(process)
            assert code == 0 and "Traceback" not in output, output
        assert env_steps() >= done + 1000
    finally:
        for process in running:
            process.kill()
