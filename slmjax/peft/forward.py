"""The forward pass of a network with what is added: what each module does when the `peft` collection has its arrays.

The model's files know nothing of this. `forward` runs a network under an interceptor that looks, at each module's call,
for arrays of the collection at the module's own path; the layer scan slices them as it slices the parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from slmjax.models.activations import ACTIVATIONS
from slmjax.models.attention.layer import Attention
from slmjax.models.feedforward import FeedForward
from slmjax.models.kv_cache import KVCache
from slmjax.models.linear import Linear
from slmjax.models.transformer import Transformer
from slmjax.peft.methods.lora import column_norm
from slmjax.peft.options import PLAIN, Options
from slmjax.peft.prefix_cache import prefix_length
from slmjax.quantization.weights import KINDS, dequantize_kernel, is_quantized


@dataclass(frozen=True)
class Network:
    """What is run, without its arrays: those are `variables`, the collections that `forward` takes."""

    model: Transformer
    options: Options = PLAIN


def forward(
    network: Network,
    variables: Any,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    cache: KVCache | None = None,
    *,
    hidden: bool = False,
    rng: jax.Array | None = None,
) -> Any:
    """`model.apply` (see `Transformer`) with what was added. rng: for dropout and noise; None: neither.

    Positions are those of the text alone; behind a prefix of n they are moved on by n. A cache must have come from
    `prefix_cache.start_cache`.
    """
    model, options = network.model, network.options
    if options.neftune and rng is not None:
        model = _noisy(model, options.neftune, segments_BT, jax.random.fold_in(rng, 1))
    inputs, method = (tokens_BT, positions_BT, segments_BT, cache), "hidden" if hidden else "logits"
    added = variables.get("peft", {})
    if not added and not is_quantized(variables["params"]):
        output, new_cache = cast(Any, model.apply(variables, *inputs, method=method))
        return output if cache is None else (output, new_cache)
    if n := prefix_length(added):
        if positions_BT is not None:
            positions_BT = positions_BT + n
        elif cache is None:  # a cache's index counts the prefix already
            positions_BT = jnp.broadcast_to(jnp.arange(n, n + tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
        inputs = (tokens_BT, positions_BT, segments_BT, cache)
    # A feed-forward that is run from its weights never calls the products that something is added to.
    model = model.clone(execution=dataclasses.replace(model.execution, feedforward=None))
    rngs = {"dropout": rng} if rng is not None and options.dropout else {}
    with nn.intercept_methods(_interceptor(options)):
        output, new_cache = cast(Any, model.apply(variables, *inputs, rngs=rngs, method=method))
    return output if cache is None else (output, new_cache)


def _noisy(model: Transformer, alpha: float, segments_BT: jax.Array | None, rng: jax.Array) -> Transformer:
    """The network with NEFTune's noise on its embeddings (Jain et al. 2023, arXiv:2310.05914, algorithm 1).

    Uniform in +-alpha / sqrt(L D) for an example of L tokens: in a packed row each document has its own L, and padding
    has no noise. Where a family multiplies its embeddings (Gemma), the noise is multiplied with them.
    """
    constrain = model.execution.constrain

    def with_noise(x: jax.Array, name: str) -> jax.Array:
        if name != "embedding":
            return constrain(x, name)
        B, T, D = x.shape
        segments = jnp.ones((B, T), jnp.int32) if segments_BT is None else segments_BT
        counts = jnp.zeros((B, T + 1), jnp.int32).at[jnp.arange(B)[:, None], segments].add(1)
        lengths_BT = jnp.take_along_axis(counts, segments, axis=1)
        scale_BT = alpha * model.config.embedding_multiplier / jnp.sqrt(lengths_BT * float(D))
        noise = jax.random.uniform(rng, x.shape, jnp.float32, -1.0, 1.0)
        return constrain(x + (noise * jnp.where(segments > 0, scale_BT, 0.0)[..., None]).astype(x.dtype), name)

    return model.clone(execution=dataclasses.replace(model.execution, constrain=with_noise))


def _interceptor(options: Options) -> Callable[..., Any]:
    def intercept(next_fun, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        if isinstance(module, Linear):
            return _linear(options, module, next_fun, *args)
        if isinstance(module, Attention):
            prefix = _arrays(module, "prefix_key", "prefix_value")
            if prefix:
                kwargs = kwargs | {"prefix": (prefix["prefix_key"], prefix["prefix_value"])}
            y, cache = next_fun(*args, **kwargs)
            return _adapter(options, module, args[0], y), cache
        if isinstance(module, FeedForward):
            return _adapter(options, module, args[0], next_fun(*args, **kwargs))
        return next_fun(*args, **kwargs)

    return intercept


def _arrays(module: nn.Module, *names: str) -> dict[str, jax.Array]:
    """The module's arrays of these names, those that there are."""
    return {name: module.get_variable("peft", name) for name in names if module.has_variable("peft", name)}


def _linear(options: Options, module: Linear, next_fun: Callable, x: jax.Array) -> jax.Array:
    factors = _arrays(module, "ia3_input", "ia3_output")
    if "ia3_input" in factors:
        x = x * factors["ia3_input"].astype(x.dtype)
    y = next_fun(x) if module.has_variable("params", "kernel") else _quantized_linear(module, x)
    if "ia3_output" in factors:
        y = y * factors["ia3_output"].astype(y.dtype)
    lora = _arrays(module, "lora_a", "lora_b", "lora_scale", "dora_magnitude")
    return _lora(options, module, lora, x, y) if lora else y


def _kernel(module: Linear, dtype: Any) -> jax.Array:
    """The weight of a product, whole whichever way it is held."""
    if module.has_variable("params", "kernel"):
        kernel: jax.Array = module.get_variable("params", "kernel").astype(dtype)
        return kernel.T if module.is_transposed else kernel
    return dequantize_kernel(_stored_kernel(module), dtype)


def _stored_kernel(module: Linear) -> dict[str, jax.Array]:
    names = ("kernel_scale", *(f"kernel_{kind}" for kind in KINDS))
    return {name: module.get_variable("params", name) for name in names if module.has_variable("params", name)}


def _quantized_linear(module: Linear, x: jax.Array) -> jax.Array:
    """`Linear` with a quantized kernel, which the backward pass makes whole once more rather than keep."""

    def product(x, held):
        return x @ dequantize_kernel(held, module.dtype)

    flat = x.astype(module.dtype)
    flat = flat.reshape(-1, x.shape[-1]) if module.flatten_tokens else flat
    y = jax.checkpoint(product)(flat, _stored_kernel(module)).reshape(*x.shape[:-1], module.features)
    return y + module.get_variable("params", "bias").astype(module.dtype) if module.use_bias else y


def _lora(options: Options, module: Linear, lora: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """y + s drop(x) A B; with DoRA, both without the bias and times m / norm, where the norm is detached."""
    x = x.astype(module.dtype)
    if options.dropout and module.has_rng("dropout"):
        kept = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - options.dropout, x.shape)
        x = jnp.where(kept, x / (1.0 - options.dropout), 0.0)
    a, b = lora["lora_a"].astype(module.dtype), lora["lora_b"].astype(module.dtype)
    flat = x.reshape(-1, x.shape[-1]) if module.flatten_tokens else x
    term = ((flat @ a) * lora["lora_scale"].astype(module.dtype) @ b).reshape(y.shape)
    if "dora_magnitude" not in lora:
        return y + term
    weight = _kernel(module, jnp.float32)
    change = lora["lora_scale"][..., None, None] * (lora["lora_a"] @ lora["lora_b"])
    norm = jax.lax.stop_gradient(column_norm(weight + change))
    factor = jnp.where(lora["lora_scale"][..., None] == 0.0, 1.0, lora["dora_magnitude"] / norm).astype(module.dtype)
    bias = module.get_variable("params", "bias").astype(module.dtype) if module.use_bias else 0.0
    return (y - bias + term) * factor + bias


def _adapter(options: Options, module: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """y + s up(act(down(y))), or of x where the adapter is parallel to the sub-layer."""
    names = ("adapter_down", "adapter_down_bias", "adapter_up", "adapter_up_bias")
    adapter = {name: leaf.astype(y.dtype) for name, leaf in _arrays(module, *names).items()}
    if not adapter:
        return y
    h = (x if options.parallel else y).astype(y.dtype) @ adapter["adapter_down"] + adapter["adapter_down_bias"]
    h = ACTIVATIONS[options.activation](h) @ adapter["adapter_up"] + adapter["adapter_up_bias"]
    return y + options.scale * h
