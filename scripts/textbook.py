"""Remakes figures of textbooks and papers from Shoal's agents, each as OUT/NAME.png and its data as OUT/NAME.csv.

  scripts/textbook baird                # TD diverges and GTD does not (Sutton and Barto 2018, section 11.2)
  scripts/textbook cliff_walking        # Sarsa against Q-learning (example 6.6)
  scripts/textbook short_corridor       # REINFORCE with and without a baseline (example 13.1)
  scripts/textbook blind_cliffwalk      # uniform against prioritised replay (Schaul et al. 2016, section 3.1)

Baird's counterexample uses Off-PAC's critic with the target policy held fixed. The blind cliffwalk uses the tree of
sums by which the local replay draws. The others are ordinary runs of scripts/train in --logdir. A line is the mean over
seeds, and a band is its 95 % bootstrap interval.
"""

import contextlib
import csv
import dataclasses
import functools
import pathlib
import signal
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from environments.environment import Interruption
from launchers import flags, shutdown
from launchers.settings import UsageError, setting
from runtime import statistics
from runtime.files import replacing

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECORDED = ROOT / "docs" / "results" / "textbook"


@dataclasses.dataclass
class Textbook:
    seeds: int = setting(10, "number of seeds over which each line of a figure is the mean", least=2)
    budget: float = setting(
        1.0,
        "the fraction of each figure's steps (blind_cliffwalk: of its sizes) that is computed; a small one shows "
        "quickly whether all works",
        least=0.001,
    )
    out: pathlib.Path = setting(
        RECORDED,
        "the folder to which the figures are written",
        default_words="docs/results/textbook",
    )
    logdir: pathlib.Path = setting(
        None, "the folder in which the runs are kept", default_words="a temporary folder, removed at the end"
    )


class Line(NamedTuple):
    """One line of a figure."""

    label: str
    x: np.ndarray  # [points]
    runs: np.ndarray  # [seeds, points]
    panel: str = ""  # the title of the panel that it is drawn in


class Figure(NamedTuple):
    """A figure of a book or paper."""

    make: Callable[[Textbook, pathlib.Path], list[Line]]  # (what was asked for, a folder for runs) -> lines
    x: str  # the label of the x axis
    y: str  # the label of the y axis
    published: dict[str, float]  # label -> published value, drawn as a horizontal line
    limits: tuple[float, float] | None = None  # limits of the y axis
    scale: str = "linear"  # scale of the y axis


# Baird's counterexample -------------------------------------------------------------------------------------------

BAIRD = "gymnasium:environments.textbook:Baird-v0"
BAIRD_START = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 1.0)  # v before the first step


def counterexample(alpha_v: float, alpha_w: float, lambda_: float, steps: int, seeds: int) -> np.ndarray:
    """Learns with Off-PAC's critic on Baird's counterexample; returns its weights v before the first step and after
    each, [seeds, steps + 1, 8].

    The behaviour policy takes SOLID with probability 1/7; the target policy always takes it. With alpha_w = 0 the
    critic is off-policy semi-gradient TD(lambda).
    """
    import jax
    import jax.numpy as jnp

    import environments
    from agents import off_pac
    from agents.parts.policies import softmax
    from environments.textbook import DASHED, SOLID

    environment = environments.make(BAIRD, seeds, seed=0)
    rng, seen = np.random.default_rng(0), [environment.reset().observation]
    action = np.where(rng.random((steps, seeds)) < 1 / 7, SOLID, DASHED).astype(np.int32)
    for now in action:
        seen.append(environment.step(now).observation)
    environment.close()

    u = jnp.zeros((8, 2)).at[:, SOLID].set(100.0)  # features sum to 3: SOLID's logit 300 is certainty in float32
    hypers = off_pac.Hypers(alpha_v, alpha_w, 0.0, 0.99, lambda_)

    @functools.partial(jax.vmap, in_axes=1)  # each seed has its own weights
    def learn(x, action):
        def step(carry, now):
            v, w, traces = carry
            x, next_x, action, first = now
            b = jnp.where(action == SOLID, 1 / 7, 6 / 7)
            one = lambda value: jnp.reshape(value, (1, *jnp.shape(value)))  # adds an axis of one environment
            row = off_pac.Row(one(x), one(action), one(b), jnp.zeros(1), jnp.full(1, 0.99), one(next_x), one(first))
            each, traces, _ = off_pac.directions(softmax(2), off_pac.Weights(v, w, u), traces, row, hypers)
            v, w = v + alpha_v * each.v[0], w + alpha_w * each.w[0]
            return (v, w, traces), v

        start = jnp.array(BAIRD_START)
        traces = off_pac.Traces(jnp.zeros((1, 8)), jnp.zeros((1, 8, 2)))
        _, v = jax.lax.scan(step, (start, jnp.zeros(8), traces), (x[:-1], x[1:], action, jnp.arange(steps) == 0))
        return jnp.concatenate([start[None], v])

    return np.asarray(jax.jit(learn)(np.stack(seen), action), np.float64)


def baird(asked: Textbook, runs: pathlib.Path) -> list[Line]:
    """Makes the lines of v's components and errors by TD(0) and by GTD(0), as in figures 11.2 and 11.5."""
    from environments.textbook import BAIRD_FEATURES

    steps = max(2, round(1000 * asked.budget))
    lines = []
    for name, alpha_v, alpha_w in [("TD(0), alpha_w = 0", 0.01, 0.0), ("GTD(0)", 0.005, 0.05)]:
        v = counterexample(alpha_v, alpha_w, 0.0, steps, asked.seeds)
        panel = f"{name}: alpha_v = {alpha_v}" + (f", alpha_w = {alpha_w}" if alpha_w else "")
        x = np.arange(steps + 1)
        parts = {"v_1 .. v_6, their mean": v[:, :, :6].mean(axis=2), "v_7": v[:, :, 6], "v_8": v[:, :, 7]}
        parts["root mean square value error"] = np.sqrt(np.mean(np.square(v @ BAIRD_FEATURES.T), axis=2))
        parts["root projected Bellman error"] = projected_bellman_error(v)
        lines += [Line(label, x, values, panel) for label, values in parts.items()]
    return lines


def projected_bellman_error(v: np.ndarray) -> np.ndarray:
    """Returns the root of the mean squared projected Bellman error of v, [..., 8] -> [...], on Baird's counterexample.

    All states have equal weight. The target policy leads from every state to the seventh, without reward.
    X (X^T X)^+ X^T projects on the features.
    """
    from environments.textbook import BAIRD_FEATURES as X

    errors = 0.99 * v @ np.tile(X[6], (7, 1)).T - v @ X.T
    projected = errors @ (X @ np.linalg.pinv(X))
    return np.sqrt(np.mean(np.square(projected), axis=-1))


# Runs -------------------------------------------------------------------------------------------------------------


def train(logdir: pathlib.Path, seed: int, steps: int, *arguments: str) -> None:
    """Makes a run of scripts/train in this process, which has loaded JAX already; its roles take turns in one thread.

    Raises:
      UsageError: the run did not come to its end.
      Interruption: it was asked to end.
    """
    from launchers import train as launcher
    from runtime import metrics

    command = [f"--logdir={logdir}", f"--seed={seed}", f"--max_env_steps={steps}", *arguments]
    command += ["--placement=serial", "--carrier=local", "--num_actors=1"]
    with shutdown.handlers_kept():
        code = flags.attempt(launcher.train, ["train", *command, f"--unfinished_code={128 + signal.SIGINT}"])
    if code > 128:  # a signal asked for that
        raise Interruption(code - 128)
    done = metrics.latest(logdir, "evaluator") if code == 0 else None
    if not done or done["env_steps"] < steps:
        raise UsageError(
            f"the run in {logdir} has not come to its end; to see why, run scripts/train {' '.join(command)}"
        )


def train_together(logdir: pathlib.Path, seeds: int, steps: int, held: str, *arguments: str) -> None:
    """Makes `seeds` runs in one, as members of a population that never copy each other and draw their own randomness.

    A population must tune a hyperparameter. That is `held`, NAME:LOW:HIGH, which no member ever changes.
    """
    stacked = [f"--population={seeds}", "--population_mode=vmap", "--exploit=none"]
    name, low, high = held.split(":")
    train(logdir, 0, steps, *arguments, *stacked, f"--tune={name}:step={float(high) - float(low):g}:{low}:{high}")


def evaluated(logdir: pathlib.Path, x: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the column `x` and the mean return of a run's evaluations, [evaluations] each."""
    from runtime import metrics

    rows = metrics.read(logdir / "evaluator.csv")
    return np.array([row[x] for row in rows]), np.array([row["return_mean"] for row in rows])


def common(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Brings curves (x, y) to the x of the first, where all of them have values; returns x and y, [curves, points]."""
    x = curves[0][0]
    x = x[(x >= max(own[0] for own, _ in curves)) & (x <= min(own[-1] for own, _ in curves))]
    return x, np.stack([np.interp(x, own, y) for own, y in curves])


# Cliff walking ----------------------------------------------------------------------------------------------------


def cliff_walking(asked: Textbook, runs: pathlib.Path) -> list[Line]:
    """Makes the lines of the mean return of the last ten training episodes. Agents have tables, epsilon = 0.1 and
    alpha = 0.5."""
    from runtime import metrics

    table = ["--config.hidden_sizes=()", "--config.optimizer=sgd", "--config.learning_rate=0.5", "--config.discount=1"]
    constant = ["--config.epsilon_initial=0.1", "--config.epsilon_final=0.1", "--config.epsilon_steps=0"]
    one = ["--envs_per_actor=1", "--config.batch_size=1", "--config.unroll_length=1"]
    steps = round(12_000 * asked.budget)
    once = [f"--eval_period={steps}", "--eval_episodes=1", "--eval_max_steps=10"]  # nobody reads the evaluations
    score = ["--score_episodes=10", f"--ready_env_steps={max(1, steps // 48)}"]
    env, lines = "--env=gymnasium:CliffWalking-v1", []
    for agent, label in [("sarsa", "Sarsa"), ("q_learning", "Q-learning")]:
        logdir, arguments = runs / agent, [*table, *constant, *one, *once, *score]
        train_together(logdir, asked.seeds, steps, "epsilon_final:0:0.5", f"--agent={agent}", env, *arguments)
        curves = []
        for member in range(asked.seeds):
            rows = [row for row in metrics.read(logdir / f"lineage_{member}.csv") if np.isfinite(row["score"])]
            if not rows:
                raise UsageError(f"no episode has ended in {logdir}: give a larger --budget")
            curves.append((np.array([row["env_steps"] for row in rows]), np.array([row["score"] for row in rows])))
        lines.append(Line(label, *common(curves)))
    return lines


# The short corridor -----------------------------------------------------------------------------------------------


def short_corridor(asked: Textbook, runs: pathlib.Path) -> list[Line]:
    """Makes the lines of the policy's mean return against the number of training episodes, by evaluations.

    Each update is on one episode. Eight are played side by side, so that the acting policy is a few updates old.
    """
    # The initial preferences go left with probability 0.95.
    book = ["--config.hidden_sizes=()", "--config.optimizer=sgd", "--config.initial_preferences=1.472,-1.472"]
    book += ["--config.batch_size=1", "--config.discount=1", "--envs_per_actor=8", "--eval_policy=sampled"]
    lines = []
    for agent, label, steps, alphas in [
        ("reinforce", "REINFORCE, alpha = 2^-13", 18_000, ["--config.alpha_theta=1.220703125e-4"]),
        (
            "reinforce_baseline",
            "REINFORCE with baseline, alpha_theta = 2^-11, alpha_w = 2^-9",
            13_000,
            ["--config.alpha_theta=4.8828125e-4", "--config.alpha_w=1.953125e-3"],
        ),
    ]:
        curves = []
        for seed in range(asked.seeds):
            logdir, steps_made = runs / f"{agent}-{seed}", round(steps * asked.budget)
            often = [f"--eval_period={max(1, steps_made // 25)}", "--eval_episodes=20"]
            env = "--env=gymnasium:environments.textbook:ShortCorridor-v0"
            train(logdir, seed, steps_made, f"--agent={agent}", env, *book, *alphas, *often)
            curves.append(evaluated(logdir, "learner_steps"))
        lines.append(Line(label, *common(curves)))
    return lines


# The blind cliffwalk ----------------------------------------------------------------------------------------------


def cliffwalk_transitions(n: int) -> tuple[np.ndarray, ...]:
    """Returns the transitions of all 2^n sequences of n actions in the blind cliffwalk of n states.

    They are (state, whether the action was right, reward, whether the episode goes on), [2^(n+1) - 2] each. A wrong
    action ends the episode, and only the last right one is rewarded.
    """
    found = []
    for sequence in range(2**n):
        for state in range(n):
            right, last = sequence >> state & 1, state == n - 1
            found.append((state, right, float(right and last), bool(right and not last)))
            if not right:
                break
    return tuple(np.array(column) for column in zip(*found, strict=True))


def updates_until_learnt(states: np.ndarray, alphas: list[float], most: int, seeds: int) -> np.ndarray:
    """Counts the updates of Q-learning until the mean squared error of its table is below 10^-3, but at most `most`.

    Each update is on one transition, drawn with probability proportional to p^alpha, where p is the size of the
    transition's last error, 1 at first. Returns [alphas, seeds, states], for each number n in `states`.
    """
    import jax
    import jax.numpy as jnp

    from agents.parts.prioritized import priorities
    from replay import sums

    largest = int(states.max())
    places = -(-(2 ** (largest + 1) - 2) // sums.FAN_OUT) * sums.FAN_OUT  # the same for all n: one program serves

    @jax.jit
    def learn(key, n, s, right, reward, going_on, alpha):
        gamma, step_size = 1.0 - 1.0 / n, 0.25
        here = jnp.arange(largest) < n
        truth = jnp.zeros((largest, 2)).at[:, 1].set(gamma ** (n - 1.0 - jnp.arange(largest)))

        def unlearnt(carry):
            Q, *_, updates = carry
            return (jnp.sum(here[:, None] * jnp.square(Q - truth)) / (2 * n) >= 1e-3) & (updates < most)

        def update(carry):
            Q, masses, tree, updates = carry
            i = sums.sample(masses, tree, jax.random.fold_in(key, updates), 1)
            bootstrap = going_on[i] * jnp.max(Q[jnp.minimum(s[i] + 1, largest - 1)], axis=-1)
            delta = reward[i] + gamma * bootstrap - Q[s[i], right[i]]
            masses = masses.at[i].set(priorities(delta) ** alpha)
            return Q.at[s[i], right[i]].add(step_size * delta), masses, sums.update(masses, tree, i), updates + 1

        masses = (s >= 0).astype(jnp.float32)
        Q = 0.1 * jax.random.normal(jax.random.fold_in(key, most), (largest, 2))
        return jax.lax.while_loop(unlearnt, update, (Q, masses, sums.build(masses), jnp.int32(0)))[-1]

    found = np.zeros((len(alphas), seeds, len(states)))
    for column, n in enumerate(states):
        transitions = cliffwalk_transitions(int(n))
        padded = [np.pad(x.astype(np.float32), (0, places - len(x)), constant_values=-1) for x in transitions]
        s, right, reward, going_on = padded[0].astype(np.int32), padded[1].astype(np.int32), *padded[2:]
        for row, alpha in enumerate(alphas):
            keys = jax.random.split(jax.random.key(int(n)), seeds)
            found[row, :, column] = [learn(key, float(n), s, right, reward, going_on, alpha) for key in keys]
    return found


def blind_cliffwalk(asked: Textbook, runs: pathlib.Path) -> list[Line]:
    """Makes the lines of the updates that it takes to learn n states, with uniform and with prioritised replay."""
    states = np.arange(2, 3 + max(1, round(11 * asked.budget)))
    labels = {
        "uniform replay": 0.0,
        "prioritised replay, proportional, alpha = 0.6": 0.6,
        "prioritised replay, proportional, alpha = 1": 1.0,
    }
    found = updates_until_learnt(states, [*labels.values()], 3_000_000, asked.seeds)
    return [Line(label, states, each) for label, each in zip(labels, found, strict=True)]


# Figures ----------------------------------------------------------------------------------------------------------

FIGURES = {
    "baird": Figure(
        baird,
        "steps",
        "a weight, or an error",
        {"gradient TD's root value error, almost 2 (Sutton and Barto 2018, figure 11.5)": 2.0},
        scale="symlog",
    ),
    "cliff_walking": Figure(
        cliff_walking,
        "environment steps",
        "return while learning, mean of ten episodes",
        {"Sarsa, about -25 (Sutton and Barto 2018, example 6.6)": -25.0, "Q-learning, about -50 (likewise)": -50.0},
        limits=(-105.0, 0.0),
    ),
    "short_corridor": Figure(
        short_corridor,
        "episodes",
        "mean return of the policy",
        {"the best policy's, -11.6 (Sutton and Barto 2018, example 13.1)": -11.6},
        limits=(-95.0, -8.0),
    ),
    "blind_cliffwalk": Figure(
        blind_cliffwalk,
        "states n; the replay has 2^(n+1) - 2 transitions",
        "updates until the values are learnt",
        {},
        scale="log",
    ),
}


def write(figure: Figure, lines: list[Line], out: pathlib.Path) -> None:
    """Draws `lines` to the picture `out`, and writes them beside it as a CSV, a row for each point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from runtime import plot

    titles = list(dict.fromkeys(line.panel for line in lines))
    drawing, panels = pyplot.subplots(
        1, len(titles), squeeze=False, sharey=True, figsize=(max(7.0, 3.8 * len(titles)), 4.6), layout="constrained"
    )
    with replacing(out.with_suffix(".csv")) as new, open(new, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["panel", "line", "x", "mean", "low", "high", "seeds"])
        for line in lines:
            mean, (low, high) = line.runs.mean(axis=0), statistics.interval(line.runs)
            axes = panels[0, titles.index(line.panel)]
            (drawn,) = axes.plot(line.x, mean, label=line.label, linewidth=1.2)
            axes.fill_between(line.x, low, high, color=drawn.get_color(), alpha=0.25, linewidth=0)
            step = max(1, len(line.x) // 50)  # some 50 points show the line's shape
            for i in sorted({*range(0, len(line.x), step), len(line.x) - 1}):
                numbers = [f"{x:.5g}" for x in (line.x[i], mean[i], low[i], high[i])]
                writer.writerow([line.panel, line.label, *numbers, len(line.runs)])
    for title, axes in zip(titles, panels[0], strict=True):
        for k, (where, value) in enumerate(figure.published.items()):
            axes.axhline(value, color=f"C{k}", linestyle="--", linewidth=0.8, label=where)
        axes.set(title=title, xlabel=figure.x, yscale=figure.scale, ylim=figure.limits)
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel(figure.y)
    handles = {label: handle for axes in panels[0] for handle, label in zip(*axes.get_legend_handles_labels())}
    title = f"means of {len(lines[0].runs)} seeds, with 95 % bootstrap intervals"
    drawing.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize="small", title=title)
    plot.write(drawing, out)


@flags.command(Textbook, arguments=f"the figures: {', '.join(FIGURES)}")
def textbook(*names: str) -> int:
    # The flags are read before any run, for each run parses its own command line in their place.
    given: dict[str, Any] = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Textbook)}
    asked = Textbook(**given)
    if not names or not FIGURES.keys() >= set(names):
        raise UsageError(f"textbook draws {', '.join(FIGURES)}: name one or several, not {' '.join(names) or 'none'}")
    if asked.budget < 1 and asked.out == RECORDED:
        raise UsageError(f"--budget={asked.budget}: such figures are not to replace the recorded ones: give --out too")
    if not asked.out.is_dir():
        raise UsageError(f"--out={asked.out}: there is no such folder")
    for name in names:
        with contextlib.ExitStack() as kept:
            runs = asked.logdir or pathlib.Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="textbook-")))
            figure = FIGURES[name]
            write(figure, figure.make(asked, runs / name), asked.out / f"{name}.png")
        print(asked.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    flags.main(textbook)
