"""What holds for every method: where it starts, what it trains, and that it runs the same either way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from slmjax.errors import UserError
from slmjax.models.execution import Execution
from slmjax.models.parameters import flatten
from slmjax.models.transformer import Transformer

METHODS = {
    "lora": {"method": "lora", "lora": {"r": 2}},
    "dora": {"method": "lora", "lora": {"r": 2, "dora": True}, "train": ("final_norm/scale",)},
    "qlora int8": {"method": "lora", "lora": {"r": 2}, "quantize": "int8"},
    "qdora nf4": {"method": "lora", "lora": {"r": 2, "dora": True}, "quantize": "nf4"},
    "houlsby": {"method": "adapter", "adapter": {"kind": "houlsby", "reduction_factor": 4}},
    "pfeiffer": {"method": "adapter", "adapter": {"kind": "pfeiffer", "reduction_factor": 4}},
    "parallel": {"method": "adapter", "adapter": {"kind": "parallel"}},
    "prefix": {"method": "prefix", "prefix": {"num_virtual_tokens": 3}},
    "prefix mlp": {"method": "prefix", "prefix": {"num_virtual_tokens": 3, "projection": True}},
    "prompt": {"method": "prompt", "prompt": {"num_virtual_tokens": 3}},
    "p-tuning mlp": {"method": "p_tuning", "p_tuning": {"num_virtual_tokens": 3}},
    "p-tuning lstm": {"method": "p_tuning", "p_tuning": {"num_virtual_tokens": 3, "encoder": "lstm"}},
    "ia3": {"method": "ia3"},
    "ia3 int4": {"method": "ia3", "quantize": "int4"},
    "full": {"method": "full"},
    "freeze": {"method": "freeze", "freeze": {"last_layers": 1}, "train": ("lm_head/kernel",)},
}
STARTS_AS_THE_BASE = {"lora", "dora", "houlsby", "pfeiffer", "parallel", "ia3", "full", "freeze"}


@pytest.fixture(scope="module", params=METHODS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def tuned(name, tune):
    return tune(**METHODS[name])


@pytest.fixture(scope="module")
def start(tuned, jit):
    """(loss, gradients) at the start."""
    return jit(jax.value_and_grad(tuned.loss))(tuned.trained)


def test_a_fresh_one_changes_nothing_where_it_can(name, tuned, start, jit):
    base = jit(tuned.plain_loss)(tuned.base)
    if name in STARTS_AS_THE_BASE:
        np.testing.assert_allclose(start[0], base, rtol=2e-6)
    else:
        assert abs(start[0] - base) > 1e-4


def test_gradient_steps_on_what_is_trained_lower_the_loss(name, tuned, start, jit):
    optimizer = optax.adam(1e-2)

    @jit
    def step(trained, state):
        loss, grads = jax.value_and_grad(tuned.loss)(trained)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(trained, updates), state, loss

    trained, state, losses = tuned.trained, optimizer.init(tuned.trained), []
    for _ in range(8):
        trained, state, loss = step(trained, state)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 1e-2, losses
    for path, moved in flatten(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), trained, tuned.trained)).items():
        assert moved > 0, path


def test_the_gradient_is_the_slope_of_the_loss(name, tuned, start, jit):
    if "dora" in name:
        pytest.skip("DoRA's norm is detached: its gradient is not the slope; test_lora.py has its dense reference")
    rng = np.random.default_rng(4)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), tuned.trained)
    direction = jax.tree.map(lambda d: d / optax.tree.norm(direction), direction)
    at = jit(lambda t: tuned.loss(jax.tree.map(lambda x, d: x + t * d, tuned.trained, direction)))
    slope = (float(at(3e-2)) - float(at(-3e-2))) / 6e-2
    analytic = sum(float(jnp.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (start[1], direction)), strict=True))
    assert analytic == pytest.approx(slope, rel=2e-2, abs=2e-2)


def test_the_scan_is_the_loop(name, tuned, start, tune, jit):
    looped = dataclasses.replace(tuned, model=Transformer(tuned.model.config, Execution(scan_unroll=0)))
    loss, grads = jit(jax.value_and_grad(looped.loss))(tuned.trained)
    np.testing.assert_allclose(loss, start[0], rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4 * float(jnp.abs(y).max()) + 1e-5), grads, start[1]
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "lorra"}, "peft.method is 'lorra'"),
        ({"method": "full", "quantize": "int8"}, "leaves frozen"),
        ({"method": "lora", "quantize": "int3"}, "int8, int4, nf4"),
        ({"method": "lora", "train": ("head",)}, "'head' matches nothing.*lm_head/kernel"),
        ({"method": "adapter", "adapter": {"kind": "compacter"}}, "houlsby, pfeiffer, parallel"),
        ({"method": "adapter", "adapter": {"reduction_factor": 64}}, "leaves nothing"),
        ({"method": "prefix", "prefix": {"num_virtual_tokens": 0}}, "at least 1"),
        ({"method": "prompt", "prompt": {"init": "text"}}, "init_text"),
        ({"method": "prompt", "prompt": {"init": "text", "init_text": "a"}}, "tokenizer"),
        ({"method": "p_tuning", "p_tuning": {"encoder": "gru"}}, "mlp or lstm"),
        ({"method": "ia3", "ia3": {"targets": ("lm_head",)}}, "all layers"),
        ({"method": "freeze"}, "trains nothing"),
        ({"method": "freeze", "freeze": {"first_layers": 2, "last_layers": 2}}, "there are 3"),
    ],
)
def test_mistakes_are_named(tune, config, message):
    with pytest.raises(UserError, match=message):
        tune(**config)
