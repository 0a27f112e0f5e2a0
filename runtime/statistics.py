"""Statistics over the seeds of a run."""

import numpy as np


def interval(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % bootstrap interval of the mean over runs, by percentiles: [seeds, points] -> [points] each."""
    import scipy.stats  # only now: it takes half a second

    if np.ptp(runs, axis=0).max(initial=0.0) == 0.0:  # all runs alike
        return runs[0], runs[0]
    found = scipy.stats.bootstrap((runs,), np.mean, axis=0, method="percentile", n_resamples=2000, rng=0)
    return found.confidence_interval.low, found.confidence_interval.high


def predicted(values: np.ndarray, confidence: float = 0.99) -> tuple[float, float]:
    """The interval in which one further seed lies with this confidence, of normal returns: [seeds] -> low and high.

    Of a single seed nothing can be said: it is all numbers.
    """
    import scipy.stats

    if len(values) < 2:
        return -np.inf, np.inf
    deviation = values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
    reach = scipy.stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * deviation
    return float(values.mean() - reach), float(values.mean() + reach)
