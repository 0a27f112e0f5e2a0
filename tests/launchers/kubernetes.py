"""A check of whether Kubernetes would accept a JobSet, as far as Shoal's manifests go: the fields that exist, their
types, and the rules of its API server and of JobSet's webhook. It was written by hand, from the API reference of
batch/v1 and of jobset.x-k8s.io/v1alpha2."""

import re
from typing import Any

LABEL = re.compile("[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035, which names of services follow
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")

QUANTITIES = {"cpu": str, "memory": str, "ephemeral-storage": str, "nvidia.com/gpu": int, "google.com/tpu": int}
# Each value is a field's type, the fields below it, or [an item of its list]. A "!" ends the name of a required field.
CONTAINER = {
    "name!": str,
    "image!": str,
    "command": [str],
    "args": [str],
    "env": [{"name!": str, "valueFrom": {"fieldRef": {"fieldPath!": str}}}],
    "resources": {"requests": QUANTITIES, "limits": QUANTITIES},
    "volumeMounts": [{"name!": str, "mountPath!": str}],
    "lifecycle": {"preStop": {"exec": {"command!": [str]}}},
}
POD = {
    "restartPolicy!": str,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": dict,
    "containers!": [CONTAINER],
    "volumes": [{"name!": str, "persistentVolumeClaim": {"claimName!": str}, "emptyDir": {"medium": str}}],
}
RULE = {
    "action!": str,
    "onExitCodes": {"containerName": str, "operator!": str, "values!": [int]},
    "onPodConditions": [{"type!": str, "status!": str}],
}
JOB = {
    "completionMode": str,
    "completions": int,
    "parallelism": int,
    "backoffLimit": int,
    "podFailurePolicy": {"rules!": [RULE]},
    "template!": {"spec!": POD},
}
JOB_SET = {
    "apiVersion!": str,
    "kind!": str,
    "metadata!": {"name!": str, "namespace": str, "annotations": dict},
    "spec!": {
        "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool, "subdomain": str},
        "successPolicy": {"operator!": str, "targetReplicatedJobs": [str]},
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy": str,
            "rules": [{"name!": str, "action!": str, "onJobFailureReasons": [str]}],
        },
        "replicatedJobs": [{"name!": str, "replicas": int, "template!": {"spec!": JOB}}],
    },
}


def check(manifest: Any) -> None:
    """Raises AssertionError unless Kubernetes would accept the manifest."""
    _check_fields(manifest, JOB_SET, "")
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    name, spec = manifest["metadata"]["name"], manifest["spec"]
    jobs = {job["name"]: job for job in spec["replicatedJobs"]}
    assert len(jobs) == len(spec["replicatedJobs"]), "two of one name"
    assert LABEL.fullmatch(spec["network"]["subdomain"]) and len(spec["network"]["subdomain"]) <= 63
    assert spec["successPolicy"]["operator"] in ("All", "Any")
    assert jobs.keys() >= {*spec["successPolicy"]["targetReplicatedJobs"]}
    assert spec["failurePolicy"]["restartStrategy"] in ("Recreate", "BlockingRecreate", "InPlaceRestart")
    for rule in spec["failurePolicy"]["rules"]:
        assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
        reasons = {"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded"}
        assert {*rule["onJobFailureReasons"]} <= reasons | {"PodFailurePolicy"}
    for kind, each in jobs.items():
        job = each["template"]["spec"]
        longest = f"{name}-{kind}-{each['replicas'] - 1}-{job['completions'] - 1}-abcde"
        assert LABEL.fullmatch(longest) and len(longest) <= 63, longest
        assert each["replicas"] * job["parallelism"] < 2**31
        _check_job(job)


def _check_job(job: dict[str, Any]) -> None:
    assert job["completionMode"] == "Indexed" and 0 < job["parallelism"] == job["completions"] <= 100_000
    assert 0 <= job["backoffLimit"] < 2**31
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "podFailurePolicy goes with no other"
    (container,) = pod["containers"]
    for rule in job["podFailurePolicy"]["rules"]:
        assert rule["action"] in ("FailJob", "FailIndex", "Ignore", "Count")
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule), "one of them, not both"
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["operator"] in ("In", "NotIn") and 0 not in rule["onExitCodes"]["values"]
            assert rule["onExitCodes"]["containerName"] == container["name"]
    volumes = [volume["name"] for volume in pod["volumes"]]
    assert sorted(mount["name"] for mount in container["volumeMounts"]) == sorted(volumes)
    for mount in container["volumeMounts"]:
        assert mount["mountPath"].startswith("/") and ":" not in mount["mountPath"]
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert all(QUANTITY.fullmatch(str(quantity)) for quantity in requests.values())
    for of_device in ("nvidia.com/gpu", "google.com/tpu"):
        assert requests.get(of_device) == limits.get(of_device), "what is not shared is requested as it is limited"
    labels = pod.get("nodeSelector", {}).values()
    assert all(re.fullmatch("[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", label) for label in labels)


def _check_fields(value: Any, schema: Any, where: str) -> None:
    if isinstance(schema, list):
        assert isinstance(value, list) and value, f"{where} is no list"
        for index, each in enumerate(value):
            _check_fields(each, schema[0], f"{where}[{index}]")
    elif isinstance(schema, dict):
        assert isinstance(value, dict), f"{where} is no object"
        fields = {name.removesuffix("!"): each for name, each in schema.items()}
        assert value.keys() <= fields.keys(), f"{where} has {value.keys() - fields.keys()}"
        missing = {name[:-1] for name in schema if name.endswith("!")} - value.keys()
        assert not missing, f"{where} lacks {missing}"
        for name, each in value.items():
            _check_fields(each, fields[name], f"{where}.{name}")
    else:
        assert type(value) is schema, f"{where} is {value!r}, no {schema.__name__}"
