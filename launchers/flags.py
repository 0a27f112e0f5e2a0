"""The command line: a flag for each setting of a run. `--config.FIELD=VALUE` sets any field of the agent's Config.

What can be known to be wrong from the command line alone is found before JAX is imported.
"""

import ast
import contextlib
import os
import pathlib
import sys
import textwrap
import time
import traceback
import typing
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NoReturn

from absl import flags, logging

from environments.environment import EnvironmentFailure
from launchers import configs, settings
from launchers.settings import Setting, Settings, Sitting, UsageError

if TYPE_CHECKING:
    from launchers.run import Run

FLAGS = flags.FLAGS
PARSERS: dict[type, Callable[[], flags.ArgumentParser]] = {
    int: flags.IntegerParser,
    float: flags.FloatParser,
    str: flags.ArgumentParser,
    bool: flags.BooleanParser,
}
_declared: dict[str, Setting] = {}


def define(declaring: type) -> None:
    """Makes a flag of each setting that a dataclass declares. Its values are checked by the declaration; of a setting
    of a run the flag is None where it is not given, so that a preset can say it."""
    for name, declared in settings.declarations(declaring).items():
        _declared[name] = declared
        preset = declaring is Settings and name not in ("agent", "env")
        default = None if preset else declared.default
        flags.DEFINE(PARSERS[declared.kind](), name, default, _help(declared), serializer=flags.ArgumentSerializer())


def _help(declared: Setting) -> str:
    default = declared.default_words or declared.default
    sentences = [
        declared.help[:1].upper() + declared.help[1:],
        f"One of {', '.join(declared.choices)}" if declared.choices else "",
        "" if default in (None, "") else f"Default {default}",
    ]
    return ". ".join(filter(None, sentences)) + "."


define(Settings)
define(Sitting)


class _TupleParser(flags.ArgumentParser):
    """`(1,2)`, `1,2` or `1`."""

    def parse(self, argument: Any) -> tuple[Any, ...]:
        if isinstance(argument, str):
            try:
                argument = ast.literal_eval(argument)
            except (ValueError, SyntaxError):
                argument = argument.split(",")  # whose elements say what is wrong with them, or `nan`
        return tuple(argument) if isinstance(argument, tuple | list) else (argument,)

    def flag_type(self) -> str:
        return "tuple"


def parse(argv: list[str]) -> None:
    """Parses the command line, `--config.FIELD` flags of the chosen agent included.

    Raises:
      UsageError: an unknown flag or agent, or a value that its flag does not take.
    """
    _start_afresh()
    # The agent decides which fields there are, so it is parsed first, alone; a flag file or --noflag still works.
    try:
        rest = FLAGS(argv, known_only=True)
    except flags.Error as error:
        raise UsageError(_one_line(error)) from error
    types = configs.fields(FLAGS.agent)
    for argument in rest[1:]:
        name = argument.lstrip("-").split("=")[0].removeprefix("noconfig.").removeprefix("config.")
        if not argument.startswith(("--config.", "--noconfig.")):
            known = [n for n in FLAGS if not n.startswith("config.")]
            raise UsageError(
                f"unknown argument {argument!r}{settings.nearest(name, known, listing=False)}; --help lists the flags"
            )
        if name not in types:
            raise UsageError(f"unknown config field {name!r}{settings.nearest(name, types)}")
    for name, kind in types.items():
        origin = typing.get_origin(kind)
        if kind is bool:
            flags.DEFINE_boolean(f"config.{name}", None, "")
        else:
            parser = _TupleParser() if origin is tuple else PARSERS[str if origin else kind]()
            flags.DEFINE(parser, f"config.{name}", None, "", serializer=flags.ArgumentSerializer())
    try:
        FLAGS(rest)
    except (flags.Error, ValueError, TypeError) as error:
        raise UsageError(_one_line(error)) from error
    configs.check_types(types, _given_config())
    for name, declared in _declared.items():
        if FLAGS[name].present:
            settings.check_value(name, FLAGS[name].value, declared)


def _start_afresh() -> None:
    """Forgets what an earlier command line said, in the same process, and the fields of its agent."""
    for name in list(FLAGS):
        if name.startswith("config."):
            delattr(FLAGS, name)
        elif FLAGS[name].present:
            FLAGS[name].unparse()


def any_given() -> bool:
    """Whether the command line says anything of the run itself."""
    return any(FLAGS[name].present for name in settings.DECLARED) or bool(_given_config())


def run_from_flags(used: Collection[str] = ()) -> "Run":
    """The run that the parsed flags ask for; `used` is as for `settings.resolve`.

    Raises:
      UsageError: there is no such run.
    """
    given = {name: FLAGS[name].value for name in settings.DECLARED.keys() - {"agent", "env"} if FLAGS[name].present}
    settings.resolve(FLAGS.agent, FLAGS.env, given, used)
    from launchers import run as runs  # only now: it brings JAX

    return runs.make(FLAGS.agent, FLAGS.env, given, _given_config(), used)


def _given_config() -> dict[str, Any]:
    return {
        name.removeprefix("config."): FLAGS[name].value
        for name in FLAGS
        if name.startswith("config.") and FLAGS[name].present
    }


def logdir_from_flags() -> pathlib.Path:
    """--logdir, or a new one under runs/."""
    if FLAGS.logdir:
        return pathlib.Path(FLAGS.logdir).expanduser()
    env = FLAGS.env.replace(":", "-").replace("/", "-").replace(",", "+")
    return pathlib.Path("runs") / f"{FLAGS.agent}-{env}-{time.strftime('%Y%m%d-%H%M%S')}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def attempt(command: Callable[[], int], argv: list[str]) -> int:
    """Parses the command line and runs `command`; the exit code. What the person can mend is one line and code 2."""
    logging.set_verbosity(logging.WARNING)
    try:
        parse(argv)
        return command()
    # What a person can mend: also an environment that broke, a server that does not answer, a full disk, a loss that is
    # not finite.
    except (UsageError, EnvironmentFailure, OSError, FloatingPointError) as error:
        with contextlib.suppress(OSError):  # nobody may be there to read it
            print(f"error: {_one_line(error)}", file=sys.stderr, flush=True)
        return 2
    except Exception:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return 1


def main(command: Callable[[], int]) -> NoReturn:
    """The process of a command: what `attempt` does, or --help."""
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        lines = {f"--{name}": _help(declared) for name, declared in _declared.items()}
        lines |= {"--config.FIELD": "A field of the agent's Config.", "--flagfile": "A file of flags, one a line."}
        print(f"{sys.modules['__main__'].__doc__}\n")
        for name, line in lines.items():
            print(textwrap.fill(f"{name}: {line}", 100, initial_indent="  ", subsequent_indent="      "))
        sys.exit(0)
    code = attempt(command, sys.argv)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # Not sys.exit: threads that wait inside Reverb cannot be ended, and the interpreter's teardown under them aborts.
    os._exit(code)
