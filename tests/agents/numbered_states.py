"""An adapter by which tests may give an agent the numbers of states, where environments give it one-hot vectors."""

from typing import Any

import jax
import jax.numpy as jnp

from agents.agent import Agent


def numbered(agent: Agent, states: int) -> Agent:
    """Returns an agent that behaves as `agent`, but takes the numbers of states, [], where `agent` takes one-hot
    vectors, [states]."""

    def shown(tree: Any) -> Any:
        return tree._replace(observation=jax.nn.one_hot(jnp.asarray(tree.observation, jnp.int32), states))

    return agent._replace(
        act=lambda params, key, timestep, memory: agent.act(params, key, shown(timestep), memory),
        act_greedily=lambda params, key, timestep, memory: agent.act_greedily(params, key, shown(timestep), memory),
        update=lambda state, key, sample: agent.update(state, key, sample._replace(steps=shown(sample.steps))),
    )
