"""Exact costs of a `ModelConfig`: parameters, floating-point operations, key/value cache bytes.

The FLOP rule (state it wherever a number is published): 2 operations for each multiply-add of a matrix product;
the embedding lookup is free, the output head counts even when its matrix is tied; attention counts only the keys
that the causal mask and the window leave visible; norms, activations and softmax are not counted; the backward pass
costs twice the forward pass; what rematerialization recomputes is not counted (MFU, not HFU).
"""

from __future__ import annotations

from dataclasses import dataclass

from slmjax.models.config import LayerSpec, ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters by room of the network."""

    embedding: int  # token and position tables, and their projections
    attention: int
    feedforward: int
    norms: int
    head: int  # 0 when tied

    @property
    def total(self) -> int:
        """All parameters, tied tables once."""
        return self.embedding + self.attention + self.feedforward + self.norms + self.head

    @property
    def non_embedding(self) -> int:
        """Without tables and head: the N of Kaplan et al. 2020 (arXiv:2001.08361); Hoffmann et al. 2022 count all."""
        return self.attention + self.feedforward + self.norms


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _norm(config: ModelConfig, dim: int) -> int:
    return dim * (int(config.norm_scale) + int(config.norm_bias))


def _attention(config: ModelConfig, spec: LayerSpec) -> int:
    D, q, kv = config.embed_dim, spec.num_heads * config.head_dim, spec.num_kv_heads * config.head_dim
    return (
        _linear(D, q, config.qkv_bias)
        + 2 * _linear(D, kv, config.qkv_bias)
        + _linear(q, D, config.attention_output_bias)
    )


def _feedforward(config: ModelConfig, spec: LayerSpec) -> int:
    up = 2 if config.gated else 1
    D, F = config.embed_dim, spec.ffn_dim
    return up * _linear(D, F, config.ffn_bias) + _linear(F, D, config.ffn_bias)


def _layer_norms(config: ModelConfig, spec: LayerSpec) -> int:
    count = {"pre": 2, "output": 2, "sandwich": 4, "post": 2}[config.norm_placement] - int(config.shared_norm)
    total = count * _norm(config, config.embed_dim)
    if config.qk_norm == "head":  # gain only, also where the other norms are LayerNorm with bias
        total += 2 * config.head_dim
    elif config.qk_norm in ("full", "heads"):
        total += (spec.num_heads + spec.num_kv_heads) * config.head_dim
    return total


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Exact number of parameters, equal to the sum of the sizes of `Transformer.init`'s arrays (a test holds it)."""
    D, V = config.embed_dim, config.vocab_size
    E = config.table_dim
    embedding = V * E
    if E != D:
        embedding += 2 * E * D  # into and out of the residual stream
    if config.position == "learned":
        embedding += (config.context_length + config.position_offset) * D
    head = (0 if config.tie_embeddings else E * V) + (V if config.head_bias else 0)
    outer_norms = int(config.embedding_norm) + int(config.final_norm)
    return ParameterCount(
        embedding=embedding,
        attention=sum(_attention(config, spec) for spec in config.layers),
        feedforward=sum(_feedforward(config, spec) for spec in config.layers),
        norms=sum(_layer_norms(config, spec) for spec in config.layers) + outer_norms * _norm(config, D),
        head=head,
    )


def _visible_keys(length: int, window: int | None) -> float:
    """Mean number of keys that a query of a causal sequence of `length` sees, itself included."""
    if window is None or window >= length:
        return (length + 1) / 2
    return (window * (window + 1) / 2 + (length - window) * window) / length


def flops_per_token(config: ModelConfig, sequence_length: int, *, training: bool = True) -> float:
    """Floating-point operations for one token in a sequence of `sequence_length` by the module's rule."""
    D = config.embed_dim
    E = config.table_dim
    forward = 2.0 * E * config.vocab_size + (4.0 * E * D if E != D else 0.0)
    for spec in config.layers:
        q, kv = spec.num_heads * config.head_dim, spec.num_kv_heads * config.head_dim
        matmul = D * (2 * q + 2 * kv) + (3 if config.gated else 2) * D * spec.ffn_dim
        attention = 4.0 * q * _visible_keys(sequence_length, spec.window)
        forward += config.block_repeats * (2.0 * matmul + attention)
    return 3.0 * forward if training else forward


def kv_cache_bytes(config: ModelConfig, length: int, *, batch_size: int = 1, bytes_per_value: int = 2) -> int:
    """Bytes of the static key/value cache for `length` positions a row (every layer keeps the full length)."""
    values = sum(2 * spec.num_kv_heads * config.head_dim for spec in config.layers) * config.block_repeats
    return values * length * batch_size * bytes_per_value
