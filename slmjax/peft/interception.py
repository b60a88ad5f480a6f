"""The added computation: what each module does when the `peft` collection holds something for it.

The model's files know nothing of this. `applied` runs a network under an interceptor that looks, at each module's call,
for arrays of the collection at the module's own path; the layer scan slices them as it slices the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from slmjax.models.linear import Linear
from slmjax.models.transformer import Transformer
from slmjax.peft.lora import column_norm


@dataclass(frozen=True)
class Options:
    """What the arrays do not say."""

    dropout: float = 0.0


def applied(
    model: Transformer, variables: Any, *args: Any, options: Options, rng: jax.Array | None = None, **kwargs: Any
) -> Any:
    """`model.apply` with what was added. rng: for dropout; None: no dropout."""
    rngs = {"dropout": rng} if rng is not None and options.dropout else {}
    if not variables.get("peft"):
        return model.apply(variables, *args, rngs=rngs, **kwargs)
    with nn.intercept_methods(_interceptor(options)):
        return model.apply(variables, *args, rngs=rngs, **kwargs)


def _interceptor(options: Options) -> Callable[..., Any]:
    def intercept(next_fun, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        if isinstance(module, Linear):
            return _linear(options, module, next_fun, *args)
        return next_fun(*args, **kwargs)

    return intercept


def _added(module: nn.Module, *names: str) -> dict[str, jax.Array]:
    """The module's arrays of these names, those that there are."""
    return {name: module.get_variable("peft", name) for name in names if module.has_variable("peft", name)}


def _linear(options: Options, module: Linear, next_fun: Callable, x: jax.Array) -> jax.Array:
    y = next_fun(x)
    lora = _added(module, "lora_a", "lora_b", "lora_scale", "dora_magnitude")
    return _lora(options, module, lora, x, y) if lora else y


def _lora(options: Options, module: Linear, lora: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """y + s drop(x) A B; with DoRA, both without the bias and times m / norm, where the norm is detached."""
    x = x.astype(module.dtype)
    if options.dropout and module.has_rng("dropout"):
        kept = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - options.dropout, x.shape)
        x = jnp.where(kept, x / (1.0 - options.dropout), 0.0)
    a, b = lora["lora_a"].astype(module.dtype), lora["lora_b"].astype(module.dtype)
    scale = lora["lora_scale"].astype(module.dtype)
    flat = x.reshape(-1, x.shape[-1]) if module.flatten_tokens else x
    term = ((flat @ a) * scale @ b).reshape(y.shape)
    if "dora_magnitude" not in lora:
        return y + term
    weight = module.get_variable("params", "kernel").astype(jnp.float32)
    product = lora["lora_a"] @ lora["lora_b"]
    norm = jax.lax.stop_gradient(column_norm(weight + lora["lora_scale"] * product))
    factor = jnp.where(lora["lora_scale"] == 0.0, 1.0, lora["dora_magnitude"] / norm).astype(module.dtype)
    bias = module.get_variable("params", "bias").astype(module.dtype) if module.use_bias else 0.0
    return (y - bias + term) * factor + bias
