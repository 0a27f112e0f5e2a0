"""Optuna's study of a sweep's trials: keeps it in LOGDIR/study.log, and shows it as a table and as a picture."""

import contextlib
import itertools
import pathlib
import sys
import warnings

import optuna
import rich.console
import rich.table
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from agents.pbt import Ranges
from launchers.settings import UsageError
from launchers.trial import LAST
from runtime.files import replacing

FIRST_TRIALS = 5  # so many must have come to their end before any trial is pruned
SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
PRUNERS = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=FIRST_TRIALS, n_warmup_steps=LAST),
    "none": optuna.pruners.NopPruner,
}
SHOWN = 10  # trials in the table


def load(logdir: pathlib.Path, pruner: str) -> optuna.Study:
    """Returns the study of a sweep, new if there is none. The caller sees to it that no other process writes it.

    Raises:
      UsageError: the study's file is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = logdir / "study.log"
    (logdir / "study.log.lock").unlink(missing_ok=True)  # left by a sweep that was killed
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])  # a full disk may have left a part of a line
    try:
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name="sweep",
            direction="maximize",
            pruner=PRUNERS[pruner](),
            load_if_exists=True,
        )
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        raise UsageError(f"{path} is damaged ({error!r}): choose another --logdir") from error


def unfinished(study: optuna.Study) -> list[int]:
    """Returns the numbers of the trials that were running when an earlier sitting of the sweep ended or was killed."""
    return [trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]


def trial(study: optuna.Study, number: int, ranges: Ranges, sampler: str, seed: int) -> Trial:
    """Returns the study's trial of this number, which is new if it is the next, with a value for each of the ranges.
    After the same earlier trials the same `seed` draws the same values."""
    study.sampler = SAMPLERS[sampler](seed=seed)
    known = study.get_trials(deepcopy=False)
    trial = Trial(study, known[number]._trial_id) if number < len(known) else study.ask()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns where HIGH lies between two steps
        for name, range_ in ranges.items():  # values that the trial has already are kept
            trial.suggest_float(name, range_.low, range_.high, log=range_.scale == "log", step=range_.step or None)
    return trial


def best(study: optuna.Study) -> FrozenTrial | None:
    """Returns the best of the trials that were not pruned and have ended; None if there are none."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(done, key=_value, default=None)


def _value(trial: FrozenTrial) -> float:
    return trial.value if trial.value is not None else float("-inf")


def show(study: optuna.Study, ranges: Ranges, logdir: pathlib.Path) -> None:
    """Prints a table of the best trials that have ended, and draws all of them to LOGDIR/sweep.png. Does nothing before
    one has ended."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    if not ended:
        return
    ended.sort(key=lambda trial: (trial.state == TrialState.COMPLETE, _value(trial)), reverse=True)
    table = rich.table.Table("trial", "return", "", *ranges)
    for trial in ended[:SHOWN]:
        value = "" if trial.value is None else f"{trial.value:.2f}"
        state = "" if trial.state == TrialState.COMPLETE else "pruned"
        table.add_row(str(trial.number), value, state, *(f"{trial.params[name]:.4g}" for name in ranges))
    with contextlib.suppress(OSError):  # a sweep outlives its terminal
        rich.console.Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120).print(table)
    _draw(ended, ranges, logdir / "sweep.png")
    with contextlib.suppress(OSError):
        print(f"all trials are in {logdir / 'sweep.png'}", flush=True)


def _draw(ended: list[FrozenTrial], ranges: Ranges, out: pathlib.Path) -> None:
    """Draws the trials' returns to `out`: against their numbers, and against the values of each hyperparameter."""
    from matplotlib.figure import Figure  # only now, when the sweep has ended

    ended = sorted((trial for trial in ended if trial.value is not None), key=lambda trial: trial.number)
    columns = min(3, 1 + len(ranges))
    rows = -(-(1 + len(ranges)) // columns)
    figure = Figure(figsize=(1 + 4 * columns, 1 + 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for name, each in zip(("trial", *ranges), axes, strict=False):
        for state, color, face in ((TrialState.PRUNED, "grey", "none"), (TrialState.COMPLETE, "C0", "C0")):
            some = [trial for trial in ended if trial.state == state]
            x = [trial.number if name == "trial" else trial.params[name] for trial in some]
            label = "pruned" if state == TrialState.PRUNED else "to the end"
            if not some:
                continue
            each.scatter(x, [trial.value for trial in some], edgecolors=color, facecolors=face, label=label)
        each.set_xlabel(name)
        each.grid(alpha=0.3)
        if name in ranges and ranges[name].scale == "log":
            each.set_xscale("log")
    done = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    best = list(itertools.accumulate((_value(trial) for trial in done), max))
    axes[0].step([trial.number for trial in done], best, where="post", color="C1", label="the best so far")
    axes[0].set_ylabel("return")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(fontsize="small")
    for spare in axes[1 + len(ranges) :]:
        spare.remove()
    with replacing(out) as new:
        figure.savefig(new, dpi=120, format="png")
