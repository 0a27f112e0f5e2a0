"""The registry of baselines: its command lines make runs, its names can be folders, and its pictures show it."""

import re

import pytest

from launchers import baselines, flags, pictures, train
from launchers.settings import UsageError


def test_names_are_words_and_no_two_are_alike():
    names = [each.name for each in baselines.BASELINES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names), names


def test_no_two_are_of_the_same_command():
    commands = [tuple(sorted(each.flags.split())) for each in baselines.BASELINES]
    assert len(set(commands)) == len(commands)


@pytest.mark.parametrize("name", baselines.NAMED)
def test_each_command_line_is_a_run(name):
    flags.parse(train.train, ["train", *baselines.NAMED[name].flags.split(), "--seed=3", "--logdir=x"])
    said = baselines.NAMED[name].agent, baselines.NAMED[name].env, 3
    assert (flags.FLAGS.agent, flags.FLAGS.env, flags.FLAGS.seed) == said


@pytest.mark.parametrize("name", baselines.NAMED)
def test_what_a_baseline_says_is_whole(name):
    baseline = baselines.NAMED[name]
    assert baseline.seeds >= 1 and baseline.minutes > 0
    if baseline.published:
        assert re.search(r"\d{4}", baseline.published.where), "a published figure stands in a paper of some year"


@pytest.mark.parametrize(
    ("patterns", "count"),
    [(["ppo-CartPole-v1"], 1), (["ppo-CartPole-v1", "ppo-Cart*"], 1), (["d[d4]pg-Pendulum-v1"], 2)],
)
def test_patterns_choose_each_baseline_once(patterns, count):
    assert len(baselines.select(patterns)) == count


def test_a_misspelt_name_is_told_its_nearest():
    with pytest.raises(UsageError, match=r"no baseline 'ppo-CartPol-v1'; did you mean .*ppo-CartPole-v1"):
        baselines.select(["ppo-CartPol-v1"])


def test_pictures_show_what_there_is():
    for picture in (*pictures.PICTURES.values(), *pictures.PANELS.values()):
        assert picture.curves.keys() <= baselines.NAMED.keys()
        assert len(set(picture.curves.values())) == len(picture.curves)
