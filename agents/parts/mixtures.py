"""Mixtures of policies, and policies over a few of another's actions (Czarnecki et al. 2018,
https://arxiv.org/abs/1806.01780).

K policies, S a few of the actions, F factors of each, P outputs of the larger policy.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from agents.parts.policies import Policy, softmax


def weights(alpha: Any, K: int) -> chex.Array:
    """w_1 .. w_K, float32 [K]: alpha from 0 to 1 moves all weight from the first agent to the next, and so to the last.

    No more than two are above 0, and at a multiple of 1 / (K - 1) exactly one is, and is exactly 1.
    """
    return jnp.maximum(0.0, 1.0 - jnp.abs(jnp.clip(alpha, 0.0, 1.0) * (K - 1) - jnp.arange(K)))


def mixture_log_prob(w: chex.Array, log_probs: chex.Array) -> chex.Array:
    """log sum_i w_i exp(log_probs_i): [K], [K, ...] -> [...].

    A weight may be 0 and a log-probability -inf; such an agent has exactly no part in the sum and gets no gradient.
    Where there is no other, the result is -inf, a constant.
    """
    w = w.reshape(-1, *(1,) * (log_probs.ndim - 1))
    possible = (w > 0) & (log_probs > -jnp.inf)
    # Twice: a gradient of 0 times one of infinity is no number, so what is not chosen must be finite too.
    terms = jnp.log(jnp.where(possible, w, 1.0)) + jnp.where(possible, log_probs, 0.0)
    anyone = possible.any(axis=0)
    terms = jnp.where(possible, terms, jnp.where(anyone, -jnp.inf, 0.0))
    return jnp.where(anyone, jax.nn.logsumexp(terms, axis=0), -jnp.inf)


def few_actions(small: Any, large: Policy) -> Policy:
    """The softmax over `small`, int [S, F], actions of `large`. Raw actions are those of `large`; one that is none of
    the small ones has the log-probability -inf."""
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
    """log pi of each of `small`, int [S, F], by the `outputs` [..., P] of `large`: [..., S]."""

    def one(action: chex.Array) -> chex.Array:
        return large.log_prob(outputs, jnp.broadcast_to(action, (*outputs.shape[:-1], len(action))))

    return jax.vmap(one, out_axes=-1)(jnp.asarray(small, jnp.int32))


def kl_from_few(small: Any, large: Policy, p: Any, q: Any, masked: bool) -> chex.Array:
    """KL(pi_1 || pi_2), [...] in nats: pi_1 by outputs p [..., S] of `few_actions`, pi_2 by outputs q of `large`.

    A sum over the small actions, since pi_1 gives the others no probability. Masked: from pi_2 given that its action is
    a small one.
    """
    log_p, log_q = jax.nn.log_softmax(p), log_prob_of_few(small, large, q)
    return jnp.sum(jnp.exp(log_p) * (log_p - (jax.nn.log_softmax(log_q) if masked else log_q)), axis=-1)
