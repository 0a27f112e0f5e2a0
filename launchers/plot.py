"""Draws learning curves: `scripts/plot --out=curves.png runs/a runs/b ...`."""

import pathlib
import sys

from absl import app, flags

from runtime import plot

flags.DEFINE_string("out", "curves.png", "The picture to write.")
flags.DEFINE_enum("x", "env_steps", ["env_steps", "learner_steps", "wall_seconds"], "The x axis.")


def main(argv: list[str]) -> None:
    logdirs = [pathlib.Path(name) for name in argv[1:]]
    missing = [str(logdir) for logdir in logdirs if not (logdir / "config.json").exists()]
    if missing or not logdirs:
        print(f"error: no run in {', '.join(missing) or 'no folder named'}: give the --logdir of runs", file=sys.stderr)
        sys.exit(2)
    if not plot.draw(logdirs, pathlib.Path(flags.FLAGS.out), flags.FLAGS.x):
        print("error: none of these runs has two evaluations yet", file=sys.stderr)
        sys.exit(2)
    print(flags.FLAGS.out)


if __name__ == "__main__":
    app.run(main)
