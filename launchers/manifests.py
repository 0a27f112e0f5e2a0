"""Prints the Kubernetes manifest of a run, a JobSet, which `kubectl apply -f -` starts.

  scripts/manifests --image=IMAGE --claim=CLAIM --agent=impala --env=Pong-v5 --num_actors=8
  scripts/manifests --image=IMAGE --claim=CLAIM --placement=pod --num_hosts=2 --gpus=8 --agent=impala --env=Pong-v5

The flags that describe the run are those of scripts/train. Each process of the run is a Kubernetes pod, which runs a
scripts/role command. With --placement=pod each host is a Kubernetes pod, and all run the same scripts/train command.
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

PORT = 8000  # of each replay server, unless --port gives another; each is in a pod of its own
COORDINATOR_PORT = 9000  # where the hosts of --placement=pod meet; JAX's own service has the port after it
MISTAKE = 2  # the exit code after an error that a person must mend, and no restart can
UNFINISHED = 75  # the exit code of a host that is to start again: EX_TEMPFAIL of sysexits.h
GRACE_SECONDS = 300  # a pod that was asked to end is killed after these; a learner and its replay save meanwhile
# For so long a replay server serves on when asked to end: Kubernetes asks all pods at once, and the learner needs it.
SERVING_SECONDS = 60
MOST_PODS = 100_000  # the most that Kubernetes allows an indexed Job
CHIPS = 4  # of each host of a TPU slice, unless --num_hosts says how many hosts share the chips
INDEX = "$(JOB_COMPLETION_INDEX)"  # Kubernetes replaces it by the pod's number in its Job
MEMBER = "$(MEMBER)"  # likewise by the number of the population's member whose role the pod plays
JOB_INDEX = "metadata.labels['jobset.sigs.k8s.io/job-index']"  # the field of a pod that has the member's number

RESOURCES = "the resources that Kubernetes reserves for"
EXAMPLE = "such as cpu=2,memory=8Gi; empty: none"


@dataclasses.dataclass
class Manifest:
    """The flags that describe a run's manifest for Kubernetes."""

    image: str = setting(None, "the container image to run, which requirements/Dockerfile makes")
    claim: str = setting(
        None, "the PersistentVolumeClaim that holds the logdir, which all of the run's machines must be able to write"
    )
    logdir: pathlib.Path = setting(
        None,
        "the run's folder in the containers; the claim is mounted at the folder above it",
        default_words="/runs/NAME",
    )
    name: str = setting(None, "the JobSet's name", default_words="AGENT-ENV")
    namespace: str = setting(None, "the Kubernetes namespace of the JobSet", default_words="the one that kubectl uses")
    num_hosts: int = setting(
        None, "with --placement=pod: number of hosts; by default a TPU slice has one for every 4 chips", most=MANY
    )
    gpus: int = setting(0, "number of NVIDIA GPUs of a learner, or of each host with --placement=pod", least=0, most=64)
    tpu: str = setting("", "the TPU slice on GKE, TYPE:TOPOLOGY, such as tpu-v6e-slice:4x4; empty: none")
    replay_resources: str = setting("", f"{RESOURCES} a replay server, {EXAMPLE}")
    learner_resources: str = setting("", f"{RESOURCES} a learner, {EXAMPLE}")
    evaluator_resources: str = setting("", f"{RESOURCES} an evaluator, {EXAMPLE}")
    actor_resources: str = setting("", f"{RESOURCES} a process of --actors_per_process actors, {EXAMPLE}")
    host_resources: str = setting("", f"{RESOURCES} a host of --placement=pod, {EXAMPLE}")
    max_restarts: int = setting(
        10, "how often a role, or with --placement=pod all hosts together, may be started again", least=0, most=1000
    )
    connect_seconds: float = setting(
        1800.0,
        "seconds that roles wait for the replay servers, and hosts for each other; it is long because machines may "
        "have to be started",
        least=0,
    )
    output: pathlib.Path = setting(
        None, "the file to which the manifest is written", default_words="the standard output"
    )


class Slice(NamedTuple):
    """The accelerators of one machine."""

    limits: dict[str, int]  # how many there are, by the name of Kubernetes's resource; {}: none
    selector: dict[str, str]  # labels of the machines that have them; {}: any machine


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
        raise UsageError(
            "--preemption_notice: Kubernetes announces the end of a pod by a signal: leave --preemption_notice out"
        )
    if not in_pod and run.carrier == "local":
        raise UsageError(
            "--carrier=local has all roles of a run in one process: give --placement=pod or --carrier=reverb"
        )
    if run.placement in ("serial", "ray"):
        why = "runs in one process" if run.placement == "serial" else "has Ray place the processes, not Kubernetes"
        raise UsageError(f"--placement={run.placement} {why}: leave --placement out, or give --placement=pod")
    # JAX is imported only now, when the command line is understood. It computes nothing here.
    import jax
    import yaml

    from launchers import population as populations
    from launchers import settings

    jax.config.update("jax_platforms", "cpu")
    populations.check(run)
    run.make_agent(run.spec())  # raises if it does not fit; this machine's memory does not matter
    if in_pod:
        run.check_pod(count)
        settings.check_port(values.port, run)
        jobs = [_hosts(run, name, logdir, count, accelerators, resources["host"])]
    else:
        jobs = _roles(run, name, logdir, accelerators, resources)
    text = yaml.safe_dump(_job_set(name, jobs, exclusive=bool(values.tpu) and count > 1), sort_keys=False)
    if values.output:
        from runtime.files import replacing

        with replacing(values.output) as new:
            new.write_text(text)
    else:
        print(text, end="")
    return 0


# The functions that read and check the command line, before JAX is imported.


def _check_names(in_pod: bool) -> str:
    """Returns the JobSet's name. Raises UsageError if --image or --claim is missing, if Kubernetes does not take one of
    the names, or if a flag does not suit the placement."""
    values = flags.FLAGS
    if not values.image:
        raise UsageError("a manifest needs --image, the image of its containers; requirements/Dockerfile makes one")
    if not re.fullmatch(r"[a-z0-9][A-Za-z0-9._:/@-]*", values.image):
        raise UsageError(
            f"--image={values.image} is not the name of an image: give, for example, --image=registry.example/shoal:cpu"
        )
    if not values.claim:
        raise UsageError(
            "a manifest needs --claim, the PersistentVolumeClaim that has the logdir: what is saved must outlive a pod"
        )
    if values.name is None:
        name = re.sub("[^a-z0-9]+", "-", f"{values.agent}-{values.env}".lower()).strip("-")
    else:
        name = values.name
    label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    for flag, text, pattern, most in (
        ("name", name, f"(?![0-9]){label}", 40),  # a service's name begins with no digit, and pods add to it
        ("claim", values.claim, rf"{label}(\.{label})*", 253),
        ("namespace", values.namespace, label, 63),
    ):
        if text is not None and (len(text) > most or not re.fullmatch(pattern, text)):
            raise UsageError(
                f"--{flag}={text}: Kubernetes does not take this name: give small letters, digits and '-', a letter "
                f"first, {most} characters at most"
            )
    of_roles = [f"{role}_resources" for role in ("replay", "learner", "evaluator", "actor")]
    for flag in of_roles if in_pod else ("host_resources", "num_hosts"):
        if getattr(values, flag):
            what, change = (
                ("roles in pods of their own", "leave --placement=pod out")
                if in_pod
                else ("the hosts of a pod", "give --placement=pod")
            )
            raise UsageError(f"--{flag} is for {what}: leave --{flag} out, or {change}")
    return name


def _resources(role: str) -> dict[str, str]:
    """Returns what --ROLE_resources reserves for a role, by the resource's name. Raises UsageError if that is wrong."""
    text = getattr(flags.FLAGS, f"{role}_resources")
    found = {}
    for part in text.split(",") if text else []:
        name, _, quantity = part.partition("=")
        known = name in ("cpu", "memory", "ephemeral-storage") and name not in found
        if not known or not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,3})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?", quantity):
            raise UsageError(
                f"--{role}_resources: {part!r} is not understood: give amounts of cpu, memory or ephemeral-storage, "
                "each once, such as cpu=500m,memory=8Gi"
            )
        found[name] = quantity
    return found


def _check_logdir(name: str) -> pathlib.Path:
    """Returns the run's folder in the containers. Raises UsageError if --logdir cannot be one."""
    logdir = flags.FLAGS.logdir or pathlib.Path("/runs") / name
    within = logdir.is_absolute() and len(logdir.parts) > 2 and ".." not in logdir.parts
    if not within or not re.fullmatch("[A-Za-z0-9._/+-]+", str(logdir)):
        raise UsageError(
            f"--logdir={logdir}: this folder would not be on the claim: give a folder below the one where the claim is "
            "mounted, such as /runs/pong, of letters, digits and '._/+-'"
        )
    return logdir


def _accelerators(in_pod: bool) -> tuple[int, Slice]:
    """Returns how many hosts there are, and the accelerators of a learner, or of each host if `in_pod`. Raises
    UsageError if --tpu, --gpus and --num_hosts do not fit together."""
    values = flags.FLAGS
    if values.tpu and values.gpus:
        raise UsageError("--tpu and --gpus: a machine has one or the other: leave one of the two out")
    if not values.tpu:
        if in_pod and values.num_hosts is None:
            raise UsageError(
                "--placement=pod needs --num_hosts, or --tpu, whose topology says how many hosts there are"
            )
        return values.num_hosts or 1, Slice({"nvidia.com/gpu": values.gpus}, {}) if values.gpus else NO_SLICE
    found = re.fullmatch(r"([a-z0-9]([-a-z0-9]*[a-z0-9])?):([1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2})", values.tpu)
    if not found or len(found[1]) > 63:
        raise UsageError(f"--tpu={values.tpu} must be TYPE:TOPOLOGY, such as tpu-v6e-slice:4x4")
    chips = math.prod(map(int, found[3].split("x")))
    if not in_pod and chips > 2 * CHIPS:
        raise UsageError(f"--tpu={values.tpu} has {chips} chips, on several hosts: give --placement=pod")
    count = (values.num_hosts or max(1, chips // CHIPS)) if in_pod else 1
    if chips % count or chips // count > 2 * CHIPS:
        raise UsageError(
            f"--num_hosts={count} cannot share the {chips} chips of --tpu={values.tpu}: give a number that divides "
            f"{chips}, with at most {2 * CHIPS} chips for each host"
        )
    labels = {"cloud.google.com/gke-tpu-accelerator": found[1], "cloud.google.com/gke-tpu-topology": found[3]}
    return count, Slice({"google.com/tpu": chips // count}, labels)


# The functions that build the manifest.


def _run_flags(run: "Run") -> list[str]:
    """Returns the flags that describe the run to each of its processes. --carrier is always among them, because its
    default may differ between the image and this machine."""
    given = [word for name, word in flags.words_of_run().items() if name not in ("agent", "env", "carrier")]
    return [f"--agent={run.agent}", f"--env={run.env}", f"--carrier={run.carrier}", *sorted(given)]


def _roles(
    run: "Run", name: str, logdir: pathlib.Path, accelerators: Slice, resources: dict[str, dict[str, str]]
) -> list[dict[str, Any]]:
    """Returns a group of Jobs for each kind of role. The group has a Job for each member of a population, and a Job has
    a pod for each process."""
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
        # Pods start again one by one: a pod that does so finds the others.
        jobs[-1]["template"]["spec"]["backoffLimit"] = flags.FLAGS.max_restarts * (len(roles) // members)
    return jobs


def _hosts(
    run: "Run", name: str, logdir: pathlib.Path, count: int, accelerators: Slice, resources: dict[str, str]
) -> dict[str, Any]:
    """Returns the Job whose pods are the hosts. If one of them fails, the Job does, and the JobSet starts all again."""
    command = ["scripts/train", f"--logdir={logdir}", f"--connect_seconds={flags.FLAGS.connect_seconds:g}"]
    command += [f"--unfinished_code={UNFINISHED}"]
    command += [f"--port={flags.FLAGS.port}"] if flags.FLAGS.port else []
    if not flags.FLAGS.tpu:  # in a TPU slice GKE tells each host this
        address = f"{_host_name(name, 'host', 0)}:{COORDINATOR_PORT}"
        command += [f"--coordinator={address}", f"--num_hosts={count}", f"--host={INDEX}"]
    jobs = _jobs("host", [*command, *_escaped(_run_flags(run))], (1, count), logdir, resources, accelerators)
    jobs["template"]["spec"]["backoffLimit"] = 0
    return jobs


def _host_name(name: str, kind: str, index: int) -> str:
    """Returns the host name of a pod, which the JobSet's own service resolves."""
    return f"{name}-{kind}-0-{index}.{name}"


def _escaped(arguments: Sequence[str]) -> list[str]:
    """Escapes a command's arguments, because Kubernetes replaces $(NAME) in them, and $$ by $."""
    return [argument.replace("$", "$$") for argument in arguments]


def _jobs(
    kind: str,
    command: list[str],
    counts: tuple[int, int],
    logdir: pathlib.Path,
    resources: dict[str, str],
    accelerators: Slice,
) -> dict[str, Any]:
    """Returns a group of equal Jobs, all of whose pods run `command`; `counts` are (the Jobs, the pods of each). Raises
    UsageError if a Job cannot have so many pods."""
    replicas, pods = counts
    if pods > MOST_PODS:
        raise UsageError(
            f"a Job of {pods:,} pods is too large: Kubernetes takes {MOST_PODS:,} at most; give fewer pods, with more "
            "in each"
        )
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
        "restartPolicy": "Never",  # podFailurePolicy requires it: the Job makes a new pod instead
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": flags.FLAGS.claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},  # by default a container has 64 MB
        ],
    }
    if kind == "replay":
        container["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", str(SERVING_SECONDS)]}}}
    pod |= {"nodeSelector": dict(accelerators.selector)} if accelerators.selector else {}
    failures = [
        {"action": "FailJob", "onExitCodes": {"containerName": "shoal", "operator": "In", "values": [MISTAKE]}},
        # It does not count as a failure if the pod's machine is drained or taken away.
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
    """Returns the JobSet. It is done once all roles that end by themselves have ended with exit code 0, and then ends
    the others. If `exclusive`, each Job has a slice to itself."""
    from launchers import program

    metadata: dict[str, Any] = {"name": name}
    metadata |= {"namespace": flags.FLAGS.namespace} if flags.FLAGS.namespace else {}
    if exclusive:  # all hosts of a Job are on one slice, which no other Job uses
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
            # BlockingRecreate waits until the old pods are gone: a role that still saves holds its lock in the logdir.
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
