"""Several LoRA adapters made into one: cat, linear, ties, dare, svd, with the meanings that peft gives these names.

cat is exact: the change of the weights is the weighted sum of theirs. svd is the best approximation of that sum of a
given rank. linear, ties (Yadav et al. 2023, arXiv:2306.01708) and dare (Yu et al. 2023, arXiv:2311.03099) work on A
and on B by themselves and so need equal ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.models.parameters import flatten, unflatten

METHODS = ("cat", "linear", "ties", "dare", "svd")


def combine(
    adapters: Sequence[Any],
    weights: Sequence[float],
    method: str = "cat",
    *,
    density: float = 0.5,
    rank: int = 0,
    seed: int = 0,
) -> Any:
    """One adapter from several of the same modules, each with its weight.

        lms = [slmjax.load(run, merge=False) for run in runs]  # LoRA runs on one base
        both = dataclasses.replace(lms[0], peft=combine([lm.peft for lm in lms], [0.7, 0.3]))

    Args:
        adapters: collections of LoRA, as in `LanguageModel.peft`: nested dicts of `lora_a`, `lora_b`, `lora_scale`.
        weights: one for each adapter.
        method: cat, linear, ties, dare or svd.
        density: the share of each array's numbers that ties and dare keep.
        rank: of svd's result; 0: the largest of theirs.
        seed: of what dare keeps.

    Returns:
        A collection of the same form, float32, its scales 1.

    Raises:
        UserError: the adapters are not plain LoRA, or differ in what the method needs to be equal.
    """
    if method not in METHODS:
        raise UserError(f"The combination is {method!r}; choose one of {', '.join(METHODS)}.")
    if len(adapters) != len(weights) or not adapters:
        raise UserError(f"{len(adapters)} adapters and {len(weights)} weights are given: give one weight an adapter.")
    if not 0 < density <= 1:
        raise UserError(f"density={density} must be above 0 and at most 1.")
    flats = [flatten(adapter) for adapter in adapters]
    modules = sorted({path.rpartition("/")[0] for flat in flats for path in flat})
    combined: dict[str, jax.Array] = {}
    for number, path in enumerate(modules):
        found = [_leaves(flat, path) for flat in flats]
        a, b = [x[0] for x in found], [x[1] for x in found]
        scales = [w * x[2][..., None, None] for w, x in zip(weights, found, strict=True)]
        if method == "cat":
            down = jnp.concatenate(a, axis=-1)
            up = jnp.concatenate([s * x for s, x in zip(scales, b, strict=True)], axis=-2)
        elif method == "svd":
            change = sum(s * x @ y for s, x, y in zip(scales, a, b, strict=True))
            down, up = _truncated(jnp.asarray(change), rank or max(x.shape[-1] for x in a))
        else:
            if len({x.shape for x in a}) > 1:
                raise UserError(f"The adapters differ in rank at {path}: combine them by cat or svd.")
            # sqrt, for A and B are multiplied; the sign goes to B alone.
            roots = [jnp.sqrt(jnp.abs(s)) for s in scales]
            signs = [jnp.sign(s) for s in scales]
            key = jax.random.fold_in(jax.random.key(seed), number)
            mix = _mixer(method, density, key)
            down = mix(jnp.stack(a), jnp.stack(roots), 0)
            up = mix(jnp.stack(b), jnp.stack([r * s for r, s in zip(roots, signs, strict=True)]), 1)
        one = jnp.ones(found[0][2].shape)
        combined |= {f"{path}/lora_a": down, f"{path}/lora_b": up, f"{path}/lora_scale": one}
    return unflatten(combined)


def _leaves(flat: dict[str, jax.Array], path: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    if f"{path}/dora_magnitude" in flat or f"{path}/lora_a" not in flat:
        raise UserError(f"Only plain LoRA adapters of the same modules can be combined; see {path}.")
    return flat[f"{path}/lora_a"], flat[f"{path}/lora_b"], flat[f"{path}/lora_scale"]


def _truncated(change: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    left, values, right = jnp.linalg.svd(change, full_matrices=False)
    return left[..., :rank] * values[..., None, :rank], right[..., :rank, :]


def _mixer(method: str, density: float, key: jax.Array) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """A function of arrays [adapters, ..., rows, columns], their factors and a number that tells A from B."""

    def mix(x: jax.Array, factors: jax.Array, which: int) -> jax.Array:
        if method == "linear":
            return jnp.sum(factors * x, axis=0)
        if method == "dare":
            kept = jax.random.bernoulli(jax.random.fold_in(key, which), density, x.shape)
            return jnp.sum(factors * jnp.where(kept, x / density, 0.0), axis=0)
        matrices = x.reshape(-1, x.shape[-2] * x.shape[-1])
        x = jax.vmap(partial(_largest, density))(matrices).reshape(x.shape)
        elected = jnp.where(jnp.sum(x, axis=0) >= 0, 1.0, -1.0)
        agree = (jnp.sign(x) == elected) & (x != 0)
        return jnp.sum(jnp.where(agree, factors * x, 0.0), axis=0) / jnp.maximum(jnp.sum(agree, axis=0), 1)

    return mix


def _largest(density: float, x: jax.Array) -> jax.Array:
    """x with all but the share `density` of largest magnitude set to 0."""
    _, places = jax.lax.top_k(jnp.abs(x), int(density * x.size))
    return jnp.zeros_like(x).at[places].set(x[places])
