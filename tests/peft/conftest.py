"""A small network, a packed batch, and each method on it."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.transformer import Transformer
from slmjax.objectives.next_token import next_token
from slmjax.peft.config import PeftConfig
from slmjax.peft.method import Method, make_method
from tests import tiny

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


def make_batch() -> dict[str, np.ndarray]:
    """Packed rows: one to three documents each."""
    return tiny.make_batch(V, B, T)


def make_base(config: ModelConfig = TINY) -> Any:
    """Random parameters, with gains around one."""
    shapes = tiny.param_shapes(config)
    norms = jax.tree_util.tree_map_with_path(lambda path, _: np.float32(path[-1].key == "scale"), shapes)
    return jax.device_put(jax.tree.map(np.add, norms, tiny.noise(shapes)))


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
    """tune(method="lora", lora={...}, model=TINY, train=...): a method on a network, at its start; each made once."""

    @functools.cache
    def base_of(model: ModelConfig) -> Any:
        return make_base(model)

    made: dict[str, Tuned] = {}

    def tune(**how) -> Tuned:
        key = repr(sorted(how.items()))
        return made[key] if key in made else made.setdefault(key, make(**how))

    def make(*, model: ModelConfig = TINY, execution: Execution = SCANNED, **peft) -> Tuned:
        network = Transformer(model, execution)
        config = PeftConfig(**peft)
        method = make_method(config, network)
        base = base_of(model)
        trained, frozen = jax.jit(method.split)(base, jax.random.key(3))
        return Tuned(config, network, method, base, trained, frozen)

    return tune


@pytest.fixture(scope="session")
def jit():
    return jax.jit
