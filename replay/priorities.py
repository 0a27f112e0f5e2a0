"""Sends new priorities back to Reverb's tables."""

import numpy as np
from absl import logging

from replay.client import FAILURES, call_twice
from replay.reverb_import import reverb


def update_priorities(client: reverb.Client, table: str, keys: np.ndarray, priorities: np.ndarray) -> None:
    """Gives the items `keys`, uint64 [B], of one server new `priorities`, float [B].

    Skips items that have been removed from the table. Waits while the server is down. Priorities that are not finite,
    and those that an error keeps from the server, are lost, with a warning: their items keep their old priorities.
    """
    finite = np.isfinite(priorities)  # Reverb would store a NaN, and save it, before it reports an error
    if not finite.all():
        logging.log_every_n_seconds(logging.WARNING, "%d priorities were not finite", 60, np.sum(~finite))
        keys, priorities = keys[finite], priorities[finite]
    try:
        updates = dict(zip(keys.tolist(), priorities.tolist(), strict=True))
        call_twice(client, lambda: client.mutate_priorities(table, updates=updates))
    except FAILURES as error:
        logging.log_every_n_seconds(logging.WARNING, "priorities were lost: %s", 60, error)
