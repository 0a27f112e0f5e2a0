"""Prints the Kubernetes manifest of a run, a JobSet, which `kubectl apply -f -` starts.

  scripts/manifests --image=IMAGE --claim=CLAIM --agent=impala --env=Pong-v5 --num_actors=8
  scripts/manifests --image=IMAGE --claim=CLAIM --placement=pod --num_hosts=2 --gpus=8 --agent=impala --env=Pong-v5

The run is told by the same flags as scripts/train's. Each process of its roles is a pod, which gives a scripts/role
command; with --placement=pod each host is one, and all give the same scripts/train command.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from launchers import flags
from launchers.settings import MANY, Settings, Sitting, UsageError, setting

if TYPE_CHECKING:
    from launchers.run import Run

PORT = 8000  # of the replay servers, each in a pod of its own, unless --port says another
COORDINATOR_PORT = 9000  # where a pod's hosts meet; JAX's own service has the next
MISTAKE = 2  # the exit code of what a person must mend, and no restart can
UNFINISHED = 75  # that of a host that is to start again: EX_TEMPFAIL of sysexits.h
GRACE_SECONDS = 300  # for a pod to end once asked; then it is killed: a learner saves, its replay too
SERVING_SECONDS = 60  # of these a replay server goes on: where all pods are asked at once, the learner needs it
MOST_PODS = 100_000  # that Kubernetes gives an indexed Job
CHIPS = 4  # that a host of a TPU slice has, where --num_hosts does not say how many share them
INDEX = "$(JOB_COMPLETION_INDEX)"  # which of its Job's pods a pod is; Kubernetes puts the number in
MEMBER = "$(MEMBER)"  # likewise, of which member of a population it is
JOB_INDEX = "metadata.labels['jobset.sigs.k8s.io/job-index']"  # where a pod finds that

RESOURCES = "what Kubernetes reserves for"


@dataclasses.dataclass
class Manifest:
    """How a run is told to Kubernetes."""

    image: str = setting(None, "the image of its containers, which requirements/Dockerfile makes")
    claim: str = setting(None, "the PersistentVolumeClaim with the logdir, which all of the run's machines may write")
    logdir: pathlib.Path = setting(
        None, "the run's folder in the containers; the claim is mounted at the one above it", default_words="/runs/NAME"
    )
    name: str = setting(None, "what the JobSet is called", default_words="AGENT-ENV")
    namespace: str = setting(None, "where it is made", default_words="kubectl's own")
    num_hosts: int = setting(None, "with --placement=pod: how many hosts; a TPU slice has one for 4 chips", most=MANY)
    gpus: int = setting(0, "NVIDIA GPUs of a learner, or of each host of a pod", least=0, most=64)
    tpu: str = setting("", "TYPE:TOPOLOGY of a TPU slice on GKE, as tpu-v6e-slice:4x4")
    replay_resources: str = setting("", f"{RESOURCES} a replay server, as cpu=2,memory=8Gi")
    learner_resources: str = setting("", f"{RESOURCES} a learner, likewise")
    evaluator_resources: str = setting("", f"{RESOURCES} an evaluator, likewise")
    actor_resources: str = setting("", f"{RESOURCES} --actors_per_process actors, likewise")
    host_resources: str = setting("", f"{RESOURCES} a host of a pod, likewise")
    max_restarts: int = setting(10, "how often a role, or all hosts of a pod, start again", least=0, most=1000)
    connect_seconds: float = setting(
        1800.0,
        "how long roles wait for the replay servers, and hosts for each other: machines take time",
        least=0,
    )
    output: pathlib.Path = setting(None, "a file for the manifest", default_words="the standard output")


class Slice(NamedTuple):
    """The accelerators of one machine."""

    limits: dict[str, int]  # how many of which resource
    selector: dict[str, str]  # labels of the machines that have them


NO_SLICE = Slice({}, {})


@flags.command(Settings, Sitting, Manifest)
def manifests() -> int:
    values = flags.FLAGS
    in_pod = values.placement == "pod"
    name = _check_names(in_pod)
    resources = {role: _resources(role) for role in ("replay", "learner", "evaluator", "actor", "host")}
    logdir = _check_logdir(name)
    count, accelerators = _accelerators(in_pod)
    # --actors_per_process says how many actors share a pod, whatever the placement.
    run = flags.run_from_flags(used=() if in_pod else ("actors_per_process",))
    if run.preemption_notice:
        raise UsageError("--preemption_notice: Kubernetes tells of an end by a signal; leave --preemption_notice out")
    if not in_pod and run.carrier == "local":
        raise UsageError(
            "a run with --carrier=local has all its roles in one process: give --placement=pod or --carrier=reverb"
        )
    if run.placement in ("serial", "ray"):
        why = "is of one process" if run.placement == "serial" else "asks Ray to place processes, not Kubernetes"
        raise UsageError(f"--placement={run.placement} {why}: leave --placement out, or give --placement=pod")
    # Only now, when the command line is understood: JAX, which here is to compute nothing.
    import jax
    import yaml

    from launchers import population as populations
    from launchers import settings

    jax.config.update("jax_platforms", "cpu")
    populations.check(run)
    run.make_agent(run.spec())  # which also says whether it fits; this machine's memory says nothing of the others'
    if in_pod:
        run.check_pod(count)
        settings.check_port(values.port, run)
        jobs = [_hosts(run, name, logdir, count, accelerators, resources["host"])]
    else:
        jobs = _roles(run, name, logdir, accelerators, resources)
    text = yaml.safe_dump(_job_set(name, jobs, exclusive=bool(values.tpu) and count > 1), sort_keys=False)
    if values.output:
        values.output.write_text(text)
    else:
        print(text, end="")
    return 0


# What the command line says, read before JAX is imported.


def _check_names(in_pod: bool) -> str:
    """The JobSet's name, once all names are some that Kubernetes takes."""
    values = flags.FLAGS
    if not values.image:
        raise UsageError("a manifest needs --image, the image of its containers; requirements/Dockerfile makes one")
    if not re.fullmatch(r"[a-z0-9][A-Za-z0-9._:/@-]*", values.image):
        raise UsageError(f"--image={values.image} is no image, as registry.example/shoal:cpu is")
    if not values.claim:
        raise UsageError(
            "a manifest needs --claim, the PersistentVolumeClaim of its logdir: what is saved must outlive a pod"
        )
    if values.name is None:
        name = re.sub("[^a-z0-9]+", "-", f"{values.agent}-{values.env}".lower()).strip("-")
    else:
        name = values.name
    label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    for flag, text, pattern, most in (
        ("name", name, f"(?![0-9]){label}", 40),  # of a service: no digit comes first; and pods' names are longer
        ("claim", values.claim, rf"{label}(\.{label})*", 253),
        ("namespace", values.namespace, label, 63),
    ):
        if text is not None and (len(text) > most or not re.fullmatch(pattern, text)):
            raise UsageError(
                f"--{flag}: {text!r} is no name in Kubernetes: give small letters, digits and '-', a letter first, "
                f"{most} at most"
            )
    of_roles = [f"{role}_resources" for role in ("replay", "learner", "evaluator", "actor")]
    for flag in of_roles if in_pod else ("host_resources", "num_hosts"):
        if getattr(values, flag):
            what, there = ("roles in pods of their own", "out") if in_pod else ("hosts of a pod", "in")
            raise UsageError(f"--{flag} is for {what}: leave it out, or put --placement=pod {there}")
    return name


def _resources(role: str) -> dict[str, str]:
    """What is reserved for a role, by the name of the resource."""
    text = getattr(flags.FLAGS, f"{role}_resources")
    found = {}
    for part in text.split(",") if text else []:
        name, _, quantity = part.partition("=")
        known = name in ("cpu", "memory", "ephemeral-storage") and name not in found
        if not known or not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,3})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?", quantity):
            raise UsageError(
                f"--{role}_resources: {part!r} is no resource: give cpu, memory or ephemeral-storage, each once, as "
                "cpu=500m,memory=8Gi"
            )
        found[name] = quantity
    return found


def _check_logdir(name: str) -> pathlib.Path:
    """The run's folder, as the containers see it."""
    logdir = flags.FLAGS.logdir or pathlib.Path("/runs") / name
    within = logdir.is_absolute() and len(logdir.parts) > 2 and ".." not in logdir.parts
    if not within or not re.fullmatch("[A-Za-z0-9._/+-]+", str(logdir)):
        raise UsageError(
            f"--logdir: {str(logdir)!r} is none that a container has: give a folder below the one where the claim is "
            "mounted, as /runs/pong, of letters, digits and '._/+-'"
        )
    return logdir


def _accelerators(in_pod: bool) -> tuple[int, Slice]:
    """How many hosts there are, and what a learner or each host has."""
    values = flags.FLAGS
    if values.tpu and values.gpus:
        raise UsageError("--tpu and --gpus: a machine has either, so leave one of them out")
    if not values.tpu:
        if in_pod and values.num_hosts is None:
            raise UsageError("--placement=pod needs --num_hosts, or --tpu, whose topology says it")
        return values.num_hosts or 1, Slice({"nvidia.com/gpu": values.gpus}, {}) if values.gpus else NO_SLICE
    found = re.fullmatch(r"([a-z0-9]([-a-z0-9]*[a-z0-9])?):([1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2})", values.tpu)
    if not found or len(found[1]) > 63:
        raise UsageError(f"--tpu={values.tpu} is no TYPE:TOPOLOGY, as tpu-v6e-slice:4x4 is")
    chips = math.prod(map(int, found[3].split("x")))
    if not in_pod and chips > 2 * CHIPS:
        raise UsageError(f"--tpu={values.tpu} has {chips} chips, on several hosts: give --placement=pod")
    count = (values.num_hosts or max(1, chips // CHIPS)) if in_pod else 1
    if chips % count or chips // count > 2 * CHIPS:
        raise UsageError(f"--num_hosts={count} cannot share the {chips} chips of --tpu={values.tpu}")
    labels = {"cloud.google.com/gke-tpu-accelerator": found[1], "cloud.google.com/gke-tpu-topology": found[3]}
    return count, Slice({"google.com/tpu": chips // count}, labels)


# The manifest.


def _run_flags(run: "Run") -> list[str]:
    """What tells every process of the run. What an image and this machine might not have in common is always said."""
    given = [word for name, word in flags.words_of_run().items() if name not in ("agent", "env", "carrier")]
    return [f"--agent={run.agent}", f"--env={run.env}", f"--carrier={run.carrier}", *sorted(given)]


def _roles(
    run: "Run", name: str, logdir: pathlib.Path, accelerators: Slice, resources: dict[str, dict[str, str]]
) -> list[dict[str, Any]]:
    """A group of Jobs for each kind of role: a Job for each member of a population, a pod for each process."""
    from launchers import program

    processes: dict[str, list[program.Role]] = {}
    for process in program.processes_of(run):
        processes.setdefault(process.kind, []).append(process)
    port = flags.FLAGS.port or PORT
    replay = ",".join(f"{_host_name(name, 'replay', each.task)}:{port}" for each in processes["replay"])
    jobs = []
    for kind, roles in processes.items():
        members = len({role.member for role in roles})
        command = ["scripts/role", f"--role={kind}", f"--task={INDEX}", f"--logdir={logdir}"]
        command += [] if roles[0].member is None else [f"--member={MEMBER}"]
        command += (
            [f"--port={port}"]
            if kind == "replay"
            else [f"--replay={replay}", f"--connect_seconds={flags.FLAGS.connect_seconds:g}"]
        )
        computes = kind == "learner" or (kind != "replay" and run.actor_backend == "accelerator")
        jobs.append(
            _jobs(
                kind,
                [*command, *_escaped(_run_flags(run))],
                (members, len(roles) // members),
                logdir,
                resources[kind],
                accelerators if computes else NO_SLICE,
            )
        )
        # By themselves: one pod that starts again finds the others.
        jobs[-1]["template"]["spec"]["backoffLimit"] = flags.FLAGS.max_restarts * (len(roles) // members)
    return jobs


def _hosts(
    run: "Run", name: str, logdir: pathlib.Path, count: int, accelerators: Slice, resources: dict[str, str]
) -> dict[str, Any]:
    """The Job whose pods are the hosts. One that ends takes the others along, and the JobSet starts all of them."""
    command = ["scripts/train", f"--logdir={logdir}", f"--connect_seconds={flags.FLAGS.connect_seconds:g}"]
    command += [f"--unfinished_code={UNFINISHED}"]
    command += [f"--port={flags.FLAGS.port}"] if flags.FLAGS.port else []
    if not flags.FLAGS.tpu:  # of a slice GKE says it
        address = f"{_host_name(name, 'host', 0)}:{COORDINATOR_PORT}"
        command += [f"--coordinator={address}", f"--num_hosts={count}", f"--host={INDEX}"]
    jobs = _jobs("host", [*command, *_escaped(_run_flags(run))], (1, count), logdir, resources, accelerators)
    jobs["template"]["spec"]["backoffLimit"] = 0
    return jobs


def _host_name(name: str, kind: str, index: int) -> str:
    """Where a pod is found, in the JobSet's own service."""
    return f"{name}-{kind}-0-{index}.{name}"


def _escaped(arguments: Sequence[str]) -> list[str]:
    """Kubernetes replaces $(NAME) in a command, and $$ by $."""
    return [argument.replace("$", "$$") for argument in arguments]


def _jobs(
    kind: str,
    command: list[str],
    counts: tuple[int, int],
    logdir: pathlib.Path,
    resources: dict[str, str],
    accelerators: Slice,
) -> dict[str, Any]:
    """The one template of all: so many like Jobs, of so many pods each, that give the same command."""
    replicas, pods = counts
    if pods > MOST_PODS:
        raise UsageError(f"{pods:,} pods of a kind, of {MOST_PODS:,} at most: give fewer, each with more")
    container: dict[str, Any] = {
        "name": "shoal",
        "image": flags.FLAGS.image,
        "command": command[:1],
        "args": command[1:],
        "resources": {"requests": resources | accelerators.limits, "limits": dict(accelerators.limits)},
        "volumeMounts": [
            {"name": "runs", "mountPath": str(logdir.parent)},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    if any(MEMBER in argument for argument in command):
        container["env"] = [{"name": "MEMBER", "valueFrom": {"fieldRef": {"fieldPath": JOB_INDEX}}}]
    pod = {
        "restartPolicy": "Never",  # what podFailurePolicy asks for: the Job makes a new pod instead
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": flags.FLAGS.claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},  # a container's own is 64 MB
        ],
    }
    if kind == "replay":
        container["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", str(SERVING_SECONDS)]}}}
    pod |= {"nodeSelector": dict(accelerators.selector)} if accelerators.selector else {}
    failures = [
        {"action": "FailJob", "onExitCodes": {"containerName": "shoal", "operator": "In", "values": [MISTAKE]}},
        # A machine that is drained or taken away is nobody's failure.
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    job = {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "podFailurePolicy": {"rules": failures},
        "template": {"spec": pod},
    }
    return {"name": kind, "replicas": replicas, "template": {"spec": job}}


def _job_set(name: str, jobs: list[dict[str, Any]], exclusive: bool) -> dict[str, Any]:
    """The JobSet. It is done when all that end by themselves have ended with exit code 0, and ends the others then."""
    from launchers import program

    metadata: dict[str, Any] = {"name": name}
    metadata |= {"namespace": flags.FLAGS.namespace} if flags.FLAGS.namespace else {}
    if exclusive:  # all hosts of a Job on one slice, which no other Job has
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    kinds = [job["name"] for job in jobs]
    ending = [kind for kind in kinds if kind not in program.KINDS or not program.KINDS[kind].asked]
    mistake = {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name},
            "successPolicy": {"operator": "All", "targetReplicatedJobs": ending},
            # A role that still saves holds its place in the logdir: so it is gone before the next one begins.
            "failurePolicy": {
                "maxRestarts": flags.FLAGS.max_restarts,
                "restartStrategy": "BlockingRecreate",
                "rules": [mistake],
            },
            "replicatedJobs": jobs,
        },
    }


def run() -> None:
    flags.main(manifests)


if __name__ == "__main__":
    run()
