"""Of every agent's hyperparameters that a population may tune: what the state says is what the agent does, whatever its
Config said, and it makes a difference."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec, TimeStep
from launchers import configs
from tests.agents.streams import stream
from tests.agents.test_bfloat16 import SMALL, fields_of

B, D = 8, 2  # items in a batch, numbers in an observation
ACTING = 500  # environments, enough to see that a few act at random
ENV_STEPS = 1000  # of the run, at all updates
BOUNDED = BoundedActions(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
MODULES = {place.removeprefix("agents."): configs.agent_module(agent) for agent, place in configs.AGENTS.items()}


OF_ALL = {
    "torso": "mlp",
    "observation_low": (-3.0,) * D,
    "observation_high": (3.0,) * D,
    "tilings": 2,
    "tiles": 2,
    "value_minibatches": 2,
}
# By module: settings with which every hyperparameter has an effect, where it has none with the defaults.
OF: dict[str, dict[str, Any]] = {
    "apex_dpg": {"target_period": 1},
    "d4pg": {"target_period": 1},
    "mix_match": {"curriculum": "architectures", "lstm_size": 8},
    "ppo": {"learning_rate": 0.1},
    "ppo_rnd": {"learning_rate": 0.1},
    "pqn": {"epsilon_env_steps": 2 * ENV_STEPS},
    "q_learning": {"epsilon_steps": 100},
    "rainbow": {"epsilon_steps": 100},
    "reinforce": {"baseline": True},
}
FOR_DISCRETE_ACTIONS = {"vmpo": {"epsilon_alpha"}}  # these have no effect in the continuous actions of the test
CONTINUOUS = {"vmpo"}  # act in actions of either kind, and most of their hyperparameters are for the continuous


def make(module: Any, **fields: Any) -> tuple[Any, EnvironmentSpec]:
    """Makes the module's agent for discrete actions, or if it acts in others, for those."""
    small = {name: value for name, value in (OF_ALL | SMALL).items() if name in fields_of(module)}
    name = module.__name__.removeprefix("agents.")
    config = module.Config(**small | OF.get(name, {}) | fields)
    spec = EnvironmentSpec((D,), np.dtype(np.float32), DiscreteActions(4), max_episode_steps=6)
    try:
        if name in CONTINUOUS:
            raise ValueError
        return module.make(config, spec), spec
    except ValueError:
        spec = dataclasses.replace(spec, actions=BOUNDED)
        return module.make(config, spec), spec


def other(value: float) -> float:
    """Returns another value that is in range wherever `value` is."""
    return value / 2 if value else 0.25


class Outcome:
    """What an agent, compiled once, makes of states that differ only in their hyperparameters."""

    def __init__(self, agent: Any, samples: list[Any]):
        self.update, self.act, self.agent, self.samples = jax.jit(agent.update), jax.jit(agent.act), agent, samples
        observation = np.random.default_rng(1).normal(size=(ACTING, D)).astype(np.float32)
        ones, no = np.ones(ACTING, np.float32), np.zeros(ACTING, bool)
        self.timestep = TimeStep(observation, 0 * ones, ones, ~no, no)

    def __call__(self, state: Any, hypers: Any) -> list[Any]:
        """Returns all arrays of: what the updates feed back, the state after them, and how the agent then acts."""
        state, feedbacks = state._replace(hypers=hypers), []
        if "env_steps" in state._fields:
            state = state._replace(env_steps=jnp.float32(ENV_STEPS))
        for i, sample in enumerate(self.samples):
            state, feedback = self.update(state, jax.random.key(i), sample)
            feedbacks.append(feedback)
        memory = self.agent.memory(ACTING, np.linspace(0, 1, ACTING))
        acted = self.act(self.agent.policy(state), jax.random.key(2), self.timestep, memory)
        return [np.asarray(x) for x in jax.tree.leaves((feedbacks, state._replace(hypers=()), acted))]


@pytest.mark.parametrize("name", MODULES)
def test_each_is_the_states_and_makes_a_difference(name):
    module = MODULES[name]
    agent, spec = make(module)
    state = agent.init(jax.random.key(0))
    of_config = fields_of(module) - FOR_DISCRETE_ACTIONS.get(name, set())  # a hyperparameter may be made from others
    fields = [field for field in state.hypers._fields if field in of_config]
    changed, _ = make(module, **{field: other(getattr(module.Config(), field)) for field in fields})
    tuned, samples = changed.init(jax.random.key(0)).hypers, stream(agent, state, spec, 3, B)
    ours = Outcome(agent, samples)
    for got, expected in zip(ours(state, tuned), Outcome(changed, samples)(state, tuned), strict=True):
        np.testing.assert_array_equal(got, expected, "the state's and not the Config's count")
    before = ours(state, state.hypers)
    for field in fields:
        after = ours(state, state.hypers._replace(**{field: getattr(tuned, field)}))
        assert not all(map(np.array_equal, before, after)), f"{field} has no effect"
