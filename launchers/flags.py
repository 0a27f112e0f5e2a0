"""The command line: flags that make a Run. `--config.FIELD=VALUE` sets any field of the agent's Config."""

import dataclasses
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import flags, logging
from ml_collections import config_dict, config_flags

from launchers import presets
from launchers import run as runs
from launchers.run import Run, UsageError

flags.DEFINE_string("agent", "impala", "The agent: one of agents/.")
flags.DEFINE_string(
    "env",
    "CartPole-v1",
    "The environment: an EnvPool task, gymnasium:ID, gymnasium:module:ID, MaskedCartPole-v1, binned:N:NAME, or A,B,C.",
)
flags.DEFINE_integer("seed", None, "Fixes the initial parameters, the environments and the actions. Default 0.")
flags.DEFINE_string("logdir", None, "Where the run lives; an existing one is resumed. Default runs/AGENT-ENV-TIME.")
flags.DEFINE_integer("max_env_steps", None, "Environment steps (actions, not frames) to learn from.")
flags.DEFINE_integer("num_actors", None, "Actors, each with --envs_per_actor environments.")
flags.DEFINE_integer("envs_per_actor", None, "Environments that an actor steps together.")
flags.DEFINE_integer("actors_per_process", None, "With --placement=processes: actors that share a process. Default 2.")
flags.DEFINE_string("placement", None, "Where the roles run: threads, processes or serial. Default threads.")
flags.DEFINE_string("actor_backend", None, "What actors act on: cpu or accelerator. Default cpu.")
flags.DEFINE_integer("eval_episodes", None, "Episodes of one evaluation.")
flags.DEFINE_integer("eval_period", None, "Environment steps between evaluations. Default a 20th of max_env_steps.")
flags.DEFINE_float("checkpoint_seconds", None, "Seconds between checkpoints. Default 600.")
flags.DEFINE_integer("publish_period", None, "Updates from one publication of the parameters to the next.")
flags.DEFINE_integer("num_replay_servers", None, "Replay servers; actors spread over them, samples mix. Default 1.")
flags.DEFINE_integer("updates_per_dispatch", None, "Updates from a replay that run without Python between. Default 1.")
flags.DEFINE_string("travels", None, "From actors to the learner: experience, or gradients (actors are workers then).")
flags.DEFINE_integer("max_staleness", None, "Of a gradient that is applied, in updates. Default 0: any.")
flags.DEFINE_float("max_loss_deviations", None, "Likewise, of its loss above the mean. Default 0: any.")
flags.DEFINE_integer("population", None, "Members of a population that learn side by side. Default 0: an ordinary run.")
flags.DEFINE_string("tune", None, "What a population tunes: learning_rate:log:1e-5:1e-2,alpha:step=0.05:0:1, ...")
flags.DEFINE_string("population_mode", None, "separate learners, or vmap: one that updates all. Default separate.")
flags.DEFINE_string("exploit", None, "Who copies whom: truncation, tournament, t_test or none. Default truncation.")
flags.DEFINE_string("explore", None, "How copies are varied: perturb, resample or none. Default perturb.")
flags.DEFINE_string("fitness", None, "Members are judged by episodes of training or evaluation. Default training.")
flags.DEFINE_integer("ready_env_steps", None, "A member's steps between looks at its peers. Default a 20th of all.")
flags.DEFINE_integer("score_episodes", None, "A member is judged by so many of its last episodes. Default 20.")
flags.DEFINE_integer("port", 0, "The replay server's port; 0 picks a free one.")

FLAGS = flags.FLAGS


def parse(argv: list[str]) -> None:
    """Parses the command line, `--config.FIELD` flags of the chosen agent included.

    Raises:
      UsageError: an unknown flag or agent, or a value that its flag does not take.
    """
    # The agent decides which fields there are, so it is parsed first, alone; a flag file or --noflag still works.
    try:
        rest = flags.FLAGS(argv, known_only=True)
    except flags.Error as error:
        raise UsageError(str(error)) from error
    module = runs.agent_module(FLAGS.agent)
    fields = {field.name: field.default for field in dataclasses.fields(module.Config)}
    preset = presets.find(FLAGS.agent, FLAGS.env)
    for argument in rest[1:]:
        name = argument.lstrip("-").split("=")[0]
        if not argument.startswith("--config."):
            known = [n for n in FLAGS if not n.startswith("config.")]
            raise UsageError(
                f"unknown argument {argument!r}{runs.nearest(name, known, listing=False)}; --help lists the flags"
            )
        field = name.removeprefix("config.")
        if field not in fields:
            raise UsageError(f"unknown config field {field!r}{runs.nearest(field, fields)}")
    config_flags.DEFINE_config_dict(
        "config", config_dict.ConfigDict(fields | preset.config), "The agent's Config.", lock_config=True
    )
    try:
        FLAGS(rest)
    except (flags.Error, ValueError, TypeError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def any_given() -> bool:
    """Whether the command line says anything of the run itself."""
    names = [field.name for field in dataclasses.fields(Run) if field.name != "config"]
    return any(FLAGS[name].present for name in names) or bool(_given_config_fields())


def run_from_flags() -> Run:
    """The run that the parsed flags ask for."""
    names = {field.name for field in dataclasses.fields(Run)} - {"agent", "env", "config"}
    preset = presets.find(FLAGS.agent, FLAGS.env)
    given = _given_config_fields()
    config = {name: value for name, value in FLAGS.config.items() if name in given or name in preset.config}
    return runs.make(FLAGS.agent, FLAGS.env, {name: FLAGS[name].value for name in names}, config)


def _given_config_fields() -> set[str]:
    return {name.removeprefix("config.") for name in FLAGS if name.startswith("config.") and FLAGS[name].present}


def logdir_from_flags() -> pathlib.Path:
    """--logdir, or a new one under runs/."""
    if FLAGS.logdir:
        return pathlib.Path(FLAGS.logdir).expanduser()
    env = FLAGS.env.replace(":", "-").replace("/", "-").replace(",", "+")
    return pathlib.Path("runs") / f"{FLAGS.agent}-{env}-{time.strftime('%Y%m%d-%H%M%S')}"


def main(command: Callable[[], int]) -> NoReturn:
    """Parses the command line and runs `command`; what the person can mend is one line and exit code 2."""
    logging.set_verbosity(logging.WARNING)
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        print(f"{sys.modules['__main__'].__doc__}\n{FLAGS.get_help()}\n  --config.FIELD: a field of the agent's Config")
        sys.exit(0)
    try:
        parse(sys.argv)
        code = command()
    # What a person can mend: also a server that does not answer, a full disk, a loss that is not finite.
    except (UsageError, OSError, FloatingPointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads that wait inside Reverb cannot be ended, and the interpreter's teardown under them aborts.
    os._exit(code)
