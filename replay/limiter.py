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
        self.min_size, self.ratio = spec.min_size, spec.samples_per_insert
        self._buffer = max(error_buffer(spec), batch, chunk * self.ratio)
        self.inserted = self.sampled = 0

    @property
    def limits(self) -> bool:
        """Whether there is a ratio to hold to."""
        return self.ratio > 0

    def may_insert(self) -> bool:
        return not self.ratio or self.inserted < self.min_size or self.owed() < self._buffer

    def may_sample(self, samples: int) -> bool:
        if self.inserted < self.min_size:
            return False
        return not self.ratio or self.owed() - samples >= -self._buffer

    def owed(self) -> float:
        """Samples that are due; fewer than 0 of those that came early."""
        return (self.inserted - self.min_size) * self.ratio - self.sampled
