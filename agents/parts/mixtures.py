"""Mixtures of policies, policies over a few of another policy's actions, and the network of all agents of a mixture
(Czarnecki et al. 2018, https://arxiv.org/abs/1806.01780).

Sizes: K policies, S actions of the small policy, F factors of each action, P outputs of a policy; T rows of time, B
environments.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from agents.parts.networks import LSTM, ActorCritic, LSTMState
from agents.parts.policies import Policy, softmax
from agents.parts.torsos import make_torso


def weights(alpha: Any, K: int) -> chex.Array:
    """Returns the weights w_1 .. w_K, float32 [K].

    As alpha goes from 0 to 1, all weight moves from the first policy to the second, and so on to the last. At most two
    weights are above 0. At a multiple of 1 / (K - 1) only one is, and it is exactly 1.
    """
    return jnp.maximum(0.0, 1.0 - jnp.abs(jnp.clip(alpha, 0.0, 1.0) * (K - 1) - jnp.arange(K)))


def mixture_log_prob(w: chex.Array, log_probs: chex.Array) -> chex.Array:
    """Returns log sum_i w_i exp(log_probs_i): [K], [K, ...] -> [...].

    A weight may be 0 and a log-probability -inf. Such a policy has no part in the sum and gets no gradient. Where no
    other policy is left, the result is -inf, and no gradient passes.
    """
    w = w.reshape(-1, *(1,) * (log_probs.ndim - 1))
    possible = (w > 0) & (log_probs > -jnp.inf)
    # `where` is here twice, first around the arguments and then around the terms: a gradient of 0 times an infinite one
    # is NaN, so the terms that are not chosen must be finite too.
    terms = jnp.log(jnp.where(possible, w, 1.0)) + jnp.where(possible, log_probs, 0.0)
    anyone = possible.any(axis=0)
    terms = jnp.where(possible, terms, jnp.where(anyone, -jnp.inf, 0.0))
    return jnp.where(anyone, jax.nn.logsumexp(terms, axis=0), -jnp.inf)


def few_actions(small: Any, large: Policy) -> Policy:
    """Makes a softmax policy over `small`, int [S, F], a few actions of the policy `large`.

    Its raw actions are raw actions of `large`. An action that is not in `small` has a log-probability of -inf.
    """
    small, chooser = jnp.asarray(small, jnp.int32), softmax(len(small))

    def log_prob(outputs: Any, raw: Any) -> chex.Array:
        same = (jnp.asarray(raw)[..., None, :] == small).all(axis=-1)  # [..., S]
        log_p = jnp.sum(jnp.where(same, jax.nn.log_softmax(outputs), 0.0), axis=-1)
        return jnp.where(same.any(axis=-1), log_p, -jnp.inf)

    return large._replace(
        num_outputs=len(small),
        sample=lambda key, outputs: small[chooser.sample(key, outputs)],
        mode=lambda outputs: small[chooser.mode(outputs)],
        log_prob=log_prob,
        entropy=chooser.entropy,
        kl=chooser.kl,
    )


def log_prob_of_few(small: Any, large: Policy, outputs: Any) -> chex.Array:
    """Returns the log-probability of each of the actions `small`, int [S, F], under `large` at its `outputs` [..., P]:
    [..., S]."""

    def one(action: chex.Array) -> chex.Array:
        return large.log_prob(outputs, jnp.broadcast_to(action, (*outputs.shape[:-1], len(action))))

    return jax.vmap(one, out_axes=-1)(jnp.asarray(small, jnp.int32))


def kl_from_few(small: Any, large: Policy, p: Any, q: Any, masked: bool) -> chex.Array:
    """Returns KL(pi_1 || pi_2), [...] in nats.

    pi_1 is the policy of `few_actions` at outputs p [..., S], and pi_2 is `large` at outputs q [..., P]. The sum is
    over the small actions alone, since pi_1 gives all others no probability. If `masked`, pi_2 is first conditioned on
    its action being a small one.
    """
    log_p, log_q = jax.nn.log_softmax(p), log_prob_of_few(small, large, q)
    return jnp.sum(jnp.exp(log_p) * (log_p - (jax.nn.log_softmax(log_q) if masked else log_q)), axis=-1)


class Agents(nn.Module):
    """The network of all agents' policies and values, which share one body or have a body each.

    A body is a torso and, if there is one, the LSTM. In the curriculum of architectures the LSTM is a part of the last
    agent's head instead.
    """

    config: Any  # with the fields curriculum, shared_body, lstm_size, torso, hidden_sizes, activation and dtype
    policies: tuple[Policy, ...]
    num_experts: int  # heads of the first agent: one for each task in the curriculum of tasks, else 1

    def initial_states(self, batch: int) -> tuple[LSTMState, ...]:
        """Returns the states of all LSTMs before an episode."""
        c = self.config
        number = 1 if c.shared_body or c.curriculum == "architectures" else len(self.policies)
        state = LSTM(max(c.lstm_size, 1), parent=None).initial_state(batch)
        return (state,) * (number if c.lstm_size else 0)

    @nn.compact
    def __call__(self, observation: chex.Array, first: chex.Array, lstm: Any, task: Any) -> tuple[Any, Any, Any]:
        """Maps observations [T, B, ...], `first` bool [T, B], the LSTMs' states, and tasks int32 [B] or None to each
        agent's outputs [T, B, P], values [K, T, B] and the LSTMs' new states."""
        c, (rows, batch) = self.config, observation.shape[:2]
        dtype: Any = jnp.dtype(c.dtype)
        before, after, last = iter(lstm), [], c.curriculum == "architectures"

        def body() -> chex.Array:
            torso = make_torso(c.torso, c.hidden_sizes, c.activation, dtype)
            x = torso(observation.reshape(rows * batch, *observation.shape[2:])).reshape(rows, batch, -1)
            if c.lstm_size and not last:
                state, x = LSTM(c.lstm_size, dtype)(next(before), x, first)
                after.append(state)
            return x

        shared = body() if c.shared_body else None
        all_outputs, all_values = [], []
        for i, policy in enumerate(self.policies, start=1):
            x = shared if c.shared_body else body()
            experts = self.num_experts if i == 1 else 1
            size = c.lstm_size if last and i == len(self.policies) else 0
            heads = []
            for n in range(experts):
                name = f"agent_{i}_task_{n}" if experts > 1 else f"agent_{i}"
                # A head has no hidden layers of its own, because the body has them.
                options: Any = {"lstm_size": size, "dtype": dtype if size else jnp.float32, "name": name}
                head = ActorCritic("mlp", policy.num_outputs, (), num_free=policy.num_free, **options)
                *head_outputs, state = head(x, first, next(before) if size else ())
                heads.append(head_outputs)
                after += [state] if size else []
            outputs, value = heads[0]
            if experts > 1:  # the head of each environment's task
                outputs, value = (jnp.stack(x)[task, :, jnp.arange(batch)].swapaxes(0, 1) for x in zip(*heads))
            all_outputs.append(outputs)
            all_values.append(value)
        return tuple(all_outputs), jnp.stack(all_values), tuple(after)
