"""Self-attention sub-layer: multi-head (Vaswani et al. 2017), multi-query, grouped-query (Ainslie et al. 2023)."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from slmjax.models.attention.cached import cached_attention
from slmjax.models.attention.contract import Mask, Scores
from slmjax.models.config import LayerSpec, ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.kv_cache import LayerCache
from slmjax.models.linear import Linear
from slmjax.models.normalization import query_key_norm
from slmjax.models.positions import RopeTable, alibi_rounding, alibi_slopes, rotate


class Context(NamedTuple):
    """The values that all layers of one call share."""

    ropes: tuple[RopeTable, ...]  # one for each of `ModelConfig.ropes`
    q_segments_BT: jax.Array | None
    kv_segments_BS: jax.Array | None
    start: jax.Array | None  # index of the first token in the cache; None: the tokens are the whole sequence
    distances_BTS: jax.Array | None = None  # see `Mask`; of all keys of the cache, its prefix included


class Attention(nn.Module):
    """Project, normalize, rotate, attend, project. With a cache, keys and values are those of the cache."""

    config: ModelConfig
    spec: LayerSpec
    execution: Execution

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        context: Context,
        cache: LayerCache | None,
        repeat: jax.Array | None = None,
        prefix: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """`repeat`: number of the layer in a stacked cache.

        `prefix`: keys and values [n, G, K] (or [B, n, G, K]) that every query sees, whatever its document. With a cache
        they are expected in its first n positions already (`start` counts them).
        """
        c, run = self.config, self.execution
        q_BTHK, k_BTGK, v_BTGK = self._project(x_BTD, context.ropes)
        if cache is not None:
            cache = cache.write(k_BTGK, v_BTGK, 0 if context.start is None else context.start, repeat)
        context_BTHK = self._attend(q_BTHK, k_BTGK, v_BTGK, context, cache, repeat, prefix)
        B, T, H, K = context_BTHK.shape
        flat = checkpoint_name(context_BTHK.reshape(B, T, H * K), "context")
        divisor = math.sqrt(2 * c.num_layers) if c.init_scale_residual else 1.0
        output = Linear(c.embed_dim, run, c.attention_output_bias, c.init_std, divisor, name="o_proj")
        return output(flat), cache

    def _project(self, x_BTD: jax.Array, ropes: tuple[RopeTable, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, H, K], keys and values [B, T, G, K]: normalized and rotated as the family does."""
        c, spec, run = self.config, self.spec, self.execution
        B, T, _ = x_BTD.shape
        H, G, K = spec.num_heads, spec.num_kv_heads, c.head_dim
        linear = partial(Linear, execution=run, use_bias=c.qkv_bias, init_std=c.init_std)
        fused = run.layout == "fused"
        if fused:
            qkv = linear((H + 2 * G) * K, is_fused=True, name="qkv_proj")(x_BTD)

        def project(name: str, heads: int) -> jax.Array:
            if fused:
                begin = {"q": 0, "k": H, "v": H + G}[name] * K
                y = qkv[..., begin : begin + heads * K]
            else:
                y = linear(heads * K, name=f"{name}_proj")(x_BTD)
            if c.clip_qkv is not None:
                y = jnp.clip(y, -c.clip_qkv, c.clip_qkv)
            if c.qk_norm == "full" and name != "v":
                y = query_key_norm(c, run.dtype, f"{name}_norm")(y)
            y = y.reshape(B, T, heads, K)
            if c.qk_norm in ("head", "heads") and name != "v" and not c.qk_norm_after_rope:
                y = query_key_norm(c, run.dtype, f"{name}_norm", heads if c.qk_norm == "heads" else 0)(y)
            return run.constrain(y, "heads")

        q_BTHK, k_BTGK, v_BTGK = project("q", H), project("k", G), project("v", G)
        if spec.rope is not None:
            q_BTHK, k_BTGK = rotate(q_BTHK, ropes[spec.rope]), rotate(k_BTGK, ropes[spec.rope])
        if c.qk_norm_after_rope:
            q_BTHK, k_BTGK = (query_key_norm(c, run.dtype, f"{n}_norm")(x) for n, x in (("q", q_BTHK), ("k", k_BTGK)))
        names = zip((q_BTHK, k_BTGK, v_BTGK), ("query", "key", "value"), strict=True)
        q_BTHK, k_BTGK, v_BTGK = (checkpoint_name(x, name) for x, name in names)
        return q_BTHK, k_BTGK, v_BTGK

    def _attend(
        self,
        q_BTHK: jax.Array,
        k_BTGK: jax.Array,
        v_BTGK: jax.Array,
        context: Context,
        cache: LayerCache | None,
        repeat: jax.Array | None,
        prefix: tuple[jax.Array, jax.Array] | None,
    ) -> jax.Array:
        """Attention [B, T, H, K] over the new tokens, or over the cache (which holds them) if tokens came before."""
        c, spec, run = self.config, self.spec, self.execution
        H, K = spec.num_heads, c.head_dim
        num_prefix = 0 if prefix is None else prefix[0].shape[-3]
        falcon_alibi = c.position == "alibi" and c.alibi_scaled
        slopes_H = None
        if c.position == "alibi":
            slopes = alibi_slopes(H, c.alibi_max_bias)
            slopes_H = jnp.asarray(slopes * (c.softmax_scale if c.alibi_scaled else 1.0))
        scores = Scores(c.softmax_scale, c.attention_softcap, slopes_H)
        mask = Mask(context.q_segments_BT, context.kv_segments_BS, spec.window, context.start)
        if context.distances_BTS is not None and cache is not None and context.start is not None:
            if falcon_alibi:
                raise ValueError("Falcon's ALiBi is rounded at positions, which distances do not tell.")
            keys, values = cache.read_heads_first(repeat)
            mask = Mask(window=spec.window, offset=jnp.max(context.start), distances=context.distances_BTS)
            return cached_attention(q_BTHK, keys.astype(run.dtype), values.astype(run.dtype), mask, scores)
        if context.start is not None and cache is not None:
            # Read in blocks, the cache gives a prefix no place of its own before windows and slopes.
            prefix_apart = num_prefix > 0 and (spec.window is not None or c.position == "alibi")
            if cache.reads_in_blocks and not falcon_alibi and not prefix_apart:
                return cached_attention(q_BTHK, cache.keys, cache.values, mask, scores)
            k_BSGK, v_BSGK = (array.astype(run.dtype) for array in cache.read(repeat))
            mask = mask.replace(offset=context.start - num_prefix, prefix=num_prefix)  # type: ignore[attr-defined]
        else:
            k_BSGK, v_BSGK = k_BTGK, v_BTGK
            if prefix is not None and cache is None:
                k_BSGK, v_BSGK = (put_before(p, x) for p, x in zip(prefix, (k_BSGK, v_BSGK), strict=True))
                segments = mask.kv_segments
                if segments is not None:
                    segments = jnp.pad(segments, ((0, 0), (num_prefix, 0)))
                mask = mask.replace(kv_segments=segments, prefix=num_prefix)  # type: ignore[attr-defined]
        if falcon_alibi:
            bias_BSH = alibi_rounding(H, mask.kv_segments, k_BSGK.shape[1], c.alibi_max_bias)
            q_BTHK, k_BSGK, v_BSGK = with_key_bias(q_BTHK, k_BSGK, v_BSGK, bias_BSH)
        return run.attention(q_BTHK, k_BSGK, v_BSGK, mask, scores)[..., :K]


def put_before(prefix: jax.Array, x_BTGK: jax.Array) -> jax.Array:
    """[B, n + T, G, K]: a prefix [n, G, K] or [B, n, G, K] before each row."""
    B, _, G, K = x_BTGK.shape
    prefix_BNGK = jnp.broadcast_to(prefix.astype(x_BTGK.dtype), (B, prefix.shape[-3], G, K))
    return jnp.concatenate([prefix_BNGK, x_BTGK], axis=1)


def with_key_bias(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, bias_BSH: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values of K + 1 dimensions whose scores are those of the arguments plus `bias` of each key."""
    B, S, G, _ = k_BSGK.shape
    H = q_BTHK.shape[2]
    k_BSHK, v_BSHK = (jnp.repeat(x, H // G, axis=2) for x in (k_BSGK, v_BSGK))
    bias_BSH1 = jnp.broadcast_to(bias_BSH, (B, S, H))[..., None].astype(k_BSGK.dtype)
    one_more = ((0, 0),) * 3 + ((0, 1),)
    q_BTHL = jnp.pad(q_BTHK, one_more, constant_values=1)
    return q_BTHL, jnp.concatenate([k_BSHK, bias_BSH1], axis=-1), jnp.pad(v_BSHK, one_more)
