"""A check of what a picture shows."""

import pathlib

import matplotlib.image
import numpy as np


def has_curve(path: pathlib.Path) -> bool:
    """Returns whether a PNG has more than grey axes and words: coloured pixels in more than a fifth of its columns."""
    picture = matplotlib.image.imread(path)[..., :3]
    coloured = np.ptp(picture, axis=-1) > 0.2
    return bool(coloured.any(axis=0).mean() > 0.2)
