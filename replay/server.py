"""The Reverb server: tables from their specs, the variable container's table, checkpoints at a given path."""

import pathlib

import reverb

from agents.agent import TableSpec
from replay.items import Structure

VARIABLES = "variables"


def build_table(spec: TableSpec, structure: Structure, sequences_per_item: int) -> reverb.Table:
    """The Reverb table of a spec.

    A queue is first in, first out, each item once, and full when `spec.max_size` sequences wait: its writers then wait.
    """
    return reverb.Table.queue(spec.name, max(1, spec.max_size // sequences_per_item), signature=structure.signature)


def build_variables_table(structure: Structure) -> reverb.Table:
    """A table of size one: the newest parameters."""
    return reverb.Table(
        VARIABLES,
        sampler=reverb.selectors.Fifo(),
        remover=reverb.selectors.Fifo(),
        max_size=1,
        rate_limiter=reverb.rate_limiters.MinSize(1),
        signature=structure.signature,
    )


def serve(tables: list[reverb.Table], port: int | None, checkpoint_path: pathlib.Path | None) -> reverb.Server:
    """Starts a server and restores its newest checkpoint from `checkpoint_path`, if it has one.

    Args:
      tables: as built above.
      port: 0 or None picks a free one.
      checkpoint_path: a directory; without it, nothing is saved and nothing found after a restart.

    Reverb itself would share a port with another server, and both servers' clients with it, in silence: check first.
    """
    checkpointer = None
    if checkpoint_path is not None:
        checkpoint_path.mkdir(parents=True, exist_ok=True)
        checkpointer = reverb.platform.checkpointers_lib.DefaultCheckpointer(str(checkpoint_path))
    return reverb.Server(tables, port=port or None, checkpointer=checkpointer)
