"""The Reverb server: tables from their specs, the variable container's table, checkpoints at a given path."""

import json
import os
import pathlib
import shutil
import time
from typing import Any

from absl import logging

from agents.agent import TableSpec
from replay.limiter import error_buffer
from replay.reverb_import import reverb, tf
from replay.sequences import steps_table_name
from replay.structures import Structure
from replay.variables import VARIABLES


def signature_of(structure: Structure) -> list[tf.TensorSpec]:
    """Reverb's description of a table's columns."""
    return [tf.TensorSpec(leaf.shape, tf.as_dtype(leaf.dtype)) for leaf in structure.leaves]


def build_table(
    spec: TableSpec, structure: Structure, sequences_per_item: int = 1, num_servers: int = 1
) -> reverb.Table:
    """The Reverb table of a spec; of several servers' each, its share.

    A queue is first in, first out, each item once, and full when `spec.max_size` sequences wait: its writers then wait.
    A replay is sampled uniformly or by priority, and forgets the oldest, or by priority too; with `samples_per_insert`,
    whoever is ahead of that ratio by more than the error buffer waits. The buffer is wide enough for one side always to
    be free.

    Args:
      structure: of one item, as Reverb sees it: packed, but for a queue's.
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
    """A table that keeps the newest item alone."""
    return reverb.Table(
        name,
        sampler=reverb.selectors.Fifo(),
        remover=reverb.selectors.Fifo(),
        max_size=1,
        rate_limiter=reverb.rate_limiters.MinSize(1),
        signature=signature,
    )


def build_variables_table(structure: Structure, name: str = VARIABLES) -> reverb.Table:
    """A table of size one: the newest parameters, or the newest of whatever else a variable container holds."""
    return _build_newest(name, signature_of(structure))


def build_steps_table(table: str) -> reverb.Table:
    """A table of size one that is there to count: into it go items for so many transitions each. Reverb keeps the count
    of a table's items, in checkpoints too, and with it how much experience the items of sequences were made of."""
    return _build_newest(steps_table_name(table), [tf.TensorSpec((), tf.int32)])


def serve(tables: list[reverb.Table], port: int | None, checkpoint_path: pathlib.Path | None) -> reverb.Server:
    """Starts a server and restores its newest checkpoint from `checkpoint_path`, if it has one.

    Args:
      tables: as built above.
      port: 0 or None picks a free one.
      checkpoint_path: a directory; without it, nothing is saved and nothing found after a restart.

    Reverb itself would share a port with another server, and both servers' clients with it, in silence: check first.

    Raises:
      ValueError: other tables were saved there. Reverb would restore those, in silence.
    """
    if checkpoint_path is None:
        # Left to itself, Reverb makes a temporary directory that nobody removes; here is none, and can be none.
        nowhere = reverb.platform.checkpointers_lib.DefaultCheckpointer(f"{os.devnull}/none")
        return reverb.Server(tables, port=port or None, checkpointer=nowhere)
    checkpoint_path.mkdir(parents=True, exist_ok=True)
    _check_tables(tables, checkpoint_path)
    _remove_unfinished(checkpoint_path)
    checkpointer = reverb.platform.checkpointers_lib.DefaultCheckpointer(str(checkpoint_path))
    try:
        return reverb.Server(tables, port=port or None, checkpointer=checkpointer)
    except RuntimeError as error:  # what Reverb's C++ says of a file that it cannot read
        aside = checkpoint_path.with_name(f"damaged_{checkpoint_path.name}_{time.time():.0f}")
        logging.warning("the replay saved in %s is damaged (%s): it is in %s now", checkpoint_path, error, aside)
        checkpoint_path.rename(aside)
        checkpoint_path.mkdir()
        return reverb.Server(tables, port=port or None, checkpointer=checkpointer)


def _remove_unfinished(checkpoint_path: pathlib.Path) -> None:
    """Removes what servers left that were killed while they saved."""
    for path in checkpoint_path.iterdir():
        if path.is_dir() and not (path / "DONE").exists():
            shutil.rmtree(path)


def _check_tables(tables: list[reverb.Table], checkpoint_path: pathlib.Path) -> None:
    """Raises ValueError if other tables were saved in `checkpoint_path`; notes beside it what these are."""
    note = checkpoint_path.with_name(checkpoint_path.name + ".json")  # inside, Reverb would take it for the newest
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
    """All that a table was asked to be, in words that can be compared, from its reverb TableInfo."""
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
    """Has a server save its tables to its checkpoint path; returns when they are on disk. A server that cannot, for it
    is down or its disk is full, keeps the checkpoint it has, with a warning: a run outlives that."""
    try:
        client.checkpoint()
    except (reverb.errors.ReverbError, RuntimeError) as error:
        logging.warning("the replay server %s did not save its tables: %s", client.server_address, error)
