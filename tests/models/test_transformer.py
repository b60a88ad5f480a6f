"""The network as a function: who can see whom, and that no way of running it changes what it computes."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.models.execution import REMAT_POLICIES, Execution
from slmjax.models.families.registry import model_config
from slmjax.models.transformer import Transformer, head_weights, logits_from_hidden
from tests.models.conftest import CORE, miniatures

T = 10


def rows(*documents: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Packed rows: each argument lists the documents of one row."""
    return {
        "tokens_BT": np.stack([np.concatenate(row) for row in documents]),
        "positions_BT": np.stack([np.concatenate([np.arange(len(d)) for d in row]) for row in documents]),
        "segments_BT": np.stack([np.repeat(np.arange(len(row)) + 1, [len(d) for d in row]) for row in documents]),
    }


def test_a_position_sees_its_past_within_reach_and_nothing_else(config, random_params, quick_jit):
    """By gradient of each output with respect to each token's embedding, exact zeros included."""
    params = random_params(config)
    tokens = np.arange(T)[None]
    probe_D = np.random.default_rng(1).standard_normal(config.table_dim)

    def outputs_T(table_VD):
        tree = {**params, "embedder": {"embedding": table_VD}}
        model = Transformer(config)  # before the head, which is tied
        hidden_BTD, _ = model.apply({"params": tree}, tokens, method="hidden")
        return hidden_BTD[0] @ probe_D

    jacobian_TVD = quick_jit(jax.jacrev(outputs_T))(params["embedder"]["embedding"])
    depends_TT = np.any(np.asarray(jacobian_TVD)[:, tokens[0]] != 0, axis=-1)
    distance_TT = np.arange(T)[:, None] - np.arange(T)[None, :]
    reach = T
    if all(spec.window for spec in config.layers):
        reach = sum(spec.window - 1 for spec in config.layers) * config.block_repeats
    np.testing.assert_array_equal(depends_TT, (distance_TT >= 0) & (distance_TT <= reach))


def test_documents_of_a_row_are_strangers(config, random_params, quick_jit):
    """The second document's logits do not move with the first, and are those of the document alone."""
    rng = np.random.default_rng(2)
    first, other, filler = (rng.integers(0, config.vocab_size, 4) for _ in range(3))
    document = rng.integers(0, config.vocab_size, T - 4)
    batch = rows([first, document], [other, document], [document, filler])
    logits = quick_jit(Transformer(config).apply)({"params": random_params(config)}, *batch.values())
    assert np.isfinite(logits).all()
    assert np.abs(logits[0, :4] - logits[1, :4]).max() > 1e-2
    np.testing.assert_array_equal(logits[0, 4:], logits[1, 4:])
    np.testing.assert_allclose(logits[2, : T - 4], logits[0, 4:], atol=2e-5, rtol=1e-4)


def test_default_positions_and_segments_are_one_document_a_row(random_params):
    config = small("gpt2", num_layers=1)
    params, tokens = random_params(config), np.arange(12).reshape(2, 6)
    apply = jax.jit(Transformer(config).apply)
    explicit = apply({"params": params}, tokens, np.tile(np.arange(6), (2, 1)), np.ones((2, 6), np.int32))
    np.testing.assert_allclose(apply({"params": params}, tokens), explicit, atol=1e-5)


def small(name: str, **changes) -> ModelConfig:
    """Four layers of a named model's switches."""
    sizes = {"vocab_size": 61, "num_layers": 4, "embed_dim": 32, "num_heads": 4, "head_dim": 8, "ffn_dim": 48}
    sizes |= {"num_kv_heads": 2, "context_length": 16, "window": 5, "rope_fraction": 0.5}
    return dataclasses.replace(model_config(name), **sizes | changes)


EXECUTIONS = {
    "loop": Execution(scan_unroll=0),
    "flat tokens": Execution(flatten_tokens=True),
    **{f"remat {name}": Execution(remat=name) for name in REMAT_POLICIES if name != "none"},
}


QUICK_EXECUTIONS = {"loop", "flat tokens", "remat context"}


@pytest.fixture(scope="module")
def gradients_under(random_params, quick_jit):
    """(name, execution) -> loss and gradients of a small model, computed once for each."""

    @cache
    def compute(name: str, execution: Execution):
        config = small(name, num_layers=4 if name == "gemma-2-2b" else 2)
        rng = np.random.default_rng(3)
        batch = rows(*([rng.integers(0, 61, 7), rng.integers(0, 61, 5)] for _ in range(2)))
        probe_BTV = rng.standard_normal((2, 12, 61)).astype(np.float32)

        def loss(tree):
            logits_BTV = Transformer(config, execution).apply({"params": tree}, *batch.values())
            return jnp.mean(jnp.tanh(logits_BTV) * probe_BTV)

        return quick_jit(jax.value_and_grad(loss))(random_params(config))

    return compute


@pytest.mark.parametrize(
    ("name", "execution"),
    [pytest.param("pythia-14m", e, marks=[] if e in QUICK_EXECUTIONS else [pytest.mark.slow]) for e in EXECUTIONS]
    + [("gemma-2-2b", "loop"), ("gemma-2-2b", "remat full")],
)
def test_execution_changes_neither_loss_nor_gradients(gradients_under, name, execution):
    loss, gradients = gradients_under(name, Execution())
    other_loss, other_gradients = gradients_under(name, EXECUTIONS[execution])
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))
    assert largest > 1e-4
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5 * largest, rtol=1e-4), other_gradients, gradients)


def test_remat_full_saves_less_than_none():
    """What a policy keeps for the backward pass is what its name says, in order."""
    config = small("smollm2-135m", embed_dim=64, ffn_dim=192, num_layers=8, head_dim=16)
    tokens = jnp.zeros((2, 16), jnp.int32)
    params = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)

    def temporary_bytes(remat):
        model = Transformer(config, Execution(remat=remat))
        loss = lambda p: jnp.sum(model.apply(p, tokens, method="hidden")[0])  # noqa: E731
        saved = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(saved) if leaf.shape[:1] == (8,) and leaf.ndim > 3)

    sizes = [temporary_bytes(name) for name in REMAT_POLICIES]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) >= 5, dict(zip(REMAT_POLICIES, sizes, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("network", sorted(CORE))
def test_bfloat16_follows_float32(network, random_params, quick_jit):
    config = miniatures()[network]
    params, tokens = random_params(config, std=0.1), np.arange(20).reshape(2, 10)
    full, half = (
        quick_jit(Transformer(config, Execution(dtype=dtype)).apply)({"params": params}, tokens)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32
    assert np.abs(full - half).max() < 0.05 * np.abs(full).max()


@pytest.mark.parametrize("name", ["phi-2", "opt-350m", "minicpm-1b"])
def test_hidden_times_head_is_the_logits(name, random_params, quick_jit):
    config = small(name, num_layers=1)
    params, tokens = random_params(config), np.arange(6)[None]
    hidden, _ = quick_jit(partial(Transformer(config).apply, method="hidden"))({"params": params}, tokens)
    logits = quick_jit(Transformer(config).apply)({"params": params}, tokens)
    np.testing.assert_allclose(
        logits_from_hidden(config, hidden, *head_weights(config, params)), logits, rtol=1e-4, atol=1e-5
    )


def test_what_no_execution_can_be_is_refused():
    with pytest.raises(UserError, match=r"training\.remat='some' is not known: choose one of none, dots"):
        Execution(remat="some")
    with pytest.raises(ValueError, match="layout is 'merged'"):
        Execution(layout="merged")
    for trains in ({"remat": "full"}, {"flatten_tokens": True}, {"feedforward": lambda *_: None}):
        with pytest.raises(ValueError, match="is for decoding"):
            Execution(layout="unstacked", **trains)
