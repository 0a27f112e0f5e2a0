"""Makes one agent of a whole population: the members' states are stacked, and their updates are one vmapped update.

Environment i of a batch belongs to member i // num_tasks mod N, as `agents.pbt.member_of` has it. So several blocks
side by side, and also equal parts of a block, hold the same number of environments of each member.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from agents.agent import Agent, Blocks, Feedback, Sample, Step, TimeStep


def vectorize(agent: Agent, members: int, num_tasks: int = 1) -> Agent:
    """Returns an agent that is `members` copies of `agent`, N below.

    Its State, and the params that actors pull, are [N, ...]. Its batches are N times as large. Its metrics are means
    over the members whose metric is finite.

    Raises:
      ValueError: the agent does not learn from blocks of rows. In these each member has fixed environments.
    """
    table = agent.table
    if not isinstance(table.items, Blocks):
        raise ValueError(
            "--population_mode=vmap is for agents that learn from blocks of their actors' rows, such as a2c, "
            "impala, ppo and pqn: give --population_mode=separate"
        )

    def part(x: Any, axis: int = 0) -> jax.Array:
        """Splits the axis of environments by member: [..., N B, ...] -> [N, ..., B, ...]."""
        x = x.reshape(*x.shape[:axis], -1, members, num_tasks, *x.shape[axis + 1 :])
        x = jnp.moveaxis(x, axis + 1, 0)
        return x.reshape(members, *x.shape[1 : axis + 1], -1, *x.shape[axis + 3 :])

    def join(x: Any) -> jax.Array:
        """Puts the members' environments back in order: [N, B, ...] -> [N B, ...]."""
        x = x.reshape(members, -1, num_tasks, *x.shape[2:])
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[3:])

    def init(key: jax.Array):
        return jax.vmap(agent.init)(jax.random.split(key, members))

    def memory(num_envs: int, ranks: Any):
        each = num_envs // members
        if ranks is None:
            return jax.tree.map(join, jax.vmap(lambda _: agent.memory(each, None))(jnp.arange(members)))
        return jax.tree.map(join, jax.vmap(lambda ranks: agent.memory(each, ranks))(part(jnp.asarray(ranks))))

    def acting(act: Any):
        def act_of_all(params, key: jax.Array, timestep: TimeStep, memory: Any):
            timestep, memory = jax.tree.map(part, (timestep, memory))
            outcome = jax.vmap(act)(params, jax.random.split(key, members), timestep, memory)
            return jax.tree.map(join, outcome)

        return act_of_all

    def update(state, key: jax.Array, sample: Sample):
        steps = Step(*(jax.tree.map(lambda x: part(x, axis=1), field) for field in sample.steps))
        samples = Sample(steps, jax.tree.map(part, sample.memory))
        state, feedback = jax.vmap(agent.update)(state, jax.random.split(key, members), samples)
        return state, Feedback(jax.tree.map(_finite_mean, feedback.metrics))

    table = dataclasses.replace(table, max_size=members * table.max_size)
    return agent._replace(
        init=init,
        policy=jax.vmap(agent.policy),
        memory=memory,
        act=acting(agent.act),
        act_greedily=acting(agent.act_greedily),
        update=update,
        table=table,
        batch_size=members * agent.batch_size,
        share_multiple=members * math.lcm(agent.share_multiple, num_tasks),
        gradient=None,
        apply=None,
    )


def _finite_mean(x: Any) -> jax.Array:
    """Returns the mean over the members whose `x` [N, ...] is finite; NaN if there is none."""
    return jnp.nanmean(jnp.where(jnp.isfinite(x), x, jnp.nan))
