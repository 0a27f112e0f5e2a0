"""Mixtures of policies, and policies over a few of another policy's actions (Czarnecki et al. 2018,
https://arxiv.org/abs/1806.01780).

Sizes: K policies, S actions of the small policy, F factors of each action, P outputs of the large policy.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from agents.parts.policies import Policy, softmax


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
