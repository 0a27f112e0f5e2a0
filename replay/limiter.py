"""Samples per insert: how far acting and learning from a replay may be ahead of each other."""

from agents.agent import TableSpec

MIN_BUFFER_ITEMS = 32  # two writers' items in flight


def error_buffer(spec: TableSpec, num_servers: int = 1) -> float:
    """Samples by which a table may be ahead of or behind `samples_per_insert`: those of a tenth of `min_size` items,
    of MIN_BUFFER_ITEMS at least."""
    return max(MIN_BUFFER_ITEMS, 0.1 * spec.min_size / num_servers) * max(1.0, spec.samples_per_insert)


class Limiter:
    """Reverb's rate limiter of samples to inserts, for whole batches and chunks of items.

    What was inserted before there were `min_size` items is not owed any samples.
    """

    def __init__(self, spec: TableSpec, batch: int, chunk: int):
        """`batch`: samples at once; `chunk`: inserts at once. One side is always free: the buffer has room for both."""
        self._min_size, self._ratio = spec.min_size, spec.samples_per_insert
        self._buffer = max(error_buffer(spec), batch, chunk * self._ratio)
        self.inserted = self.sampled = 0

    @property
    def limits(self) -> bool:
        """Whether there is a ratio to hold to."""
        return self._ratio > 0

    def may_insert(self) -> bool:
        return not self._ratio or self.inserted < self._min_size or self._ahead() < self._buffer

    def may_sample(self, samples: int) -> bool:
        if self.inserted < self._min_size:
            return False
        return not self._ratio or self._ahead() - samples >= -self._buffer

    def _ahead(self) -> float:
        """Samples that are owed."""
        return (self.inserted - self._min_size) * self._ratio - self.sampled
