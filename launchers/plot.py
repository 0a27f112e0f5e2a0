"""Draws learning curves: `scripts/plot --out=curves.png runs/a runs/b ...`; of a population `--lineages` draws its
members' scores and hyperparameters."""

import pathlib
import sys

from absl import app, flags

from launchers import settings

flags.DEFINE_string("out", "curves.png", "The picture to write.")
flags.DEFINE_enum("x", "env_steps", ["env_steps", "learner_steps", "wall_seconds"], "The x axis.")
flags.DEFINE_bool("lineages", False, "Of one population: its members' scores and hyperparameters instead.")


def main(argv: list[str]) -> None:
    logdirs = [pathlib.Path(name) for name in argv[1:]]
    missing = [str(logdir) for logdir in logdirs if not (logdir / "config.json").exists()]
    if missing or not logdirs:
        print(f"error: no run in {', '.join(missing) or 'no folder named'}: give the --logdir of runs", file=sys.stderr)
        sys.exit(2)
    from runtime import plot  # only now: it brings JAX and Matplotlib

    if flags.FLAGS.lineages:
        if len(logdirs) > 1 or not plot.draw_lineages(logdirs[0], pathlib.Path(flags.FLAGS.out)):
            print("error: --lineages takes the --logdir of one population", file=sys.stderr)
            sys.exit(2)
    elif not plot.draw(logdirs, pathlib.Path(flags.FLAGS.out), settings.decisive, flags.FLAGS.x):
        print("error: none of these runs has two evaluations yet", file=sys.stderr)
        sys.exit(2)
    print(flags.FLAGS.out)


if __name__ == "__main__":
    app.run(main)
