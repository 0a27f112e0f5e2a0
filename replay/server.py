"""The Reverb server: builds tables from their specs and for variable containers, and saves and restores tables."""

import json
import os
import pathlib
import shutil
import time
from typing import Any

from absl import logging

from agents.agent import TableSpec
from replay.client import FAILURES, call_twice
from replay.limiter import error_buffer
from replay.reverb_import import reverb, tf
from replay.rows import VARIABLES
from replay.sequences import steps_table_name
from replay.structures import Structure


def signature_of(structure: Structure) -> list[tf.TensorSpec]:
    """Returns Reverb's description of columns of this structure."""
    return [tf.TensorSpec(leaf.shape, tf.as_dtype(leaf.dtype)) for leaf in structure.leaves]


def build_table(
    spec: TableSpec, structure: Structure, sequences_per_item: int = 1, num_servers: int = 1
) -> reverb.Table:
    """Returns the Reverb table of a spec, or one server's share of it.

    A queue gives each item once, the oldest first. It is full when `spec.max_size` sequences wait; then its writers
    wait. A replay is sampled uniformly or by priority, and removes the oldest item, or one by priority. With
    `samples_per_insert`, whoever is ahead of that ratio by more than the error buffer waits; the buffer is wide enough
    for one side to be always free.

    Args:
      structure: that of the columns in which an item lies in Reverb, as `channels.columns` returns it.
      sequences_per_item: sequences in an item of a queue.
      num_servers: how many servers share the sizes of a replay.
    """
    if spec.kind == "queue":
        return reverb.Table.queue(
            spec.name, max(1, spec.max_size // sequences_per_item), signature=signature_of(structure)
        )
    min_size = -(-spec.min_size // num_servers)
    limiter = reverb.rate_limiters.MinSize(min_size)
    if spec.samples_per_insert:
        limiter = reverb.rate_limiters.SampleToInsertRatio(
            spec.samples_per_insert, min_size, error_buffer(spec, num_servers)
        )
    return reverb.Table(
        spec.name,
        sampler=reverb.selectors.Uniform()
        if spec.kind == "uniform"
        else reverb.selectors.Prioritized(spec.priority_exponent),
        remover=reverb.selectors.Prioritized(spec.eviction_exponent)
        if spec.eviction_exponent
        else reverb.selectors.Fifo(),
        max_size=-(-spec.max_size // num_servers),
        rate_limiter=limiter,
        signature=signature_of(structure),
    )


def _build_newest(name: str, signature: list[tf.TensorSpec]) -> reverb.Table:
    """Returns a table that keeps only the newest item."""
    return reverb.Table(
        name,
        sampler=reverb.selectors.Fifo(),
        remover=reverb.selectors.Fifo(),
        max_size=1,
        rate_limiter=reverb.rate_limiters.MinSize(1),
        signature=signature,
    )


def build_variables_table(structure: Structure, name: str = VARIABLES) -> reverb.Table:
    """Returns a variable container's table, of size one: it keeps the newest parameters, or whatever else was pushed
    last."""
    return _build_newest(name, signature_of(structure))


def build_steps_table(table: str) -> reverb.Table:
    """Returns a table of size one that counts the transitions behind the items of sequences in `table`.

    Each item that is written to it stands for a fixed number of transitions. Reverb counts the items that were ever
    written to a table, and keeps this count in checkpoints too.
    """
    return _build_newest(steps_table_name(table), [tf.TensorSpec((), tf.int32)])


def serve(tables: list[reverb.Table], port: int | None, checkpoint_path: pathlib.Path | None) -> reverb.Server:
    """Starts a server, and restores the newest checkpoint in `checkpoint_path` if there is one.

    The caller must check that the port is free: Reverb would silently share it with another server, so that clients
    might reach either.

    Args:
      tables: as the functions above return them.
      port: 0 or None picks a free one.
      checkpoint_path: a directory; if None, nothing is saved, and nothing is restored after a restart.

    Raises:
      ValueError: other tables were saved in `checkpoint_path`. Reverb would silently restore those.
    """
    if checkpoint_path is None:
        # Without a checkpointer Reverb makes a temporary directory that nobody removes; none can be made at this path.
        nowhere = reverb.platform.checkpointers_lib.DefaultCheckpointer(f"{os.devnull}/none")
        return reverb.Server(tables, port=port or None, checkpointer=nowhere)
    checkpoint_path.mkdir(parents=True, exist_ok=True)
    _check_tables(tables, checkpoint_path)
    _remove_unfinished(checkpoint_path)
    checkpointer = reverb.platform.checkpointers_lib.DefaultCheckpointer(str(checkpoint_path))
    try:
        return reverb.Server(tables, port=port or None, checkpointer=checkpointer)
    except RuntimeError as error:  # Reverb's C++ raises this for a file that it cannot read
        aside = checkpoint_path.with_name(f"damaged_{checkpoint_path.name}_{time.time():.0f}")
        logging.warning(
            "the replay saved in %s is damaged (%s): it is renamed to %s, and an empty replay is filled",
            checkpoint_path,
            error,
            aside,
        )
        checkpoint_path.rename(aside)
        checkpoint_path.mkdir()
        return reverb.Server(tables, port=port or None, checkpointer=checkpointer)


def _remove_unfinished(checkpoint_path: pathlib.Path) -> None:
    """Removes the unfinished checkpoints of servers that were killed while they saved."""
    for path in checkpoint_path.iterdir():
        if path.is_dir() and not (path / "DONE").exists():
            shutil.rmtree(path)


def _check_tables(tables: list[reverb.Table], checkpoint_path: pathlib.Path) -> None:
    """Raises ValueError if other tables were saved in `checkpoint_path`; else notes beside it what these tables are."""
    note = checkpoint_path.with_name(checkpoint_path.name + ".json")  # inside, it would pass for the newest checkpoint
    ours = {table.name: _definition(table.info) for table in tables}
    if note.exists() and any(checkpoint_path.glob("*/DONE")):
        theirs = json.loads(note.read_text())
        different = [
            f"{name}'s {aspect} is {was}, not {ours.get(name, {}).get(aspect)}"
            for name, definition in theirs.items()
            for aspect, was in definition.items()
            if was != ours.get(name, {}).get(aspect)
        ]
        if different:
            raise ValueError(
                f"{checkpoint_path} holds a replay saved with other settings ({'; '.join(different)}): "
                "go back to those, or remove the directory to go on with an empty replay"
            )
    temporary = note.with_suffix(".new")
    temporary.write_text(json.dumps(ours, indent=2) + "\n")
    temporary.rename(note)


def _definition(info: Any) -> dict[str, str]:
    """Returns all settings of a table as strings that can be compared, from its reverb TableInfo."""
    limiter = info.rate_limiter_info
    return {
        "size": str(info.max_size),
        "signature": ", ".join(f"{spec.dtype.name}{list(spec.shape)}" for spec in info.signature),
        "sampler": " ".join(str(info.sampler_options).split()),
        "remover": " ".join(str(info.remover_options).split()),
        "number of samples per insert": f"{limiter.samples_per_insert:g}",
        "minimum size": str(limiter.min_size_to_sample),
        "rate limiter": f"{limiter.min_diff:g} to {limiter.max_diff:g}",
    }


def save_tables(client: reverb.Client) -> None:
    """Tells a server to save its tables to its checkpoint path; returns when they are on disk.

    If the server is down or its disk is full, it keeps the checkpoint that it has, and a warning is logged; the run
    goes on.
    """
    try:
        call_twice(client, client.checkpoint)
    except FAILURES as error:
        logging.warning("the replay server %s did not save its tables: %s", client.server_address, error)
