"""What is measured: models, their training programs and batches. The only file here that imports slmjax's insides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.inference.generate import generate_ids
from slmjax.inference.language_model import LanguageModel
from slmjax.models.attention import kernels
from slmjax.models.attention.contract import AttentionFn, Mask, Scores
from slmjax.models.attention.xla import xla_attention as in_xla
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters, flops_per_token, kv_cache_bytes
from slmjax.models.families import model_config
from slmjax.models.positions import alibi_slopes
from slmjax.models.transformer import Transformer
from slmjax.recipes.config import default_config, run_config, set_budget
from slmjax.recipes.language_model import ModelProgram, build
from slmjax.training.program import TRAIN, to_devices
from slmjax.training.reporting.metrics import model_flops_utilization, peak_flops

__all__ = [
    "TRAIN",
    "LanguageModel",
    "ModelConfig",
    "ModelProgram",
    "UserError",
    "alibi_slopes",
    "attention_for",
    "count_parameters",
    "flops_per_token",
    "generate_ids",
    "kv_cache_bytes",
    "model",
    "model_flops_utilization",
    "packed_batch",
    "peak_flops",
    "random_parameters",
    "to_devices",
    "training_program",
    "xla_attention",
]

_SHAPE = {"vocab_size": 32000, "num_kv_heads": 8, "context_length": 2048, "tie_embeddings": False}
# The first three are those of peers/torch_gpu_mfu.py.
MODELS = {
    "0.35b": ModelConfig(num_layers=24, embed_dim=1024, num_heads=16, ffn_dim=2816, **_SHAPE),
    "1.1b": ModelConfig(num_layers=16, embed_dim=2048, num_heads=32, ffn_dim=8192, **_SHAPE),
    "3b": ModelConfig(num_layers=28, embed_dim=3072, num_heads=24, ffn_dim=8192, **_SHAPE),
    "llama-3.2-3b": model_config("llama-3.2-3b"),
}
_TINY = {"vocab_size": 256, "num_layers": 1, "embed_dim": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}


def by_keywords(attend: AttentionFn) -> Callable[..., jax.Array]:
    """An attention with its mask and scores as keywords; a Python 0 as `q_offset` is a whole sequence."""

    def run(q, k, v, *, q_segments_BT, kv_segments_BS, q_offset, scale, window, softcap, slopes_H):
        offset = None if isinstance(q_offset, int) and q_offset == 0 else q_offset
        return attend(q, k, v, Mask(q_segments_BT, kv_segments_BS, window, offset), Scores(scale, softcap, slopes_H))

    return run


def attention_for(platform: str) -> Callable[..., jax.Array]:
    """The attention that slmjax takes on a platform."""
    return by_keywords(kernels.attention_for(platform))


xla_attention = by_keywords(in_xla)


def model(name: str, *, dry_run: bool) -> ModelConfig:
    """The config of a named model, or in a dry run its miniature."""
    config = MODELS[name]
    return dataclasses.replace(config, ffn_dim=128, **_TINY) if dry_run else config


def training_program(
    config: ModelConfig,
    *,
    rows: int,
    length: int,
    remat: str = "auto",
    dtype: str = "auto",
    method: str = "full",
    base: Any = None,
    device: jax.Device | None = None,
) -> ModelProgram:
    """The program of a run with default settings but for these, on one device (None: the first of the default kind)."""
    values = default_config(config)
    set_budget(values, steps=1000)
    values.data.sequence_length = length
    values.training.update({"batch_size": rows, "remat": remat, "dtype": dtype})
    values.schedule.update({"peak": 3e-4, "warmup_fraction": 0.0})
    values.peft.method = method
    return build(run_config(values), devices=[device or jax.devices()[0]], base=base)


def packed_batch(
    vocab_size: int, rows: int, length: int, *, seed: int = 0, documents: int = 4
) -> dict[str, np.ndarray]:
    """A batch [rows, length] of random tokens in so many documents a row, cut at random places."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab_size, (rows, length + 1), dtype=np.int32)
    positions, segments = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        cuts = np.sort(rng.choice(np.arange(1, length), documents - 1, replace=False))
        starts = np.concatenate([[0], cuts])
        segments[row] = np.searchsorted(cuts, np.arange(length), side="right") + 1
        positions[row] = np.arange(length) - starts[segments[row] - 1]
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": positions,
        "segments": segments,
        "loss_weights": np.ones((rows, length), np.float32),
    }


def random_parameters(config: ModelConfig, dtype: Any = jnp.bfloat16) -> Any:
    """Freshly initialized parameters of the network in `dtype`."""

    def initialize(key: jax.Array) -> Any:
        params = Transformer(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    return jax.jit(initialize)(jax.random.key(0))
