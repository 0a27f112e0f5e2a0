"""Writes pictures to a file as a video."""

import pathlib
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np
from PIL import Image

from runtime import files


def check(path: pathlib.Path) -> None:
    """Raises ValueError unless a video can be written to `path`, judged by its ending and its folder."""
    has_ffmpeg, ending = shutil.which("ffmpeg") is not None, path.suffix.lower()
    if ending != ".gif" and not (ending == ".mp4" and has_ffmpeg):
        others = "or .mp4" if has_ffmpeg else "(.mp4 would need ffmpeg, which is not on the PATH)"
        raise ValueError(f"{path} must end as a video does, in .gif {others}")
    files.check(path)


def write(path: pathlib.Path, pictures: Sequence[np.ndarray], per_second: float) -> None:
    """Writes pictures, uint8 [height, width, 3] each, as a video of the kind that the ending of `path` says.

    `per_second` pictures are shown in a second.

    Raises:
      OSError: the video cannot be written.
    """
    try:
        with files.replacing(path) as new:
            (_write_gif if path.suffix.lower() == ".gif" else _write_by_ffmpeg)(new, pictures, per_second)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


def _write_gif(path: pathlib.Path, pictures: Sequence[np.ndarray], per_second: float) -> None:
    # Without dithering the few colours of a drawn environment stay exact, and what stands still does not flicker.
    first, *rest = (Image.fromarray(picture).quantize(dither=Image.Dither.NONE) for picture in pictures)
    hundredths = max(2, round(100 / per_second))  # a GIF counts hundredths of a second; viewers take 1 of them for 10
    first.save(path, "GIF", save_all=True, append_images=rest, duration=10 * hundredths, loop=0)


def _write_by_ffmpeg(path: pathlib.Path, pictures: Sequence[np.ndarray], per_second: float) -> None:
    height, width, _ = pictures[0].shape
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{per_second:g}", "-i", "-"]
    even = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p"]  # a format that all players show
    command = ["ffmpeg", "-loglevel", "error", "-y", *source, *even, "-f", "mp4", str(path.absolute())]
    done = subprocess.run(command, input=b"".join(picture.tobytes() for picture in pictures), capture_output=True)
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split()) or f"exit code {done.returncode}"
        raise OSError(f"ffmpeg ended with: {said}")
