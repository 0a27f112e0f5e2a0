"""Learning curves as pictures."""

import io
import itertools
import json
import math
import pathlib
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from runtime import metrics, records, statistics

matplotlib.use("Agg")
from matplotlib import pyplot, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
matplotlib.rcParams["svg.hashsalt"] = "shoal"  # names inside an SVG are not random
INTERVALS = "means, with their 95 % bootstrap intervals"
MANY = 2**20  # members; a larger number is none's


def check_picture(out: pathlib.Path) -> None:
    """Raises ValueError unless a picture can be `out`, by its ending and its folder."""
    types = sorted(Figure().canvas.get_supported_filetypes().keys() - {"pgf"})  # which would need LaTeX
    if out.suffix.lower().removeprefix(".") not in types:
        raise ValueError(f"{out} does not end as a picture does, in .{', .'.join(types)}")
    if not out.parent.is_dir():
        raise ValueError(f"{out} cannot be written: there is no folder {out.parent}")


def draw(
    folders: Iterable[pathlib.Path],
    out: pathlib.Path,
    decisive: Callable[[dict[str, Any]], dict[str, Any]],
    x: str = "env_steps",
    labels: Sequence[str] = (),
    log: str = "",
    smooth: int = 1,
    published: Mapping[str, float] | None = None,
) -> bool:
    """Draws evaluations to the picture `out`; false, and none, where none of the folders has two of them.

    Runs that have the same in `decisive`, what of a config.json decides what is learnt, make one curve, as far as the
    shortest of them: their mean, and where there are several the 95 % bootstrap interval of the mean. Members of a
    population are no seeds, and are not called so.

    Args:
      folders: of runs, or what was recorded of a baseline, whose runs make one curve.
      x: the column against which returns are drawn.
      labels: of the curves, in their order, which is that of the folders; empty: what tells the runs apart.
      log: which axes are logarithmic, of "x", "y" and "xy".
      smooth: each point is the mean of so many evaluations that end with it.
      published: horizontal lines, by label.

    Raises:
      ValueError: an evaluator.csv of other columns, or as many labels as there are not curves.
    """
    groups: dict[str, list[np.ndarray]] = {}
    settings: dict[str, dict[str, Any]] = {}
    nouns: dict[str, str] = {}  # what one of a group's runs is called
    for folder in folders:
        for path in _evaluations_of(folder):
            curve = records.curve(path, x)
            if len(curve) < 2:
                continue
            flat = (
                {"": folder.name} if _is_record(folder) else decisive(json.loads((folder / "config.json").read_text()))
            )
            noun = "member" if "member_" in f"{path.parent.name}/{path.name}" else "seed"
            group = json.dumps([flat, noun], sort_keys=True)
            settings[group], nouns[group] = flat, noun
            groups.setdefault(group, []).append(_smoothed(curve, smooth))
    if not groups:
        return False
    if labels and len(labels) != len(groups):
        raise ValueError(f"{len(labels)} labels for {len(groups)} curves: give one for each")
    named = labels or [_label(settings, group) for group in groups]
    many = [f" ({len(curves)} {nouns[group]}s)" if len(curves) > 1 else "" for group, curves in groups.items()]
    figure, axes = pyplot.subplots(layout="constrained")
    for label, count, curves in zip(named, many, groups.values(), strict=True):
        _draw_mean(axes, curves, textwrap.fill(label + count, 70))
    for k, (label, value) in enumerate((published or {}).items()):
        axes.axhline(value, color=f"C{7 + k}", linestyle="--", linewidth=0.8, label=textwrap.fill(label, 70))
    axes.set(xlabel=x.replace("_", " "), ylabel="return of an evaluation")
    axes.set(**{f"{axis}scale": "log" for axis in log})
    axes.grid(alpha=0.3)
    lines = sum(label.count("\n") + 1 for label in axes.get_legend_handles_labels()[1])
    title = INTERVALS if any(many) else None
    figure.set_size_inches(7, 3.9 + 0.17 * (lines + bool(title)))  # room for the legend that is not the curves'
    figure.legend(loc="outside upper center", fontsize="small", title=title, title_fontsize="small")
    _write(figure, out)
    return True


def draw_panels(panels: Mapping[str, Mapping[str, pathlib.Path]], out: pathlib.Path) -> None:
    """Draws records of baselines in panels beside each other, to `out`.

    Args:
      panels: title -> what a curve is called -> the record's folder.
    """
    rows = math.ceil(len(panels) / 3)
    figure, grid = pyplot.subplots(rows, 3, figsize=(11, 3.1 * rows), squeeze=False, layout="constrained")
    for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
        for label, folder in curves.items():
            found = [records.curve(path, "env_steps") for path in _evaluations_of(folder)]
            _draw_mean(axes, found, label + (f" ({len(found)} seeds)" if len(found) > 1 else ""))
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    figure.supxlabel("environment steps", fontsize="small")
    figure.supylabel("return of an evaluation", fontsize="small")
    _write(figure, out)


def draw_profiles(scores: Mapping[str, dict[str, np.ndarray]], out: pathlib.Path) -> None:
    """Draws performance profiles to `out`, where there are any: the share of runs whose score is above each level.

    Args:
      scores: what a curve is called -> task -> its runs' normalised scores, [seeds].
    """
    if not scores:
        return
    highest = max(runs.max() for tasks in scores.values() for runs in tasks.values())
    levels = np.linspace(0.0, highest, 500)
    figure, axes = pyplot.subplots(layout="constrained", figsize=(7, 3.9))
    for label, tasks in scores.items():
        axes.step(levels, statistics.profile(tasks, levels), where="post", label=f"{label} ({len(tasks)} tasks)")
    axes.set(xlabel="normalised score", ylabel="share of runs above", ylim=(0.0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    _write(figure, out)


def draw_radar(scores: Mapping[str, Mapping[str, float]], *outs: pathlib.Path) -> None:
    """Draws a radar plot to each of `outs`, where there are any scores: a spoke each for what was scored, from 0 in the
    middle to 1, and a line each for who was.

    Args:
      scores: what a line is called -> spoke -> score. All have the same spokes, in the same order.
    """
    if not scores:
        return
    spokes = list(next(iter(scores.values())))
    angles = 2 * np.pi * np.arange(len(spokes) + 1) / len(spokes)  # the first again, where the line closes
    for out in outs:
        figure, axes = pyplot.subplots(layout="constrained", figsize=(6, 5), subplot_kw={"projection": "polar"})
        for label, values in scores.items():
            line = [values[spoke] for spoke in (*spokes, spokes[0])]
            (drawn,) = axes.plot(angles, line, label=label, marker=".")
            axes.fill(angles, line, color=drawn.get_color(), alpha=0.1)
        axes.set_xticks(angles[:-1], [spoke.replace("_", " ") for spoke in spokes])
        axes.set_ylim(0.0, 1.0)
        axes.tick_params(axis="x", pad=14)
        axes.tick_params(axis="y", labelsize="small")
        axes.grid(alpha=0.3)
        figure.legend(fontsize="small", loc="outside lower center", ncols=len(scores))
        _write(figure, out)


def _draw_mean(axes: Axes, curves: Sequence[np.ndarray], label: str) -> None:
    """The mean of curves, [n, 2] each, as far as the shortest of them, with its interval where there are several."""
    grid = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    grid = grid[grid <= min(curve[-1, 0] for curve in curves)]
    means = np.stack([np.interp(grid, curve[:, 0], curve[:, 1]) for curve in curves])
    (line,) = axes.plot(grid, means.mean(axis=0), label=label)
    if len(curves) > 1:
        axes.fill_between(grid, *statistics.interval(means), color=line.get_color(), alpha=0.2, linewidth=0)


def _is_record(folder: pathlib.Path) -> bool:
    return (folder / records.FILE).exists()


def _evaluations_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """The CSV of a run's evaluations; of a baseline's record, of each of its runs'."""
    return sorted(folder.glob("seed*.csv")) if _is_record(folder) else [folder / "evaluator.csv"]


def _smoothed(curve: np.ndarray, count: int) -> np.ndarray:
    """[n, 2] -> [n, 2]: each point's y is the mean of `count` that end with it, or of as many as there are."""
    sums = np.concatenate([[0.0], np.cumsum(curve[:, 1])])
    ends = np.arange(1, len(curve) + 1)
    starts = np.maximum(ends - count, 0)
    return np.stack([curve[:, 0], (sums[ends] - sums[starts]) / (ends - starts)], axis=1)


def _write(figure: Figure, out: pathlib.Path) -> None:
    """Writes a picture once it is whole, and forgets it."""
    picture, ending = io.BytesIO(), out.suffix.lower().removeprefix(".")
    metadata = {"Date": None} if ending == "svg" else None  # the same picture is the same file
    try:
        figure.savefig(picture, dpi=120, format=ending, metadata=metadata)
    finally:
        pyplot.close(figure)
    out.write_bytes(picture.getvalue())


def draw_lineages(logdir: pathlib.Path, out: pathlib.Path) -> bool:
    """Draws a population's scores and hyperparameters against environment steps to the PNG `out`; false, and no
    picture, where `logdir` is no population's.

    A colour is a line of descent: it is that of the member whose first state the state at that time comes from.
    """
    turns = sorted(
        (row for path in logdir.glob("lineage_*.csv") for row in _turns(path)),
        key=lambda row: (row["env_steps"], row["member"]),
    )
    if not turns:
        return False
    columns = list(turns[0])
    hypers = columns[columns.index("score") + 1 :]
    figure, panels = pyplot.subplots(
        len(hypers) + 1, 1, sharex=True, squeeze=False, figsize=(7, 2.6 * (len(hypers) + 1)), layout="constrained"
    )
    founders: dict[int, int] = {}  # of those members whose state is no longer their own first one's
    colours = pyplot.get_cmap("tab20")
    before: dict[int, dict[str, float]] = {}
    for _, together in itertools.groupby(turns, key=lambda row: row["env_steps"]):
        rows, parents = list(together), dict(founders)
        for row in rows:
            founders[int(row["member"])] = parents.get(int(row["donor"]), int(row["donor"]))
        for row in rows:
            member, donor = int(row["member"]), int(row["donor"])
            for panel, name in zip(panels[:, 0], ["score", *hypers], strict=True):
                start = before.get(donor if name != "score" else member)
                if start is not None:
                    ends = [
                        [start["env_steps"], row["env_steps"]],
                        [start.get(name, math.nan), row.get(name, math.nan)],
                    ]
                    panel.plot(*ends, color=colours(founders[member] % 20), linewidth=1.2, marker=".", markersize=3)
        before |= {int(row["member"]): row for row in rows}
    for panel, name in zip(panels[:, 0], ["score", *hypers], strict=True):
        panel.set_ylabel(name.replace("_", " "))
        panel.grid(alpha=0.3)
        values = [row[name] for row in turns if 0 < row.get(name, 0) < math.inf]
        if name != "score" and len(values) == len(turns) and max(values) > 20 * min(values):
            panel.set_yscale("log")
    panels[-1, 0].set_xlabel("env steps of each member")
    _write(figure, out)
    return True


def _turns(path: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a lineage's CSV that name a member and whose state it took, at a number of steps."""
    rows = metrics.read(path)
    for row in rows:
        records.check_columns(path, row, ("env_steps", "member", "donor", "score"))
    return [
        row
        for row in rows
        if math.isfinite(row["env_steps"]) and all(row[who] in range(MANY) for who in ("member", "donor"))
    ]


def _label(settings: dict[str, dict[str, Any]], group: str) -> str:
    """Agent, environment and whatever else tells this group from the others of the same agent and environment; of a
    record its name."""
    run = settings[group]
    if "" in run:
        return str(run[""])
    runs = [other for other in settings.values() if "" not in other]
    same = [other for other in runs if (other["agent"], other["env"]) == (run["agent"], run["env"])]
    parts = [f"{run['agent']} on {run['env']}"]
    for name in sorted(run.keys() - {"agent", "env"}):
        if any(name in other and other[name] != run[name] for other in same):
            parts.append(f"{name}={run[name]}")
    return ", ".join(parts)
