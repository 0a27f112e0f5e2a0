"""Reads tracked runs back by the libraries of the tracking services."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from launchers import wandb_files
from runtime import metrics


def role_files(logdir: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the CSV files whose rows are tracked: name -> path."""
    found = [path for pattern in ("learner", "evaluator", "actor_*") for path in logdir.rglob(f"{pattern}.csv")]
    return {path.relative_to(logdir).as_posix().removesuffix(".csv"): path for path in found}


def expected(logdir: pathlib.Path) -> dict[str, list[tuple[float, float]]]:
    """Returns what a service must have of a LOGDIR: metric -> (env_steps, value) pairs, in the order of the rows."""
    found: dict[str, list[tuple[float, float]]] = {}
    for role, path in role_files(logdir).items():
        for row in metrics.read(path):
            for column, value in row.items():
                if column != "env_steps" and value == value:
                    found.setdefault(f"{role}/{column}", []).append((row["env_steps"], value))
    return found


def in_mlflow(logdir: pathlib.Path) -> tuple[Any, dict[str, list[tuple[float, float]]]]:
    """Returns the tracked run at MLFLOW_TRACKING_URI, and its metrics in the form of `expected`, in order of time."""
    import mlflow

    client = mlflow.MlflowClient()
    run = client.get_run(json.loads((logdir / "tracking.json").read_text())["mlflow"]["run"])
    found = {}
    for name in run.data.metrics:
        history = sorted(client.get_metric_history(run.info.run_id, name), key=lambda metric: metric.timestamp)
        found[name] = [(metric.step, metric.value) for metric in history]
    return run, found


def in_wandb(folder: pathlib.Path) -> tuple[list[Any], dict[str, list[tuple[float, float]]], list[int]]:
    """Reads the offline runs in a folder, in the order in which they began. Returns the first record of each, the
    metrics of all together in the form of `expected`, and the steps."""
    runs, found, steps = [], {}, []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for record in _records(path):
            if record.WhichOneof("record_type") == "run" and (not runs or runs[-1][0] != path):
                runs.append((path, record.run))
            if record.WhichOneof("record_type") == "history":
                values = {name: json.loads(value) for name, value in wandb_files.logged(record).items()}
                steps.append(values["_step"])
                for name, value in values.items():
                    if not name.startswith(("_", "rows/")) and name != "env_steps":
                        found.setdefault(name, []).append((values["env_steps"], value))
    return [run for _, run in runs], found, steps


def _records(path: pathlib.Path) -> Iterator[Any]:
    """Yields the records of a .wandb file, read by the library's own reader where it has one in Python."""
    try:
        from wandb.sdk.internal import datastore
    except ImportError:
        yield from wandb_files.records(path)
        return
    from wandb.proto import wandb_internal_pb2

    reader = datastore.DataStore()
    reader.open_for_scan(str(path))
    while data := reader.scan_data():
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield record
