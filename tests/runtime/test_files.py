"""Files are written whole or not at all, wherever the project writes one over another."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import threading

import pytest

from runtime import files
from runtime.files import replacing

ROOT = pathlib.Path(__file__).resolve().parents[2]
KILLED = """
import os, pathlib, signal, sys
from runtime.files import replacing
with replacing(pathlib.Path(sys.argv[1])) as new:
    new.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def left(folder: pathlib.Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("seed", range(8))
def test_the_older_file_or_the_new_one_is_there(seed, tmp_path):
    """Writes and failures in any order leave the last file that was written whole, and nothing beside it."""
    draw, path, whole = random.Random(seed), tmp_path / "a file", None
    for count in range(20):
        text, failure = "x" * draw.randrange(5000), draw.choice([None, None, ValueError, OSError, KeyboardInterrupt])
        try:
            with replacing(path) as new:
                assert (path.read_text() if path.exists() else None) == whole
                new.write_text(text)
                if failure:
                    raise failure(f"{count}")
            whole = text
        except (ValueError, OSError, KeyboardInterrupt) as error:
            assert str(error) == f"{count}"
        assert left(tmp_path) == ({} if whole is None else {path.name: whole})


def test_a_killed_process_leaves_the_older_file(tmp_path):
    (tmp_path / "a").write_text("older")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a"], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL and (tmp_path / "a").read_text() == "older"


def test_threads_that_write_one_file_leave_one_of_theirs(tmp_path):
    path, texts = tmp_path / "a", [str(k) * 10_000 for k in range(8)]
    seen = []

    def write(text):
        for _ in range(20):
            with replacing(path) as new:
                new.write_text(text)
            seen.append(path.read_text())

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(seen) == 160 and set(seen) <= set(texts) and left(tmp_path).keys() == {"a"}


def test_a_link_stays_one_and_what_is_no_file_is_written_itself(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "far")
    for text in ("first", "second"):
        with replacing(tmp_path / "link") as new:
            new.write_text(text)
        assert (tmp_path / "link").is_symlink() and left(tmp_path / "folder") == {"far": text}
    reading, writing = os.pipe()
    with replacing(pathlib.Path(f"/proc/self/fd/{writing}")) as new:
        new.write_text("seen")
    assert os.read(reading, 10) == b"seen"
    os.close(reading), os.close(writing)


@pytest.mark.parametrize("place", ["gone/a", "file/a", "folder"])
def test_an_error_names_the_file_that_was_asked_for(place, tmp_path):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught, replacing(tmp_path / place) as new:
        new.write_text("text")
    assert caught.value.filename in (str(tmp_path / place), tmp_path / place) and caught.value.strerror


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("a", ""),
        ("file", ""),
        ("gone/a", "there is no folder"),
        ("file/a", "there is no folder"),
        ("folder", "a folder"),
    ],
)
def test_what_cannot_be_written_is_known_beforehand(place, words, tmp_path, monkeypatch):
    """That is so from any working directory, and nothing is made or changed."""
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / place, pathlib.Path(place)):
        if words:
            with pytest.raises(ValueError, match=f"cannot be written: .*{words}"):
                files.check(path)
        else:
            files.check(path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="cannot be written"):
        files.check(pathlib.Path(place))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}
