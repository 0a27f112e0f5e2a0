"""Draws learning curves: `scripts/plot --out=curves.png runs/a runs/b ...`. With `--lineages` it draws the scores and
hyperparameters of a population's members instead."""

import dataclasses
import pathlib

from launchers import flags, mirror, settings
from launchers.settings import UsageError, setting


@dataclasses.dataclass
class Picture:
    out: pathlib.Path = setting(
        pathlib.Path("curves.png"), "the picture to write; its ending, such as .png or .pdf, is the type"
    )
    x: str = setting(
        "env_steps",
        "what the x axis shows: environment steps, the learner's updates, or seconds",
        choices=("env_steps", "learner_steps", "wall_seconds"),
    )
    label: str = setting(
        "", "the curves' names, with commas between", default_words="agent, environment and the settings that differ"
    )
    log: str = setting("", "which axes are logarithmic", choices=("x", "y", "xy"), default_words="none")
    smooth: int = setting(
        1, "number of evaluations of which each point is the mean: its own and those before it", least=1
    )
    lineages: bool = setting(
        False, "draw the scores and hyperparameters of one population's members instead of learning curves"
    )


@flags.command(Picture, arguments="the folders of runs or of recorded baselines, or their URLs")
def plot(*names: str) -> int:
    asked, logdirs = flags.FLAGS, []
    if not names:
        raise UsageError("plot needs the folders of runs: name the --logdir of each run, or folders in docs/results")
    for name in names:
        try:
            logdirs.append(mirror.fetched(mirror.place(name), set(), "*.csv", "member_*/config.json"))
        except UsageError as error:
            raise UsageError(f"{name!r}: {error}") from error
        from runtime import records  # only now, because its import takes a while

        if not (logdirs[-1] / records.FILE).exists():
            settings.saved(logdirs[-1])
    if asked.lineages and len(logdirs) > 1:
        raise UsageError("--lineages takes one folder, that of a population")
    # Only now, because these import JAX and Matplotlib.
    from launchers import recorded
    from runtime import plot

    try:
        plot.check_picture(asked.out)
        if asked.lineages:
            if not plot.draw_lineages(logdirs[0], asked.out):
                raise UsageError(f"--lineages: {logdirs[0]} has no lineages yet, or is not the folder of a population")
        elif not plot.draw(
            [learner for logdir in logdirs for learner in recorded.learners_in(logdir)],
            asked.out,
            settings.decisive,
            asked.x,
            [label.strip() for label in asked.label.split(",") if label.strip()],
            asked.log,
            asked.smooth,
        ):
            raise UsageError("none of these runs has the two evaluations yet that a curve needs")
    except ValueError as error:  # a file is not as Shoal writes it, or a flag's value does not fit
        raise UsageError(str(error)) from error
    print(asked.out)
    return 0


if __name__ == "__main__":
    flags.main(plot)
