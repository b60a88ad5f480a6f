"""Facts of a model without its weights: architecture, sizes, costs, what a fine-tune trains."""

from __future__ import annotations

from typing import Any

from slmjax.inference.finetuned import count_trained
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters, flops_per_token, kv_cache_bytes
from slmjax.peft.config import PeftConfig
from slmjax.tokenization.tokenizer import Tokenizer

_TRAINING_BYTES = 16  # of a parameter with AdamW: float32 weight, gradient and two moments


def describe_network(config: ModelConfig) -> dict[str, Any]:
    """The architecture of a network, for people and for cards."""
    return {
        "layers": config.num_layers,
        "width": config.embed_dim,
        "heads": config.num_heads,
        "key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "feedforward_width": config.ffn_dim,
        "activation": f"{'gated ' if config.gated else ''}{config.activation}",
        "norm": f"{config.norm}, {config.norm_placement}",
        "position": config.position,
        "window": config.window,
        "vocabulary": config.vocab_size,
        "context": config.context_length,
        "tied_embeddings": config.tie_embeddings,
    }


def describe_costs(config: ModelConfig, batch_size: int = 1, context: int = 0) -> dict[str, Any]:
    """Parameters by part, FLOPs a token, bytes of the weights, of AdamW's training state, and of a key/value cache.

    context: tokens a row of the cache; 0: the model's own context.
    """
    count, context = count_parameters(config), context or config.context_length
    return {
        "parameters": count.total,
        "parameters_embedding": count.embedding,
        "parameters_attention": count.attention,
        "parameters_feedforward": count.feedforward,
        "parameters_norms": count.norms,
        "parameters_head": count.head,
        "training_flops_per_token": flops_per_token(config, context),
        "inference_flops_per_token": flops_per_token(config, context, training=False),
        "weights_bytes_float32": 4 * count.total,
        "weights_bytes_bfloat16": 2 * count.total,
        "training_bytes_adamw": _TRAINING_BYTES * count.total,
        "cache_batch_size": batch_size,
        "cache_context": context,
        "cache_bytes_bfloat16": kv_cache_bytes(config, context, batch_size=batch_size),
    }


def describe_finetuning(config: ModelConfig, peft: PeftConfig, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """Base, method, and how many numbers of how many are trained; nothing of a network that is trained from scratch.

    config: the base's network, or one that has `peft.new_layers` already. tokenizer: for prompts that begin as a text.
    """
    if peft.method == "full" and not peft.base:
        return {}
    trained, total = count_trained(config, peft, None if tokenizer is None else tokenizer.encode)
    return {
        "base": peft.base or None,
        "method": peft.method,
        "trained_parameters": trained,
        "trained_and_frozen_parameters": total,
        "trained_share": f"{trained / total:.3%}",
    }


def describe_tokenizer(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The size and fingerprint of a tokenizer."""
    if tokenizer is None:
        return {"tokenizer": "not found"}
    return {"tokenizer": f"{tokenizer.vocab_size:,} tokens ({tokenizer.fingerprint})"}
