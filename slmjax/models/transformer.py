"""The one network: embedding, segments of scanned blocks, final norm, head. A pure function of plain nested dicts."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from slmjax.models.attention.layer import Attention, Context
from slmjax.models.config import LayerSpec, ModelConfig, Segment
from slmjax.models.embedding import Table, lookup
from slmjax.models.execution import REMAT_POLICIES, Execution
from slmjax.models.feedforward import FeedForward
from slmjax.models.kv_cache import KVCache, LayerCache
from slmjax.models.linear import Linear, normal_init, transposed_product
from slmjax.models.normalization import block_norm
from slmjax.models.parameters import Params
from slmjax.models.positions import rope_table
from slmjax.models.unstacked import apply_unstacked

HeadWeights = tuple[jax.Array, jax.Array | None]  # kernel [E, V], bias [V]


class Block(nn.Module):
    """One layer: attention and feed-forward around the residual stream, norms where the family puts them."""

    config: ModelConfig
    spec: LayerSpec
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: LayerCache | None, repeat: jax.Array | None
    ) -> tuple[jax.Array, LayerCache | None]:
        c, run = self.config, self.execution
        attention = Attention(c, self.spec, run, name="attention")
        feedforward = FeedForward(c, self.spec.ffn_dim, run, name="feedforward")

        def norm(name, x):
            return block_norm(c, run.dtype, name)(x)

        def add(x, y):
            y = y * c.residual_multiplier if c.residual_multiplier != 1.0 else y
            return run.constrain(x + y.astype(x.dtype), "residual")

        if c.parallel_residual:
            n1 = norm("attention_norm", x_BTD)
            n2 = n1 if c.shared_norm else norm("ffn_norm", x_BTD)
            y, cache = attention(n1, context, cache, repeat)
            return add(x_BTD, y + feedforward(n2)), cache

        before = c.norm_placement in ("pre", "sandwich")
        after = c.norm_placement in ("output", "sandwich")
        y = norm("attention_norm", x_BTD) if before else x_BTD
        y, cache = attention(y, context, cache, repeat)
        y = norm("post_attention_norm", y) if after else y
        x_BTD = add(x_BTD, y)
        x_BTD = norm("attention_norm", x_BTD) if c.norm_placement == "post" else x_BTD
        y = norm("ffn_norm", x_BTD) if before else x_BTD
        y = feedforward(y)
        y = norm("post_ffn_norm", y) if after else y
        x_BTD = add(x_BTD, y)
        x_BTD = norm("ffn_norm", x_BTD) if c.norm_placement == "post" else x_BTD
        return x_BTD, cache


class Period(nn.Module):
    """The layers that a segment repeats; the body of the scan."""

    config: ModelConfig
    specs: tuple[LayerSpec, ...]
    execution: Execution

    @nn.compact
    def __call__(self, carry: tuple[jax.Array, Any], repeat: jax.Array | None, context: Context) -> tuple[Any, None]:
        x_BTD, caches = carry
        new_caches = []
        for j, spec in enumerate(self.specs):
            block = Block(self.config, spec, self.execution, name=f"block_{j}")
            repeats = []
            for r in range(self.config.block_repeats):
                cache = None if caches is None else caches[j][r]
                x_BTD, cache = block(x_BTD, context, cache, repeat)
                repeats.append(cache)
            new_caches.append(tuple(repeats))
        return (x_BTD, None if caches is None else tuple(new_caches)), None


def _segment(config: ModelConfig, segment: Segment, execution: Execution, name: str):
    """`Period` scanned over the leading axis of its parameters, rematerialized by the named policy.

    Caches are carried whole, so that each layer writes its new positions in place.
    """
    body = Period
    policy = REMAT_POLICIES[execution.remat]
    if policy is not None:
        # The scan's own loop keeps XLA from merging the recomputation with the forward pass.
        body = nn.remat(Period, policy=policy, prevent_cse=execution.scan_unroll != 1)
    scan = nn.scan(
        body,
        variable_axes={"params": 0, "peft": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),
        out_axes=0,
        length=segment.repeats,
        unroll=execution.scan_unroll or segment.repeats,
    )
    return scan(config, segment.period, execution, name=name)


class Transformer(nn.Module):
    """Decoder-only language model.

    `init(key, tokens)["params"]` is float32; `apply(variables, tokens)` gives logits. `hidden` and `logits` are run by
    `apply(..., method="hidden")` and also take a cache. Tokens are int32 [B, T]; ids must lie in [0, V).
    positions_BT: int32, restart at 0 in each document; None: 0..T-1. segments_BT: int32 document numbers, tokens attend
    within their own; None: one document a row. With a cache, segment 0 marks padding.
    """

    config: ModelConfig
    execution: Execution = Execution()

    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array | None = None, segments_BT: jax.Array | None = None
    ) -> jax.Array:
        """float32 logits [B, T, V]."""
        return self.logits(tokens_BT, positions_BT, segments_BT)[0]

    def logits(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """float32 logits [B, T, V], and the cache with these tokens (None without one)."""
        x_BTE, head, cache = self._run(tokens_BT, positions_BT, segments_BT, cache)
        return logits_from_hidden(self.config, x_BTE, *head, transposed=not self.execution.is_stacked), cache

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Hidden states for the head, [B, T, E] after the final norm in the compute dtype, and the cache (None: none).

        They are for losses that never materialize the logits, and for generation, which needs those of one position.
        """
        x_BTE, _, cache = self._run(tokens_BT, positions_BT, segments_BT, cache)
        return x_BTE, cache

    @nn.compact
    def _run(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None,
        segments_BT: jax.Array | None,
        cache: KVCache | None,
    ) -> tuple[jax.Array, HeadWeights, KVCache | None]:
        c, run = self.config, self.execution
        B, T = tokens_BT.shape
        index: jax.Array | None = None  # stays None through the scan, so that kernels know the sequence is whole
        distances_BTS = None if cache is None else cache.distances_BTS
        if cache is not None and distances_BTS is not None:
            index, filled_BS = jnp.asarray(cache.index), cache.segments_BS
        elif cache is not None:
            segments_BT = jnp.ones((B, T), jnp.int32) if segments_BT is None else segments_BT
            filled_BS = jax.lax.dynamic_update_slice(cache.segments_BS, segments_BT, (0, cache.index))
            empty = isinstance(cache.index, int) and cache.index == 0
            index = None if empty else jnp.asarray(cache.index)
        kv_segments_BS = segments_BT if index is None else filled_BS
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32) + (0 if index is None else index), (B, T))

        table_VE = Table(c.vocab_size, c.table_dim, c.init_std, name="embedder")()
        x_BTD = self._embed(table_VE, tokens_BT, positions_BT)
        # Computed once here and not in each layer: the scan then takes them as constants.
        ropes = tuple(rope_table(positions_BT, c.rotary_dim, theta, scaling) for theta, scaling in c.ropes)
        context = Context(ropes, segments_BT, kv_segments_BS, index, distances_BTS)
        caches = []
        for s, segment in enumerate(c.segments):
            name, layers = f"segment_{s}", None if cache is None else cache.layers[s]
            if run.is_stacked:
                repeats = None if cache is None else jnp.arange(segment.repeats)
                (x_BTD, layers), _ = _segment(c, segment, run, name)((x_BTD, layers), repeats, context)
            else:
                period = Period(c, segment.period, run, parent=None)
                variables: dict[str, Any] = {kind: self.get_variable(kind, name) for kind in ("params", "peft")}
                if variables["peft"] is not None and run.layout == "fused":
                    raise ValueError("What is added finds products by name: layout 'fused' has none for it.")
                x_BTD, layers = apply_unstacked(period, variables, x_BTD, layers, context)
            caches.append(layers)

        if c.final_norm:
            x_BTD = block_norm(c, run.dtype, "final_norm")(x_BTD)
        if c.table_dim != c.embed_dim:
            x_BTD = self._projection(c.table_dim, "embed_out_proj")(x_BTD)
        kernel_EV, bias_V = table_VE.T, None
        if not c.tie_embeddings or c.head_bias:
            own_kernel, bias_V = Head(c, run, name="lm_head")()
            kernel_EV = kernel_EV if own_kernel is None else own_kernel
        if cache is not None:
            cache = KVCache(tuple(caches), filled_BS, jnp.asarray(cache.index + T))
        return x_BTD, (kernel_EV, bias_V), cache

    def _embed(self, table_VE: jax.Array, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """The first residual, [B, T, D]."""
        c, run = self.config, self.execution
        x_BTD = lookup(table_VE, tokens_BT, run)
        if c.embedding_multiplier != 1.0:
            x_BTD = x_BTD * jnp.asarray(c.embedding_multiplier, run.dtype)
        if c.table_dim != c.embed_dim:
            x_BTD = self._projection(c.embed_dim, "embed_in_proj")(x_BTD)
        if c.position == "learned":
            rows = c.context_length + c.position_offset
            positions = Table(rows, c.embed_dim, c.init_std, name="position_embedder")()
            x_BTD += lookup(positions, positions_BT + c.position_offset, run)
        if c.embedding_norm:
            x_BTD = block_norm(c, run.dtype, "embed_norm")(x_BTD)
        return run.constrain(x_BTD, "embedding")

    def _projection(self, features: int, name: str) -> Linear:
        """Between the widths of the table and of the residual; never on flattened tokens, as it was trained so far."""
        unflattened = dataclasses.replace(self.execution, flatten_tokens=False)
        return Linear(features, unflattened, init_std=self.config.init_std, name=name)


class Head(nn.Module):
    """The output head's own parameters: `kernel` [E, V] unless tied, `bias` [V] where the family has one.

    In the layouts of decoding the kernel is held as [V, E], and returned transposed.
    """

    config: ModelConfig
    execution: Execution

    @nn.compact
    def __call__(self) -> tuple[jax.Array | None, jax.Array | None]:
        c, stacked = self.config, self.execution.is_stacked
        kernel = None
        if not c.tie_embeddings:
            shape = (c.table_dim, c.vocab_size) if stacked else (c.vocab_size, c.table_dim)
            kernel = self.param("kernel", normal_init(c.init_std), shape, jnp.float32)
            kernel = kernel if stacked else kernel.T
        bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,), jnp.float32) if c.head_bias else None
        return kernel, bias


def head_weights(config: ModelConfig, params: Params, layout: str = "stacked") -> HeadWeights:
    """(kernel [E, V], bias [V] or None) of the output head in a params dict, the embedding's transpose when tied.

    layout: of the parameters (see `Execution`).
    """
    head = params.get("lm_head", {})
    if config.tie_embeddings:
        return params["embedder"]["embedding"].T, head.get("bias")
    return head["kernel"] if layout == "stacked" else head["kernel"].T, head.get("bias")


def apply_head(model: Transformer, params: Params, x_BTE: jax.Array) -> jax.Array:
    """float32 logits [B, T, V] of what `Transformer.hidden` gave, whatever the model's layout."""
    head = head_weights(model.config, params, model.execution.layout)
    return logits_from_hidden(model.config, x_BTE, *head, transposed=not model.execution.is_stacked)


def scale_logits(config: ModelConfig, logits: jax.Array) -> jax.Array:
    """The family's last steps on float32 logits: divisor (MiniCPM, Granite), then soft cap (Gemma-2)."""
    if config.logit_divisor != 1.0:
        logits = logits / config.logit_divisor
    if config.logit_softcap is not None:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return logits


def logits_from_hidden(
    config: ModelConfig, x_BTE: jax.Array, kernel_EV: jax.Array, bias_V: jax.Array | None, *, transposed: bool = False
) -> jax.Array:
    """float32 logits [B, T, V] of hidden states [B, T, E]. transposed: the kernel lies in memory as [V, E]."""
    kernel_EV = kernel_EV.astype(x_BTE.dtype)
    if transposed:
        logits = transposed_product(x_BTE, kernel_EV.T).astype(jnp.float32)
    else:
        logits = jnp.matmul(x_BTE, kernel_EV, preferred_element_type=jnp.float32)
    if bias_V is not None:
        logits = logits + bias_V
    return scale_logits(config, logits)
