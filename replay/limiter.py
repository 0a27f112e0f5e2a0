"""Samples per insert: how far actors and a learner that share a replay may be ahead of each other."""

from agents.agent import TableSpec

MIN_BUFFER_ITEMS = 32  # as many as two writers may have on their way to the table


def error_buffer(spec: TableSpec, num_servers: int = 1) -> float:
    """Returns how many samples a table may be ahead of or behind `samples_per_insert`: those due for a tenth of the
    server's `min_size` items, or for MIN_BUFFER_ITEMS if these are more."""
    return max(MIN_BUFFER_ITEMS, 0.1 * spec.min_size / num_servers) * max(1.0, spec.samples_per_insert)


class Limiter:
    """Keeps samples and inserts to a ratio, as Reverb's rate limiter does, but for whole batches and chunks of items.

    No samples are due for the first `min_size` items.
    """

    def __init__(self, spec: TableSpec, batch: int, chunk: int):
        """`batch` samples are taken at once, and up to `chunk` items are inserted at once; the buffer has room for
        either, so that one side is always free to go on."""
        self.min_size, self.ratio = spec.min_size, spec.samples_per_insert
        self._buffer = max(error_buffer(spec), batch, chunk * self.ratio)
        self.inserted = self.sampled = 0

    @property
    def limits(self) -> bool:
        """Whether there is a ratio to keep to: False if `samples_per_insert` is 0."""
        return self.ratio > 0

    def may_insert(self) -> bool:
        return not self.ratio or self.inserted < self.min_size or self.owed() < self._buffer

    def may_sample(self, samples: int) -> bool:
        if self.inserted < self.min_size:
            return False
        return not self.ratio or self.owed() - samples >= -self._buffer

    def owed(self) -> float:
        """Returns the number of samples that are due; it is negative if more were taken than are due."""
        return (self.inserted - self.min_size) * self.ratio - self.sampled
