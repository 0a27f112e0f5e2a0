"""Warnings about metrics: when each is due, and that it comes only once."""

import pytest

from runtime.advice import LEAST_ROWS, Advice


def told(explained, max_env_steps: int = 900, **more: float) -> list[tuple[int, str]]:
    """Returns the (row, line) of each warning in a run that has one row for each explained variance in `explained`."""
    advice, lines = Advice(max_env_steps), []
    for i, value in enumerate(explained):
        row = {"env_steps": max_env_steps * i // len(explained), "explained_variance": value} | more
        lines += [(i, line) for line in advice(row)]
    return lines


@pytest.mark.parametrize("value", [0.0, 0.01, -3.0])
def test_a_value_that_learns_nothing_is_told_of_after_a_third_of_the_run_and_once(value):
    ((row, line),) = told([value] * 90)
    assert row == 30 and "explains" in line and "normalize_rewards" in line


@pytest.mark.parametrize(
    "explained",
    [
        [0.0] * 20 + [0.8] * 70,  # it learnt in time
        [0.9] * 90,
        [0.4, -0.2] * 45,  # noisy, but above 0 on average
        [0.0] * (LEAST_ROWS - 1),  # too short a run to say
    ],
)
def test_a_value_that_learns_is_left_alone(explained):
    assert told(explained) == []


def test_a_value_that_forgets_is_told_of():
    ((row, _),) = told([0.9] * 60 + [-0.5] * 30)
    assert row > 60


def test_clipped_returns_are_told_of_at_any_time_and_once():
    lines = told([0.9] * 5, clipped_fraction=0.07)
    assert [row for row, _ in lines] == [0] and "7% of the target returns" in lines[0][1]
    assert told([0.9] * 5, clipped_fraction=0.05) == []
