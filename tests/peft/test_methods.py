"""What holds for every method: where it starts, what it trains, and that it runs the same either way."""

import dataclasses

import jax
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.models.execution import Execution
from slmjax.models.parameters import flatten
from slmjax.models.transformer import Transformer
from tests.tiny import largest, noise

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


SLOW = {"qlora int8", "qdora nf4", "pfeiffer", "prefix mlp", "p-tuning mlp", "ia3 int4"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in METHODS],
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def tuned(name, tune):
    return tune(**METHODS[name])


@pytest.fixture(scope="module")
def program(tuned, jit):
    """trained -> (loss, gradients), compiled once for all tests of a method."""
    return jit(jax.value_and_grad(tuned.loss))


@pytest.fixture(scope="module")
def start(tuned, program):
    """(loss, gradients) at the start."""
    return program(tuned.trained)


@pytest.fixture(scope="module")
def base_loss(tune, jit):
    """Loss of the network that every method here starts from."""
    plain = tune(method="full")
    return jit(plain.plain_loss)(plain.base)


def test_a_fresh_one_changes_nothing_where_it_can(name, start, base_loss):
    base = base_loss
    if name in STARTS_AS_THE_BASE:
        np.testing.assert_allclose(start[0], base, rtol=2e-6)
    else:
        assert abs(start[0] - base) > 1e-4


def test_gradient_steps_on_what_is_trained_lower_the_loss(tuned, program):
    """Sign descent: steps of one size whatever the scale of a method's gradients."""
    trained, losses = tuned.trained, []
    for _ in range(8):
        loss, grads = program(trained)
        trained = jax.tree.map(lambda x, g: np.asarray(x) - np.float32(1e-2) * np.sign(g), trained, grads)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 1e-2, losses
    for (path, x), y in zip(flatten(trained).items(), flatten(tuned.trained).values(), strict=True):
        assert largest(x - np.asarray(y)) > 0, path


def test_the_gradient_is_the_slope_of_the_loss(name, tuned, start, program):
    if "dora" in name:
        pytest.skip("DoRA's norm is detached: its gradient is not the slope; test_lora.py has its dense reference")
    direction = noise(tuned.trained, 1.0, seed=4)
    norm = np.sqrt(sum(np.square(d).sum() for d in jax.tree.leaves(direction)))
    direction = jax.tree.map(lambda d: d / norm, direction)
    at = lambda t: program(jax.tree.map(lambda x, d: np.asarray(x) + np.float32(t) * d, tuned.trained, direction))[0]  # noqa: E731
    slope = (float(at(3e-2)) - float(at(-3e-2))) / 6e-2
    analytic = sum(float(np.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (start[1], direction)), strict=True))
    assert analytic == pytest.approx(slope, rel=2e-2, abs=2e-2)


def test_the_scan_is_the_loop(tuned, program, jit):
    """Away from the start, where all that is added counts. The scan's gradient is the slope of the same loss."""
    looped = dataclasses.replace(tuned, model=Transformer(tuned.model.config, Execution(scan_unroll=0)))
    moved = jax.tree.map(np.add, tuned.trained, noise(tuned.trained, 0.05, seed=6))
    np.testing.assert_allclose(jit(looped.loss)(moved), program(moved)[0], rtol=1e-5)


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
