"""Shared code of Reverb's writers: streams whose rows belong to several items, and waiting for room in a table."""

from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

STALL_SECONDS = 60  # seconds of waiting after which a warning says who waits for whom
# Rows that Reverb compresses and keeps together, in a stream whose rows items share. Measured with Atari frames: in
# chunks of two, a row takes 1 kB more and twice the CPU to write. Longer chunks hold more rows that items do not use.
CHUNK_ROWS = 8


def flush(writer: Any, table: str, in_flight: int, stopped: Callable[[], bool]) -> None:
    """Waits until at most `in_flight` items of a reverb.TrajectoryWriter are not in the table yet, or until `stopped`;
    warns each time that STALL_SECONDS have passed."""
    from reverb import errors  # imported here: the ways of travelling are also imported where there is no Reverb

    waited = 0
    while not stopped():
        try:
            return writer.flush(block_until_num_items=in_flight, timeout_ms=1000)
        except errors.DeadlineExceededError:
            waited += 1
            if waited % STALL_SECONDS == 0:
                logging.warning("an actor waits %d s for room in %r: does a learner run?", waited, table)


def open_stream(client: Any, kept: Sequence[int], num_rows: int | None = None) -> Any:
    """Returns a Reverb writer of one environment's stream, whose items can refer to the newest `kept[i]` rows of column
    i. The first `num_rows` columns (None: all) are compressed CHUNK_ROWS rows at a time, the others row by row."""
    writer = client.trajectory_writer(num_keep_alive_refs=max(kept))
    for index, rows in enumerate(kept):
        chunk = CHUNK_ROWS if num_rows is None or index < num_rows else 1
        writer.configure((index,), num_keep_alive_refs=rows, max_chunk_length=chunk)
    return writer
