"""Priorities on their way back to the tables."""

import numpy as np
import reverb
from absl import logging


def update_priorities(client: reverb.Client, table: str, keys: np.ndarray, priorities: np.ndarray) -> None:
    """Gives the items `keys`, uint64 [B], of one server new `priorities`, float [B]; those that were removed since are
    passed over. Waits while the server is down. What it misses by an error is lost, with a warning, as are priorities
    that are no numbers: the items are sampled by their old ones."""
    try:
        client.mutate_priorities(table, updates=dict(zip(keys.tolist(), priorities.tolist(), strict=True)))
    except (reverb.errors.ReverbError, RuntimeError, ValueError) as error:
        logging.log_every_n_seconds(logging.WARNING, "priorities were lost: %s", 60, error)
