"""The one network: embedding, segments of scanned blocks, final norm, head. A pure function of plain nested dicts."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from slmjax.models.attention import Attention
from slmjax.models.config import LayerSpec, ModelConfig, Segment
from slmjax.models.embedding import Table, lookup
from slmjax.models.execution import REMAT_POLICIES, Execution
from slmjax.models.feedforward import FeedForward
from slmjax.models.kv_cache import KVCache
from slmjax.models.linear import Linear, normal_init
from slmjax.models.normalization import block_norm
from slmjax.models.positions import RopeTable, rope_table


class Block(nn.Module):
    """One layer: attention and feed-forward around the residual stream, norms where the family puts them."""

    config: ModelConfig
    spec: LayerSpec
    execution: Execution

    @nn.compact
    def __call__(self, x_BTD, ropes, q_segments, kv_segments, cache, index):
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
            y, cache = attention(n1, ropes, q_segments, kv_segments, cache, index)
            return add(x_BTD, y + feedforward(n2)), cache

        before = c.norm_placement in ("pre", "sandwich")
        after = c.norm_placement in ("output", "sandwich")
        y = norm("attention_norm", x_BTD) if before else x_BTD
        y, cache = attention(y, ropes, q_segments, kv_segments, cache, index)
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
    def __call__(self, x_BTD, caches, ropes, q_segments, kv_segments, index):
        new_caches = []
        for j, spec in enumerate(self.specs):
            block = Block(self.config, spec, self.execution, name=f"block_{j}")
            repeats = []
            for r in range(self.config.block_repeats):
                cache = None if caches is None else caches[j][r]
                x_BTD, cache = block(x_BTD, ropes, q_segments, kv_segments, cache, index)
                repeats.append(cache)
            new_caches.append(tuple(repeats))
        return x_BTD, (None if caches is None else tuple(new_caches))


def _segment(config: ModelConfig, segment: Segment, execution: Execution, name: str):
    """`Period` scanned over the leading axis of its parameters (and caches), rematerialized by the named policy."""
    body = Period
    policy = REMAT_POLICIES[execution.remat]
    if policy is not None:
        # The scan's own loop keeps XLA from merging the recomputation with the forward pass.
        body = nn.remat(Period, policy=policy, prevent_cse=execution.scan_unroll != 1)
    scan = nn.scan(
        body,
        variable_axes={"params": 0, "peft": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
        out_axes=0,
        length=segment.repeats,
        unroll=execution.scan_unroll or segment.repeats,
    )
    return scan(config, segment.period, execution, name=name)


class Transformer(nn.Module):
    """Decoder-only language model.

    `init(key, tokens)["params"]` is float32. `apply` returns float32 logits [B, T, V], or with `hidden=True` what the
    head multiplies ([B, T, D] after the final norm, compute dtype), for losses that never materialize the logits.
    """

    config: ModelConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        cache: KVCache | None = None,
        *,
        hidden: bool = False,
    ) -> Any:
        """Run the network on int32 tokens [B, T]; ids must lie in [0, V).

        positions_BT: int32, restart at 0 in each document; None: 0..T-1. segments_BT: int32 document numbers, tokens
        attend within their own; None: one document a row. With a cache, segment 0 marks padding, and the result is a
        pair (logits or hidden, new cache).
        """
        c, run = self.config, self.execution
        B, T = tokens_BT.shape
        index: jax.Array | None = None  # stays None through the scan, so that kernels know the sequence is whole
        kv_segments_BS = segments_BT
        if cache is not None:
            segments_BT = jnp.ones((B, T), jnp.int32) if segments_BT is None else segments_BT
            index = cache.index
            kv_segments_BS = jax.lax.dynamic_update_slice(cache.segments_BS, segments_BT, (0, index))
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32) + (0 if index is None else index), (B, T))

        E = c.embedding_projection_dim or c.embed_dim
        project = c.embed_dim != E
        table_VE = Table(c.vocab_size, E, c.init_std, name="embedder")()
        x_BTD = lookup(table_VE, tokens_BT, run)
        if c.embedding_multiplier != 1.0:
            x_BTD = x_BTD * jnp.asarray(c.embedding_multiplier, run.dtype)
        if project:
            x_BTD = Linear(c.embed_dim, dtype=run.dtype, init_std=c.init_std, name="embed_in_proj")(x_BTD)
        if c.position == "learned":
            rows = c.context_length + c.position_offset
            positions = Table(rows, c.embed_dim, c.init_std, name="position_embedder")()
            x_BTD += lookup(positions, positions_BT + c.position_offset, run)
        if c.embedding_norm:
            x_BTD = block_norm(c, run.dtype, "embed_norm")(x_BTD)
        x_BTD = run.constrain(x_BTD, "residual")

        # Computed once here and not in each layer: the scan then takes them as constants.
        ropes: tuple[RopeTable, ...] = tuple(
            rope_table(positions_BT, c.rotary_dim, theta, scaling) for theta, scaling in c.ropes
        )
        caches = []
        for s, segment in enumerate(c.segments):
            scan = _segment(c, segment, run, f"segment_{s}")
            layers = None if cache is None else cache.layers[s]
            x_BTD, layers = scan(x_BTD, layers, ropes, segments_BT, kv_segments_BS, index)
            caches.append(layers)

        if c.final_norm:
            x_BTD = block_norm(c, run.dtype, "final_norm")(x_BTD)
        if project:
            x_BTD = Linear(E, dtype=run.dtype, init_std=c.init_std, name="embed_out_proj")(x_BTD)
        kernel_EV, bias_V = table_VE.T, None
        if not c.tie_embeddings or c.head_bias:
            own_kernel, bias_V = Head(c, E, name="lm_head")()
            kernel_EV = kernel_EV if own_kernel is None else own_kernel
        output = x_BTD if hidden else logits_from_hidden(c, x_BTD, kernel_EV, bias_V)
        if cache is None or index is None or kv_segments_BS is None:
            return output
        return output, KVCache(tuple(caches), kv_segments_BS, index + T)


class Head(nn.Module):
    """The output head's own parameters: `kernel` [E, V] unless tied, `bias` [V] where the family has one."""

    config: ModelConfig
    dim: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array | None, jax.Array | None]:
        c = self.config
        kernel = None
        if not c.tie_embeddings:
            kernel = self.param("kernel", normal_init(c.init_std), (self.dim, c.vocab_size), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,), jnp.float32) if c.head_bias else None
        return kernel, bias


def head_weights(config: ModelConfig, params: dict) -> tuple[jax.Array, jax.Array | None]:
    """(kernel [E, V], bias [V] or None) of the output head in a params dict, the embedding's transpose when tied."""
    head = params.get("lm_head", {})
    kernel = params["embedder"]["embedding"].T if config.tie_embeddings else head["kernel"]
    return kernel, head.get("bias")


def scale_logits(config: ModelConfig, logits: jax.Array) -> jax.Array:
    """The family's last steps on float32 logits: divisor (MiniCPM, Granite), then soft cap (Gemma-2)."""
    if config.logit_divisor != 1.0:
        logits = logits / config.logit_divisor
    if config.logit_softcap is not None:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return logits


def logits_from_hidden(
    config: ModelConfig, x_BTE: jax.Array, kernel_EV: jax.Array, bias_V: jax.Array | None
) -> jax.Array:
    """float32 logits [B, T, V] of hidden states [B, T, E]."""
    logits = jnp.matmul(x_BTE, kernel_EV.astype(x_BTE.dtype), preferred_element_type=jnp.float32)
    if bias_V is not None:
        logits = logits + bias_V
    return scale_logits(config, logits)
