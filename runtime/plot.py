"""Learning curves as pictures."""

import json
import pathlib
import textwrap
from typing import Any

import matplotlib
import numpy as np

from runtime import metrics

matplotlib.use("Agg")
from matplotlib import pyplot

# Settings that do not decide what a run learns until it ends.
NOT_LEARNT = {
    *("seed", "max_env_steps", "eval_period", "eval_episodes", "checkpoint_seconds"),
    *("placement", "actors_per_process", "actor_backend", "updates_per_dispatch"),
}


def draw(logdirs: list[pathlib.Path], out: pathlib.Path, x: str = "env_steps") -> bool:
    """Draws the evaluations of `logdirs` to the PNG `out`; false, and no picture, where none has two of them.

    Runs that differ in nothing but seed, length, evaluations and where their roles ran make one curve, as far as the
    shortest of them: their mean, and the range from the lowest to the highest. A single run's range is a standard
    deviation of its episodes to either side.
    """
    groups: dict[str, list[np.ndarray]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for logdir in logdirs:
        rows = metrics.read(logdir / "evaluator.csv")
        if len(rows) < 2:
            continue
        run = json.loads((logdir / "config.json").read_text())
        flat = {k: v for k, v in (run | run["config"]).items() if k not in NOT_LEARNT | {"config"}}
        group = json.dumps(flat, sort_keys=True)
        settings[group] = flat
        groups.setdefault(group, []).append(np.array([(row[x], row["return_mean"], row["return_std"]) for row in rows]))
    if not groups:
        return False
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for group, curves in groups.items():
        grid = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
        grid = grid[grid <= min(curve[-1, 0] for curve in curves)]
        means = np.stack([np.interp(grid, curve[:, 0], curve[:, 1]) for curve in curves])
        (line,) = axes.plot(grid, means.mean(axis=0), label=_label(settings, group, len(curves)))
        if len(curves) > 1:
            low, high = means.min(axis=0), means.max(axis=0)
        else:
            spread = np.interp(grid, curves[0][:, 0], curves[0][:, 2])
            low, high = means[0] - spread, means[0] + spread
        axes.fill_between(grid, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlabel(x.replace("_", " "))
    axes.set_ylabel("return of an evaluation")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
    return True


def _label(settings: dict[str, dict[str, Any]], group: str, seeds: int) -> str:
    """Agent, environment and whatever else tells this group from the others of the same agent and environment."""
    run = settings[group]
    same = [other for other in settings.values() if (other["agent"], other["env"]) == (run["agent"], run["env"])]
    parts = [f"{run['agent']} on {run['env']}"]
    for name in sorted(run.keys() - {"agent", "env"}):
        if any(other.get(name) != run[name] for other in same):
            parts.append(f"{name}={run[name]}")
    return textwrap.fill(", ".join(parts) + (f" ({seeds} seeds)" if seeds > 1 else ""), 70)
