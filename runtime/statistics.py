"""Statistics over the seeds of a baseline, and over several tasks."""

import numpy as np


def interval(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95 % bootstrap interval of the mean over runs, by percentiles: [seeds, points] -> [points] each."""
    import scipy.stats  # imported only here: it takes half a second

    if np.ptp(runs, axis=0).max(initial=0.0) == 0.0:  # all runs alike
        return runs[0], runs[0]
    found = scipy.stats.bootstrap((runs,), np.mean, axis=0, method="percentile", n_resamples=2000, rng=0)
    return found.confidence_interval.low, found.confidence_interval.high


def predicted(values: np.ndarray, confidence: float = 0.99) -> tuple[float, float]:
    """Returns the interval (low, high) in which one further seed lies with this confidence, from returns [seeds].

    It takes returns for normally distributed. From a single seed nothing can be said: the interval is infinite.
    """
    import scipy.stats

    if len(values) < 2:
        return -np.inf, np.inf
    deviation = values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
    reach = scipy.stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * deviation
    return float(values.mean() - reach), float(values.mean() + reach)


def interquartile_mean(scores: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Returns the mean of the middle half. Single runs sway it less than the mean, and it uses more of them than the
    median."""
    import scipy.stats

    return np.asarray(scipy.stats.trim_mean(scores, 0.25, axis=axis))


def over_tasks(scores: dict[str, np.ndarray], resamples: int = 2000) -> tuple[float, float, float]:
    """Returns the interquartile mean of all runs of all tasks, and the low and high ends of its 95 % interval.

    The interval is the stratified bootstrap's, which resamples the runs of each task among themselves.

    Agarwal et al. 2021, https://arxiv.org/abs/2108.13264, section 4.

    Args:
      scores: task -> the normalised scores of its runs, [seeds].
    """
    rng = np.random.default_rng(0)
    drawn = [runs[rng.integers(len(runs), size=(resamples, len(runs)))] for runs in scores.values()]
    low, high = np.percentile(interquartile_mean(np.concatenate(drawn, axis=1), axis=1), [2.5, 97.5])
    return float(interquartile_mean(np.concatenate(list(scores.values())))), float(low), float(high)


def profile(scores: dict[str, np.ndarray], levels: np.ndarray) -> np.ndarray:
    """Returns the share of runs whose normalised score is above each level, averaged over tasks: [levels] -> [levels]
    (Agarwal et al. 2021, section 4.2)."""
    return np.mean([(runs[:, None] > levels).mean(axis=0) for runs in scores.values()], axis=0)
