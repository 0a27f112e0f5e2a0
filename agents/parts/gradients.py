"""Gradients that travel: an agent whose samples are gradients, which workers computed from their own experience.

Mnih et al. 2016, *Asynchronous Methods for Deep Reinforcement Learning*, https://arxiv.org/abs/1602.01783; Nair et al.
2015, *Massively Parallel Methods for Deep Reinforcement Learning*, https://arxiv.org/abs/1507.04296. The agent's own
`gradient` is what the papers' workers compute, and its `apply` is what their parameter server does. No algorithm knows
whether its experience or its gradients travel.
"""

from typing import Any

import jax

from agents.agent import Agent, Feedback, Gradient, Gradients, State, TableSpec, pmean


def by_gradients(agent: Agent) -> Agent:
    """Returns the same agent, but one that learns from Gradients [n, ...]: the mean of n on each device.

    Workers pull the state without the optimiser's state. They act by it and compute gradients at it.

    Raises:
      ValueError: the agent has no `gradient` and `apply`, its updates must come in order, or its replay is prioritised:
        priorities would have to travel back to the workers.
    """
    table = agent.table
    if agent.gradient is None or agent.apply is None or agent.in_order:
        raise ValueError("--travels=gradients: workers cannot send gradients of this agent; give --travels=experience")
    if table.kind == "prioritized":
        raise ValueError("--travels=gradients has no priorities: give --config.replay=uniform or --travels=experience")
    apply = agent.apply

    def policy(state: Any) -> State:
        return state._replace(opt_state=())

    def act(state, *args):
        return agent.act(agent.policy(state), *args)

    def act_greedily(state, *args):
        return agent.act_greedily(agent.policy(state), *args)

    def update(state: State, key: jax.Array, sample: Gradient) -> tuple[State, Feedback]:
        del key
        gradient, metrics = pmean(jax.tree.map(lambda x: x.mean(axis=0), (sample.gradient, sample.metrics)))
        return apply(state, gradient), Feedback(metrics)

    return agent._replace(
        policy=policy,
        act=act,
        act_greedily=act_greedily,
        update=update,
        # Room for one gradient only: while a gradient waits, it goes stale.
        table=TableSpec("gradients", Gradients(table, agent.batch_size), "queue", max_size=1),
        batch_size=1,
        priority=None,
        share_multiple=1,
    )
