"""What services have of a run, read back by their libraries."""

import json
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from runtime import metrics

BLOCK = 2**15  # of a .wandb file, a log as LevelDB's is
HEADER, RECORD = 7, struct.Struct("<IHB")  # of the file; and of a record: its checksum, length and kind


def role_files(logdir: pathlib.Path) -> dict[str, pathlib.Path]:
    """The CSVs whose rows are tracked, by name."""
    found = [path for pattern in ("learner", "evaluator", "actor_*") for path in logdir.rglob(f"{pattern}.csv")]
    return {path.relative_to(logdir).as_posix().removesuffix(".csv"): path for path in found}


def expected(logdir: pathlib.Path) -> dict[str, list[tuple[float, float]]]:
    """(env_steps, value) of each metric, in the order of the rows: what a service is to have of a LOGDIR."""
    found: dict[str, list[tuple[float, float]]] = {}
    for role, path in role_files(logdir).items():
        for row in metrics.read(path):
            for column, value in row.items():
                if column != "env_steps" and value == value:
                    found.setdefault(f"{role}/{column}", []).append((row["env_steps"], value))
    return found


def in_mlflow(logdir: pathlib.Path) -> tuple[Any, dict[str, list[tuple[float, float]]]]:
    """The tracked run, as MLFLOW_TRACKING_URI has it, and what `expected` says of it; rows by their time."""
    import mlflow

    client = mlflow.MlflowClient()
    run = client.get_run(json.loads((logdir / "tracking.json").read_text())["mlflow"]["run"])
    found = {}
    for name in run.data.metrics:
        history = sorted(client.get_metric_history(run.info.run_id, name), key=lambda metric: metric.timestamp)
        found[name] = [(metric.step, metric.value) for metric in history]
    return run, found


def in_wandb(folder: pathlib.Path) -> tuple[list[Any], dict[str, list[tuple[float, float]]], list[int]]:
    """Of a folder of offline runs, in the order in which they began: their first records, what `expected` says of all
    together, and the steps."""
    runs, found, steps = [], {}, []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for record in _records(path):
            if record.WhichOneof("record_type") == "run" and (not runs or runs[-1][0] != path):
                runs.append((path, record.run))
            if record.WhichOneof("record_type") == "history":
                row = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                values = {name: json.loads(value) for name, value in row.items()}
                steps.append(values["_step"])
                for name, value in values.items():
                    if not name.startswith(("_", "rows/")) and name != "env_steps":
                        found.setdefault(name, []).append((values["env_steps"], value))
    return [run for _, run in runs], found, steps


def _records(path: pathlib.Path) -> Iterator[Any]:
    """The records of a .wandb file. (The library's newer versions have no reader in Python.)"""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), HEADER, b""
    assert data.startswith(b":W&B")
    while at + RECORD.size <= len(data):
        if BLOCK - at % BLOCK < RECORD.size:  # too little of the block was left for a record
            at += BLOCK - at % BLOCK
            continue
        checksum, length, kind = RECORD.unpack_from(data, at)
        body = data[at + RECORD.size : at + RECORD.size + length]
        assert zlib.crc32(bytes([kind]) + body) == checksum, f"{path} is damaged at {at}"
        parts += body
        at += RECORD.size + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
