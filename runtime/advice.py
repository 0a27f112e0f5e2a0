"""Warnings that a learner's metrics give reason for, such as values that explain nothing; each is given once."""

from collections.abc import Mapping

CLIPPED_FRACTION = 0.05  # if more of a distributional critic's target returns are clipped, its support is too narrow
EXPLAINED_VARIANCE = 0.05  # if the value explains less of its targets' variance, it has learnt nothing of them
PATIENCE = 1 / 3  # share of a run that the value is given to learn its targets
LEAST_ROWS = 5  # rows of metrics without which nothing is said about the value
DECAY = 0.9  # weight of the earlier rows in the running mean, each time a row is added


class Advice:
    """Follows the learner's rows of metrics and says what looks wrong."""

    def __init__(self, max_env_steps: int):
        """`max_env_steps`: environment steps after which the run ends."""
        self._max_env_steps = max_env_steps
        self._explained = 0.0  # weighted sum of the explained variances, where older ones weigh less
        self._count = 0.0  # sum of those weights
        self._rows = 0
        self._said: set[str] = set()

    def __call__(self, row: Mapping[str, float]) -> list[str]:
        """Returns the warnings that this row and those before it give reason for, without those given before."""
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
