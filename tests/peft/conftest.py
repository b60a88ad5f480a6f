"""A small network, a packed batch, and each method on it."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.transformer import Transformer
from slmjax.objectives.next_token import next_token
from slmjax.peft.config import PeftConfig
from slmjax.peft.method import Method, make_method

quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
B, T, V = 4, 12, 61
SCANNED = Execution(remat="full")
TINY = ModelConfig(
    vocab_size=V,
    num_layers=3,
    embed_dim=16,
    num_heads=4,
    num_kv_heads=2,
    ffn_dim=24,
    qkv_bias=True,
    tie_embeddings=False,
    context_length=64,
)


def make_batch(rows: int = B, length: int = T, seed: int = 0) -> dict[str, np.ndarray]:
    """Packed rows: one to three documents each."""
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(1, 4, (rows, length)), axis=1).astype(np.int32)
    positions = np.zeros_like(segments)
    for row, ids in zip(positions, segments, strict=True):
        for i in np.unique(ids):
            row[ids == i] = np.arange((ids == i).sum())
    tokens = rng.integers(0, V, (2, rows, length)).astype(np.int32)
    weights = rng.random((rows, length)).astype(np.float32)
    return {
        "inputs": tokens[0],
        "targets": tokens[1],
        "positions": positions,
        "segments": segments,
        "loss_weights": weights,
    }


def noise(tree: Any, scale: float = 0.2, seed: int = 1) -> Any:
    """A tree of the same shapes with other numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(scale * rng.standard_normal(s.shape), jnp.float32), tree)


def make_base(config: ModelConfig = TINY) -> Any:
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    norms = jax.tree_util.tree_map_with_path(lambda path, _: float(path[-1].key == "scale"), shapes)
    return jax.tree.map(jnp.add, norms, noise(shapes))


@dataclasses.dataclass(frozen=True)
class Tuned:
    """One method on one network, as the training step would hold it."""

    config: PeftConfig
    model: Transformer
    method: Method
    base: Any
    trained: Any
    frozen: Any
    moved: Any = None

    def loss(self, trained, rng=None):
        """Of the fine-tuned network, as the step computes it."""
        return next_token(self.model, self.method)(trained, self.frozen, make_batch(), rng)[0]

    def plain_loss(self, params):
        """Of the same network with these parameters and nothing added."""
        return next_token(self.model)({"params": params}, {}, make_batch(), None)[0]


@pytest.fixture(scope="session")
def tune():
    """tune(method="lora", lora={...}, model=TINY, train=...): a method on a network, at its start."""

    def make(*, model: ModelConfig = TINY, execution: Execution = SCANNED, **peft) -> Tuned:
        network = Transformer(model, execution)
        config = PeftConfig(**peft)
        method = make_method(config, network)
        base = make_base(model)
        trained, frozen = quick_jit(method.split)(base, jax.random.key(3))
        return Tuned(config, network, method, base, trained, frozen)

    return make


@pytest.fixture(scope="session")
def jit():
    return quick_jit
