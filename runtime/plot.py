"""Draws learning curves and other figures to pictures."""

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

from runtime import files, metrics, records, statistics

matplotlib.use("Agg")
from matplotlib import pyplot, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.rcParams["text.parse_math"] = False  # so that a $ in a name begins no formula
matplotlib.rcParams["svg.hashsalt"] = "shoal"  # so that names inside an SVG are not random
INTERVALS = "means, with their 95 % bootstrap intervals"
MANY = 2**20  # no population has as many members: a larger number in a lineage's file is damage


def check_picture(out: pathlib.Path) -> None:
    """Raises ValueError unless a picture can be written to `out`, judged by its ending and its folder."""
    types = sorted(Figure().canvas.get_supported_filetypes().keys() - {"pgf"})  # pgf would need LaTeX
    if out.suffix.lower().removeprefix(".") not in types:
        raise ValueError(f"{out} must end as a picture does, in one of .{', .'.join(types)}")
    files.check(out)


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
    """Draws evaluations to the picture `out`. Returns false, and draws none, if no folder has two of them.

    Runs with equal `decisive` settings make one curve: their mean, as far as the shortest of them goes, and, of several
    runs, the 95 % bootstrap interval of the mean. The label counts them as seeds, or as members of a population.

    Args:
      folders: folders of runs, or of baselines' records; the runs of a record make one curve.
      decisive: returns the settings in a config.json that decide what is learnt.
      x: the column against which returns are drawn.
      labels: one for each curve, in the order of the folders. If empty, a curve is called by the settings that tell it
        from the others.
      log: which axes are logarithmic: "", "x", "y" or "xy".
      smooth: each point is the mean of this many evaluations, of which it is the last.
      published: the heights of horizontal lines, by label.

    Raises:
      ValueError: an evaluator.csv has other columns, there are more or fewer labels than curves, or a logarithmic axis
        of returns would show nothing.
    """
    groups: dict[str, list[np.ndarray]] = {}
    settings: dict[str, dict[str, Any]] = {}
    nouns: dict[str, str] = {}  # group -> "seed" or "member", as its runs are called
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
        raise ValueError(f"--label has {len(labels)} labels for {len(groups)} curves: give one for each")
    found = [curve[:, 1] > 0 for curves in groups.values() for curve in curves]
    if "y" in log and not any((above[1:] & above[:-1]).any() for above in found):
        raise ValueError(
            f"--log={log}: a logarithmic axis shows no returns of 0 or less, and nothing else would be there"
        )
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
    figure.set_size_inches(7, 3.9 + 0.17 * (lines + bool(title)))  # the legend adds height and takes none of the axes'
    figure.legend(loc="outside upper center", fontsize="small", title=title, title_fontsize="small")
    write(figure, out)
    return True


def draw_panels(panels: Mapping[str, Mapping[str, pathlib.Path]], out: pathlib.Path) -> None:
    """Draws records of baselines to `out`, in panels beside each other.

    Args:
      panels: title -> label of a curve -> the record's folder.
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
    write(figure, out)


def draw_profiles(scores: Mapping[str, dict[str, np.ndarray]], out: pathlib.Path) -> None:
    """Draws performance profiles to `out`, unless there are no scores: the share of runs that score above each level.

    Args:
      scores: label of a curve -> task -> the normalised scores of its runs, [seeds].
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
    write(figure, out)


def draw_radar(scores: Mapping[str, Mapping[str, float]], *outs: pathlib.Path) -> None:
    """Draws a radar plot to each of `outs`; without scores, draws none. Spokes go from 0 in the middle to 1.

    Args:
      scores: label of a line -> spoke -> score. All lines have the same spokes, in the same order.
    """
    if not scores:
        return
    spokes = list(next(iter(scores.values())))
    angles = 2 * np.pi * np.arange(len(spokes) + 1) / len(spokes)  # the first again, to close the line
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
        write(figure, out)


def _draw_mean(axes: Axes, curves: Sequence[np.ndarray], label: str) -> None:
    """Draws the mean of curves, [n, 2] each, as far as the shortest goes; of several, also the mean's interval."""
    grid = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    grid = grid[grid <= min(curve[-1, 0] for curve in curves)]
    means = np.stack([np.interp(grid, curve[:, 0], curve[:, 1]) for curve in curves])
    (line,) = axes.plot(grid, means.mean(axis=0), label=label)
    if len(curves) > 1:
        axes.fill_between(grid, *statistics.interval(means), color=line.get_color(), alpha=0.2, linewidth=0)


def _is_record(folder: pathlib.Path) -> bool:
    return (folder / records.FILE).exists()


def _evaluations_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the CSVs of evaluations in a folder: a run's own, or all seeds' and members' in a baseline's record."""
    return sorted(folder.glob("seed*.csv")) if _is_record(folder) else [folder / "evaluator.csv"]


def _smoothed(curve: np.ndarray, count: int) -> np.ndarray:
    """Smooths a curve, [n, 2] -> [n, 2]: each y becomes the mean of the last `count` up to it, fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(curve[:, 1])])
    ends = np.arange(1, len(curve) + 1)
    starts = np.maximum(ends - count, 0)
    return np.stack([curve[:, 0], (sums[ends] - sums[starts]) / (ends - starts)], axis=1)


def write(figure: Figure, out: pathlib.Path) -> None:
    """Writes a figure to `out` once the picture is whole, and closes the figure."""
    picture, ending = io.BytesIO(), out.suffix.lower().removeprefix(".")
    metadata = {"Date": None} if ending == "svg" else None  # so that equal pictures are equal files
    try:
        figure.savefig(picture, dpi=120, format=ending, metadata=metadata)
    finally:
        pyplot.close(figure)
    with files.replacing(out) as new:
        new.write_bytes(picture.getvalue())


def draw_lineages(logdir: pathlib.Path, out: pathlib.Path) -> bool:
    """Draws a population's scores and hyperparameters against environment steps to the picture `out`.

    Returns false, and draws none, if `logdir` is no population's. A colour is a line of descent: each founder, the
    member whose first state the state at that time descends from, has a colour.
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
    founders: dict[int, int] = {}  # member -> founder of its state; without an entry, itself
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
    write(figure, out)
    return True


def _turns(path: pathlib.Path) -> list[dict[str, float]]:
    """Returns the rows of a lineage's CSV that hold a number of steps, a member, and the donor of its state."""
    rows = metrics.read(path)
    for row in rows:
        records.check_columns(path, row, ("env_steps", "member", "donor", "score"))
    return [
        row
        for row in rows
        if math.isfinite(row["env_steps"]) and all(row[who] in range(MANY) for who in ("member", "donor"))
    ]


def _label(settings: dict[str, dict[str, Any]], group: str) -> str:
    """Returns the label of a group's curve. For a record it is the record's name. For runs it has the agent, the
    environment, and the settings that differ from those of other groups of the same agent and environment."""
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
