"""Files that are written whole or not at all."""

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator


def check(path: pathlib.Path) -> None:
    """Raises ValueError unless a file can be written to `path`, judged by what is there now."""
    folder = path.resolve().parent
    if path.is_dir():
        raise ValueError(f"{path} cannot be written: it is a folder")
    if not folder.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() and not path.is_file() else folder, os.W_OK):
        raise ValueError(f"{path} cannot be written: there is no permission for that in {path.parent}")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the path of a new file, which takes the place of the file `path` when the block ends.

    If the block fails, or the process is killed in it, an older file stays as it was. Readers find the older file or
    the new one, also where several threads or processes write at the same time. If `path` is there and is no ordinary
    file, such as /dev/stdout, the block gets `path` itself.

    Raises:
      OSError: the file cannot be written; the error names `path`.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()  # a link stays one
    new = target.with_name(f".{os.getpid()}-{threading.get_native_id()}.new")  # a mirror leaves out this ending
    try:
        yield new
        new.replace(target)
    except OSError as error:
        if error.filename not in (new, str(new)) or error.strerror is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
