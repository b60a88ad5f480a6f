"""Self-attention sub-layer: multi-head (Vaswani et al. 2017), multi-query, grouped-query (Ainslie et al. 2023)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from slmjax.models import kv_cache
from slmjax.models.attention.cached import cached_attention
from slmjax.models.config import LayerSpec, ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.linear import Linear
from slmjax.models.normalization import query_key_norm
from slmjax.models.positions import RopeTable, alibi_rounding, alibi_slopes, rotate


class Attention(nn.Module):
    """Project, normalize, rotate, attend, project. With a cache, keys and values are those of the cache."""

    config: ModelConfig
    spec: LayerSpec
    execution: Execution

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        ropes: tuple[RopeTable, ...],
        q_segments_BT: jax.Array | None,
        kv_segments_BS: jax.Array | None,
        cache: kv_cache.LayerCache | None,
        index: jax.Array | None,
        repeat: jax.Array | None = None,
        prefix: kv_cache.LayerCache | None = None,
    ) -> tuple[jax.Array, kv_cache.LayerCache | None]:
        """`prefix`: keys and values [n, G, K] (or [B, n, G, K]) that every query sees, whatever its document.

        With a cache they are expected in its first n positions already (`index` counts them).
        """
        c, spec, run = self.config, self.spec, self.execution
        B, T, _ = x_BTD.shape
        H, G, K = spec.num_heads, spec.num_kv_heads, c.head_dim
        linear = partial(
            Linear, dtype=run.dtype, init_std=c.init_std, flatten_tokens=run.flatten_tokens, rows=run.layers_apart
        )

        if run.merged:
            merged = linear((H + 2 * G) * K, use_bias=c.qkv_bias, rows=False, flatten_tokens=True, name="qkv_proj")
            qkv = merged(x_BTD)

        def project(name: str, heads: int) -> jax.Array:
            if run.merged:
                begin = {"q": 0, "k": H, "v": H + G}[name] * K
                y = qkv[..., begin : begin + heads * K]
            else:
                y = linear(heads * K, use_bias=c.qkv_bias, name=f"{name}_proj")(x_BTD)
            if c.clip_qkv is not None:
                y = jnp.clip(y, -c.clip_qkv, c.clip_qkv)
            if c.qk_norm == "full" and name != "v":
                y = query_key_norm(c, run.dtype, f"{name}_norm")(y)
            y = y.reshape(B, T, heads, K)
            if c.qk_norm == "head" and name != "v":
                y = query_key_norm(c, run.dtype, f"{name}_norm")(y)
            return run.constrain(y, "heads")

        q_BTHK, k_BTGK, v_BTGK = project("q", H), project("k", G), project("v", G)
        if spec.rope is not None:
            q_BTHK, k_BTGK = rotate(q_BTHK, ropes[spec.rope]), rotate(k_BTGK, ropes[spec.rope])
        q_BTHK = checkpoint_name(q_BTHK, "query")
        k_BSGK = checkpoint_name(k_BTGK, "key")
        v_BSGK = checkpoint_name(v_BTGK, "value")
        if cache is not None:
            cache = kv_cache.write(cache, k_BTGK, v_BTGK, 0 if index is None else index, repeat)
        held = None if index is None else cache  # None: the new tokens are all that there is
        rounds = c.position == "alibi" and c.alibi_scaled
        num_prefix = 0 if prefix is None else prefix[0].shape[-3]
        # Read in blocks, the cache gives a prefix no place of its own before windows and slopes.
        by_place = num_prefix > 0 and (spec.window is not None or c.position == "alibi")
        apart = run.layers_apart and not rounds and not by_place
        if held is not None and not apart:
            k_BSGK, v_BSGK = (array.astype(run.dtype) for array in kv_cache.read(held, repeat))
        if prefix is not None and cache is None:
            k_BSGK, v_BSGK = (
                jnp.concatenate([jnp.broadcast_to(p.astype(x.dtype), (B, num_prefix, G, K)), x], axis=1)
                for p, x in zip(prefix, (k_BSGK, v_BSGK), strict=True)
            )
            if kv_segments_BS is not None:
                kv_segments_BS = jnp.pad(kv_segments_BS, ((0, 0), (num_prefix, 0)))

        scale = c.softmax_scale
        slopes_H = None
        if c.position == "alibi":
            slopes_H = jnp.asarray(alibi_slopes(H) * (scale if c.alibi_scaled else 1.0))
        masks: dict[str, Any] = {
            "q_segments_BT": q_segments_BT,
            "kv_segments_BS": kv_segments_BS,
            "window": spec.window,
        }
        form: dict[str, Any] = {"scale": scale, "softcap": c.attention_softcap, "slopes_H": slopes_H}
        if rounds:
            bias_BSH = alibi_rounding(H, kv_segments_BS, k_BSGK.shape[1])
            q_BTHK, k_BSGK, v_BSGK = with_key_bias(q_BTHK, k_BSGK, v_BSGK, bias_BSH)
        if held is not None and index is not None and apart:
            context_BTHK = cached_attention(q_BTHK, held[0], held[1], index=index, **masks, **form)
        else:
            offset = 0 if index is None else index - num_prefix
            context_BTHK = run.attention(q_BTHK, k_BSGK, v_BSGK, q_offset=offset, prefix=num_prefix, **masks, **form)
        context = checkpoint_name(context_BTHK[..., :K].reshape(B, T, H * K), "context")
        divisor = math.sqrt(2 * c.num_layers) if c.init_scale_residual else 1.0
        output = linear(c.embed_dim, use_bias=c.attention_output_bias, init_divisor=divisor, name="o_proj")
        return output(context), cache


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
