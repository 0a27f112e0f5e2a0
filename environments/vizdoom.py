"""ViZDoom in EnvPool: first-person tasks in Doom (Kempka et al. 2016, https://arxiv.org/abs/1605.02097).

An action is a choice for each factor. Buttons that oppose one another are one factor (none, the one, the other), and so
are the buttons that select weapons; any other button is a factor of two. Buttons are held for the four tics of a step.
Observations are the screen in ViZDoom's own grey, 84x84.

EnvPool does not give the tasks' rewards, but a reward of its own, for changes in the game's variables. So this module
computes the tasks' rewards again: from their settings (`living_reward`, `death_penalty`), and from what their scripts
reward, as far as EnvPool's reward can express it. In a terminal step EnvPool's state is still that of the step before,
so how the episode ended must be inferred from that. Deathmatch's script rewards nothing: it keeps EnvPool's reward.
"""

import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from agents.agent import FactoredActions
from environments import spaces
from environments.envpool import EnvPoolEnvironment, default_config

FRAME_SKIP = 4
TICS_PER_SECOND = 35.0
# Only one button of a set is pressed at a time.
SETS = (
    ("MOVE_LEFT", "MOVE_RIGHT"),
    ("TURN_LEFT", "TURN_RIGHT"),
    ("MOVE_FORWARD", "MOVE_BACKWARD"),
    ("LOOK_UP", "LOOK_DOWN"),
    ("SELECT_NEXT_WEAPON", "SELECT_PREV_WEAPON"),
    tuple(f"SELECT_WEAPON{number}" for number in range(10)),
)
# Some buttons take any number, of which agents choose among NUM_DELTAS evenly spaced values. This is the largest value,
# for each tic: degrees (a key turns by up to 7, https://github.com/Farama-Foundation/ViZDoom/issues/182), and for moves
# the speeds of Doom's keys when running.
DELTAS = {
    "LOOK_UP_DOWN_DELTA": 10.0,
    "TURN_LEFT_RIGHT_DELTA": 10.0,
    "MOVE_FORWARD_BACKWARD_DELTA": 50.0,
    "MOVE_LEFT_RIGHT_DELTA": 40.0,
}
NUM_DELTAS = 5


class Factor(NamedTuple):
    """One factor of an action: its choices, and what each choice does to the task's buttons."""

    buttons: np.ndarray  # float64 [choices, buttons]
    nothing: int  # the choice that presses no button
    selects_weapon: bool


def factors(buttons: list[str]) -> list[Factor]:
    """Returns the factors of a task's buttons, in the order of each factor's first button."""
    made, column = [], {button: index for index, button in enumerate(buttons)}
    for button in buttons:
        together = next((s for s in SETS if button in s), (button,))
        pressed = [b for b in together if b in column]
        if buttons.index(button) > min(column[b] for b in pressed):
            continue  # the factor of its set is there already
        if button.endswith("_DELTA"):
            values = np.linspace(-DELTAS[button], DELTAS[button], NUM_DELTAS)
            effect = np.zeros((NUM_DELTAS, len(buttons)))
            effect[:, column[button]] = values
            made.append(Factor(effect, NUM_DELTAS // 2, False))
            continue
        effect = np.zeros((1 + len(pressed), len(buttons)))
        effect[range(1, 1 + len(pressed)), [column[b] for b in pressed]] = 1.0
        made.append(Factor(effect, 0, button.startswith("SELECT_")))
    return made


def small(of: list[Factor]) -> tuple[tuple[int, ...], ...]:
    """Returns the small actions: nothing pressed, and each choice of each factor alone, unless it selects a weapon."""
    nothing = tuple(factor.nothing for factor in of)
    alone = [
        (*nothing[:index], choice, *nothing[index + 1 :])
        for index, factor in enumerate(of)
        for choice in range(len(factor.buttons))
        if choice != factor.nothing and not factor.selects_weapon
    ]
    return (nothing, *alone)


def _never(measure: np.ndarray) -> np.ndarray:
    return np.zeros(len(measure), bool)


class Scenario(NamedTuple):
    """What a task's script rewards, apart from living and dying."""

    changes: (
        dict[str, tuple[float, float]] | None
    ) = {}  # variable -> (reward per unit that it rises, per unit that it falls); None: EnvPool's own reward
    success: float = 0.0  # the reward for ending an episode well
    # A number that tells how an episode will have ended, [B]. It is updated at each step, and 0 before an episode:
    # (its value before, EnvPool's state, EnvPool's reward) -> its new value.
    measure: Callable[[np.ndarray, dict[str, Any], np.ndarray], np.ndarray] = lambda before, state, reward: before
    succeeded: Callable[[np.ndarray], np.ndarray] = _never  # measure -> bool [B], if an end is a success
    variables: str = ""  # game variables that EnvPool is to watch besides those of its own settings


def _always(measure: np.ndarray) -> np.ndarray:
    return np.ones(len(measure), bool)


# A shot costs 5. The last shot kills, which is worth 106, and ends the episode; its own cost does not show in the
# terminal step. So success is worth 101.
BASIC = Scenario({"AMMO2": (0.0, -5.0)}, 101.0, succeeded=_always)
SURVIVAL = Scenario()
KILLS = Scenario({"KILLCOUNT": (1.0, 0.0)})
SCENARIOS = {
    "Basic-v1": BASIC,
    "SimplerBasic-v1": BASIC,
    "D1Basic-v1": SURVIVAL,
    "D2Navigation-v1": SURVIVAL,
    "HealthGathering-v1": SURVIVAL,
    "HealthGatheringSupreme-v1": SURVIVAL,
    "TakeCover-v1": SURVIVAL,
    "DefendTheCenter-v1": KILLS,
    "DefendTheLine-v1": KILLS,
    "MyWayHome-v1": Scenario({}, 1.0, succeeded=_always),
    # The reward is for the way along the corridor. The vest lies at 1312 and is taken from up to 36 before it. The last
    # position that is seen may be another 36 short of that, the distance of four tics' walk.
    "DeadlyCorridor-v1": Scenario(
        {"POSITION_X": (1.0, -1.0)},
        1000.0,
        lambda before, state, reward: before + reward,
        lambda way: way > 1312 - 36 - 36,
        "POSITION_X",
    ),
    # There is one rocket. The episode ends 45 tics after it is fired, unless it hits before. The measure is the number
    # of steps since it was fired.
    "PredictPosition-v1": Scenario(
        {},
        1.0,
        lambda before, state, reward: np.where(state["info:AMMO5"] > 0, 0.0, before + 1),
        lambda steps: steps < 45 // FRAME_SKIP,
    ),
    "Deathmatch-v1": Scenario(None),
}


class VizdoomEnvironment(EnvPoolEnvironment):
    """A ViZDoom task of EnvPool's.

    Observations are uint8 [84, 84]. Rewards are the task's own, summed over four tics; Deathmatch's are EnvPool's.
    Episodes are truncated at the task's timeout, or after 525 steps if it has none.
    """

    steps_per_second = TICS_PER_SECOND / FRAME_SKIP

    def __init__(
        self,
        name: str,
        num_envs: int,
        seed: int,
        *,
        num_threads: int = 0,
        max_steps: int | None = None,
        keywords: Mapping[str, Any] | None = None,
        drawn: bool = False,
    ):
        """Raises ValueError if the rewards of the task called `name` are not known."""
        if name not in SCENARIOS:
            raise ValueError(f"the rewards of {name} are not known to Shoal: of ViZDoom it has {', '.join(SCENARIOS)}")
        self._scenario = SCENARIOS[name]
        settings = pathlib.Path(default_config(name)["cfg_path"]).read_text()

        def number(key: str, default: float) -> float:
            found = re.search(rf"^\s*{key}\s*=\s*(\S+)", settings, re.MULTILINE)
            return float(found[1]) if found else default

        listed = re.search(r"available_buttons\s*=\s*\{([^}]*)\}", settings)
        assert listed is not None
        self._factors = factors(listed[1].split())
        self._living = number("living_reward", 0.0) * FRAME_SKIP
        self._dying = -number("death_penalty", 0.0)
        self._measure = np.zeros(num_envs)
        options: dict[str, Any] = {"stack_num": 1, "frame_skip": FRAME_SKIP}
        if self._scenario.changes is not None:
            options |= {"reward_config": self._scenario.changes, "selected_weapon_reward_config": {}}
        timeout = number("episode_timeout", 0.0)
        if timeout:
            options["max_episode_steps"] = int(timeout) // FRAME_SKIP
        # Made from one seed, EnvPool's environments are alike from one to the next, so each gets a seed of its own.
        options["env_seed"] = (np.random.SeedSequence(seed).generate_state(num_envs) >> 1).tolist()
        settings += "\nscreen_format = GRAY8\n"
        if self._scenario.variables:
            settings += f"available_game_variables = {{ {self._scenario.variables} }}\n"
        with tempfile.TemporaryDirectory() as folder:  # the file is needed only until the pool is made
            options["cfg_path"] = f"{folder}/task.cfg"
            pathlib.Path(options["cfg_path"]).write_text(settings)
            super().__init__(
                name,
                num_envs,
                seed,
                num_threads=num_threads,
                max_steps=max_steps,
                options=options,
                keywords=keywords,
                drawn=drawn,
            )

    def _actions(self, space: Any) -> spaces.Actions:
        del space  # EnvPool's space is unbounded numbers for the buttons

        def press(action: np.ndarray) -> np.ndarray:
            return np.sum([factor.buttons[action[:, i]] for i, factor in enumerate(self._factors)], axis=0)

        return spaces.Actions(
            FactoredActions(tuple(len(f.buttons) for f in self._factors), small(self._factors)), press
        )

    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, ...]:
        observation, changes, *ends, state = self._exchange(self._take(action))
        if self._scenario.changes is None:
            return observation, changes, *ends
        self._measure = self._scenario.measure(np.where(resets, 0.0, self._measure), state, changes)
        ended = np.where(self._scenario.succeeded(self._measure), self._scenario.success, self._dying)
        reward = (changes + self._living + np.where(ends[0], ended, 0.0)).astype(np.float32)
        return observation, reward, *ends
