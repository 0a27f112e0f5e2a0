"""Videos are read back as they were written, at the same speed and size; a failure to write is reported in one line."""

import os
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from runtime import video

# A stand-in for ffmpeg: it writes its arguments and its input to the file.
FFMPEG = f"""#!{sys.executable}
import json, sys
if {{fails}}:
    sys.exit("no such\\ncodec")
with open(sys.argv[-1], "wb") as file:
    file.write(json.dumps(sys.argv[1:]).encode() + b"\\n" + sys.stdin.buffer.read())
"""


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch):
    """Returns a function that puts a stand-in for ffmpeg on the PATH, or leaves no ffmpeg there that can be run."""

    def put(fails: bool = False, there: bool = True) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "ffmpeg").write_text(FFMPEG.format(fails=fails))
        (folder / "ffmpeg").chmod(0o755 if there else 0o644)
        monkeypatch.setenv("PATH", str(folder))

    return put


def pictures(draw: np.random.Generator, count: int, colours: int) -> list[np.ndarray]:
    """Returns pictures of at most `colours` colours each, all of one size, which may be odd."""
    shape = draw.integers(1, 40, 2)
    made = []
    for _ in range(count):
        palette = draw.integers(0, 256, (colours, 3)).astype(np.uint8)
        made.append(palette[draw.integers(0, colours, shape)])
    return made


@pytest.mark.parametrize("seed", range(20))
def test_a_gif_shows_each_picture_for_its_time(seed, tmp_path):
    draw = np.random.default_rng(seed)
    given = pictures(draw, int(draw.integers(1, 12)), int(draw.integers(1, 200)))
    per_second = float(draw.choice([5.0, 10.0, 25.0, 50.0]))
    for repeated in draw.integers(0, len(given), 3):  # the video stands still
        given.insert(repeated, given[repeated])
    path = tmp_path / "video.GIF"
    video.check(path)
    video.write(path, given, per_second)
    shown: list[tuple[np.ndarray, int]] = []
    with Image.open(path) as gif:
        assert len(given) == 1 or gif.n_frames == 1 or gif.info["loop"] == 0
        for frame in range(gif.n_frames):
            gif.seek(frame)
            time = round(gif.info["duration"] * per_second / 1000)
            shown += [(np.asarray(gif.convert("RGB")), frame)] * time
    assert len(shown) == len(given)
    for (one, _), other in zip(shown, given, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("seed", range(5))
def test_ffmpeg_is_given_all_of_each_picture(seed, tmp_path, ffmpeg):
    draw = np.random.default_rng(seed)
    given = pictures(draw, int(draw.integers(1, 12)), 1000)
    ffmpeg()
    path = tmp_path / "video.mp4"
    video.check(path)
    video.write(path, given, 12.5)
    told, content = path.read_bytes().split(b"\n", 1)
    assert content == b"".join(picture.tobytes() for picture in given)
    height, width, _ = given[0].shape
    assert f'"-s", "{width}x{height}", "-r", "12.5", "-i", "-"' in told.decode()


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    "name", ["a.gif", "a.GIF", "a.mp4", "a.MP4", "a.png", "a.avi", "a", "gif", ".gif", "a.gif.", ""]
)
def test_the_ending_says_what_it_is_and_which_there_are(name, there, tmp_path, ffmpeg):
    ffmpeg(there=there)
    path = pathlib.Path(tmp_path / name)
    if name.lower() == "a.gif" or (name.lower() == "a.mp4" and there):
        video.check(path)
        return
    with pytest.raises(ValueError, match=r"must end as a video does, in \.gif") as error:
        video.check(path)
    assert (".gif or .mp4" in str(error.value)) == there and ("ffmpeg" in str(error.value)) == (not there)


@pytest.mark.parametrize("name", ["video.gif", "video.mp4"])
def test_what_cannot_be_written_is_one_line(name, tmp_path, ffmpeg):
    ffmpeg(fails=True)
    with pytest.raises(ValueError, match="there is no folder"):
        video.check(tmp_path / "nowhere" / name)
    folder = tmp_path / name
    if name.endswith(".gif"):
        folder.mkdir()  # a folder stands in the file's place
    with pytest.raises(OSError, match="cannot be written") as error:
        video.write(folder, pictures(np.random.default_rng(0), 3, 5), 10.0)
    assert "\n" not in str(error.value) and (name.endswith(".gif") or "no such codec" in str(error.value))
    assert os.path.basename(folder) in str(error.value)
