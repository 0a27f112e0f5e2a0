"""The command line: it has a flag for each setting that a command declares, and `--config.FIELD=VALUE` for any field of
the agent's Config.

Mistakes that the command line alone reveals are found before JAX is imported.
"""

import ast
import contextlib
import gc
import io
import os
import pathlib
import signal
import sys
import textwrap
import time
import traceback
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from absl import flags, logging

from environments.environment import EnvironmentFailure, Interruption
from launchers import configs, mirror, settings, shutdown
from launchers.settings import Logdir, Setting, Settings, UsageError

if TYPE_CHECKING:
    from launchers.run import Run

MOST_LETTERS = 2000  # of an error's message, which is cut beyond them
# The errors that a person can mend: besides mistakes of usage these are a broken environment, a server that does not
# answer, a full disk, and a loss that is not finite.
MENDABLE = (UsageError, EnvironmentFailure, OSError, FloatingPointError)
FLAGS = flags.FlagValues()  # the command line that `parse` read last: the command's own flags alone
flags.FLAGS.mark_as_parsed()  # the flags that libraries define; no command takes them


class _Parser(flags.ArgumentParser):
    """A parser of absl's around the function `read`, whose error says what it takes, the `noun`."""

    def __init__(self, read: Callable[[Any], Any], noun: str):
        self._read, self._noun = read, noun

    def parse(self, argument: Any) -> Any:
        try:
            return self._read(argument)
        except UsageError:
            raise
        except (TypeError, ValueError) as error:
            raise ValueError(f"give {self._noun}") from error


PARSERS: dict[Any, flags.ArgumentParser] = {
    int: _Parser(flags.IntegerParser().parse, "a whole number in digits"),
    float: _Parser(flags.FloatParser().parse, "a number"),
    bool: _Parser(flags.BooleanParser().parse, "true or false"),
    str: flags.ArgumentParser(),
    pathlib.Path: _Parser(lambda path: path if isinstance(path, pathlib.Path) else settings.local_path(path), "a path"),
    Logdir: _Parser(lambda given: given if isinstance(given, pathlib.Path) else mirror.place(given), "a path or a URL"),
}


class _Takes(NamedTuple):
    """The arguments that a command takes."""

    declared: dict[str, Setting] = {}  # there is a flag for each
    of_run: bool = False  # whether the flags describe a run, whose agent decides which --config.FIELD flags there are
    arguments: str = ""  # what it takes besides flags, in words for --help; "": nothing


_takes: dict[Callable[..., int], _Takes] = {}


def command(*declaring: type, arguments: str = "") -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorates a command, a function that returns its exit code. The command takes a flag for each setting that the
    dataclasses `declaring` declare. If `arguments` says in words what it takes besides, it is called with those."""

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        declared = {name: each for of in declaring for name, each in settings.declarations(of).items()}
        _takes[function] = _Takes(declared, Settings in declaring, arguments)
        return function

    return decorate


def _define(name: str, kind: Any, default: Any) -> None:
    flag = flags.Flag(PARSERS[kind], flags.ArgumentSerializer(), name, default, "", boolean=kind is bool)
    flags.DEFINE_flag(flag, FLAGS)


def _help(declared: Setting) -> str:
    default = declared.default_words or ("the preset's" if declared.default == settings.PRESET else declared.default)
    sentences = [
        declared.help[:1].upper() + declared.help[1:],
        f"One of {', '.join(declared.choices)}" if declared.choices else "",
        "" if default is None or default is False or default == "" else f"Default: {default}",
    ]
    return ". ".join(filter(None, sentences)) + "."


class _TupleParser(flags.ArgumentParser):
    """`(1,2)`, `1,2` or `1`."""

    def parse(self, argument: Any) -> tuple[Any, ...]:
        if isinstance(argument, str):
            try:
                argument = ast.literal_eval(argument)
            except (ValueError, SyntaxError):
                argument = argument.split(",")  # their check names a bad element; `nan` comes here too
        return tuple(argument) if isinstance(argument, tuple | list) else (argument,)

    def flag_type(self) -> str:
        return "tuple"


def parse(command: Callable[..., int], argv: list[str]) -> list[str]:
    """Reads a command's arguments into FLAGS, which replaces those of an earlier call. Returns the arguments that are
    no flags.

    A run's setting that is not given leaves its flag at None, so that a preset can set it.

    Raises:
      UsageError: a flag or the agent is unknown, or a flag does not take its value.
    """
    global FLAGS
    FLAGS = flags.FlagValues()
    takes = _takes.get(command, _Takes())
    for name, declared in takes.declared.items():
        silent = takes.of_run and name in settings.DECLARED and name not in ("agent", "env")
        _define(name, declared.kind, None if silent else declared.default)
    # The agent decides which fields its Config has, so the other flags are parsed first. absl's --flagfile and --noNAME
    # work in both passes.
    rest = _parse(argv, known_only=True)
    types = configs.fields(FLAGS.agent) if takes.of_run else {}
    for argument in rest[1:]:
        if not argument.startswith("-") and takes.arguments:
            continue
        name = argument.lstrip("-").split("=")[0].removeprefix("noconfig.").removeprefix("config.")
        if not takes.of_run or not argument.startswith(("--config.", "--noconfig.")):
            near = ""
            if name in types:
                near = f"; did you mean --config.{name}?"
            elif argument.startswith("-"):
                near = settings.nearest(name, (f"--{known}" for known in takes.declared), listing=not takes.of_run)
            raise UsageError(f"unknown argument {argument!r}{near}; --help lists the flags")
        if name not in types:
            raise UsageError(f"unknown config field {name!r}{settings.nearest(name, types)}")
    for name, kind in types.items():
        origin = typing.get_origin(kind)
        if origin is tuple:
            flags.DEFINE(_TupleParser(), f"config.{name}", None, "", FLAGS, flags.ArgumentSerializer())
        else:
            _define(f"config.{name}", str if origin else kind, None)
    arguments = _parse(rest)[1:]
    configs.check_types(types, _given_config())
    for name, declared in takes.declared.items():
        if FLAGS[name].present:
            settings.check_value(name, FLAGS[name].value, declared)
    return arguments


def _parse(argv: list[str], known_only: bool = False) -> list[str]:
    try:
        return FLAGS(argv, known_only)
    except (flags.Error, ValueError, TypeError) as error:
        raise UsageError(one_line(error)) from error


def any_given() -> bool:
    """Returns whether a flag of the run itself was given."""
    return any(FLAGS[name].present for name in settings.DECLARED) or bool(_given_config())


def words_of_run() -> dict[str, str]:
    """Returns the flags of the run itself that were given, by name, each as a word for another command line."""
    names = [name for name in FLAGS if FLAGS[name].present]
    return {name: FLAGS[name].serialize() for name in names if name in settings.DECLARED or name.startswith("config.")}


def run_from_flags(used: Collection[str] = (), config: Mapping[str, Any] | None = None) -> "Run":
    """Returns the run that the parsed flags describe. `used` is as in `settings.resolve`; `config` has further fields
    of the agent's Config, which take precedence over the flags.

    Raises:
      UsageError: there is no such run.
    """
    given = {name: FLAGS[name].value for name in settings.DECLARED.keys() - {"agent", "env"} if FLAGS[name].present}
    settings.resolve(FLAGS.agent, FLAGS.env, given, used)
    from launchers import run as runs  # only now, because it imports JAX

    return runs.make(FLAGS.agent, FLAGS.env, given, _given_config() | dict(config or {}), used)


def _given_config() -> dict[str, Any]:
    return {
        name.removeprefix("config."): FLAGS[name].value
        for name in FLAGS
        if name.startswith("config.") and FLAGS[name].present
    }


def logdir_from_flags() -> Logdir:
    """Returns --logdir, or else a new folder under runs/ with the agent, the environment and the time in its name."""
    if FLAGS.logdir:
        logdir: Logdir = FLAGS.logdir
        return logdir
    env = FLAGS.env.replace(":", "-").replace("/", "-").replace(",", "+")
    return pathlib.Path("runs") / f"{FLAGS.agent}-{env}-{time.strftime('%Y%m%d-%H%M%S')}"


def one_line(error: BaseException) -> str:
    """Returns an error's message on one line, cut after MOST_LETTERS."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:  # without its number
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    words = " ".join(said.split()) or type(error).__name__
    return words if len(words) <= MOST_LETTERS else f"{words[:MOST_LETTERS]} ..."


def attempt(command: Callable[..., int], argv: list[str]) -> int:
    """Parses the command line, runs `command` and returns its exit code. An error that the person can mend is printed
    as one line, and gives 2; any other is printed with its traceback, and gives 1."""
    logging.set_verbosity(logging.WARNING)
    try:
        return command(*parse(command, argv))
    except MENDABLE as error:
        with contextlib.suppress(OSError):  # nobody may be there to read it
            print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        return 2
    except Interruption as error:  # of a command that has nothing to save
        return 128 + error.args[0]
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return 1


class _Output(io.TextIOWrapper):
    """The standard output. If nobody reads it any more, as with `| head`, the rest is lost, and that is no error."""

    def write(self, text: str) -> int:
        with self._heard():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._heard():
            super().flush()

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # where what is left in the buffer goes too
        except OSError as error:
            raise OSError(error.errno, f"cannot write to the standard output: {error.strerror}") from error


def main(command: Callable[..., int]) -> NoReturn:
    """Runs a command as the whole process: prints its help for --help, else does what `attempt` does, and exits."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed; its number must not become that of a file of the run
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name may have letters that the terminal lacks
    if isinstance(sys.__stdout__, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        of = sys.__stdout__
        sys.stdout = _Output(of.buffer, of.encoding, of.errors, line_buffering=of.line_buffering)
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        with contextlib.suppress(OSError):
            print(f"{sys.modules['__main__'].__doc__}\n\n{_usage(_takes.get(command, _Takes()))}", flush=True)
        sys.exit(0)
    shutdown.interrupt_on_signals()
    code = attempt(command, sys.argv)
    if code:  # an error's frames may still hold semaphores, of which Python would say that they leaked
        gc.collect()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # Not sys.exit: threads that wait inside Reverb cannot be ended, and the interpreter's teardown aborts beneath them.
    os._exit(code)


def _usage(takes: _Takes) -> str:
    lines = {"arguments": takes.arguments} if takes.arguments else {}
    lines |= {f"--{name}": _help(declared) for name, declared in takes.declared.items()}
    lines |= {"--config.FIELD": "A field of the agent's Config."} if takes.of_run else {}
    lines |= {"--flagfile": "A file of flags, one a line."}
    return "\n".join(
        textwrap.fill(f"{name}: {line}", 100, initial_indent="  ", subsequent_indent="      ")
        for name, line in lines.items()
    )
