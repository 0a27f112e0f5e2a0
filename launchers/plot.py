"""Draws learning curves: `scripts/plot --out=curves.png runs/a runs/b ...`.

Runs that differ in nothing but their seed make one curve: their mean, with the range from the lowest to the highest.
"""

import json
import pathlib
import sys

import matplotlib
import numpy as np
from absl import app, flags

from runtime import metrics

matplotlib.use("Agg")
from matplotlib import pyplot

flags.DEFINE_string("out", "curves.png", "The picture to write.")
flags.DEFINE_string("x", "env_steps", "The x axis: env_steps, learner_steps or wall_seconds.")


def draw(logdirs: list[pathlib.Path], out: pathlib.Path, x: str = "env_steps") -> bool:
    """Draws the evaluations of `logdirs` to the PNG `out`; false, and no picture, where none has two of them."""
    groups: dict[str, list[np.ndarray]] = {}
    for logdir in logdirs:
        rows = metrics.read(logdir / "evaluator.csv")
        if len(rows) < 2:
            continue
        settings = json.loads((logdir / "config.json").read_text())
        label = f"{settings['agent']} on {settings['env']}"
        group = json.dumps({"label": label} | {k: v for k, v in settings.items() if k != "seed"}, sort_keys=True)
        groups.setdefault(group, []).append(np.array([(row[x], row["return_mean"], row["return_std"]) for row in rows]))
    if not groups:
        return False
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for group, curves in groups.items():
        grid = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
        grid = grid[grid <= min(curve[-1, 0] for curve in curves)]
        means = np.stack([np.interp(grid, curve[:, 0], curve[:, 1]) for curve in curves])
        seeds = f" ({len(curves)} seeds)" if len(curves) > 1 else ""
        (line,) = axes.plot(grid, means.mean(axis=0), label=json.loads(group)["label"] + seeds)
        if len(curves) > 1:
            low, high = means.min(axis=0), means.max(axis=0)
        else:  # one run: the spread is that of its episodes
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


def main(argv: list[str]) -> None:
    logdirs = [pathlib.Path(name) for name in argv[1:]]
    missing = [str(logdir) for logdir in logdirs if not (logdir / "config.json").exists()]
    if missing or not logdirs:
        print(f"error: no run in {', '.join(missing) or 'no folder named'}: give the --logdir of runs", file=sys.stderr)
        sys.exit(2)
    if not draw(logdirs, pathlib.Path(flags.FLAGS.out), flags.FLAGS.x):
        print("error: none of these runs has two evaluations yet", file=sys.stderr)
        sys.exit(2)
    print(flags.FLAGS.out)


if __name__ == "__main__":
    app.run(main)
