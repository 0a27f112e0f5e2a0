"""Reverb's writers: streams of rows that items share, and waiting for room."""

from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

STALL_SECONDS = 60  # of waiting before a warning says who waits for whom
# Rows of a stream that Reverb compresses and keeps as one, where items share them. Measured with Atari's frames: by
# twos each takes 1 kB more and twice the CPU to write; longer chunks bring more that an item does not want.
CHUNK_ROWS = 8


def flush(writer: Any, table: str, in_flight: int, stopped: Callable[[], bool]) -> None:
    """Waits until all items of a reverb.TrajectoryWriter but `in_flight` are in the table, or until `stopped`."""
    from reverb import errors  # here, for the ways of travelling are imported where there is no Reverb

    waited = 0
    while not stopped():
        try:
            return writer.flush(block_until_num_items=in_flight, timeout_ms=1000)
        except errors.DeadlineExceededError:
            waited += 1
            if waited % STALL_SECONDS == 0:
                logging.warning("an actor waits %d s for room in %r: does a learner run?", waited, table)


def open_stream(client: Any, kept: Sequence[int], num_rows: int | None = None) -> Any:
    """A writer of one environment's stream, whose column i can refer to the newest `kept[i]`; the first `num_rows`
    columns (None: all) are compressed by CHUNK_ROWS, the others one by one."""
    writer = client.trajectory_writer(num_keep_alive_refs=max(kept))
    for index, rows in enumerate(kept):
        chunk = CHUNK_ROWS if num_rows is None or index < num_rows else 1
        writer.configure((index,), num_keep_alive_refs=rows, max_chunk_length=chunk)
    return writer
