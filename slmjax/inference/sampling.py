"""Sampling of the next token from logits."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from slmjax.errors import UserError, shown
from slmjax.field_types import MAX_INTEGER, check_fields


@dataclass(frozen=True)
class Sampling:
    """Settings by which a token is drawn, applied in transformers' order: penalty, temperature, top-k, top-p, min-p."""

    temperature: float = 0.0  # 0: the most likely token
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0  # least probability of a token, as a share of the most likely one's
    repetition_penalty: float = 1.0  # of every token that the prompt or the continuation holds already

    def __post_init__(self):
        check_fields(Sampling, vars(self), "The setting ")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"The setting temperature={self.temperature} must be 0 (greedy) or a number above it.")
        if self.top_k < 0:
            raise UserError(f"The setting top_k={self.top_k} must be 0 (off) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"The setting top_p={self.top_p} must be above 0 and at most 1.")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"The setting min_p={self.min_p} must be 0 (off) to 1.")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(f"The setting repetition_penalty={self.repetition_penalty} must be above 0 (1: off).")


GREEDY = Sampling()


def require_seed(seed: int) -> int:
    """The seed of random numbers. UserError unless it is a whole number of at most 63 bits."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or abs(int(seed)) > MAX_INTEGER:
        raise UserError(f"The setting seed={shown(seed)} must be a whole number of at most 63 bits.")
    return int(seed)


def sampling_from(sampling: Sampling | None, **settings: float | None) -> Sampling:
    """`sampling`, or one of these settings (None: the default's); UserError where both are given."""
    given = {name: value for name, value in settings.items() if value is not None}
    if sampling is None:
        return Sampling(**given)  # type: ignore[arg-type]
    if given:
        raise UserError(f"A Sampling and {next(iter(given))} are both given: put it into the Sampling.")
    return sampling


def filtered_logits(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """The logits that are drawn from, float32 [B, V]: divided by the temperature, -inf where a token is left out.

    top_k keeps what is at least as likely as the k-th (so ties stay, as in transformers). top_p keeps the smallest set
    of most likely tokens whose total reaches p (Holtzman et al. 2020, arXiv:1904.09751), at least one; of equally
    likely tokens at its edge the lower ids stay. min_p keeps what is at least min_p times as likely as the best (Nguyen
    et al. 2024, arXiv:2407.01082). The temperature must be above 0.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    # Less the maximum first: a tiny temperature then gives -inf for the others and not inf for the best.
    logits_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        kth_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
    if sampling.top_p < 1:
        order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
        probs_BV = jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1)
        # A token stays while those before it have not reached p; before the first there is nothing, so it stays.
        kept_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV < sampling.top_p
        kept_BV = jnp.take_along_axis(kept_BV, jnp.argsort(order_BV, axis=-1), axis=-1)
        logits_BV = jnp.where(kept_BV, logits_BV, -jnp.inf)
    if sampling.min_p > 0:
        likely_BV = logits_BV >= jnp.max(logits_BV, axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits_BV = jnp.where(likely_BV, logits_BV, -jnp.inf)
    return logits_BV


def penalized_logits(logits_BV: jax.Array, seen_BV: jax.Array, penalty: float) -> jax.Array:
    """Logits of tokens that were seen, made less likely: positive ones divided by the penalty, negative multiplied.

    Source: Keskar et al. 2019 (CTRL, arXiv:1909.05858, section 4.1), as transformers has it.
    """
    return jnp.where(seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def sample(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling, seen_BV: jax.Array | None = None) -> jax.Array:
    """One token a row, int32 [B], from logits [B, V]; each row has its own key and depends on no other.

    seen_BV: bool, the tokens that the row holds; needed for a repetition penalty alone.
    """
    if seen_BV is not None:
        logits_BV = penalized_logits(logits_BV, seen_BV, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys_B, filtered_logits(logits_BV, sampling)).astype(jnp.int32)
