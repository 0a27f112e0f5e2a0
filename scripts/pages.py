"""Writes what was recorded of baselines into the pages. These are docs/results/README.md, a table in each agent's page,
the README's table of agents, the scores in docs/bsuite.md, and the pictures. `scripts/baseline --pages` calls it."""

import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from launchers import baselines, configs, pictures, settings
from launchers.baselines import Baseline
from runtime import records, statistics
from runtime.records import Record
from scripts import scores as suite

ROOT = pathlib.Path(__file__).resolve().parents[1]
AGENTS = "<!-- agents: written by scripts/baseline --pages -->", "<!-- end of agents -->"
SUITE = "<!-- scores: written by scripts/baseline --pages -->", "<!-- end of scores -->"
RESULTS = "<!-- results: written by scripts/baseline --pages -->", "<!-- end of results -->"


class Agent(NamedTuple):
    """A row of the README's table."""

    paper: str  # a link to the paper
    page: str  # a page of docs/, without its ending
    task: str  # the task of the baseline whose return is shown: its name is AGENT-TASK


BOOK = "[Sutton and Barto 2018](http://incompleteideas.net/book/the-book-2nd.html)"
MNIH = "[Mnih et al. 2016](https://arxiv.org/abs/1602.01783)"
HORGAN = "[Horgan et al. 2018](https://arxiv.org/abs/1803.00933)"
WILLIAMS = "[Williams 1992](https://doi.org/10.1007/BF00992696)"
SHOWN = {
    "q_learning": Agent("[Watkins 1989](https://www.cs.rhul.ac.uk/~chrisw/thesis.html)", "q_learning", "Catch-v0"),
    "sarsa": Agent(
        f"{BOOK}, section 6.4",
        "q_learning",
        "Catch-v0",
    ),
    "dqn": Agent("[Mnih et al. 2015](https://doi.org/10.1038/nature14236)", "dqn", "CartPole-v1"),
    "double_dqn": Agent("[van Hasselt et al. 2016](https://arxiv.org/abs/1509.06461)", "dqn", "CartPole-v1"),
    "dueling_dqn": Agent("[Wang et al. 2016](https://arxiv.org/abs/1511.06581)", "dqn", "CartPole-v1"),
    "prioritized_dqn": Agent("[Schaul et al. 2016](https://arxiv.org/abs/1511.05952)", "dqn", "CartPole-v1"),
    "c51": Agent("[Bellemare et al. 2017](https://arxiv.org/abs/1707.06887)", "distributional", "CartPole-v1"),
    "qr_dqn": Agent("[Dabney et al. 2018](https://arxiv.org/abs/1710.10044)", "distributional", "CartPole-v1"),
    "iqn": Agent("[Dabney et al. 2018](https://arxiv.org/abs/1806.06923)", "distributional", "CartPole-v1"),
    "rainbow": Agent("[Hessel et al. 2018](https://arxiv.org/abs/1710.02298)", "distributional", "CartPole-v1"),
    "munchausen_dqn": Agent(
        "[Vieillard et al. 2020](https://arxiv.org/abs/2007.14430)", "munchausen_dqn", "CartPole-v1"
    ),
    "pqn": Agent("[Gallici et al. 2024](https://arxiv.org/abs/2407.04811)", "pqn", "CartPole-v1"),
    "apex_dqn": Agent(HORGAN, "apex_dqn", "CartPole-v1"),
    "r2d2": Agent(
        "[Kapturowski et al. 2019](https://openreview.net/forum?id=r1lyTjAqYX)", "r2d2", "MiniGrid-MemoryS7-v0"
    ),
    "reinforce": Agent(WILLIAMS, "reinforce", "CartPole-v1"),
    "reinforce_baseline": Agent(WILLIAMS, "reinforce", "CartPole-v1"),
    "all_actions": Agent(
        f"{BOOK}, section 13.3",
        "reinforce",
        "CartPole-v1",
    ),
    "actor_critic": Agent(
        f"{BOOK}, section 13.5",
        "actor_critic",
        "CartPole-v1",
    ),
    "actor_critic_lambda": Agent(
        f"{BOOK}, section 13.5",
        "actor_critic",
        "CartPole-v1",
    ),
    "off_pac": Agent("[Degris, White and Sutton 2012](https://arxiv.org/abs/1205.4839)", "off_pac", "MountainCar-v0"),
    "a2c": Agent(MNIH, "a2c", "CartPole-v1"),
    "a3c": Agent(MNIH, "gradients", "CartPole-v1"),
    "async_q": Agent(MNIH, "gradients", "CartPole-v1"),
    "async_n_step_q": Agent(MNIH, "gradients", "CartPole-v1"),
    "async_sarsa": Agent(MNIH, "gradients", "CartPole-v1"),
    "gorila": Agent("[Nair et al. 2015](https://arxiv.org/abs/1507.04296)", "gradients", "CartPole-v1"),
    "impala": Agent("[Espeholt et al. 2018](https://arxiv.org/abs/1802.01561)", "impala", "MaskedCartPole-v1"),
    "trpo": Agent("[Schulman et al. 2015](https://arxiv.org/abs/1502.05477)", "trpo", "Hopper-v4"),
    "ppo": Agent("[Schulman et al. 2017](https://arxiv.org/abs/1707.06347)", "ppo", "HalfCheetah-v4"),
    "vmpo": Agent("[Song et al. 2020](https://arxiv.org/abs/1909.12238)", "vmpo", "CartPole-v1"),
    "ppo_rnd": Agent("[Burda et al. 2019](https://arxiv.org/abs/1810.12894)", "ppo_rnd", "OpenLake-v0"),
    "dpg": Agent(
        "[Silver et al. 2014](http://proceedings.mlr.press/v32/silver14.html)", "dpg", "MountainCarContinuous-v0"
    ),
    "ddpg": Agent("[Lillicrap et al. 2016](https://arxiv.org/abs/1509.02971)", "ddpg", "Pendulum-v1"),
    "td3": Agent("[Fujimoto et al. 2018](https://arxiv.org/abs/1802.09477)", "td3", "Pendulum-v1"),
    "sac": Agent("[Haarnoja et al. 2018](https://arxiv.org/abs/1812.05905)", "sac", "Pendulum-v1"),
    "d4pg": Agent("[Barth-Maron et al. 2018](https://arxiv.org/abs/1804.08617)", "d4pg", "CartpoleSwingup-v1"),
    "mpo": Agent("[Abdolmaleki et al. 2018](https://arxiv.org/abs/1806.06920)", "mpo", "Pendulum-v1"),
    "dmpo": Agent("[Hoffman et al. 2020](https://arxiv.org/abs/2006.00979)", "mpo", "Pendulum-v1"),
    "apex_dpg": Agent(HORGAN, "apex_dpg", "CartpoleSwingup-v1"),
    "mix_match": Agent("[Czarnecki et al. 2018](https://arxiv.org/abs/1806.01780)", "mix_match", "MaskedCartPole-v1"),
}
# Scores of a random policy and of a person (Wang et al. 2016, table 2, from starts after up to 30 no-ops).
HUMAN = {"Pong-v5": (-20.7, 14.6), "Breakout-v5": (1.7, 30.5), "SpaceInvaders-v5": (148.0, 1668.7)}
# Mean returns of a uniformly random policy in EnvPool's environments, over 200 episodes.
RANDOM = {
    "HalfCheetah-v4": -289.9,
    "Hopper-v4": 17.6,
    "Walker2d-v4": 2.6,
    "Reacher-v4": -42.7,
    "InvertedPendulum-v4": 6.0,
    "InvertedDoublePendulum-v4": 55.8,
}
INTRODUCTION = """# Recorded runs

Written by `scripts/baseline --pages` from what is in the folders beside this page; `scripts/baseline NAME` remakes a
row, and `scripts/baseline --check NAME` says whether a fresh seed comes to it. [Baselines](../baselines.md) has how.

- **return**: of the last checkpoint, 100 episodes, greedy unless the agent's paper samples: the mean over seeds and its
  95 % bootstrap interval. Of a population it is the mean over its members.
- **last five**: likewise of the last five evaluations during training, which are of fewer episodes: what the last
  checkpoint alone may hide.
- **area**: the mean return over the whole run, likewise: how early it learns.
- **human**: with which a person's score is 1 and a random policy's 0 (Wang et al. 2016, table 2).
- †: recorded by an earlier version of Shoal. Its command is in `record.json`; settings that are no flag, steps and
  protocols may have been others since. `scripts/baseline NAME` makes it anew.

Each folder has the settings (`config.json`), each seed's evaluations (`seedN.csv`), what each came to, of which commit
and lock, on what machine (`record.json`), and the curve. Runs in the `threads` placement depend on timing: the same
command gives a similar curve, not the same one.
"""


def write(out: pathlib.Path) -> None:
    """Writes all pages and pictures."""
    for path, text in pages(out).items():
        path.write_text(text)
    draw(out)


def pages(out: pathlib.Path) -> dict[pathlib.Path, str]:
    """Returns what each page is to hold, by its path."""
    written = {out / "README.md": results(out)}
    readme = ROOT / "README.md"
    written[readme] = between(readme.read_text(), AGENTS, agents(out))
    for page in dict.fromkeys(shown.page for shown in SHOWN.values()):
        path = ROOT / "docs" / f"{page}.md"
        written[path] = between(path.read_text(), RESULTS, table(of_page(page), out, "results/"))
    path = ROOT / "docs" / "bsuite.md"
    written[path] = between(path.read_text(), SUITE, of_suite(out))
    return written


def of_page(page: str) -> list[Baseline]:
    return [each for each in baselines.BASELINES if (each.page or SHOWN[each.agent].page) == page]


def between(text: str, markers: tuple[str, str], block: str) -> str:
    """Returns `text` with `block` in place of what is between the two marker lines.

    Raises:
      ValueError: `text` lacks a marker.
    """
    start, end = text.index(markers[0]) + len(markers[0]), text.index(markers[1])
    return f"{text[:start]}\n\n{block}\n\n{text[end:]}"


def results(out: pathlib.Path) -> str:
    """Returns the text of docs/results/README.md."""
    parts = [INTRODUCTION]
    for page in dict.fromkeys(shown.page for shown in SHOWN.values()):
        title = ", ".join(f"`{agent}`" for agent, shown in SHOWN.items() if shown.page == page)
        parts.append(
            f"## {title}\n\n{table(of_page(page), out, '')}\n\n{commands(of_page(page))}[More](../{page}.md#results)\n"
        )
    parts.append("## The Behaviour Suite\n\nScores of `dqn` and `a2c` are in [docs/bsuite.md](../bsuite.md).\n")
    names = [name for name, picture in pictures.PICTURES.items() if drawable(picture, out)]
    drawn = "\n".join(f"- [{name}](pictures/{name}.png)" for name in names)
    parts.append(f"## Curves of several\n\n{drawn}\n")
    parts.append(f"## Over tasks\n\n{over_tasks(out)}\n")
    parts.append(f"## Not run\n\n{not_run(out)}\n")
    return "\n".join(parts)


def table(chosen: Iterable[Baseline], out: pathlib.Path, folder: str) -> str:
    """Returns a table with a row for each chosen baseline that has a record; links begin with `folder`."""
    lines = [
        "| baseline | environment steps | return | last five | area | published | reproduced |",
        "|---|---|---|---|---|---|---|",
    ]
    remarks = []
    for baseline in chosen:
        known = records.read(out / baseline.name)
        if known is None:
            continue
        name = baseline.name
        picture = (out / name / "curve.png").exists()
        link = f"[{name}]({folder}{name}/record.json)" + (f", [curve]({folder}{name}/curve.png)" if picture else "")
        cells = [
            link,
            steps(known),
            spoken(baseline, known),
            records.spoken(records.last_five(out / name, known)),
            records.spoken(records.area(out / name, known)),
            published(baseline),
            reproduced(baseline, known),
        ]
        lines.append(f"| {' | '.join(cells)} |")
        if baseline.remark:
            remarks.append(f"- `{name}`: {baseline.remark}")
    return "\n".join(lines) + ("\n\n" + "\n".join(remarks) if remarks else "")


def commands(chosen: Iterable[Baseline]) -> str:
    """Returns the commands that have flags besides the agent and the environment, as Markdown; "" if there are none."""
    long = [each for each in chosen if len(each.flags.split()) > 2]
    if not long:
        return ""
    width = max(len(each.name) for each in long)
    lines = "\n".join(f"{each.name:<{width}}  scripts/train {each.flags}" for each in long)
    return f"Commands that say more than the agent and the environment:\n\n```sh\n{lines}\n```\n\n"


def steps(known: Record) -> str:
    """Returns the environment steps of a record's seeds as text. Runs end up to a batch after the steps asked for, so
    seeds that differ by less than 2 % have one number."""
    made = sorted({result.env_steps or 0 for result in known.results.values()})
    return f"{made[0]:,}" if made[-1] < 1.02 * made[0] else f"{made[0]:,} to {made[-1]:,}"


def spoken(baseline: Baseline, known: Record) -> str:
    """Returns the return over seeds as text, with the number of seeds and, for some Atari games, the human score."""
    returns, count = known.returns, len(known.results)
    words = f"{records.spoken(returns)} ({count} seed{'s' * (count > 1)})"
    few = {result.episodes for result in known.results.values()} - {100}
    words += f", {min(few)} episodes" if few and min(few) < 100 else ""
    if baseline.env in HUMAN:
        random, human = HUMAN[baseline.env]
        words += f", human {(returns.mean() - random) / (human - random):.2f}"
    return words + " †" * known.is_earlier


def published(baseline: Baseline) -> str:
    if baseline.published is None:
        return "none"
    value = baseline.published.value
    return (f"{records.number(value)}; " if value is not None else "") + baseline.published.where


def reproduced(baseline: Baseline, known: Record) -> str:
    """Returns as text whether the mean over seeds comes to the return from which on a baseline counts as reproduced."""
    if baseline.reproduced is None:
        return ""
    came = known.returns.mean() >= baseline.reproduced
    return f"{'yes' if came else 'no'}, from {records.number(baseline.reproduced)} on"


def of_suite(out: pathlib.Path) -> str:
    """Returns a table of scores in the Behaviour Suite: bsuite's random agent's, our agents', and published ones."""
    from bsuite import sweep

    logs, published = suite_logs(out), baselines.BSUITE_PUBLISHED
    scored = suite_scores(logs)
    lines = [
        f"| experiment | level 0 | {' | '.join([*logs, *published])} |",
        f"|{'---|' * (2 + len(logs) + len(published))}",
    ]
    for experiment, (_, episodes) in baselines.BSUITE.items():
        said = [f"{name}={value}" for name, value in sweep.SETTINGS[f"{experiment}/0"].items() if value is not None]
        cells = [f"`{experiment}`", ", ".join(said)]
        for player, found in logs.items():
            rows = found.get(experiment)
            cut = f" ({rows[-1]['episode']:.0f} episodes)" if rows and rows[-1]["episode"] < episodes else ""
            cells.append(f"{scored[player][experiment]:.2f}{cut}" if rows else "not run")
        cells += [f"{found[experiment]:.2f}" if experiment in found else "" for found in published.values()]
        lines.append(f"| {' | '.join(cells)} |")
    for tag, means in tags(scored).items():
        lines.append(f"| mean, {tag.replace('_', ' ')} | | {' | '.join(means)} |{' |' * len(published)}")
    return "\n".join(lines)


def suite_logs(out: pathlib.Path) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Returns the rows that were logged in the Behaviour Suite: player -> experiment -> rows."""
    players = {"random": {name: out / "random-bsuite" / f"{name}-0.csv" for name in baselines.BSUITE}}
    for agent in ("dqn", "a2c"):
        players[f"`{agent}`"] = {name: out / f"{agent}-bsuite-{name}-0" / "log-seed0.csv" for name in baselines.BSUITE}
    return {
        player: {name: suite.rows_of(path) for name, path in paths.items() if path.exists()}
        for player, paths in players.items()
    }


def suite_scores(logs: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, dict[str, float]]:
    return {
        player: {name: suite.score(f"{name}/0", rows) for name, rows in found.items()} for player, found in logs.items()
    }


def tags(scored: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    """Returns the mean scores of each tag's experiments, as a cell for each player."""
    means = [suite.by_tag(found) for found in scored.values()]
    return {tag: [f"{each[tag]:.2f}" if tag in each else "not run" for each in means] for tag in suite.TAGS}


def scores(agent: str, out: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the normalised returns of an agent's seeds by MuJoCo task, for the tasks that were recorded.

    0 is a random policy's return, and 1 what Fujimoto et al. 2018 print for PPO.
    """
    found = {}
    for task, random in RANDOM.items():
        known = records.read(out / f"{agent}-{task}")
        if known and not known.is_earlier:
            found[task] = (known.returns - random) / (baselines.MUJOCO[task][0] - random)
    return found


def over_tasks(out: pathlib.Path) -> str:
    """Returns a table that compares agents, each over all MuJoCo tasks of which it has a record."""
    lines = ["| agent | tasks | runs | interquartile mean | runs above 0.5 | above 1 |", "|---|---|---|---|---|---|"]
    for agent in ("ppo", "trpo"):
        found = scores(agent, out)
        if not found:
            continue
        mean, low, high = (records.number(value) for value in statistics.over_tasks(found))
        half, one = (f"{share:.0%}" for share in statistics.profile(found, np.array([0.5, 1.0])))
        runs = sum(map(len, found.values()))
        lines.append(f"| `{agent}` | {len(found)} | {runs} | {mean} [{low}, {high}] | {half} | {one} |")
    if len(lines) == 2:
        return "Not run."
    return OVER_TASKS + "\n".join(lines) + "\n\n![Performance profiles](pictures/profiles-mujoco.png)"


OVER_TASKS = """Returns of the last checkpoint on MuJoCo after 1,000,000 steps, scaled: 0 is a random policy's, and 1
what Fujimoto et al. 2018, table 1, print of PPO. The interquartile mean is over all runs, with the 95 % interval of the
bootstrap that draws each task's seeds anew; the last columns are means over tasks of the share of runs (Agarwal et al.
2021).

"""


def not_run(out: pathlib.Path) -> str:
    """Returns a table of the baselines of which seeds were not recorded yet."""
    lines = ["| baseline | seeds that lack | hours on one core | command |", "|---|---|---|---|"]
    for baseline in baselines.BASELINES:
        known = records.read(out / baseline.name)
        made = len(known.made) if known else 0
        lacking = max(0, baseline.seeds - made)
        if lacking:
            hours = f"{lacking * baseline.minutes / 60:.1f}"
            lines.append(
                f"| {baseline.name} | {lacking} of {baseline.seeds} | {hours} | `scripts/baseline {baseline.name}` |"
            )
    return "\n".join(lines) if len(lines) > 2 else "Nothing: all seeds of all baselines were recorded."


def agents(out: pathlib.Path) -> str:
    """Returns the README's table of agents."""
    lines = ["| agent | paper | file, lines | page | on | return | published |", "|---|---|---|---|---|---|---|"]
    for agent, shown in SHOWN.items():
        file = f"{configs.AGENTS[agent].replace('.', '/')}.py"
        count = len((ROOT / file).read_text().splitlines())
        baseline = baselines.NAMED[f"{agent}-{shown.task}"]
        known = records.read(out / baseline.name)
        said = spoken(baseline, known) if known else "not run"
        code, page = f"[{file}]({file}), {count}", f"[{shown.page}](docs/{shown.page}.md)"
        cells = [f"`{agent}`", shown.paper, code, page, shown.task, said, published(baseline)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(out: pathlib.Path) -> None:
    """Draws the pictures of several baselines, and the curves of baselines whose records have none."""
    from runtime import plot  # imported only here: it brings Matplotlib

    (out / "pictures").mkdir(exist_ok=True)
    for name, picture in pictures.PICTURES.items():
        curves = drawable(picture, out)
        plot.draw(curves.values(), out / "pictures" / f"{name}.png", settings.decisive, picture.x, list(curves))
    for baseline in baselines.BASELINES:
        folder = out / baseline.name
        if records.read(folder) and not (folder / "curve.png").exists():
            plot.draw([folder], folder / "curve.png", settings.decisive)
    profiles = {agent: scores(agent, out) for agent in ("ppo", "trpo")}
    plot.draw_profiles(
        {agent: found for agent, found in profiles.items() if found}, out / "pictures/profiles-mujoco.png"
    )
    radar = {who.strip("`"): suite.by_tag(found) for who, found in suite_scores(suite_logs(out)).items()}
    whole = {who: means for who, means in radar.items() if len(means) == len(suite.TAGS)}
    plot.draw_radar(whole, *(out / "pictures" / f"bsuite.{ending}" for ending in ("png", "svg")))
    plot.draw_panels({title: drawable(each, out) for title, each in pictures.PANELS.items()}, out / "curves.png")


def drawable(picture: pictures.Picture, out: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folders of a picture's curves that have evaluations, by label."""
    named = {label: out / name for name, label in picture.curves.items()}
    return {label: folder for label, folder in named.items() if any(folder.glob("seed*.csv"))}
