"""Vectors that are learned in front of the text: prefix tuning, P-tuning v2, prompt tuning, P-tuning v1.

All of them become one thing for the network: keys and values of n positions in each layer, which every document sees.
Prefix tuning (Li and Liang 2021, arXiv:2101.00190) learns them, freely (P-tuning v2, Liu et al. 2021, arXiv:2110.07602)
or through an MLP. Prompt tuning (Lester et al. 2021, arXiv:2104.08691) learns n input vectors, P-tuning (Liu et al.
2021, arXiv:2103.10385) an encoder of them; since the network is causal, what they do to every text is in their own keys
and values, so the network is run over the prompt once a step, and packed rows need no copy of it in each document.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.models.kv_cache import empty_cache
from slmjax.models.parameters import Params, flatten, unflatten
from slmjax.models.transformer import Transformer
from slmjax.peft.config import PrefixConfig, PromptConfig, PTuningConfig
from slmjax.peft.forward import Network, forward
from slmjax.peft.methods.lstm import init_lstm, lstm
from slmjax.peft.options import PLAIN, Options
from slmjax.peft.prefix_cache import prefix_of_cache


@dataclass(frozen=True, eq=False)
class Prefix:
    """Prefix tuning of a network; see `peft.method.Added`. ids: int32 [n], of `initial_ids`."""

    config: PrefixConfig
    model: Transformer
    ids: np.ndarray | None
    options: ClassVar[Options] = PLAIN
    changes_at_start: ClassVar[bool] = True
    rate_factors: ClassVar[dict[str, float]] = {}

    def init(self, base: Params, key: jax.Array) -> tuple[Params, Params]:
        """(what is trained, no constants)."""
        return self._init(base, key), {}

    def _init(self, base: Params, key: jax.Array) -> Params:
        config, model, ids = self.config, self.model, self.ids
        n, m = config.num_virtual_tokens, model.config
        shapes = jax.eval_shape(lambda: prefix_of_cache(empty_cache(m, 1, n, jnp.float32)))
        if config.projection:
            hidden = config.hidden_size or m.embed_dim
            width = sum(leaf.shape[0] * leaf.shape[2] * leaf.shape[3] for leaf in jax.tree.leaves(shapes))
            keys = jax.random.split(key, 3)
            embedding = jax.random.normal(keys[0], (n, m.embed_dim))
            layers = [_dense(keys[1], m.embed_dim, hidden), _dense(keys[2], hidden, width)]
            return {"encoder": {"embedding": embedding, "layer_0": layers[0], "layer_1": layers[1]}}
        if config.init == "zero":
            return jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
        if config.init == "random":
            leaves = flatten(shapes)
            keys = jax.random.split(key, len(leaves))
            return unflatten({p: jax.random.normal(k, s.shape) for k, (p, s) in zip(keys, leaves.items(), strict=True)})
        tokens = jax.random.randint(key, (n,), 0, m.vocab_size) if ids is None else jnp.asarray(ids)
        return keys_and_values(model, base, base["embedder"]["embedding"][tokens].astype(jnp.float32))

    def collection(self, trained: Params, constants: Params, base: Params) -> Params:
        """The prefix of every layer."""
        config, model = self.config, self.model.config
        if not config.projection:
            return trained
        shapes = jax.eval_shape(lambda: prefix_of_cache(empty_cache(model, 1, config.num_virtual_tokens, jnp.float32)))
        encoder = trained["encoder"]
        y = _apply(encoder["layer_1"], jnp.tanh(_apply(encoder["layer_0"], encoder["embedding"])))
        leaves = flatten(shapes)
        cuts = np.cumsum([s.shape[0] * s.shape[2] * s.shape[3] for s in leaves.values()])[:-1]
        parts = zip(leaves.items(), jnp.split(y, cuts, axis=1), strict=True)
        # A row of y is one token's keys and values, layer by layer.
        return unflatten({p: y.reshape(s.shape[1], s.shape[0], *s.shape[2:]).swapaxes(0, 1) for (p, s), y in parts})


@dataclass(frozen=True, eq=False)
class Prompt:
    """Prompt tuning of a network; see `peft.method.Added`. ids: int32 [n], of `initial_ids`."""

    config: PromptConfig
    model: Transformer
    ids: np.ndarray | None
    options: ClassVar[Options] = PLAIN
    changes_at_start: ClassVar[bool] = True
    rate_factors: ClassVar[dict[str, float]] = {}

    def init(self, base: Params, key: jax.Array) -> tuple[Params, Params]:
        """(`prompt` float32 [n, E], no constants)."""
        return {"prompt": self._vectors(base, key)}, {}

    def _vectors(self, base: Params, key: jax.Array) -> jax.Array:
        config, model, ids = self.config, self.model.config, self.ids
        table_VE = base["embedder"]["embedding"]
        shape = (config.num_virtual_tokens, table_VE.shape[1])
        if config.init == "zero":
            return jnp.zeros(shape)
        if config.init == "random":
            return jax.random.normal(key, shape)
        tokens = jax.random.randint(key, shape[:1], 0, model.vocab_size) if ids is None else jnp.asarray(ids)
        return table_VE[tokens].astype(jnp.float32)

    def collection(self, trained: Params, constants: Params, base: Params) -> Params:
        """The prefix that the prompt leaves behind in every layer."""
        return keys_and_values(self.model, base, prompt_of(trained))


@dataclass(frozen=True, eq=False)
class PTuning:
    """P-tuning of a network; see `peft.method.Added`."""

    config: PTuningConfig
    model: Transformer
    options: ClassVar[Options] = PLAIN
    changes_at_start: ClassVar[bool] = True
    rate_factors: ClassVar[dict[str, float]] = {}

    def init(self, base: Params, key: jax.Array) -> tuple[Params, Params]:
        """(learned vectors [n, E] and their encoder, no constants)."""
        config, model = self.config, self.model.config
        E, hidden = model.embedding_projection_dim or model.embed_dim, config.hidden_size or model.embed_dim
        keys = jax.random.split(key, 5)
        trained: dict[str, Any] = {"embedding": jax.random.normal(keys[0], (config.num_virtual_tokens, E))}
        if config.encoder == "mlp":
            sizes = [(E, hidden), (hidden, hidden), (hidden, E)]
        else:
            trained |= {"lstm": init_lstm(keys[4], E, hidden)}
            sizes = [(2 * hidden, 2 * hidden), (2 * hidden, E)]
        layers = {f"layer_{i}": _dense(keys[1 + i], *size) for i, size in enumerate(sizes)}
        return {"encoder": trained | layers}, {}

    def collection(self, trained: Params, constants: Params, base: Params) -> Params:
        """The prefix that the prompt leaves behind in every layer."""
        return keys_and_values(self.model, base, prompt_of(trained))


def initial_ids(config: PrefixConfig | PromptConfig, encode: Callable[[str], list[int]] | None) -> np.ndarray | None:
    """int32 [n], the tokens of the text that a soft prompt starts from, cut or repeated; None where it has none."""
    if config.init != "text":
        return None
    if encode is None:
        raise UserError("A soft prompt that starts from init_text needs a tokenizer: give make_method its `encode`.")
    ids = encode(config.init_text)
    if not len(ids):
        raise UserError(f"The init_text of the soft prompt, {config.init_text!r}, has no tokens: give a longer one.")
    return np.resize(np.asarray(ids, np.int32), config.num_virtual_tokens)


def prompt_of(trained: Any) -> jax.Array:
    """The prompt's input vectors, float32 [n, E], from what prompt tuning or P-tuning trains."""
    if "prompt" in trained:
        return trained["prompt"]
    encoder = trained["encoder"]
    y = encoder["embedding"]
    if "lstm" in encoder:
        y = lstm(encoder["lstm"], y)
    layers = sorted(name for name in encoder if name.startswith("layer_"))
    for name in layers:
        y = _apply(encoder[name], y if name == layers[0] else jax.nn.relu(y))
    return y


def keys_and_values(model: Transformer, base: Params, prompt_NE: jax.Array) -> Params:
    """The prefix that input vectors [n, E] leave behind in every layer: the network run over them alone."""
    n, config = len(prompt_NE), model.config
    if config.block_repeats > 1:
        raise UserError("A network that runs its blocks several times has no single prefix: use peft.method='prefix'.")
    # The vectors stand in for the table, so that they go the way of any token's.
    alone = dataclasses.replace(config, vocab_size=n, tie_embeddings=True, head_bias=False)
    cache = empty_cache(config, 1, n, model.execution.dtype)
    params = base | {"embedder": {"embedding": prompt_NE}}
    tokens = jnp.arange(n, dtype=jnp.int32)[None]
    network = Network(Transformer(alone, model.execution))
    _, cache = forward(network, {"params": params}, tokens, cache=cache, hidden=True)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), prefix_of_cache(cache))


def _dense(key: jax.Array, rows: int, columns: int) -> dict[str, jax.Array]:
    """A layer with torch's initialization: everything uniform within rows ** -0.5."""
    kernel, bias = jax.random.split(key)
    bound = rows**-0.5
    return {
        "kernel": jax.random.uniform(kernel, (rows, columns), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias, (columns,), minval=-bound, maxval=bound),
    }


def _apply(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]
