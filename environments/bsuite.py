"""The Behaviour Suite (Osband et al. 2019, https://arxiv.org/abs/1908.03568) as Gymnasium environments.

When it is imported, as by `--env=gymnasium:environments.bsuite:bsuite/cartpole-0-v0`, this module registers every
bsuite_id: `cartpole/0` becomes `bsuite/cartpole-0-v0`. bsuite's own wrapper decides which episodes are logged. The
row of a logged episode is in the info of its last step, under `environments.gymnasium.LOG`.
"""

from typing import Any

import gymnasium
import numpy as np

from environments.environment import EnvironmentFailure
from environments.gymnasium import LOG

try:
    import dm_env
    from bsuite import bsuite, sweep
    from bsuite.utils import wrappers
except ModuleNotFoundError as error:
    raise EnvironmentFailure(
        f"it needs bsuite, and {error.name} is not installed: scripts/environment installs it, as does"
        " pip install bsuite==0.3.6"
    ) from error

MNIST = "/tmp/mnist"  # where bsuite looks for the digits, and where it downloads them


class Behaviour(gymnasium.Env):
    """A level of an experiment, such as `cartpole/0`.

    bsuite's discount is 0 wherever an episode ends, at its time limits too. So episodes terminate and are never
    truncated.
    """

    metadata = {"render_modes": []}

    def __init__(self, bsuite_id: str, render_mode: str | None = None):
        """Makes the level. Raises ValueError if it is unknown, or if it needs MNIST's digits and they cannot be had."""
        if bsuite_id not in sweep.SETTINGS:
            raise ValueError(f"bsuite has no level {bsuite_id!r}; catch/0 is one")
        self.bsuite_id = bsuite_id
        experiment, _ = bsuite.unpack_bsuite_id(bsuite_id)
        try:
            self._raw = bsuite.load(experiment, sweep.SETTINGS[bsuite_id])
        except OSError as error:
            raise ValueError(
                f"MNIST's four files are not in {MNIST}, and bsuite could not download them: {error}"
            ) from error
        self._rows: list[dict[str, Any]] = []
        self._logged = wrappers.Logging(self._raw, self)
        observation = self._raw.observation_spec()
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, observation.shape, np.float32)
        self.action_space: gymnasium.spaces.Discrete = gymnasium.spaces.Discrete(self._raw.action_spec().num_values)

    def write(self, row: dict[str, Any]) -> None:
        """Keeps a row. bsuite's logging wrapper calls this, for which the environment is the logger."""
        self._rows.append({name: float(value) for name, value in row.items()})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Begins an episode. A `seed` decides what is random from then on.

        bsuite itself leaves most of its levels unseeded. What its `mapping_seed` decides belongs to the level and stays
        as it is.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._seed(seed)
        return np.asarray(self._logged.reset().observation, np.float32), {}

    def _seed(self, seed: int) -> None:
        """Seeds the environment and bsuite's wrappers around it."""
        layer = self._raw
        for own in np.random.SeedSequence(seed).generate_state(4):
            if "_rng" in vars(layer):
                layer._rng = np.random.RandomState(own)
            if "_env" not in vars(layer):
                return
            layer = layer._env

    def step(self, action: Any):
        found = self._logged.step(int(action))
        info = {LOG: self._rows.pop()} if self._rows else {}
        reward, last = float(found.reward), found.step_type == dm_env.StepType.LAST
        return np.asarray(found.observation, np.float32), reward, last and found.discount == 0.0, False, info


for _id in sweep.SWEEP:
    gymnasium.register(
        f"bsuite/{_id.replace(sweep.SEPARATOR, '-')}-v0",
        "environments.bsuite:Behaviour",
        kwargs={"bsuite_id": _id},
        disable_env_checker=True,
    )
