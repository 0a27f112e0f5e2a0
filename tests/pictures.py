"""What is on a picture."""

import pathlib

import matplotlib.image
import numpy as np


def has_curve(path: pathlib.Path) -> bool:
    """Whether a PNG shows more than axes and words: a line of pixels that are not grey, across a fifth of it."""
    picture = matplotlib.image.imread(path)[..., :3]
    coloured = np.ptp(picture, axis=-1) > 0.2
    return bool(coloured.any(axis=0).mean() > 0.2)
