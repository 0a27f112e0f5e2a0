"""Policies other than a single softmax, in plain NumPy: ln pi of an action, and its gradient with respect to the
outputs that a network or features give the policy (Williams 1992, section 6, for the Gaussian)."""

from typing import Any

import numpy as np

from agents.agent import BoundedActions, EnvironmentSpec, FactoredActions

LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)
SIZES = (3, 2)
ACTIONS = {"gaussian": BoundedActions(LOW, HIGH), "squashed": BoundedActions(LOW, HIGH)} | {
    "factored": FactoredActions(SIZES)
}
NUM_OUTPUTS = {"gaussian": 4, "squashed": 4, "factored": 5}
SIGMA_INITIAL = 0.7


def spec(family: str, observation: int, max_episode_steps: int | None = None) -> EnvironmentSpec:
    return EnvironmentSpec((observation,), np.dtype(np.float32), ACTIONS[family], max_episode_steps)


def with_actions(family: str, steps: Any, seed: int = 3) -> Any:
    """Returns a Step of discrete actions with random actions of the family in their place."""
    rng, shape = np.random.default_rng(seed), steps.reward.shape
    if family == "factored":
        return steps._replace(action=rng.integers(SIZES, size=(*shape, 2)).astype(np.int32))
    raw = rng.normal(size=(*shape, 2)).astype(np.float32)
    return steps._replace(action=np.clip(raw, LOW, HIGH), extras=steps.extras | {"raw": raw})


def ln_pi_and_slope(family: str, outputs: np.ndarray, steps: Any, t: int, b: int) -> tuple[float, np.ndarray]:
    """Returns ln pi of the action of row t of environment b, and its gradient [P] with respect to the outputs [P]."""
    if family == "factored":
        choice, ln_pi, slopes = steps.action[t, b], 0.0, []
        for number, logits in zip(choice, np.split(outputs, [SIZES[0]]), strict=True):
            pi = np.exp(logits) / np.exp(logits).sum()
            ln_pi += np.log(pi[number])
            slopes.append(np.eye(len(pi))[number] - pi)
        return ln_pi, np.concatenate(slopes)
    raw, mu, sigma = np.asarray(steps.extras["raw"][t, b], float), outputs[:2], SIGMA_INITIAL * np.exp(outputs[2:])
    density = np.exp(-((raw - mu) ** 2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    if family == "squashed":
        density /= 1 - np.tanh(raw) ** 2
    of_mu, of_sigma = (raw - mu) / sigma**2, ((raw - mu) ** 2 - sigma**2) / sigma**3
    return np.log(density).sum(), np.concatenate([of_mu, sigma * of_sigma])  # d sigma / d log sigma is sigma
