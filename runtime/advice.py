"""What a learner's metrics say to whoever waits for it to learn: lines to be warned by, each once in a run."""

from collections.abc import Mapping

CLIPPED_FRACTION = 0.05  # of a distributional critic's target returns, beyond which its support is too narrow
EXPLAINED_VARIANCE = 0.05  # of the value's targets, below which the value knows nothing of them
PATIENCE = 1 / 3  # of a run, in which the value may learn them
LEAST_ROWS = 5  # of metrics: fewer say nothing
DECAY = 0.9  # of the running mean, from one row to the next


class Advice:
    """Follows the learner's rows of metrics."""

    def __init__(self, max_env_steps: int):
        """`max_env_steps`: the run's."""
        self._max_env_steps = max_env_steps
        self._explained = 0.0  # sum of the explained variances, older ones counting less; and of what they count
        self._count = 0.0
        self._rows = 0
        self._said: set[str] = set()

    def __call__(self, row: Mapping[str, float]) -> list[str]:
        """The lines that this row, and those before it, give reason for, and that were not given before."""
        lines = {}
        clipped = row.get("clipped_fraction", 0.0)
        if clipped > CLIPPED_FRACTION:
            lines["clipped"] = (
                f"{clipped:.0%} of the target returns leave [config.v_min, config.v_max] and are clipped: widen it"
            )
        if "explained_variance" in row:
            self._rows += 1
            self._explained = DECAY * self._explained + row["explained_variance"]
            self._count = DECAY * self._count + 1.0
            explained = self._explained / self._count
            late = row["env_steps"] >= PATIENCE * self._max_env_steps and self._rows >= LEAST_ROWS
            if late and explained < EXPLAINED_VARIANCE:
                lines["explained"] = (
                    f"after a third of the run the value explains {max(0.0, explained):.0%} of its targets' variance: "
                    "bring rewards to scale (--config.normalize_rewards=True), or try another learning rate"
                )
        new = [line for name, line in lines.items() if name not in self._said]
        self._said |= lines.keys()
        return new
